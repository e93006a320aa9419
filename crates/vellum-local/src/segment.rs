//! [`Segments`]: the data files of a layer. Byte *n* of the image lies at byte *n* mod 1 TiB of file `data.(n / 1 TiB)`.
//!
//! The file system is the allocator. A segment appears at its first write, at its full nominal length, so that a file that is
//! shorter has lost something and is never read as zeros.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use vellum_core::{Buffer, Extent};
use vellum_disk::{Disk, Durability, File, LockKind, OpenMode, TryRead};
use vellum_engine::{Error, ErrorKind, Result};

/// Bytes of the image in a segment. ext4 takes files of up to 16 TiB - 4 KiB.
pub(crate) const SEGMENT: u64 = 1 << 40;
/// What XFS is asked to allocate at once, lest every block written at random becomes an extent of its own.
const EXTENT_HINT: u32 = 64 << 10;
/// All of a file.
const WHOLE: (u64, u64) = (0, i64::MAX as u64);
const LOCK_POLL: Duration = Duration::from_millis(50);

/// The data files of a layer.
#[derive(Debug)]
pub(crate) struct Segments<D: Disk> {
    disk: D,
    dir: PathBuf,
    size: u64,
    lock_wait: Duration,
    open: RwLock<BTreeMap<u64, Segment<D::File>>>,
    /// Held while a segment is opened or created, which waits.
    opening: tokio::sync::Mutex<()>,
    /// Written since the last sync began.
    unsynced: Mutex<BTreeMap<u64, D::File>>,
}

#[derive(Clone, Debug)]
struct Segment<F> {
    file: F,
    writable: bool,
}

impl<D: Disk> Segments<D> {
    pub(crate) fn new(disk: D, dir: &Path, size: u64, lock_wait: Duration) -> Self {
        Self {
            disk,
            dir: dir.to_owned(),
            size,
            lock_wait,
            open: RwLock::default(),
            opening: tokio::sync::Mutex::default(),
            unsynced: Mutex::default(),
        }
    }

    /// Opens the segments that exist for writing, each with its lock: what an earlier owner still had in flight has landed then.
    pub(crate) async fn own_existing(&self, present: impl Iterator<Item = u64>) -> Result<()> {
        for number in present {
            self.open_for_writing(number, OpenMode::ReadWrite).await?;
        }
        Ok(())
    }

    /// Closes what was opened for writing; nothing may be unsynced any more. Reading goes on.
    pub(crate) fn release(&self) -> Result<()> {
        for segment in self.open.write().values_mut().filter(|segment| segment.writable) {
            segment.writable = false;
            let whole = Extent::new(WHOLE.0, WHOLE.1);
            segment.file.unlock(whole).map_err(|error| Error::io("unlock a data file", error))?;
        }
        Ok(())
    }

    pub(crate) fn try_read(&self, at: Extent, buffer: &mut [u8]) -> bool {
        let open = self.open.read();
        pieces(at).all(|(number, piece)| {
            let part = &mut buffer[at.range_of(&piece)];
            open.get(&number).is_some_and(|segment| {
                matches!(segment.file.try_read_at(part, piece.offset() % SEGMENT), TryRead::Done)
            })
        })
    }

    /// Reads data into `buffer[into]`. A file that is missing or short has lost what it held.
    pub(crate) async fn read(
        &self,
        at: Extent,
        mut buffer: Buffer,
        into: Range<usize>,
    ) -> (Buffer, Result<()>) {
        for (number, piece) in pieces(at) {
            let file = match self.for_reading(number).await {
                Ok(file) => file,
                Err(error) => return (buffer, Err(error)),
            };
            let range = at.range_of(&piece);
            let range = into.start + range.start..into.start + range.end;
            let result;
            (buffer, result) = file.read_at(buffer, range, piece.offset() % SEGMENT).await;
            if let Err(error) = result {
                let what = format!("read {} of {}", piece, self.path(number).display());
                return (buffer, Err(Error::io(what, error)));
            }
        }
        (buffer, Ok(()))
    }

