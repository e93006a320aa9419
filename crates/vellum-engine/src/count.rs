//! [`CountCatalog`]: an engine that counts what is asked of it.

#[cfg(test)]
mod tests;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vellum_core::{Buffer, Extent, ImageName, Runs};

use crate::head::{Committed, Fill, Guarded, HeadChange, Prepared, SetTo, Write};
use crate::{
    Capabilities, Catalog, Change, ChildRef, Content, Durability, Finding, Head, ImageId,
    ImageRecord, Known, Layer, NewImage, Ownership, Pending, PoolId, Repair, Reserved, Result,
    RevisionId, TryRead, Version,
};

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
    /// Any call of a [`Catalog`] that reads or changes records.
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

/// A catalog, counted.
#[derive(Clone)]
pub struct CountCatalog<C> {
    inner: C,
    counts: Counts,
}

/// A layer, counted.
#[derive(Clone)]
pub struct CountLayer<L> {
    inner: L,
    counts: Counts,
}

/// A head, counted.
#[derive(Clone)]
pub struct CountHead<H: Head> {
    inner: H,
    layer: CountLayer<H::Layer>,
    counts: Counts,
}

/// A change that is ready, of a head that is counted.
#[derive(Debug)]
pub struct CountPrepared<P> {
    inner: P,
    counts: Counts,
}

impl<C: Catalog> CountCatalog<C> {
    /// Counts what is asked of `inner`.
    pub fn new(inner: C, counts: Counts) -> Self {
        Self { inner, counts }
    }

    fn cold(&self) -> &C {
        self.counts.add(Operation::Catalog, 0);
        &self.inner
    }

    fn layer_of(&self, inner: C::Layer) -> CountLayer<C::Layer> {
        CountLayer { inner, counts: self.counts.clone() }
    }
}

impl<H: Head> CountHead<H> {
    fn new(inner: H, counts: Counts) -> Self {
        let layer = CountLayer { inner: inner.layer().clone(), counts: counts.clone() };
        Self { inner, layer, counts }
    }
}

impl<C: fmt::Debug> fmt::Debug for CountCatalog<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CountCatalog").field(&self.inner).finish()
    }
}

impl<L: fmt::Debug> fmt::Debug for CountLayer<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CountLayer").field(&self.inner).finish()
    }
}

impl<H: Head> fmt::Debug for CountHead<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CountHead").field(&self.inner).finish()
    }
}

#[deny(clippy::missing_trait_methods)]
impl<C: Catalog> Catalog for CountCatalog<C> {
    type Layer = CountLayer<C::Layer>;
    type Head = CountHead<C::Head>;

