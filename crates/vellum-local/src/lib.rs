//! The embedded engine: a directory, a SQLite catalog, sparse files.

pub mod layer_id;

pub use layer_id::LayerId;
