//! [`Log`]: one of a layer's two live logs, being written.
//!
//! Records are appended in batches: whoever finds nobody writing lets the others that are ready queue theirs, and writes all
//! that is queued; the others wait for it. The file has its length from the beginning, and gets space with its records.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use vellum_disk::{Durability, File};
use vellum_engine::{Error, ErrorKind, Result};

use crate::format::SECTOR;
use crate::format::live::{LogHeader, RECORD, Record};

/// Bytes in a log: 65,503 records, and zeros behind the last. A full log makes a sync.
pub(crate) const LOG_SIZE: u64 = 1 << 20;
pub(crate) const RECORDS_MAX: u64 = (LOG_SIZE - SECTOR as u64) / RECORD as u64 - 1;

/// A log whose header is written. Clones share it.
#[derive(Debug)]
pub(crate) struct Log<F: File>(Arc<Shared<F>>);

impl<F: File> Clone for Log<F> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Debug)]
struct Shared<F> {
    file: F,
    header: LogHeader,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Records in the file, being written, and queued.
    records: u64,
    bytes: Vec<u8>,
    waiting: Vec<oneshot::Sender<Appended>>,
    writing: bool,
    /// Records could not be written, be it for want of space: what came after them would never be found.
    broken: bool,
    /// Another log takes records now, and this one's file may soon be written anew.
    retired: bool,
    /// Told when nothing is being written any more.
    landed: Option<oneshot::Sender<()>>,
}

/// Whether records were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    /// They are in the file.
    Done,
    /// There is no room for them, in the log or on the disk: a sync does without them, and makes room.
    Full,
    /// None was: they belong in the log that takes records now.
    Retired,
}

/// What became of records that were to be queued.
enum Queued {
    /// They are, and somebody writes.
    Waiting(oneshot::Receiver<Appended>),
    /// They are, and whoever queued them is the one to write.
    ToWrite(oneshot::Receiver<Appended>),
    /// They are not.
    No(Appended),
}

impl<F: File> Log<F> {
    /// Begins a log in a file that is as long as its header says.
    pub(crate) async fn begin(file: F, header: LogHeader) -> Result<Self> {
        let mut bytes = header.encode();
        end_with_zeros(&mut bytes);
        file.write_at(vec![bytes.into()], 0, Durability::AtSync)
            .await
            .map_err(|error| Error::io("begin a live log", error))?;
        Ok(Self(Arc::new(Shared { file, header, queue: Mutex::default() })))
    }

    /// Whether a sync should make room soon.
    pub(crate) fn is_filling_up(&self) -> bool {
        self.0.queue.lock().records > RECORDS_MAX / 4 * 3
    }

    /// Appends records. When it returns they survive the death of the process.
    pub(crate) async fn append(&self, records: &[Record]) -> Result<Appended> {
        let written = match self.enqueue(records) {
            Queued::No(why) => return Ok(why),
            Queued::Waiting(written) => written,
            Queued::ToWrite(written) => {
                self.write_queued().await;
                written
            }
        };
        written.await.map_err(|_| Error::new(ErrorKind::Io, "a live log was given up").maybe_done())
    }

    /// Takes no more records, and waits until those it took have landed: then the file may be used for another log.
    pub(crate) async fn retire(&self) {
        let landed = {
            let mut queue = self.0.queue.lock();
            queue.retired = true;
            queue.writing.then(|| {
                let (send, landed) = oneshot::channel();
                queue.landed = Some(send);
                landed
            })
        };
        if let Some(landed) = landed {
            // An error says that whoever wrote is gone, and its last write may still land; only an abandoned layer has that.
            let _ = landed.await;
        }
    }

