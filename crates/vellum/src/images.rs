//! What can be done to images by name.
//!
//! An operation on an image works the same whether nobody has it open (it is opened, changed and closed again) or another process
//! holds it (that process is asked).

use vellum_ceph::{CephPool, Compared};
use vellum_core::{Extent, ImageName, ImageSpec, SnapshotName};
use vellum_engine::{
    Catalog as _, Change, ChildRef, Error, ErrorKind, ImageRecord, Result, RevisionId,
    SnapshotRecord,
};
use vellum_image::image::Open;
use vellum_image::{CloneOptions, CreateOptions, DiscardPolicy, FlattenOptions, admin};

use crate::control::Request;
use crate::control::hint;
use crate::holder::Patience;
use crate::vellum::Located;
use crate::{Catalog, Image, Vellum};

/// An image open for reading, as it was at one moment.
#[derive(Debug)]
pub struct Reading {
    /// The image.
    pub image: Image,
    /// A snapshot that was taken for it alone, and its image.
    temporary: Option<(Located, SnapshotName)>,
}

/// The children of an image.
#[derive(Clone, Debug)]
pub struct Children {
    /// Those that say so themselves.
    pub found: Vec<Located>,
    /// Those that are listed and cannot be asked, since their pool is not known here, or cannot be opened.
    pub unreachable: Vec<ChildRef>,
}

impl Vellum {
    /// Creates an empty image.
    pub async fn create(
        &self,
        spec: &ImageSpec,
        size: u64,
        options: CreateOptions,
    ) -> Result<Located> {
        refuse_snapshot(spec)?;
        let pool = Self::pool_of(spec);
        let catalog = self.pool(&pool).await?;
        let record = admin::create(&catalog, spec.image.clone(), size, options).await?;
        Ok(self.located(&pool, &catalog, record, None))
    }

