//! The embedded engine: a directory, a SQLite catalog, sparse files.
//!
//! Steady-state I/O at the speed of a plain file, no daemon, many processes, and nothing that must be repaired after a
//! crash. The engine knows layers, units and atomic operations; what a child inherits from its parent is decided above it.
//!
//! Two halves meet in [`LocalCatalog`] and [`LocalHead`]:
//!
//! - **rows**: `catalog` (SQLite), `pool` (the directory), `lock` (who owns what), `opening`, `removal`;
//! - **bytes**: [`store`] opens layers; `layer` is an open one, `recovery` how it is opened, `mutation` how it changes, `sync` how
//!   changes become durable; below them `map` (states in memory), `map_file` (reading them), `segment` (data files), `log` (the live log), and `format`
//!   (bytes on disk, pure).
//!
//! What is on disk is written down in `docs/format.md`.
#![forbid(unsafe_code)]

mod canary;
mod catalog;
mod check;
mod engine;
mod format;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod head;
mod layer;
pub mod layer_id;
mod lock;
mod log;
mod logs;
mod map;
mod map_file;
mod mutation;
mod open_layer;
mod opening;
mod place;
mod pool;
mod recovery;
mod removal;
mod segment;
#[cfg(test)]
mod simulated;
pub mod store;
mod sync;
#[cfg(test)]
mod testing;

#[cfg(any(test, feature = "canaries"))]
pub use canary::Canary;
pub use catalog::wait_for_catalogs;
pub use engine::LocalCatalog;
pub use head::{LocalHead, LocalPrepared};
pub use layer_id::LayerId;
pub use open_layer::OpenLayer;
pub use opening::{Copies, Mode, OpenOptions};
pub use store::StoreOptions;