    /// Writes `parts`, one after the other, at an offset of the image.
    pub(crate) async fn write(
        &self,
        offset: u64,
        parts: Vec<Bytes>,
        durability: Durability,
    ) -> Result<()> {
        let length: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let mut parts = parts;
        for (number, piece) in pieces(Extent::new(offset, length)) {
            let file = self.for_writing(number).await?;
            let here = split_parts(&mut parts, piece.length());
            let result = file.write_at(here, piece.offset() % SEGMENT, durability).await;
            // Marked when it has landed, be it in part: a sync that begins now covers it, and one that began before does not.
            if durability == Durability::AtSync || result.is_err() {
                self.unsynced.lock().insert(number, file);
            }
            result.map_err(|error| {
                Error::io(format!("write {piece} of {}", self.path(number).display()), error)
                    .maybe_done()
            })?;
        }
        Ok(())
    }

    /// Frees the space of an extent, which then reads as zeros.
    pub(crate) async fn punch(&self, at: Extent) -> Result<()> {
        for (number, piece) in pieces(at) {
            let file = self.for_writing(number).await?;
            let result = file.punch(Extent::new(piece.offset() % SEGMENT, piece.length())).await;
            self.unsynced.lock().insert(number, file);
            result.map_err(|error| {
                Error::io(format!("punch {piece} of {}", self.path(number).display()), error)
                    .maybe_done()
            })?;
        }
        Ok(())
    }

    pub(crate) fn is_unsynced(&self) -> bool {
        !self.unsynced.lock().is_empty()
    }

    /// Takes what was written since the last sync began.
    pub(crate) fn take_unsynced(&self) -> Vec<D::File> {
        std::mem::take(&mut *self.unsynced.lock()).into_values().collect()
    }

    /// Counts everything that is open for writing as unsynced: what a dead process wrote there may not be on the medium.
    pub(crate) fn distrust(&self) {
        let open = self.open.read();
        let writable = open.iter().filter(|(_, segment)| segment.writable);
        self.unsynced
            .lock()
            .extend(writable.map(|(number, segment)| (*number, segment.file.clone())));
    }

    /// All open files.
    pub(crate) fn files(&self) -> Vec<D::File> {
        self.open.read().values().map(|segment| segment.file.clone()).collect()
    }

    async fn for_reading(&self, number: u64) -> Result<D::File> {
        if let Some(segment) = self.open.read().get(&number) {
            return Ok(segment.file.clone());
        }
        let _alone = self.opening.lock().await;
        if let Some(segment) = self.open.read().get(&number) {
            return Ok(segment.file.clone());
        }
        let path = self.path(number);
        let file = match self.disk.open(&path, OpenMode::Read).await {
            Ok(file) => file,
            Err(error) => return Err(self.missing(&path, error).await),
        };
        self.open.write().insert(number, Segment { file: file.clone(), writable: false });
        Ok(file)
    }

    /// Why a file that holds data cannot be opened: the layer was removed, which sends the reader to the catalog, or the file
    /// was lost.
    async fn missing(&self, path: &Path, error: std::io::Error) -> Error {
        if error.kind() != std::io::ErrorKind::NotFound {
            return Error::io(format!("open {}", path.display()), error);
        }
        match self.disk.list_dir(&self.dir).await {
            Err(error) => Error::io(format!("layer {} was removed", self.dir.display()), error),
            Ok(_) => Error::corrupt(format!(
                "{} is missing, though the map says that it holds data",
                path.display()
            )),
        }
    }

    async fn for_writing(&self, number: u64) -> Result<D::File> {
        if let Some(segment) = self.open.read().get(&number).filter(|segment| segment.writable) {
            return Ok(segment.file.clone());
        }
        let _alone = self.opening.lock().await;
        if let Some(segment) = self.open.read().get(&number).filter(|segment| segment.writable) {
            return Ok(segment.file.clone());
        }
        self.open_for_writing(number, OpenMode::ReadWriteOrCreate).await
    }