    /// `Exists` if an image has this name; for who wants to know before something that takes long. Another process may take the
    /// name in the next moment.
    pub async fn refuse_taken(&self, spec: &ImageSpec) -> Result<()> {
        refuse_snapshot(spec)?;
        let pool = Self::pool_of(spec);
        match self.pool(&pool).await?.find(&spec.image).await {
            Ok(_) => {
                let what = format!("an image {} exists in pool {pool}", spec.image);
                Err(Error::new(ErrorKind::Exists, what))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Opens an image, or a snapshot if both `spec` and `what` name it. One that somebody has open for a moment is waited for;
    /// `InUse` if that lasts, or if clients use it.
    pub async fn open_image(&self, spec: &ImageSpec, what: Open) -> Result<Image> {
        let meant = match &what {
            Open::Snapshot(name) => spec.snapshot.as_ref() == Some(name),
            Open::Read | Open::Own => spec.snapshot.is_none(),
        };
        if !meant {
            let what = format!(
                "{spec} is not what is to be opened ({what:?}); a snapshot can only be read"
            );
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        self.open_located(&self.locate(spec).await?, what).await
    }

    /// Opens an image or a snapshot for reading, also if another process holds the image: then a snapshot is taken for it.
    pub async fn read(&self, spec: &ImageSpec) -> Result<Reading> {
        let located = self.locate(spec).await?;
        if let Some(snapshot) = &located.snapshot {
            let image = self.open_located(&located, Open::Snapshot(snapshot.name.clone())).await?;
            return Ok(Reading { image, temporary: None });
        }
        match self.open_located(&located, Open::Read).await {
            Err(error) if error.kind() == ErrorKind::InUse => self.read_snapshot_of(&located).await,
            result => Ok(Reading { image: result?, temporary: None }),
        }
    }

    async fn read_snapshot_of(&self, located: &Located) -> Result<Reading> {
        let name = unused_snapshot_name();
        self.snapshot_located(located, &name, true).await?;
        match self.open_located(located, Open::Snapshot(name.clone())).await {
            Ok(image) => Ok(Reading { image, temporary: Some((located.clone(), name)) }),
            Err(error) => {
                // If it cannot go now, `snap rm` takes it later.
                let _ = self.remove_snapshot_of(located, &name).await;
                Err(error)
            }
        }
    }

    /// Ends a reading; a snapshot that was taken for it goes, unless somebody made a clone of it meanwhile.
    pub async fn finish(&self, reading: Reading) -> Result<()> {
        let Reading { image, temporary } = reading;
        drop(image);
        let Some((located, name)) = temporary else { return Ok(()) };
        match self.remove_snapshot_of(&located, &name).await {
            Err(error) if matches!(error.kind(), ErrorKind::HasChildren | ErrorKind::NotFound) => {
                Ok(())
            }
            result => result,
        }
    }

    /// Freezes an image under a name.
    pub async fn create_snapshot(&self, spec: &ImageSpec) -> Result<()> {
        let name = snapshot_of(spec)?;
        let located = self.locate(&ImageSpec { snapshot: None, ..spec.clone() }).await?;
        self.snapshot_located(&located, &name, false).await
    }

    async fn snapshot_located(
        &self,
        located: &Located,
        name: &SnapshotName,
        auto: bool,
    ) -> Result<()> {
        self.do_at_holder(located, Request::Snapshot { name: name.to_string(), auto }).await
    }

    /// Takes a snapshot's name away. `HasChildren` if clones hang on it.
    pub async fn remove_snapshot(&self, spec: &ImageSpec) -> Result<()> {
        let name = snapshot_of(spec)?;
        self.remove_snapshot_of(&self.locate(spec).await?, &name).await
    }

    async fn remove_snapshot_of(&self, located: &Located, name: &SnapshotName) -> Result<()> {
        let pools = self.all_pools().await?;
        // A name needs no ownership: whoever holds the image goes on reading the layer.
        let change = |snapshot: &SnapshotRecord| Change::RemoveSnapshot(snapshot.id.clone());
        admin::change_snapshot(pools, &located.catalog, &located.record.id, name, change)
            .await
            .map(|_| ())
    }

    /// Makes a writable copy of a snapshot; of an image, a snapshot is taken that goes with its last child. `Exists` if the
    /// child's name is taken, `Invalid` if its blocks are not possible, both before any snapshot is taken.
    pub async fn clone_image(
        &self,
        parent: &ImageSpec,
        child: &ImageSpec,
        options: CloneOptions,
    ) -> Result<ImageRecord> {
        refuse_snapshot(child)?;
        let mut located = self.locate(parent).await?;
        if located.snapshot.is_some() {
            return self.clone_located(&located, child, options).await;
        }
        // A snapshot that was taken for nothing leaves a layer behind.
        self.refuse_taken(child).await?;
        let catalog = self.pool(&Self::pool_of(child)).await?;
        refuse_blocks(&catalog, &located.record, &options)?;
        let name = unused_snapshot_name();
        self.snapshot_located(&located, &name, true).await?;
        located.record = located.catalog.get(&located.record.id).await?;
        located.snapshot = located.record.snapshot(&name).cloned();
        let made = self.clone_located(&located, child, options).await;
        if made.is_err() {
            // It has no child; if it cannot go now, `snap rm` takes it later.
            let _ = self.remove_snapshot_of(&located, &name).await;
        }
        made
    }

    async fn clone_located(
        &self,
        parent: &Located,
        child: &ImageSpec,
        options: CloneOptions,
    ) -> Result<ImageRecord> {
        let pools = self.all_pools().await?;
        let catalog = self.pool(&Self::pool_of(child)).await?;
        let snapshot = parent.snapshot.as_ref().ok_or_else(|| {
            let what = format!("the snapshot that was taken of {} is gone", parent.record.name);
            Error::new(ErrorKind::Conflict, what)
        })?;
        admin::clone(
            pools,
            &parent.catalog,
            &parent.record,
            snapshot,
            &catalog,
            child.image.clone(),
            options,
        )
        .await
    }

    /// Copies up what an image inherits, and cuts the link to its parent. Tells `(done, total)` bytes a few times a second.
    /// Dropped before its end, it stops, and what was copied stays.
    pub async fn flatten(
        &self,
        spec: &ImageSpec,
        options: FlattenOptions,
        progress: impl Fn(u64, u64) + Send + Sync,
    ) -> Result<()> {
        self.flatten_until(spec, options, progress, std::future::pending()).await
    }

    /// As [`flatten`](Self::flatten), until `stop` ends: then it stops with `Stopped`, and what was copied stays. An image that
    /// was opened for it alone is closed, and with that synced.
    pub async fn flatten_until(
        &self,
        spec: &ImageSpec,
        options: FlattenOptions,
        progress: impl Fn(u64, u64) + Send + Sync,
        stop: impl Future<Output = ()>,
    ) -> Result<()> {
        let located = self.locate(spec).await?;
        located.no_snapshot_meant()?;
        let FlattenOptions { copies, bytes_per_second } = options;
        let request = Request::Flatten { copies, bytes_per_second };
        self.at_holder_until(&located, request, progress, stop).await.map(|_| ())
    }

    /// Gives up the content of an extent. Durable when it returns.
    pub async fn discard(&self, spec: &ImageSpec, at: Extent, policy: DiscardPolicy) -> Result<()> {
        let located = self.locate(spec).await?;
        located.no_snapshot_meant()?;
        let to_parent = policy == DiscardPolicy::Inherit;
        let request = Request::Discard { offset: at.offset(), length: at.length(), to_parent };
        self.do_at_holder(&located, request).await
    }

    /// Makes durable what any client of an image was told is written.
    pub async fn sync(&self, spec: &ImageSpec) -> Result<()> {
        let located = self.locate(spec).await?;
        located.no_snapshot_meant()?;
        self.do_at_holder(&located, Request::Sync).await
    }

    /// Gives an image another name. Clients that use it go on.
    pub async fn rename(&self, spec: &ImageSpec, name: &ImageName) -> Result<()> {
        self.rename_located(&self.locate(spec).await?, name).await
    }

    /// As [`rename`](Self::rename), of the image that was located, whatever it is called by now.
    pub async fn rename_located(&self, located: &Located, name: &ImageName) -> Result<()> {
        located.no_snapshot_meant()?;
        let change = |_: &ImageRecord| Ok(Change::Rename(name.clone()));
        admin::change(&located.catalog, &located.record.id, change).await.map(|_| ())
    }

    /// Makes a sparse image on Ceph a plain one, which Ceph's own tools open. `Unsupported` while it has a parent or snapshots, and
    /// in a pool that is not on Ceph; `InUse` if somebody has it open.
    pub async fn publish(&self, spec: &ImageSpec) -> Result<()> {
        let located = self.locate(spec).await?;
        located.no_snapshot_meant()?;
        let ceph = on_ceph(&located, "nobody else reads its images")?;
        let published = ceph.publish(&located.record.id).await.map(drop);
        published.map_err(|error| error.context(format!("publish image {}", located.record.name)))
    }

    /// Compares the allocation bitmap of a sparse image on Ceph, or of a snapshot, with its objects. `Unsupported` for another image.
    pub async fn compare_bitmap(&self, spec: &ImageSpec) -> Result<Compared> {
        let located = self.locate(spec).await?;
        let ceph = on_ceph(&located, HAS_MAPS)?;
        let compared = ceph.compare_bitmap(&located.record.id, located.revision()).await;
        compared.map_err(|error| error.context(format!("check the bitmap of {spec}")))
    }

    /// Makes it anew. `InUse` for that of an image that somebody has open.
    pub async fn build_bitmap(&self, spec: &ImageSpec) -> Result<()> {
        let located = self.locate(spec).await?;
        let ceph = on_ceph(&located, HAS_MAPS)?;
        let built = ceph.build_bitmap(&located.record.id, located.revision()).await;
        built.map_err(|error| error.context(format!("make the bitmap of {spec} anew")))
    }

    /// Removes an image with its snapshots. `HasChildren` if clones hang on it; `InUse` if somebody has it open for longer than
    /// a moment.
    pub async fn remove(&self, spec: &ImageSpec) -> Result<()> {
        self.remove_located(&self.locate(spec).await?).await
    }

    /// As [`remove`](Self::remove), of the image that was located, whatever it is called by now and whoever has its name.
    pub async fn remove_located(&self, located: &Located) -> Result<()> {
        located.no_snapshot_meant()?;
        let pools = self.all_pools().await?;
        let mut patience = Patience::new();
        loop {
            match admin::remove(pools, &located.catalog, &located.record.id).await {
                Err(error) if error.kind() == ErrorKind::InUse => {
                    let served =
                        self.holder(located).await.is_some_and(|holder| holder.clients > 0);
                    if served || !patience.wait().await {
                        return Err(error);
                    }
                }
                result => {
                    // What a killed server left. Ids are never used again.
                    if result.is_ok() {
                        hint::remove(&located.hints, &located.record.id);
                    }
                    return result;
                }
            }
        }
    }

    /// The children of an image, or of one snapshot.
    pub async fn children(&self, spec: &ImageSpec) -> Result<Children> {
        let located = self.locate(spec).await?;
        let pools = self.all_pools().await?;
        let wanted = |revision: &RevisionId| {
            located.snapshot.as_ref().is_none_or(|snapshot| snapshot.revision == *revision)
        };
        let listed = admin::children(pools, &located.catalog, &located.record).await?;
        let unreachable = listed.unreachable.into_iter().filter(|(revision, _)| wanted(revision));
        let mut children =
            Children { found: Vec::new(), unreachable: unreachable.map(|(_, it)| it).collect() };
        for child in listed.found.into_iter().filter(|child| wanted(&child.revision)) {
            if let Some(pool) = self.pool_name(child.catalog.pool()).await {
                children.found.push(self.located(&pool, &child.catalog, child.record, None));
            }
        }
        Ok(children)
    }

    /// Takes a child whose pool is lost for good from the list of its parent, which can be removed then. Refused while the pool is
    /// known, and while another one that is known cannot be opened, since that could be it.
    pub async fn forget_child(&self, spec: &ImageSpec, child: &ChildRef) -> Result<()> {
        let located = self.locate(spec).await?;
        located.no_snapshot_meant()?;
        let pools = self.all_pools().await?;
        if let Some(closed) = self.closed_pools().await.first() {
            let what = format!(
                "pool {closed} cannot be opened, and may be the one that the child is in; bring it back, or forget it with \
                 `vellum pool rm {closed}` first"
            );
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        admin::forget_child(pools, &located.catalog, &located.record, child).await
    }
}

/// Why what is kept elsewhere has no bitmaps.
const HAS_MAPS: &str = "its layers have maps, which are always right";

/// The pool of an image on Ceph.
fn on_ceph<'a>(located: &'a Located, why: &str) -> Result<&'a CephPool> {
    located.catalog.right().ok_or_else(|| {
        let what = format!("pool {} is not on Ceph: {why}", located.pool);
        Error::new(ErrorKind::Unsupported, what)
    })
}

fn snapshot_of(spec: &ImageSpec) -> Result<SnapshotName> {
    spec.snapshot.clone().ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("{spec} names no snapshot; write {spec}@SNAP"))
    })
}

