//! [`Counter`]: how much of something a process has, for whoever ends when there is none any more.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// Counts what lasts as long as a [`Counted`].
#[derive(Debug, Default)]
pub struct Counter {
    count: Mutex<usize>,
    fewer: Condvar,
}

impl Counter {
    /// None so far.
    pub const fn new() -> Self {
        Self { count: Mutex::new(0), fewer: Condvar::new() }
    }

    /// One more, until it is dropped.
    pub fn count(&'static self) -> Counted {
        *self.count.lock() += 1;
        Counted(self)
    }

    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        *self.count.lock() == 0
    }

    /// Waits until there is none, or until then.
    pub fn wait_for_none(&self, until: Instant) {
        let mut count = self.count.lock();
        while *count > 0 && !self.fewer.wait_until(&mut count, until).timed_out() {}
    }
}

/// One that is counted.
#[derive(Debug)]
pub struct Counted(&'static Counter);

impl Drop for Counted {
    fn drop(&mut self) {
        *self.0.count.lock() -= 1;
        self.0.fewer.notify_all();
    }
}
