//! Disk image files in and out: raw and qcow2.
//!
//! [`Source`] reads a file, or a stream of raw bytes, as pieces of data and of zeros; [`Sink`] writes one. Reading and writing
//! qcow2 is the work of the library imago; what it does not look at, or cannot do, is refused here ([`header`]). Everything
//! blocks: callers keep it off their runtime threads. Vellum's own images are not known here.

pub mod header;
pub mod sink;
pub mod source;

use std::fmt;

pub use sink::{Sink, SinkOptions};
pub use source::{Piece, Source, SourceOptions};

/// A format of disk image files.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Format {
    /// The bytes of the disk, one after the other.
    Raw,
    /// QEMU's format.
    Qcow2,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        })
    }
}

/// Why a file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system, or the library that reads it, says so.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The file asks for something that is not done, or not without being asked.
    #[error("{0}")]
    Refused(String),
}

/// The result of reading or writing a file.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let doing = doing.into();
    move |source| Error::Io { doing, source }
}
