//! What is done to images without opening them: create, clone, list children, remove.

use std::collections::BTreeMap;

use vellum_core::{Geometry, ImageName, SnapshotName};
use vellum_engine::{
    Below, Catalog, Change, ChildRef, Error, ErrorKind, ImageId, ImageRecord, Layering, NewImage,
    NewParent, ParentLink, Result, RevisionId, SnapshotRecord,
};

use crate::Pools;
use crate::chain::{Attempts, DEPTH_MAX, depth_of};

/// How often a change is tried again because somebody else changed the record in between.
const ATTEMPTS: usize = 10;

/// What an image is created with.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// How it is striped.
    pub geometry: Geometry,
    /// What is taken from a parent at once.
    pub layering: Layering,
    /// Bytes in a block.
    pub block_size: u32,
    /// Keys and values for whoever uses the image.
    pub meta: BTreeMap<String, String>,
}

impl Default for CreateOptions {
    /// Objects of 4 MiB, not striped, `sparse` with blocks of 4 KiB.
    fn default() -> Self {
        Self {
            geometry: Geometry::default(),
            layering: Layering::Sparse,
            block_size: 4096,
            meta: BTreeMap::new(),
        }
    }
}

/// What a clone is created with; what is not given is as in the parent.
#[derive(Clone, Debug, Default)]
pub struct CloneOptions {
    /// How it is striped.
    pub geometry: Option<Geometry>,
    /// What is taken from the parent at once.
    pub layering: Option<Layering>,
    /// Bytes in a block.
    pub block_size: Option<u32>,
    /// Keys and values beside the parent's.
    pub meta: BTreeMap<String, String>,
}

/// Creates an empty image. Costs the same for any size.
pub async fn create<C: Catalog>(
    catalog: &C,
    name: ImageName,
    size: u64,
    options: CreateOptions,
) -> Result<ImageRecord> {
    let CreateOptions { geometry, layering, block_size, meta } = options;
    catalog
        .create(NewImage {
            name,
            size,
            geometry,
            layering,
            block_size,
            parent: None,
            id: None,
            meta,
        })
        .await
}

/// Creates a child of a snapshot, in any pool, at a cost that does not grow with the parent. The child is in its parent's
/// list before it exists, so that a crash in between leaves an entry too many and never one too few; and its id is kept until
/// it does, so that nobody takes the entry for a stale one.
pub async fn clone<C: Catalog>(
    pools: &Pools<C>,
    parent_catalog: &C,
    parent: &ImageRecord,
    snapshot: &SnapshotRecord,
    child_catalog: &C,
    name: ImageName,
    options: CloneOptions,
) -> Result<ImageRecord> {
    if depth_below(pools, parent_catalog, parent, snapshot).await? >= DEPTH_MAX {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "the chain below {name} would be deeper than {DEPTH_MAX} layers; flatten its parent first"
            ),
        ));
    }
    let size =
        parent.revision(&snapshot.revision).map(|revision| revision.size).ok_or_else(|| {
            Error::corrupt(format!(
                "snapshot {} of {} names no revision",
                snapshot.name, parent.name
            ))
        })?;
    let link = ParentLink {
        pool: parent_catalog.pool(),
        image: parent.id.clone(),
        revision: snapshot.revision.clone(),
    };
    let mut meta = parent.meta.clone();
    meta.extend(options.meta);
    let id = child_catalog.unused_id();
    let new = NewImage {
        name,
        size,
        geometry: options.geometry.unwrap_or(parent.geometry),
        layering: options.layering.unwrap_or(parent.layering),
        block_size: options.block_size.unwrap_or(parent.block_size),
        parent: Some(NewParent { link: link.clone(), overlap: size }),
        id: Some(id.clone()),
        meta,
    };
    if link.pool == child_catalog.pool() {
        return child_catalog.create(new).await;
    }
    let kept = child_catalog.reserve(&id).await?;
    let child = ChildRef { pool: child_catalog.pool(), image: id };
    parent_catalog.attach(&link.image, &link.revision, &child).await?;
    let created = child_catalog.create(new).await;
    drop(kept);
    if created.is_err() {
        // Whoever lists children next would do it as well.
        take_if_gone(parent_catalog, &link.image, &link.revision, child_catalog, &child).await;
    }
    created
}

