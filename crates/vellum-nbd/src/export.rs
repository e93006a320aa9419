//! What a server offers: [`Exports`] by name, and what can be done to an [`Export`].

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use vellum_core::Extent;

use crate::proto::error::NbdError;
use crate::proto::meta::Context;

/// All that a server offers.
pub trait Exports: Send + Sync + 'static {
    /// One of them, open.
    type Export: Export;

    /// The names and descriptions, for a client that asks; a server may cut the list short.
    fn list(&self) -> impl Future<Output = Result<Vec<Listed>, OpenError>> + Send;

    /// What an export is, without opening it.
    fn info(&self, name: &str) -> impl Future<Output = Result<ExportInfo, OpenError>> + Send;

    /// Opens an export for a connection. It is closed when the last clone of what is returned is gone.
    fn open(&self, name: &str)
    -> impl Future<Output = Result<Arc<Self::Export>, OpenError>> + Send;
}

/// An entry of a list of exports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// A line for people; may be empty.
    pub description: String,
}

/// What an export is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportInfo {
    /// Bytes.
    pub size: u64,
    /// Whether it takes no writes.
    pub read_only: bool,
    /// A line for people; may be empty.
    pub description: String,
    /// The block size that suits it best, in bytes: a power of two from 512 to 32 MiB.
    pub preferred_block: u32,
}

/// Why an export is not opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none of that name.
    #[error("{0}")]
    Unknown(String),
    /// There is one, but not for this client now: somebody else holds it, say.
    #[error("{0}")]
    Refused(String),
    /// The server is ending.
    #[error("{0}")]
    ShuttingDown(String),
}

/// An open export. Requests come from many tasks at once; extents lie within its size and are not empty.
pub trait Export: Send + Sync + 'static {
    /// What it is.
    fn info(&self) -> ExportInfo;

    /// Fills `buffer`, as long as `at`, if that needs no waiting. `false` to be asked again by [`read`](Self::read).
    fn try_read(&self, at: Extent, buffer: &mut [u8]) -> bool;

    /// Reads, as pieces that cover `at` in ascending order.
    fn read(&self, at: Extent) -> impl Future<Output = Result<Vec<ReadPiece>, NbdError>> + Send;

    /// Writes. With `fua` it is durable when it returns.
    fn write(
        &self,
        offset: u64,
        data: Bytes,
        fua: bool,
    ) -> impl Future<Output = Result<(), NbdError>> + Send;

    /// Makes durable what any connection was told is written.
    fn flush(&self) -> impl Future<Output = Result<(), NbdError>> + Send;

    /// Gives content up.
    fn trim(&self, at: Extent, fua: bool) -> impl Future<Output = Result<(), NbdError>> + Send;

    /// Makes zeros.
    fn write_zeroes(
        &self,
        at: Extent,
        flags: ZeroFlags,
    ) -> impl Future<Output = Result<(), NbdError>> + Send;

    /// Brings content closer, as far as that makes sense, with at most 1 MiB of it in memory at once.
    fn cache(&self, at: Extent) -> impl Future<Output = Result<(), NbdError>> + Send;

    /// The status of a beginning of `at` in a context: at most `max` pieces, at least one.
    fn block_status(
        &self,
        at: Extent,
        context: Context,
        max: usize,
    ) -> impl Future<Output = Result<Vec<Status>, NbdError>> + Send;
}

/// How zeros are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ZeroFlags {
    /// The space must be allocated.
    pub no_hole: bool,
    /// Fail with `ENOTSUP` rather than be as slow as a write.
    pub fast: bool,
    /// Durable when it returns.
    pub fua: bool,
}

/// A piece of what was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadPiece {
    /// Which bytes.
    pub at: Extent,
    /// What they are; `None` for zeros that need not be sent.
    pub data: Option<Bytes>,
}

/// How much has one status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// Bytes.
    pub length: u64,
    /// What the context says of them.
    pub flags: u64,
}
