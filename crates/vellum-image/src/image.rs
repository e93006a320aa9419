//! [`Image`]: an open image.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use vellum_core::{BufferPool, Extent, Geometry, SnapshotName};
use vellum_engine::{
    AtomicSpan, Catalog, Error, ErrorKind, Head, ImageId, ImageRecord, Layering, Ownership,
    RangeGuard, Ranges, Result, Snapshots,
};

use crate::canary::Canary;
use crate::chain::{Attempts, Chain, open_below};
use crate::gate::{Closed, Gate};
use crate::{MappedKind, Pools, ResolvedCache};

/// An open image: its head for writing, its head for reading, or a snapshot. Clones share it.
///
/// Reads and writes may come from any number of tasks at once. Those that change something and overlap take effect one after
/// the other, in the order in which they were polled first.
///
/// A request that is dropped before its end stops between two of its steps, and others no longer wait for it. The step that was
/// handed to the engine still runs to its end, after which its blocks may read as before, or as it left them, whatever was
/// asked for meanwhile; a flatten or a close is not safe before it. Whoever needs to know waits for the request.
pub struct Image<C: Catalog>(pub(crate) Arc<Shared<C>>);

impl<C: Catalog> Clone for Image<C> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<C: Catalog> fmt::Debug for Image<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.view();
        write!(
            f,
            "Image({}, epoch {}, {} layers)",
            view.record.name,
            view.epoch,
            view.chain.links().len()
        )
    }
}

pub(crate) struct Shared<C: Catalog> {
    pub(crate) pools: Pools<C>,
    pub(crate) catalog: C,
    pub(crate) id: ImageId,
    pub(crate) view: ArcSwap<View<C>>,
    /// What requests are changing: those that overlap are carried out one after the other, from their first step to their
    /// last, in the order they came. So none undoes a later one, nor is acknowledged on the word of one that is not yet.
    pub(crate) changes: Ranges,
    pub(crate) gate: Arc<Gate>,
    /// Held by whoever changes the image's record: snapshot, the cut at the end of a flatten, close.
    pub(crate) operations: Arc<tokio::sync::Mutex<()>>,
    /// Flatten relies on units never being inherited again: it holds this alone, a discard to the parent shares it.
    pub(crate) re_inherit: tokio::sync::RwLock<()>,
    pub(crate) buffers: BufferPool,
    pub(crate) copy_up_bytes: Semaphore,
    pub(crate) copy_up_bytes_max: u32,
    pub(crate) copy_ups: AtomicUsize,
    /// Whether it was closed, and does not come back from wherever it is.
    pub(crate) is_closed: AtomicBool,
    #[cfg(any(test, feature = "canaries"))]
    canary: Option<Canary>,
}

impl<C: Catalog> Shared<C> {
    /// Whether a test asked for this mistake.
    #[cfg(any(test, feature = "canaries"))]
    pub(crate) fn makes(&self, mistake: Canary) -> bool {
        self.canary == Some(mistake)
    }

    /// Nobody can ask.
    #[cfg(not(any(test, feature = "canaries")))]
    pub(crate) fn makes(&self, _mistake: Canary) -> bool {
        false
    }

    /// Waits until no other request changes a part of the extent, nor will before this one, and keeps others from it.
    pub(crate) async fn hold(&self, at: Extent) -> Option<RangeGuard> {
        if self.makes(Canary::RequestsSideBySide) {
            return None;
        }
        Some(self.changes.lock(at).await)
    }

    /// Waits until nobody is inside the gate, and keeps it closed.
    pub(crate) async fn close_gate(&self) -> Option<Closed> {
        if self.makes(Canary::OperationBesideRequests) {
            return None;
        }
        Some(self.gate.clone().close().await)
    }
}

/// What an image is between two operations that change it. I/O takes it inside the gate and may keep it: layers stay
/// readable after they were sealed, and `epoch` tells whether the view is still the image's.
pub(crate) struct View<C: Catalog> {
    pub(crate) epoch: u64,
    pub(crate) record: ImageRecord,
    /// The writer, if the image was opened for writing.
    pub(crate) head: Option<C::Head>,
    pub(crate) chain: Chain<C::Layer>,
    /// Whether the image was handed over: then nothing of this may be used, but to come back.
    pub(crate) is_away: bool,
}

