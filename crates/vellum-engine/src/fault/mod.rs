//! [`FaultCatalog`]: an engine that fails or waits where a test says so.
//!
//! It keeps the contract while it does. A call that is stopped has not begun: the engine knows nothing of it, it holds no
//! range, and dropped it never happens; were it to go on later, it could undo what came after it. A head whose sync
//! failed is poisoned. What never happens here is that data is lost or garbled; that is for a seam below an engine.

mod plan;

#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vellum_core::{Buffer, Extent, ImageName, Runs};

pub use self::plan::{Faults, Operation, Pause, When};
use self::plan::{What, injected};
use crate::head::{Committed, Fill, Guarded, HeadChange, Prepared, SetTo, Write};
use crate::{
    Capabilities, Catalog, Change, ChildRef, Durability, Error, ErrorKind, Finding, Head, ImageId,
    ImageRecord, Known, Layer, NewImage, Ownership, Pending, PoolId, Repair, Reserved, Result,
    RevisionId, TryRead, Version,
};

/// A catalog with faults.
#[derive(Clone)]
pub struct FaultCatalog<C> {
    inner: C,
    faults: Faults,
}

/// A layer with faults.
#[derive(Clone)]
pub struct FaultLayer<L> {
    inner: L,
    faults: Faults,
}

/// A head with faults.
#[derive(Clone)]
pub struct FaultHead<H: Head> {
    inner: H,
    layer: FaultLayer<H::Layer>,
    faults: Faults,
    /// Set when a sync was made to fail.
    poisoned: Arc<AtomicBool>,
}

/// A change that is ready, with faults.
#[derive(Debug)]
pub struct FaultPrepared<P> {
    inner: P,
    faults: Faults,
}

impl<C: Catalog> FaultCatalog<C> {
    /// Lets `faults` strike `inner`.
    pub fn new(inner: C, faults: Faults) -> Self {
        Self { inner, faults }
    }

    fn layer_of(&self, inner: C::Layer) -> FaultLayer<C::Layer> {
        FaultLayer { inner, faults: self.faults.clone() }
    }
}

impl<H: Head> FaultHead<H> {
    fn new(inner: H, faults: Faults) -> Self {
        let layer = FaultLayer { inner: inner.layer().clone(), faults: faults.clone() };
        Self { inner, layer, faults, poisoned: Arc::default() }
    }

    /// Makes a change, unless the head is poisoned.
    async fn change<T: Send>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        self.check_poison()?;
        self.faults.around(operation, call).await
    }

    fn check_poison(&self) -> Result<()> {
        if !self.poisoned.load(Ordering::SeqCst) {
            return Ok(());
        }
        let what = "a sync failed, as a test asked for; close the image and open it again";
        Err(Error::new(ErrorKind::Poisoned, what))
    }
}

impl<C: fmt::Debug> fmt::Debug for FaultCatalog<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FaultCatalog").field(&self.inner).finish()
    }
}

impl<L: fmt::Debug> fmt::Debug for FaultLayer<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FaultLayer").field(&self.inner).finish()
    }
}

impl<H: Head> fmt::Debug for FaultHead<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FaultHead").field(&self.inner).finish()
    }
}

#[deny(clippy::missing_trait_methods)]
impl<C: Catalog> Catalog for FaultCatalog<C> {
    type Layer = FaultLayer<C::Layer>;
    type Head = FaultHead<C::Head>;

