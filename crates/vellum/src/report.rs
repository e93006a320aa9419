//! What can be told about images: what each stores, which layer defines what, and how they hang together.

use std::collections::{HashMap, HashSet};

use vellum_core::{Extent, ImageSpec, Runs, State};
use vellum_engine::{Catalog as _, ErrorKind, ImageRecord, Layer, ParentLink, Result, RevisionId};
use vellum_image::image::Open;
use vellum_image::{Mapped, chain};

use crate::Vellum;
use crate::control::protocol::nonsense;
use crate::control::{Answer, Request};
use crate::holding::Key;
use crate::vellum::Located;

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

/// What a revision stores, as far as that can be found out now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KnownUsage {
    /// All of it.
    Known(Usage),
    /// Not what the head of an image holds, which somebody uses who cannot be asked: a command such as an import.
    InUse {
        /// The size of the image, in bytes.
        size: u64,
    },
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
    /// What each revision of an image stores: snapshots from the oldest, nameless ones, the head. `InUse` if somebody uses the
    /// image who cannot be asked.
    pub async fn usage(&self, located: &Located) -> Result<Vec<Usage>> {
        let mut usage = Vec::new();
        for id in revisions_of(&located.record) {
            usage.push(self.usage_of(located, id).await?);
        }
        Ok(usage)
    }

    /// As [`usage`](Self::usage), but a head that is in use is only said to be, and an image that is gone stores nothing.
    pub async fn usage_as_known(&self, located: &Located) -> Result<Vec<KnownUsage>> {
        let mut usage = Vec::new();
        for id in revisions_of(&located.record) {
            match self.usage_of(located, id).await {
                Ok(known) => usage.push(KnownUsage::Known(known)),
                Err(error) if error.kind() == ErrorKind::InUse => {
                    usage.push(KnownUsage::InUse { size: located.record.size() });
                }
                // A snapshot, or the image, was removed since it was looked at.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(usage)
    }

    async fn usage_of(&self, located: &Located, id: &RevisionId) -> Result<Usage> {
        let record = &located.record;
        let is_head = *id == record.head;
        let (data_bytes, zero_bytes) = if is_head {
            self.usage_of_head(located).await?
        } else {
            count(&located.catalog.layer(&record.id, id).await?).await?
        };
        let snapshot = record.snapshots.iter().find(|snapshot| snapshot.revision == *id);
        Ok(Usage {
            snapshot: snapshot.map(|snapshot| snapshot.name.to_string()),
            is_head,
            size: record.revision(id).map_or(0, |revision| revision.size),
            data_bytes,
            zero_bytes,
            stored_bytes: located.catalog.stored_bytes(&record.id, id).await?,
        })
    }

    async fn usage_of_head(&self, located: &Located) -> Result<(u64, u64)> {
        match self.at_holder(located, Request::Usage, |_, _| {}).await? {
            Answer::Usage { data_bytes, zero_bytes } => Ok((data_bytes, zero_bytes)),
            _ => Err(nonsense()),
        }
    }

    /// Which layer defines what in an image or a snapshot, also if another process holds the image; then clients may write while
    /// the map is drawn.
    pub async fn map(&self, located: &Located) -> Result<Vec<Mapped>> {
        if let Some(snapshot) = &located.snapshot {
            let image = self.open_located(located, Open::Snapshot(snapshot.name.clone())).await?;
            return image.map(Extent::new(0, image.size()), usize::MAX).await;
        }
        let mut map: Vec<Mapped> = Vec::new();
        let size = located.record.size();
        loop {
            let offset = map.last().map_or(0, |entry| entry.at.end());
            if offset >= size {
                return Ok(map);
            }
            match self.at_holder(located, Request::Map { offset }, |_, _| {}).await? {
                Answer::Map { entries } if !entries.is_empty() => {
                    for entry in entries {
                        append(&mut map, entry.try_into()?)?;
                    }
                }
                _ => return Err(nonsense()),
            }
        }
    }

    /// How images hang together: those without a parent in this home, or the one that is named, and below each its children.
    pub async fn tree(&self, spec: Option<&ImageSpec>) -> Result<Vec<TreeNode>> {
        let images = self.images(None).await?;
        let here: HashSet<Key> = images.iter().map(key).collect();
        let mut children: HashMap<Key, Vec<&Located>> = HashMap::new();
        let mut roots: Vec<&Located> = Vec::new();
        for image in &images {
            match parent_of(image).map(|link| (link.pool, link.image.clone())) {
                Some(parent) if here.contains(&parent) => {
                    children.entry(parent).or_default().push(image);
                }
                _ => roots.push(image),
            }
        }
        let located;
        if let Some(spec) = spec {
            located = self.locate(spec).await?;
            roots = vec![&located];
        }
        let mut seen = HashSet::new();
        Ok(roots.into_iter().filter_map(|root| node(root, &children, &mut seen)).collect())
    }

    /// The parent of an image by its names, as far as this home knows them; by its id if it is gone or cannot be looked at.
    pub async fn parent_name(&self, located: &Located) -> Result<Option<String>> {
        let Some((_, link, _)) = located.record.parent() else { return Ok(None) };
        let Ok(catalog) = self.all_pools().await?.get(link.pool) else {
            return Ok(Some(format!("image {} of the unknown pool {}", link.image, link.pool)));
        };
        let record = match catalog.get(&link.image).await {
            Ok(record) => record,
            // The link was cut and the parent removed since the child was looked at.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Some(format!("unknown image {}", link.image)));
            }
            Err(error) => return Err(error),
        };
        let snapshot =
            record.snapshots.iter().find(|snapshot| snapshot.revision == link.revision).cloned();
        let pool = self.pool_name(link.pool).await.unwrap_or_else(|| located.pool.clone());
        Ok(Some(self.located(&pool, &catalog, record, snapshot).spec().to_string()))
    }
}