impl<C: Catalog> View<C> {
    /// The size of the image, in bytes.
    pub(crate) fn size(&self) -> u64 {
        use vellum_engine::Layer;
        self.chain.top().size()
    }

    /// Bytes in a block.
    pub(crate) fn block(&self) -> u64 {
        u64::from(self.record.block_size)
    }

    /// The writer, or `ReadOnly`.
    pub(crate) fn writer(&self) -> Result<&C::Head> {
        self.head.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::ReadOnly,
                format!("image {} is open for reading only", self.record.name),
            )
        })
    }

    /// Whether the parent image can still show through, and is copied up object by object.
    pub(crate) fn copies_objects(&self) -> bool {
        self.record.layering == Layering::CopyUp && self.chain.parent_limit() > 0
    }
}

/// What to open of an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Open {
    /// A snapshot, for reading.
    Snapshot(SnapshotName),
    /// The head, for reading; keeps writers out.
    Read,
    /// The head, for writing; keeps everybody out.
    Own,
}

/// Limits of an open image.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// Where buffers come from.
    pub buffers: BufferPool,
    /// How many bytes may be under copy-up at once, beyond the buffers of the requests themselves. One object more is allowed,
    /// so that any limit lets copy-ups go on.
    pub copy_up_bytes_max: u32,
    /// Where it is remembered which layer of a deep chain holds what.
    pub resolved: ResolvedCache,
    /// A mistake to make.
    #[cfg(any(test, feature = "canaries"))]
    pub canary: Option<Canary>,
}

impl Default for ImageOptions {
    /// A pool and a memory of its own, and 64 MiB.
    fn default() -> Self {
        Self {
            buffers: BufferPool::default(),
            copy_up_bytes_max: 64 << 20,
            resolved: ResolvedCache::default(),
            #[cfg(any(test, feature = "canaries"))]
            canary: None,
        }
    }
}

impl<C: Catalog> Image<C> {
    /// Opens an image of a pool. `NotFound` if image, snapshot or parent are missing, `InUse` if somebody owns it.
    pub async fn open(
        pools: &Pools<C>,
        catalog: &C,
        id: &ImageId,
        what: Open,
        options: ImageOptions,
    ) -> Result<Self> {
        let mut attempts = Attempts::default();
        let view = loop {
            match open_view(pools, catalog, id, &what, &options.resolved).await {
                Err(error) if attempts.again(&error) => {}
                view => break view?,
            }
        };
        Ok(Self(Arc::new(Shared {
            pools: pools.clone(),
            catalog: catalog.clone(),
            id: id.clone(),
            view: ArcSwap::from_pointee(view),
            changes: Ranges::default(),
            gate: Arc::default(),
            operations: Arc::default(),
            re_inherit: tokio::sync::RwLock::default(),
            buffers: options.buffers,
            // Of no bytes nobody could have a part: one copy-up at a time has all of one byte.
            copy_up_bytes: Semaphore::new(options.copy_up_bytes_max.max(1) as usize),
            copy_up_bytes_max: options.copy_up_bytes_max.max(1),
            copy_ups: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
            #[cfg(any(test, feature = "canaries"))]
            canary: options.canary,
        })))
    }

    /// The image's record as of its last change through this handle.
    pub fn record(&self) -> ImageRecord {
        self.view().record.clone()
    }

    /// The image's id.
    pub fn id(&self) -> &ImageId {
        &self.0.id
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        self.view().size()
    }

    /// How the image is striped.
    pub fn geometry(&self) -> Geometry {
        self.view().record.geometry
    }

    /// Whether it takes no writes.
    pub fn is_read_only(&self) -> bool {
        self.view().head.is_none()
    }

    /// Whether the image is still owned; an image that is read-only never was.
    pub fn ownership(&self) -> Ownership {
        self.view().head.as_ref().map_or(Ownership::Lost, Head::ownership)
    }

    /// How many layers a read may fall through.
    pub fn depth(&self) -> usize {
        self.view().chain.links().len()
    }

