//! The traits [`Disk`] and [`File`].
//!
//! # Rules for every call
//!
//! - A call that changes a file, once polled, runs to its end even if its future is dropped: it owns what it needs.
//!   Dropping the future only drops the answer.
//! - Futures are `Send`, may be polled on any thread, and never block the thread that polls them, unless
//!   [it may wait](crate::let_this_thread_wait).
//! - Errors are [`io::Error`]s that keep their `raw_os_error`, so that `ENOSPC`, `EIO` and `ESTALE` can be told apart.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use vellum_core::{Buffer, Extent};

/// A file system, seen through absolute paths. Cold: called when pools, images and layers are opened, created, removed.
pub trait Disk: Clone + Send + Sync + std::fmt::Debug + 'static {
    /// An open file.
    type File: File;
    /// An open directory.
    type Directory: Directory;

    /// Opens a file. See [`OpenMode`] for what must exist.
    fn open(
        &self,
        path: &Path,
        mode: OpenMode,
    ) -> impl Future<Output = io::Result<Self::File>> + Send;

    /// Creates a directory; its parent exists. `AlreadyExists` if anything has that name. Files and directories made by
    /// the superuser take the owner and group of the directory they are made in, so that `sudo` leaves nothing behind
    /// that the pool's owner cannot use.
    fn create_dir(&self, path: &Path) -> impl Future<Output = io::Result<()>> + Send;

    /// Removes a file's name. Its space goes with the last description. `NotFound` if there is none.
    fn remove_file(&self, path: &Path) -> impl Future<Output = io::Result<()>> + Send;

    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> impl Future<Output = io::Result<()>> + Send;

    /// The paths in a directory, in no order.
    fn list_dir(&self, path: &Path) -> impl Future<Output = io::Result<Vec<PathBuf>>> + Send;

    /// Opens a directory, whose names can be made durable then wherever it is moved to.
    fn open_dir(&self, path: &Path) -> impl Future<Output = io::Result<Self::Directory>> + Send;

    /// Makes the names in a directory durable: creations and removals that returned before the call.
    fn sync_dir(&self, path: &Path) -> impl Future<Output = io::Result<()>> + Send;

    /// What kind of file system a path is on.
    fn file_system(&self, path: &Path) -> impl Future<Output = io::Result<FileSystem>> + Send;

    /// Which boot of the kernel this is, or `None` where that cannot be known: the id is read from procfs itself, and a
    /// file laid over it (as containers do) does not count.
    fn boot_id(&self) -> impl Future<Output = io::Result<Option<BootId>>> + Send;

    /// Numbers that nobody has had before: for ids and nonces. From the kernel, unless a simulation must be repeatable.
    fn fill_with_chance(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("the kernel gives random numbers");
    }

    /// Under which name SQLite knows these files, where they are not the operating system's. Then it is called on whatever
    /// thread polls, and no call waits.
    fn sqlite_vfs(&self) -> Option<String> {
        None
    }
}

/// An open directory.
pub trait Directory: Send + Sync + std::fmt::Debug + 'static {
    /// Makes the names in it durable, as [`Disk::sync_dir`] does, and opens nothing for it: an error is one of the medium.
    fn sync(&self) -> impl Future<Output = io::Result<()>> + Send;
}

