//! [`PacedCatalog`]: an engine that lets others run before each of its calls acts, and that watches its callers.
//!
//! An engine in memory answers at once, so whoever uses it from several tasks sees them one after another. Paced, each call
//! but that to close becomes a place at which a test can put others in between. A call that waits has not begun: the engine knows
//! nothing of it, and dropped it never happens.
//!
//! What the contract asks of callers is asserted: no mutation of a head beside a commit, no read of it beside a reclaim.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use vellum_core::{Buffer, Extent, ImageName, Runs};

use crate::{
    Capabilities, Catalog, Change, ChildRef, Committed, Durability, Fill, Finding, Guarded, Head,
    HeadChange, ImageId, ImageRecord, Known, Layer, NewImage, Ownership, Pending, PoolId, Prepared,
    Repair, Reserved, Result, RevisionId, SetTo, TryRead, Version, Write,
};

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

    async fn before<T: Send>(&self, call: impl Future<Output = T> + Send) -> T {
        self.pause().await;
        call.await
    }
}

impl fmt::Debug for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pace").field("states_wait", &self.states_wait).finish_non_exhaustive()
    }
}

/// Calls that were made and have not returned.
#[derive(Clone, Debug, Default)]
struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn enter(&self) -> Entered<'_> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Entered(self)
    }

    fn expect_none(&self, what: &str) {
        assert_eq!(self.0.load(Ordering::SeqCst), 0, "the contract does not allow {what}");
    }
}

struct Entered<'a>(&'a UnderWay);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A catalog that is paced.
#[derive(Clone, Debug)]
pub struct PacedCatalog<C> {
    inner: C,
    pace: Pace,
}

/// A layer that is paced.
#[derive(Clone, Debug)]
pub struct PacedLayer<L> {
    inner: L,
    pace: Pace,
    reads: UnderWay,
}

/// A head that is paced.
#[derive(Clone, Debug)]
pub struct PacedHead<H: Head> {
    inner: H,
    layer: PacedLayer<H::Layer>,
    mutations: UnderWay,
}

/// A change that is ready, and paced.
#[derive(Debug)]
pub struct PacedPrepared<P> {
    inner: P,
    pace: Pace,
    mutations: UnderWay,
}

impl<C: Catalog> PacedCatalog<C> {
    /// Paces `inner`.
    pub fn new(inner: C, pace: Pace) -> Self {
        Self { inner, pace }
    }

    fn layer_of(&self, inner: C::Layer) -> PacedLayer<C::Layer> {
        PacedLayer::new(inner, self.pace.clone())
    }
}

impl<L> PacedLayer<L> {
    fn new(inner: L, pace: Pace) -> Self {
        Self { inner, pace, reads: UnderWay::default() }
    }
}

impl<H: Head> PacedHead<H> {
    fn new(inner: H, pace: Pace) -> Self {
        let layer = PacedLayer::new(inner.layer().clone(), pace);
        Self { inner, layer, mutations: UnderWay::default() }
    }

    fn pace(&self) -> &Pace {
        &self.layer.pace
    }

    async fn change<T: Send>(&self, call: impl Future<Output = T> + Send) -> T {
        let _under_way = self.mutations.enter();
        self.pace().before(call).await
    }
}

#[deny(clippy::missing_trait_methods)]
impl<C: Catalog> Catalog for PacedCatalog<C> {
    type Layer = PacedLayer<C::Layer>;
    type Head = PacedHead<C::Head>;