/// How deep the chain of a snapshot is, which others may change while it is looked at.
async fn depth_below<C: Catalog>(
    pools: &Pools<C>,
    catalog: &C,
    image: &ImageRecord,
    snapshot: &SnapshotRecord,
) -> Result<usize> {
    let (mut record, mut attempts) = (image.clone(), Attempts::default());
    loop {
        match depth_of(pools, catalog, &record, &snapshot.revision).await {
            Err(error) if attempts.again(&error) => record = catalog.get(&image.id).await?,
            depth => return depth,
        }
        if record.revision(&snapshot.revision).is_none() {
            let what = format!("snapshot {} of image {} is gone", snapshot.name, record.name);
            return Err(Error::new(ErrorKind::NotFound, what));
        }
    }
}

/// Takes an entry from a list if its child is gone. Where that cannot be done now, whoever lists the children next will.
async fn take_if_gone<C: Catalog>(
    catalog: &C,
    parent: &ImageId,
    on: &RevisionId,
    child_catalog: &C,
    child: &ChildRef,
) {
    let taken = match child_catalog.is_gone(&child.image).await {
        Ok(true) => catalog.detach(parent, on, child).await,
        gone => gone.map(|_| ()),
    };
    if let Err(error) = taken {
        tracing::debug!(child = %child.image, error = %error.chain(), "an entry in a list of children stays for now");
    }
}

/// A child and where it lives.
#[derive(Clone, Debug)]
pub struct Child<C> {
    /// Its pool.
    pub catalog: C,
    /// Its record.
    pub record: ImageRecord,
    /// The revision of the parent that it hangs on.
    pub revision: RevisionId,
}

/// The children of an image.
#[derive(Clone, Debug)]
pub struct Children<C> {
    /// Those that say so themselves.
    pub found: Vec<Child<C>>,
    /// Those that are listed and cannot be asked, since their pool is not open here, or fails; with the revision of the parent.
    pub unreachable: Vec<(RevisionId, ChildRef)>,
}

impl<C> Children<C> {
    fn count(&self) -> usize {
        self.found.len() + self.unreachable.len()
    }
}

/// The children of an image. Entries that the child itself denies are left out and taken from the list; those of children that
/// are just being created are left out.
pub async fn children<C: Catalog>(
    pools: &Pools<C>,
    catalog: &C,
    parent: &ImageRecord,
) -> Result<Children<C>> {
    let mut children = Children { found: Vec::new(), unreachable: Vec::new() };
    for (revision, child) in catalog.children(&parent.id).await? {
        let Ok(child_catalog) = pools.get(child.pool) else {
            children.unreachable.push((revision, child));
            continue;
        };
        match child_catalog.get(&child.image).await {
            Ok(record) if hangs_on(&record, catalog, &parent.id, &revision) => {
                children.found.push(Child { catalog: child_catalog, record, revision });
            }
            Ok(_) => catalog.detach(&parent.id, &revision, &child).await?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // One that is being created is none yet, and will be.
                if child_catalog.is_gone(&child.image).await? {
                    catalog.detach(&parent.id, &revision, &child).await?;
                }
            }
            Err(error) => {
                tracing::warn!(child = %child.image, error = %error.chain(), "a child cannot be asked");
                children.unreachable.push((revision, child));
            }
        }
    }
    Ok(children)
}

