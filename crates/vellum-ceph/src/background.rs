//! [`Background`]: the runtime on which a pool's images go on when a request is over.
//!
//! A watch is heard for as long as its image is open, and an image that was dropped is given back. Both belong to the pool and not
//! to the request that began them, whose runtime may end with a connection. And a process that ends too early leaves watches behind,
//! for whose answers others wait; so what is under way is counted.

use std::future::Future;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;

/// What is under way in this process, of all pools.
static UNDER_WAY: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// Where a pool's tasks run. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Background(Handle);

impl Background {
    /// The runtime that this is called on, which must last as long as the pool.
    pub(crate) fn here() -> Self {
        Self(Handle::current())
    }

    /// Lets something run to its end. Where the runtime has ended, it is dropped.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let counted = Counted::new();
        self.0.spawn(async move {
            let _counted = counted;
            task.await;
        });
    }
}

struct Counted;

impl Counted {
    fn new() -> Self {
        *UNDER_WAY.0.lock() += 1;
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        *UNDER_WAY.0.lock() -= 1;
        UNDER_WAY.1.notify_all();
    }
}

/// Waits until all pools that this process had open, and dropped, have let go of their images and of their clusters, or so much time
/// has passed. Their runtime must still run, on other threads. Who ends before leaves watches, and maybe a lock, that the cluster
/// forgets after half a minute; others wait for as long.
pub fn wait_for_pools(patience: Duration) {
    let until = Instant::now() + patience;
    let mut under_way = UNDER_WAY.0.lock();
    while *under_way > 0 && !UNDER_WAY.1.wait_until(&mut under_way, until).timed_out() {}
    drop(under_way);
    vellum_rados::librados::wait_for_connections(until.saturating_duration_since(Instant::now()));
}
