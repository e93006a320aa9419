//! The embedded engine: a directory, a SQLite catalog, sparse files.

mod catalog;
pub mod layer_id;
mod lock;
mod pool;

pub use layer_id::LayerId;