/// Takes a child whose pool is lost for good from the list of its parent, which it keeps from being removed. Should it come back,
/// a check finds it damaged if the parent is gone by then, and enters it again if not. `Invalid` if its pool is open here: then
/// the child can be asked. `NotFound` if it is not listed.
pub async fn forget_child<C: Catalog>(
    pools: &Pools<C>,
    catalog: &C,
    parent: &ImageRecord,
    child: &ChildRef,
) -> Result<()> {
    if pools.get(child.pool).is_ok() {
        let what = format!(
            "pool {} is known here, and says itself whether it has a child {}; remove that, or flatten it",
            child.pool, child.image
        );
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    let mut listed = catalog.children(&parent.id).await?;
    listed.retain(|(_, found)| found == child);
    if listed.is_empty() {
        let what = format!("image {} has no child {}/{}", parent.name, child.pool, child.image);
        return Err(Error::new(ErrorKind::NotFound, what));
    }
    for (revision, child) in listed {
        catalog.detach(&parent.id, &revision, &child).await?;
    }
    Ok(())
}

/// Whether an image says that it hangs on this revision.
pub(crate) fn hangs_on<C: Catalog>(
    child: &ImageRecord,
    catalog: &C,
    parent: &ImageId,
    on: &RevisionId,
) -> bool {
    child.revisions.iter().any(|revision| match &revision.below {
        Below::Parent { link, .. } => {
            link.pool == catalog.pool() && link.image == *parent && link.revision == *on
        }
        Below::Nothing | Below::Own { .. } => false,
    })
}

/// Takes a child from the list of its parent, wherever that lives. Idempotent; a parent that is gone is fine.
async fn detach<C: Catalog>(
    pools: &Pools<C>,
    child_catalog: &C,
    link: &ParentLink,
    child: &ImageId,
) -> Result<()> {
    let child = ChildRef { pool: child_catalog.pool(), image: child.clone() };
    match pools.get(link.pool)?.detach(&link.image, &link.revision, &child).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Changes an image's record, again if somebody else changed it in between.
pub async fn change<C: Catalog>(
    catalog: &C,
    id: &ImageId,
    what: impl Fn(&ImageRecord) -> Result<Change>,
) -> Result<ImageRecord> {
    let mut attempt = 1;
    loop {
        let record = catalog.get(id).await?;
        match catalog.change(id, record.version, what(&record)?).await {
            Err(error) if error.kind() == ErrorKind::Conflict && attempt < ATTEMPTS => attempt += 1,
            result => return result,
        }
    }
}

/// Changes a snapshot by its name. Where children stand in the way, those that deny it are taken from the list first.
pub async fn change_snapshot<C: Catalog>(
    pools: &Pools<C>,
    catalog: &C,
    id: &ImageId,
    name: &SnapshotName,
    what: impl Fn(&SnapshotRecord) -> Change,
) -> Result<ImageRecord> {
    let to_change = |record: &ImageRecord| {
        record.snapshot(name).map(&what).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("image {} has no snapshot {name}", record.name))
        })
    };
    let before = catalog.get(id).await?;
    let changed = match change(catalog, id, &to_change).await {
        Err(error) if error.kind() == ErrorKind::HasChildren => {
            let record = catalog.get(id).await?;
            let before = catalog.children(id).await?.len();
            if children(pools, catalog, &record).await?.count() == before {
                return Err(error);
            }
            change(catalog, id, &to_change).await?
        }
        result => result?,
    };
    // The last snapshot that still saw the parent may have gone.
    if let (Some(link), None) = (before.parent_link(), changed.parent_link()) {
        leave(pools, catalog, link, id).await;
    }
    Ok(changed)
}

/// Removes an image and takes it from its parent's list. `HasChildren` if clones hang on it, `InUse` if somebody has it open.
pub async fn remove<C: Catalog>(pools: &Pools<C>, catalog: &C, id: &ImageId) -> Result<()> {
    let mut attempt = 1;
    let record = loop {
        let record = catalog.get(id).await?;
        match catalog.remove(id, record.version).await {
            Ok(()) => break record,
            Err(error) if attempt >= ATTEMPTS => return Err(error),
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) if error.kind() == ErrorKind::HasChildren => {
                let before = catalog.children(id).await?.len();
                if children(pools, catalog, &record).await?.count() == before {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
        attempt += 1;
    };
    if let Some(link) = record.parent_link() {
        leave(pools, catalog, link, id).await;
    }
    Ok(())
}

/// Takes a child that has no parent any more from the list in the parent's pool, where that is another one: within a pool it
/// went in the same step. What cannot be taken now is an entry that the child denies, and goes when children are next listed.
pub(crate) async fn leave<C: Catalog>(
    pools: &Pools<C>,
    child_catalog: &C,
    link: &ParentLink,
    child: &ImageId,
) {
    if link.pool == child_catalog.pool() {
        return;
    }
    if let Err(error) = detach(pools, child_catalog, link, child).await {
        tracing::warn!(%child, error = %error.chain(), "an entry in a list of children stays for now");
    }
}
