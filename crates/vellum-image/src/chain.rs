//! [`Chain`]: the layers of an image, top to bottom, and which of them defines what.
//!
//! A chain is a flat list walked by a loop. What its layers read as is frozen but for the first, so what is read below the first
//! may be read outside the gate and used for as long as the chain is the image's chain. A flatten fills a layer with what
//! shows through it anyway.

use std::collections::HashSet;
use std::sync::Arc;

use smallvec::SmallVec;
use vellum_core::{Extent, Runs, State};
use vellum_engine::{
    Below, Catalog, Error, ErrorKind, ImageRecord, Known, Layer, PoolId, Result, Revision,
    RevisionId,
};

use crate::Pools;
use crate::resolved::{Resolved, ResolvedCache};

/// Chains deeper than this are refused.
pub const DEPTH_MAX: usize = 1024;

/// How many runs one look at a layer may return; what a caller asks beyond is asked again.
pub(crate) const RUNS_MAX: usize = 4096;

/// One layer of a chain.
#[derive(Clone, Debug)]
pub struct Link<L> {
    /// What it defines.
    pub layer: L,
    /// How many bytes of the *image* can be seen in this layer: no more than any overlap on the way down allows. Bytes at or
    /// past it are zeros, whatever the layer holds there.
    pub limit: u64,
}

/// The layers of an image, top to bottom.
#[derive(Clone, Debug)]
pub struct Chain<L> {
    links: Vec<Link<L>>,
    /// How many of them, from the top, are the image's own; the rest is the parent image and what lies below it.
    own: usize,
    /// Who holds what below the first layer; for deep chains only.
    resolved: Option<Arc<Resolved>>,
    cache: ResolvedCache,
}

/// Pieces of an extent, in ascending order.
pub type Extents = SmallVec<[Extent; 4]>;

impl<L: Layer> Chain<L> {
    /// A chain of one own layer above these.
    pub fn new(top: L, below: &[Link<L>], own: usize, cache: &ResolvedCache) -> Self {
        let limit = top.size();
        let mut links = Vec::with_capacity(below.len() + 1);
        links.push(Link { layer: top, limit });
        links.extend(below.iter().cloned());
        Self::of(links, own, cache)
    }

    fn of(links: Vec<Link<L>>, own: usize, cache: &ResolvedCache) -> Self {
        let resolved = Resolved::for_units(cache, links.iter().map(|link| link.layer.unit()));
        Self { links, own, resolved, cache: cache.clone() }
    }

    /// Whether this chain has the same layers, seen as far, as another one.
    pub(crate) fn is_alike(&self, other: &Self) -> bool {
        let alike = |(a, b): (&Link<L>, &Link<L>)| {
            a.limit == b.limit && a.layer.revision() == b.layer.revision()
        };
        self.own == other.own
            && self.links.len() == other.links.len()
            && self.links.iter().zip(&other.links).all(alike)
    }

    /// Who holds what below the first layer, if this chain is deep enough to remember.
    pub(crate) fn resolved(&self) -> Option<&Resolved> {
        self.resolved.as_deref()
    }

    /// Where it is remembered who holds what.
    pub(crate) fn cache(&self) -> &ResolvedCache {
        &self.cache
    }

    /// All layers.
    pub fn links(&self) -> &[Link<L>] {
        &self.links
    }

    /// The layer on top.
    pub fn top(&self) -> &L {
        &self.links[0].layer
    }

    /// How many of the layers are the image's own.
    pub fn own(&self) -> usize {
        self.own
    }

    /// How many bytes of the image can be seen in the parent image; 0 without a parent.
    pub fn parent_limit(&self) -> u64 {
        self.links.get(self.own).map_or(0, |link| link.limit)
    }

    /// The image's own lowest layer, the one that a flatten fills.
    pub fn bottom(&self) -> &Link<L> {
        &self.links[self.own - 1]
    }

    /// The chain as a record of the image has it by now: without those of its own layers that it does not know any more, which
    /// were taken out since they defined nothing and no snapshot named them; and without a parent that was cut off. The first
    /// layer always stays.
    #[must_use]
    pub fn as_of(&self, record: &ImageRecord) -> Self {
        let top = self.top().revision();
        let seen_by = if record.revision(top).is_some() { top } else { &record.head };
        let has_parent = record.parent_of(seen_by).is_some();
        let stays = |(place, link): &(usize, &Link<L>)| match place {
            0 => true,
            place if *place < self.own => record.revision(link.layer.revision()).is_some(),
            _ => has_parent,
        };
        let left = || self.links.iter().enumerate().filter(stays);
        if left().count() == self.links.len() {
            return self.clone();
        }
        let own = left().filter(|(place, _)| *place < self.own).count();
        Self::of(left().map(|(_, link)| link.clone()).collect(), own, &self.cache)
    }

