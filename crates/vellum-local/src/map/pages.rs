//! [`Pages`]: the pages of one layer that are in memory.
//!
//! A page that changed since the last sync is *pinned*: it stays, and it is the one that everybody sees. All others live in a
//! cache that the layers of a store share. Bits are set and a page is marked as changed in one step under one lock, so that a
//! sync which takes the changed pages finds every bit whose log record it is about to drop.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use parking_lot::RwLock;
use quick_cache::sync::Cache;
use vellum_core::{Extent, Runs, State};

use super::Units;
use super::page::Page;
use super::page_set::PageSet;
use crate::format::ledger::PAGES_NAMED;
use crate::format::sector::{PAGE_UNITS, PAGE_WORDS};

/// The cache that all layers of a store share: pages by the number of an open layer and their own.
pub(crate) type PageCache = Cache<(u64, u64), Arc<Page>>;

/// The pages of one layer.
#[derive(Debug)]
pub(crate) struct Pages {
    units: Units,
    /// Which open layer this is in the cache; not the layer's id, since a layer may be opened anew and start without pages.
    key: u64,
    cache: Arc<PageCache>,
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Those that may exist: all others are all inherited, without a look at the file.
    present: PageSet,
    /// Those that the ledger names: all their sectors are on the medium.
    whole: PageSet,
    /// Those that were made whole since the last sync began, and are to be named.
    fresh: BTreeSet<u64>,
    /// Those that the sync under way is going to name. States that come into them meanwhile are published by the next one.
    entering: BTreeSet<u64>,
    pinned: HashMap<u64, Arc<Page>>,
    changed: BTreeSet<u64>,
    /// Raised whenever a page is unpinned: whoever read a page from disk before that may have read what it was.
    unpinned: u64,
}

/// Where a page is.
pub(crate) enum Found {
    /// Nowhere: it does not exist, and all its units are inherited.
    Absent,
    /// In memory.
    Here(Arc<Page>),
    /// On disk, where no sector of it may be missing if the ledger names it. [`Pages::loaded`] takes it, with this ticket.
    OnDisk { ticket: Ticket, is_whole: bool },
}

/// Tells a page that was read in time from one that may be stale.
#[derive(Clone, Copy)]
pub(crate) struct Ticket(u64);

impl Pages {
    /// `present` are the pages that may exist, and `whole` those that the ledger names.
    pub(crate) fn new(
        units: Units,
        key: u64,
        cache: Arc<PageCache>,
        present: PageSet,
        whole: PageSet,
    ) -> Self {
        let inner = Inner { present, whole, ..Inner::default() };
        Self { units, key, cache, inner: RwLock::new(inner) }
    }

    pub(crate) fn find(&self, page: u64) -> Found {
        let inner = self.inner.read();
        if !inner.present.has(page) {
            return Found::Absent;
        }
        match inner.pinned.get(&page).cloned().or_else(|| self.cache.get(&(self.key, page))) {
            Some(page) => Found::Here(page),
            None => {
                Found::OnDisk { ticket: Ticket(inner.unpinned), is_whole: inner.whole.has(page) }
            }
        }
    }

    /// Takes a page that was read from disk. `None` if it may be stale: then look again.
    pub(crate) fn loaded(&self, page: u64, ticket: Ticket, content: Page) -> Option<Arc<Page>> {
        let inner = self.inner.write();
        if let Some(pinned) = inner.pinned.get(&page) {
            return Some(pinned.clone());
        }
        if inner.unpinned != ticket.0 {
            return None;
        }
        let content = Arc::new(content);
        self.cache.insert((self.key, page), content.clone());
        Some(content)
    }

    /// Notes that all of a page was written, with this content, which is what the map had of it.
    pub(crate) fn made_whole(&self, page: u64, content: Page) {
        let mut inner = self.inner.write();
        debug_assert!(!inner.pinned.contains_key(&page), "it is made whole before it changes");
        self.cache.insert((self.key, page), Arc::new(content));
        inner.present.add(page);
        inner.fresh.insert(page);
    }

    /// Whether states may be put into a page: the next sync finds all of it on the medium, or puts it there first.
    pub(crate) fn is_ready(&self, page: u64) -> bool {
        let inner = self.inner.read();
        inner.whole.has(page)
            || inner.fresh.contains(&page)
            || inner.entering.contains(&page)
            || inner.pinned.contains_key(&page)
    }

    /// Takes the set of pages that were made whole. Whoever takes the changed pages before has here all of those among them
    /// that the ledger does not name.
    pub(crate) fn take_fresh(&self) -> BTreeSet<u64> {
        let mut inner = self.inner.write();
        inner.entering = std::mem::take(&mut inner.fresh);
        inner.entering.clone()
    }

