//! [`RealFile`]: an open file of this machine.

use std::fs;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use rustix::fs::{Advice, FallocateFlags, SeekFrom, copy_file_range, fadvise, fallocate, seek};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev2};
use vellum_core::{Buffer, Extent};

use super::Threads;
use crate::{Durability, File, FileIdentity, LockKind, TryRead, own_thread, system};

/// What copying without help of the file system moves at once.
const COPY_STEP: usize = 1 << 20;
/// Larger writes are worth a thread of their own: their copy takes longer than the way there.
const HERE_MAX: usize = 256 << 10;
/// What one system call writes to the page cache. The cache makes its folios as large as the write was, and ext4 walks all blocks
/// of a folio at each later write to one of them: after writes of 1 MiB, 4 KiB writes cost three times as much (Linux 6.18).
const WRITE_STEP: usize = 64 << 10;
/// The most parts one system call takes (`IOV_MAX`).
const PARTS_MAX: usize = 1024;

/// An open file. Clones share one open file description.
#[derive(Clone, Debug)]
pub struct RealFile {
    open: Arc<Open>,
    threads: Threads,
}

#[derive(Debug)]
struct Open {
    file: fs::File,
    identity: FileIdentity,
    /// How a read that must not wait is made here; learnt by the first one.
    without_waiting: AtomicU8,
}

/// Try `RWF_NOWAIT`.
const UNKNOWN: u8 = 0;
/// The file system does not know `RWF_NOWAIT` and lives in memory: a plain read does not wait.
const IN_MEMORY: u8 = 1;
/// The file system does not know `RWF_NOWAIT`.
const NEVER: u8 = 2;

const TMPFS_MAGIC: u64 = 0x0102_1994;

impl RealFile {
    pub(super) fn new(file: fs::File, threads: Threads) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let identity = FileIdentity { device: metadata.dev(), inode: metadata.ino() };
        let open = Open { file, identity, without_waiting: AtomicU8::new(UNKNOWN) };
        Ok(Self { open: Arc::new(open), threads })
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&fs::File) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let open = self.open.clone();
        self.threads.pool.run(move || job(&open.file)).await
    }

    async fn run_briefly<T: Send + 'static>(
        &self,
        job: impl FnOnce(&fs::File) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let open = self.open.clone();
        self.threads.run_briefly(move || job(&open.file)).await
    }

    /// Runs what waits for the medium.
    async fn run_to_medium<T: Send + 'static>(
        &self,
        job: impl FnOnce(&fs::File) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let open = self.open.clone();
        self.threads.syncs.run(move || job(&open.file)).await
    }

    /// Reads at once where `RWF_NOWAIT` is not to be had, if that cannot wait.
    fn try_read_plainly(&self, buffer: &mut [u8], offset: u64) -> TryRead {
        if self.open.without_waiting.load(Ordering::Relaxed) == UNKNOWN {
            let in_memory = rustix::fs::fstatfs(&self.open.file)
                .is_ok_and(|fs| fs.f_type as u64 == TMPFS_MAGIC);
            self.open
                .without_waiting
                .store(if in_memory { IN_MEMORY } else { NEVER }, Ordering::Relaxed);
        }
        if self.open.without_waiting.load(Ordering::Relaxed) == IN_MEMORY
            && self.open.file.read_exact_at(buffer, offset).is_ok()
        {
            return TryRead::Done;
        }
        TryRead::WouldWait
    }
}

impl File for RealFile {
    fn try_read_at(&self, buffer: &mut [u8], offset: u64) -> TryRead {
        if self.open.without_waiting.load(Ordering::Relaxed) != UNKNOWN {
            return self.try_read_plainly(buffer, offset);
        }
        let length = buffer.len();
        match preadv2(
            &self.open.file,
            &mut [IoSliceMut::new(buffer)],
            offset,
            ReadWriteFlags::NOWAIT,
        ) {
            Ok(read) if read == length => TryRead::Done,
            Err(Errno::OPNOTSUPP) => self.try_read_plainly(buffer, offset),
            // A part, nothing because it is not cached, or an error: the read that may wait finds out which.
            _ => TryRead::WouldWait,
        }
    }