pub(crate) fn refuse_snapshot(spec: &ImageSpec) -> Result<()> {
    match &spec.snapshot {
        None => Ok(()),
        Some(_) => Err(Error::new(
            ErrorKind::Invalid,
            format!("{spec} names a snapshot where a new image must be named"),
        )),
    }
}

/// `Invalid` if a clone with these options has blocks that its pool cannot keep, or that do not fit its stripes.
fn refuse_blocks(catalog: &Catalog, parent: &ImageRecord, options: &CloneOptions) -> Result<()> {
    let can = catalog.capabilities();
    let block = options.block_size.unwrap_or(parent.block_size);
    let geometry = options.geometry.unwrap_or(parent.geometry);
    let is_possible = block.is_power_of_two()
        && (can.block_size_min..=can.block_size_max).contains(&block)
        && geometry.accepts_block_size(block.into());
    if is_possible {
        return Ok(());
    }
    let what = format!(
        "a block of {block} bytes is not possible; choose a power of two from {} to {} that divides the stripe unit of {}",
        can.block_size_min,
        can.block_size_max,
        geometry.stripe_unit()
    );
    Err(Error::new(ErrorKind::Invalid, what))
}

fn unused_snapshot_name() -> SnapshotName {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the kernel gives random numbers");
    SnapshotName::new(&format!("auto-{:016x}", u64::from_le_bytes(bytes))).expect("a good name")
}
