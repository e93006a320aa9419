//! Entries of L1 and L2 tables: what 8 or 16 bytes say of a cluster. Pure.

use crate::{Error, Result};

/// Bits 9 to 55: where in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster is referenced exactly once, so QEMU may write it in place. Every entry we write has it.
pub(crate) const COPIED: u64 = 1 << 63;
/// The cluster is compressed, and the other bits mean something else.
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros, whatever the offset says. Not in extended entries, not in version 2.
const ZERO: u64 = 1;
/// Subclusters a cluster has in files with extended L2 entries.
const SUBCLUSTERS: u64 = 32;

/// How the L2 entries of a file are to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// The cluster size is `1 << cluster_bits`.
    pub cluster_bits: u32,
    /// 16-byte entries with a bitmap of subclusters.
    pub extended: bool,
    /// Version 2 knows no zero flag.
    pub version: u32,
    /// Data lies in another file, where offset 0 is as good as any.
    pub external: bool,
}

/// One L2 entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub descriptor: u64,
    /// Zero in files without extended entries.
    pub bitmap: u64,
}

/// What an entry says of some bytes of its cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mapping {
    /// Nothing: the backing file holds them, if there is one.
    Unallocated,
    /// They are zeros.
    Zero,
    /// They lie in the data file from this offset on.
    Data(u64),
    /// They lie `within` bytes into this compressed cluster.
    Compressed { cluster: Compressed, within: u64 },
}

/// Where a compressed cluster lies in the file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Compressed {
    pub offset: u64,
    /// At most this long: compressed clusters are packed by the byte, but their length is kept in sectors.
    pub length_max: u64,
}

