//! [`AroundCatalog`]: an engine with something done before and after each of its calls.
//!
//! Handing calls on stands here, once. What is done around them is a [`Watch`]: one that counts is in [`count`](crate::count), one
//! that lets calls fail or wait in [`fault`](crate::fault), one that lets others run in between in [`paced`](crate::paced).

use std::fmt;
use std::future::Future;
use std::ops::Range;

use vellum_core::{Buffer, Extent, ImageName, Runs};

use crate::{
    Capabilities, Catalog, Change, ChildRef, Committed, Content, Durability, Fill, Finding,
    Guarded, Head, HeadChange, Heeded, ImageId, ImageRecord, Known, Layer, NewImage, Ownership,
    Pending, PoolId, Prepared, Progress, Repair, Requests, Reserved, Result, RevisionId, SetTo,
    TryRead, Version, Wanted, Write,
};

/// A call that may wait or fail. Numbers are bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// [`Catalog::create`], [`Catalog::change`], [`Catalog::remove`], [`Catalog::attach`], [`Catalog::detach`].
    Record,
    /// Any other of a [`Catalog`].
    Catalog,
    /// [`Layer::load_states`].
    LoadStates(u64),
    /// [`Layer::read`].
    Read(u64),
    /// [`Head::write`].
    Write(u64),
    /// [`Head::fill`]. Zeros do not count as bytes.
    Fill(u64),
    /// [`Head::set`].
    Set(u64),
    /// [`Head::reclaim`].
    Reclaim,
    /// [`Head::sync`].
    Sync,
    /// [`Head::prepare`].
    Prepare,
    /// [`Prepared::commit`].
    Commit,
    /// [`Head::close`]. It has begun before anything is done.
    Close,
}

/// What is done around calls.
pub trait Watch: Clone + Send + Sync + 'static {
    /// What is known of a head, its layer and its prepared change, which share it; of a catalog; of any other layer.
    type Of: Clone + Default + fmt::Debug + Send + Sync + 'static;

    /// What is kept while a call is under way.
    type During: Send;

    /// The name of what is wrapped so, for `Debug`.
    const NAME: &'static str;

    /// Before a call. With an error the call is not made; dropped, it never happens.
    fn before(
        &self,
        of: &Self::Of,
        call: Call,
    ) -> impl Future<Output = Result<Self::During>> + Send;

    /// After a call, with its answer.
    fn after<T>(
        &self,
        of: &Self::Of,
        call: Call,
        during: Self::During,
        answer: Result<T>,
    ) -> Result<T> {
        let _ = (of, call, during);
        answer
    }

    /// Whether callers find states and data in memory at all.
    fn has_memory(&self) -> bool {
        true
    }

    /// [`Layer::try_read`] was answered.
    fn tried(&self, at: Extent) {
        let _ = at;
    }
}

/// Boxed, since a future that holds another one has room for it twice.
fn around<W: Watch, T: Send>(
    watch: &W,
    of: &W::Of,
    call: Call,
    go: impl Future<Output = Result<T>> + Send,
) -> impl Future<Output = Result<T>> + Send {
    let go = Box::pin(go);
    async move {
        let during = watch.before(of, call).await?;
        watch.after(of, call, during, go.await)
    }
}

/// A catalog that is watched.
#[derive(Clone)]
pub struct AroundCatalog<C, W: Watch> {
    inner: C,
    watch: W,
    of: W::Of,
}

/// A layer that is watched.
#[derive(Clone)]
pub struct AroundLayer<L, W: Watch> {
    inner: L,
    watch: W,
    of: W::Of,
}

/// A head that is watched.
#[derive(Clone)]
pub struct AroundHead<H: Head, W: Watch> {
    inner: H,
    layer: AroundLayer<H::Layer, W>,
}

/// A change that is ready, of a head that is watched.
pub struct AroundPrepared<P, W: Watch> {
    inner: P,
    watch: W,
    of: W::Of,
}

impl<C: Catalog, W: Watch> AroundCatalog<C, W> {
    /// Watches what is asked of `inner`.
    pub fn new(inner: C, watch: W) -> Self {
        Self { inner, watch, of: W::Of::default() }
    }

    fn record<T: Send>(
        &self,
        go: impl Future<Output = Result<T>> + Send,
    ) -> impl Future<Output = Result<T>> + Send {
        around(&self.watch, &self.of, Call::Record, go)
    }

    fn cold<T: Send>(
        &self,
        go: impl Future<Output = Result<T>> + Send,
    ) -> impl Future<Output = Result<T>> + Send {
        around(&self.watch, &self.of, Call::Catalog, go)
    }

    fn layer_of(&self, inner: C::Layer) -> AroundLayer<C::Layer, W> {
        AroundLayer::new(inner, self.watch.clone())
    }

    fn head_of(&self, inner: C::Head) -> AroundHead<C::Head, W> {
        AroundHead::new(inner, self.watch.clone())
    }
}

