//! [`Qcow2Sink`]: writes a qcow2 file from front to back.
//!
//! ```text
//! header | data clusters, and each L2 table after the data it speaks of ... | L1 | refcount table | refcount blocks
//! ```
//!
//! Every cluster from the first to the last is used exactly once, so all reference counts are 1 and nothing has to be remembered
//! to write them. In memory are the L1 table (16 MiB for 1 PiB, half of what QEMU opens), one L2 table, and one
//! cluster that is not full yet.

use vellum_core::Extent;

use super::entry::{COPIED, Layout};
use super::header::{L1_BYTES_MAX, NewHeader};
use crate::Result;
use crate::destination::Destination;
use crate::sink::{Order, Sink};

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const LAYOUT: Layout =
    Layout { cluster_bits: CLUSTER_BITS, extended: false, version: 3, external: false };
/// Reference counts are 16 bits wide.
const COUNTS_PER_BLOCK: u64 = CLUSTER / 2;
const ADDRESSES_PER_CLUSTER: u64 = CLUSTER / 8;

const _: () =
    assert!(vellum_core::IMAGE_SIZE_MAX / (ADDRESSES_PER_CLUSTER * CLUSTER) * 8 <= L1_BYTES_MAX);

/// Writes a qcow2 file.
#[derive(Debug)]
pub(crate) struct Qcow2Sink {
    destination: Destination,
    order: Order,
    size: u64,
    /// Clusters of the file in use; the next one is free.
    used: u64,
    l1: Vec<u64>,
    table: Option<Table>,
    partial: Option<Partial>,
}

/// The L2 table that is being filled.
#[derive(Debug)]
struct Table {
    l1_index: usize,
    entries: Vec<u64>,
}

/// A cluster of the disk of which only a part has been written.
#[derive(Debug)]
struct Partial {
    cluster: u64,
    bytes: Vec<u8>,
}

impl Qcow2Sink {
    pub(crate) fn new(destination: Destination, size: u64) -> Self {
        // QEMU counts sectors, and would cut the last one off.
        let sectors = size.next_multiple_of(512);
        let l1 = vec![0; sectors.div_ceil(LAYOUT.table_span()).max(1) as usize];
        Self {
            destination,
            order: Order::new(size),
            size: sectors,
            used: 1, // the header's
            l1,
            table: None,
            partial: None,
        }
    }

    /// Takes `count` clusters of the file; returns where they begin.
    fn allocate(&mut self, count: u64) -> u64 {
        let offset = self.used * CLUSTER;
        self.used += count;
        offset
    }

    /// Writes whole clusters of the disk, from number `cluster` on.
    fn write_clusters(&mut self, cluster: u64, data: &[u8]) -> Result<()> {
        let count = data.len() as u64 / CLUSTER;
        let offset = self.allocate(count);
        self.destination.write_at(data, offset)?;
        (0..count).try_for_each(|i| self.map(cluster + i, offset + i * CLUSTER))
    }