    /// The chain with a new layer on top of the one that was.
    #[must_use]
    pub fn with_top(&self, top: L) -> Self {
        Self::new(top, &self.links, self.own + 1, &self.cache)
    }

    /// What the layers `links` say of `at`, by their states alone: the pieces that one of them says are data. The rest of `at`
    /// reads as zeros, or is inherited by all of them.
    pub async fn data_in(&self, links: std::ops::Range<usize>, at: Extent) -> Result<Extents> {
        let mut found = Extents::new();
        self.walk(links, at, |piece, state, _| {
            if state == State::Data {
                found.push(piece);
            }
        })
        .await?;
        Ok(merged(found))
    }

    /// The pieces of `at` that none of the layers `links` defines.
    pub async fn undefined_in(&self, links: std::ops::Range<usize>, at: Extent) -> Result<Extents> {
        let mut found = Extents::new();
        self.walk(links, at, |piece, state, _| {
            if state == State::Inherited {
                found.push(piece);
            }
        })
        .await?;
        Ok(merged(found))
    }

    /// Tells `visit` of every piece of `at` what the topmost layer of `links` that defines it says, and the index of that
    /// layer; or `Inherited` and no layer if none does. What lies past a layer's limit is `Zero` by no layer. Pieces come in
    /// no order.
    pub(crate) async fn walk(
        &self,
        links: std::ops::Range<usize>,
        at: Extent,
        mut visit: impl FnMut(Extent, State, Option<usize>),
    ) -> Result<()> {
        let mut pending: Extents = SmallVec::from_slice(&[at]);
        let mut runs = Runs::new();
        for (index, link) in self.links.iter().enumerate().take(links.end).skip(links.start) {
            let mut next = Extents::new();
            for extent in pending {
                let (inside, past) = extent.split(link.limit);
                if !past.is_empty() {
                    visit(past, State::Zero, None);
                }
                let mut rest = inside;
                while !rest.is_empty() {
                    load(&link.layer, rest, &mut runs).await?;
                    for run in &runs {
                        match run.state {
                            State::Inherited => next.push(run.extent),
                            state => visit(run.extent, state, Some(index)),
                        }
                    }
                    rest = rest.split(end_of(&runs, rest)?).1;
                }
            }
            pending = next;
        }
        for extent in pending {
            visit(extent, State::Inherited, None);
        }
        Ok(())
    }
}

/// The states of a non-empty beginning of `at`, from memory if they are there.
pub async fn load<L: Layer>(layer: &L, at: Extent, runs: &mut Runs) -> Result<()> {
    load_some(layer, at, RUNS_MAX, runs).await
}

/// As [`load`], up to so many runs.
pub(crate) async fn load_some<L: Layer>(
    layer: &L,
    at: Extent,
    runs_max: usize,
    runs: &mut Runs,
) -> Result<()> {
    match layer.states(at, runs_max, runs) {
        Known::All => Ok(()),
        Known::Part if !runs.is_empty() => Ok(()),
        Known::Part => layer.load_states(at, runs_max, runs).await,
    }
}

/// Where runs that begin with `at` end. They cover something, or an engine broke its contract, which must not hang us.
pub fn end_of(runs: &Runs, at: Extent) -> Result<u64> {
    runs.last().map(|run| run.extent.end()).filter(|end| *end > at.offset()).ok_or_else(|| {
        Error::new(ErrorKind::Io, format!("the engine says nothing of the states at {at}"))
    })
}

/// The same extents in ascending order, neighbours merged.
pub fn merged(mut extents: Extents) -> Extents {
    extents.sort_unstable();
    let mut out = Extents::new();
    for extent in extents {
        match out.last_mut() {
            Some(last) if last.end() == extent.offset() => {
                *last = Extent::between(last.offset(), extent.end());
            }
            _ => out.push(extent),
        }
    }
    out
}

/// How often a chain is read again, from a new record on, because others changed it meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Attempts(u32);

impl Attempts {
    const MAX: u32 = 5;

    /// Whether an error may be one of a chain that is another by now, and it was not read too often.
    pub(crate) fn again(&mut self, error: &Error) -> bool {
        self.0 += 1;
        error.kind() == ErrorKind::NotFound && self.0 < Self::MAX
    }
}

