//! [`Source`]: a file to import.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use bytes::Bytes;
use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping, PermissiveImplicitOpenGate,
    StorageOpenOptions,
};
use rustix::fs::SeekFrom as Find;
use rustix::io::Errno;
use vellum_core::Extent;

use crate::convert::header::{self, Header};
use crate::convert::{Error, Format, Result, io};

/// The most one piece of data holds, and the step in which a stream is read.
const STEP: usize = 1 << 20;
/// The largest image, as Vellum has it.
const SIZE_MAX: u64 = vellum_core::geometry::IMAGE_SIZE_MAX;

/// How a file is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SourceOptions {
    /// Its format; else it is found out.
    pub format: Option<Format>,
    /// Whether a qcow2 file may name other files to be read.
    pub allow_backing: bool,
}

/// A piece of a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Which bytes.
    pub at: Extent,
    /// What they are; `None` for zeros.
    pub data: Option<Bytes>,
}

/// A file, or a stream, that is read from its beginning to its end.
pub struct Source {
    input: Input,
    size: Option<u64>,
    at: u64,
}

enum Input {
    Raw(File),
    Qcow2(Box<FormatAccess<Storage>>),
    Stream(Box<dyn Read + Send>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source({:?}, {:?} bytes, at {})", self.format(), self.size, self.at)
    }
}

impl Source {
    /// Opens a file or a block device.
    pub fn open(path: &Path, options: SourceOptions) -> Result<Self> {
        let name = path.display();
        let mut file = File::open(path).map_err(io(format!("open {name}")))?;
        let mut first = [0; header::LENGTH];
        let length = read_up_to(&file, &mut first).map_err(io(format!("read {name}")))?;
        let found = if header::is_qcow2(&first[..length]) { Format::Qcow2 } else { Format::Raw };
        let (input, size) = match options.format.unwrap_or(found) {
            Format::Raw => {
                let size =
                    file.seek(SeekFrom::End(0)).map_err(io(format!("find the size of {name}")))?;
                (Input::Raw(file), size)
            }
            Format::Qcow2 => {
                let header = Header::decode(&first[..length])
                    .ok_or_else(|| Error::Refused(format!("{name} is not a qcow2 file")))?;
                header.check(options.allow_backing)?;
                let access = open_qcow2(path, file, options.allow_backing)
                    .map_err(io(format!("read {name}")))?;
                let size = access.size();
                (Input::Qcow2(Box::new(access)), size)
            }
        };
        if size > SIZE_MAX {
            return Err(Error::Refused(format!(
                "{name} holds a disk of {size} bytes, more than the {SIZE_MAX} of the largest image"
            )));
        }
        Ok(Self { input, size: Some(size), at: 0 })
    }

    /// Reads a file of raw bytes that is open.
    pub fn raw(mut file: File) -> Result<Self> {
        let size = file.seek(SeekFrom::End(0)).map_err(io("find the size of a file"))?;
        Ok(Self { input: Input::Raw(file), size: Some(size), at: 0 })
    }

    /// Reads raw bytes from a stream. A qcow2 file is refused: it cannot be read from its beginning to its end.
    pub fn stream(stream: impl Read + Send + 'static) -> Self {
        Self { input: Input::Stream(Box::new(stream)), size: None, at: 0 }
    }

    /// The size of the disk in bytes; of a stream, what was read so far, once it has ended.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// The format.
    pub fn format(&self) -> Format {
        match self.input {
            Input::Qcow2(_) => Format::Qcow2,
            Input::Raw(_) | Input::Stream(_) => Format::Raw,
        }
    }

    /// The next piece, at most 1 MiB of data, or any length of zeros; `None` at the end.
    pub fn next_piece(&mut self) -> Result<Option<Piece>> {
        let piece = match (&mut self.input, self.size) {
            (Input::Stream(stream), None) => next_of_stream(stream, self.at)?,
            (_, Some(size)) if self.at >= size => None,
            (Input::Raw(file), Some(size)) => {
                Some(next_of_raw(file, Extent::between(self.at, size))?)
            }
            (Input::Qcow2(access), Some(size)) => {
                Some(next_of_qcow2(access, Extent::between(self.at, size))?)
            }
            (Input::Raw(_) | Input::Qcow2(_) | Input::Stream(_), _) => None,
        };
        match &piece {
            Some(piece) => self.at = piece.at.end(),
            None => self.size = Some(self.at),
        }
        Ok(piece)
    }
}

