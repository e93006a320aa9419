//! [`Catalog`]: the cold half of an engine.

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;

use vellum_core::{Geometry, ImageName, SnapshotName};

use crate::{
    ChildRef, Error, ErrorKind, Finding, Head, Heeded, ImageId, ImageRecord, Layer, Layering,
    ParentLink, PoolId, Progress, Repair, Result, RevisionId, SnapshotId, Version, Wanted,
};

/// The most findings of one check.
pub const FINDINGS_MAX: usize = 10_000;

/// The images of one pool. Clones share the pool.
///
/// Each call is semantic, not a transaction: it ends done, not done, or as something that [`pending`](Self::pending) lists
/// and [`resume`](Self::resume) finishes after a crash. All of them are durable when they return. Callable from any number
/// of tasks and processes at once.
pub trait Catalog: Clone + Send + Sync + std::fmt::Debug + 'static {
    /// What a revision defines.
    type Layer: Layer;
    /// The writer of an image.
    type Head: Head<Layer = Self::Layer>;

    /// Which pool this is.
    fn pool(&self) -> PoolId;

    /// What this engine can and cannot do.
    fn capabilities(&self) -> &Capabilities;

    /// Creates an image whose units are all inherited; a clone is a create with a parent. Costs the same for any size.
    ///
    /// If the parent lives in this pool, the child enters its list in the same step, and the call fails with `NotFound` if
    /// no snapshot names the parent's revision (any more). A parent in another pool must have been [attached](Self::attach)
    /// before. Errors: `Exists` (the name, or the id), `Invalid` (size, geometry or block size outside [`Capabilities`], an
    /// overlap beyond the end of either image), `NotFound`, `NoSpace`.
    fn create(&self, new: NewImage) -> impl Future<Output = Result<ImageRecord>> + Send;

    /// An id that no image of this pool has or had, for [`NewImage::id`].
    fn unused_id(&self) -> ImageId;

    /// Keeps an id for an image that is about to be created, so that nobody takes it for [gone](Self::is_gone) until the answer
    /// is dropped or its process dies. `InUse` if somebody keeps it already.
    fn reserve(&self, id: &ImageId) -> impl Future<Output = Result<Reserved>> + Send;

    /// Whether there is no image with this id, nor will there be: nobody keeps the id, and what a process that died in its
    /// creation left behind can no longer come true. False also where that cannot be made sure, in a pool that is only looked
    /// at.
    fn is_gone(&self, id: &ImageId) -> impl Future<Output = Result<bool>> + Send;

    /// The image of this name. `NotFound` if there is none.
    fn find(&self, name: &ImageName) -> impl Future<Output = Result<ImageRecord>> + Send;

    /// The image with this id. `NotFound` if there is none.
    fn get(&self, id: &ImageId) -> impl Future<Output = Result<ImageRecord>> + Send;

    /// Up to `max` images in the order of their names, beginning after `after`.
    fn list(
        &self,
        after: Option<&ImageName>,
        max: usize,
    ) -> impl Future<Output = Result<Vec<ImageRecord>>> + Send;

    /// Changes what needs no ownership, if the record is still at version `at`; else `Conflict`, and nothing changed.
    /// Returns the new record.
    fn change(
        &self,
        id: &ImageId,
        at: Version,
        change: Change,
    ) -> impl Future<Output = Result<ImageRecord>> + Send;

    /// Removes an image with all it holds, if its record is still at version `at`, else `Conflict`. `HasChildren` if children
    /// hang on a revision of it; `InUse` while it is owned, its head is open for reading, or a revision is being filled. The
    /// entry in its parent's list goes in the same step if the parent lives in this pool; elsewhere the caller
    /// [detaches](Self::detach) it afterwards. An automatic snapshot that loses its last child goes too. Whoever has a sealed
    /// revision open reads what it read before, or `NotFound`.
    fn remove(&self, id: &ImageId, at: Version) -> impl Future<Output = Result<()>> + Send;

    /// Enters a child in the list of a sealed revision. Idempotent. `NotFound` if no snapshot names the revision. Whoever
    /// enters a child before it exists [keeps](Self::reserve) its id until it does: an entry whose child is gone is stale.
    fn attach(
        &self,
        image: &ImageId,
        revision: &RevisionId,
        child: &ChildRef,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Takes a child from the list of a revision; with its last child an automatic snapshot goes, which changes the record.
    /// Idempotent.
    fn detach(
        &self,
        image: &ImageId,
        revision: &RevisionId,
        child: &ChildRef,
    ) -> impl Future<Output = Result<()>> + Send;

    /// The children listed for an image, with the revision each hangs on. An entry may be stale: the list of the parent is
    /// written first on attach and last on detach, so whoever must know asks the child. `NotFound` if there is no such image.
    fn children(
        &self,
        image: &ImageId,
    ) -> impl Future<Output = Result<Vec<(RevisionId, ChildRef)>>> + Send;

    /// What a crash left half done.
    fn pending(&self) -> impl Future<Output = Result<Vec<Pending>>> + Send;

    /// Finishes or undoes one piece of it. Idempotent.
    fn resume(&self, pending: &Pending) -> impl Future<Output = Result<()>> + Send;

    /// Opens a sealed revision. Shared: the same revision opened twice in a process costs its memory once. Takes no lock, and
    /// sees what a [`filler`](Self::filler) defines meanwhile. `Invalid` for the head, `NotFound` for what the image lacks.
    fn layer(
        &self,
        image: &ImageId,
        revision: &RevisionId,
    ) -> impl Future<Output = Result<Self::Layer>> + Send;

    /// Opens the head for reading, as the last writer left it, and keeps writers out for as long as the layer lives.
    /// `InUse` if somebody owns the image.
    fn read_head(&self, image: &ImageId) -> impl Future<Output = Result<Self::Layer>> + Send;

    /// Takes ownership of an image: nobody else can write until the head is closed or dropped, and what the last owner had
    /// in flight has landed. Whatever the last owner left is recovered. `InUse` if somebody owns it or reads its head.
    fn own(&self, image: &ImageId) -> impl Future<Output = Result<Self::Head>> + Send;

    /// Asks whoever owns an image to do something, through the storage, and waits until it is done. Fails as it failed there. Dropped,
    /// it goes on there. `ByNobody` where nobody owns the image, or can be asked.
    fn ask_owner(
        &self,
        image: &ImageId,
        wanted: Wanted,
        progress: Progress<'_>,
    ) -> impl Future<Output = Result<Heeded>> + Send;

    /// A head for a *sealed* revision that takes [`Head::fill`] and [`Head::sync`] only, and answers
    /// [`Guarded::Sealed`](crate::Guarded::Sealed) to all else. What the revision reads as must not change: it is for
    /// copying up what the revision inherits anyway. `InUse` if somebody else fills it, `Invalid` for the head.
    fn filler(
        &self,
        image: &ImageId,
        revision: &RevisionId,
    ) -> impl Future<Output = Result<Self::Head>> + Send;

    /// Compares what the pool records with what it stores: of one image, or of all and of the pool itself. Takes nothing from
    /// anybody who uses an image; what cannot be looked at for that reason is [`Severity::Unknown`](crate::Severity). What
    /// lies in other pools is not looked at. Repairs nothing that could be somebody's data. At most
    /// [`FINDINGS_MAX`] findings, of each kind the first.
    fn check(
        &self,
        image: Option<&ImageId>,
        repair: Repair,
    ) -> impl Future<Output = Result<Vec<Finding>>> + Send;

    /// How many bytes of storage a revision occupies, data and metadata.
    fn stored_bytes(
        &self,
        image: &ImageId,
        revision: &RevisionId,
    ) -> impl Future<Output = Result<u64>> + Send;
}