/// Where the walk down a chain stands.
struct Walk<C> {
    catalog: C,
    record: ImageRecord,
    below: Below,
}

/// What lies below where a walk stood.
struct Lower {
    revision: Revision,
    /// How much of it is seen, in bytes.
    overlap: u64,
    /// Whether it is another image's.
    of_parent: bool,
}

impl<C: Catalog> Walk<C> {
    fn from(catalog: &C, record: &ImageRecord, revision: &Revision) -> Self {
        Self { catalog: catalog.clone(), record: record.clone(), below: revision.below.clone() }
    }

    /// Goes down one layer, if there is one. `NotFound` if a parent, or the revision of it that the link names, is gone because the
    /// link was changed since it was read: then a walk that begins with a new record finds another one.
    async fn down(&mut self, pools: &Pools<C>) -> Result<Option<Lower>> {
        let (id, overlap, link) = match &self.below {
            Below::Nothing => return Ok(None),
            Below::Own { revision, overlap } => (revision.clone(), *overlap, None),
            Below::Parent { link, overlap } => {
                (link.revision.clone(), *overlap, Some(link.clone()))
            }
        };
        if let Some(link) = &link {
            let catalog = pools.get(link.pool)?;
            let record = catalog.get(&link.image).await?;
            if record.revision(&id).is_none() {
                self.must_be_as_it_was().await?;
            }
            (self.catalog, self.record) = (catalog, record);
        }
        let revision = find_revision(&self.record, &id)?.clone();
        self.below = revision.below.clone();
        Ok(Some(Lower { revision, overlap, of_parent: link.is_some() }))
    }

    /// `NotFound` if the image has another record by now.
    async fn must_be_as_it_was(&self) -> Result<()> {
        if self.catalog.get(&self.record.id).await?.version == self.record.version {
            return Ok(());
        }
        let what = format!("image {} was changed while its chain was read", self.record.name);
        Err(Error::new(ErrorKind::NotFound, what))
    }
}

/// Opens all layers below a revision, with the limits they have when seen through it, and says how many of them are the
/// image's own. `Invalid` for a chain that is too deep or that comes back to where it was; `NotFound` if it is not any more as the
/// record says.
pub async fn open_below<C: Catalog>(
    pools: &Pools<C>,
    catalog: &C,
    record: &ImageRecord,
    revision: &RevisionId,
) -> Result<(Vec<Link<C::Layer>>, usize)> {
    let mut links = Vec::new();
    let mut own = 0;
    let mut inside_image = true;
    let mut seen: HashSet<(PoolId, RevisionId)> = HashSet::new();
    let start = find_revision(record, revision)?;
    let mut limit = start.size;
    let mut walk = Walk::from(catalog, record, start);
    while let Some(Lower { revision, overlap, of_parent }) = walk.down(pools).await? {
        inside_image &= !of_parent;
        if !seen.insert((walk.catalog.pool(), revision.id.clone())) || links.len() >= DEPTH_MAX {
            return Err(too_deep(record));
        }
        limit = limit.min(overlap).min(revision.size);
        let layer = walk.catalog.layer(&walk.record.id, &revision.id).await?;
        links.push(Link { layer, limit });
        own += usize::from(inside_image);
    }
    Ok((links, own))
}

/// How many layers a child of this revision would have below its own. Fails as [`open_below`] does.
pub async fn depth_of<C: Catalog>(
    pools: &Pools<C>,
    catalog: &C,
    record: &ImageRecord,
    revision: &RevisionId,
) -> Result<usize> {
    let mut depth = 1;
    let mut walk = Walk::from(catalog, record, find_revision(record, revision)?);
    while walk.down(pools).await?.is_some() {
        depth += 1;
        if depth > DEPTH_MAX {
            return Err(too_deep(record));
        }
    }
    Ok(depth)
}

fn find_revision<'a>(record: &'a ImageRecord, id: &RevisionId) -> Result<&'a Revision> {
    record.revision(id).ok_or_else(|| {
        Error::corrupt(format!(
            "image {} has no revision {id}, though a link names it",
            record.name
        ))
    })
}

/// The error for a chain that could not be opened any more, or that cannot be.
pub(crate) fn too_deep(record: &ImageRecord) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!(
            "the chain of image {} is deeper than {DEPTH_MAX} layers or leads back to itself; flatten an image in it, or remove snapshots",
            record.name
        ),
    )
}