/// An open file. Clones share one open file description, and with it its locks and its errors not yet reported.
pub trait File: Clone + Send + Sync + std::fmt::Debug + 'static {
    /// Fills `buffer` from `offset` without waiting and without allocating, or says why not.
    fn try_read_at(&self, buffer: &mut [u8], offset: u64) -> TryRead;

    /// Fills `buffer[range]` from `offset`. The buffer comes back whatever happened. `UnexpectedEof` if the file is
    /// shorter; what was read by then is in the buffer.
    fn read_at(
        &self,
        buffer: Buffer,
        range: Range<usize>,
        offset: u64,
    ) -> impl Future<Output = (Buffer, io::Result<()>)> + Send;

    /// Writes `parts`, one after another, at `offset`: all of it, or an error that leaves the range undefined. Up to 1,024
    /// parts. When it returns, every later read of any process sees the bytes; with [`Durability::Durable`] they also
    /// survive power loss (as `RWF_DSYNC`).
    fn write_at(
        &self,
        parts: Vec<Bytes>,
        offset: u64,
        durability: Durability,
    ) -> impl Future<Output = io::Result<()>> + Send;

    /// Makes a range read as zeros and frees its space; the length of the file stays. Where the file system cannot punch,
    /// zeros are written. Not durable by itself.
    fn punch(&self, extent: Extent) -> impl Future<Output = io::Result<()>> + Send;

    /// Reserves space for a range without changing what it reads as; `ENOSPC` now rather than later. Where the file system
    /// cannot, it does nothing.
    fn allocate(&self, extent: Extent) -> impl Future<Output = io::Result<()>> + Send;

    /// Copies what `source` holds at `from` to the offset `to`, by reference where the file system can.
    fn copy_from(
        &self,
        source: &Self,
        from: Extent,
        to: u64,
    ) -> impl Future<Output = io::Result<()>> + Send;

    /// Makes all data written before the call durable (`fdatasync`). **Never call it again after it failed**: the kernel
    /// has already forgotten which pages are missing, and the second call says all is well.
    fn sync_data(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// The length in bytes.
    fn length(&self) -> impl Future<Output = io::Result<u64>> + Send;

    /// Sets the length. What a longer file gained reads as zeros.
    fn set_length(&self, length: u64) -> impl Future<Output = io::Result<()>> + Send;

    /// How many bytes of storage the file occupies.
    fn allocated(&self) -> impl Future<Output = io::Result<u64>> + Send;

    /// The first extent at or after `offset` that may hold something other than zeros; `None` if there is none.
    fn next_data(&self, offset: u64) -> impl Future<Output = io::Result<Option<Extent>>> + Send;

    /// Drops clean cached pages, so that what is read next comes from the device. Best effort.
    fn drop_cache(&self) -> impl Future<Output = ()> + Send;

    /// Asks the file system to allocate in pieces of `bytes` (XFS extent-size hint). Best effort; no effect elsewhere.
    fn hint_extent_size(&self, bytes: u32) -> impl Future<Output = ()> + Send;

    /// Which file this is, for as long as it exists.
    fn identity(&self) -> FileIdentity;

    /// Takes an open-file-description lock on a range of bytes (which need not exist), without waiting. `false` if another
    /// description holds one that conflicts. It lasts until [`unlock`](Self::unlock) or until the last clone of this file
    /// is dropped *and* the last request in flight on it has landed; the death of the process counts as a drop.
    fn try_lock(&self, range: Extent, kind: LockKind) -> io::Result<bool>;

    /// Releases the locks this description holds on a range.
    fn unlock(&self, range: Extent) -> io::Result<()>;
}

/// How [`Disk::open`] opens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    ReadWrite,
    /// A file that must not exist yet (`AlreadyExists`), for reading and writing.
    Create,
    /// An existing file, or a new empty one, for reading and writing.
    ReadWriteOrCreate,
}

/// The answer of [`File::try_read_at`].
#[derive(Debug)]
pub enum TryRead {
    /// The buffer is filled.
    Done,
    /// It would have to wait, or only a part was there: use [`File::read_at`]. The buffer's content is undefined.
    WouldWait,
}

/// Whether a write survives power loss by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// After the next successful [`File::sync_data`].
    AtSync,
    /// When it returns.
    Durable,
}

/// Whether a lock excludes others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockKind {
    /// Many may hold it.
    Shared,
    /// One holds it, and no shared ones beside.
    Exclusive,
}

/// Names one file on this machine: device and inode.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FileIdentity {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// Names one boot of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BootId(pub [u8; 16]);

/// What the engine must know of a file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileSystem {
    /// A short name: `ext4`, `xfs`, `btrfs`, `tmpfs`, `nfs`, `smb`, `9p`, `fuse`, or the magic number in hex.
    pub name: String,
    /// Whether locks and caches hold only for this machine's kernel, as the engine needs. False for NFS, SMB, 9p.
    pub local: bool,
    /// Whether it is mounted read-only.
    pub read_only: bool,
    /// Bytes that an unprivileged user may still allocate.
    pub available: u64,
}
