//! [`Pool`]: operations on the objects of a pool.
#![expect(unsafe_code, reason = "librados is called through pointers")]

use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::cluster::{Cluster, whole_seconds};
use super::completion::submit;
use super::library::Handle;
use super::operation::{NativeRead, NativeWrite, output, text};
use super::watch::PoolWatch;
use crate::failure::{Failure, Result};
use crate::{List, Objects, ReadDone, ReadOp, SnapContext, SnapId, WriteOp, WriteStep};

/// Fail where the cluster is full, rather than wait: `LIBRADOS_OPERATION_FULL_TRY`.
const FULL_TRY: c_int = 64;
/// How long a client that was fenced stays so; one that wakes up later finds its lock taken before it writes.
const FENCED: Duration = Duration::from_secs(24 * 60 * 60);
/// Names in one piece of a list, and pieces that wait to be taken.
const LISTED: usize = 1000;
const PIECES: usize = 4;

/// The objects of one pool, in one namespace.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    cluster: Cluster,
    id: i64,
    namespace: CString,
}

/// How librados reaches a pool: the snapshot that is read, or the snapshot context that is written under, belong to it, so
/// each operation has its own. Making one is a matter of 100 ns.
pub(super) struct Io {
    pub(super) handle: Handle,
    pub(super) cluster: Cluster,
}

// SAFETY: librados lets any thread use one, also several at once.
unsafe impl Send for Io {}
// SAFETY: as above.
unsafe impl Sync for Io {}

impl Drop for Io {
    fn drop(&mut self) {
        // SAFETY: it was made by `Pool::io`, and librados counts for itself which operations still need what is behind it.
        unsafe { (self.cluster.0.library.ioctx_destroy)(self.handle) }
    }
}

impl Pool {
    pub(super) fn new(cluster: Cluster, id: i64, namespace: CString) -> Self {
        Self(Arc::new(Shared { cluster, id, namespace }))
    }

    /// The connection to the cluster that it is in.
    pub fn connection(&self) -> &Cluster {
        &self.0.cluster
    }

    pub(super) fn io(&self) -> Result<Io> {
        let Shared { cluster, id, namespace } = &*self.0;
        let (connection, library) = (cluster.0.handle, cluster.0.library);
        let mut handle = ptr::null_mut();
        // SAFETY: the connection is open, and the place for the handle there.
        let made = unsafe { (library.ioctx_create2)(connection, *id, &raw mut handle) };
        Failure::check(made).map_err(|failure| match failure {
            Failure::NOT_FOUND => Failure::NO_POOL,
            other => other,
        })?;
        let io = Io { handle, cluster: cluster.clone() };
        // SAFETY: it was just made; the namespace ends with a zero byte and is copied. Watches have no flags of their own, and would
        // wait for as long as the cluster is full.
        unsafe {
            (library.ioctx_set_namespace)(io.handle, namespace.as_ptr());
            (library.set_pool_full_try)(io.handle);
        }
        Ok(io)
    }

    /// What an answer means: that there is no object, or no pool any more. That this client is refused is remembered.
    fn meant(&self, failure: Failure) -> Failure {
        if failure == Failure::BLOCKLISTED {
            self.0.cluster.note_refused();
        }
        match self.io() {
            Err(Failure::NO_POOL) if failure == Failure::NOT_FOUND => Failure::NO_POOL,
            _ => failure,
        }
    }

    fn io_under(&self, context: &SnapContext) -> Result<Io> {
        let io = self.io()?;
        let mut snapshots = context.snapshots.clone();
        let count = c_int::try_from(snapshots.len()).map_err(|_| Failure::INVALID)?;
        // SAFETY: nobody else has it yet; there are as many numbers as said, and they are copied.
        Failure::check(unsafe {
            (io.cluster.0.library.ioctx_selfmanaged_snap_set_write_ctx)(
                io.handle,
                context.newest,
                snapshots.as_mut_ptr(),
                count,
            )
        })?;
        Ok(io)
    }

    fn io_at(&self, snapshot: SnapId) -> Result<Io> {
        let io = self.io()?;
        if snapshot != SnapId::HEAD {
            // SAFETY: nobody else has it yet.
            unsafe { (io.cluster.0.library.ioctx_snap_set_read)(io.handle, snapshot.0) };
        }
        Ok(io)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({}, namespace {:?})", self.0.id, self.0.namespace)
    }
}