    /// Writes into a cluster that may get more later.
    fn write_part(&mut self, extent: Extent, data: &[u8]) -> Result<()> {
        let cluster = extent.offset() / CLUSTER;
        if self.partial.as_ref().is_some_and(|partial| partial.cluster != cluster) {
            self.flush_partial()?;
        }
        let partial = self
            .partial
            .get_or_insert_with(|| Partial { cluster, bytes: vec![0; CLUSTER as usize] });
        let within = (extent.offset() % CLUSTER) as usize;
        partial.bytes[within..within + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn flush_partial(&mut self) -> Result<()> {
        match self.partial.take() {
            Some(partial) => self.write_clusters(partial.cluster, &partial.bytes),
            None => Ok(()),
        }
    }

    /// Notes where a cluster of the disk lies.
    fn map(&mut self, cluster: u64, offset: u64) -> Result<()> {
        let l1_index = (cluster / ADDRESSES_PER_CLUSTER) as usize;
        if self.table.as_ref().is_some_and(|table| table.l1_index != l1_index) {
            self.flush_table()?;
        }
        let table = self.table.get_or_insert_with(|| Table {
            l1_index,
            entries: vec![0; ADDRESSES_PER_CLUSTER as usize],
        });
        table.entries[(cluster % ADDRESSES_PER_CLUSTER) as usize] = offset | COPIED;
        Ok(())
    }

    fn flush_table(&mut self) -> Result<()> {
        if let Some(table) = self.table.take() {
            let offset = self.write_addresses(table.entries.iter().copied())?;
            self.l1[table.l1_index] = offset | COPIED;
        }
        Ok(())
    }

    /// Writes a table of addresses into clusters of its own, padded with zeros; returns where.
    fn write_addresses(&mut self, addresses: impl ExactSizeIterator<Item = u64>) -> Result<u64> {
        let mut bytes =
            Vec::with_capacity((addresses.len() * 8).next_multiple_of(CLUSTER as usize));
        addresses.for_each(|address| bytes.extend(address.to_be_bytes()));
        bytes.resize(bytes.len().next_multiple_of(CLUSTER as usize), 0);
        let offset = self.allocate(bytes.len() as u64 / CLUSTER);
        self.destination.write_at(&bytes, offset)?;
        Ok(offset)
    }

    /// Writes the reference counts of all clusters, those of the counts themselves included; returns where their table lies
    /// and how many clusters it has.
    fn write_refcounts(&mut self) -> Result<(u64, u64)> {
        let (table_clusters, blocks) = refcount_clusters(self.used);
        let total = self.used + table_clusters + blocks;
        let first_block = (self.used + table_clusters) * CLUSTER;
        let table =
            self.write_addresses((0..blocks as usize).map(|i| first_block + i as u64 * CLUSTER))?;
        let ones: Vec<u8> = 1u16.to_be_bytes().repeat(COUNTS_PER_BLOCK as usize);
        let mut last = ones.clone();
        last[((total - 1) % COUNTS_PER_BLOCK + 1) as usize * 2..].fill(0);
        for block in 0..blocks {
            let counts = if block + 1 == blocks { &last } else { &ones };
            let offset = self.allocate(1);
            self.destination.write_at(counts, offset)?;
        }
        debug_assert_eq!(self.used, total);
        Ok((table, table_clusters))
    }
}

/// How many clusters the refcount table and the refcount blocks of a file take that has `used` others.
fn refcount_clusters(used: u64) -> (u64, u64) {
    let (mut table, mut blocks) = (1, 1);
    loop {
        let needed_blocks = (used + table + blocks).div_ceil(COUNTS_PER_BLOCK);
        let needed_table = needed_blocks.div_ceil(ADDRESSES_PER_CLUSTER);
        if (needed_table, needed_blocks) == (table, blocks) {
            return (table, blocks);
        }
        (table, blocks) = (needed_table, needed_blocks);
    }
}

impl Sink for Qcow2Sink {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let (whole, _) = self.order.advance(offset, data.len() as u64)?;
        let inside = whole.align_in(CLUSTER);
        if inside.is_empty() {
            return whole
                .chunks(CLUSTER)
                .try_for_each(|part| self.write_part(part, &data[whole.range_of(&part)]));
        }
        let (head, tail) =
            (Extent::between(offset, inside.offset()), Extent::between(inside.end(), whole.end()));
        if !head.is_empty() {
            self.write_part(head, &data[whole.range_of(&head)])?;
        }
        self.flush_partial()?;
        self.write_clusters(inside.offset() / CLUSTER, &data[whole.range_of(&inside)])?;
        if !tail.is_empty() {
            self.write_part(tail, &data[whole.range_of(&tail)])?;
        }
        Ok(())
    }

    fn zero(&mut self, extent: Extent) -> Result<()> {
        self.order.advance(extent.offset(), extent.length()).map(|_| ())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.flush_partial()?;
        self.flush_table()?;
        let l1 = std::mem::take(&mut self.l1);
        let l1_offset = self.write_addresses(l1.iter().copied())?;
        let (refcount_table_offset, refcount_table_clusters) = self.write_refcounts()?;
        let header = NewHeader {
            size: self.size,
            cluster_bits: CLUSTER_BITS,
            l1_offset,
            l1_entries: l1.len() as u32,
            refcount_table_offset,
            refcount_table_clusters: refcount_table_clusters as u32,
        };
        self.destination.write_at(&header.encode(), 0)?;
        self.destination.publish(self.used * CLUSTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_count_themselves() {
        for used in [1, 2, 32765, 32766, 32767, 32768, 1 << 20, 268_402_687, 1 << 34] {
            let (table, blocks) = refcount_clusters(used);
            let total = used + table + blocks;
            assert!(
                blocks * COUNTS_PER_BLOCK >= total && table * ADDRESSES_PER_CLUSTER >= blocks,
                "{used}"
            );
            assert!((blocks - 1) * COUNTS_PER_BLOCK < total, "{used}: a block too many");
            assert!(
                (table - 1) * ADDRESSES_PER_CLUSTER < blocks,
                "{used}: a table cluster too many"
            );
        }
    }
}
