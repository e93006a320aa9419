//! [`Sink`]: a disk that is written to a file, in ascending order, and [`create`], which makes one.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use vellum_core::{Extent, IMAGE_SIZE_MAX};

use crate::destination::Destination;
use crate::qcow2::sink::Qcow2Sink;
use crate::raw::RawSink;
use crate::{Error, Format, Result, StreamSink};

/// A disk that is being written.
///
/// The calls go through the disk once, from the front: each begins where the last one ended or after it, and what is skipped is
/// zeros. What is written is stored, even if it is zeros; [`zero_runs`](crate::zero_runs) finds those that need not be.
///
/// Nothing is promised before [`finish`](Sink::finish) has returned: then the disk is complete, under its name, and will survive
/// the loss of power. A sink that is dropped, or of which a write has failed, leaves nothing under the name (but what went to a
/// device or a pipe stays there).
pub trait Sink: Send {
    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// `Invalid`, changing nothing, if that lies before the end of the last call or past the end of the disk. `NoSpace`, `Io`;
    /// `Closed` if whoever read the pipe has gone; after these the sink is of no further use, and `finish` fails.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()>;

    /// Makes `extent` read as zeros, storing nothing where that can be avoided.
    ///
    /// # Errors
    /// As [`write`](Sink::write).
    fn zero(&mut self, extent: Extent) -> Result<()>;

    /// Completes the disk up to its size, makes it durable, and gives it its name.
    ///
    /// # Errors
    /// As [`write`](Sink::write); `Exists` if the name was taken meanwhile and may not be overwritten.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// How to write a file.
#[derive(Clone, Copy, Debug)]
pub struct SinkOptions {
    /// The format to write.
    pub format: Format,
    /// Whether a file or device that exists may be replaced.
    pub overwrite: bool,
}

/// Begins to write a disk of `size` bytes to `path`.
///
/// A **file** is written under a temporary name (`.NAME.` and `.part`) in the same directory and renamed at the end, so that the
/// name never shows half a disk, and a file that is replaced stays until then. Only the death of the process leaves the
/// temporary file behind. A **block device** is written in place, raw only; the rest of a larger one is left alone. To a **named
/// pipe** or a character device, also raw only, the disk is sent as by [`StreamSink`].
///
/// qcow2 files have version 3, clusters of 64 KiB and no backing file. Since QEMU counts a disk in sectors, their size is
/// rounded up to 512 bytes.
///
/// # Errors
/// `Exists` if there is something that may not be overwritten, `Unsupported` for a destination that cannot hold the format,
/// `Invalid` for a disk of more than 1 PiB or a device that is too small, `NotFound` for a directory that is missing.
pub fn create(path: impl AsRef<Path>, size: u64, options: SinkOptions) -> Result<Box<dyn Sink>> {
    let path = path.as_ref();
    if size > IMAGE_SIZE_MAX {
        return Err(Error::invalid(format!("a disk of {size} bytes is larger than 1 PiB")));
    }
    if is_stream(path) {
        return stream_to(path, size, options.format);
    }
    let destination = Destination::create(path, size, options)?;
    Ok(match options.format {
        Format::Raw => Box::new(RawSink::new(destination, size)),
        Format::Qcow2 => Box::new(Qcow2Sink::new(destination, size)),
    })
}

fn is_stream(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| found.file_type().is_fifo() || found.file_type().is_char_device())
}

fn stream_to(path: &Path, size: u64, format: Format) -> Result<Box<dyn Sink>> {
    if format != Format::Raw {
        let context =
            format!("{}: {format} cannot be written in order, so not to a pipe", path.display());
        return Err(Error::unsupported(context).with_hint("write it to a file first, or write raw"));
    }
    let file: File = OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(|error| Error::io(format!("open {}", path.display()), error))?;
    Ok(Box::new(StreamSink::new(file, size)))
}

/// Keeps the calls of a [`Sink`] in order and inside the disk.
#[derive(Debug)]
pub(crate) struct Order {
    at: u64,
    size: u64,
}

impl Order {
    pub(crate) fn new(size: u64) -> Self {
        Self { at: 0, size }
    }

    /// Goes on to the end of the `length` bytes at `offset`. Returns them, and what was skipped before them.
    pub(crate) fn advance(&mut self, offset: u64, length: u64) -> Result<(Extent, Extent)> {
        let here = Extent::checked(offset, length)
            .filter(|here| self.at <= offset && here.end() <= self.size)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "{length} bytes at {offset} do not lie between {}, the end of the last call, and {}, the end of the disk",
                    self.at, self.size
                ))
            })?;
        let skipped = Extent::between(self.at, offset);
        self.at = here.end();
        Ok((here, skipped))
    }

    /// What is left.
    pub(crate) fn rest(&self) -> Extent {
        Extent::between(self.at, self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn calls_go_forward_and_stay_inside() {
        let mut order = Order::new(1000);
        assert_eq!(order.advance(100, 50).unwrap(), (Extent::new(100, 50), Extent::new(0, 100)));
        assert_eq!(order.advance(150, 0).unwrap().1, Extent::new(150, 0));
        for (offset, length) in [(149, 1), (0, 0), (999, 2), (u64::MAX, 2)] {
            let error = order.advance(offset, length).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{offset} {length}");
        }
        assert_eq!(order.rest(), Extent::new(150, 850));
        order.advance(999, 1).unwrap();
        assert!(order.rest().is_empty());
    }
}
