//! [`Either`]: pools of two engines side by side, as one engine.
//!
//! A program that has pools of two engines names one type for them, so that an image in a pool of one can have a parent in a pool of
//! the other. Nothing happens here but to hand each call on. What the left engine does costs no more than without this; each call of
//! the right one has an allocation of its own, so that the larger futures of an engine that waits for a network are not part of all.

use std::ops::Range;

use vellum_core::{Buffer, Extent, ImageName, Runs};

use crate::{
    Capabilities, Catalog, Change, ChildRef, Committed, Durability, Fill, Finding, Guarded, Head,
    HeadChange, Heeded, ImageId, ImageRecord, Known, Layer, NewImage, Ownership, Pending, PoolId,
    Prepared, Progress, Repair, Requests, Reserved, Result, RevisionId, SetTo, TryRead, Version,
    Wanted, Write,
};

/// Something of the one engine or of the other: a pool, an open revision, a head, or a change of one that is prepared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Either<L, R> {
    /// Of the first engine.
    Left(L),
    /// Of the second one.
    Right(R),
}

use Either::{Left, Right};

impl<L, R> Either<L, R> {
    /// What is of the first engine.
    pub fn left(&self) -> Option<&L> {
        if let Left(left) = self { Some(left) } else { None }
    }

    /// What is of the second one.
    pub fn right(&self) -> Option<&R> {
        if let Right(right) = self { Some(right) } else { None }
    }
}

/// The same expression over whichever it is, at once.
macro_rules! call {
    ($either:expr, $it:ident => $call:expr) => {
        match $either {
            Left($it) => $call,
            Right($it) => $call,
        }
    };
}

/// The same future over whichever it is.
macro_rules! wait {
    ($either:expr, $it:ident => $call:expr) => {
        match $either {
            Left($it) => $call.await,
            Right($it) => Box::pin($call).await,
        }
    };
}

impl<L: Catalog, R: Catalog> Catalog for Either<L, R> {
    type Layer = Either<L::Layer, R::Layer>;
    type Head = EitherHead<L::Head, R::Head>;

    fn pool(&self) -> PoolId {
        call!(self, it => it.pool())
    }

    fn capabilities(&self) -> &Capabilities {
        call!(self, it => it.capabilities())
    }

    async fn create(&self, new: NewImage) -> Result<ImageRecord> {
        wait!(self, it => it.create(new))
    }

    fn unused_id(&self) -> ImageId {
        call!(self, it => it.unused_id())
    }

    async fn reserve(&self, id: &ImageId) -> Result<Reserved> {
        wait!(self, it => it.reserve(id))
    }

    async fn is_gone(&self, id: &ImageId) -> Result<bool> {
        wait!(self, it => it.is_gone(id))
    }

    async fn find(&self, name: &ImageName) -> Result<ImageRecord> {
        wait!(self, it => it.find(name))
    }

    async fn get(&self, id: &ImageId) -> Result<ImageRecord> {
        wait!(self, it => it.get(id))
    }

    async fn list(&self, after: Option<&ImageName>, max: usize) -> Result<Vec<ImageRecord>> {
        wait!(self, it => it.list(after, max))
    }

    async fn change(&self, id: &ImageId, at: Version, change: Change) -> Result<ImageRecord> {
        wait!(self, it => it.change(id, at, change))
    }

    async fn remove(&self, id: &ImageId, at: Version) -> Result<()> {
        wait!(self, it => it.remove(id, at))
    }

    async fn attach(&self, image: &ImageId, revision: &RevisionId, child: &ChildRef) -> Result<()> {
        wait!(self, it => it.attach(image, revision, child))
    }

    async fn detach(&self, image: &ImageId, revision: &RevisionId, child: &ChildRef) -> Result<()> {
        wait!(self, it => it.detach(image, revision, child))
    }

    async fn children(&self, image: &ImageId) -> Result<Vec<(RevisionId, ChildRef)>> {
        wait!(self, it => it.children(image))
    }

    async fn pending(&self) -> Result<Vec<Pending>> {
        wait!(self, it => it.pending())
    }

    async fn resume(&self, pending: &Pending) -> Result<()> {
        wait!(self, it => it.resume(pending))
    }

    async fn layer(&self, image: &ImageId, revision: &RevisionId) -> Result<Self::Layer> {
        Ok(match self {
            Left(it) => Left(it.layer(image, revision).await?),
            Right(it) => Right(Box::pin(it.layer(image, revision)).await?),
        })
    }

    async fn read_head(&self, image: &ImageId) -> Result<Self::Layer> {
        Ok(match self {
            Left(it) => Left(it.read_head(image).await?),
            Right(it) => Right(Box::pin(it.read_head(image)).await?),
        })
    }

    async fn own(&self, image: &ImageId) -> Result<Self::Head> {
        Ok(EitherHead::new(match self {
            Left(it) => Left(it.own(image).await?),
            Right(it) => Right(Box::pin(it.own(image)).await?),
        }))
    }

