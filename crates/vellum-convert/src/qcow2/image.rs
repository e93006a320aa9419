//! [`Image`]: one qcow2 file of a chain, and what it says of the bytes of its disk.

use vellum_core::Extent;

use super::compressed::RATIO_MAX;
use super::entry::{Entry, Layout};
use super::header::{FIXED_LENGTH, Header, cluster_size};
use super::pages::Pages;
use crate::Result;
use crate::file::ImageFile;

pub(crate) use super::entry::Mapping;

/// An open file with a header that makes sense.
#[derive(Debug)]
pub(crate) struct Image {
    /// Which file of the chain it is: the key of its pages and clusters in the caches that the chain shares.
    pub number: u32,
    pub file: ImageFile,
    pub header: Header,
    /// Where the data lies, if not in `file`.
    pub external: Option<ImageFile>,
}

impl Image {
    /// The header of `file`.
    pub(crate) fn read_header(file: &ImageFile) -> Result<Header> {
        let prefix = |length: u64| {
            let mut bytes = vec![0; length.min(file.length()) as usize];
            file.read_at(&mut bytes, 0).map(|()| bytes)
        };
        let cluster =
            cluster_size(&prefix(FIXED_LENGTH as u64)?).map_err(|error| error.of(file.path()))?;
        Header::decode(&prefix(cluster)?).map_err(|error| error.of(file.path()))
    }

    /// The file that holds the data.
    pub(crate) fn data_file(&self) -> &ImageFile {
        self.external.as_ref().unwrap_or(&self.file)
    }

    /// What the data in this file can add up to, counted as [`weight`](Self::weight) counts it, if no two clusters of the disk
    /// share one of the file.
    pub(crate) fn weight_max(&self) -> u128 {
        let external = self.external.as_ref().map_or(0, ImageFile::length);
        (u128::from(self.file.length()) + u128::from(external)) * u128::from(RATIO_MAX)
    }

    /// How much of the file `length` bytes of the disk take up.
    pub(crate) fn weight(mapping: Mapping, length: u64) -> u128 {
        match mapping {
            Mapping::Unallocated | Mapping::Zero => 0,
            Mapping::Compressed { .. } => u128::from(length),
            Mapping::Data(_) => u128::from(length) * u128::from(RATIO_MAX),
        }
    }

    /// What the file says of the first bytes of `wanted`, which lies inside the disk and is not empty, and of how many: at least
    /// one, at most as many as a page of the table speaks of.
    pub(crate) fn map(&self, pages: &Pages, wanted: Extent) -> Result<(Mapping, u64)> {
        debug_assert!(!wanted.is_empty() && wanted.end() <= self.header.size);
        let span = self.layout().table_span();
        let l1_entry = self.header.l1_offset.saturating_add(wanted.offset() / span * 8);
        let l1 = pages.get(self.number, &self.file, l1_entry, 8)?;
        let in_file = |error: crate::Error| error.of(self.file.path());
        let mut tables = l1.words().map(|entry| self.layout().table_offset(entry).map_err(in_file));
        match tables.next().transpose()?.flatten() {
            Some(table) => self.map_in_table(pages, table, wanted),
            None => {
                let more = tables.take_while(|table| matches!(table, Ok(None))).count() as u64;
                let end = (wanted.offset() / span + 1 + more) * span;
                Ok((Mapping::Unallocated, wanted.clip(end).length()))
            }
        }
    }

    /// The same, by the L2 table at `table`.
    fn map_in_table(&self, pages: &Pages, table: u64, wanted: Extent) -> Result<(Mapping, u64)> {
        let layout = self.layout();
        let cluster = wanted.offset() >> layout.cluster_bits;
        let entry_size = layout.entry_size();
        let at = table + cluster % layout.entries_per_table() * entry_size;
        let page = pages.get(self.number, &self.file, at, entry_size)?;
        let in_table = layout.entries_per_table() - cluster % layout.entries_per_table();
        first_run(&layout, entries(page.words(), layout.extended).take(in_table as usize), wanted)
            .map_err(|error| error.of(self.file.path()))
    }

    fn layout(&self) -> Layout {
        self.header.layout
    }
}

fn entries(mut words: impl Iterator<Item = u64>, extended: bool) -> impl Iterator<Item = Entry> {
    std::iter::from_fn(move || {
        let descriptor = words.next()?;
        let bitmap = if extended { words.next()? } else { 0 };
        Some(Entry { descriptor, bitmap })
    })
}

/// What the entries, of which the first speaks of the cluster in which `wanted` begins, say of its first bytes.
fn first_run(
    layout: &Layout,
    mut entries: impl Iterator<Item = Entry>,
    wanted: Extent,
) -> Result<(Mapping, u64)> {
    let within = wanted.offset() % layout.cluster_size();
    let first = entries.next().unwrap_or(Entry { descriptor: 0, bitmap: 0 });
    let (mapping, mut length) = layout.decode(first, within)?;
    let mut cluster_end = layout.cluster_size() - within;
    // Only a run that reaches the end of its cluster can go on in the next one.
    while length == cluster_end && length < wanted.length() {
        let Some((next, more)) = entries.next().and_then(|entry| layout.decode(entry, 0).ok())
        else {
            break; // What makes no sense is an error for whoever asks for it.
        };
        if !continues(mapping, length, next) {
            break;
        }
        length += more;
        cluster_end += layout.cluster_size();
    }
    Ok((mapping, length.min(wanted.length())))
}

/// Whether `next` says, of the bytes `length` further on, what `mapping` says.
fn continues(mapping: Mapping, length: u64, next: Mapping) -> bool {
    match (mapping, next) {
        (Mapping::Unallocated, Mapping::Unallocated) | (Mapping::Zero, Mapping::Zero) => true,
        (Mapping::Data(here), Mapping::Data(there)) => here + length == there,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout =
        Layout { cluster_bits: 16, extended: false, version: 3, external: false };
    const K64: u64 = 1 << 16;

    fn run(descriptors: &[u64], wanted: Extent) -> (Mapping, u64) {
        let entries =
            descriptors.iter().map(|descriptor| Entry { descriptor: *descriptor, bitmap: 0 });
        first_run(&LAYOUT, entries, wanted).unwrap()
    }

    #[test]
    fn neighbours_in_the_file_are_one_run() {
        let table = [5 * K64, 6 * K64, 7 * K64, 9 * K64, 0, 0, 1, 1, 5 * K64];
        let whole = Extent::new(0, 100 * K64);
        assert_eq!(run(&table, whole), (Mapping::Data(5 * K64), 3 * K64));
        assert_eq!(run(&table, Extent::new(100, 2 * K64)), (Mapping::Data(5 * K64 + 100), 2 * K64));
        assert_eq!(run(&table[3..], whole), (Mapping::Data(9 * K64), K64));
        assert_eq!(run(&table[4..], whole), (Mapping::Unallocated, 2 * K64));
        assert_eq!(run(&table[6..], whole), (Mapping::Zero, 2 * K64));
    }

    #[test]
    fn an_entry_that_makes_no_sense_ends_the_run_before_it() {
        let table = [5 * K64, 6 * K64 + 2];
        assert_eq!(run(&table, Extent::new(0, 2 * K64)), (Mapping::Data(5 * K64), K64));
    }
}
