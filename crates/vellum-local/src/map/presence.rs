//! [`Presence`]: which pages of a map exist.

use vellum_core::Extent;

use crate::format::PAGE;

/// One bit a page: 2.1 MiB for an image of 1 PiB in blocks of 4 KiB, 17 MiB in blocks of 512 bytes, and nothing for pages behind the last that exists. A page that does not
/// exist is all inherited, without a look at the file.
#[derive(Debug, Default)]
pub(crate) struct Presence(Vec<u64>);

impl Presence {
    /// Whether a page may exist.
    pub(crate) fn has(&self, page: u64) -> bool {
        self.0.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 == 1)
    }

    /// Notes that a page exists.
    pub(crate) fn add(&mut self, page: u64) {
        let index = (page / 64) as usize;
        if self.0.len() <= index {
            self.0.resize(index + 1, 0);
        }
        self.0[index] |= 1 << (page % 64);
    }

    /// Notes the pages that an extent of the map file may hold. The header is no page.
    pub(crate) fn add_extent(&mut self, file: Extent, pages: u64) {
        let first = (file.offset() / PAGE as u64).max(1) - 1;
        let end = (file.end().div_ceil(PAGE as u64)).saturating_sub(1).min(pages);
        (first..end).for_each(|page| self.add(page));
    }

    /// The first page at or after `page` that may exist.
    pub(crate) fn next(&self, page: u64) -> Option<u64> {
        let start = (page / 64) as usize;
        let first = self.0.get(start)? >> (page % 64) << (page % 64);
        let words = std::iter::once(first).chain(self.0[start + 1..].iter().copied());
        let (index, word) = words.enumerate().find(|(_, word)| *word != 0)?;
        Some((start + index) as u64 * 64 + u64::from(word.trailing_zeros()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_across_words() {
        let mut presence = Presence::default();
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
    }

    #[test]
    fn the_header_is_no_page_and_a_page_touched_in_part_exists() {
        let mut presence = Presence::default();
        presence.add_extent(Extent::new(0, 4096), 100);
        assert_eq!(presence.next(0), None);
        presence.add_extent(Extent::new(4096 * 3 + 512, 4096), 100);
        assert!(!presence.has(1) && presence.has(2) && presence.has(3) && !presence.has(4));
        presence.add_extent(Extent::new(4096 * 90, 4096 * 1000), 100);
        assert!(presence.has(99) && !presence.has(100));
    }
}
