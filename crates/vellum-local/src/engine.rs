//! [`LocalCatalog`]: a pool of the embedded engine, as the contract sees it.
//!
//! Rules about rows are the catalog's, bytes are the store's; what is decided here is their order: what is locked before
//! what is looked up, and what is opened before what is believed.

use std::future::Future;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vellum_core::ImageName;
use vellum_core::geometry::IMAGE_SIZE_MAX;
use vellum_disk::{Disk, LockKind};
use vellum_engine::{
    AtomicSpan, Below, Capabilities, Catalog, Change, ChildRef, Error, ErrorKind, Finding, Heeded,
    ImageId, ImageRecord, NewImage, Pending, PoolId, Progress, Repair, Reserved, Result,
    RevisionId, RunToEnd, Snapshots, Version, Wanted,
};

use crate::LayerId;
use crate::canary::Canary;
use crate::catalog::children::ParentInPool;
use crate::catalog::images::NewKeys;
use crate::catalog::layers::LayerRow;
use crate::catalog::record::ImageNo;
use crate::catalog::{Database, children, images, layers, log, record, snapshots};
use crate::head::LocalHead;
use crate::lock::{Lock, LockFile};
use crate::open_layer::OpenLayer;
use crate::opening::{self, OpenOptions};
use crate::pool::PoolDirectory;
use crate::removal::Empty;
use crate::store::{Access, LayerFacts, LayerStore};

/// How small and how large a block may be, in bytes: what a disk writes at once; and what a write to a part of one that is not
/// data yet may have to write.
pub(crate) const BLOCK_SIZES: RangeInclusive<u32> = 512..=1 << 20;

/// How often a head that moved on while it was being locked is looked up again.
const HEAD_ATTEMPTS: usize = 16;

/// How often a sealed layer that is held is tried again, and after how long.
const FILL_ATTEMPTS: usize = 10;
const FILL_POLL: Duration = Duration::from_millis(10);

/// An open pool. Clones share it; it is closed when the last one, and the last head and layer from it, is gone.
#[derive(Clone, Debug)]
pub struct LocalCatalog<D: Disk> {
    shared: Arc<Shared<D>>,
}

#[derive(Debug)]
struct Shared<D: Disk> {
    id: PoolId,
    capabilities: Capabilities,
    directory: PoolDirectory<D>,
    database: Database,
    locks: LockFile<D::File>,
    store: LayerStore<D>,
    look_only: bool,
}

impl<D: Disk> LocalCatalog<D> {
    /// Opens the pool in the directory `path`, or creates it, as the options say.
    ///
    /// Creating is durable when it returns; a crash before that leaves something that can be created again.
    /// Errors: `NotFound` without a pool there; `Invalid` for a directory with other things in it, or a copy of a pool that
    /// is still there; `Unsupported` on a network file system, or for a newer format; `Corrupt` for a damaged catalog.
    pub async fn open(disk: D, path: impl AsRef<Path>, options: OpenOptions) -> Result<Self> {
        let opened = opening::open(disk.clone(), path.as_ref(), &options).await?;
        let store =
            LayerStore::open(disk, opened.directory.path().to_owned(), options.store).await?;
        let shared = Arc::new(Shared {
            id: opened.id,
            capabilities: capabilities(),
            directory: opened.directory,
            database: opened.database,
            locks: opened.locks,
            store,
            look_only: opened.look_only,
        });
        let this = Self { shared };
        if !opened.look_only {
            this.directory().build_reserve().await;
            this.collect_in_background();
        }
        Ok(this)
    }

    /// The directory of the pool, absolute.
    pub fn path(&self) -> &Path {
        self.shared.directory.path()
    }

    /// The directory where those who hold an image may say where they are reached, in `<image id>.holder`. Files of that
    /// name are left alone here for as long as there is such an image.
    pub fn live_dir(&self) -> PathBuf {
        self.shared.directory.live()
    }

    /// Whether the pool can only be looked at.
    pub fn is_read_only(&self) -> bool {
        self.shared.look_only
    }

    pub(crate) fn directory(&self) -> &PoolDirectory<D> {
        &self.shared.directory
    }

    pub(crate) fn database(&self) -> &Database {
        &self.shared.database
    }

    pub(crate) fn disk(&self) -> &D {
        self.store().disk()
    }

