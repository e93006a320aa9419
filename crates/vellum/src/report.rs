//! What can be told about images: what each stores, which layer defines what, and how they hang together.

use std::collections::HashSet;

use vellum_core::{Extent, ImageSpec, Runs, State};
use vellum_engine::{Below, Catalog as _, ErrorKind, Layer, Result};
use vellum_image::image::Open;
use vellum_image::{Mapped, MappedKind};

use crate::vellum::Located;
use crate::{Vellum, control};

/// Runs of states taken at once.
const RUNS_MAX: usize = 4096;

/// What one revision of an image stores.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Usage {
    /// The snapshot that names it; `None` for the head, and for a revision that has lost its name.
    pub snapshot: Option<String>,
    /// Whether it is the head.
    pub is_head: bool,
    /// The size of the image at this revision, in bytes.
    pub size: u64,
    /// Bytes that the revision itself holds as data.
    pub data_bytes: u64,
    /// Bytes that it says are zero, whatever lies below.
    pub zero_bytes: u64,
    /// Bytes of storage that its files occupy, data and metadata.
    pub stored_bytes: u64,
}

/// An image in a tree of images.
#[derive(Clone, Debug)]
pub struct TreeNode {
    /// The image.
    pub image: Located,
    /// Its children, each with the name of the snapshot it hangs on.
    pub children: Vec<(Option<String>, TreeNode)>,
}

impl Vellum {
    /// What each revision of an image stores: snapshots from the oldest, nameless ones, the head.
    pub async fn usage(&self, located: &Located) -> Result<Vec<Usage>> {
        let record = &located.record;
        let named = record.snapshots.iter().map(|snapshot| &snapshot.revision);
        let nameless = record.revisions.iter().map(|revision| &revision.id).filter(|id| {
            **id != record.head && record.snapshots.iter().all(|snapshot| snapshot.revision != **id)
        });
        let mut usage = Vec::new();
        for id in named.chain(nameless).chain([&record.head]) {
            let is_head = *id == record.head;
            let (data_bytes, zero_bytes) = if is_head {
                let map = self.map(located).await?;
                let sum = |kind| {
                    map.iter()
                        .filter(|entry| entry.depth == 1 && entry.kind == kind)
                        .map(|entry| entry.at.length())
                        .sum()
                };
                (sum(MappedKind::Data), sum(MappedKind::Zero))
            } else {
                count(&located.catalog.layer(&record.id, id).await?).await?
            };
            let snapshot = record.snapshots.iter().find(|snapshot| snapshot.revision == *id);
            usage.push(Usage {
                snapshot: snapshot.map(|snapshot| snapshot.name.to_string()),
                is_head,
                size: record.revision(id).map_or(0, |revision| revision.size),
                data_bytes,
                zero_bytes,
                stored_bytes: located.catalog.stored_bytes(&record.id, id).await?,
            });
        }
        Ok(usage)
    }

    /// Which layer defines what in an image or a snapshot, also if another process holds the image.
    pub async fn map(&self, located: &Located) -> Result<Vec<Mapped>> {
        let what = match &located.snapshot {
            Some(snapshot) => Open::Snapshot(snapshot.name.clone()),
            None => Open::Read,
        };
        match self.open_located(located, what).await {
            Ok(image) => image.map(Extent::new(0, image.size()), usize::MAX).await,
            Err(error) if error.kind() == ErrorKind::InUse => {
                control::ask_map(located, &error).await
            }
            Err(error) => Err(error),
        }
    }

    /// How images hang together: those without a parent in this home, or the one that is named, and below each its children.
    pub async fn tree(&self, spec: Option<&ImageSpec>) -> Result<Vec<TreeNode>> {
        let images = self.images(None).await?;
        let roots: Vec<Located> = match spec {
            Some(spec) => vec![self.locate(spec).await?],
            None => {
                let here: HashSet<_> = images
                    .iter()
                    .map(|image| (image.catalog.pool(), image.record.id.clone()))
                    .collect();
                let is_root = |image: &&Located| {
                    image
                        .record
                        .parent()
                        .is_none_or(|(_, link, _)| !here.contains(&(link.pool, link.image.clone())))
                };
                images.iter().filter(is_root).cloned().collect()
            }
        };
        let mut seen = HashSet::new();
        Ok(roots.into_iter().filter_map(|root| node(root, &images, &mut seen)).collect())
    }

    /// The parent of an image by its names, as far as this home knows them.
    pub async fn parent_name(&self, located: &Located) -> Result<Option<String>> {
        let Some((_, link, _)) = located.record.parent() else { return Ok(None) };
        let Ok(catalog) = self.all_pools().await?.get(link.pool) else {
            return Ok(Some(format!("image {} of the unknown pool {}", link.image, link.pool)));
        };
        let record = catalog.get(&link.image).await?;
        let snapshot =
            record.snapshots.iter().find(|snapshot| snapshot.revision == link.revision).cloned();
        let pool = self.pool_name(link.pool).await.unwrap_or_else(|| located.pool.clone());
        Ok(Some(Located { pool, catalog, record, snapshot }.spec().to_string()))
    }
}

async fn count<L: Layer>(layer: &L) -> Result<(u64, u64)> {
    let (mut data, mut zero) = (0, 0);
    let mut rest = Extent::new(0, layer.size());
    let mut runs = Runs::new();
    while !rest.is_empty() {
        vellum_image::chain::load(layer, rest, &mut runs).await?;
        data += runs.in_state(State::Data).map(|extent| extent.length()).sum::<u64>();
        zero += runs.in_state(State::Zero).map(|extent| extent.length()).sum::<u64>();
        rest = rest.split(vellum_image::chain::end_of(&runs, rest)?).1;
        debug_assert!(runs.len() <= RUNS_MAX);
    }
    Ok((data, zero))
}

/// An image with all that hangs on it. One that was seen already is left out: links that lead in a circle end there.
fn node(
    image: Located,
    images: &[Located],
    seen: &mut HashSet<(vellum_engine::PoolId, vellum_engine::ImageId)>,
) -> Option<TreeNode> {
    let id = (image.catalog.pool(), image.record.id.clone());
    if !seen.insert(id.clone()) {
        return None;
    }
    let hangs_here = |child: &&Located| {
        child.record.parent().is_some_and(|(_, link, _)| (link.pool, &link.image) == (id.0, &id.1))
    };
    let children = images.iter().filter(hangs_here).filter_map(|child| {
        let on = child.record.revisions.iter().find_map(|revision| match &revision.below {
            Below::Parent { link, .. } => Some(link.revision.clone()),
            Below::Nothing | Below::Own { .. } => None,
        })?;
        let snapshot = image.record.snapshots.iter().find(|snapshot| snapshot.revision == on);
        let name = snapshot.map(|snapshot| snapshot.name.to_string());
        node(child.clone(), images, seen).map(|child| (name, child))
    });
    let children = children.collect();
    Some(TreeNode { image, children })
}
