//! [`Resolved`]: which layer of the frozen part of a chain holds what, kept in a [`ResolvedCache`] that images share.
//!
//! All layers of a chain but the first are frozen, so where a read ends up in them never changes while the chain is the image's
//! chain. Without this cache a read at depth *d* asks *d* layers; with it, the first one and the one that has the data. A
//! copy-up into a frozen layer (flatten) changes who holds a block, not what it reads as, so an answer from before stays
//! good for as long as the layers are open.
//!
//! This is a cache of states that were read from the layers themselves, and it is used for reading alone: what must be copied
//! before a link is cut is asked of the layers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter, sync::DefaultLifecycle};
use vellum_core::{Extent, State};
use vellum_engine::{Layer, Result};

use crate::chain::Chain;

/// Units in a page: with blocks of 4 KiB, 16 MiB of the image.
const PAGE_UNITS: u64 = 4096;
/// The holder of what reads as zeros.
const NOBODY: u16 = u16::MAX;
/// Chains with fewer layers are asked directly.
const LAYERS_MIN: usize = 4;
const BYTES_EACH: u64 = PAGE_UNITS * 2;
/// What a page that is all of one holder is counted as.
const BYTES_ALL: u64 = 64;

/// For each unit, the index of the link that holds it.
enum Page {
    All(u16),
    Each(Box<[u16]>),
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Arc<Page>> for ByBytes {
    fn weight(&self, _: &Key, page: &Arc<Page>) -> u64 {
        match **page {
            Page::All(_) => BYTES_ALL,
            Page::Each(_) => BYTES_EACH,
        }
    }
}

/// The number of a chain, and that of a page.
type Key = (u64, u64);

/// Memory for what deep chains are resolved to, with a maximum for all images that share it. Clones share it.
#[derive(Clone)]
pub struct ResolvedCache(Arc<Shared>);

struct Shared {
    pages: Cache<Key, Arc<Page>, ByBytes>,
    next_chain: AtomicU64,
}

impl ResolvedCache {
    /// A cache of so many bytes; 32 MiB are enough for 64 GiB of scattered blocks.
    pub fn new(bytes_max: u64) -> Self {
        let options = OptionsBuilder::new()
            .estimated_items_capacity((bytes_max / BYTES_EACH).max(1) as usize)
            .weight_capacity(bytes_max)
            .build()
            .expect("both capacities are given");
        let (hash, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        let pages = Cache::with_options(options, ByBytes, hash, lifecycle);
        Self(Arc::new(Shared { pages, next_chain: AtomicU64::new(0) }))
    }
}

impl Default for ResolvedCache {
    /// 64 MiB.
    fn default() -> Self {
        Self::new(64 << 20)
    }
}

impl fmt::Debug for ResolvedCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResolvedCache({} pages)", self.0.pages.len())
    }
}

/// What is remembered of one chain.
#[derive(Debug)]
pub(crate) struct Resolved {
    cache: ResolvedCache,
    /// Which chain this is in the cache: what was remembered of another one is never taken for this one's.
    chain: u64,
    /// Bytes in the smallest unit of any frozen layer.
    unit: u64,
}

impl Resolved {
    /// For a chain of these units, if it is deep enough to gain by it.
    pub(crate) fn for_units(
        cache: &ResolvedCache,
        units: impl ExactSizeIterator<Item = u64>,
    ) -> Option<Arc<Self>> {
        if units.len() < LAYERS_MIN || units.len() >= usize::from(NOBODY) {
            return None;
        }
        let chain = cache.0.next_chain.fetch_add(1, Ordering::Relaxed);
        Some(Arc::new(Self { cache: cache.clone(), chain, unit: units.skip(1).min()? }))
    }

    fn page(&self, number: u64) -> Option<Arc<Page>> {
        self.cache.0.pages.get(&(self.chain, number))
    }

    /// Tells `visit`, in ascending order, of the pieces of `at` and the link that holds each, `None` for zeros. `false`, and
    /// nothing may be relied on, if a page is not in memory or `visit` says so.
    pub(crate) fn visit(
        &self,
        at: Extent,
        mut visit: impl FnMut(Extent, Option<usize>) -> bool,
    ) -> bool {
        at.chunks(self.page_size()).all(|piece| {
            let Some(page) = self.page(piece.offset() / self.page_size()) else { return false };
            match &*page {
                Page::All(holder) => visit(piece, link(*holder)),
                Page::Each(holders) => self.visit_each(piece, holders, &mut visit),
            }
        })
    }

    fn visit_each(
        &self,
        piece: Extent,
        holders: &[u16],
        visit: &mut impl FnMut(Extent, Option<usize>) -> bool,
    ) -> bool {
        let start = piece.offset() / self.page_size() * self.page_size();
        let index_of = |offset: u64| ((offset - start) / self.unit) as usize;
        let mut rest = piece;
        while !rest.is_empty() {
            let first = index_of(rest.offset());
            let holder = holders[first];
            let alike = holders[first..].iter().take_while(|other| **other == holder).count();
            let (run, after) = rest.split(start + (first + alike) as u64 * self.unit);
            if !visit(run, link(holder)) {
                return false;
            }
            rest = after;
        }
        true
    }

    /// Brings the pages of `at` into memory.
    pub(crate) async fn load<L: Layer>(&self, chain: &Chain<L>, at: Extent) -> Result<()> {
        for piece in at.chunks(self.page_size()) {
            let number = piece.offset() / self.page_size();
            if self.page(number).is_none() {
                let whole = Extent::new(number * self.page_size(), self.page_size())
                    .clip(chain.top().size());
                let page = self.resolve(chain, whole).await?;
                self.cache.0.pages.insert((self.chain, number), Arc::new(page));
            }
        }
        Ok(())
    }

    async fn resolve<L: Layer>(&self, chain: &Chain<L>, whole: Extent) -> Result<Page> {
        let mut holders = vec![NOBODY; PAGE_UNITS as usize];
        chain
            .walk(1..chain.links().len(), whole, |piece, state, link| {
                if let (State::Data, Some(link)) = (state, link) {
                    // Only a limit that is not a multiple of the unit cuts a unit in two; the walk has told the rest as zeros,
                    // and a reader clips to the limit again.
                    let first = (piece.offset() - whole.offset()) / self.unit;
                    let end = (piece.end() - whole.offset()).div_ceil(self.unit);
                    holders[first as usize..end as usize].fill(link as u16);
                }
            })
            .await?;
        let units = whole.length().div_ceil(self.unit) as usize;
        let first = holders[0];
        if holders[..units].iter().all(|holder| *holder == first) {
            return Ok(Page::All(first));
        }
        Ok(Page::Each(holders.into_boxed_slice()))
    }

    fn page_size(&self) -> u64 {
        PAGE_UNITS * self.unit
    }
}

fn link(holder: u16) -> Option<usize> {
    (holder != NOBODY).then_some(usize::from(holder))
}
