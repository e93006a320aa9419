//! [`Background`]: the runtime on which a pool's images go on when a request is over.
//!
//! A watch is heard for as long as its image is open, and an image that was dropped is given back. Both belong to the pool and not
//! to the request that began them, whose runtime may end with a connection. And a process that ends too early leaves watches behind,
//! for whose answers others wait; so what is under way is counted.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use vellum_rados::counted::Counter;

/// What is under way in this process, of all pools.
static UNDER_WAY: Counter = Counter::new();

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
        let counted = UNDER_WAY.count();
        self.0.spawn(async move {
            let _counted = counted;
            task.await;
        });
    }
}

/// Waits until all pools that this process had open, and dropped, have let go of their images and of their clusters, or so much time
/// has passed. Their runtime must still run, on other threads. Who ends before leaves watches, and maybe a lock, that the cluster
/// forgets after half a minute; others wait for as long.
pub fn wait_for_pools(patience: Duration) {
    let until = Instant::now() + patience;
    UNDER_WAY.wait_for_none(until);
    vellum_rados::librados::wait_for_connections(until.saturating_duration_since(Instant::now()));
}
