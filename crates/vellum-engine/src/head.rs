//! [`Head`]: the one writer of an image.

use std::future::Future;

use bytes::Bytes;
use smallvec::SmallVec;
use vellum_core::{Extent, SnapshotName};

use crate::{Error, ErrorKind, ImageRecord, Layer, Requests, Result};

/// The one writer of an image; exists only while the image is owned. Clones share the ownership, which ends when the last
/// clone is gone and the last request in flight has landed, or with [`close`](Self::close).
///
/// Every mutation is *guarded*: it checks and changes in one step, and the guard holds until the change has landed. When it
/// returns [`Guarded::Done`], every later read sees it, and it survives the death of the process; it survives power loss
/// after the next [`sync`](Self::sync) that begins afterwards, or at once where it asked for [`Durability::Durable`].
/// `NoSpace` harms nothing else, and the head goes on.
pub trait Head: Clone + Send + Sync + std::fmt::Debug + 'static {
    /// The layer it writes.
    type Layer: Layer;
    /// A change of the image that is ready to be committed.
    type Prepared: Prepared<Head = Self>;

    /// The layer it writes, for reading. Shows every acknowledged change at once.
    fn layer(&self) -> &Self::Layer;

    /// Whether the units of `at` must be filled, under the oldest revision that shares their object, before anything else may
    /// touch them: older revisions still see what lies below through the object's absence. Always false where
    /// snapshots are sealed layers.
    fn must_fill_first(&self, at: Extent) -> bool;

    /// Writes if the guard allows, else changes nothing and says which units are missing; of an object that defines all of its units
    /// or none, those beside the write too. The units become data; what a unit
    /// that was zero holds beside the write is zeros. `Invalid` for no bytes, or bytes beyond the end of the image.
    fn write(&self, write: Write) -> impl Future<Output = Result<Guarded>> + Send;

    /// Defines inherited units, then applies a write, in one atomic step: units of the parts that are defined by now are
    /// left as they are, so a filler that lost a race does no harm. The write is applied to all units it covers; one
    /// that it covers partly must be defined or lie in a part, else [`Guarded::Missing`] and nothing changed. `Missing` are also
    /// units through which something below may be seen, in an object that defines all of its units or none: they are filled with
    /// the others. `Invalid`, and nothing changed, if the parts are not as [`Fill`] says. To fill with nothing is done at once.
    fn fill(&self, fill: Fill) -> impl Future<Output = Result<Guarded>> + Send;

    /// Sets whole units to zero or to inherited. `at` is aligned to units, but for the end of the image; else `Invalid`. Never
    /// `Missing`. Each unit changes in one step; a long extent may be worked through in pieces.
    ///
    /// To zero: units read as zeros at once and their space is freed; one that is data may stay data and be punched.
    /// To inherit: `Unsupported` where [`Capabilities::inherit`](crate::Capabilities::inherit) says so. The space is
    /// freed by a later call of [`reclaim`](Self::reclaim), since a read may be on its way; or at once, by an engine whose reads
    /// get states and bytes of one moment.
    fn set(
        &self,
        at: Extent,
        to: SetTo,
        durability: Durability,
    ) -> impl Future<Output = Result<Guarded>> + Send;

    /// Frees the space of units that were set to inherit, after making their states durable. Called while no read is on its
    /// way to this head. Returns the bytes freed.
    fn reclaim(&self) -> impl Future<Output = Result<u64>> + Send;

    /// Makes every change that was acknowledged before the call durable. After a failure the head is poisoned: no mutation
    /// and no sync succeeds any more, and what was acknowledged since the last good sync may be lost. Once the head was
    /// sealed or closed there is nothing left to sync.
    fn sync(&self) -> impl Future<Output = Result<()>> + Send;

    /// About how many bytes the next [`sync`](Self::sync) would have to make durable.
    fn unsynced_bytes(&self) -> u64;

    /// Whether [`reclaim`](Self::reclaim) has something to do.
    fn wants_reclaim(&self) -> bool;

    /// Does all that is slow for a change of the image: checks, waits for the catalog, prepares an empty revision. I/O goes
    /// on meanwhile. Dropping what it returns undoes it. `Exists` for a snapshot whose name is taken; `Invalid` for a head that
    /// does not own the image: one that fills a sealed revision, was closed, or has a successor.
    fn prepare(&self, change: HeadChange) -> impl Future<Output = Result<Self::Prepared>> + Send;

    /// Whether the image is still owned by this head. Once lost, it stays lost. Every mutation then answers `Sealed` if the
    /// head gave the ownership up itself, to a successor or by [`close`](Self::close), and else fails with `OwnershipLost`.
    fn ownership(&self) -> Ownership;

    /// What other clients of the storage want of who owns the image. Whoever asks last hears all of it; without somebody who
    /// listens the engine answers by itself that it is not the time.
    fn requests(&self) -> Requests;

    /// Syncs and gives the ownership up. Other clones answer `Sealed` from then on, and can still be read through
    /// [`layer`](Self::layer). Also after a failure the ownership is given up.
    fn close(self) -> impl Future<Output = Result<()>> + Send;
}