    async fn read_at(
        &self,
        mut buffer: Buffer,
        range: Range<usize>,
        offset: u64,
    ) -> (Buffer, io::Result<()>) {
        let open = self.open.clone();
        self.threads
            .pool
            .run(move || {
                let result = open.file.read_exact_at(&mut buffer[range], offset);
                (buffer, result)
            })
            .await
    }

    async fn write_at(
        &self,
        parts: Vec<Bytes>,
        offset: u64,
        durability: Durability,
    ) -> io::Result<()> {
        let length: usize = parts.iter().map(Bytes::len).sum();
        if durability == Durability::AtSync && length <= HERE_MAX && own_thread::may_wait() {
            return write_all(&self.open.file, &parts, offset, durability);
        }
        let write = move |file: &fs::File| write_all(file, &parts, offset, durability);
        match durability {
            Durability::AtSync => self.run(write).await,
            Durability::Durable => self.run_to_medium(write).await,
        }
    }

    async fn punch(&self, extent: Extent) -> io::Result<()> {
        self.run(move |file| punch(file, extent)).await
    }

    async fn allocate(&self, extent: Extent) -> io::Result<()> {
        self.run(move |file| {
            match fallocate(file, FallocateFlags::KEEP_SIZE, extent.offset(), extent.length()) {
                Err(Errno::OPNOTSUPP) => Ok(()),
                result => Ok(result?),
            }
        })
        .await
    }

    async fn copy_from(&self, source: &Self, from: Extent, to: u64) -> io::Result<()> {
        let source = source.open.clone();
        self.run(move |file| copy(&source.file, from.offset(), file, to, from.length())).await
    }

    async fn sync_data(&self) -> io::Result<()> {
        self.run_to_medium(fs::File::sync_data).await
    }

    async fn length(&self) -> io::Result<u64> {
        self.run_briefly(|file| Ok(file.metadata()?.len())).await
    }

    async fn set_length(&self, length: u64) -> io::Result<()> {
        self.run_briefly(move |file| file.set_len(length)).await
    }

    async fn allocated(&self) -> io::Result<u64> {
        self.run(|file| Ok(file.metadata()?.blocks() * 512)).await
    }

    async fn next_data(&self, offset: u64) -> io::Result<Option<Extent>> {
        self.run(move |file| next_data(file, offset)).await
    }

    async fn drop_cache(&self) {
        // Advice: what cannot be dropped stays.
        let _ = self.run(|file| Ok(fadvise(file, 0, None, Advice::DontNeed)?)).await;
    }

    async fn hint_extent_size(&self, bytes: u32) {
        // A hint: most file systems know none.
        let _ = self.run_briefly(move |file| system::hint_extent_size(file, bytes)).await;
    }

    fn identity(&self) -> FileIdentity {
        self.open.identity
    }

    fn try_lock(&self, range: Extent, kind: LockKind) -> io::Result<bool> {
        system::set_lock(&self.open.file, range, Some(kind))
    }

    fn unlock(&self, range: Extent) -> io::Result<()> {
        system::set_lock(&self.open.file, range, None).map(|_| ())
    }
}