impl<L, W: Watch> AroundLayer<L, W> {
    fn new(inner: L, watch: W) -> Self {
        Self { inner, watch, of: W::Of::default() }
    }
}

impl<H: Head, W: Watch> AroundHead<H, W> {
    fn new(inner: H, watch: W) -> Self {
        let layer = AroundLayer::new(inner.layer().clone(), watch);
        Self { inner, layer }
    }

    fn around<T: Send>(
        &self,
        call: Call,
        go: impl Future<Output = Result<T>> + Send,
    ) -> impl Future<Output = Result<T>> + Send {
        around(&self.layer.watch, &self.layer.of, call, go)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<C: Catalog, W: Watch> Catalog for AroundCatalog<C, W> {
    type Layer = AroundLayer<C::Layer, W>;
    type Head = AroundHead<C::Head, W>;

    fn pool(&self) -> PoolId {
        self.inner.pool()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn create(&self, new: NewImage) -> impl Future<Output = Result<ImageRecord>> + Send {
        self.record(self.inner.create(new))
    }

    fn unused_id(&self) -> ImageId {
        self.inner.unused_id()
    }

    fn reserve(&self, id: &ImageId) -> impl Future<Output = Result<Reserved>> + Send {
        self.inner.reserve(id)
    }

    fn is_gone(&self, id: &ImageId) -> impl Future<Output = Result<bool>> + Send {
        self.cold(self.inner.is_gone(id))
    }

    fn find(&self, name: &ImageName) -> impl Future<Output = Result<ImageRecord>> + Send {
        self.cold(self.inner.find(name))
    }

    fn get(&self, id: &ImageId) -> impl Future<Output = Result<ImageRecord>> + Send {
        self.cold(self.inner.get(id))
    }

    fn list(
        &self,
        after: Option<&ImageName>,
        max: usize,
    ) -> impl Future<Output = Result<Vec<ImageRecord>>> + Send {
        self.cold(self.inner.list(after, max))
    }

    fn change(
        &self,
        id: &ImageId,
        at: Version,
        change: Change,
    ) -> impl Future<Output = Result<ImageRecord>> + Send {
        self.record(self.inner.change(id, at, change))
    }

    fn remove(&self, id: &ImageId, at: Version) -> impl Future<Output = Result<()>> + Send {
        self.record(self.inner.remove(id, at))
    }

    fn attach(
        &self,
        image: &ImageId,
        revision: &RevisionId,
        child: &ChildRef,
    ) -> impl Future<Output = Result<()>> + Send {
        self.record(self.inner.attach(image, revision, child))
    }

    fn detach(
        &self,
        image: &ImageId,
        revision: &RevisionId,
        child: &ChildRef,
    ) -> impl Future<Output = Result<()>> + Send {
        self.record(self.inner.detach(image, revision, child))
    }

    fn children(
        &self,
        image: &ImageId,
    ) -> impl Future<Output = Result<Vec<(RevisionId, ChildRef)>>> + Send {
        self.cold(self.inner.children(image))
    }

    fn pending(&self) -> impl Future<Output = Result<Vec<Pending>>> + Send {
        self.cold(self.inner.pending())
    }

    fn resume(&self, pending: &Pending) -> impl Future<Output = Result<()>> + Send {
        self.cold(self.inner.resume(pending))
    }

    async fn layer(&self, image: &ImageId, revision: &RevisionId) -> Result<Self::Layer> {
        Ok(self.layer_of(self.cold(self.inner.layer(image, revision)).await?))
    }

    async fn read_head(&self, image: &ImageId) -> Result<Self::Layer> {
        Ok(self.layer_of(self.cold(self.inner.read_head(image)).await?))
    }

    async fn own(&self, image: &ImageId) -> Result<Self::Head> {
        Ok(self.head_of(self.cold(self.inner.own(image)).await?))
    }

    fn ask_owner(
        &self,
        image: &ImageId,
        wanted: Wanted,
        progress: Progress<'_>,
    ) -> impl Future<Output = Result<Heeded>> + Send {
        self.cold(self.inner.ask_owner(image, wanted, progress))
    }

    async fn filler(&self, image: &ImageId, revision: &RevisionId) -> Result<Self::Head> {
        Ok(self.head_of(self.cold(self.inner.filler(image, revision)).await?))
    }

    fn check(
        &self,
        image: Option<&ImageId>,
        repair: Repair,
    ) -> impl Future<Output = Result<Vec<Finding>>> + Send {
        self.cold(self.inner.check(image, repair))
    }

    fn stored_bytes(
        &self,
        image: &ImageId,
        revision: &RevisionId,
    ) -> impl Future<Output = Result<u64>> + Send {
        self.cold(self.inner.stored_bytes(image, revision))
    }
}

#[deny(clippy::missing_trait_methods)]
impl<L: Layer, W: Watch> Layer for AroundLayer<L, W> {
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
        if self.watch.has_memory() {
            return self.inner.states(at, runs_max, out);
        }
        out.clear();
        Known::Part
    }

    fn load_states(
        &self,
        at: Extent,
        runs_max: usize,
        out: &mut Runs,
    ) -> impl Future<Output = Result<()>> + Send {
        let call = Call::LoadStates(at.length());
        around(&self.watch, &self.of, call, self.inner.load_states(at, runs_max, out))
    }

    fn try_read(&self, at: Extent, buffer: &mut [u8], out: &mut Runs) -> TryRead {
        if !self.watch.has_memory() {
            return TryRead::WouldWait;
        }
        let answer = self.inner.try_read(at, buffer, out);
        if answer == TryRead::Done {
            self.watch.tried(at);
        }
        answer
    }

    async fn read(&self, at: Extent, buffer: Buffer, into: Range<usize>) -> (Buffer, Result<Runs>) {
        let call = Call::Read(at.length());
        match self.watch.before(&self.of, call).await {
            Err(error) => (buffer, Err(error)),
            Ok(during) => {
                let (buffer, answer) = Box::pin(self.inner.read(at, buffer, into)).await;
                (buffer, self.watch.after(&self.of, call, during, answer))
            }
        }
    }
}

#[deny(clippy::missing_trait_methods)]
impl<H: Head, W: Watch> Head for AroundHead<H, W> {
    type Layer = AroundLayer<H::Layer, W>;
    type Prepared = AroundPrepared<H::Prepared, W>;

    fn layer(&self) -> &Self::Layer {
        &self.layer
    }

    fn must_fill_first(&self, at: Extent) -> bool {
        self.inner.must_fill_first(at)
    }

    fn write(&self, write: Write) -> impl Future<Output = Result<Guarded>> + Send {
        self.around(Call::Write(write.data.len() as u64), self.inner.write(write))
    }

    fn fill(&self, fill: Fill) -> impl Future<Output = Result<Guarded>> + Send {
        let data = fill.parts.iter().filter(|part| matches!(part.content, Content::Data(_)));
        let call = Call::Fill(data.map(|part| part.at.length()).sum());
        self.around(call, self.inner.fill(fill))
    }

    fn set(
        &self,
        at: Extent,
        to: SetTo,
        durability: Durability,
    ) -> impl Future<Output = Result<Guarded>> + Send {
        self.around(Call::Set(at.length()), self.inner.set(at, to, durability))
    }

    fn reclaim(&self) -> impl Future<Output = Result<u64>> + Send {
        self.around(Call::Reclaim, self.inner.reclaim())
    }

    fn sync(&self) -> impl Future<Output = Result<()>> + Send {
        self.around(Call::Sync, self.inner.sync())
    }

    fn unsynced_bytes(&self) -> u64 {
        self.inner.unsynced_bytes()
    }

    fn wants_reclaim(&self) -> bool {
        self.inner.wants_reclaim()
    }

    async fn prepare(&self, change: HeadChange) -> Result<Self::Prepared> {
        let inner = self.around(Call::Prepare, self.inner.prepare(change)).await?;
        let AroundLayer { watch, of, .. } = self.layer.clone();
        Ok(AroundPrepared { inner, watch, of })
    }

    fn ownership(&self) -> Ownership {
        self.inner.ownership()
    }

    fn requests(&self) -> Requests {
        self.inner.requests()
    }

    /// At once: who begins to close an image gives it up, whether it waits for the answer or not.
    fn close(self) -> impl Future<Output = Result<()>> + Send {
        let Self { inner, layer } = self;
        let closing = inner.close();
        async move { around(&layer.watch, &layer.of, Call::Close, closing).await }
    }
}

impl<P, H, W> Prepared for AroundPrepared<P, W>
where
    P: Prepared<Head = H>,
    H: Head<Prepared = P>,
    W: Watch,
{
    type Head = AroundHead<H, W>;

    async fn commit(self) -> Result<Committed<AroundHead<H, W>>> {
        let Self { inner, watch, of } = self;
        let Committed { record, successor } =
            around(&watch, &of, Call::Commit, inner.commit()).await?;
        Ok(Committed { record, successor: successor.map(|head| AroundHead::new(head, watch)) })
    }
}

fn named<W: Watch>(inner: &dyn fmt::Debug, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.debug_tuple(W::NAME).field(inner).finish()
}

impl<C: fmt::Debug, W: Watch> fmt::Debug for AroundCatalog<C, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        named::<W>(&self.inner, f)
    }
}

impl<L: fmt::Debug, W: Watch> fmt::Debug for AroundLayer<L, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        named::<W>(&self.inner, f)
    }
}

impl<H: Head, W: Watch> fmt::Debug for AroundHead<H, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        named::<W>(&self.inner, f)
    }
}

impl<P: fmt::Debug, W: Watch> fmt::Debug for AroundPrepared<P, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        named::<W>(&self.inner, f)
    }
}
