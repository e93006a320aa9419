//! [`Pool`]: a pool as a case sees it, and short ways to make images in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use vellum_core::{Extent, Geometry, ImageName};
use vellum_engine::{
    Capabilities, Catalog, ImageRecord, Layering, NewImage, NewParent, ParentLink, SnapshotRecord,
    Snapshots,
};

use crate::act;
use crate::harness::{Harness, Skip};
use crate::model::Model;
use crate::{Result, see};

/// How many whole units an image of a case has; a short one follows.
pub(crate) const UNITS: u64 = 16;

/// Bytes in the last unit: no multiple of a sector.
const TAIL: u64 = 1000;

/// The writer of an image of a harness.
pub(crate) type HeadOf<H> = <<H as Harness>::Catalog as Catalog>::Head;

/// A layer of an image of a harness.
pub(crate) type LayerOf<H> = <<H as Harness>::Catalog as Catalog>::Layer;

/// An open pool.
pub(crate) struct Pool<H: Harness> {
    harness: Arc<H>,
    pub catalog: H::Catalog,
}

impl<H: Harness> Pool<H> {
    pub async fn open(harness: Arc<H>) -> Result<Self> {
        let catalog = harness.open().await.context("open the storage")?;
        Ok(Self { harness, catalog })
    }

    pub fn harness(&self) -> &H {
        &self.harness
    }

    pub fn can(&self) -> &Capabilities {
        self.catalog.capabilities()
    }

    /// The same storage, opened by another process.
    pub async fn another(&self) -> Result<Self> {
        self.needs_persistent()?;
        Self::open(self.harness.clone()).await
    }

    /// The same storage, after the death of all processes that had it open. The case has dropped what it got from it.
    pub async fn reborn(self) -> Result<Self> {
        self.needs_persistent()?;
        let harness = self.harness.clone();
        drop(self);
        Self::open(harness).await
    }

    /// The same storage, after a power cut. What the case got from it is lost to it.
    pub async fn cut_power(self) -> Result<Self> {
        let harness = self.harness.clone();
        harness.power_cut().await?;
        drop(self);
        Self::open(harness).await
    }

    /// The second pool.
    pub async fn second(&self) -> Result<Self> {
        let catalog = self.harness.open_second_pool().await?;
        Ok(Self { harness: self.harness.clone(), catalog })
    }

    pub fn needs_persistent(&self) -> Result<()> {
        needs(self.can().persistent, "the engine forgets when it is closed")
    }

    pub fn needs_inherit(&self) -> Result<()> {
        needs(self.can().inherit, "the engine cannot make a unit inherited again")
    }

    pub fn needs_sealed_snapshots(&self) -> Result<()> {
        needs(self.can().snapshots == Snapshots::Sealed, "a snapshot of the engine seals nothing")
    }

    /// Bytes in a block, and so in a unit, of the images of cases.
    pub fn block(&self) -> u64 {
        4096.clamp(u64::from(self.can().block_size_min), u64::from(self.can().block_size_max))
    }

    /// The size of the images of cases: some whole units and a short one.
    pub fn size(&self) -> u64 {
        UNITS * self.block() + TAIL.min(self.block() - 1)
    }

    /// All of an image.
    pub fn all(&self) -> Extent {
        Extent::new(0, self.size())
    }

    /// Some units of an image, clipped to its size.
    pub fn units(&self, first: u64, count: u64) -> Extent {
        Extent::new(first * self.block(), count * self.block()).clip(self.size())
    }

    /// A model of an image that defines nothing.
    pub fn model(&self) -> Model {
        Model::new(self.size())
    }

    pub fn new_image(&self, name: &str) -> Result<NewImage> {
        Ok(NewImage {
            name: image_name(name)?,
            size: self.size(),
            geometry: Geometry::default(),
            layering: Layering::Sparse,
            block_size: u32::try_from(self.block())?,
            parent: None,
            id: None,
            meta: BTreeMap::new(),
        })
    }

    pub async fn create(&self, name: &str) -> Result<ImageRecord> {
        Ok(self.catalog.create(self.new_image(name)?).await?)
    }

    pub async fn own(&self, record: &ImageRecord) -> Result<HeadOf<H>> {
        Ok(self.catalog.own(&record.id).await?)
    }

    /// A new image and its writer.
    pub async fn own_new(&self) -> Result<(ImageRecord, HeadOf<H>)> {
        let record = self.create("image").await?;
        let head = self.own(&record).await?;
        Ok((record, head))
    }

    /// The record of an image as it is now.
    pub async fn record(&self, name: &str) -> Result<ImageRecord> {
        Ok(self.catalog.find(&image_name(name)?).await?)
    }

    /// A new image with a snapshot `s`, which nobody owns.
    pub async fn golden(&self, name: &str) -> Result<ImageRecord> {
        self.golden_with(name, act::Kept::Kept).await
    }

    /// A new image with a snapshot `s` that is kept, or goes with its last child.
    pub async fn golden_with(&self, name: &str, kept: act::Kept) -> Result<ImageRecord> {
        let record = self.create(name).await?;
        let head = self.own(&record).await?;
        let (record, head) = act::snapshot_as(&head, "s", kept).await?;
        drop(head);
        Ok(record)
    }

    /// What to create for a clone of the snapshot `s` of an image that may live in another pool.
    pub fn new_clone(&self, name: &str, of: &Self, parent: &ImageRecord) -> Result<NewImage> {
        let new = self.new_image(name)?;
        let snapshot = snapshot_of(parent, "s")?;
        let revision = parent.revision(&snapshot.revision).context("the snapshot's revision")?;
        let link = ParentLink {
            pool: of.catalog.pool(),
            image: parent.id.clone(),
            revision: snapshot.revision.clone(),
        };
        let overlap = revision.size.min(new.size);
        Ok(NewImage { parent: Some(NewParent { link, overlap }), ..new })
    }

    /// A clone of the snapshot `s` of an image in this pool.
    pub async fn clone_of(&self, parent: &ImageRecord, name: &str) -> Result<ImageRecord> {
        Ok(self.catalog.create(self.new_clone(name, self, parent)?).await?)
    }

    /// The layer that the snapshot `s` of an image names.
    pub async fn snapshot_layer(&self, record: &ImageRecord) -> Result<LayerOf<H>> {
        let snapshot = snapshot_of(record, "s")?;
        Ok(self.catalog.layer(&record.id, &snapshot.revision).await?)
    }

    /// Checks that nobody holds an image any more, which may take a moment after what held it was dropped.
    pub async fn wait_until_free(&self, record: &ImageRecord) -> Result<()> {
        see::eventually("the image is free", async || match self.catalog.own(&record.id).await {
            Ok(head) => {
                drop(head);
                Ok(true)
            }
            Err(error) if error.kind() == vellum_engine::ErrorKind::InUse => Ok(false),
            Err(error) => Err(error.into()),
        })
        .await
    }
}

fn needs(holds: bool, otherwise: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(Skip::because(otherwise)) }
}

pub(crate) fn image_name(name: &str) -> Result<ImageName> {
    Ok(name.parse()?)
}

pub(crate) fn snapshot_of<'a>(record: &'a ImageRecord, name: &str) -> Result<&'a SnapshotRecord> {
    record.snapshot(&name.parse()?).with_context(|| format!("the record lacks the snapshot {name}"))
}
