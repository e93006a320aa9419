//! The allocation map of a layer in memory: which units are inherited, data or zero.
//!
//! [`page`] is a page of states, [`page_set`] says which pages exist at all, and which are whole on the medium, [`pages`] keeps pages: those that changed since
//! the last sync are pinned, all others come and go in a cache that all layers share. Nothing here does I/O.

pub(crate) mod page;
pub(crate) mod page_set;
pub(crate) mod pages;

use vellum_core::Extent;

use crate::format::sector::{PAGE_UNITS, SECTOR_UNITS, SECTORS};

/// How units and pages of a layer relate to bytes of the image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Units {
    /// Bytes in the image.
    pub size: u64,
    /// Bytes in a unit.
    pub block: u64,
}

impl Units {
    /// The units that an extent touches: the first, and the one after the last.
    pub(crate) fn span(self, at: Extent) -> (u64, u64) {
        (at.offset() / self.block, at.end().div_ceil(self.block))
    }

    /// Whole units around an extent, clipped to the image.
    pub(crate) fn around(self, at: Extent) -> Extent {
        at.align_out(self.block).clip(self.size)
    }

    /// The bytes from one unit up to another, clipped to the image.
    pub(crate) fn bytes(self, first: u64, end: u64) -> Extent {
        Extent::between(
            first.saturating_mul(self.block),
            end.saturating_mul(self.block).min(self.size),
        )
    }

    /// Bytes of the image that a page describes.
    pub(crate) fn page_size(self) -> u64 {
        PAGE_UNITS * self.block
    }

    /// The bytes of the image that a page describes.
    pub(crate) fn page_at(self, page: u64) -> Extent {
        self.bytes(page * PAGE_UNITS, (page + 1) * PAGE_UNITS)
    }

    /// How many units of a page lie in the image.
    pub(crate) fn units_in(self, page: u64) -> u64 {
        self.size.div_ceil(self.block).saturating_sub(page * PAGE_UNITS).min(PAGE_UNITS)
    }

    /// Pages that describe the image.
    pub(crate) fn pages(self) -> u64 {
        self.size.div_ceil(self.page_size())
    }

    /// The pieces of an extent that lie in one sector of states each, with the sector's number in the page.
    pub(crate) fn by_sector(self, at: Extent) -> impl Iterator<Item = (usize, Extent)> {
        let (mut rest, sector_size) = (at, SECTOR_UNITS * self.block);
        std::iter::from_fn(move || {
            (!rest.is_empty()).then(|| {
                let sector = rest.offset() / sector_size;
                let (piece, after) = rest.split((sector + 1).saturating_mul(sector_size));
                rest = after;
                (sector as usize % SECTORS, piece)
            })
        })
    }

    /// The pieces of an extent that lie in one page each, with the page's number.
    pub(crate) fn by_page(self, at: Extent) -> impl Iterator<Item = (u64, Extent)> {
        let (mut rest, page_size) = (at, self.page_size());
        std::iter::from_fn(move || {
            (!rest.is_empty()).then(|| {
                let page = rest.offset() / page_size;
                let (piece, after) = rest.split((page + 1).saturating_mul(page_size));
                rest = after;
                (page, piece)
            })
        })
    }
}
