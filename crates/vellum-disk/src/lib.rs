//! The narrow seam between the embedded engine and the file system.
//!
//! [`Disk`], [`Directory`] and [`File`] are all that the engine asks of a file system, each call with its promise. [`RealDisk`] keeps them
//! on Linux: reads that are resident are served inline, and everything that may wait goes to a bounded pool of threads, save
//! for writes on [threads that may wait](let_this_thread_wait).
//! A simulated disk that cuts the power can stand behind the same traits. The seam knows nothing of images, layers or
//! formats.

mod contract;
mod own_thread;
mod pool;
mod real;
mod system;

pub use contract::{
    BootId, Directory, Disk, Durability, File, FileIdentity, FileSystem, LockKind, OpenMode,
    TryRead,
};
pub use own_thread::let_this_thread_wait;
pub use real::{Options, RealDirectory, RealDisk, RealFile};