    pub(crate) fn store(&self) -> &LayerStore<D> {
        &self.shared.store
    }

    /// Fails unless the pool can be changed.
    pub(crate) fn writable(&self) -> Result<()> {
        if !self.shared.look_only {
            return Ok(());
        }
        let what = format!("the pool at {} was opened for reading only", self.path().display());
        Err(Error::new(ErrorKind::ReadOnly, what))
    }

    /// Locks a layer that was not there before or that nobody should be using.
    pub(crate) fn try_lock(&self, layer: LayerId, kind: LockKind) -> Result<Option<Lock<D::File>>> {
        self.shared.locks.try_lock(layer, kind)
    }

    async fn layer_row(&self, image: ImageNo, layer: LayerId) -> Result<LayerRow> {
        self.database().read("look up a layer", move |db| layers::get(db, image, layer)).await
    }

    /// Locks the head of an image. The head may move on between the look-up and the lock, so it is looked up again.
    async fn lock_head(&self, image: ImageNo, kind: LockKind) -> Result<(LayerRow, Lock<D::File>)> {
        let look = || self.database().read("look up a head", move |db| layers::head(db, image));
        let mut head = look().await?;
        for _ in 0..HEAD_ATTEMPTS {
            let lock = self.try_lock(head.id, kind)?;
            let found = look().await?;
            match lock {
                Some(lock) if found == head => return Ok((head, lock)),
                None if found.id == head.id => return Err(in_use(&head)),
                _ => head = found,
            }
        }
        Err(in_use(&head))
    }

    async fn own_image(self, image: ImageNo) -> Result<LocalHead<D>> {
        self.writable()?;
        let shared = self.store().makes(Canary::SharedOwnership);
        let kind = if shared { LockKind::Shared } else { LockKind::Exclusive };
        let (head, lock) = self.lock_head(image, kind).await?;
        self.settle_leftovers().await?;
        let layer = self.store().layer(facts(&head), Access::Own).await?;
        Ok(LocalHead::owner(self, image, layer, lock))
    }

    /// Whoever held the image before may have died in a commit that removed it, or sealed its head. What is written from now on must not
    /// be undone by that: if it has not happened, it will not.
    async fn settle_leftovers(&self) -> Result<()> {
        let frames = self.database().read("look at the log", log::frames).await?;
        let goes_on = self.directory().log_goes_on(frames).await?;
        if goes_on && !self.store().makes(Canary::Leftovers) {
            self.database().settle().await?;
        }
        Ok(())
    }

    async fn fill_layer(self, image: ImageNo, layer: LayerId) -> Result<LocalHead<D>> {
        self.writable()?;
        let row = self.layer_row(image, layer).await?;
        if !row.sealed {
            return Err(not_sealed(&row));
        }
        let lock = self.lock_to_fill(layer).await?.ok_or_else(|| in_use(&row))?;
        // It may have been taken out before it was locked.
        let row = self.layer_row(image, layer).await?;
        let layer = self.store().layer(facts(&row), Access::Fill).await?;
        Ok(LocalHead::filler(self, image, layer, lock))
    }

    /// Whoever makes sure that a sealed layer is empty holds it for a moment, which is no reason to fail.
    async fn lock_to_fill(&self, layer: LayerId) -> Result<Option<Lock<D::File>>> {
        for _ in 0..FILL_ATTEMPTS {
            if let Some(lock) = self.try_lock(layer, LockKind::Exclusive)? {
                return Ok(Some(lock));
            }
            tokio::time::sleep(FILL_POLL).await;
        }
        Ok(None)
    }

    async fn change_image(
        self,
        image: ImageNo,
        at: Version,
        change: Change,
    ) -> Result<ImageRecord> {
        self.writable()?;
        let empty = match &change {
            Change::RemoveSnapshot(snapshot) => {
                let record = self.look_up(image).await?;
                let named = record.snapshots.iter().find(|found| found.id == *snapshot);
                let losing =
                    named.map(|found| LayerId::of_revision(&found.revision)).transpose()?;
                Some(self.hold_empty(image, losing.into_iter().collect()).await)
            }
            Change::Rename(_) | Change::RenameSnapshot(..) | Change::Meta(..) => None,
        };
        let taken_out = empty.as_ref().map(Empty::layers).unwrap_or_default();
        self.freeing("change an image", move |db| {
            images::at_version(db, image, at)?;
            match &change {
                Change::Rename(name) => images::rename(db, image, name)?,
                Change::RemoveSnapshot(snapshot) => {
                    snapshots::remove(db, image, snapshot)?;
                    layers::take_out_empty(db, image, &taken_out)?;
                }
                Change::RenameSnapshot(snapshot, name) => {
                    snapshots::rename(db, image, snapshot, name)?;
                }
                Change::Meta(key, value) => images::put_meta(db, image, key, value.as_deref())?,
            }
            layers::record_change(db, image)?;
            record::load(db, image)
        })
        .await
    }