fn open_qcow2(
    path: &Path,
    file: File,
    allow_backing: bool,
) -> std::io::Result<FormatAccess<Storage>> {
    let qcow2 = if allow_backing {
        Qcow2::<Storage>::builder_path(path).open(PermissiveImplicitOpenGate::default())?
    } else {
        let storage = Storage::from_open_file(file, StorageOpenOptions::new())?;
        Qcow2::<Storage>::builder(storage).open(DenyImplicitOpenGate::default())?
    };
    Ok(FormatAccess::new(qcow2))
}

fn read_up_to(file: &File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], length as u64)? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}

fn next_of_raw(file: &File, rest: Extent) -> Result<Piece> {
    let found = io("read the file");
    // A block device knows no holes.
    let is_device = file.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device());
    let hole_end = if is_device {
        rest.offset()
    } else {
        next_data(file, rest).map_err(io("look for holes"))?
    };
    if hole_end > rest.offset() {
        return Ok(Piece { at: rest.clip(hole_end), data: None });
    }
    let at = rest.clip(rest.offset() + STEP as u64);
    let mut data = vec![0; at.len_usize()];
    file.read_exact_at(&mut data, at.offset()).map_err(found)?;
    Ok(piece_of(at, data))
}

/// Where data begins.
fn next_data(file: &File, rest: Extent) -> std::io::Result<u64> {
    match rustix::fs::seek(file, Find::Data(rest.offset())) {
        Ok(start) => Ok(start.min(rest.end())),
        Err(Errno::NXIO) => Ok(rest.end()),
        // A file system that knows no holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(rest.offset()),
        Err(error) => Err(error.into()),
    }
}

fn next_of_qcow2(access: &FormatAccess<Storage>, rest: Extent) -> Result<Piece> {
    let failed = || io(format!("read the qcow2 file at {}", rest.offset()));
    let (mapping, length) = access.get_mapping(rest.offset(), rest.length()).map_err(failed())?;
    if length == 0 {
        return Err(Error::Refused(format!(
            "the qcow2 file ends at {} of {}",
            rest.offset(),
            rest.end()
        )));
    }
    if matches!(mapping, Mapping::Zero { .. }) {
        return Ok(Piece { at: rest.clip(rest.offset() + length), data: None });
    }
    let at = rest.clip(rest.offset() + length.min(STEP as u64));
    let mut data = vec![0; at.len_usize()];
    access.read(&mut data[..], at.offset()).map_err(failed())?;
    Ok(piece_of(at, data))
}

fn next_of_stream(stream: &mut impl Read, at: u64) -> Result<Option<Piece>> {
    let mut data = Vec::new();
    stream.take(STEP as u64).read_to_end(&mut data).map_err(io("read the stream"))?;
    if at == 0 && header::is_qcow2(&data) {
        return Err(Error::Refused(
            "the stream is a qcow2 file, which cannot be read in order; import it from a file"
                .to_owned(),
        ));
    }
    if at > SIZE_MAX {
        return Err(Error::Refused(format!(
            "the stream is longer than the {SIZE_MAX} bytes of the largest image"
        )));
    }
    Ok((!data.is_empty()).then(|| piece_of(Extent::new(at, data.len() as u64), data)))
}

/// Data, unless all of it is zero.
fn piece_of(at: Extent, data: Vec<u8>) -> Piece {
    let (chunks, rest) = data.as_chunks::<16>();
    let is_zero =
        chunks.iter().all(|chunk| *chunk == [0; 16]) && rest.iter().all(|byte| *byte == 0);
    Piece { at, data: (!is_zero).then(|| data.into()) }
}
