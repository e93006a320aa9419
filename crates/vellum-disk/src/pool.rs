//! [`Pool`]: threads that may block, so that no runtime thread does.
//!
//! They belong to nobody else: a full queue of slow syncs elsewhere in the program cannot delay a read here. A job that was
//! handed over runs to its end, whoever stops waiting for its answer.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

/// A thread without work for this long ends; the next job starts one again.
const IDLE_MAX: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// A bounded number of threads and their queue. Clones share them; they end when they are idle.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    threads_max: usize,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Pool {
    /// A pool that grows to this many threads as it is needed.
    pub(crate) fn new(threads_max: usize) -> Self {
        let threads_max = threads_max.max(1);
        Self(Arc::new(Shared { state: Mutex::default(), work: Condvar::new(), threads_max }))
    }

    /// Hands a job over. The queue itself has no limit: whoever submits is bounded by the requests it admits.
    ///
    /// # Panics
    /// If the first thread cannot be started, since nothing could ever run then.
    pub(crate) fn submit<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (send, answer) = oneshot::channel();
        let job: Job = Box::new(move || {
            let _ = send.send(job());
        });
        let mut state = self.0.state.lock();
        state.queue.push_back(job);
        if state.idle >= state.queue.len() {
            drop(state);
            self.0.work.notify_one();
        } else if state.threads < self.0.threads_max {
            state.threads += 1;
            let alone = state.threads == 1;
            drop(state);
            self.start(alone);
        }
        answer
    }

    /// Runs a job and waits for its answer.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        self.submit(job)
            .await
            .expect("a thread of the pool answers every job, for none of them panics")
    }

    fn start(&self, alone: bool) {
        let shared = self.0.clone();
        let started =
            std::thread::Builder::new().name("vellum-disk".to_owned()).spawn(move || work(&shared));
        if let Err(error) = started {
            self.0.state.lock().threads -= 1;
            assert!(!alone, "cannot start a thread for file I/O: {error}");
        }
    }
}

fn work(shared: &Shared) {
    let mut state = shared.state.lock();
    loop {
        if let Some(job) = state.queue.pop_front() {
            drop(state);
            job();
            state = shared.state.lock();
            continue;
        }
        state.idle += 1;
        let timed_out = shared.work.wait_for(&mut state, IDLE_MAX).timed_out();
        state.idle -= 1;
        if timed_out && state.queue.is_empty() {
            state.threads -= 1;
            return;
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state.lock();
        write!(
            f,
            "Pool({} of {} threads, {} jobs queued)",
            state.threads,
            self.0.threads_max,
            state.queue.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn jobs_run_though_nobody_waits_for_them() {
        let pool = Pool::new(2);
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..100 {
            let done = done.clone();
            drop(pool.submit(move || done.fetch_add(1, Ordering::SeqCst)));
        }
        while done.load(Ordering::SeqCst) < 100 {
            tokio::task::yield_now().await;
        }
        assert!(pool.0.state.lock().threads <= 2);
    }

    #[tokio::test]
    async fn a_slow_job_does_not_hold_up_the_others() {
        let pool = Pool::new(2);
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let slow = pool.submit(move || wait.recv().is_ok());
        for number in 0..50 {
            assert_eq!(pool.run(move || number).await, number);
        }
        release.send(()).unwrap();
        assert!(slow.await.unwrap());
    }

    #[test]
    fn one_pool_serves_many_runtimes() {
        let pool = Pool::new(1);
        for number in 0..3 {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            assert_eq!(runtime.block_on(pool.run(move || number)), number);
        }
    }
}