    fn enqueue(&self, records: &[Record]) -> Queued {
        let mut queue = self.0.queue.lock();
        if queue.retired {
            return Queued::No(Appended::Retired);
        }
        if queue.broken || queue.records + records.len() as u64 > RECORDS_MAX {
            return Queued::No(Appended::Full);
        }
        for record in records {
            let index = queue.records;
            self.0.header.encode_record(index, record, &mut queue.bytes);
            queue.records += 1;
        }
        let (send, written) = oneshot::channel();
        queue.waiting.push(send);
        if std::mem::replace(&mut queue.writing, true) {
            Queued::Waiting(written)
        } else {
            Queued::ToWrite(written)
        }
    }

    async fn write_queued(&self) {
        let mut writing = Writing(Some(&self.0));
        loop {
            // One system call for all who are about to queue theirs, instead of one each.
            tokio::task::yield_now().await;
            let Some((bytes, at, waiting)) = self.take_queued() else {
                writing.0 = None;
                return;
            };
            let result = self.0.file.write_at(vec![bytes], at, Durability::AtSync).await;
            let appended = match result {
                Ok(()) => Appended::Done,
                Err(error) => {
                    tracing::warn!(%error, layer = self.0.header.layer, "a live log takes no more records; a sync does instead");
                    self.0.queue.lock().broken = true;
                    Appended::Full
                }
            };
            for waiter in waiting {
                let _ = waiter.send(appended);
            }
        }
    }

    /// What is to be written, and where; `None` when nothing is, and then nobody writes any more.
    fn take_queued(&self) -> Option<(Bytes, u64, Vec<oneshot::Sender<Appended>>)> {
        let mut queue = self.0.queue.lock();
        let mut waiting = std::mem::take(&mut queue.waiting);
        let mut bytes = std::mem::take(&mut queue.bytes);
        if queue.broken {
            for waiter in waiting.drain(..) {
                let _ = waiter.send(Appended::Full);
            }
        }
        if waiting.is_empty() {
            queue.writing = false;
            if let Some(landed) = queue.landed.take() {
                let _ = landed.send(());
            }
            return None;
        }
        let at = SECTOR as u64 + queue.records * RECORD as u64 - bytes.len() as u64;
        end_with_zeros(&mut bytes);
        Some((bytes.into(), at, waiting))
    }
}

/// Behind the last record lies one of zeros, so that the end of a log is not taken for a record that was damaged.
fn end_with_zeros(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len() + RECORD, 0);
}

/// Whoever writes what is queued. Dropped in the middle, by a thread that panics or a runtime that ends, it lets nobody wait for
/// it: the log takes no more records, and those that were queued may be in the file or not.
struct Writing<'a, F>(Option<&'a Shared<F>>);