impl Objects for Pool {
    type Watch = PoolWatch;

    fn cluster(&self) -> [u8; 16] {
        self.0.cluster.id()
    }

    fn pool(&self) -> i64 {
        self.0.id
    }

    fn client(&self) -> u64 {
        self.0.cluster.client()
    }

    fn at(&self, pool: i64, namespace: &str) -> Result<Self> {
        self.0.cluster.pool_by_id(pool, namespace)
    }

    async fn pools(&self) -> Result<Vec<(i64, String)>> {
        self.0.cluster.pools().await
    }

    async fn fence(&self, _client: u64, address: &str) -> Result<()> {
        self.0.cluster.blocklist(address, FENCED).await?;
        self.0.cluster.wait_for_newest_map().await
    }

    async fn write(&self, object: &str, context: &SnapContext, op: WriteOp) -> Result<()> {
        if op.steps.is_empty() {
            return Ok(());
        }
        let asserts_version =
            op.steps.iter().any(|step| matches!(step, WriteStep::AssertVersion(_)));
        let library = self.0.cluster.0.library;
        let kept = (self.io_under(context)?, NativeWrite::new(library, &op)?, text(object)?);
        let (answer, _) = submit(library, kept, |kept, completion| {
            // SAFETY: what is kept is there, and stays until the operation is done. The operation was not carried out yet.
            unsafe {
                let (io, op, object) = &*kept;
                let (io, op, object) = (io.handle, op.handle, object.as_ptr());
                let now = ptr::null_mut();
                (library.aio_write_op_operate)(op, io, completion, object, now, FULL_TRY)
            }
        })
        .await;
        answer.map(drop).map_err(|failure| match failure {
            // Of a version that was asserted: there is another.
            Failure::RANGE | Failure::OVERFLOW if asserts_version => Failure::MISMATCH,
            other => self.meant(other),
        })
    }

    async fn read(&self, object: &str, at: SnapId, op: ReadOp) -> ReadDone {
        let library = self.0.cluster.0.library;
        let ReadOp { steps, data } = op;
        let op = NativeRead::new(library, data);
        let (io, object) = match self.io_at(at).and_then(|io| Ok((io, text(object)?))) {
            Ok(found) => found,
            Err(failure) => return done(op, Err(failure)),
        };
        let (answer, kept) = submit(library, (io, op, object, steps), |kept, completion| {
            // SAFETY: what is kept is there, and stays where it is until the operation is done. The operation was not carried
            // out yet, and nobody else looks at it before it is.
            unsafe {
                let (io, op, object, steps) = &mut *kept;
                if let Err(Failure(number)) = op.aim(steps) {
                    return -number;
                }
                let (io, op, object) = (io.handle, op.handle, object.as_ptr());
                (library.aio_read_op_operate)(op, io, completion, object, 0)
            }
        })
        .await;
        match kept {
            Some((_, op, ..)) => done(op, answer.map_err(|failure| self.meant(failure))),
            None => ReadDone { buffer: None, version: 0, result: Err(Failure::NOT_CONNECTED) },
        }
    }

