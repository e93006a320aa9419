//! [`Alone`]: connections that are used on the thread of whoever needs them, where SQLite's calls do not wait (see
//! [`Disk::sqlite_vfs`](vellum_disk::Disk::sqlite_vfs)). What happens on them happens in the order in which it was asked for, so that
//! a simulation can be repeated; before each, others may run, as they do while a thread is asked. No clock undoes what was
//! prepared: it waits for as long as whoever prepared it keeps it.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::Instant;
use vellum_engine::{ErrorKind, Result};

use super::Outcome;
use super::connection::BUSY_WAIT;
use super::worker::{committed, failed, leave_one_frame, settled};

/// How often a transaction that another process keeps from beginning is tried again.
const BUSY_POLL: Duration = Duration::from_millis(1);

/// Two connections, one that writes and one that looks. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Alone {
    writer: Arc<Mutex<Writer>>,
    reader: Arc<Mutex<Connection>>,
    accepted: Arc<AtomicBool>,
}

/// The connection that writes, and whether it leaves the log in good order.
#[derive(Debug)]
struct Writer(Connection, Arc<AtomicBool>);

impl Deref for Writer {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.1.load(Ordering::Acquire) {
            leave_one_frame(self);
        }
    }
}

impl Alone {
    pub(super) fn new(writer: Connection, reader: Connection) -> Self {
        let accepted = Arc::default();
        let writer = Arc::new(Mutex::new(Writer(writer, Arc::clone(&accepted))));
        Self { writer, reader: Arc::new(Mutex::new(reader)), accepted }
    }

    /// Has the log left in good order when the last clone is dropped.
    pub(super) fn accept(&self) {
        self.accepted.store(true, Ordering::Release);
    }

    /// Runs what looks only.
    pub(super) async fn read<T>(
        &self,
        job: impl FnOnce(&mut Connection) -> Result<T>,
    ) -> Result<T> {
        tokio::task::yield_now().await;
        job(&mut *self.reader.lock().await)
    }

    /// Begins a transaction, and runs a closure in it.
    pub(super) async fn prepare<T>(
        &self,
        doing: &'static str,
        check: impl FnOnce(&Connection) -> Outcome<T>,
    ) -> Result<(T, Begun)> {
        tokio::task::yield_now().await;
        let begun = Begun { db: self.writer.clone().lock_owned().await, doing };
        let deadline = Instant::now() + BUSY_WAIT;
        while let Err(error) = begun.db.execute_batch("BEGIN IMMEDIATE") {
            let error = failed(error, doing);
            if error.kind() != ErrorKind::Busy || Instant::now() > deadline {
                return Err(error);
            }
            tokio::time::sleep(BUSY_POLL).await;
        }
        let value = check(&begun.db).map_err(|failure| failure.into_error(doing))?;
        Ok((value, begun))
    }
}

/// A transaction that was begun. Dropped, it is rolled back.
#[derive(Debug)]
pub(crate) struct Begun {
    db: OwnedMutexGuard<Writer>,
    doing: &'static str,
}

impl Begun {
    pub(super) fn commit<T>(self, change: impl FnOnce(&Connection) -> Outcome<T>) -> Result<T> {
        let value = change(&self.db).map_err(|failure| failure.into_error(self.doing))?;
        committed(self.db.execute_batch("COMMIT"), self.doing)?;
        Ok(value)
    }

    /// The same, for who does not settle by itself what cannot be known.
    pub(super) fn commit_and_settle<T>(self, value: T) -> Result<T> {
        let result = committed(self.db.execute_batch("COMMIT"), self.doing);
        if !self.db.is_autocommit() {
            let _ = self.db.execute_batch("ROLLBACK");
        }
        settled(&self.db, result).map(|()| value)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.db.is_autocommit() {
            // SQLite undoes it when it next opens the database, if it cannot do so now.
            let _ = self.db.execute_batch("ROLLBACK");
        }
    }
}