/// An id that is kept, for as long as this lives.
#[derive(Debug)]
#[must_use]
pub struct Reserved(
    #[expect(dead_code, reason = "what matters is when it is dropped")] Box<dyn Any + Send + Sync>,
);

impl Reserved {
    /// Kept by what an engine holds for it.
    pub fn new(hold: impl Any + Send + Sync) -> Self {
        Self(Box::new(hold))
    }
}

/// What to create.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// Its name.
    pub name: ImageName,
    /// Its size in bytes.
    pub size: u64,
    /// How it is striped.
    pub geometry: Geometry,
    /// What is taken from the parent at once.
    pub layering: Layering,
    /// Bytes in a block: a power of two that divides the stripe unit.
    pub block_size: u32,
    /// The parent, for a clone.
    pub parent: Option<NewParent>,
    /// The id, if it had to be known before, to attach the image to a parent in another pool.
    pub id: Option<ImageId>,
    /// Keys and values for whoever uses the image.
    pub meta: BTreeMap<String, String>,
}

impl NewImage {
    /// Whether an engine of these capabilities can have such an image. `Invalid` if not, saying what it can.
    pub fn check_limits(&self, can: &Capabilities) -> Result<()> {
        let invalid = |what: String| Err(Error::new(ErrorKind::Invalid, what));
        if self.size > can.size_max {
            let max = can.size_max;
            return invalid(format!("{} bytes are more than an image can have: {max}", self.size));
        }
        let blocks = can.block_size_min..=can.block_size_max;
        if !self.block_size.is_power_of_two() || !blocks.contains(&self.block_size) {
            return invalid(format!(
                "a block of {} bytes is not possible; choose a power of two from {} to {}",
                self.block_size, can.block_size_min, can.block_size_max
            ));
        }
        if !self.geometry.accepts_block_size(u64::from(self.block_size)) {
            return invalid(format!(
                "a block of {} bytes does not divide the stripe unit of {}; choose a smaller block",
                self.block_size,
                self.geometry.stripe_unit()
            ));
        }
        Ok(())
    }
}

