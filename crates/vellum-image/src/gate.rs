//! [`Gate`]: I/O passes it side by side, an operation closes it and has the image to itself.

use std::sync::Arc;

use super::sync::{AtomicUsize, Notify, Ordering};

/// The lowest bit says "closed", the rest counts passes.
const CLOSED: usize = 1;
const ONE_PASS: usize = 2;

/// Lets any number of requests pass, until an operation closes it, waits for those inside to leave, and opens it again.
///
/// Passing costs two atomic additions. A closed gate keeps newcomers out, so a closer never starves. Closers exclude each
/// other by other means (the image's mutex for operations).
#[derive(Debug, Default)]
pub struct Gate {
    state: AtomicUsize,
    opened: Notify,
    drained: Notify,
}

impl Gate {
    /// Passes, if the gate is open.
    pub fn try_enter(&self) -> Option<Pass<'_>> {
        // The addition comes first, so that a closer either sees this pass or is seen by it.
        let before = self.state.fetch_add(ONE_PASS, Ordering::Acquire);
        let pass = Pass(self);
        if before & CLOSED != 0 {
            return None; // dropping the pass leaves again, and wakes a closer that saw it
        }
        Some(pass)
    }

    /// Passes, waiting while the gate is closed.
    pub async fn enter(&self) -> Pass<'_> {
        loop {
            if let Some(pass) = self.try_enter() {
                return pass;
            }
            let opened = self.opened.notified();
            tokio::pin!(opened);
            opened.as_mut().enable();
            if self.state.load(Ordering::Acquire) & CLOSED != 0 {
                opened.await;
            }
        }
    }

    /// Closes the gate and waits until nobody is inside. It opens again when what is returned is dropped, or when this future
    /// is dropped before it was done.
    ///
    /// # Panics
    /// If it is closed already: closers exclude each other before they come here.
    pub async fn close(self: Arc<Self>) -> Closed {
        let before = self.state.fetch_or(CLOSED, Ordering::AcqRel);
        assert!(before & CLOSED == 0, "a gate is closed by one operation at a time");
        let closed = Closed(self);
        closed.0.wait_until_drained().await;
        closed
    }

    async fn wait_until_drained(&self) {
        loop {
            let drained = self.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            if self.state.load(Ordering::Acquire) == CLOSED {
                return;
            }
            drained.await;
        }
    }
}

/// The right to be inside the gate.
#[derive(Debug)]
#[must_use]
pub struct Pass<'a>(&'a Gate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let before = self.0.state.fetch_sub(ONE_PASS, Ordering::Release);
        if before == ONE_PASS | CLOSED {
            self.0.drained.notify_waiters();
        }
    }
}

/// A closed gate.
#[derive(Debug)]
#[must_use]
pub struct Closed(Arc<Gate>);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.state.fetch_and(!CLOSED, Ordering::Release);
        self.0.opened.notify_waiters();
    }
}