    /// The record of an image.
    pub(crate) async fn look_up(&self, image: ImageNo) -> Result<ImageRecord> {
        self.database().read("look up an image", move |db| record::load(db, image)).await
    }
}

impl<D: Disk> Catalog for LocalCatalog<D> {
    type Layer = OpenLayer<D>;
    type Head = LocalHead<D>;

    fn pool(&self) -> PoolId {
        self.shared.id
    }

    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    async fn create(&self, new: NewImage) -> Result<ImageRecord> {
        self.writable()?;
        new.check_limits(&self.shared.capabilities)?;
        let image = match &new.id {
            Some(id) => ImageNo::of(id).map_err(|_| {
                Error::new(ErrorKind::Invalid, format!("{id} is no image id of this engine"))
            })?,
            None => ImageNo::random(self.disk()),
        };
        let keys = NewKeys { image, head: LayerId::random(self.disk()) };
        let pool = self.pool();
        self.database()
            .write("create an image", move |db| images::create(db, pool, keys, &new))
            .await
    }

    fn unused_id(&self) -> ImageId {
        ImageNo::random(self.disk()).id()
    }

    async fn reserve(&self, id: &ImageId) -> Result<Reserved> {
        self.writable()?;
        let kept = self.try_lock(ImageNo::of(id)?.lock(), LockKind::Exclusive)?;
        let in_use =
            || Error::new(ErrorKind::InUse, format!("somebody creates image {id} already"));
        Ok(Reserved::new(kept.ok_or_else(in_use)?))
    }