    async fn open_for_writing(&self, number: u64, mode: OpenMode) -> Result<D::File> {
        let path = self.path(number);
        let failed = |error| Error::io(format!("open {} for writing", path.display()), error);
        let file = self.disk.open(&path, mode).await.map_err(failed)?;
        self.lock(&file, &path).await?;
        let nominal = self.size.saturating_sub(number * SEGMENT).min(SEGMENT);
        let length = file.length().await.map_err(failed)?;
        if length == 0 && mode == OpenMode::ReadWriteOrCreate {
            file.hint_extent_size(EXTENT_HINT).await;
            file.set_length(nominal).await.map_err(failed)?;
            self.disk.sync_dir(&self.dir).await.map_err(failed)?;
        } else if length < nominal {
            let what = format!("{} has {length} bytes, expected {nominal}", path.display());
            return Err(Error::corrupt(what));
        }
        self.open.write().insert(number, Segment { file: file.clone(), writable: true });
        Ok(file)
    }

    /// The lock is on the description that writes. A process that was killed holds it until its last write has landed.
    async fn lock(&self, file: &D::File, path: &Path) -> Result<()> {
        let deadline = tokio::time::Instant::now() + self.lock_wait;
        let whole = Extent::new(WHOLE.0, WHOLE.1);
        loop {
            match file.try_lock(whole, LockKind::Exclusive) {
                Ok(true) => return Ok(()),
                Ok(false) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(LOCK_POLL).await;
                }
                Ok(false) => {
                    let what = format!(
                        "writes of an earlier owner to {} have not landed yet; try again",
                        path.display()
                    );
                    return Err(Error::new(ErrorKind::InUse, what));
                }
                Err(error) => return Err(Error::io(format!("lock {}", path.display()), error)),
            }
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(file_name(number))
    }
}

/// The name of a segment's file.
fn file_name(number: u64) -> String {
    format!("data.{number}")
}

/// The number of the segment with this file name.
pub(crate) fn number_of(file_name: &str) -> Option<u64> {
    let number = file_name.strip_prefix("data.")?.parse().ok()?;
    (self::file_name(number) == file_name).then_some(number)
}

/// The pieces of an extent that lie in one segment each.
fn pieces(at: Extent) -> impl Iterator<Item = (u64, Extent)> {
    at.chunks(SEGMENT).map(|piece| (piece.offset() / SEGMENT, piece))
}

/// Takes this many bytes from the front of `parts`.
fn split_parts(parts: &mut Vec<Bytes>, mut length: u64) -> Vec<Bytes> {
    let total: u64 = parts.iter().map(|part| part.len() as u64).sum();
    if total == length {
        return std::mem::take(parts);
    }
    let mut taken = Vec::new();
    while length > 0 {
        let first = &mut parts[0];
        if first.len() as u64 <= length {
            length -= first.len() as u64;
            taken.push(parts.remove(0));
        } else {
            taken.push(first.split_to(length as usize));
            length = 0;
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_segments() {
        assert_eq!((number_of("data.0"), number_of("data.17")), (Some(0), Some(17)));
        for bad in ["data", "data.", "data.01", "data.-1", "map", "data.0.bak"] {
            assert_eq!(number_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn parts_are_split_where_segments_meet() {
        let mut parts = vec![Bytes::from_static(b"abc"), Bytes::from_static(b"defg")];
        assert_eq!(split_parts(&mut parts, 5).concat(), b"abcde");
        assert_eq!(split_parts(&mut parts, 2).concat(), b"fg");
        let crossing: Vec<_> = pieces(Extent::new(SEGMENT - 5, 10)).collect();
        assert_eq!(crossing, [(0, Extent::new(SEGMENT - 5, 5)), (1, Extent::new(SEGMENT, 5))]);
    }
}