    async fn ask_owner(
        &self,
        image: &ImageId,
        wanted: Wanted,
        progress: Progress<'_>,
    ) -> Result<Heeded> {
        wait!(self, it => it.ask_owner(image, wanted, progress))
    }

    async fn filler(&self, image: &ImageId, revision: &RevisionId) -> Result<Self::Head> {
        Ok(EitherHead::new(match self {
            Left(it) => Left(it.filler(image, revision).await?),
            Right(it) => Right(Box::pin(it.filler(image, revision)).await?),
        }))
    }

    async fn check(&self, image: Option<&ImageId>, repair: Repair) -> Result<Vec<Finding>> {
        wait!(self, it => it.check(image, repair))
    }

    async fn stored_bytes(&self, image: &ImageId, revision: &RevisionId) -> Result<u64> {
        wait!(self, it => it.stored_bytes(image, revision))
    }
}

impl<L: Layer, R: Layer> Layer for Either<L, R> {
    fn revision(&self) -> &RevisionId {
        call!(self, it => it.revision())
    }

    fn size(&self) -> u64 {
        call!(self, it => it.size())
    }

    fn unit(&self) -> u64 {
        call!(self, it => it.unit())
    }

    fn states(&self, at: Extent, runs_max: usize, out: &mut Runs) -> Known {
        call!(self, it => it.states(at, runs_max, out))
    }

    async fn load_states(&self, at: Extent, runs_max: usize, out: &mut Runs) -> Result<()> {
        wait!(self, it => it.load_states(at, runs_max, out))
    }

    fn try_read(&self, at: Extent, buffer: &mut [u8], out: &mut Runs) -> TryRead {
        call!(self, it => it.try_read(at, buffer, out))
    }

    async fn read(&self, at: Extent, buffer: Buffer, into: Range<usize>) -> (Buffer, Result<Runs>) {
        wait!(self, it => it.read(at, buffer, into))
    }
}

/// The writer of an image of either engine.
#[derive(Clone, Debug)]
pub struct EitherHead<L: Head, R: Head> {
    head: Either<L, R>,
    layer: Either<L::Layer, R::Layer>,
}

impl<L: Head, R: Head> EitherHead<L, R> {
    fn new(head: Either<L, R>) -> Self {
        let layer = match &head {
            Left(head) => Left(head.layer().clone()),
            Right(head) => Right(head.layer().clone()),
        };
        Self { head, layer }
    }
}

impl<L: Head, R: Head> Head for EitherHead<L, R> {
    type Layer = Either<L::Layer, R::Layer>;
    type Prepared = Either<L::Prepared, R::Prepared>;

    fn layer(&self) -> &Self::Layer {
        &self.layer
    }

    fn must_fill_first(&self, at: Extent) -> bool {
        call!(&self.head, it => it.must_fill_first(at))
    }

    async fn write(&self, write: Write) -> Result<Guarded> {
        wait!(&self.head, it => it.write(write))
    }

    async fn fill(&self, fill: Fill) -> Result<Guarded> {
        wait!(&self.head, it => it.fill(fill))
    }

    async fn set(&self, at: Extent, to: SetTo, durability: Durability) -> Result<Guarded> {
        wait!(&self.head, it => it.set(at, to, durability))
    }

    async fn reclaim(&self) -> Result<u64> {
        wait!(&self.head, it => it.reclaim())
    }

    async fn sync(&self) -> Result<()> {
        wait!(&self.head, it => it.sync())
    }

    fn unsynced_bytes(&self) -> u64 {
        call!(&self.head, it => it.unsynced_bytes())
    }

    fn wants_reclaim(&self) -> bool {
        call!(&self.head, it => it.wants_reclaim())
    }

    async fn prepare(&self, change: HeadChange) -> Result<Self::Prepared> {
        Ok(match &self.head {
            Left(it) => Left(it.prepare(change).await?),
            Right(it) => Right(Box::pin(it.prepare(change)).await?),
        })
    }

    fn ownership(&self) -> Ownership {
        call!(&self.head, it => it.ownership())
    }

    fn requests(&self) -> Requests {
        call!(&self.head, it => it.requests())
    }

    async fn close(self) -> Result<()> {
        drop(self.layer);
        wait!(self.head, it => it.close())
    }
}

impl<L: Prepared, R: Prepared> Prepared for Either<L, R>
where
    L::Head: Head,
    R::Head: Head,
{
    type Head = EitherHead<L::Head, R::Head>;

    async fn commit(self) -> Result<Committed<Self::Head>> {
        Ok(match self {
            Left(it) => of(it.commit().await?, Left),
            Right(it) => of(Box::pin(it.commit()).await?, Right),
        })
    }
}

/// What was committed, with its successor as a head of either engine.
fn of<H, L: Head, R: Head>(
    committed: Committed<H>,
    side: impl FnOnce(H) -> Either<L, R>,
) -> Committed<EitherHead<L, R>> {
    let Committed { record, successor } = committed;
    Committed { record, successor: successor.map(|head| EitherHead::new(side(head))) }
}
