//! Copy-up: the content that inherited units take from below before a part of them can be written.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::SemaphorePermit;
use vellum_core::Extent;
use vellum_engine::{Catalog, Content, Fill, Guarded, Head, Missing, Part, Result};

use crate::Image;
use crate::chain::{Extents, merged};
use crate::image::View;
use crate::steps::Step;

/// Zeros are told from data in steps of this many bytes (or of a unit, if that is larger): finer steps would cut a copied
/// object into slivers for little gain.
const ZERO_STEP: u64 = 64 << 10;

impl<C: Catalog> Image<C> {
    /// What must be filled so that `piece` can be written although these units are inherited. In `sparse` mode and where the
    /// parent image is not involved, the units written in part; in `copy-up` mode, where something is taken from the
    /// parent image, its whole object. Comes with the permit for its memory.
    pub(crate) async fn parts_for_write(
        &self,
        view: &Arc<View<C>>,
        piece: Extent,
        missing: &Missing,
    ) -> Result<(Vec<Part>, SemaphorePermit<'_>)> {
        let (block, size) = (view.block(), view.size());
        let covered = whole_units(piece, size, block);
        let mut units: Extents = missing.iter().flat_map(|unit| subtract(*unit, covered)).collect();
        if view.copies_objects() && self.takes_from_parent(view, missing).await? {
            let objects = self.parent_units_of_objects(view, piece, 0).await?;
            units.extend(objects.iter().flat_map(|unit| subtract(*unit, covered)));
        }
        units.sort_unstable();
        let units = merged_overlapping(units);
        self.0.copy_ups.fetch_add(1, Ordering::Relaxed);
        let budget = self.copy_up_budget(&units).await?;
        Ok((self.content_of(view, &units).await?, budget))
    }

    /// Fills the whole objects that `piece` touches, under all revisions that share them, before anything else touches them.
    /// `Again`, and nothing was filled, if the image is not what it was any more.
    pub(crate) async fn fill_objects(&self, view: &Arc<View<C>>, piece: Extent) -> Result<Step> {
        let units = self.parent_units_of_objects(view, piece, 0).await?;
        let _budget = self.copy_up_budget(&units).await?;
        let parts = self.content_of(view, &units).await?;
        let _pass = self.0.gate.enter().await;
        if self.view().epoch != view.epoch {
            return Ok(Step::Again);
        }
        match view.writer()?.fill(Fill { parts, then: None }).await? {
            Guarded::Done | Guarded::Missing(_) => Ok(Step::Done(())),
            Guarded::Sealed => self.expect_successor(view).map(|()| Step::Again),
        }
    }