/// A change of an image, ready.
pub trait Prepared: Send + 'static {
    /// The writer it belongs to.
    type Head;

    /// Makes the change, durably, in one step: a small sync and a few metadata writes, at a cost that does not grow with the
    /// image. The caller keeps mutations of this head away until it returns. If the change seals the head, the
    /// successor comes back, the old one answers [`Guarded::Sealed`], and the ownership belongs to the successor.
    fn commit(self) -> impl Future<Output = Result<Committed<Self::Head>>> + Send;
}

/// What a committed change made.
#[derive(Debug)]
pub struct Committed<H> {
    /// The image's record as of the change.
    pub record: ImageRecord,
    /// The head that took over, if the old one was sealed.
    pub successor: Option<H>,
}

/// A change of an image that needs ownership.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HeadChange {
    /// Seals the head under this name and puts an empty revision above it. `Exists` if the name is taken.
    Snapshot {
        /// Its name.
        name: SnapshotName,
        /// Whether it goes with its last child.
        auto: bool,
    },
    /// Cuts the link to the parent image: whatever still is inherited through it reads as zeros from then on. The caller has
    /// looked at the units, and has synced what it filled into sealed revisions. The child leaves its parent's list in the
    /// same step if both live in this pool. The head goes on; there is no successor.
    CutParent,
}

/// A write.
#[derive(Clone, Debug)]
pub struct Write {
    /// Where in the image, in bytes. Any alignment.
    pub offset: u64,
    /// What. Not empty.
    pub data: Bytes,
    /// What must be defined already.
    pub guard: Guard,
    /// When it must survive power loss.
    pub durability: Durability,
}

impl Write {
    /// The bytes of the image it covers.
    pub fn extent(&self) -> Extent {
        Extent::new(self.offset, self.data.len() as u64)
    }
}

/// Which units must be defined for a write to be applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guard {
    /// Those it covers partly. A short last unit of the image that is written to its end is covered wholly.
    Edges,
    /// All it touches.
    All,
}

/// Inherited units to define, and what to write into them.
#[derive(Clone, Debug)]
pub struct Fill {
    /// In ascending order, each aligned to units, but for the end of the image; they do not overlap. One with data has as many
    /// bytes as its extent.
    pub parts: Vec<Part>,
    /// A write to apply in the same step. Its own guard is not looked at.
    pub then: Option<Write>,
}

impl Fill {
    /// Whether the parts are what the contract asks for, given a check that an extent consists of whole units of the image.
    /// `Invalid` if not. What is to be written after them is not looked at.
    pub fn check_parts(&self, check_whole_units: impl Fn(Extent) -> Result<()>) -> Result<()> {
        let mut end = 0;
        for part in &self.parts {
            check_whole_units(part.at)?;
            let fits = match &part.content {
                Content::Data(data) => data.len() as u64 == part.at.length(),
                Content::Zero => true,
            };
            if part.at.offset() < end || !fits {
                let what =
                    "the parts of a fill must ascend, and each have as many bytes as its extent";
                return Err(Error::new(ErrorKind::Invalid, what));
            }
            end = part.at.end();
        }
        Ok(())
    }
}

/// `Invalid` for no bytes, or bytes beyond the end of an image of this size.
pub fn check_range(at: Extent, size: u64) -> Result<()> {
    if !at.is_empty() && at.end() <= size {
        return Ok(());
    }
    let what = format!("{at} is empty or reaches beyond the end of the image at {size}");
    Err(Error::new(ErrorKind::Invalid, what))
}

/// `Invalid` for what is not within an image of this size, or not whole units of it: aligned to them, but for the end of the image.
pub fn check_whole_units(at: Extent, size: u64, unit: u64) -> Result<()> {
    check_range(at, size)?;
    if at == at.align_out(unit).clip(size) {
        return Ok(());
    }
    let what = format!("{at} does not consist of whole units of {unit} bytes");
    Err(Error::new(ErrorKind::Invalid, what))
}

/// A run of whole units and what they become, if they are inherited.
#[derive(Clone, Debug)]
pub struct Part {
    /// The units.
    pub at: Extent,
    /// Their content.
    pub content: Content,
}

/// What inherited units are filled with.
#[derive(Clone, Debug)]
pub enum Content {
    /// These bytes; the units become data.
    Data(Bytes),
    /// Nothing but zeros; the units become zero.
    Zero,
}

/// What [`Head::set`] makes of units.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTo {
    /// They read as zeros.
    Zero,
    /// They fall through to what lies below.
    Inherit,
}

/// When a change must survive power loss.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// After the next sync.
    AtSync,
    /// When it is acknowledged.
    Durable,
}

/// Whether a guarded change was made.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum Guarded {
    /// It was.
    Done,
    /// It was not: these units are inherited. Fill them, or try again.
    Missing(Missing),
    /// It was not: this head has a successor. Take that and try again.
    Sealed,
}

/// Whole units, clipped to the size of the image, in ascending order, neighbours merged.
pub type Missing = SmallVec<[Extent; 2]>;

/// Whether an image is still owned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ownership {
    /// It is.
    Held,
    /// Somebody else has it.
    Lost,
}
