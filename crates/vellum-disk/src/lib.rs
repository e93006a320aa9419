//! The narrow seam between the embedded engine and the file system.
//!
//! [`Disk`] and [`File`] are all that the engine asks of a file system, each call with its promise. [`RealDisk`] keeps them
//! on Linux: reads that are resident are served inline, everything that may wait goes through io_uring, or through a
//! bounded pool of threads where io_uring is not allowed. A simulated disk that cuts the power can stand behind the same
//! traits. The seam knows nothing of images, layers or formats.

mod contract;

pub use contract::{
    BootId, Disk, Durability, File, FileIdentity, FileSystem, LockKind, OpenMode, TryRead,
};
