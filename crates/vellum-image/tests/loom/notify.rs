//! A stand-in for `tokio::sync::Notify`, as far as the gate uses it: whoever asked to be notified before `notify_waiters` was
//! called is, whether it waited already or not.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use loom::sync::Mutex;

#[derive(Debug)]
pub struct Notify(Mutex<Waiters>);

#[derive(Debug, Default)]
struct Waiters {
    calls: usize,
    wakers: Vec<Waker>,
}

impl Default for Notify {
    fn default() -> Self {
        Self(Mutex::new(Waiters::default()))
    }
}

impl Notify {
    pub fn notified(&self) -> Notified<'_> {
        Notified { calls: self.0.lock().unwrap().calls, notify: self }
    }

    pub fn notify_waiters(&self) {
        let wakers = {
            let mut waiters = self.0.lock().unwrap();
            waiters.calls += 1;
            std::mem::take(&mut waiters.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[derive(Debug)]
pub struct Notified<'a> {
    notify: &'a Notify,
    calls: usize,
}

impl Notified<'_> {
    pub fn enable(self: Pin<&mut Self>) -> bool {
        self.notify.0.lock().unwrap().calls != self.calls
    }
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut waiters = self.notify.0.lock().unwrap();
        if waiters.calls != self.calls {
            return Poll::Ready(());
        }
        waiters.wakers.push(cx.waker().clone());
        Poll::Pending
    }
}
