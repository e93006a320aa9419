//! [`PacedCatalog`]: an engine that lets others run before each of its calls acts, and that watches its callers.
//!
//! An engine in memory answers at once, so whoever uses it from several tasks sees them one after another. Paced, each call
//! but that to close becomes a place at which a test can put others in between. A call that waits has not begun: the engine knows
//! nothing of it, and dropped it never happens.
//!
//! What the contract asks of callers is asserted: no mutation of a head beside a commit, no read of it beside a reclaim.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use crate::Result;
use crate::around::{AroundCatalog, Call, Watch};

/// How an engine is paced. Clones share it.
#[derive(Clone)]
pub struct Pace {
    pauses: Arc<dyn Fn() -> u32 + Send + Sync>,
    states_wait: bool,
}

impl Pace {
    /// Each call lets others run as often as `pauses` says at that moment. States are never in memory, so that asking for them
    /// is such a call too.
    pub fn new(pauses: impl Fn() -> u32 + Send + Sync + 'static) -> Self {
        Self { pauses: Arc::new(pauses), states_wait: true }
    }

    /// The same, but states are in memory wherever the engine has them there.
    #[must_use]
    pub fn with_states_in_memory(self) -> Self {
        Self { states_wait: false, ..self }
    }

    async fn pause(&self) {
        let mut left = (self.pauses)();
        std::future::poll_fn(|cx| {
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pace").field("states_wait", &self.states_wait).finish_non_exhaustive()
    }
}

/// A catalog that is paced, as are all layers and heads that come from it.
pub type PacedCatalog<C> = AroundCatalog<C, Pace>;

/// Calls of a head and its layer that were made and have not returned.
#[derive(Clone, Debug, Default)]
pub struct UnderWay(Arc<Kinds>);

#[derive(Debug, Default)]
struct Kinds {
    reads: AtomicUsize,
    mutations: AtomicUsize,
}

impl UnderWay {
    fn enter(&self, call: Call) -> Entered {
        let this = Entered(self.clone(), call);
        if let Some(count) = this.count() {
            count.fetch_add(1, Ordering::SeqCst);
        }
        this
    }

    fn expect_what_the_contract_asks(&self, call: Call) {
        let none = |count: &AtomicUsize, what: &str| {
            assert_eq!(count.load(Ordering::SeqCst), 0, "the contract does not allow {what}");
        };
        match call {
            Call::Reclaim => none(&self.0.reads, "a read beside a reclaim"),
            Call::Commit => none(&self.0.mutations, "a mutation beside a commit"),
            _ => {}
        }
    }
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Entered(UnderWay, Call);

impl Entered {
    fn count(&self) -> Option<&AtomicUsize> {
        match self.1 {
            Call::Read(_) => Some(&self.0.0.reads),
            Call::Write(_) | Call::Fill(_) | Call::Set(_) => Some(&self.0.0.mutations),
            _ => None,
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(count) = self.count() {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Watch for Pace {
    type Of = UnderWay;
    type During = Entered;

    const NAME: &'static str = "Paced";

    async fn before(&self, under_way: &UnderWay, call: Call) -> Result<Entered> {
        let entered = under_way.enter(call);
        if call != Call::Close {
            self.pause().await;
        }
        under_way.expect_what_the_contract_asks(call);
        Ok(entered)
    }

    fn has_memory(&self) -> bool {
        !self.states_wait
    }
}
