//! [`Database`]: the connections, each on a thread of its own, and what runs on them.
//!
//! SQLite blocks: on its files, and on other processes. So no runtime thread ever calls it; closures are sent to a thread
//! that writes or to one that reads, and the answers come back. A closure is one transaction, and once sent it runs
//! whether or not somebody still waits for the answer.
//!
//! ```text
//!   write:    BEGIN IMMEDIATE -> closure -> COMMIT
//!   prepare:  BEGIN IMMEDIATE -> closure -> the caller decides, in time -> closure -> COMMIT
//!                                                      \ dropped, or too late -> ROLLBACK
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as decision;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};
use vellum_engine::{Error, ErrorKind, Happened, Result};

use super::alone::{Alone, Begun};
use super::connection::{self, Purpose};
use super::failure::certainly_undone;
use super::log;
use super::{Failure, Outcome};

/// How many closures may wait for a thread; more callers wait for room.
const QUEUE_MAX: usize = 64;

/// How long a prepared change may keep the catalog from everybody else, unless something else is said.
pub(crate) const DECISION_WAIT: Duration = Duration::from_secs(30);

pub(crate) type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The open catalog. Clones share its connections, which close when the last clone is gone.
#[derive(Clone, Debug)]
pub(crate) enum Database {
    /// On threads.
    Threads {
        /// None where nothing may be written.
        writer: Option<mpsc::Sender<Job>>,
        /// Looks only.
        reader: mpsc::Sender<Job>,
        /// How long a prepared change waits for its caller.
        decision_wait: Duration,
        /// Whether the catalog may be written when it is closed.
        accepted: Arc<AtomicBool>,
    },
    /// On whatever thread needs it.
    Alone(Alone),
}