fn write_all(
    file: &fs::File,
    parts: &[Bytes],
    mut offset: u64,
    durability: Durability,
) -> io::Result<()> {
    let (flags, step) = match durability {
        Durability::AtSync => (ReadWriteFlags::empty(), WRITE_STEP),
        // Each call waits for the medium.
        Durability::Durable => (ReadWriteFlags::DSYNC, usize::MAX),
    };
    if let [part] = parts
        && part.len() <= step
        && durability == Durability::AtSync
    {
        // Most writes are one small piece, and need no lists of pieces.
        return file.write_all_at(part, offset);
    }
    for parts in parts.chunks(PARTS_MAX) {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut left = &mut slices[..];
        // Empty slices at the front would look like a write that goes nowhere.
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match pwritev2(file, &front(left, step), offset, flags) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// The first bytes of some slices, at most so many.
fn front<'a>(slices: &'a [IoSlice<'a>], mut most: usize) -> Vec<IoSlice<'a>> {
    let mut front = Vec::with_capacity(slices.len());
    for slice in slices {
        if most == 0 {
            break;
        }
        let taken = slice.len().min(most);
        front.push(IoSlice::new(&slice[..taken]));
        most -= taken;
    }
    front
}

fn punch(file: &fs::File, extent: Extent) -> io::Result<()> {
    if extent.is_empty() {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, extent.offset(), extent.length()) {
        Err(Errno::OPNOTSUPP) => write_zeros(file, extent),
        result => Ok(result?),
    }
}

fn write_zeros(file: &fs::File, extent: Extent) -> io::Result<()> {
    let end = extent.end().min(file.metadata()?.len());
    let zeros = Bytes::from(vec![0; COPY_STEP]);
    for piece in Extent::between(extent.offset(), end).chunks(COPY_STEP as u64) {
        write_all(file, &[zeros.slice(..piece.len_usize())], piece.offset(), Durability::AtSync)?;
    }
    Ok(())
}

fn copy(
    source: &fs::File,
    mut from: u64,
    file: &fs::File,
    mut to: u64,
    mut length: u64,
) -> io::Result<()> {
    while length > 0 {
        let step = usize::try_from(length).unwrap_or(usize::MAX).min(1 << 30);
        match copy_file_range(source, Some(&mut from), file, Some(&mut to), step) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(copied) => length -= copied as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                return copy_through_memory(source, from, file, to, length);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_through_memory(
    source: &fs::File,
    from: u64,
    file: &fs::File,
    to: u64,
    length: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; COPY_STEP];
    for piece in Extent::new(0, length).chunks(COPY_STEP as u64) {
        let part = &mut buffer[..piece.len_usize()];
        source.read_exact_at(part, from + piece.offset())?;
        file.write_all_at(part, to + piece.offset())?;
    }
    Ok(())
}

fn next_data(file: &fs::File, offset: u64) -> io::Result<Option<Extent>> {
    let start = match seek(file, SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(start))?;
    Ok(Some(Extent::between(start, end)))
}

/// What is done where the file system lacks a call. Those of the tests have all of them.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_written_where_no_hole_can_be_punched_and_the_file_stays_as_long() {
        let file = tempfile::tempfile().unwrap();
        let length = 2 * COPY_STEP + 1000;
        file.write_all_at(&vec![7; length], 0).unwrap();
        write_zeros(&file, Extent::new(10, COPY_STEP as u64 + 5)).unwrap();
        write_zeros(&file, Extent::new(length as u64 - 3, 1 << 30)).unwrap();
        let mut expected = vec![7; length];
        expected[10..COPY_STEP + 15].fill(0);
        expected[length - 3..].fill(0);
        let mut found = vec![0; length];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected && file.metadata().unwrap().len() == length as u64);
    }

    #[test]
    fn what_the_kernel_does_not_copy_goes_through_memory() {
        let (source, file) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let bytes: Vec<u8> = (0..2 * COPY_STEP + 77).map(|n| (n % 251) as u8).collect();
        source.write_all_at(&bytes, 0).unwrap();
        copy_through_memory(&source, 5, &file, 3, bytes.len() as u64 - 5).unwrap();
        let mut found = vec![0; bytes.len() - 5];
        file.read_exact_at(&mut found, 3).unwrap();
        assert!(found == bytes[5..]);
        let beyond = copy_through_memory(&source, 6, &file, 3, bytes.len() as u64 - 5);
        assert_eq!(beyond.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}