impl<F> Drop for Writing<'_, F> {
    fn drop(&mut self) {
        if let Some(log) = self.0 {
            let mut queue = log.queue.lock();
            (queue.writing, queue.broken) = (false, true);
            (queue.bytes, queue.waiting, queue.landed) = Default::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vellum_core::{Buffer, State};
    use vellum_disk::{Disk, FileIdentity, OpenMode};

    use super::*;
    use crate::testing::{BLOCK, Lab, blocks, seen, write};
    use vellum_sim::SimDisk;
    use vellum_sim::{Call, Fault};

    fn record(first_unit: u64) -> Record {
        Record { first_unit, units: 1, state: State::Data }
    }

    fn header(nonce: u64) -> LogHeader {
        let map = FileIdentity { device: 1, inode: 2 };
        LogHeader { layer: 7, boot: None, map, epoch: 3, nonce, length: LOG_SIZE }
    }

    async fn records<F: File>(file: &F, header: LogHeader) -> Vec<Record> {
        let length = file.length().await.unwrap() as usize;
        let (bytes, result) = file.read_at(Buffer::from_vec(vec![0; length]), 0..length, 0).await;
        result.unwrap();
        header.records(&bytes[SECTOR..])
    }

    #[tokio::test]
    async fn a_retired_log_leaves_the_next_one_in_its_file_alone() {
        let disk = SimDisk::new(1);
        let file = disk.open(Path::new("/pool/live/log"), OpenMode::Create).await.unwrap();
        let old = Log::begin(file.clone(), header(1)).await.unwrap();
        assert_eq!(old.append(&[record(1)]).await.unwrap(), Appended::Done);
        old.retire().await;
        let new = Log::begin(file.clone(), header(2)).await.unwrap();
        for unit in 10..13 {
            assert_eq!(new.append(&[record(unit)]).await.unwrap(), Appended::Done);
        }
        // Somebody took the old log before it was retired, and comes only now.
        assert_eq!(old.append(&[record(2)]).await.unwrap(), Appended::Retired);
        assert_eq!(records(&file, header(2)).await, [record(10), record(11), record(12)]);
    }

    #[tokio::test]
    async fn records_appended_at_once_all_land_before_retirement_ends() {
        let disk = SimDisk::new(2);
        disk.world().yields_max = 5;
        let file = disk.open(Path::new("/pool/live/log"), OpenMode::Create).await.unwrap();
        let log = Log::begin(file.clone(), header(1)).await.unwrap();
        let appends = (0..50).map(|unit| {
            let log = log.clone();
            async move { log.append(&[record(unit)]).await.unwrap() }
        });
        let appends = futures::future::join_all(appends);
        let retired = async {
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            log.retire().await;
            records(&file, header(1)).await.len()
        };
        let (appended, landed) = tokio::join!(appends, retired);
        let done = appended.iter().filter(|done| **done == Appended::Done).count();
        assert_eq!(landed, done);
    }

    #[tokio::test]
    async fn a_log_that_could_not_be_written_takes_nothing_more() {
        let disk = SimDisk::new(3);
        disk.world().yields_max = 5;
        let file = disk.open(Path::new("/pool/live/log"), OpenMode::Create).await.unwrap();
        let log = Log::begin(file.clone(), header(1)).await.unwrap();
        assert_eq!(log.append(&[record(0)]).await.unwrap(), Appended::Done);
        disk.fail(Fault { call: Call::Write, file: "log", error: 28, times: 1, skip: 0 });
        let appends = (1..50).map(|unit| {
            let log = log.clone();
            async move { log.append(&[record(unit)]).await.unwrap() }
        });
        let appended = futures::future::join_all(appends).await;
        assert_eq!(appended, [Appended::Full; 49]);
        // Behind records that are missing none would be found.
        assert_eq!(log.append(&[record(50)]).await.unwrap(), Appended::Full);
        log.retire().await;
        assert_eq!(records(&file, header(1)).await, [record(0)]);
    }

    #[tokio::test]
    async fn whoever_writes_and_goes_away_leaves_nobody_waiting() {
        let disk = SimDisk::new(4);
        let file = disk.open(Path::new("/pool/live/log"), OpenMode::Create).await.unwrap();
        let log = Log::begin(file, header(1)).await.unwrap();
        let hold = disk.hold(Call::Write, "log");
        let (first, rest) = ([record(0)], [record(1)]);
        let mut writing = Box::pin(log.append(&first));
        tokio::select! {
            _ = &mut writing => panic!("it is held"),
            () = hold.arrived() => {}
        }
        let mut waiting = Box::pin(log.append(&rest));
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(writing);
        assert_eq!(waiting.await.unwrap_err().happened(), vellum_engine::Happened::MaybeDone);
        assert_eq!(log.append(&[record(2)]).await.unwrap(), Appended::Full);
        log.retire().await;
    }

    #[tokio::test]
    async fn a_write_whose_record_does_not_fit_on_the_disk_is_synced_instead() {
        let lab = Lab::new(64 * BLOCK).await;
        let layer = lab.own().await;
        write(&layer, blocks(0, 1), b'a').await;
        lab.disk.fail(Fault { call: Call::Write, file: "ab.0", error: 28, times: 1, skip: 0 });
        write(&layer, blocks(1, 1), b'b').await;
        write(&layer, blocks(2, 1), b'c').await;
        let lab = lab.after_death().await;
        assert_eq!(seen(&lab.own().await, 0, 4).await, b"abc?");
    }
}
