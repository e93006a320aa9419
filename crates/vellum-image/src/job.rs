//! [`Job`]: work that takes long, shows its progress and can be stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vellum_engine::{Error, ErrorKind, Result};

/// The reins of something that takes long. Clones hold the same reins.
#[derive(Clone, Debug, Default)]
pub struct Job(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
}

/// How far a job has come, in bytes of the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Looked at so far.
    pub done: u64,
    /// To look at in all; 0 before it is known.
    pub total: u64,
}

impl Job {
    /// Asks it to stop at the next convenient point. What was done stays done, and is not done again when it is started anew.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        Progress {
            done: self.0.done.load(Ordering::Relaxed),
            total: self.0.total.load(Ordering::Relaxed),
        }
    }

    /// `Stopped` if it was asked to stop.
    pub(crate) fn check(&self) -> Result<()> {
        if self.0.stop.load(Ordering::Relaxed) {
            return Err(Error::new(
                ErrorKind::Stopped,
                "stopped, as asked; start it again to go on",
            ));
        }
        Ok(())
    }

    pub(crate) fn set_total(&self, total: u64) {
        self.0.total.store(total, Ordering::Relaxed);
    }

    pub(crate) fn set_done(&self, done: u64) {
        self.0.done.store(done, Ordering::Relaxed);
    }
}