impl Database {
    /// Opens a catalog for reading and writing, through a VFS of SQLite if one is named. `first` runs on the connection that
    /// writes before anything else does.
    pub(crate) async fn open<T: Send + 'static>(
        path: &Path,
        vfs: Option<String>,
        first: impl FnOnce(&mut Connection) -> Outcome<T> + Send + 'static,
    ) -> Result<(Self, T)> {
        if let Some(vfs) = vfs {
            return open_alone(path, &vfs, Purpose::Write, first);
        }
        let accepted = Arc::default();
        let ends = Ends { accepted: Arc::clone(&accepted), outlives: None };
        let (writer, ended, value) = spawn(path.to_owned(), Purpose::Write, ends, first).await?;
        let ends = Ends { accepted: Arc::default(), outlives: Some(ended) };
        let (reader, _, ()) = spawn(path.to_owned(), Purpose::Read, ends, |_| Ok(())).await?;
        let decision_wait = DECISION_WAIT;
        Ok((Self::Threads { writer: Some(writer), reader, decision_wait, accepted }, value))
    }

    /// Opens a catalog for looking only.
    pub(crate) async fn open_read_only<T: Send + 'static>(
        path: &Path,
        vfs: Option<String>,
        first: impl FnOnce(&mut Connection) -> Outcome<T> + Send + 'static,
    ) -> Result<(Self, T)> {
        if let Some(vfs) = vfs {
            return open_alone(path, &vfs, Purpose::ReadOnly, first);
        }
        let ends = Ends { accepted: Arc::default(), outlives: None };
        let (reader, _, value) = spawn(path.to_owned(), Purpose::ReadOnly, ends, first).await?;
        let (decision_wait, accepted) = (DECISION_WAIT, Arc::default());
        Ok((Self::Threads { writer: None, reader, decision_wait, accepted }, value))
    }

    /// Says that this is a catalog that this program may write: when it is closed, its log is left in good order.
    pub(crate) fn accept(&self) {
        match self {
            Self::Threads { accepted, .. } => accepted.store(true, Ordering::Release),
            Self::Alone(alone) => alone.accept(),
        }
    }

    /// Lets prepared changes wait this long for their callers.
    pub(crate) fn with_decision_wait(self, decision_wait: Duration) -> Self {
        match self {
            Self::Threads { writer, reader, accepted, .. } => {
                Self::Threads { writer, reader, decision_wait, accepted }
            }
            // Whoever prepares there decides, or drops it.
            Self::Alone(_) => self,
        }
    }

    /// Runs a closure that looks only, on one consistent state.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        doing: &'static str,
        look: impl FnOnce(&Connection) -> Outcome<T> + Send + 'static,
    ) -> Result<T> {
        let job = move |db: &mut Connection| {
            let transaction = db.transaction().map_err(|error| failed(error, doing))?;
            look(&transaction).map_err(|failure| failure.into_error(doing))
        };
        match self {
            Self::Alone(alone) => alone.read(job).await,
            Self::Threads { reader, .. } => run(reader, job).await,
        }
    }

    /// Runs a closure as one durable transaction. If it fails, nothing is changed; if the commit itself fails, the error
    /// says whether something may have been. What the catalog shows afterwards is final, if it could be settled.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        doing: &'static str,
        change: impl FnOnce(&Connection) -> Outcome<T> + Send + 'static,
    ) -> Result<T> {
        let writer = match self {
            Self::Threads { writer, .. } => writable(writer)?,
            Self::Alone(alone) => {
                let (value, begun) = alone.prepare(doing, change).await?;
                return begun.commit_and_settle(value);
            }
        };
        let job = move |db: &mut Connection| {
            let transaction = begin(db, doing)?;
            let value = change(&transaction).map_err(|failure| failure.into_error(doing))?;
            let committed = commit(transaction, doing);
            settled(db, committed).map(|()| value)
        };
        run(writer, job).await
    }

    /// Begins a transaction, runs a closure in it, and leaves the rest to the caller. Until that is decided, nobody else
    /// changes this pool's catalog; so a caller who takes too long finds it undone.
    pub(crate) async fn prepare<T: Send + 'static>(
        &self,
        doing: &'static str,
        check: impl FnOnce(&Connection) -> Outcome<T> + Send + 'static,
    ) -> Result<(T, Undecided)> {
        let (writer, wait) = match self {
            Self::Threads { writer, decision_wait, .. } => (writable(writer)?, *decision_wait),
            Self::Alone(alone) => {
                let (value, begun) = alone.prepare(doing, check).await?;
                return Ok((value, Undecided::Alone(begun)));
            }
        };
        let (send, answer) = oneshot::channel();
        let (decide, decided) = decision::channel::<Decision>();
        let job: Job = Box::new(move |db| {
            let result = begin(db, doing).and_then(|transaction| {
                let value = check(&transaction).map_err(|failure| failure.into_error(doing))?;
                Ok((transaction, value))
            });
            match result {
                Err(error) => drop(send.send(Err(error))),
                Ok((transaction, value)) => {
                    if send.send(Ok(value)).is_ok()
                        && let Ok(decision) = decided.recv_timeout(wait)
                    {
                        decision(transaction);
                    }
                }
            }
        });
        let value = hand_over(writer, job, answer).await?;
        Ok((value, Undecided::OnThread { decide, doing, wait }))
    }

    /// Makes certain that a commit which failed without saying how can no longer come true: what is written now takes its
    /// place in the log.
    pub(crate) async fn settle(&self) -> Result<()> {
        self.write("settle what a failed commit left", change_nothing).await
    }
}

fn writable(writer: &Option<mpsc::Sender<Job>>) -> Result<&mpsc::Sender<Job>> {
    writer
        .as_ref()
        .ok_or_else(|| Error::new(ErrorKind::ReadOnly, "the pool was opened for reading only"))
}