    fn list(&self) -> List {
        let (names, list) = mpsc::channel(PIECES);
        let pool = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(failure) = list_into(&pool, &names) {
                let _ = names.blocking_send(Err(failure));
            }
        });
        List(list)
    }

    async fn create_snapshot(&self) -> Result<u64> {
        let library = self.0.cluster.0.library;
        let (answer, kept) = submit(library, (self.io()?, 0), |kept, completion| {
            // SAFETY: what is kept is there, and the number in it stays where it is until the operation is done.
            unsafe {
                let (io, number) = (&raw const (*kept).0, &raw mut (*kept).1);
                (library.aio_ioctx_selfmanaged_snap_create)((*io).handle, number, completion);
            }
            0
        })
        .await;
        answer.and(kept.map(|(_, number)| number).ok_or(Failure::NOT_CONNECTED))
    }

    async fn remove_snapshot(&self, snapshot: u64) -> Result<()> {
        let library = self.0.cluster.0.library;
        let (answer, _) = submit(library, self.io()?, |kept, completion| {
            // SAFETY: what is kept is there.
            unsafe {
                (library.aio_ioctx_selfmanaged_snap_remove)((*kept).handle, snapshot, completion);
            }
            0
        })
        .await;
        answer.map(drop)
    }

    async fn watch(&self, object: &str) -> Result<PoolWatch> {
        // In a task of its own: a watch that was begun, and that nobody waits for any more, is ended.
        let begin = tokio::spawn(PoolWatch::begin(self.io()?, text(object)?));
        begin.await.unwrap_or(Err(Failure::NOT_CONNECTED))
    }

    async fn notify(&self, object: &str, says: Vec<u8>, wait: Duration) -> Result<Vec<u8>> {
        /// What librados fills.
        struct Notify {
            io: Io,
            object: CString,
            says: Vec<u8>,
            answers: *mut c_char,
            length: usize,
        }
        // SAFETY: the answers belong to this, and nobody else knows them.
        unsafe impl Send for Notify {}
        impl Drop for Notify {
            fn drop(&mut self) {
                let answers = std::mem::replace(&mut self.answers, ptr::null_mut());
                output(answers, self.length, self.io.cluster.0.library);
            }
        }

        let library = self.0.cluster.0.library;
        let said = c_int::try_from(says.len()).map_err(|_| Failure::INVALID)?;
        let wait = u64::from(whole_seconds(wait)) * 1000;
        let (io, object) = (self.io()?, text(object)?);
        let kept = Notify { io, object, says, answers: ptr::null_mut(), length: 0 };
        let (answer, kept) = submit(library, kept, |kept, completion| {
            // SAFETY: what is kept is there, and stays where it is until the operation is done.
            unsafe {
                let Notify { io, object, says, answers, length } = &mut *kept;
                let (io, object, says) = (io.handle, object.as_ptr(), says.as_ptr().cast());
                (library.aio_notify)(io, object, completion, says, said, wait, answers, length)
            }
        })
        .await;
        let Some(mut kept) = kept else { return Err(Failure::NOT_CONNECTED) };
        let answers = std::mem::replace(&mut kept.answers, ptr::null_mut());
        let answers = output(answers, kept.length, library);
        match answer {
            // Who did not answer is named among the answers.
            Err(Failure::TIMED_OUT) if !answers.is_empty() => Ok(answers),
            answer => answer.map(|_| answers),
        }
    }
}

fn done(mut op: NativeRead, answer: Result<u64>) -> ReadDone {
    let version = answer.unwrap_or_default();
    let result = answer.map(|_| op.found());
    ReadDone { buffer: op.into_data().map(|data| data.buffer), version, result }
}

/// Sends all names, until nobody wants them any more.
fn list_into(pool: &Pool, names: &mpsc::Sender<Result<Vec<String>>>) -> Result<()> {
    let (io, library) = (pool.io()?, pool.0.cluster.0.library);
    let mut list = ptr::null_mut();
    // SAFETY: the place for the handle is there.
    Failure::check(unsafe { (library.nobjects_list_open)(io.handle, &raw mut list) })?;
    let mut piece = Vec::with_capacity(LISTED);
    let ended = loop {
        let mut name = ptr::null();
        // SAFETY: the list is open; what is not wanted may be null. The name ends with a zero byte and is there until the
        // next call.
        let found = unsafe {
            let none = ptr::null_mut();
            Failure::check((library.nobjects_list_next)(list, &raw mut name, none, none))
                .map(|_| CStr::from_ptr(name).to_string_lossy().into_owned())
        };
        match found {
            Ok(name) => piece.push(name),
            Err(Failure::NOT_FOUND) => break Ok(()),
            Err(failure) => break Err(failure),
        }
        if names.is_closed() {
            break Ok(());
        }
        if piece.len() == LISTED && names.blocking_send(Ok(std::mem::take(&mut piece))).is_err() {
            break Ok(());
        }
    };
    if !piece.is_empty() {
        let _ = names.blocking_send(Ok(piece));
    }
    // SAFETY: it was opened above.
    unsafe { (library.nobjects_list_close)(list) };
    ended
}
