//! [`PageSet`]: which pages of a map exist, or are whole.

use std::ops::Range;

use vellum_core::Extent;

use crate::format::PAGE;

/// Some of a map's pages, one bit each: 2.1 MiB for an image of 1 PiB in blocks of 4 KiB, 17 MiB in blocks of 512 bytes, and
/// nothing for pages behind the last that is in it.
#[derive(Debug, Default)]
pub(crate) struct PageSet(Vec<u64>);

impl PageSet {
    /// Whether a page is in it.
    pub(crate) fn has(&self, page: u64) -> bool {
        self.0.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Notes a page.
    pub(crate) fn add(&mut self, page: u64) {
        let index = (page / 64) as usize;
        if self.0.len() <= index {
            self.0.resize(index + 1, 0);
        }
        self.0[index] |= 1 << (page % 64);
    }

    /// Notes the pages that an extent of the map file may hold, of `count` that lie behind the first `base` pages of the file.
    pub(crate) fn add_extent(&mut self, file: Extent, base: u64, count: u64) {
        let first = (file.offset() / PAGE as u64).saturating_sub(base);
        let end = file.end().div_ceil(PAGE as u64).saturating_sub(base).min(count);
        (first..end).for_each(|page| self.add(page));
    }

    /// Notes pages by words of bits, of which the first is that of this page, a multiple of 64.
    pub(crate) fn add_words(&mut self, page: u64, words: &[u64]) {
        let start = (page / 64) as usize;
        let length = words.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1);
        if length > 0 {
            self.0.resize(self.0.len().max(start + length), 0);
        }
        for (mine, word) in self.0.iter_mut().skip(start).zip(words) {
            *mine |= word;
        }
    }

    /// The words of bits from this page on, a multiple of 64.
    pub(crate) fn words<const N: usize>(&self, page: u64) -> [u64; N] {
        let start = (page / 64) as usize;
        std::array::from_fn(|index| self.0.get(start + index).copied().unwrap_or(0))
    }

    /// The first page in it at or after `page`.
    pub(crate) fn next(&self, page: u64) -> Option<u64> {
        self.next_in(page..u64::MAX)
    }

    /// The first of these pages that is in it. Looks at no others.
    pub(crate) fn next_in(&self, pages: Range<u64>) -> Option<u64> {
        let start = (pages.start / 64) as usize;
        let end = usize::try_from(pages.end.div_ceil(64))
            .map_or(self.0.len(), |end| end.min(self.0.len()));
        let words = self.0.get(start..end)?;
        let first = words.first()? >> (pages.start % 64) << (pages.start % 64);
        let words = std::iter::once(first).chain(words[1..].iter().copied());
        let (index, word) = words.enumerate().find(|(_, word)| *word != 0)?;
        let page = (start + index) as u64 * 64 + u64::from(word.trailing_zeros());
        (page < pages.end).then_some(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_across_words() {
        let mut presence = PageSet::default();
        assert_eq!(presence.next(0), None);
        for page in [0, 63, 64, 1000] {
            presence.add(page);
            assert!(presence.has(page));
        }
        assert!(!presence.has(1) && !presence.has(1 << 40));
        let after = |page| presence.next(page);
        assert_eq!(
            [after(0), after(1), after(64), after(65), after(1001)],
            [Some(0), Some(63), Some(64), Some(1000), None]
        );
        let within = |pages| presence.next_in(pages);
        assert_eq!(
            [
                within(0..1),
                within(1..63),
                within(1..64),
                within(65..1000),
                within(65..1001),
                within(7..7)
            ],
            [Some(0), None, Some(63), None, Some(1000), None]
        );
        assert_eq!(within(5000..9000), None);
    }

    #[test]
    fn the_header_is_no_page_and_a_page_touched_in_part_exists() {
        let mut presence = PageSet::default();
        presence.add_extent(Extent::new(0, 4096), 1, 100);
        assert_eq!(presence.next(0), None);
        presence.add_extent(Extent::new(4096 * 3 + 512, 4096), 1, 100);
        assert!(!presence.has(1) && presence.has(2) && presence.has(3) && !presence.has(4));
        presence.add_extent(Extent::new(4096 * 90, 4096 * 1000), 1, 100);
        assert!(presence.has(99) && !presence.has(100));
    }

    #[test]
    fn words_are_added_and_read_where_they_belong() {
        let mut presence = PageSet::default();
        presence.add_words(128, &[0, 0b10, 0]);
        presence.add_words(64, &[1 << 63, 0, 1]);
        presence.add_words(64, &[0; 200]);
        let found: Vec<_> = (0..1000).filter(|page| presence.has(*page)).collect();
        assert_eq!(found, [127, 192, 193]);
        assert_eq!(presence.words(64), [1 << 63, 0, 0b11, 0, 0]);
        assert_eq!(presence.words(1 << 40), [0; 3]);
    }
}