    async fn is_gone(&self, id: &ImageId) -> Result<bool> {
        let Ok(image) = ImageNo::of(id) else { return Ok(true) };
        if self.shared.look_only {
            return Ok(false);
        }
        let kept = self.try_lock(image.lock(), LockKind::Exclusive)?;
        if kept.is_none() && !self.store().makes(Canary::GoneTooEarly) {
            return Ok(false);
        }
        self.database().settle().await?;
        match self.look_up(image).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
            found => found.map(|_| false),
        }
    }

    async fn find(&self, name: &ImageName) -> Result<ImageRecord> {
        let name = name.clone();
        self.database().read("look up an image", move |db| images::find(db, &name)).await
    }

    async fn get(&self, id: &ImageId) -> Result<ImageRecord> {
        self.look_up(ImageNo::of(id)?).await
    }

    async fn list(&self, after: Option<&ImageName>, max: usize) -> Result<Vec<ImageRecord>> {
        let after = after.cloned();
        self.database().read("list images", move |db| images::list(db, after.as_ref(), max)).await
    }

    async fn change(&self, id: &ImageId, at: Version, change: Change) -> Result<ImageRecord> {
        let image = ImageNo::of(id)?;
        RunToEnd::new(self.clone().change_image(image, at, change)).await
    }

    async fn remove(&self, id: &ImageId, at: Version) -> Result<()> {
        let image = ImageNo::of(id)?;
        RunToEnd::new(self.clone().remove_image(image, at)).await
    }

    async fn attach(&self, image: &ImageId, revision: &RevisionId, child: &ChildRef) -> Result<()> {
        self.writable()?;
        let (parent, child) = (ParentInPool::at(image, revision)?, child.clone());
        self.database().write("attach a child", move |db| children::list(db, &parent, &child)).await
    }

    async fn detach(&self, image: &ImageId, revision: &RevisionId, child: &ChildRef) -> Result<()> {
        // What is no id of this engine has no children here.
        let Ok(parent) = ParentInPool::at(image, revision) else { return Ok(()) };
        let child = child.clone();
        RunToEnd::new(self.clone().detach_child(parent, child)).await
    }

    async fn children(&self, image: &ImageId) -> Result<Vec<(RevisionId, ChildRef)>> {
        let image = ImageNo::of(image)?;
        self.database().read("list children", move |db| children::of_image(db, image)).await
    }

    async fn pending(&self) -> Result<Vec<Pending>> {
        self.list_pending().await
    }

    async fn resume(&self, pending: &Pending) -> Result<()> {
        RunToEnd::new(self.clone().finish_pending(pending.token.clone())).await
    }

    async fn layer(&self, image: &ImageId, revision: &RevisionId) -> Result<OpenLayer<D>> {
        let (image, layer) = (ImageNo::of(image)?, LayerId::of_revision(revision)?);
        let row = self.layer_row(image, layer).await?;
        if !row.sealed {
            return Err(not_sealed(&row));
        }
        let opened = self.store().layer(facts(&row), Access::Read).await;
        // A layer without files inherits everything; one whose files were just removed must not look like that, nor like one
        // that lost some. Files go after the row, so if the row is still there, the files were.
        self.layer_row(image, layer).await?;
        Ok(OpenLayer::new(opened?))
    }

    async fn read_head(&self, image: &ImageId) -> Result<OpenLayer<D>> {
        let (head, lock) = self.lock_head(ImageNo::of(image)?, LockKind::Shared).await?;
        let layer = self.store().layer(facts(&head), Access::Read).await?;
        Ok(OpenLayer::with_writers_out(layer, lock))
    }

    fn own(&self, image: &ImageId) -> impl Future<Output = Result<LocalHead<D>>> + Send {
        let image = ImageNo::of(image);
        async move { RunToEnd::new(self.clone().own_image(image?)).await }
    }

    async fn ask_owner(&self, _: &ImageId, _: Wanted, _: Progress<'_>) -> Result<Heeded> {
        Ok(Heeded::ByNobody)
    }

    async fn filler(&self, image: &ImageId, revision: &RevisionId) -> Result<LocalHead<D>> {
        let (image, layer) = (ImageNo::of(image)?, LayerId::of_revision(revision)?);
        RunToEnd::new(self.clone().fill_layer(image, layer)).await
    }

    async fn check(&self, image: Option<&ImageId>, repair: Repair) -> Result<Vec<Finding>> {
        let image = image.map(ImageNo::of).transpose()?;
        RunToEnd::new(self.clone().check_all(image, repair)).await
    }

    async fn stored_bytes(&self, image: &ImageId, revision: &RevisionId) -> Result<u64> {
        let (image, layer) = (ImageNo::of(image)?, LayerId::of_revision(revision)?);
        self.layer_row(image, layer).await?;
        self.directory().stored_bytes(layer).await
    }
}

fn capabilities() -> Capabilities {
    Capabilities {
        engine: "embedded",
        size_max: IMAGE_SIZE_MAX,
        block_size_min: *BLOCK_SIZES.start(),
        block_size_max: *BLOCK_SIZES.end(),
        snapshots: Snapshots::Sealed,
        inherit: true,
        ack_is_durable: false,
        atomic: AtomicSpan::Image,
        persistent: true,
    }
}

/// What the store must know of a layer.
pub(crate) fn facts(row: &LayerRow) -> LayerFacts {
    LayerFacts {
        id: row.id,
        image: row.image.clone(),
        revision: row.id.revision(),
        size: row.size,
        block_size: row.block_size,
        below: below_text(&row.below),
        image_name: row.image_name.clone(),
    }
}

/// What lies below a layer, for people and for whoever must make a catalog anew from the layers alone.
fn below_text(below: &Below) -> String {
    match below {
        Below::Nothing => "nothing".to_owned(),
        Below::Own { revision, overlap } => format!("own {revision} {overlap}"),
        Below::Parent { link, overlap } => {
            format!("parent {} {} {} {overlap}", link.pool, link.image, link.revision)
        }
    }
}

/// The error for a layer that somebody else holds.
pub(crate) fn in_use(row: &LayerRow) -> Error {
    Error::new(
        ErrorKind::InUse,
        format!("image {} is in use; ask its holder, or wait until it is closed", row.image_name),
    )
}

fn not_sealed(row: &LayerRow) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!(
            "revision {} is the head of image {}, which can still change",
            row.id, row.image_name
        ),
    )
}
