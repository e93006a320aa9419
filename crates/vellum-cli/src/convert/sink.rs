//! [`Sink`]: a file to export to.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder,
    StorageOpenOptions,
};
use vellum_core::Extent;

use crate::convert::{Error, Format, Result, io};

/// The largest disk that goes into a qcow2 file here: its tables stay small enough to be kept in memory by those who read it.
const QCOW2_SIZE_MAX: u64 = 64 << 40;
const ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// How a file is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SinkOptions {
    /// Its format.
    pub format: Format,
    /// The size of the disk, in bytes.
    pub size: u64,
    /// Whether a file of that name may be replaced.
    pub overwrite: bool,
}

/// A file, or a stream, that is written from its beginning to its end. A file gets its name when it is finished; one that is
/// dropped before that leaves nothing.
pub struct Sink {
    output: Output,
    at: u64,
    size: u64,
}

enum Output {
    Raw(File, Target),
    Qcow2(Box<FormatAccess<Storage>>, Target),
    Stream(Box<dyn Write + Send>),
}

/// The name a file will have, and the one it has meanwhile.
struct Target {
    path: PathBuf,
    temporary: PathBuf,
    finished: bool,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sink(at {} of {})", self.at, self.size)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

impl Sink {
    /// Creates a file.
    pub fn create(path: &Path, options: SinkOptions) -> Result<Self> {
        if path.exists() && !options.overwrite {
            return Err(Error::Refused(format!(
                "{} is there already; say --overwrite to replace it",
                path.display()
            )));
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".part-{}", std::process::id()));
        let target =
            Target { path: path.to_owned(), temporary: path.with_file_name(name), finished: false };
        let doing = format!("create {}", target.temporary.display());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&target.temporary)
            .map_err(io(doing))?;
        let output = match options.format {
            Format::Raw => Output::Raw(file, target),
            Format::Qcow2 if options.size > QCOW2_SIZE_MAX => {
                return Err(Error::Refused(format!(
                    "a disk of {} bytes is too large for a qcow2 file here; export it as raw",
                    options.size
                )));
            }
            Format::Qcow2 => {
                let access = create_qcow2(file, options.size)
                    .map_err(io(format!("write {}", path.display())))?;
                Output::Qcow2(Box::new(access), target)
            }
        };
        Ok(Self { output, at: 0, size: options.size })
    }

    /// Writes raw bytes to a stream.
    pub fn stream(stream: impl Write + Send + 'static, size: u64) -> Self {
        Self { output: Output::Stream(Box::new(stream)), at: 0, size }
    }

    /// Writes the next bytes.
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        let failed = io(format!("write at {}", self.at));
        match &mut self.output {
            Output::Raw(file, _) => file.write_all_at(data, self.at),
            Output::Qcow2(access, _) => access.write(data, self.at),
            Output::Stream(stream) => stream.write_all(data),
        }
        .map_err(failed)?;
        self.at += data.len() as u64;
        Ok(())
    }

    /// Leaves out the next bytes, which are zeros.
    pub fn skip(&mut self, length: u64) -> Result<()> {
        if let Output::Stream(stream) = &mut self.output {
            for step in Extent::new(0, length).chunks(ZEROS.len() as u64) {
                stream
                    .write_all(&ZEROS[..step.len_usize()])
                    .map_err(io(format!("write at {}", self.at)))?;
            }
        }
        self.at += length;
        Ok(())
    }

    /// Makes the file durable and gives it its name.
    pub fn finish(self) -> Result<()> {
        let size = self.size;
        match self.output {
            Output::Raw(file, target) => {
                file.set_len(size).and_then(|()| file.sync_all()).map_err(io("sync the file"))?;
                target.finish()
            }
            Output::Qcow2(access, target) => {
                access.flush().and_then(|()| access.sync()).map_err(io("sync the file"))?;
                drop(access);
                target.finish()
            }
            Output::Stream(mut stream) => stream.flush().map_err(io("write the end")),
        }
    }
}

impl Target {
    fn finish(mut self) -> Result<()> {
        let doing = format!("rename {} to {}", self.temporary.display(), self.path.display());
        fs::rename(&self.temporary, &self.path).map_err(io(doing))?;
        self.finished = true;
        let parent = self
            .path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        match File::open(parent).and_then(|dir| dir.sync_all()) {
            // Not every file system syncs directories.
            Err(error) if error.kind() != ErrorKind::InvalidInput => {
                Err(io(format!("sync {}", parent.display()))(error))
            }
            _ => Ok(()),
        }
    }
}

fn create_qcow2(file: File, size: u64) -> std::io::Result<FormatAccess<Storage>> {
    let storage = Storage::from_open_file(file, StorageOpenOptions::new().write(true))?;
    let qcow2 = Qcow2::<Storage>::create_builder(storage)
        .size(size)
        .create_open(DenyImplicitOpenGate::default(), |image| {
            Ok(Qcow2::<Storage>::builder(image).backing(None).write(true))
        })?;
    Ok(FormatAccess::new(qcow2))
}
