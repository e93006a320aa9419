//! [`Alone`]: one connection, used on the thread of whoever needs it, where SQLite's calls do not wait (see
//! [`Disk::sqlite_vfs`](vellum_disk::Disk::sqlite_vfs)). What happens on it happens in the order in which it was asked for, so that a
//! simulation can be repeated.

use std::sync::Arc;

use rusqlite::Connection;
use tokio::sync::{Mutex, OwnedMutexGuard};
use vellum_engine::Result;

use super::worker::committed;
use super::{Failure, Outcome};

/// The connection. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Alone(Arc<Mutex<Connection>>);

impl Alone {
    pub(super) fn new(db: Connection) -> Self {
        Self(Arc::new(Mutex::new(db)))
    }

    /// Runs what is one transaction.
    pub(super) async fn run<T>(&self, job: impl FnOnce(&mut Connection) -> Result<T>) -> Result<T> {
        job(&mut *self.0.lock().await)
    }

    /// Begins a transaction, and runs a closure in it.
    pub(super) async fn prepare<T>(
        &self,
        doing: &'static str,
        check: impl FnOnce(&Connection) -> Outcome<T>,
    ) -> Result<(T, Begun)> {
        let begun = Begun { db: self.0.clone().lock_owned().await, doing };
        let failed = |error| Failure::from(error).into_error(doing);
        begun.db.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
        let value = check(&begun.db).map_err(|failure| failure.into_error(doing))?;
        Ok((value, begun))
    }
}

/// A transaction that was begun. Dropped, it is rolled back.
#[derive(Debug)]
pub(crate) struct Begun {
    db: OwnedMutexGuard<Connection>,
    doing: &'static str,
}

impl Begun {
    pub(super) fn commit<T>(self, change: impl FnOnce(&Connection) -> Outcome<T>) -> Result<T> {
        let value = change(&self.db).map_err(|failure| failure.into_error(self.doing))?;
        committed(self.db.execute_batch("COMMIT"), self.doing)?;
        Ok(value)
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
