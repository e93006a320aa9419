//! [`Log`]: one of a layer's two live logs, being written.
//!
//! Records are appended in batches: whoever finds nobody writing writes all that is queued, and the others wait for it.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use vellum_disk::{Durability, File};
use vellum_engine::{Error, Result};

use crate::format::SECTOR;
use crate::format::live::{LogHeader, RECORD, Record};

/// Bytes in a log: 16,352 records. A full log makes a sync.
pub(crate) const LOG_SIZE: u64 = 256 << 10;
const RECORDS_MAX: u64 = (LOG_SIZE - SECTOR as u64) / RECORD as u64;

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
    waiting: Vec<oneshot::Sender<Result<()>>>,
    writing: bool,
}

/// Whether records were taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    /// They are in the file.
    Done,
    /// There is no room for them: a sync makes some.
    Full,
}

impl<F: File> Log<F> {
    /// Begins a log in a file of [`LOG_SIZE`] bytes that are written.
    pub(crate) async fn begin(file: F, header: LogHeader) -> Result<Self> {
        file.write_at(vec![header.encode().into()], 0, Durability::AtSync)
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
        let Some(written) = self.enqueue(records) else { return Ok(Appended::Full) };
        let this = self.clone();
        if self.should_write() {
            this.write_queued().await;
        }
        let written = written.await;
        written.unwrap_or_else(|_| {
            Err(Error::new(vellum_engine::ErrorKind::Io, "a live log was given up"))
        })?;
        Ok(Appended::Done)
    }

    /// Waits until nothing is being written any more.
    pub(crate) async fn drain(&self) {
        while self.0.queue.lock().writing {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    fn enqueue(&self, records: &[Record]) -> Option<oneshot::Receiver<Result<()>>> {
        let mut queue = self.0.queue.lock();
        if queue.records + records.len() as u64 > RECORDS_MAX {
            return None;
        }
        for record in records {
            let index = queue.records;
            self.0.header.encode_record(index, record, &mut queue.bytes);
            queue.records += 1;
        }
        let (send, written) = oneshot::channel();
        queue.waiting.push(send);
        Some(written)
    }

    fn should_write(&self) -> bool {
        let mut queue = self.0.queue.lock();
        !std::mem::replace(&mut queue.writing, true)
    }

    async fn write_queued(&self) {
        loop {
            let (bytes, at, waiting) = {
                let mut queue = self.0.queue.lock();
                if queue.waiting.is_empty() {
                    queue.writing = false;
                    return;
                }
                let bytes = std::mem::take(&mut queue.bytes);
                let at = SECTOR as u64 + queue.records * RECORD as u64 - bytes.len() as u64;
                (Bytes::from(bytes), at, std::mem::take(&mut queue.waiting))
            };
            let result = self.0.file.write_at(vec![bytes], at, Durability::AtSync).await;
            let result =
                result.map_err(|error| Error::io("append to a live log", error).maybe_done());
            for waiter in waiting {
                let _ = waiter.send(result.clone());
            }
        }
    }
}
