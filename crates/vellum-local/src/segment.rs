//! [`Segments`]: the data files of a layer. Byte *n* of the image lies at byte *n* mod 1 TiB of file `data.(n / 1 TiB)`.
//!
//! The file system is the allocator. A segment appears at its first write, at its full nominal length, so that a file that is
//! shorter has lost something and is never read as zeros.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use vellum_core::{Buffer, Extent};
use vellum_disk::{Directory, Disk, Durability, File, LockKind, OpenMode, TryRead};
use vellum_engine::{Error, ErrorKind, Result};

use crate::place::cannot_open;

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
    open: RwLock<BTreeMap<u64, Arc<Segment<D::File>>>>,
    /// Held while a segment is opened or created, which waits.
    opening: tokio::sync::Mutex<()>,
    /// The directory, opened where a segment was begun whose name is not durable yet: a sync that could not open it, since the
    /// process has as many files open as it may, or since somebody moved the pool, would stop the image.
    unnamed: Mutex<Option<D::Directory>>,
}

#[derive(Debug)]
struct Segment<F> {
    file: F,
    writable: AtomicBool,
    /// Written since the last sync began.
    unsynced: AtomicBool,
}

impl<F> Segment<F> {
    fn new(file: F, writable: bool) -> Arc<Self> {
        Arc::new(Self {
            file,
            writable: AtomicBool::new(writable),
            unsynced: AtomicBool::new(false),
        })
    }

    fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Acquire)
    }

    fn mark_unsynced(&self) {
        self.unsynced.store(true, Ordering::Release);
    }
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
            unnamed: Mutex::default(),
        }
    }

    /// Opens a segment that exists for writing, with its lock: what an earlier owner still had in flight has landed then.
    /// Answers what it lacks of its nominal length, as an extent of the image: whoever began it died before it was whole, or
    /// something was lost, which the map can tell.
    pub(crate) async fn own(&self, number: u64) -> Result<Option<Extent>> {
        let (file, length) = self.open_for_writing(number, OpenMode::ReadWrite).await?;
        self.open.write().insert(number, Segment::new(file, true));
        let nominal = self.nominal_length(number);
        let start = number * SEGMENT;
        Ok((length < nominal).then(|| Extent::between(start + length, start + nominal)))
    }

    /// What the segments beside these would hold, as extents of the image.
    pub(crate) fn missing_beside(&self, present: &[u64]) -> impl Iterator<Item = Extent> + use<D> {
        let mut missing = Vec::new();
        let mut from = 0;
        for number in present.iter().copied().chain([self.size.div_ceil(SEGMENT)]) {
            if number > from {
                missing.push(Extent::between(from * SEGMENT, (number * SEGMENT).min(self.size)));
            }
            from = number + 1;
        }
        missing.into_iter()
    }

    /// Gives a segment that is open for writing its nominal length.
    pub(crate) async fn lengthen(&self, number: u64) -> Result<()> {
        let segment = self.for_writing(number).await?;
        let result = segment.file.set_length(self.nominal_length(number)).await;
        result
            .map_err(|error| Error::io(format!("lengthen {}", self.path(number).display()), error))
    }

    /// Closes what was opened for writing; nothing may be unsynced any more. Reading goes on.
    pub(crate) fn release(&self) -> Result<()> {
        for segment in self.open.write().values().filter(|segment| segment.is_writable()) {
            segment.writable.store(false, Ordering::Release);
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
    pub(crate) async fn write(&self, offset: u64, mut parts: Vec<Bytes>) -> Result<()> {
        for (number, piece) in pieces(extent_of(offset, &parts)) {
            let segment = self.for_writing(number).await.map_err(|error| {
                // The piece before this one was written.
                if piece.offset() == offset { error } else { error.maybe_done() }
            })?;
            let here = split_parts(&mut parts, piece.length());
            let at = piece.offset() % SEGMENT;
            let result = segment.file.write_at(here, at, Durability::AtSync).await;
            // Marked when it has landed, be it in part: a sync that begins now covers it, and one that began before does not.
            segment.mark_unsynced();
            result.map_err(|error| {
                Error::io(format!("write {piece} of {}", self.path(number).display()), error)
                    .maybe_done()
            })?;
        }
        Ok(())
    }

    /// Writes once more what [`write`](Self::write) has just written, through to the medium. An error is one of the medium, and
    /// may be of anything that was written to the file since its last sync.
    pub(crate) async fn write_through(
        &self,
        offset: u64,
        mut parts: Vec<Bytes>,
    ) -> std::io::Result<()> {
        for (number, piece) in pieces(extent_of(offset, &parts)) {
            let segment = self.open_writable(number).expect("it has just been written to");
            let here = split_parts(&mut parts, piece.length());
            segment.file.write_at(here, piece.offset() % SEGMENT, Durability::Durable).await?;
        }
        Ok(())
    }

    /// Frees the space of an extent, which then reads as zeros.
    pub(crate) async fn punch(&self, at: Extent) -> Result<()> {
        for (number, piece) in pieces(at) {
            self.punch_in(number, piece).await?;
        }
        Ok(())
    }

    /// The same in one segment, be it behind the end of what the segment may hold.
    pub(crate) async fn punch_in(&self, number: u64, at: Extent) -> Result<()> {
        let segment = self.for_writing(number).await?;
        let result = segment.file.punch(Extent::new(at.offset() - number * SEGMENT, at.length()));
        let result = result.await;
        segment.mark_unsynced();
        result.map_err(|error| {
            Error::io(format!("punch {at} of {}", self.path(number).display()), error).maybe_done()
        })
    }

    /// How long a segment's file is.
    pub(crate) async fn length(&self, number: u64) -> Result<u64> {
        let length = self.for_reading(number).await?.length().await;
        length.map_err(|error| Error::io(format!("look at {}", self.path(number).display()), error))
    }

    /// The first extent of the image, at or after an offset that lies in this segment, under which the segment occupies space.
    pub(crate) async fn next_data(&self, number: u64, from: u64) -> Result<Option<Extent>> {
        let start = number * SEGMENT;
        let found = self.for_reading(number).await?.next_data(from - start).await;
        let found = found.map_err(|error| {
            Error::io(format!("look for data in {}", self.path(number).display()), error)
        })?;
        Ok(found.map(|at| Extent::new(start + at.offset(), at.length())))
    }

    pub(crate) fn is_unsynced(&self) -> bool {
        self.unnamed.lock().is_some()
            || self.open.read().values().any(|segment| segment.unsynced.load(Ordering::Acquire))
    }

    /// Takes what was written since the last sync began.
    pub(crate) fn take_unsynced(&self) -> Vec<D::File> {
        let open = self.open.read();
        let unsynced = open.values().filter(|it| it.unsynced.swap(false, Ordering::AcqRel));
        unsynced.map(|segment| segment.file.clone()).collect()
    }

    /// Makes the names of the segments durable that were begun since the last time: states that tell of their data may be
    /// published then, and not before.
    pub(crate) async fn sync_names(&self) -> std::io::Result<()> {
        let directory = self.unnamed.lock().take();
        match directory {
            Some(directory) => directory.sync().await,
            None => Ok(()),
        }
    }

    /// Counts everything that is open for writing as unsynced: what a dead process wrote there may not be on the medium.
    pub(crate) fn distrust(&self) {
        let open = self.open.read();
        open.values().filter(|segment| segment.is_writable()).for_each(|it| it.mark_unsynced());
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
        self.open.write().insert(number, Segment::new(file.clone(), false));
        Ok(file)
    }

    /// Why a file that holds data cannot be opened: the layer was removed, which sends the reader to the catalog, or the file
    /// was lost.
    async fn missing(&self, path: &Path, error: std::io::Error) -> Error {
        if error.kind() != std::io::ErrorKind::NotFound {
            return cannot_open(format!("open {}", path.display()), error);
        }
        // The map goes first when a layer is removed.
        match self.disk.open(&self.dir.join("map"), OpenMode::Read).await {
            Err(error) => Error::io(format!("layer {} was removed", self.dir.display()), error),
            Ok(_) => Error::corrupt(format!(
                "{} is missing, though the map says that it holds data",
                path.display()
            )),
        }
    }

    /// A segment to write to, which appears with its first write.
    async fn for_writing(&self, number: u64) -> Result<Arc<Segment<D::File>>> {
        match self.open_writable(number) {
            Some(segment) => Ok(segment),
            // Boxed, so that every other write has a small future.
            None => Box::pin(self.begin(number)).await,
        }
    }

    fn open_writable(&self, number: u64) -> Option<Arc<Segment<D::File>>> {
        self.open.read().get(&number).filter(|segment| segment.is_writable()).cloned()
    }

    async fn begin(&self, number: u64) -> Result<Arc<Segment<D::File>>> {
        let _alone = self.opening.lock().await;
        if let Some(segment) = self.open_writable(number) {
            return Ok(segment);
        }
        let directory = self.disk.open_dir(&self.dir).await.map_err(|error| {
            cannot_open(format!("open {} for a data file", self.dir.display()), error)
        })?;
        let (file, length) = self.open_for_writing(number, OpenMode::ReadWriteOrCreate).await?;
        if length < self.nominal_length(number) {
            self.complete(number, &file, length).await?;
        }
        // Whether made here or found: whoever made it may have died, or failed, before its name was durable. That it is can
        // wait for the sync which publishes the first states of its data.
        *self.unnamed.lock() = Some(directory);
        let segment = Segment::new(file, true);
        self.open.write().insert(number, segment.clone());
        Ok(segment)
    }

    /// Makes a new file a segment.
    async fn complete(&self, number: u64, file: &D::File, length: u64) -> Result<()> {
        let (path, nominal) = (self.path(number), self.nominal_length(number));
        if length > 0 {
            let what = format!("{} has {length} bytes, expected {nominal}", path.display());
            return Err(Error::corrupt(what));
        }
        let failed = |error| Error::io(format!("create {}", path.display()), error);
        file.hint_extent_size(EXTENT_HINT).await;
        file.set_length(nominal).await.map_err(failed)
    }

    async fn open_for_writing(&self, number: u64, mode: OpenMode) -> Result<(D::File, u64)> {
        let path = self.path(number);
        let failed = |error| cannot_open(format!("open {} for writing", path.display()), error);
        let file = self.disk.open(&path, mode).await.map_err(failed)?;
        self.lock(&file, &path).await?;
        let length = file.length().await.map_err(failed)?;
        Ok((file, length))
    }

    fn nominal_length(&self, number: u64) -> u64 {
        self.size.saturating_sub(number * SEGMENT).min(SEGMENT)
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
pub(crate) fn file_name(number: u64) -> String {
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

/// The extent that `parts`, one after the other, cover from an offset on.
pub(crate) fn extent_of(offset: u64, parts: &[Bytes]) -> Extent {
    Extent::new(offset, parts.iter().map(|part| part.len() as u64).sum())
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
