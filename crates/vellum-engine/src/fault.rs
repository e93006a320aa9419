//! [`FaultCatalog`]: an engine that fails or waits where a test says so.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use vellum_core::{Buffer, Extent, ImageName, Runs};

use crate::head::{Committed, Fill, Guarded, HeadChange, Prepared, SetTo, Write};
use crate::{
    Capabilities, Catalog, Change, ChildRef, Durability, Error, ErrorKind, Head, ImageId,
    ImageRecord, Known, Layer, NewImage, Ownership, Pending, PoolId, Result, RevisionId, TryRead,
    Version,
};

/// Where something can be made to happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operation {
    /// [`Layer::read`] and [`Layer::load_states`].
    Read,
    /// [`Head::write`].
    Write,
    /// [`Head::fill`].
    Fill,
    /// [`Head::set`].
    Set,
    /// [`Head::sync`].
    Sync,
    /// [`Prepared::commit`].
    Commit,
    /// [`Catalog::create`], [`Catalog::change`], [`Catalog::remove`], [`Catalog::attach`], [`Catalog::detach`].
    Catalog,
}

/// When an injected error happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// Instead of the operation, which has no effect.
    Instead,
    /// After the operation took effect: it may have happened, as far as the caller can tell.
    Afterwards,
}

/// What happens where. Clones share one plan; an engine with an empty one behaves as the engine below.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Vec<Fault>>>);

#[derive(Clone, Debug)]
struct Fault {
    operation: Operation,
    /// How many calls go well before it strikes.
    skip: u64,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Fail(ErrorKind, When),
    Pause(Pause),
}

/// A call that waits until it is told to go on.
#[derive(Clone, Debug, Default)]
pub struct Pause(Arc<PauseState>);

#[derive(Debug)]
struct PauseState {
    reached: Notify,
    released: Semaphore,
}

impl Default for PauseState {
    fn default() -> Self {
        Self { reached: Notify::new(), released: Semaphore::new(0) }
    }
}

impl Pause {
    /// Waits until a call has come to it.
    pub async fn reached(&self) {
        self.0.reached.notified().await;
    }

    /// Lets that call, and any that would come, go on.
    pub fn release(&self) {
        self.0.released.close();
    }

    async fn wait(&self) {
        self.0.reached.notify_one();
        let _ = self.0.released.acquire().await;
    }
}

impl Faults {
    /// Makes the call after `skip` calls of an operation fail, once.
    pub fn fail(&self, operation: Operation, skip: u64, kind: ErrorKind, when: When) {
        self.0.lock().push(Fault { operation, skip, what: What::Fail(kind, when) });
    }

    /// Makes the next call of an operation wait before it does anything, once.
    pub fn pause(&self, operation: Operation) -> Pause {
        let pause = Pause::default();
        self.0.lock().push(Fault { operation, skip: 0, what: What::Pause(pause.clone()) });
        pause
    }

    /// Forgets what has not happened yet.
    pub fn clear(&self) {
        self.0.lock().clear();
    }

    fn next(&self, operation: Operation) -> Option<What> {
        let mut faults = self.0.lock();
        let index = faults.iter().position(|fault| fault.operation == operation)?;
        if faults[index].skip > 0 {
            faults[index].skip -= 1;
            return None;
        }
        Some(faults.remove(index).what)
    }

    async fn around<T: Send>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        match self.next(operation) {
            None => call.await,
            Some(What::Pause(pause)) => {
                pause.wait().await;
                call.await
            }
            Some(What::Fail(kind, When::Instead)) => Err(injected(kind)),
            Some(What::Fail(kind, When::Afterwards)) => {
                call.await?;
                Err(injected(kind).maybe_done())
            }
        }
    }
}

fn injected(kind: ErrorKind) -> Error {
    Error::new(kind, "a fault that a test asked for")
}

/// A catalog with faults.
#[derive(Clone, Debug)]
pub struct FaultCatalog<C> {
    inner: C,
    faults: Faults,
}

/// A layer with faults.
#[derive(Clone, Debug)]
pub struct FaultLayer<L> {
    inner: L,
    faults: Faults,
}

/// A head with faults.
#[derive(Clone, Debug)]
pub struct FaultHead<H: Head> {
    inner: H,
    layer: FaultLayer<H::Layer>,
    faults: Faults,
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
        Self { inner, layer, faults }
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
        self.faults.around(Operation::Write, self.inner.write(write))
    }

    fn fill(&self, fill: Fill) -> impl Future<Output = Result<Guarded>> + Send {
        self.faults.around(Operation::Fill, self.inner.fill(fill))
    }

    fn set(
        &self,
        at: Extent,
        to: SetTo,
        durability: Durability,
    ) -> impl Future<Output = Result<Guarded>> + Send {
        self.faults.around(Operation::Set, self.inner.set(at, to, durability))
    }

    fn reclaim(&self) -> impl Future<Output = Result<u64>> + Send {
        self.inner.reclaim()
    }

    fn sync(&self) -> impl Future<Output = Result<()>> + Send {
        self.faults.around(Operation::Sync, self.inner.sync())
    }

    fn unsynced_bytes(&self) -> u64 {
        self.inner.unsynced_bytes()
    }

    fn wants_reclaim(&self) -> bool {
        self.inner.wants_reclaim()
    }

    async fn prepare(&self, change: HeadChange) -> Result<Self::Prepared> {
        let inner = self.inner.prepare(change).await?;
        Ok(FaultPrepared { inner, faults: self.faults.clone() })
    }

    fn ownership(&self) -> Ownership {
        self.inner.ownership()
    }

    fn close(self) -> impl Future<Output = Result<()>> + Send {
        self.inner.close()
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