impl Layout {
    pub(crate) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub(crate) fn entry_size(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// How many clusters one L2 table, itself a cluster, speaks of.
    pub(crate) fn entries_per_table(&self) -> u64 {
        self.cluster_size() / self.entry_size()
    }

    /// How many bytes of the disk one L2 table speaks of.
    pub(crate) fn table_span(&self) -> u64 {
        self.entries_per_table() << self.cluster_bits
    }

    /// Where the L2 table lies that an L1 entry names; `None`: nowhere, and nothing it would speak of is allocated.
    pub(crate) fn table_offset(&self, l1_entry: u64) -> Result<Option<u64>> {
        if l1_entry & !(COPIED | OFFSET) != 0 {
            return Err(reserved("L1", l1_entry));
        }
        match l1_entry & OFFSET {
            0 => Ok(None),
            offset => self.aligned("L2 table", offset).map(Some),
        }
    }

    /// What `entry` says of the bytes that begin `within` bytes into its cluster, and for how many bytes it says the same.
    pub(crate) fn decode(&self, entry: Entry, within: u64) -> Result<(Mapping, u64)> {
        debug_assert!(within < self.cluster_size());
        let rest = self.cluster_size() - within;
        if entry.descriptor & COMPRESSED != 0 {
            let cluster = self.compressed(entry.descriptor)?;
            return Ok((Mapping::Compressed { cluster, within }, rest));
        }
        let host = self.host_offset(entry.descriptor)?;
        if self.extended {
            return self.subclusters(entry.bitmap, host, within);
        }
        let mapping = match host {
            _ if entry.descriptor & ZERO != 0 => Mapping::Zero,
            Some(host) => Mapping::Data(host + within),
            None => Mapping::Unallocated,
        };
        Ok((mapping, rest))
    }

    /// Checks a descriptor that is not compressed, and takes the offset out of it.
    fn host_offset(&self, descriptor: u64) -> Result<Option<u64>> {
        let zero = if self.version >= 3 && !self.extended { ZERO } else { 0 };
        if descriptor & !(COPIED | OFFSET | zero) != 0 {
            return Err(reserved("L2", descriptor));
        }
        match self.aligned("data cluster", descriptor & OFFSET)? {
            0 if self.external && descriptor & COPIED != 0 => Ok(Some(0)),
            0 => Ok(None),
            host => Ok(Some(host)),
        }
    }

    /// The lower half of the bitmap says which subclusters are allocated, the upper which are zeros.
    fn subclusters(&self, bitmap: u64, host: Option<u64>, within: u64) -> Result<(Mapping, u64)> {
        let (allocated, zero) = (bitmap as u32, (bitmap >> 32) as u32);
        if allocated & zero != 0 {
            return Err(Error::corrupt(format!(
                "an L2 entry calls the same subclusters allocated and zero (bitmap {bitmap:#018x})"
            )));
        }
        let size = self.cluster_size() / SUBCLUSTERS;
        let first = (within / size) as u32;
        let bit = 1u32 << first;
        // The subclusters before `first` do not count; the run goes on while neither half changes.
        let same = |half: u32| if half & bit != 0 { !half } else { half };
        let change = (same(allocated) | same(zero)) >> first;
        let count = u64::from(change.trailing_zeros().min(SUBCLUSTERS as u32 - first));
        let length = (u64::from(first) + count) * size - within;
        let mapping = match host {
            _ if zero & bit != 0 => Mapping::Zero,
            _ if allocated & bit == 0 => Mapping::Unallocated,
            Some(host) => Mapping::Data(host + within),
            None => {
                return Err(Error::corrupt(
                    "an L2 entry calls subclusters allocated, but not where",
                ));
            }
        };
        Ok((mapping, length))
    }

    /// The smaller the cluster, the more bits the offset has and the fewer the number of sectors.
    fn compressed(&self, descriptor: u64) -> Result<Compressed> {
        if self.external || descriptor & COPIED != 0 {
            return Err(reserved("L2", descriptor));
        }
        let offset_bits = 62 - (self.cluster_bits - 8);
        let offset = descriptor & ((1 << offset_bits) - 1);
        let more_sectors = (descriptor & !COMPRESSED) >> offset_bits;
        Ok(Compressed { offset, length_max: (more_sectors + 1) * 512 - offset % 512 })
    }

    fn aligned(&self, what: &str, offset: u64) -> Result<u64> {
        if offset.is_multiple_of(self.cluster_size()) {
            return Ok(offset);
        }
        Err(Error::corrupt(format!(
            "offset {offset:#x} of a {what} is no multiple of the cluster size {:#x}",
            self.cluster_size()
        )))
    }
}

fn reserved(table: &str, entry: u64) -> Error {
    Error::corrupt(format!(
        "entry {entry:#018x} of an {table} table has bits set that mean nothing"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    const PLAIN: Layout = Layout { cluster_bits: 16, extended: false, version: 3, external: false };
    const EXTENDED: Layout = Layout { extended: true, ..PLAIN };

    fn plain(descriptor: u64) -> Entry {
        Entry { descriptor, bitmap: 0 }
    }

    #[test]
    fn a_plain_entry_speaks_of_the_rest_of_its_cluster() {
        let check = |descriptor, within, mapping| {
            assert_eq!(
                PLAIN.decode(plain(descriptor), within).unwrap(),
                (mapping, 0x10000 - within),
                "{descriptor:#x}"
            );
        };
        check(0, 0, Mapping::Unallocated);
        check(1, 5, Mapping::Zero);
        check(COPIED | 0x50000 | 1, 0, Mapping::Zero);
        check(COPIED | 0x50000, 0x200, Mapping::Data(0x50200));
        check(0x50000, 0xffff, Mapping::Data(0x5ffff));
    }

    #[test]
    fn entries_that_make_no_sense_are_corrupt() {
        let check = |layout: Layout, descriptor, bitmap| {
            let error = layout.decode(Entry { descriptor, bitmap }, 0).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{descriptor:#x} {bitmap:#x}");
        };
        check(PLAIN, 0x50200, 0);
        check(PLAIN, 0x50002, 0);
        check(PLAIN, 1 << 56 | 0x50000, 0);
        check(Layout { version: 2, ..PLAIN }, 1, 0);
        check(Layout { external: true, ..PLAIN }, COMPRESSED | 0x50000, 0);
        check(EXTENDED, 0x50001, 1);
        check(EXTENDED, 0x50000, 1 << 32 | 1);
        check(EXTENDED, 0, 1);
        assert!(PLAIN.table_offset(0x50001).is_err());
        assert!(PLAIN.table_offset(0x50200).is_err());
    }

    #[test]
    fn offset_zero_is_data_only_in_another_file_and_only_if_copied() {
        let external = Layout { external: true, ..PLAIN };
        assert_eq!(external.decode(plain(COPIED), 7).unwrap().0, Mapping::Data(7));
        assert_eq!(external.decode(plain(0), 7).unwrap().0, Mapping::Unallocated);
        assert_eq!(PLAIN.decode(plain(COPIED), 7).unwrap().0, Mapping::Unallocated);
    }

    #[test]
    fn subclusters_run_until_their_state_changes() {
        // Subclusters of 2 KiB: 0 and 1 allocated, 2 zero, 3 nothing, 31 allocated.
        let entry = Entry { descriptor: 0x50000, bitmap: 1 << 34 | 1 << 31 | 0b11 };
        let check = |within, mapping, end: u64| {
            assert_eq!(
                EXTENDED.decode(entry, within).unwrap(),
                (mapping, end - within),
                "{within:#x}"
            );
        };
        check(0, Mapping::Data(0x50000), 0x1000);
        check(0x900, Mapping::Data(0x50900), 0x1000);
        check(0x1000, Mapping::Zero, 0x1800);
        check(0x1801, Mapping::Unallocated, 0xf800);
        check(0xf800, Mapping::Data(0x5f800), 0x10000);
        let whole = Entry { descriptor: 0x50000, bitmap: 0xffff_ffff };
        assert_eq!(EXTENDED.decode(whole, 0).unwrap(), (Mapping::Data(0x50000), 0x10000));
        let zeros = Entry { descriptor: 0, bitmap: 0xffff_ffff << 32 };
        assert_eq!(EXTENDED.decode(zeros, 0x800).unwrap(), (Mapping::Zero, 0xf800));
    }

    #[test]
    fn a_compressed_cluster_ends_with_its_last_sector() {
        // 64 KiB clusters: 54 bits of offset.
        let entry = plain(COMPRESSED | 2 << 54 | 0x12345);
        let cluster = Compressed { offset: 0x12345, length_max: 3 * 512 - 0x145 };
        let expected = (Mapping::Compressed { cluster, within: 9 }, 0xfff7);
        assert_eq!(PLAIN.decode(entry, 9).unwrap(), expected);
        // 512-byte clusters: 61 bits, one for the sectors; 2 MiB: 49 bits, 13.
        for (bits, shift) in [(9, 61), (21, 49)] {
            let layout = Layout { cluster_bits: bits, ..PLAIN };
            let Mapping::Compressed { cluster, .. } =
                layout.decode(plain(COMPRESSED | 1 << shift | 512), 0).unwrap().0
            else {
                panic!("not compressed");
            };
            assert_eq!((cluster.offset, cluster.length_max), (512, 1024));
            let largest = layout.decode(plain(!COPIED), 0).unwrap().0;
            let Mapping::Compressed { cluster, .. } = largest else { panic!("not compressed") };
            assert!(cluster.length_max <= 2 * layout.cluster_size());
        }
    }
}
