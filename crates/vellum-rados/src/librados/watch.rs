//! [`PoolWatch`]: what is said about an object.
#![expect(unsafe_code, reason = "librados calls back with the pointer that it was given")]

use std::ffi::{CString, c_int, c_void};
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::cluster::blocking;
use super::completion::submit;
use super::operation::copied;
use super::pool::Io;
use crate::contract::{Event, Watch};
use crate::failure::{Failure, Result};

/// Events that wait to be taken. What comes when there is no room for it is not answered, and whoever said it is told so.
const WAITING_MAX: usize = 1024;

/// A watch on an object.
pub struct PoolWatch {
    /// Taken when the watch ends.
    open: Option<Open>,
    events: mpsc::Receiver<Event>,
}

/// A watch that the cluster knows of, and what librados calls back with.
struct Open {
    io: Arc<Io>,
    object: CString,
    id: u64,
    heard: *const Heard,
}

// SAFETY: `heard` points to what any thread may use, and is given back once.
unsafe impl Send for Open {}
// SAFETY: as above.
unsafe impl Sync for Open {}

/// Where events go. There is always room for the last one.
struct Heard {
    said: mpsc::Sender<Event>,
    lost: Mutex<Option<mpsc::OwnedPermit<Event>>>,
}

impl PoolWatch {
    pub(super) async fn begin(io: Io, object: CString) -> Result<Self> {
        /// What librados fills.
        struct Begin {
            io: Arc<Io>,
            object: CString,
            id: u64,
            heard: *const Heard,
        }
        // SAFETY: as for `Open`.
        unsafe impl Send for Begin {}

        let library = io.cluster.0.library;
        let (heard, events) = mpsc::channel(WAITING_MAX);
        let room = heard.clone().try_reserve_owned().expect("nothing was said yet");
        let heard = Heard { said: heard, lost: Mutex::new(Some(room)) };
        let heard = Box::into_raw(Box::new(heard)).cast_const();
        let kept = Begin { io: Arc::new(io), object, id: 0, heard };
        let (answer, kept) = submit(library, kept, |kept, completion| {
            // SAFETY: what is kept is there, and stays where it is until the operation is done. `heard` stays until the watch has
            // ended and nothing calls back any more.
            unsafe {
                let Begin { io, object, id, heard } = &mut *kept;
                let (io, object, heard) = (io.handle, object.as_ptr(), heard.cast_mut().cast());
                // As long as the cluster has it by itself.
                (library.aio_watch2)(io, object, completion, id, said, lost, 0, heard)
            }
        })
        .await;
        let Some(Begin { io, object, id, heard }) = kept else {
            return Err(Failure::NOT_CONNECTED);
        };
        match answer {
            Ok(_) => Ok(Self { open: Some(Open { io, object, id, heard }), events }),
            Err(failure) => {
                // There is no watch, but it may have been lost before it was refused.
                let open = Open { io, object, id, heard };
                blocking(move || open.forget()).await;
                Err(failure)
            }
        }
    }

    fn open(&self) -> Result<&Open> {
        self.open.as_ref().ok_or(Failure::NOT_CONNECTED)
    }
}

impl Open {
    /// Ends it, and waits until nothing calls back any more.
    async fn end(self) -> Result<()> {
        let (library, id) = (self.io.cluster.0.library, self.id);
        let ended = submit(library, self.io.clone(), |io, completion| {
            // SAFETY: what is kept is there. The watch is one of this pool, and was not ended yet.
            unsafe { (library.aio_unwatch)((&*io).handle, id, completion) }
        });
        let (answer, _) = ended.await;
        blocking(move || self.forget()).await;
        answer.map(drop)
    }

    /// Frees what was called back with, once nothing is under way.
    fn forget(self) {
        let cluster = &self.io.cluster.0;
        // SAFETY: the connection is open. Afterwards no callback of an ended watch is under way or comes, so what they were
        // given can go.
        unsafe {
            (cluster.library.watch_flush)(cluster.handle);
            drop(Box::from_raw(self.heard.cast_mut()));
        }
    }
}

impl Watch for PoolWatch {
    fn id(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.id)
    }

    async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    async fn answer(&self, said: u64, answer: Vec<u8>) -> Result<()> {
        let Open { io, object, id, .. } = self.open()?;
        let (io, object, id) = (io.clone(), object.clone(), *id);
        let length = c_int::try_from(answer.len()).map_err(|_| Failure::INVALID)?;
        blocking(move || {
            let start = answer.as_ptr().cast();
            // SAFETY: the pool is open; the name ends with a zero byte; there are as many bytes as said, which are copied.
            let answered = unsafe {
                let library = io.cluster.0.library;
                (library.notify_ack)(io.handle, object.as_ptr(), said, id, start, length)
            };
            Failure::check(answered).map(drop)
        })
        .await
    }

    async fn close(mut self) -> Result<()> {
        match self.open.take() {
            // In a task of its own, which ends it whoever stops waiting.
            Some(open) => tokio::spawn(open.end()).await.unwrap_or(Err(Failure::NOT_CONNECTED)),
            None => Ok(()),
        }
    }
}

impl Drop for PoolWatch {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else { return };
        // Nobody waits for it; without a runtime the cluster forgets it when the connection ends.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(open.end());
        }
    }
}

impl fmt::Debug for PoolWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolWatch({})", self.id())
    }
}

/// Called on a thread of librados for each thing that is said. It must not wait for anything.
unsafe extern "C" fn said(
    heard: *mut c_void,
    said: u64,
    _watch: u64,
    client: u64,
    bytes: *mut c_void,
    length: usize,
) {
    // SAFETY: `heard` is what `begin` made, and is there until no callback comes any more. The bytes are there during the call.
    let (heard, bytes) = unsafe { (&*heard.cast::<Heard>(), copied(bytes.cast(), length)) };
    let _ = heard.said.try_send(Event::Said { said, client, bytes });
}

/// Called on a thread of librados when the watch is lost.
unsafe extern "C" fn lost(heard: *mut c_void, _watch: u64, error: c_int) {
    // SAFETY: as above.
    let heard = unsafe { &*heard.cast::<Heard>() };
    if let Some(room) = heard.lost.lock().take() {
        room.send(Event::Lost(Failure(error.saturating_neg())));
    }
}
