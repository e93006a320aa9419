//! [`Gate`]: I/O passes it side by side, an operation closes it and has the image to itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closer_waits_for_those_inside_and_keeps_newcomers_out() {
        let gate = Arc::new(Gate::default());
        let inside = gate.enter().await;
        let mut closing = Box::pin(gate.clone().close());
        assert!(futures::poll!(&mut closing).is_pending());
        assert!(gate.try_enter().is_none());
        drop(inside);
        let closed = closing.await;
        assert!(gate.try_enter().is_none());
        drop(closed);
        assert!(gate.try_enter().is_some());
    }

    #[tokio::test]
    async fn a_closer_that_gives_up_opens_the_gate_again() {
        let gate = Arc::new(Gate::default());
        let inside = gate.enter().await;
        let mut closing = Box::pin(gate.clone().close());
        assert!(futures::poll!(&mut closing).is_pending());
        let mut waiting = Box::pin(gate.enter());
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(closing);
        drop(waiting.await);
        drop(inside);
        assert_eq!(gate.state.load(Ordering::SeqCst), 0);
    }

    /// Whether anybody was ever inside while the gate was closed, by a closer that waits or one that does not.
    async fn somebody_is_inside(waits: bool) -> bool {
        let gate = Arc::new(Gate::default());
        let mut found = false;
        let inside = Arc::new(AtomicUsize::new(0));
        let users: Vec<_> = (0..8)
            .map(|_| {
                let (gate, inside) = (gate.clone(), inside.clone());
                tokio::spawn(async move {
                    for _ in 0..2_000 {
                        let _pass = gate.enter().await;
                        inside.fetch_add(1, Ordering::SeqCst);
                        tokio::task::yield_now().await;
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for _ in 0..200 {
            let closing = gate.clone().close();
            let _closed = if waits { closing.await } else { closed_at_once(&gate) };
            found |= inside.load(Ordering::SeqCst) > 0;
            tokio::task::yield_now().await;
        }
        for user in users {
            user.await.unwrap();
        }
        found
    }

    /// A mistake: nobody waits for those inside.
    fn closed_at_once(gate: &Arc<Gate>) -> Closed {
        gate.state.fetch_or(CLOSED, Ordering::AcqRel);
        Closed(gate.clone())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nobody_is_inside_while_it_is_closed() {
        assert!(!somebody_is_inside(true).await);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_gate_that_closes_on_those_inside_is_found() {
        assert!(somebody_is_inside(false).await);
    }
}
