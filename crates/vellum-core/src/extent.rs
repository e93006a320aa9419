//! [`Extent`]: a range of bytes, by offset and length.

use std::fmt;

/// A range of bytes `[offset, offset + length)` of an image, an object or a file.
///
/// Invariant: `offset + length` does not overflow a `u64`, so [`end`](Self::end) is always exact.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Extent {
    offset: u64,
    length: u64,
}

impl Extent {
    /// An extent from numbers known to be sane, such as ones already checked against an image's size.
    ///
    /// # Panics
    /// If the end would overflow. Numbers from outside go through [`Extent::checked`].
    #[inline]
    pub const fn new(offset: u64, length: u64) -> Self {
        assert!(offset.checked_add(length).is_some(), "the end of an extent overflows");
        Self { offset, length }
    }

    /// An extent from numbers of unknown origin, or `None` if its end would overflow.
    #[inline]
    pub const fn checked(offset: u64, length: u64) -> Option<Self> {
        if offset.checked_add(length).is_some() { Some(Self { offset, length }) } else { None }
    }

    /// The extent from `start` up to, not including, `end`; empty (at `start`) if `end <= start`.
    #[inline]
    pub const fn between(start: u64, end: u64) -> Self {
        Self { offset: start, length: end.saturating_sub(start) }
    }

    /// The first byte.
    #[inline]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes.
    #[inline]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// The first byte after the extent.
    #[inline]
    pub const fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// Whether it covers no byte.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The length as a `usize`, for an extent that has a buffer in memory.
    ///
    /// # Panics
    /// If it does not fit, which cannot happen for an extent that is backed by memory.
    #[inline]
    pub fn len_usize(&self) -> usize {
        usize::try_from(self.length).expect("an extent in memory fits a usize")
    }

    /// Whether `other` lies wholly inside. An empty `other` lies inside where its offset does.
    #[inline]
    pub const fn contains(&self, other: &Extent) -> bool {
        self.offset <= other.offset && other.end() <= self.end()
    }

    /// Whether the two share at least one byte.
    #[inline]
    pub const fn overlaps(&self, other: &Extent) -> bool {
        self.offset < other.end()
            && other.offset < self.end()
            && !self.is_empty()
            && !other.is_empty()
    }

    /// What the two share; empty if nothing.
    #[inline]
    pub fn intersect(&self, other: &Extent) -> Extent {
        Extent::between(self.offset.max(other.offset), self.end().min(other.end()))
    }

    /// The part below `limit`.
    #[inline]
    pub fn clip(&self, limit: u64) -> Extent {
        Extent::between(self.offset.min(limit), self.end().min(limit))
    }

    /// The parts below `at` and from `at` on.
    #[inline]
    pub fn split(&self, at: u64) -> (Extent, Extent) {
        let at = at.clamp(self.offset, self.end());
        (Extent::between(self.offset, at), Extent::between(at, self.end()))
    }

    /// The smallest extent of whole units of `unit` bytes (a power of two) that covers this one.
    /// Saturates at the largest multiple a `u64` can hold.
    #[inline]
    pub fn align_out(&self, unit: u64) -> Extent {
        debug_assert!(unit.is_power_of_two());
        if self.is_empty() {
            return *self;
        }
        let mask = unit - 1;
        let end = self.end().checked_add(mask).map_or(!mask, |end| end & !mask);
        Extent::between(self.offset & !mask, end)
    }

    /// The largest extent of whole units of `unit` bytes (a power of two) inside this one; may be empty.
    #[inline]
    pub fn align_in(&self, unit: u64) -> Extent {
        debug_assert!(unit.is_power_of_two());
        let mask = unit - 1;
        match self.offset.checked_add(mask) {
            Some(start) => Extent::between(start & !mask, self.end() & !mask),
            None => Extent::between(self.offset, self.offset),
        }
    }

    /// The extent moved so that it starts at `offset`.
    #[inline]
    pub const fn moved_to(&self, offset: u64) -> Extent {
        Extent::new(offset, self.length)
    }

    /// Where `inner`, which lies inside, sits in a buffer that holds this extent.
    ///
    /// # Panics
    /// If `inner` does not lie inside.
    #[inline]
    pub fn range_of(&self, inner: &Extent) -> std::ops::Range<usize> {
        assert!(self.contains(inner), "{inner:?} does not lie in {self:?}");
        let start = (inner.offset - self.offset) as usize;
        start..start + inner.len_usize()
    }

    /// Pieces of at most `length` bytes, cut at multiples of `length` (a power of two), in ascending order.
    pub fn chunks(&self, length: u64) -> impl Iterator<Item = Extent> + use<> {
        assert!(length.is_power_of_two(), "chunks are cut at multiples of a power of two");
        let (mut at, end) = (self.offset, self.end());
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let next = (at | (length - 1)).saturating_add(1).min(end);
                Extent::between(std::mem::replace(&mut at, next), next)
            })
        })
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.offset, self.length)
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "offset {} length {}", self.offset, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn alignment_cases() {
        let check = |offset, length, out: (u64, u64), inside: (u64, u64)| {
            let e = Extent::new(offset, length);
            let (o, i) = (e.align_out(4096), e.align_in(4096));
            assert_eq!((o.offset(), o.length()), out, "{e:?} out");
            assert_eq!((i.offset(), i.length()), inside, "{e:?} in");
        };
        check(0, 4096, (0, 4096), (0, 4096));
        check(1, 4095, (0, 4096), (4096, 0));
        check(0, 4095, (0, 4096), (0, 0));
        check(100, 8192, (0, 12288), (4096, 4096));
        check(4096, 0, (4096, 0), (4096, 0));
    }

    #[test]
    fn an_end_that_overflows_is_refused() {
        assert!(Extent::checked(u64::MAX, 1).is_none());
        assert_eq!(Extent::checked(u64::MAX - 1, 1).unwrap().end(), u64::MAX);
        assert_eq!(Extent::checked(u64::MAX - 1, 1).unwrap().align_out(4096).end(), !4095);
    }

    proptest! {
        #[test]
        fn chunks_cover_exactly_and_never_cross_a_multiple(offset in 0u64..1 << 40, length in 0u64..1 << 22) {
            let extent = Extent::new(offset, length);
            let mut at = offset;
            for chunk in extent.chunks(1 << 16) {
                prop_assert_eq!(chunk.offset(), at);
                prop_assert!(!chunk.is_empty() && chunk.offset() >> 16 == (chunk.end() - 1) >> 16);
                at = chunk.end();
            }
            prop_assert_eq!(at, extent.end());
        }

        #[test]
        fn split_parts_meet_and_cover(offset in 0u64..1 << 20, length in 0u64..1 << 20, at in 0u64..1 << 21) {
            let extent = Extent::new(offset, length);
            let (low, high) = extent.split(at);
            prop_assert_eq!(low.offset(), extent.offset());
            prop_assert_eq!(low.end(), high.offset());
            prop_assert_eq!(high.end(), extent.end());
        }
    }
}
