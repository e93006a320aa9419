//! [`Faults`]: what happens to which call. Knows no engine.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

#[cfg(doc)]
use crate::{Catalog, Head, Layer, Prepared};
use crate::{Error, ErrorKind};

/// Where something can be made to happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operation {
    /// [`Layer::read`] and [`Layer::load_states`].
    Read,
    /// [`Head::write`].
    Write,
    /// [`Head::fill`].
    Fill,
    /// [`Head::set`].
    Set,
    /// [`Head::sync`]. A failure poisons the head.
    Sync,
    /// [`Prepared::commit`].
    Commit,
    /// [`Catalog::create`], [`Catalog::change`], [`Catalog::remove`], [`Catalog::attach`], [`Catalog::detach`].
    Catalog,
    /// Any other call of a [`Catalog`].
    Look,
}

/// When an injected error happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// Instead of the operation, which has no effect.
    Instead,
    /// After the operation took effect: it may have happened, as far as the caller can tell.
    Afterwards,
}

/// What happens where. Clones share one plan; an engine with an empty one behaves as the engine below.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Vec<Fault>>>);

#[derive(Clone, Debug)]
struct Fault {
    operation: Operation,
    /// How many calls go well before it strikes.
    skip: u64,
    what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Fail(ErrorKind, When),
    Pause(Pause),
}

/// A call that waits until it is told to go on.
#[derive(Clone, Debug, Default)]
pub struct Pause(Arc<PauseState>);

#[derive(Debug)]
struct PauseState {
    reached: Notify,
    released: Semaphore,
}

impl Default for PauseState {
    fn default() -> Self {
        Self { reached: Notify::new(), released: Semaphore::new(0) }
    }
}

impl Pause {
    /// Waits until a call has come to it.
    pub async fn reached(&self) {
        self.0.reached.notified().await;
    }

    /// Lets that call, and any that would come, go on.
    pub fn release(&self) {
        self.0.released.close();
    }

    pub(super) async fn wait(&self) {
        self.0.reached.notify_one();
        let _ = self.0.released.acquire().await;
    }
}

impl Faults {
    /// Makes the call after `skip` calls of an operation fail, once.
    pub fn fail(&self, operation: Operation, skip: u64, kind: ErrorKind, when: When) {
        self.0.lock().push(Fault { operation, skip, what: What::Fail(kind, when) });
    }

    /// Makes the next call of an operation wait before the engine knows of it, once. Dropped there, it never happens.
    pub fn pause(&self, operation: Operation) -> Pause {
        self.pause_after(operation, 0)
    }

    /// As [`pause`](Self::pause), after `skip` calls of the operation.
    pub fn pause_after(&self, operation: Operation, skip: u64) -> Pause {
        let pause = Pause::default();
        self.0.lock().push(Fault { operation, skip, what: What::Pause(pause.clone()) });
        pause
    }

    /// Forgets what has not happened yet.
    pub fn clear(&self) {
        self.0.lock().clear();
    }

    pub(super) fn next(&self, operation: Operation) -> Option<What> {
        let mut faults = self.0.lock();
        let index = faults.iter().position(|fault| fault.operation == operation)?;
        if faults[index].skip > 0 {
            faults[index].skip -= 1;
            return None;
        }
        Some(faults.remove(index).what)
    }
}

pub(super) fn injected(kind: ErrorKind) -> Error {
    Error::new(kind, "a fault that a test asked for")
}