    /// How many copy-ups writes through this handle have begun: one for each write that found blocks missing, and one more
    /// each time it had to start over.
    pub fn copy_ups(&self) -> usize {
        self.0.copy_ups.load(Ordering::Relaxed)
    }

    /// Where requests get their buffers.
    pub fn buffers(&self) -> &BufferPool {
        &self.0.buffers
    }

    /// Makes every change acknowledged before the call durable. After a failure the image takes no writes until it is opened
    /// again, and what was written since the last good sync may be lost.
    pub async fn sync(&self) -> Result<()> {
        loop {
            let view = self.view();
            let Some(head) = &view.head else { return Ok(()) };
            let result = head.sync().await;
            // A snapshot in between synced the old head itself; what matters now is the successor.
            if result.is_ok() || self.view().epoch == view.epoch {
                return result;
            }
        }
    }

    /// Syncs, gives ownership up and closes. Other clones fail from then on.
    pub async fn close(self) -> Result<()> {
        // Before whoever waits for its return is waited for.
        self.0.is_closed.store(true, Ordering::SeqCst);
        let _alone = self.0.operations.lock().await;
        self.stay_away();
        match self.view().head.clone() {
            Some(head) => head.close().await,
            None => Ok(()),
        }
    }

    pub(crate) fn view(&self) -> Arc<View<C>> {
        self.0.view.load_full()
    }

    /// The extent, if it lies inside the image, which may be larger than it was when it was handed over.
    pub(crate) async fn check_range(&self, at: Extent) -> Result<Extent> {
        if at.end() > self.size() {
            self.present().await?;
        }
        let size = self.size();
        if at.end() > size {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{at} reaches beyond the end of the image at {size}"),
            ));
        }
        Ok(at)
    }

    /// The pieces of an extent that one call of the engine may take: all of it, or one for each object it touches.
    pub(crate) fn pieces(&self, view: &View<C>, at: Extent) -> Vec<Extent> {
        if view.copies_objects() {
            return view.record.geometry.objects(at).map(|object| object.image).collect();
        }
        self.reach(at).collect()
    }

    /// The pieces of an extent that one call of the engine reaches, whatever is inherited there: all of it, or one for each
    /// object.
    pub(crate) fn reach(&self, at: Extent) -> impl Iterator<Item = Extent> + Send + use<C> {
        let can = self.0.catalog.capabilities();
        let (by_object, at_once) = match can.atomic {
            // What must be filled first is asked, and filled, object by object.
            AtomicSpan::Image if can.snapshots == Snapshots::Sealed => (None, Some(at)),
            _ => (Some(self.geometry().objects(at)), None),
        };
        at_once.into_iter().chain(by_object.into_iter().flatten().map(|object| object.image))
    }
}

pub(crate) async fn open_view<C: Catalog>(
    pools: &Pools<C>,
    catalog: &C,
    id: &ImageId,
    what: &Open,
    resolved: &ResolvedCache,
) -> Result<View<C>> {
    let (head, top, record) = match what {
        Open::Own => {
            let head = catalog.own(id).await?;
            // Read again: until we owned it, somebody else could have changed it.
            let record = catalog.get(id).await?;
            (Some(head.clone()), head.layer().clone(), record)
        }
        Open::Read => {
            let layer = catalog.read_head(id).await?;
            (None, layer, catalog.get(id).await?)
        }
        Open::Snapshot(name) => {
            let record = catalog.get(id).await?;
            let snapshot = record.snapshot(name).ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!("image {} has no snapshot {name}", record.name),
                )
            })?;
            (None, catalog.layer(id, &snapshot.revision).await?, record)
        }
    };
    let revision = vellum_engine::Layer::revision(&top).clone();
    let (below, own) = open_below(pools, catalog, &record, &revision).await?;
    let chain = Chain::new(top, &below, own + 1, resolved);
    Ok(View { epoch: 0, record, head, chain, is_away: false })
}

/// Whether a piece is worth a hole in a reply or a file.
impl MappedKind {
    /// Whether it reads as zeros.
    pub fn is_zero(self) -> bool {
        !matches!(self, MappedKind::Data)
    }
}
