//! [`Presence`]: which data objects there are, one bit each, in pages of which only those are kept that have one.
//!
//! It may say of an object that it is there though it is not, never the other way round.

use std::collections::BTreeMap;

/// Objects in a page.
const IN_PAGE: u64 = 4096;
const WORDS: usize = (IN_PAGE / 64) as usize;
/// A page as it is stored: its bits, 64 in a number, little endian, and their checksum.
const STORED: usize = WORDS * 8 + 4;

/// Which data objects there are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Presence {
    pages: BTreeMap<u64, Box<[u64; WORDS]>>,
}

impl Presence {
    /// Notes that an object is there. Whether that is news.
    pub fn insert(&mut self, object: u64) -> bool {
        let (page, word, bit) = place(object);
        let words = self.pages.entry(page).or_insert_with(|| Box::new([0; WORDS]));
        let is_new = words[word] & bit == 0;
        words[word] |= bit;
        is_new
    }

    /// Notes that objects from one on are not there.
    pub fn remove_from(&mut self, first: u64) {
        let (page, word, bit) = place(first);
        self.pages.split_off(&(page + 1));
        if let Some(words) = self.pages.get_mut(&page) {
            words[word] &= bit - 1;
            words[word + 1..].fill(0);
            if words.iter().all(|word| *word == 0) {
                self.pages.remove(&page);
            }
        }
    }

    /// Whether an object may be there.
    pub fn contains(&self, object: u64) -> bool {
        let (page, word, bit) = place(object);
        self.pages.get(&page).is_some_and(|words| words[word] & bit != 0)
    }

    /// The first object from one on that may be there.
    pub fn next(&self, from: u64) -> Option<u64> {
        let (first, word, _) = place(from);
        self.pages.range(first..).find_map(|(page, words)| {
            let start = if *page == first { word } else { 0 };
            (start..WORDS).find_map(|word| {
                let mut bits = words[word];
                if *page == first && word == start {
                    bits &= u64::MAX << (from % 64);
                }
                (bits != 0)
                    .then(|| page * IN_PAGE + word as u64 * 64 + u64::from(bits.trailing_zeros()))
            })
        })
    }

    /// All that may be there, in their order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.iter_from(0)
    }

    /// Those from one on that may be there, in their order.
    pub fn iter_from(&self, first: u64) -> impl Iterator<Item = u64> + '_ {
        let mut from = Some(first);
        std::iter::from_fn(move || {
            let found = self.next(from?)?;
            from = found.checked_add(1);
            Some(found)
        })
    }

    /// The pages as they are stored, by their numbers.
    pub fn pages(&self) -> impl Iterator<Item = (u64, Vec<u8>)> + '_ {
        self.pages.iter().map(|(page, words)| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let sum = crc32c::crc32c(&bytes);
            bytes.extend(sum.to_le_bytes());
            (*page, bytes)
        })
    }

    /// Takes a page as it is stored. Whether it is one.
    pub fn take_page(&mut self, page: u64, bytes: &[u8]) -> bool {
        let Some((bits, sum)) = bytes.split_at_checked(STORED - 4) else { return false };
        if sum != crc32c::crc32c(bits).to_le_bytes() || page > u64::MAX / IN_PAGE - 1 {
            return false;
        }
        let mut words = Box::new([0; WORDS]);
        for (word, bytes) in words.iter_mut().zip(bits.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        self.pages.insert(page, words);
        true
    }
}

fn place(object: u64) -> (u64, usize, u64) {
    let within = object % IN_PAGE;
    (object / IN_PAGE, (within / 64) as usize, 1 << (within % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_page_that_was_changed_is_refused() {
        let mut presence = Presence::default();
        presence.insert(4097);
        let (page, bytes) = presence.pages().next().unwrap();
        assert_eq!((page, bytes.len()), (1, STORED));
        for index in 0..STORED {
            let mut bad = bytes.clone();
            bad[index] ^= 1;
            assert!(!Presence::default().take_page(page, &bad), "byte {index}");
        }
        assert!(!Presence::default().take_page(page, &bytes[1..]));
        assert!(!Presence::default().take_page(u64::MAX, &bytes));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set(objects in prop::collection::vec(0..20_000_u64, 0..60), from in 0..20_000_u64) {
            let (mut presence, mut set) = (Presence::default(), BTreeSet::new());
            for object in objects {
                prop_assert_eq!(presence.insert(object), set.insert(object));
            }
            prop_assert_eq!(presence.iter().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(presence.next(from), set.range(from..).next().copied());
            prop_assert_eq!(presence.contains(from), set.contains(&from));
            let mut read = Presence::default();
            for (page, bytes) in presence.pages() {
                prop_assert!(read.take_page(page, &bytes));
            }
            prop_assert_eq!(&read, &presence);
            read.remove_from(from);
            let before = set.range(..from).copied();
            prop_assert_eq!(read.iter().collect::<Vec<_>>(), before.collect::<Vec<_>>());
            prop_assert!(read.pages.values().all(|words| words.iter().any(|word| *word != 0)));
        }
    }
}