    /// Notes that these pages are whole on the medium. Returns the pages of the ledger that must say so, with their content.
    pub(crate) fn enter(&self, fresh: &BTreeSet<u64>) -> Vec<(u64, [u64; PAGE_WORDS])> {
        let mut inner = self.inner.write();
        fresh.iter().for_each(|page| inner.whole.add(*page));
        inner.entering.clear();
        let mut ledger: Vec<u64> = fresh.iter().map(|page| page / PAGES_NAMED).collect();
        ledger.dedup();
        ledger.into_iter().map(|number| (number, inner.whole.words(number * PAGES_NAMED))).collect()
    }

    /// A page of the ledger.
    pub(crate) fn ledger(&self, number: u64) -> [u64; PAGE_WORDS] {
        self.inner.read().whole.words(number * PAGES_NAMED)
    }

    /// The first page at or after `page` that may exist on disk.
    pub(crate) fn next_present(&self, page: u64) -> Option<u64> {
        self.inner.read().present.next(page)
    }

    /// The first of these pages that may exist on disk. Looks at no others.
    pub(crate) fn next_present_in(&self, pages: Range<u64>) -> Option<u64> {
        self.inner.read().present.next_in(pages)
    }

    pub(crate) fn is_present(&self, page: u64) -> bool {
        self.inner.read().present.has(page)
    }

    /// The states of a beginning of `at`, as far as pages are in memory, and up to `runs_max` runs. Returns where it ends.
    pub(crate) fn states(&self, at: Extent, runs_max: usize, out: &mut Runs) -> u64 {
        let mut rest = at;
        while !rest.is_empty() && out.len() < runs_max {
            let page = rest.offset() / self.units.page_size();
            let stop = match self.find(page) {
                Found::Absent => {
                    let next = self.inner.read().present.next(page);
                    let end =
                        next.map_or(u64::MAX, |next| next.saturating_mul(self.units.page_size()));
                    let (absent, _) = rest.split(end);
                    out.push(absent, State::Inherited);
                    absent.end()
                }
                Found::Here(content) => {
                    let (piece, _) = rest.split((page + 1).saturating_mul(self.units.page_size()));
                    self.runs_in(page, &content, piece, runs_max, out)
                }
                Found::OnDisk { .. } => return rest.offset(),
            };
            rest = rest.split(stop).1;
        }
        rest.offset()
    }

    fn runs_in(
        &self,
        page: u64,
        content: &Page,
        piece: Extent,
        runs_max: usize,
        out: &mut Runs,
    ) -> u64 {
        let base = page * PAGE_UNITS;
        let (first, end) = self.units.span(piece);
        let mut stop = piece.offset();
        content.runs(first - base, end - base, |from, to, state| {
            let bytes = self.units.bytes(base + from, base + to).intersect(&piece);
            out.push(bytes, state);
            stop = bytes.end();
            out.len() < runs_max
        });
        stop
    }

    /// Sets units and marks their pages as changed, if all those pages are in memory; else says which is missing, and nothing
    /// has changed.
    pub(crate) fn change(&self, changes: &[(Extent, State)]) -> Result<(), u64> {
        let mut inner = self.inner.write();
        for (at, _) in changes {
            for (page, _) in self.units.by_page(*at) {
                if let Entry::Vacant(vacant) = inner.pinned.entry(page) {
                    vacant.insert(self.cache.get(&(self.key, page)).ok_or(page)?);
                }
            }
        }
        for (at, state) in changes {
            for (page, piece) in self.units.by_page(*at) {
                let base = page * PAGE_UNITS;
                let (first, end) = self.units.span(piece);
                inner.pinned[&page].set(first - base, end - base, *state);
                inner.changed.insert(page);
            }
        }
        Ok(())
    }

    /// Whether all states of an extent are on the medium as they are in memory.
    pub(crate) fn are_durable(&self, at: Extent) -> bool {
        let inner = self.inner.read();
        self.units.by_page(at).all(|(page, _)| !inner.pinned.contains_key(&page))
    }

    /// Whether a page changed since the last sync began.
    pub(crate) fn has_changes(&self) -> bool {
        !self.inner.read().changed.is_empty()
    }

    /// How many pages changed since the last sync began.
    pub(crate) fn changes(&self) -> usize {
        self.inner.read().changed.len()
    }

    /// Takes the set of changed pages, as copies: what changes from now on belongs to the next sync.
    pub(crate) fn take_changed(&self) -> Vec<(u64, [u64; PAGE_WORDS])> {
        let mut inner = self.inner.write();
        let changed = std::mem::take(&mut inner.changed);
        changed.into_iter().map(|page| (page, inner.pinned[&page].words())).collect()
    }

    /// The copies of these pages are durable: those that did not change again may leave memory.
    pub(crate) fn synced(&self, pages: impl Iterator<Item = u64>) {
        let mut inner = self.inner.write();
        inner.unpinned += 1;
        for page in pages {
            if !inner.changed.contains(&page)
                && let Some(content) = inner.pinned.remove(&page)
            {
                self.cache.insert((self.key, page), content);
            }
        }
    }
}
