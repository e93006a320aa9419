//! Disk image files in and out: raw and qcow2.
//!
//! A [`Source`] is a disk that is read: a raw file, a block device, or a qcow2 file with the files behind it. A [`StreamSource`] is a
//! raw disk that comes in through a pipe. A [`Sink`] is a disk that is written, in ascending order: [`create`] makes one in a
//! file, [`StreamSink`] sends it through a pipe. All of them keep holes: a source says where there is nothing but zeros, a
//! sink does not store what it is told is zero.
//!
//! Everything here is synchronous and blocks; whoever has a runtime calls it on threads that may block. Nothing here knows
//! images, pools or engines. What is read is not trusted: no file makes it panic, loop for ever, or take more memory than
//! [`Source`] states.
//!
//! ```
//! use vellum_convert::{Format, SinkOptions, Source, SourceOptions, create};
//! use vellum_core::State;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let (old, new) = (directory.path().join("disk.raw"), directory.path().join("disk.qcow2"));
//! # std::fs::write(&old, [7; 5000])?;
//! let source = Source::open(&old, SourceOptions::default())?;
//! let mut sink = create(&new, source.size(), SinkOptions { format: Format::Qcow2, overwrite: false })?;
//! let mut buffer = vec![0; 1 << 20];
//! for run in source.extents() {
//!     let run = run?;
//!     match run.state {
//!         State::Data => {
//!             for part in run.extent.chunks(1 << 20) {
//!                 let buffer = &mut buffer[..part.len_usize()];
//!                 source.read_at(buffer, part.offset())?;
//!                 sink.write(part.offset(), buffer)?;
//!             }
//!         }
//!         _ => sink.zero(run.extent)?,
//!     }
//! }
//! sink.finish()?;
//! # let copy = Source::open(&new, SourceOptions::default())?;
//! # assert_eq!((copy.format(), copy.size()), (Format::Qcow2, 5120)); // whole sectors
//! # Ok(())
//! # }
//! ```
//!
//! Modules in reading order: [`format`](Format), `source`, `chain` and `file` under it, `stream`; `sink`, `destination` and
//! `raw` under it; `qcow2`, which serves both; `zeros`, `error`.
#![forbid(unsafe_code)]

mod chain;
mod destination;
mod error;
mod file;
mod format;
mod qcow2;
mod raw;
mod sink;
mod source;
mod stream;
mod zeros;

pub use error::{Error, ErrorKind, Result};
pub use format::Format;
pub use sink::{Sink, SinkOptions, create};
pub use source::{Extents, Source, SourceOptions};
pub use stream::{Piece, StreamSink, StreamSource};
pub use zeros::{is_zero, zero_runs};
