//! [`Destination`]: the file or device that a sink writes, and how it gets its name.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind as IoKind};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, seek};
use tempfile::NamedTempFile;
use vellum_core::Extent;

use crate::{Error, ErrorKind, Format, Result, SinkOptions};

/// What zeros are written from, where they must be written.
pub(crate) static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// Devices zero whole blocks, of this size or a smaller one.
const DEVICE_BLOCK: u64 = 4096;

/// A place to write to at any offset.
#[derive(Debug)]
pub(crate) struct Destination {
    place: Place,
    path: PathBuf,
    /// A write failed, so what is there is not what was meant to be.
    broken: bool,
}

#[derive(Debug)]
enum Place {
    /// A file without its final name, full of nothing yet.
    File { file: NamedTempFile, overwrite: bool },
    /// A device, full of what was there before.
    Device(File),
}

impl Destination {
    /// A destination for `size` bytes in a new file, or on a device that exists and may be overwritten.
    pub(crate) fn create(path: &Path, size: u64, options: SinkOptions) -> Result<Self> {
        // Through links, so that what they point to is replaced, not they.
        let path = match path.canonicalize() {
            Ok(target) => target,
            Err(_) => path.to_owned(),
        };
        let found = match path.metadata() {
            Ok(found) => Some(found),
            Err(error) if error.kind() == IoKind::NotFound => None,
            Err(error) => return Err(Error::io(format!("look at {}", path.display()), error)),
        };
        if found.is_some() && !options.overwrite {
            return Err(exists(&path));
        }
        let place = match found {
            None => new_file(&path, None, options)?,
            Some(found) if found.is_file() => new_file(&path, Some(found.permissions()), options)?,
            Some(found) if found.file_type().is_block_device() => {
                open_device(&path, size, options)?
            }
            Some(_) => {
                let context = format!("{}: neither a file nor a block device", path.display());
                return Err(Error::unsupported(context));
            }
        };
        Ok(Self { place, path, broken: false })
    }

    /// Writes all of `data`.
    pub(crate) fn write_at(&mut self, data: &[u8], offset: u64) -> Result<()> {
        self.file().write_all_at(data, offset).map_err(|error| {
            self.broken = true;
            self.failed("write", error)
        })
    }

    /// Makes `extent`, which was not written before, read as zeros. In a new file it does already.
    pub(crate) fn zero(&mut self, extent: Extent) -> Result<()> {
        let Place::Device(device) = &self.place else { return Ok(()) };
        let blocks = extent.align_in(DEVICE_BLOCK);
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        if blocks.is_empty() || fallocate(device, flags, blocks.offset(), blocks.length()).is_err()
        {
            return self.write_zeros(extent);
        }
        self.write_zeros(Extent::between(extent.offset(), blocks.offset()))?;
        self.write_zeros(Extent::between(blocks.end(), extent.end()))
    }

    fn write_zeros(&mut self, extent: Extent) -> Result<()> {
        extent
            .chunks(ZEROS.len() as u64)
            .try_for_each(|part| self.write_at(&ZEROS[..part.len_usize()], part.offset()))
    }

    /// Sets the length of a file, makes everything durable, and gives a file its name; refuses if a write has failed.
    pub(crate) fn publish(self, length: u64) -> Result<()> {
        if self.broken {
            return Err(broken().of(&self.path));
        }
        if let Place::File { file, .. } = &self.place {
            file.as_file()
                .set_len(length)
                .map_err(|error| self.failed("set the length of", error))?;
        }
        self.file().sync_all().map_err(|error| self.failed("sync", error))?;
        let Self { place: Place::File { file, overwrite }, path, .. } = self else { return Ok(()) };
        let renamed = if overwrite { file.persist(&path) } else { file.persist_noclobber(&path) };
        renamed.map_err(|error| match error.error.kind() {
            IoKind::AlreadyExists => exists(&path),
            _ => Error::io(format!("rename the finished file to {}", path.display()), error.error),
        })?;
        // The name is as durable as its directory.
        File::open(directory_of(&path))
            .and_then(|directory| directory.sync_all())
            .map_err(|error| Error::io(format!("sync the directory of {}", path.display()), error))
    }

    fn file(&self) -> &File {
        match &self.place {
            Place::File { file, .. } => file.as_file(),
            Place::Device(device) => device,
        }
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        Error::io(format!("{what} {}", self.path.display()), error)
    }
}

/// What becomes of a sink of which a write has failed.
pub(crate) fn broken() -> Error {
    Error::new(ErrorKind::Io, "an earlier write failed, so the disk is not complete")
}

/// A file beside `path`, with the permissions of the one it is to replace.
fn new_file(path: &Path, replaced: Option<Permissions>, options: SinkOptions) -> Result<Place> {
    let Some(name) = path.file_name() else {
        return Err(Error::invalid(format!("{}: this is no name for a file", path.display())));
    };
    // A long name is cut, so that the temporary one is not too long.
    let name: String = name.to_string_lossy().chars().take(50).collect();
    let failed = |error| Error::io(format!("create a file beside {}", path.display()), error);
    let file = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .suffix(".part")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(directory_of(path))
        .map_err(failed)?;
    if let Some(permissions) = replaced {
        file.as_file().set_permissions(permissions).map_err(failed)?;
    }
    Ok(Place::File { file, overwrite: options.overwrite })
}

/// Opens a device that nothing else uses: `O_EXCL` fails where it is mounted, or part of another device.
fn open_device(path: &Path, size: u64, options: SinkOptions) -> Result<Place> {
    if options.format != Format::Raw {
        let context = format!("{}: only raw is written to a device", path.display());
        return Err(Error::unsupported(context).with_hint("write it to a file first, or write raw"));
    }
    let failed = |error: io::Error| Error::io(format!("open {}", path.display()), error);
    let device = OpenOptions::new()
        .write(true)
        .custom_flags(OFlags::EXCL.bits() as i32)
        .open(path)
        .map_err(failed)?;
    let length = seek(&device, SeekFrom::End(0)).map_err(|error| failed(error.into()))?;
    if length < size {
        return Err(Error::invalid(format!(
            "{}: the device has {length} bytes, the disk {size}",
            path.display()
        )));
    }
    Ok(Place::Device(device))
}

fn exists(path: &Path) -> Error {
    Error::new(ErrorKind::Exists, format!("{} exists", path.display()))
        .with_hint("choose another name, or allow overwriting it")
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    }
}