/// The revisions of an image: those of snapshots from the oldest, those without a name, the head.
fn revisions_of(record: &ImageRecord) -> impl Iterator<Item = &RevisionId> {
    let named = record.snapshots.iter().map(|snapshot| &snapshot.revision);
    let nameless = record.revisions.iter().map(|revision| &revision.id).filter(|id| {
        **id != record.head && record.snapshots.iter().all(|snapshot| snapshot.revision != **id)
    });
    named.chain(nameless).chain([&record.head])
}

/// Adds an entry of the next part of a map to what there is.
fn append(map: &mut Vec<Mapped>, entry: Mapped) -> Result<()> {
    let end = map.last().map_or(0, |last| last.at.end());
    if entry.at.offset() != end {
        return Err(nonsense());
    }
    match map.last_mut() {
        Some(last) if (last.kind, last.depth) == (entry.kind, entry.depth) => {
            last.at = Extent::between(last.at.offset(), entry.at.end());
        }
        _ => map.push(entry),
    }
    Ok(())
}

/// What a layer holds: bytes of data, bytes that are zero.
async fn count<L: Layer>(layer: &L) -> Result<(u64, u64)> {
    let (mut data, mut zero) = (0, 0);
    let mut rest = Extent::new(0, layer.size());
    let mut runs = Runs::new();
    while !rest.is_empty() {
        tokio::task::yield_now().await; // a petabyte is many steps, and each may find all it needs in memory
        chain::load(layer, rest, &mut runs).await?;
        data += runs.in_state(State::Data).map(|extent| extent.length()).sum::<u64>();
        zero += runs.in_state(State::Zero).map(|extent| extent.length()).sum::<u64>();
        rest = rest.split(chain::end_of(&runs, rest)?).1;
    }
    Ok((data, zero))
}

fn key(image: &Located) -> Key {
    (image.catalog.pool(), image.record.id.clone())
}

fn parent_of(image: &Located) -> Option<&ParentLink> {
    image.record.parent().map(|(_, link, _)| link)
}

/// An image with all that hangs on it. One that was seen already is left out: links that lead in a circle end there.
fn node(
    image: &Located,
    children: &HashMap<Key, Vec<&Located>>,
    seen: &mut HashSet<Key>,
) -> Option<TreeNode> {
    if !seen.insert(key(image)) {
        return None;
    }
    let below = children.get(&key(image)).into_iter().flatten().filter_map(|child| {
        let name = parent_of(child).and_then(|link| snapshot_named(image, &link.revision));
        node(child, children, seen).map(|child| (name, child))
    });
    Some(TreeNode { children: below.collect(), image: image.clone() })
}

fn snapshot_named(image: &Located, revision: &RevisionId) -> Option<String> {
    let snapshot = image.record.snapshots.iter().find(|snapshot| snapshot.revision == *revision);
    snapshot.map(|snapshot| snapshot.name.to_string())
}
