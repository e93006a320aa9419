//! [`ImageFile`]: a file or block device that is read as part of a disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, SeekFrom, seek};
use rustix::io::Errno;
use vellum_core::State;

use crate::{Error, Result};

/// An open file of known length. Reads are positioned, so that it can be shared.
#[derive(Debug)]
pub(crate) struct ImageFile {
    file: File,
    path: PathBuf,
    length: u64,
    identity: (u64, u64),
}

impl ImageFile {
    /// Opens a regular file or a block device for reading; refuses everything else, and never waits for a pipe's other end.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = |error: io::Error| Error::io(format!("open {}", path.display()), error);
        // Opening a pipe would wait for a writer; NONBLOCK changes nothing for files and devices.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file =
            File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?);
        let metadata = file.metadata().map_err(failed)?;
        let kind = metadata.file_type();
        let length = if kind.is_file() {
            metadata.len()
        } else if kind.is_block_device() {
            seek(&file, SeekFrom::End(0)).map_err(|e| failed(e.into()))?
        } else {
            return Err(not_seekable(path));
        };
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self { file, path: path.to_owned(), length, identity })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The length when it was opened.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// What tells it from every other file, under whatever name.
    pub(crate) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Fills `buffer` from `offset`. A file that ends before that is corrupt: it was cut short, or shrank since it was opened.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        match self.read_up_to(buffer, offset)? {
            read if read == buffer.len() => Ok(()),
            read => Err(Error::corrupt(format!(
                "{}: the file ends at byte {}, but {} bytes at {offset} belong to the disk",
                self.path.display(),
                offset.saturating_add(read as u64).min(self.length),
                buffer.len(),
            ))
            .with_hint(
                "it was cut short when it was copied, or changes while it is read: copy it again",
            )),
        }
    }

    /// Fills `buffer` from `offset` as far as the file goes; returns how far.
    pub(crate) fn read_up_to(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        // No file reaches that far, and the kernel calls it an invalid request rather than the end.
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > i64::MAX as u64) {
            return Ok(0);
        }
        let mut read = 0;
        while read < buffer.len() {
            let at = offset + read as u64;
            match self.file.read_at(&mut buffer[read..], at) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(Error::io(format!("read {} at {at}", self.path.display()), error));
                }
            }
        }
        Ok(read)
    }

    /// Up to where the file is wholly data or wholly a hole from `at` on, as far as the file system keeps holes; data without end
    /// where it does not, and past the end of the file, so that whoever reads there is told.
    pub(crate) fn run_at(&self, at: u64) -> Result<(u64, State)> {
        match self.seek_to(SeekFrom::Data(at))? {
            Some(data) if data > at => Ok((data, State::Zero)),
            Some(_) => {
                let hole = self.seek_to(SeekFrom::Hole(at))?.filter(|hole| *hole > at);
                Ok((hole.unwrap_or(u64::MAX), State::Data))
            }
            None => match self.seek_to(SeekFrom::End(0))? {
                Some(end) if at < end => Ok((end, State::Zero)),
                _ => Ok((u64::MAX, State::Data)),
            },
        }
    }

    /// `None`: nothing of that kind at or after the offset.
    fn seek_to(&self, to: SeekFrom) -> Result<Option<u64>> {
        match seek(&self.file, to) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            // No holes here; what is asked for starts where it is looked for.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => match to {
                SeekFrom::Data(at) => Ok(Some(at)),
                _ => Ok(None),
            },
            Err(error) => {
                Err(Error::io(format!("look for holes in {}", self.path.display()), error))
            }
        }
    }
}

fn not_seekable(path: &Path) -> Error {
    let context = format!("{}: neither a file nor a block device", path.display());
    Error::unsupported(context).with_hint(
        "a raw disk can be read from standard input (`-`), in order; qcow2 cannot, since its tables lie anywhere in the file",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn file_of(length: u64, data: &[(u64, &[u8])]) -> (tempfile::NamedTempFile, ImageFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(length).unwrap();
        for (offset, bytes) in data {
            file.as_file().write_all_at(bytes, *offset).unwrap();
        }
        let image = ImageFile::open(file.path()).unwrap();
        (file, image)
    }

    #[test]
    fn holes_and_data_alternate_up_to_the_end() {
        let data = [1; 1 << 16];
        let (_file, image) = file_of(1 << 20, &[(0, &data), (1 << 18, &data)]);
        let (mut at, mut found) = (0, Vec::new());
        while at < image.length() {
            let (end, state) = image.run_at(at).unwrap();
            let end = end.min(image.length());
            found.push((at, end, state));
            at = end;
        }
        let (k64, k256) = (1 << 16, 1 << 18);
        assert_eq!(
            found,
            [
                (0, k64, State::Data),
                (k64, k256, State::Zero),
                (k256, k256 + k64, State::Data),
                (k256 + k64, 1 << 20, State::Zero),
            ]
        );
    }

    #[test]
    fn a_read_past_the_end_is_corrupt_and_says_where_the_file_ends() {
        let (_file, image) = file_of(1000, &[]);
        let error = image.read_at(&mut [0; 512], 600).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("ends at byte 1000"), "{error}");
        for offset in [i64::MAX as u64 - 511, i64::MAX as u64, u64::MAX - 3] {
            let error = image.read_at(&mut [0; 512], offset).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{offset}");
        }
    }

    #[test]
    fn neither_a_directory_nor_a_pipe_is_opened() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(ImageFile::open(directory.path()).unwrap_err().kind(), ErrorKind::Unsupported);
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR, 0)
            .unwrap();
        let error = ImageFile::open(&pipe).unwrap_err();
        assert!(error.hint().is_some_and(|hint| hint.contains("standard input")), "{error:?}");
        let missing = ImageFile::open(&directory.path().join("missing")).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }
}