/// Ends an open transaction.
pub(crate) type Decision = Box<dyn FnOnce(Transaction<'_>) + Send>;

/// An open transaction that waits for its caller's decision. Dropped, it is rolled back.
#[derive(Debug)]
pub(crate) enum Undecided {
    /// A thread waits for it.
    OnThread {
        /// Where the decision goes.
        decide: decision::Sender<Decision>,
        /// For errors.
        doing: &'static str,
        /// How long it waits.
        wait: Duration,
    },
    /// Nobody waits.
    Alone(Begun),
}

impl Undecided {
    /// Runs the rest of the change and commits. `Busy`, and nothing changed, if it took too long to come here.
    pub(crate) async fn commit<T: Send + 'static>(
        self,
        change: impl FnOnce(&Connection) -> Outcome<T> + Send + 'static,
    ) -> Result<T> {
        let (decide, doing, wait) = match self {
            Self::Alone(begun) => return begun.commit(change),
            Self::OnThread { decide, doing, wait } => (decide, doing, wait),
        };
        let (send, answer) = oneshot::channel();
        let decision: Decision = Box::new(move |transaction| {
            let result = change(&transaction)
                .map_err(|failure| failure.into_error(doing))
                .and_then(|value| commit(transaction, doing).map(|()| value));
            let _ = send.send(result);
        });
        // A thread that gave up drops the decision unheard, be it before or after it was sent.
        let _ = decide.send(decision);
        answer.await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Busy,
                format!("{doing}: prepared more than {wait:?} ago and undone since; try again"),
            ))
        })
    }
}

pub(super) fn failed(error: rusqlite::Error, doing: &str) -> Error {
    Failure::from(error).into_error(doing)
}

fn begin<'a>(db: &'a mut Connection, doing: &str) -> Result<Transaction<'a>> {
    db.transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(|error| failed(error, doing))
}

fn commit(transaction: Transaction<'_>, doing: &str) -> Result<()> {
    committed(transaction.commit(), doing)
}

/// What a commit came to; an error says whether it may have happened all the same.
pub(super) fn committed(result: rusqlite::Result<()>, doing: &str) -> Result<()> {
    result.map_err(|error| {
        let undone = certainly_undone(&error);
        let error = failed(error, doing);
        if undone { error } else { error.maybe_done() }
    })
}

/// A change of nothing, which takes the place in the log of whatever a commit has left there. That may be the catalog itself.
fn change_nothing(db: &Connection) -> Outcome<()> {
    if connection::is_blank(db)? {
        db.pragma_update(None, "user_version", 0)?;
    } else {
        db.execute("UPDATE pool SET settled = settled + 1", [])?;
    }
    Ok(())
}

/// What a commit came to. Where that is not known it is settled at once: what the storage has not taken, and SQLite shows to
/// nobody, would be shown to whoever opens the catalog after a crash. Where even that fails, who builds on it settles it first.
pub(super) fn settled(db: &Connection, committed: Result<()>) -> Result<()> {
    if let Err(error) = &committed
        && error.happened() != Happened::NotDone
    {
        settle_after(db, error);
    }
    committed
}

/// Takes the place in the log of what failed.
fn settle_after(db: &Connection, error: &Error) {
    if let Err(again) = change_nothing(db) {
        let again = again.into_error("settle what a failed commit left");
        tracing::error!(error = %error.chain(), again = %again.chain(), "the catalog failed, and failed again");
    }
}

/// The last thing that is done on a connection that writes. What could not be done is left to the next one, who must not build on
/// a frame that the storage has not taken, and would find it in the log.
pub(super) fn leave_one_frame(db: &Connection) {
    if let Err(failure) = log::leave_one_frame(db) {
        // A log that could not be synced is not to be moved into the file by a second try, which would be believed.
        let _ = db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        let error = failure.into_error("begin the catalog's log anew");
        tracing::debug!(error = %error.chain(), "the catalog is closed with its log as it is");
        // Whoever found it in use has written nothing.
        if error.kind() != ErrorKind::Busy {
            settle_after(db, &error);
        }
    }
}