/// The parent of a clone to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewParent {
    /// Which revision.
    pub link: ParentLink,
    /// How much of the child it can show: at most the size of either.
    pub overlap: u64,
}

/// A change of an image's record that needs no ownership.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// Gives the image another name. `Exists` if another image has it.
    Rename(ImageName),
    /// Takes a snapshot's name away. `HasChildren` if children hang on its revision. The revision stays for as long as newer
    /// revisions inherit from it.
    RemoveSnapshot(SnapshotId),
    /// Gives a snapshot another name, which also makes an automatic one a kept one. `Exists` if another snapshot of the image
    /// has it.
    RenameSnapshot(SnapshotId, SnapshotName),
    /// Sets (or, with `None`, removes) a key of [`ImageRecord::meta`].
    Meta(String, Option<String>),
}

/// Something a crash left half done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pending {
    /// What it is, for people.
    pub what: String,
    /// What [`Catalog::resume`] needs to know of it; only the engine understands it.
    pub token: String,
}

/// What an engine can and cannot do, for callers and for the conformance suite.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Its name in messages: `embedded`, `memory`, ...
    pub engine: &'static str,
    /// The largest image, in bytes.
    pub size_max: u64,
    /// The smallest block, in bytes.
    pub block_size_min: u32,
    /// The largest block, in bytes.
    pub block_size_max: u32,
    /// How snapshots are made.
    pub snapshots: Snapshots,
    /// Whether a unit that was defined can be inherited again ([`SetTo::Inherit`](crate::SetTo::Inherit)).
    pub inherit: bool,
    /// Whether an acknowledged write survives power loss without a sync.
    pub ack_is_durable: bool,
    /// How far one call reaches atomically.
    pub atomic: AtomicSpan,
    /// Whether a new catalog on the same storage, opened after the old one was dropped, finds what was synced. False for an
    /// engine that forgets.
    pub persistent: bool,
}

/// How snapshots are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Snapshots {
    /// The head is sealed and an empty revision is put above it.
    Sealed,
    /// The storage keeps old revisions of each object.
    Native,
}

/// How far one call of a [`Head`] may reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AtomicSpan {
    /// Anywhere in the image.
    Image,
    /// Within one object: callers split what crosses a border.
    Object,
}
