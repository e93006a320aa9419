//! [`FaultCatalog`]: an engine that fails or waits where a test says so.
//!
//! It keeps the contract while it does. A call that is stopped has not begun: the engine knows nothing of it, it holds no
//! range, and dropped it never happens; were it to go on later, it could undo what came after it. A head whose sync
//! failed is poisoned. What never happens here is that data is lost or garbled; that is for a seam below an engine.

mod plan;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use self::plan::{Faults, Operation, Pause, When};
use self::plan::{What, injected};
use crate::around::{AroundCatalog, Call, Watch};
use crate::{Error, ErrorKind, Result};

/// A catalog with faults, as have all layers and heads that come from it.
pub type FaultCatalog<C> = AroundCatalog<C, Faults>;

/// Whether a sync of a head was made to fail.
#[derive(Clone, Default, Debug)]
pub struct Poison(Arc<AtomicBool>);

impl Poison {
    fn check(&self) -> Result<()> {
        if !self.0.load(Ordering::SeqCst) {
            return Ok(());
        }
        let what = "a sync failed, as a test asked for; close the image and open it again";
        Err(Error::new(ErrorKind::Poisoned, what))
    }
}

impl Watch for Faults {
    type Of = Poison;
    /// What the call ends with, if it goes well.
    type During = Result<()>;

    const NAME: &'static str = "Fault";

    async fn before(&self, poison: &Poison, call: Call) -> Result<Result<()>> {
        match call {
            Call::Write(_) | Call::Fill(_) | Call::Set(_) => poison.check()?,
            Call::Reclaim | Call::Sync | Call::Prepare => poison.check()?,
            Call::Close => return Ok(poison.check()),
            Call::Record | Call::Catalog | Call::LoadStates(_) | Call::Read(_) | Call::Commit => {}
        }
        match operation(call).and_then(|operation| self.next(operation)) {
            None => {}
            Some(What::Pause(pause)) => pause.wait().await,
            Some(What::Fail(kind, When::Afterwards)) => {
                return Ok(Err(injected(kind).maybe_done()));
            }
            Some(What::Fail(kind, When::Instead)) => {
                poison.0.fetch_or(call == Call::Sync, Ordering::SeqCst);
                return Err(injected(kind));
            }
        }
        Ok(Ok(()))
    }

    fn after<T>(
        &self,
        poison: &Poison,
        call: Call,
        end: Result<()>,
        answer: Result<T>,
    ) -> Result<T> {
        let answer = answer.and_then(|value| end.map(|()| value));
        poison.0.fetch_or(call == Call::Sync && answer.is_err(), Ordering::SeqCst);
        answer
    }
}

fn operation(call: Call) -> Option<Operation> {
    match call {
        Call::Record => Some(Operation::Catalog),
        Call::LoadStates(_) | Call::Read(_) => Some(Operation::Read),
        Call::Write(_) => Some(Operation::Write),
        Call::Fill(_) => Some(Operation::Fill),
        Call::Set(_) => Some(Operation::Set),
        Call::Sync => Some(Operation::Sync),
        Call::Commit => Some(Operation::Commit),
        Call::Catalog => Some(Operation::Look),
        Call::Reclaim | Call::Prepare | Call::Close => None,
    }
}
