//! [`RunToEnd`]: a future that goes on without its caller.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;

/// Wraps a mutation so that it runs to its end once it was polled. Dropped before its end, what is left of it goes on as a
/// task of the runtime it was first polled on, with its buffers, locks and ranges. Dropped before it was ever polled, it
/// never happens.
///
/// Must be polled within a tokio runtime. If that runtime shuts down, so does what is left, but for what the kernel was already
/// given. So whoever ends a runtime of its own, such as that of one connection, first waits for what was started there.
pub struct RunToEnd<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    future: Option<Pin<Box<F>>>,
    runtime: Option<Handle>,
}

impl<F> RunToEnd<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    /// Wraps a future that owns all it needs.
    pub fn new(future: F) -> Self {
        Self { future: Some(Box::pin(future)), runtime: None }
    }
}

impl<F> Future for RunToEnd<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        // Taken out meanwhile: one that panics must not be polled again when it is dropped.
        let mut future = self.future.take().expect("not polled after it was ready");
        let poll = future.as_mut().poll(cx);
        if poll.is_pending() {
            self.future = Some(future);
            if self.runtime.is_none() {
                self.runtime = Some(Handle::current());
            }
        }
        poll
    }
}

impl<F> Drop for RunToEnd<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    fn drop(&mut self) {
        if let (Some(future), Some(runtime)) = (self.future.take(), self.runtime.take()) {
            runtime.spawn(future);
        }
    }
}

impl<F> fmt::Debug for RunToEnd<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunToEnd").field("started", &self.runtime.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    async fn two_steps(steps: Arc<AtomicU32>) {
        steps.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        steps.fetch_add(1, Ordering::SeqCst);
    }

    #[tokio::test]
    async fn dropped_after_its_first_poll_it_goes_on() {
        let steps = Arc::new(AtomicU32::new(0));
        let mut future = Box::pin(RunToEnd::new(two_steps(steps.clone())));
        assert!(futures::poll!(&mut future).is_pending());
        drop(future);
        while steps.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn dropped_before_its_first_poll_it_never_happens() {
        let steps = Arc::new(AtomicU32::new(0));
        drop(RunToEnd::new(two_steps(steps.clone())));
        tokio::task::yield_now().await;
        assert_eq!(steps.load(Ordering::SeqCst), 0);
    }
}