    fn pool(&self) -> PoolId {
        self.inner.pool()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn create(&self, new: NewImage) -> impl Future<Output = Result<ImageRecord>> + Send {
        self.pace.before(self.inner.create(new))
    }

    fn unused_id(&self) -> ImageId {
        self.inner.unused_id()
    }

    fn reserve(&self, id: &ImageId) -> Result<Reserved> {
        self.inner.reserve(id)
    }

    fn is_gone(&self, id: &ImageId) -> impl Future<Output = Result<bool>> + Send {
        self.pace.before(self.inner.is_gone(id))
    }

    fn find(&self, name: &ImageName) -> impl Future<Output = Result<ImageRecord>> + Send {
        self.pace.before(self.inner.find(name))
    }

    fn get(&self, id: &ImageId) -> impl Future<Output = Result<ImageRecord>> + Send {
        self.pace.before(self.inner.get(id))
    }

    fn list(
        &self,
        after: Option<&ImageName>,
        max: usize,
    ) -> impl Future<Output = Result<Vec<ImageRecord>>> + Send {
        self.pace.before(self.inner.list(after, max))
    }

    fn change(
        &self,
        id: &ImageId,
        at: Version,
        change: Change,
    ) -> impl Future<Output = Result<ImageRecord>> + Send {
        self.pace.before(self.inner.change(id, at, change))
    }

    fn remove(&self, id: &ImageId, at: Version) -> impl Future<Output = Result<()>> + Send {
        self.pace.before(self.inner.remove(id, at))
    }

    fn attach(
        &self,
        image: &ImageId,
        revision: &RevisionId,
        child: &ChildRef,
    ) -> impl Future<Output = Result<()>> + Send {
        self.pace.before(self.inner.attach(image, revision, child))
    }

    fn detach(
        &self,
        image: &ImageId,
        revision: &RevisionId,
        child: &ChildRef,
    ) -> impl Future<Output = Result<()>> + Send {
        self.pace.before(self.inner.detach(image, revision, child))
    }

    fn children(
        &self,
        image: &ImageId,
    ) -> impl Future<Output = Result<Vec<(RevisionId, ChildRef)>>> + Send {
        self.pace.before(self.inner.children(image))
    }

    fn pending(&self) -> impl Future<Output = Result<Vec<Pending>>> + Send {
        self.pace.before(self.inner.pending())
    }

    fn resume(&self, pending: &Pending) -> impl Future<Output = Result<()>> + Send {
        self.pace.before(self.inner.resume(pending))
    }

    async fn layer(&self, image: &ImageId, revision: &RevisionId) -> Result<Self::Layer> {
        let layer = self.pace.before(self.inner.layer(image, revision)).await?;
        Ok(self.layer_of(layer))
    }

    async fn read_head(&self, image: &ImageId) -> Result<Self::Layer> {
        let layer = self.pace.before(self.inner.read_head(image)).await?;
        Ok(self.layer_of(layer))
    }

    async fn own(&self, image: &ImageId) -> Result<Self::Head> {
        let head = self.pace.before(self.inner.own(image)).await?;
        Ok(PacedHead::new(head, self.pace.clone()))
    }

    async fn filler(&self, image: &ImageId, revision: &RevisionId) -> Result<Self::Head> {
        let head = self.pace.before(self.inner.filler(image, revision)).await?;
        Ok(PacedHead::new(head, self.pace.clone()))
    }

    fn check(
        &self,
        image: Option<&ImageId>,
        repair: Repair,
    ) -> impl Future<Output = Result<Vec<Finding>>> + Send {
        self.pace.before(self.inner.check(image, repair))
    }

    fn stored_bytes(
        &self,
        image: &ImageId,
        revision: &RevisionId,
    ) -> impl Future<Output = Result<u64>> + Send {
        self.pace.before(self.inner.stored_bytes(image, revision))
    }
}

#[deny(clippy::missing_trait_methods)]
impl<L: Layer> Layer for PacedLayer<L> {
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
        if self.pace.states_wait {
            out.clear();
            return Known::Part;
        }
        self.inner.states(at, runs_max, out)
    }

    fn load_states(
        &self,
        at: Extent,
        runs_max: usize,
        out: &mut Runs,
    ) -> impl Future<Output = Result<()>> + Send {
        self.pace.before(self.inner.load_states(at, runs_max, out))
    }

    fn try_read(&self, at: Extent, buffer: &mut [u8], out: &mut Runs) -> TryRead {
        if self.pace.states_wait {
            return TryRead::WouldWait;
        }
        self.inner.try_read(at, buffer, out)
    }

    async fn read(&self, at: Extent, buffer: Buffer, into: Range<usize>) -> (Buffer, Result<Runs>) {
        let _under_way = self.reads.enter();
        self.pace.before(self.inner.read(at, buffer, into)).await
    }
}

#[deny(clippy::missing_trait_methods)]
impl<H: Head> Head for PacedHead<H> {
    type Layer = PacedLayer<H::Layer>;
    type Prepared = PacedPrepared<H::Prepared>;

    fn layer(&self) -> &Self::Layer {
        &self.layer
    }

    fn must_fill_first(&self, at: Extent) -> bool {
        self.inner.must_fill_first(at)
    }

    fn write(&self, write: Write) -> impl Future<Output = Result<Guarded>> + Send {
        self.change(self.inner.write(write))
    }

    fn fill(&self, fill: Fill) -> impl Future<Output = Result<Guarded>> + Send {
        self.change(self.inner.fill(fill))
    }

    fn set(
        &self,
        at: Extent,
        to: SetTo,
        durability: Durability,
    ) -> impl Future<Output = Result<Guarded>> + Send {
        self.change(self.inner.set(at, to, durability))
    }

    async fn reclaim(&self) -> Result<u64> {
        self.pace().pause().await;
        self.layer.reads.expect_none("a read beside a reclaim");
        self.inner.reclaim().await
    }

    fn sync(&self) -> impl Future<Output = Result<()>> + Send {
        self.pace().before(self.inner.sync())
    }

    fn unsynced_bytes(&self) -> u64 {
        self.inner.unsynced_bytes()
    }

    fn wants_reclaim(&self) -> bool {
        self.inner.wants_reclaim()
    }

    async fn prepare(&self, change: HeadChange) -> Result<Self::Prepared> {
        let inner = self.pace().before(self.inner.prepare(change)).await?;
        Ok(PacedPrepared { inner, pace: self.pace().clone(), mutations: self.mutations.clone() })
    }

    fn ownership(&self) -> Ownership {
        self.inner.ownership()
    }

    /// At once: who begins to close an image gives it up, whether it waits for the answer or not.
    fn close(self) -> impl Future<Output = Result<()>> + Send {
        self.inner.close()
    }
}

impl<P, H> Prepared for PacedPrepared<P>
where
    P: Prepared<Head = H>,
    H: Head<Prepared = P>,
{
    type Head = PacedHead<H>;

    async fn commit(self) -> Result<Committed<PacedHead<H>>> {
        self.pace.pause().await;
        self.mutations.expect_none("a mutation beside a commit");
        let Committed { record, successor } = self.inner.commit().await?;
        let pace = self.pace;
        Ok(Committed { record, successor: successor.map(|head| PacedHead::new(head, pace)) })
    }
}