    fn pool(&self) -> PoolId {
        self.inner.pool()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn create(&self, new: NewImage) -> impl Future<Output = Result<ImageRecord>> + Send {
        self.faults.around(Operation::Catalog, self.inner.create(new))
    }

    fn unused_id(&self) -> ImageId {
        self.inner.unused_id()
    }

    fn reserve(&self, id: &ImageId) -> Result<Reserved> {
        self.inner.reserve(id)
    }

    fn is_gone(&self, id: &ImageId) -> impl Future<Output = Result<bool>> + Send {
        self.inner.is_gone(id)
    }

    fn find(&self, name: &ImageName) -> impl Future<Output = Result<ImageRecord>> + Send {
        self.inner.find(name)
    }

    fn get(&self, id: &ImageId) -> impl Future<Output = Result<ImageRecord>> + Send {
        self.inner.get(id)
    }

    fn list(
        &self,
        after: Option<&ImageName>,
        max: usize,
    ) -> impl Future<Output = Result<Vec<ImageRecord>>> + Send {
        self.inner.list(after, max)
    }

    fn change(
        &self,
        id: &ImageId,
        at: Version,
        change: Change,
    ) -> impl Future<Output = Result<ImageRecord>> + Send {
        self.faults.around(Operation::Catalog, self.inner.change(id, at, change))
    }

    fn remove(&self, id: &ImageId, at: Version) -> impl Future<Output = Result<()>> + Send {
        self.faults.around(Operation::Catalog, self.inner.remove(id, at))
    }

    fn attach(
        &self,
        image: &ImageId,
        revision: &RevisionId,
        child: &ChildRef,
    ) -> impl Future<Output = Result<()>> + Send {
        self.faults.around(Operation::Catalog, self.inner.attach(image, revision, child))
    }

    fn detach(
        &self,
        image: &ImageId,
        revision: &RevisionId,
        child: &ChildRef,
    ) -> impl Future<Output = Result<()>> + Send {
        self.faults.around(Operation::Catalog, self.inner.detach(image, revision, child))
    }

    fn children(
        &self,
        image: &ImageId,
    ) -> impl Future<Output = Result<Vec<(RevisionId, ChildRef)>>> + Send {
        self.inner.children(image)
    }

    fn pending(&self) -> impl Future<Output = Result<Vec<Pending>>> + Send {
        self.inner.pending()
    }

    fn resume(&self, pending: &Pending) -> impl Future<Output = Result<()>> + Send {
        self.inner.resume(pending)
    }

    async fn layer(&self, image: &ImageId, revision: &RevisionId) -> Result<Self::Layer> {
        Ok(self.layer_of(self.inner.layer(image, revision).await?))
    }

    async fn read_head(&self, image: &ImageId) -> Result<Self::Layer> {
        Ok(self.layer_of(self.inner.read_head(image).await?))
    }

    async fn own(&self, image: &ImageId) -> Result<Self::Head> {
        Ok(FaultHead::new(self.inner.own(image).await?, self.faults.clone()))
    }

    async fn filler(&self, image: &ImageId, revision: &RevisionId) -> Result<Self::Head> {
        Ok(FaultHead::new(self.inner.filler(image, revision).await?, self.faults.clone()))
    }

    fn check(
        &self,
        image: Option<&ImageId>,
        repair: Repair,
    ) -> impl Future<Output = Result<Vec<Finding>>> + Send {
        self.inner.check(image, repair)
    }

    fn stored_bytes(
        &self,
        image: &ImageId,
        revision: &RevisionId,
    ) -> impl Future<Output = Result<u64>> + Send {
        self.inner.stored_bytes(image, revision)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<L: Layer> Layer for FaultLayer<L> {
    fn revision(&self) -> &RevisionId {
        self.inner.revision()
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn unit(&self) -> u64 {
        self.inner.unit()
    }

    fn states(&self, at: Extent, runs_max: usize, out: &mut Runs) -> Known {
        self.inner.states(at, runs_max, out)
    }

    fn load_states(
        &self,
        at: Extent,
        runs_max: usize,
        out: &mut Runs,
    ) -> impl Future<Output = Result<()>> + Send {
        self.faults.around(Operation::Read, self.inner.load_states(at, runs_max, out))
    }

    fn try_read(&self, at: Extent, buffer: &mut [u8], out: &mut Runs) -> TryRead {
        self.inner.try_read(at, buffer, out)
    }

    async fn read(&self, at: Extent, buffer: Buffer, into: Range<usize>) -> (Buffer, Result<Runs>) {
        match self.faults.next(Operation::Read) {
            Some(What::Fail(kind, _)) => return (buffer, Err(injected(kind))),
            Some(What::Pause(pause)) => pause.wait().await,
            None => {}
        }
        self.inner.read(at, buffer, into).await
    }
}

#[deny(clippy::missing_trait_methods)]
impl<H: Head> Head for FaultHead<H> {
    type Layer = FaultLayer<H::Layer>;
    type Prepared = FaultPrepared<H::Prepared>;

    fn layer(&self) -> &Self::Layer {
        &self.layer
    }

    fn must_fill_first(&self, at: Extent) -> bool {
        self.inner.must_fill_first(at)
    }

    fn write(&self, write: Write) -> impl Future<Output = Result<Guarded>> + Send {
        self.change(Operation::Write, self.inner.write(write))
    }

    fn fill(&self, fill: Fill) -> impl Future<Output = Result<Guarded>> + Send {
        self.change(Operation::Fill, self.inner.fill(fill))
    }

    fn set(
        &self,
        at: Extent,
        to: SetTo,
        durability: Durability,
    ) -> impl Future<Output = Result<Guarded>> + Send {
        self.change(Operation::Set, self.inner.set(at, to, durability))
    }

    async fn reclaim(&self) -> Result<u64> {
        self.check_poison()?;
        self.inner.reclaim().await
    }

    async fn sync(&self) -> Result<()> {
        let result = self.change(Operation::Sync, self.inner.sync()).await;
        if result.is_err() {
            self.poisoned.store(true, Ordering::SeqCst);
        }
        result
    }

    fn unsynced_bytes(&self) -> u64 {
        self.inner.unsynced_bytes()
    }

    fn wants_reclaim(&self) -> bool {
        self.inner.wants_reclaim()
    }

    async fn prepare(&self, change: HeadChange) -> Result<Self::Prepared> {
        self.check_poison()?;
        let inner = self.inner.prepare(change).await?;
        Ok(FaultPrepared { inner, faults: self.faults.clone() })
    }

    fn ownership(&self) -> Ownership {
        self.inner.ownership()
    }

    async fn close(self) -> Result<()> {
        let poison = self.check_poison();
        self.inner.close().await?;
        poison
    }
}

impl<P, H> Prepared for FaultPrepared<P>
where
    P: Prepared<Head = H>,
    H: Head<Prepared = P>,
{
    type Head = FaultHead<H>;

    async fn commit(self) -> Result<Committed<FaultHead<H>>> {
        let commit = self.inner.commit();
        let Committed { record, successor } = self.faults.around(Operation::Commit, commit).await?;
        let faults = self.faults;
        Ok(Committed { record, successor: successor.map(|head| FaultHead::new(head, faults)) })
    }
}
