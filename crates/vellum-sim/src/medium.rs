//! [`Medium`]: the bytes of one simulated file, as programs see them and as a power cut leaves them.
//!
//! Harsher than any file system: each 512-byte sector that was not synced keeps, by itself, what it held at the last sync or any
//! version since, and so does the length.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use rand::rngs::StdRng;
use vellum_core::Extent;

use crate::SECTOR;

const SECTOR_U64: u64 = SECTOR as u64;

/// What a sector holds; `None` is a hole.
type Sector = Option<Box<[u8; SECTOR]>>;

/// The bytes of a file.
#[derive(Debug, Default)]
pub(crate) struct Medium {
    seen: BTreeMap<u64, Box<[u8; SECTOR]>>,
    length: u64,
    durable: BTreeMap<u64, Box<[u8; SECTOR]>>,
    durable_length: u64,
    /// Versions that are not durable, by sector, each with when it was written.
    versions: BTreeMap<u64, Vec<(u64, Sector)>>,
    lengths: Vec<(u64, u64)>,
    /// Sectors whose versions a failed sync has forgotten: cached, clean, and not on the medium.
    forgotten: BTreeSet<u64>,
}

impl Medium {
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Whether a sync would write anything.
    pub(crate) fn is_unsynced(&self) -> bool {
        !self.versions.is_empty()
    }

    /// How many sectors occupy space.
    pub(crate) fn sectors(&self) -> u64 {
        self.seen.len() as u64
    }

    /// How many more sectors a write would occupy.
    pub(crate) fn growth(&self, offset: u64, length: usize) -> u64 {
        let range = offset / SECTOR_U64..(offset + length as u64).div_ceil(SECTOR_U64);
        range.clone().count() as u64 - self.seen.range(range).count() as u64
    }

