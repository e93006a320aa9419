//! The requests of one connection that are under way, worked on by the connection's own task.
//!
//! A task for each would let them run on other threads, which a connection does not have; and making one costs a twentieth
//! of a small write.

use std::future::{Future, poll_fn};
use std::task::{Context, Poll};

use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;

/// Requests under way. They make progress while [`UnderWay::run`] or [`UnderWay::end`] is polled.
pub(super) struct UnderWay<F>(Mutex<FuturesUnordered<F>>);

impl<F> Default for UnderWay<F> {
    fn default() -> Self {
        Self(Mutex::new(FuturesUnordered::new()))
    }
}

impl<F: Future<Output = ()>> UnderWay<F> {
    pub(super) fn add(&self, request: F) {
        self.0.lock().push(request);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Works on them, and on those added meanwhile, for ever. Wakes the task once more when none is left.
    pub(super) async fn run(&self) {
        poll_fn(|cx| {
            if !self.is_empty() && self.work(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
            Poll::<()>::Pending
        })
        .await;
    }

    /// Works on them until none is left.
    pub(super) async fn end(&self) {
        poll_fn(|cx| self.work(cx)).await;
    }

    /// Works on those that can go on; ready when none is left.
    fn work(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut requests = self.0.lock();
        while let Some(()) = std::task::ready!(requests.poll_next_unpin(cx)) {}
        Poll::Ready(())
    }
}
