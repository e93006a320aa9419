//! Adaptive polling: a connection looks for the next request for a moment before it sleeps.
//!
//! To be woken costs tens of microseconds, on both sides, and more in a virtual machine. While a client works through a batch
//! of replies, the next requests are about that far away. So a thread that has nothing to do keeps looking for them, as long as
//! looking paid the last time; QEMU's I/O threads do the same (its `poll-max-ns`). A client that is idle is never looked for
//! twice, and never do more than half of the CPUs look. Decision 0041 has the figures.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

/// How many threads of a server may look at once.
#[derive(Debug)]
pub(super) struct Lookouts {
    free: AtomicUsize,
}

impl Lookouts {
    /// Half of the CPUs: whoever is waited for needs some.
    pub(super) fn new() -> Arc<Self> {
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
        Self::of(cpus / 2)
    }

    fn of(free: usize) -> Arc<Self> {
        Arc::new(Self { free: AtomicUsize::new(free) })
    }

    fn take(self: &Arc<Self>) -> Option<Lookout> {
        let less = |free: usize| free.checked_sub(1);
        let taken = self.free.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        taken.is_ok().then(|| Lookout(self.clone()))
    }
}

/// One that looks.
#[derive(Debug)]
struct Lookout(Arc<Lookouts>);

impl Drop for Lookout {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::AcqRel);
    }
}

/// How one connection waits.
#[derive(Debug)]
pub(super) struct Polling {
    lookouts: Arc<Lookouts>,
    max: Duration,
    /// The last wait was short enough to look for its end.
    pays: bool,
}

impl Polling {
    /// Looks for up to `max`; never, if that is zero.
    pub(super) fn new(lookouts: Arc<Lookouts>, max: Duration) -> Self {
        Self { lookouts, max, pays: false }
    }

    /// Waits for `step`. While the connection is idle, that is, while only its client can have something to do, it may look for
    /// it; other tasks of the thread go on. Whoever makes the connection idle must wake the task.
    pub(super) async fn wait<T>(
        &mut self,
        step: impl Future<Output = T>,
        is_idle: impl Fn() -> bool,
    ) -> T {
        tokio::pin!(step);
        let (mut idle_since, mut lookout) = (None, None);
        loop {
            if let Poll::Ready(done) = futures::poll!(step.as_mut()) {
                if let Some(since) = idle_since {
                    self.pays = Instant::elapsed(&since) < self.max;
                }
                return done;
            }
            if !is_idle() {
                (idle_since, lookout) = (None, None);
                futures::pending!();
                continue;
            }
            let waited = idle_since.get_or_insert_with(Instant::now).elapsed();
            lookout = match lookout {
                _ if !self.pays || waited >= self.max => None,
                None => self.lookouts.take(),
                looking => looking,
            };
            match lookout {
                Some(_) => tokio::task::yield_now().await,
                None => futures::pending!(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    /// Ready when it is looked at for the third time, and wakes nobody.
    fn third_look() -> impl Future<Output = ()> {
        let mut looks = 0;
        poll_fn(move |_| {
            looks += 1;
            if looks == 3 { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    /// Whether a wait looks by itself: a timeout that ends makes one sleep see the second look, not the third.
    async fn looks(polling: &mut Polling, is_idle: bool) -> bool {
        let wait = polling.wait(third_look(), || is_idle);
        tokio::time::timeout(Duration::from_millis(10), wait).await.is_ok()
    }

    #[tokio::test]
    async fn a_wait_that_was_short_makes_the_next_one_look() {
        let mut polling = Polling::new(Lookouts::of(1), LONG);
        assert!(!looks(&mut polling, true).await);
        polling.wait(tokio::task::yield_now(), || true).await;
        assert!(looks(&mut polling, true).await);
    }

    #[tokio::test]
    async fn a_wait_that_was_long_lets_the_next_one_sleep() {
        let max = Duration::from_millis(1);
        let mut polling = Polling { lookouts: Lookouts::of(1), max, pays: true };
        polling.wait(tokio::time::sleep(2 * max), || true).await;
        assert!(!polling.pays);
        assert!(!looks(&mut polling, true).await);
    }

    #[tokio::test]
    async fn nobody_looks_while_the_server_has_something_to_do() {
        let mut polling = Polling { lookouts: Lookouts::of(1), max: LONG, pays: true };
        assert!(!looks(&mut polling, false).await);
    }

    #[tokio::test]
    async fn looking_ends_when_it_has_not_paid() {
        let mut polling = Polling { lookouts: Lookouts::of(1), max: Duration::ZERO, pays: true };
        assert!(!looks(&mut polling, true).await);
    }

    #[tokio::test]
    async fn no_more_look_than_there_is_room_for() {
        let lookouts = Lookouts::of(1);
        let mut polling = Polling { lookouts: lookouts.clone(), max: LONG, pays: true };
        let taken = lookouts.take();
        assert!(!looks(&mut polling, true).await);
        drop(taken);
        assert!(looks(&mut polling, true).await);
        assert!(lookouts.take().is_some(), "a wait that ended gives its place back");
    }
}