/// Runs a closure on a thread.
async fn run<T: Send + 'static>(
    thread: &mpsc::Sender<Job>,
    work: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (send, answer) = oneshot::channel();
    let job: Job = Box::new(move |db| drop(send.send(work(db))));
    hand_over(thread, job, answer).await
}

async fn hand_over<T>(
    thread: &mpsc::Sender<Job>,
    job: Job,
    answer: oneshot::Receiver<Result<T>>,
) -> Result<T> {
    let gone = |_| Error::new(ErrorKind::Io, "the catalog's thread has ended; open the pool again");
    thread.send(job).await.map_err(|_| gone(()))?;
    answer.await.map_err(|_| gone(()).maybe_done())?
}

fn open_alone<T>(
    path: &Path,
    vfs: &str,
    purpose: Purpose,
    first: impl FnOnce(&mut Connection) -> Outcome<T>,
) -> Result<(Database, T)> {
    let mut db = connection::open(path, Some(vfs), purpose)?;
    let doing = format!("open {}", path.display());
    let value = first(&mut db).map_err(|failure| failure.into_error(&doing))?;
    let reader = connection::open(path, Some(vfs), Purpose::Read)?;
    Ok((Database::Alone(Alone::new(db, reader)), value))
}

/// How many threads of this process have a catalog open, or are closing one.
static OPEN: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// Counts a thread until it is dropped.
struct Open;

impl Open {
    fn count() -> Self {
        *OPEN.0.lock() += 1;
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        *OPEN.0.lock() -= 1;
        OPEN.1.notify_all();
    }
}

/// Waits until all catalogs that this process had open are closed, but for those that somebody still uses when so much time has
/// passed. The last one of all processes that closes a catalog moves its log into its file, on a thread of its own; a process
/// that ends before leaves the log, which is as good, but is one more file that can be lost.
pub fn wait_for_catalogs(patience: Duration) {
    let until = Instant::now() + patience;
    let mut open = OPEN.0.lock();
    while *open > 0 && !OPEN.1.wait_until(&mut open, until).timed_out() {}
}

/// What a thread does before it closes its connection.
struct Ends {
    /// If this is set by then, it leaves the log in good order.
    accepted: Arc<AtomicBool>,
    /// It waits for this thread.
    outlives: Option<JoinHandle<()>>,
}

/// Starts a thread, opens a connection on it, and runs `first`. The thread ends, and closes the connection, when the
/// sender is gone, and the thread it is to outlive too: the last connection moves the log into the file, and of two that close
/// at once each takes the other for the last.
async fn spawn<T: Send + 'static>(
    path: PathBuf,
    purpose: Purpose,
    ends: Ends,
    first: impl FnOnce(&mut Connection) -> Outcome<T> + Send + 'static,
) -> Result<(mpsc::Sender<Job>, JoinHandle<()>, T)> {
    let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE_MAX);
    let (ready, opened) = oneshot::channel();
    let open = Open::count();
    let body = move || {
        // Dropped last, when the connection is closed.
        let _open = open;
        let result = connection::open(&path, None, purpose).and_then(|mut db| {
            let value = first(&mut db)
                .map_err(|failure| failure.into_error(&format!("open {}", path.display())))?;
            Ok((db, value))
        });
        match result {
            Err(error) => drop(ready.send(Err(error))),
            Ok((mut db, value)) => {
                if ready.send(Ok(value)).is_ok() {
                    while let Some(job) = queue.blocking_recv() {
                        job(&mut db);
                    }
                }
                if ends.accepted.load(Ordering::Acquire) {
                    leave_one_frame(&db);
                }
                // A thread that panicked has closed its connection too.
                let _ = ends.outlives.map(JoinHandle::join);
            }
        }
    };
    let thread = std::thread::Builder::new()
        .name("vellum-catalog".to_owned())
        .spawn(body)
        .map_err(|error| Error::io("start a thread for the catalog", error))?;
    let value = opened.await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Io, "the catalog's thread ended while it opened the pool"))
    })?;
    Ok((jobs, thread, value))
}
