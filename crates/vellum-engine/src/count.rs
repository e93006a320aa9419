//! [`CountCatalog`]: an engine that counts what is asked of it.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vellum_core::Extent;

use crate::Result;
use crate::around::{AroundCatalog, Call, Watch};
#[cfg(doc)]
use crate::{Catalog, Head, Layer};

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(usize)]
pub enum Operation {
    /// [`Layer::read`]; bytes are those of the extent.
    Read,
    /// [`Layer::try_read`] that was answered; bytes likewise.
    TryRead,
    /// [`Layer::load_states`].
    LoadStates,
    /// [`Head::write`]; bytes are those of the data.
    Write,
    /// [`Head::fill`]; bytes are those of the parts that hold data.
    Fill,
    /// [`Head::set`]; bytes are those of the extent.
    Set,
    /// [`Head::sync`].
    Sync,
    /// Any call of a [`Catalog`] that reads or changes records, or opens what it has.
    Catalog,
}

const OPERATIONS: usize = Operation::Catalog as usize + 1;

/// The counts of an engine and of all layers and heads that came from it. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<[Count; OPERATIONS]>);

#[derive(Debug, Default)]
struct Count {
    calls: AtomicU64,
    bytes: AtomicU64,
}

impl Counts {
    /// How often an operation was called.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.0[operation as usize].calls.load(Ordering::Relaxed)
    }

    /// How many bytes it was called for, in all.
    pub fn bytes(&self, operation: Operation) -> u64 {
        self.0[operation as usize].bytes.load(Ordering::Relaxed)
    }

    /// Begins again at zero.
    pub fn reset(&self) {
        for count in self.0.iter() {
            count.calls.store(0, Ordering::Relaxed);
            count.bytes.store(0, Ordering::Relaxed);
        }
    }

    fn add(&self, operation: Operation, bytes: u64) {
        self.0[operation as usize].calls.fetch_add(1, Ordering::Relaxed);
        self.0[operation as usize].bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A catalog, counted, with all layers and heads that come from it.
pub type CountCatalog<C> = AroundCatalog<C, Counts>;

impl Watch for Counts {
    type Of = ();
    type During = ();

    const NAME: &'static str = "Count";

    async fn before(&self, (): &(), call: Call) -> Result<()> {
        let (operation, bytes) = match call {
            Call::Record | Call::Catalog => (Operation::Catalog, 0),
            Call::LoadStates(bytes) => (Operation::LoadStates, bytes),
            Call::Read(bytes) => (Operation::Read, bytes),
            Call::Write(bytes) => (Operation::Write, bytes),
            Call::Fill(bytes) => (Operation::Fill, bytes),
            Call::Set(bytes) => (Operation::Set, bytes),
            Call::Sync => (Operation::Sync, 0),
            Call::Reclaim | Call::Prepare | Call::Commit | Call::Close => return Ok(()),
        };
        self.add(operation, bytes);
        Ok(())
    }

    fn tried(&self, at: Extent) {
        self.add(Operation::TryRead, at.length());
    }
}