    /// Whether any of these units would be taken from the parent image, and not all of what it takes is known to be zeros.
    async fn takes_from_parent(&self, view: &View<C>, units: &[Extent]) -> Result<bool> {
        let own = view.chain.own();
        for unit in units {
            for through in view.chain.undefined_in(1..own, *unit).await? {
                let data = view.chain.data_in(own..view.chain.links().len(), through).await?;
                if !data.is_empty() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The units of the objects under `piece` that none of the image's own layers from `first` on defines, as far as the
    /// parent image can be seen.
    async fn parent_units_of_objects(
        &self,
        view: &View<C>,
        piece: Extent,
        first: usize,
    ) -> Result<Extents> {
        let (own, limit, size) = (view.chain.own(), view.chain.parent_limit(), view.size());
        let mut units = Extents::new();
        for object in view.record.geometry.objects(piece) {
            for extent in view.record.geometry.object_image_extents(object.object, size) {
                for through in view.chain.undefined_in(first..own, extent.clip(limit)).await? {
                    if !through.is_empty() {
                        units.push(through.align_out(view.block()).clip(size));
                    }
                }
            }
        }
        Ok(merged(units))
    }

    /// What these units read as through the layers below the head, as parts to fill.
    async fn content_of(&self, view: &View<C>, units: &[Extent]) -> Result<Vec<Part>> {
        let mut parts = Vec::with_capacity(units.len());
        for unit in units {
            let content = self.read_below(&view.chain, *unit).await?.freeze();
            split_zeros(*unit, content, view.block(), &mut parts);
        }
        Ok(parts)
    }

    async fn copy_up_budget(&self, units: &[Extent]) -> Result<SemaphorePermit<'_>> {
        let wanted: u64 = units.iter().map(Extent::length).sum();
        // A copy-up larger than the whole budget takes all of it, alone.
        let permits = u32::try_from(wanted).unwrap_or(u32::MAX).min(self.0.copy_up_bytes_max);
        Ok(self
            .0
            .copy_up_bytes
            .acquire_many(permits)
            .await
            .expect("this semaphore is never closed"))
    }
}

/// The whole units inside an extent; a short last unit of the image that it reaches the end of counts as whole.
pub(crate) fn whole_units(at: Extent, size: u64, unit: u64) -> Extent {
    let inside = at.align_in(unit);
    if at.end() == size && at.offset() <= size.align_down(unit) {
        return Extent::between(at.offset().next_multiple_of(unit), size);
    }
    inside
}

trait AlignDown {
    fn align_down(self, unit: u64) -> Self;
}

impl AlignDown for u64 {
    fn align_down(self, unit: u64) -> u64 {
        self & !(unit - 1)
    }
}

/// What is left of `extent` without `hole`.
pub(crate) fn subtract(extent: Extent, hole: Extent) -> impl Iterator<Item = Extent> {
    let overlap = if hole.is_empty() {
        Extent::between(extent.end(), extent.end())
    } else {
        extent.intersect(&hole)
    };
    let overlap =
        if overlap.is_empty() { Extent::between(extent.end(), extent.end()) } else { overlap };
    [extent.split(overlap.offset()).0, extent.split(overlap.end()).1]
        .into_iter()
        .filter(|part| !part.is_empty())
}

/// Sorted extents, overlapping and neighbouring ones merged.
pub(crate) fn merged_overlapping(sorted: Extents) -> Extents {
    let mut out = Extents::new();
    for extent in sorted {
        match out.last_mut() {
            Some(last) if last.end() >= extent.offset() => {
                *last = Extent::between(last.offset(), last.end().max(extent.end()));
            }
            _ => out.push(extent),
        }
    }
    out
}

/// Appends `at` as parts of data and of zeros: all-zero content needs no data.
pub(crate) fn split_zeros(at: Extent, content: Bytes, unit: u64, parts: &mut Vec<Part>) {
    let mut run = Extent::between(at.offset(), at.offset());
    let mut run_is_zero = false;
    let mut push = |run: Extent, zero: bool| {
        if !run.is_empty() {
            let content =
                if zero { Content::Zero } else { Content::Data(content.slice(at.range_of(&run))) };
            parts.push(Part { at: run, content });
        }
    };
    for step in at.chunks(ZERO_STEP.max(unit)) {
        let zero = is_zero(&content[at.range_of(&step)]);
        if zero != run_is_zero {
            push(run, run_is_zero);
            run = Extent::between(step.offset(), step.offset());
            run_is_zero = zero;
        }
        run = Extent::between(run.offset(), step.end());
    }
    push(run, run_is_zero);
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Sixteen bytes at a time, which the compiler turns into vector instructions.
    let (chunks, rest) = bytes.as_chunks::<16>();
    chunks.iter().all(|chunk| *chunk == [0; 16]) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_covered_wholly() {
        let check = |offset, length, size, want: (u64, u64)| {
            let got = whole_units(Extent::new(offset, length), size, 4096);
            let got = if got.is_empty() { (0, 0) } else { (got.offset(), got.length()) };
            assert_eq!(got, want, "{offset}+{length} of {size}");
        };
        check(0, 4096, 1 << 20, (0, 4096));
        check(1, 8191, 1 << 20, (4096, 4096));
        check(1, 4095, 1 << 20, (0, 0));
        check(8192, 100, 8292, (8192, 100)); // the short last unit, to its end
        check(8192, 99, 8292, (0, 0));
        check(8193, 99, 8292, (0, 0));
        check(4000, 4292, 8292, (4096, 4196));
        check(8200, 92, 8292, (0, 0));
    }

    #[test]
    fn what_is_left_without_a_hole() {
        let left = |hole: (u64, u64)| -> Vec<(u64, u64)> {
            subtract(Extent::new(10, 10), Extent::new(hole.0, hole.1))
                .map(|e| (e.offset(), e.end()))
                .collect()
        };
        assert_eq!(left((0, 5)), [(10, 20)]);
        assert_eq!(left((12, 0)), [(10, 20)]);
        assert_eq!(left((12, 3)), [(10, 12), (15, 20)]);
        assert_eq!(left((5, 7)), [(12, 20)]);
        assert_eq!(left((15, 9)), [(10, 15)]);
        assert_eq!(left((10, 10)), []);
        assert_eq!(left((30, 3)), [(10, 20)]);
    }

    #[test]
    fn zeros_become_parts_of_their_own() {
        let mut content = vec![0u8; 256 << 10];
        content[(64 << 10) + 7] = 1;
        content[(200 << 10) + 7] = 1;
        let at = Extent::new(1 << 20, content.len() as u64);
        let mut parts = Vec::new();
        split_zeros(at, content.into(), 4096, &mut parts);
        let shape: Vec<_> = parts
            .iter()
            .map(|part| {
                (
                    (part.at.offset() - at.offset()) >> 10,
                    part.at.length() >> 10,
                    matches!(part.content, Content::Data(_)),
                )
            })
            .collect();
        assert_eq!(shape, [(0, 64, false), (64, 64, true), (128, 64, false), (192, 64, true)]);
    }

    #[test]
    fn one_byte_anywhere_is_not_zero() {
        for length in [1, 15, 16, 17, 4096] {
            assert!(is_zero(&vec![0; length]));
            for at in [0, length / 2, length - 1] {
                let mut bytes = vec![0; length];
                bytes[at] = 1;
                assert!(!is_zero(&bytes));
            }
        }
    }
}