    /// Fills as much of `buffer` as the file is long.
    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let length = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = length.min(buffer.len());
        for piece in Extent::new(offset, length as u64).chunks(SECTOR_U64) {
            let part = &mut buffer[(piece.offset() - offset) as usize..][..piece.len_usize()];
            let within = (piece.offset() % SECTOR_U64) as usize;
            match self.seen.get(&(piece.offset() / SECTOR_U64)) {
                Some(sector) => part.copy_from_slice(&sector[within..within + part.len()]),
                None => part.fill(0),
            }
        }
        length
    }

    pub(crate) fn write(&mut self, now: u64, offset: u64, bytes: &[u8]) {
        for piece in Extent::new(offset, bytes.len() as u64).chunks(SECTOR_U64) {
            let number = piece.offset() / SECTOR_U64;
            let mut sector =
                self.seen.get(&number).cloned().unwrap_or_else(|| Box::new([0; SECTOR]));
            let within = (piece.offset() % SECTOR_U64) as usize;
            let part = &bytes[(piece.offset() - offset) as usize..][..piece.len_usize()];
            sector[within..within + part.len()].copy_from_slice(part);
            self.put(now, number, Some(sector));
        }
        let end = offset + bytes.len() as u64;
        if end > self.length {
            self.set_length(now, end);
        }
    }

    pub(crate) fn punch(&mut self, now: u64, at: Extent) {
        let whole = at.align_in(SECTOR_U64);
        let numbers: Vec<u64> = self
            .seen
            .range(whole.offset() / SECTOR_U64..whole.end() / SECTOR_U64)
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            self.put(now, number, None);
        }
        let (before, rest) = at.split(whole.offset());
        for edge in [before, rest.split(whole.end()).1] {
            let end = edge.end().min(self.length);
            if edge.offset() < end {
                self.write(now, edge.offset(), &vec![0; (end - edge.offset()) as usize]);
            }
        }
    }

    pub(crate) fn set_length(&mut self, now: u64, length: u64) {
        if length < self.length {
            self.punch(now, Extent::between(length, self.length));
        }
        self.length = length;
        self.lengths.push((now, length));
    }

    fn put(&mut self, now: u64, number: u64, sector: Sector) {
        match &sector {
            Some(bytes) => self.seen.insert(number, bytes.clone()),
            None => self.seen.remove(&number),
        };
        self.forgotten.remove(&number);
        self.versions.entry(number).or_default().push((now, sector));
    }

    /// The next run of sectors that are no holes.
    pub(crate) fn next_data(&self, offset: u64) -> Option<Extent> {
        if offset >= self.length {
            return None;
        }
        let mut numbers = self.seen.range(offset / SECTOR_U64..).map(|(number, _)| *number);
        let first = numbers.next().filter(|first| first * SECTOR_U64 < self.length)?;
        let mut end = first + 1;
        while numbers.next() == Some(end) {
            end += 1;
        }
        let end = (end * SECTOR_U64).min(self.length);
        Some(Extent::between((first * SECTOR_U64).max(offset), end))
    }

    /// What was written up to a moment is durable.
    pub(crate) fn sync(&mut self, until: u64) {
        self.settle(until, 0..u64::MAX);
        while let Some((_, length)) = self.lengths.first().filter(|(at, _)| *at <= until) {
            self.durable_length = *length;
            self.lengths.remove(0);
        }
    }

    /// A write that is durable by itself has landed. The length may come along, and need not if it did not grow.
    pub(crate) fn sync_range(&mut self, until: u64, at: Extent) {
        self.settle(until, at.offset() / SECTOR_U64..at.end().div_ceil(SECTOR_U64));
        self.durable_length = self.durable_length.max(at.end());
    }

    fn settle(&mut self, until: u64, range: std::ops::Range<u64>) {
        for (number, versions) in self.versions.range_mut(range) {
            let settled = versions.iter().take_while(|(at, _)| *at <= until).count();
            match versions.drain(..settled).next_back() {
                Some((_, Some(sector))) => drop(self.durable.insert(*number, sector)),
                Some((_, None)) => drop(self.durable.remove(number)),
                None => {}
            }
        }
        self.versions.retain(|_, versions| !versions.is_empty());
    }

    /// A sync failed: what it should have written counts as clean, and is on the medium only if luck would have it.
    pub(crate) fn forget(&mut self, chance: &mut StdRng) {
        for (number, versions) in std::mem::take(&mut self.versions) {
            match versions.into_iter().next_back() {
                Some((_, version)) if chance.random_bool(0.3) => match version {
                    Some(sector) => drop(self.durable.insert(number, sector)),
                    None => drop(self.durable.remove(&number)),
                },
                _ => drop(self.forgotten.insert(number)),
            }
        }
    }

    /// Clean pages leave the cache: what was forgotten reads as the medium has it.
    pub(crate) fn drop_cache(&mut self) {
        for number in std::mem::take(&mut self.forgotten) {
            match self.durable.get(&number) {
                Some(sector) => drop(self.seen.insert(number, sector.clone())),
                None => drop(self.seen.remove(&number)),
            }
        }
    }

    /// The power fails: each sector and the length keep one of the versions they may have.
    pub(crate) fn cut(&mut self, chance: &mut StdRng) {
        for (number, mut versions) in std::mem::take(&mut self.versions) {
            let choice = chance.random_range(0..=versions.len());
            if choice == 0 {
                continue;
            }
            match versions.swap_remove(choice - 1).1 {
                Some(sector) => drop(self.durable.insert(number, sector)),
                None => drop(self.durable.remove(&number)),
            }
        }
        let lengths = std::mem::take(&mut self.lengths);
        let choice = chance.random_range(0..=lengths.len());
        if choice > 0 {
            self.durable_length = lengths[choice - 1].1;
        }
        let end = self.durable_length.div_ceil(SECTOR_U64);
        self.durable.retain(|number, _| *number < end);
        self.forgotten.clear();
        self.seen = self.durable.clone();
        self.length = self.durable_length;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn read(medium: &Medium, length: usize) -> Vec<u8> {
        let mut buffer = vec![b'?'; length];
        let read = medium.read(&mut buffer, 0);
        buffer.truncate(read);
        buffer
    }

    #[test]
    fn a_power_cut_keeps_what_was_synced_and_any_version_since() {
        let mut found = BTreeSet::new();
        for seed in 0..50 {
            let mut medium = Medium::default();
            medium.write(1, 0, &[b'a'; 2 * SECTOR]);
            medium.sync(1);
            medium.write(2, 0, &[b'b'; SECTOR]);
            medium.write(3, 0, &[b'c'; SECTOR]);
            medium.cut(&mut StdRng::seed_from_u64(seed));
            let bytes = read(&medium, 4 * SECTOR);
            assert_eq!(bytes.len(), 2 * SECTOR);
            assert_eq!(bytes[SECTOR..], [b'a'; SECTOR]);
            found.insert(bytes[0]);
        }
        assert_eq!(found, b"abc".iter().copied().collect());
    }

    #[test]
    fn a_file_that_was_never_synced_may_have_any_length_it_had() {
        let lengths = (0..50).map(|seed| {
            let mut medium = Medium::default();
            medium.write(1, 0, &[b'a'; SECTOR]);
            medium.set_length(2, 5 * SECTOR_U64);
            medium.cut(&mut StdRng::seed_from_u64(seed));
            medium.length()
        });
        let found: BTreeSet<u64> = lengths.collect();
        assert_eq!(found, [0, SECTOR_U64, 5 * SECTOR_U64].into());
    }

    #[test]
    fn what_a_failed_sync_forgot_is_read_until_the_cache_is_dropped() {
        let mut lost = 0;
        for seed in 0..50 {
            let mut medium = Medium::default();
            medium.write(1, 0, &[b'a'; SECTOR]);
            medium.sync(1);
            medium.write(2, 0, &[b'b'; SECTOR]);
            medium.forget(&mut StdRng::seed_from_u64(seed));
            medium.sync(2);
            assert_eq!(read(&medium, SECTOR), [b'b'; SECTOR]);
            medium.drop_cache();
            lost += u32::from(read(&medium, SECTOR) == [b'a'; SECTOR]);
        }
        assert!((1..50).contains(&lost));
    }

    #[test]
    fn holes_are_found_and_read_as_zeros() {
        let mut medium = Medium::default();
        medium.write(1, 0, &[b'a'; 4 * SECTOR]);
        medium.punch(2, Extent::new(SECTOR_U64 - 1, SECTOR_U64 + 2));
        assert_eq!(medium.sectors(), 3);
        assert_eq!(medium.next_data(0), Some(Extent::new(0, SECTOR_U64)));
        assert_eq!(medium.next_data(SECTOR_U64), Some(Extent::new(2 * SECTOR_U64, 2 * SECTOR_U64)));
        let bytes = read(&medium, 4 * SECTOR);
        assert_eq!(bytes[SECTOR - 2..=SECTOR], *b"a\0\0");
        assert_eq!(bytes[2 * SECTOR..2 * SECTOR + 2], *b"\0a");
    }
}