    fn pool(&self) -> PoolId {
        self.inner.pool()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn create(&self, new: NewImage) -> impl Future<Output = Result<ImageRecord>> + Send {
        self.cold().create(new)
    }

    fn unused_id(&self) -> ImageId {
        self.inner.unused_id()
    }

    fn reserve(&self, id: &ImageId) -> Result<Reserved> {
        self.inner.reserve(id)
    }

    fn is_gone(&self, id: &ImageId) -> impl Future<Output = Result<bool>> + Send {
        self.cold().is_gone(id)
    }

    fn find(&self, name: &ImageName) -> impl Future<Output = Result<ImageRecord>> + Send {
        self.cold().find(name)
    }

    fn get(&self, id: &ImageId) -> impl Future<Output = Result<ImageRecord>> + Send {
        self.cold().get(id)
    }

    fn list(
        &self,
        after: Option<&ImageName>,
        max: usize,
    ) -> impl Future<Output = Result<Vec<ImageRecord>>> + Send {
        self.cold().list(after, max)
    }

    fn change(
        &self,
        id: &ImageId,
        at: Version,
        change: Change,
    ) -> impl Future<Output = Result<ImageRecord>> + Send {
        self.cold().change(id, at, change)
    }

    fn remove(&self, id: &ImageId, at: Version) -> impl Future<Output = Result<()>> + Send {
        self.cold().remove(id, at)
    }

    fn attach(
        &self,
        image: &ImageId,
        revision: &RevisionId,
        child: &ChildRef,
    ) -> impl Future<Output = Result<()>> + Send {
        self.cold().attach(image, revision, child)
    }

    fn detach(
        &self,
        image: &ImageId,
        revision: &RevisionId,
        child: &ChildRef,
    ) -> impl Future<Output = Result<()>> + Send {
        self.cold().detach(image, revision, child)
    }

    fn children(
        &self,
        image: &ImageId,
    ) -> impl Future<Output = Result<Vec<(RevisionId, ChildRef)>>> + Send {
        self.cold().children(image)
    }

    fn pending(&self) -> impl Future<Output = Result<Vec<Pending>>> + Send {
        self.cold().pending()
    }

    fn resume(&self, pending: &Pending) -> impl Future<Output = Result<()>> + Send {
        self.cold().resume(pending)
    }

    async fn layer(&self, image: &ImageId, revision: &RevisionId) -> Result<Self::Layer> {
        Ok(self.layer_of(self.cold().layer(image, revision).await?))
    }

    async fn read_head(&self, image: &ImageId) -> Result<Self::Layer> {
        Ok(self.layer_of(self.cold().read_head(image).await?))
    }

    async fn own(&self, image: &ImageId) -> Result<Self::Head> {
        Ok(CountHead::new(self.cold().own(image).await?, self.counts.clone()))
    }

    async fn filler(&self, image: &ImageId, revision: &RevisionId) -> Result<Self::Head> {
        Ok(CountHead::new(self.cold().filler(image, revision).await?, self.counts.clone()))
    }

    fn check(
        &self,
        image: Option<&ImageId>,
        repair: Repair,
    ) -> impl Future<Output = Result<Vec<Finding>>> + Send {
        self.cold().check(image, repair)
    }

    fn stored_bytes(
        &self,
        image: &ImageId,
        revision: &RevisionId,
    ) -> impl Future<Output = Result<u64>> + Send {
        self.cold().stored_bytes(image, revision)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<L: Layer> Layer for CountLayer<L> {
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
        self.counts.add(Operation::LoadStates, at.length());
        self.inner.load_states(at, runs_max, out)
    }

    fn try_read(&self, at: Extent, buffer: &mut [u8], out: &mut Runs) -> TryRead {
        let answer = self.inner.try_read(at, buffer, out);
        if answer == TryRead::Done {
            self.counts.add(Operation::TryRead, at.length());
        }
        answer
    }

    fn read(
        &self,
        at: Extent,
        buffer: Buffer,
        into: Range<usize>,
    ) -> impl Future<Output = (Buffer, Result<Runs>)> + Send {
        self.counts.add(Operation::Read, at.length());
        self.inner.read(at, buffer, into)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<H: Head> Head for CountHead<H> {
    type Layer = CountLayer<H::Layer>;
    type Prepared = CountPrepared<H::Prepared>;

    fn layer(&self) -> &Self::Layer {
        &self.layer
    }

    fn must_fill_first(&self, at: Extent) -> bool {
        self.inner.must_fill_first(at)
    }

    fn write(&self, write: Write) -> impl Future<Output = Result<Guarded>> + Send {
        self.counts.add(Operation::Write, write.data.len() as u64);
        self.inner.write(write)
    }

    fn fill(&self, fill: Fill) -> impl Future<Output = Result<Guarded>> + Send {
        let data = fill.parts.iter().filter(|part| matches!(part.content, Content::Data(_)));
        self.counts.add(Operation::Fill, data.map(|part| part.at.length()).sum());
        self.inner.fill(fill)
    }

    fn set(
        &self,
        at: Extent,
        to: SetTo,
        durability: Durability,
    ) -> impl Future<Output = Result<Guarded>> + Send {
        self.counts.add(Operation::Set, at.length());
        self.inner.set(at, to, durability)
    }

    fn reclaim(&self) -> impl Future<Output = Result<u64>> + Send {
        self.inner.reclaim()
    }

    fn sync(&self) -> impl Future<Output = Result<()>> + Send {
        self.counts.add(Operation::Sync, 0);
        self.inner.sync()
    }

    fn unsynced_bytes(&self) -> u64 {
        self.inner.unsynced_bytes()
    }

    fn wants_reclaim(&self) -> bool {
        self.inner.wants_reclaim()
    }

    async fn prepare(&self, change: HeadChange) -> Result<Self::Prepared> {
        let inner = self.inner.prepare(change).await?;
        Ok(CountPrepared { inner, counts: self.counts.clone() })
    }

    fn ownership(&self) -> Ownership {
        self.inner.ownership()
    }

    fn close(self) -> impl Future<Output = Result<()>> + Send {
        self.inner.close()
    }
}

impl<P, H> Prepared for CountPrepared<P>
where
    P: Prepared<Head = H>,
    H: Head<Prepared = P>,
{
    type Head = CountHead<H>;

    async fn commit(self) -> Result<Committed<CountHead<H>>> {
        let Committed { record, successor } = self.inner.commit().await?;
        let counts = self.counts;
        Ok(Committed { record, successor: successor.map(|head| CountHead::new(head, counts)) })
    }
}
