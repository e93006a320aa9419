//! A live log: the state changes since the last sync, which survive the death of the process but not a power cut.
//!
//! ```text
//! header, one sector    0  magic "VELLULOG"   8  version u32   12  boot is known u32   16  layer u64   24  boot id (16)
//!                      40  device u64        48  inode u64     56  epoch u64           64  nonce u64   72  zeros  508  CRC-32C
//! record, 16 bytes      0  first unit (56 bits) and state (8 bits)                      8  units u32   12  CRC-32C
//! ```
//!
//! A record's checksum is seeded with the header's nonce and the record's index, so that records of an earlier use of the file,
//! or half a record, end the log instead of being believed.

use vellum_core::State;
use vellum_disk::{BootId, FileIdentity};
use vellum_engine::Result;

use super::{Reader, SECTOR, VERSION, checksum};

const MAGIC: &[u8; 8] = b"VELLULOG";
pub(super) const CRC_AT: usize = 508;
pub(super) const PLACE: u64 = u64::MAX;
const UNIT_BITS: u32 = 56;
/// Bytes in a record.
pub(crate) const RECORD: usize = 16;

/// What a log is bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LogHeader {
    pub layer: u64,
    /// The boot it was written in, where that can be known.
    pub boot: Option<BootId>,
    /// The map file it continues.
    pub map: FileIdentity,
    /// The epoch of the map that it continues.
    pub epoch: u64,
    /// Random, so that records of another use do not count.
    pub nonce: u64,
}

/// Some units that changed their state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub first_unit: u64,
    pub units: u32,
    pub state: State,
}

impl LogHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SECTOR);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(u32::from(self.boot.is_some()).to_le_bytes());
        out.extend(self.layer.to_le_bytes());
        out.extend(self.boot.map_or([0; 16], |boot| boot.0));
        for number in [self.map.device, self.map.inode, self.epoch, self.nonce] {
            out.extend(number.to_le_bytes());
        }
        out.resize(CRC_AT, 0);
        let crc = checksum(self.layer, PLACE, &out);
        out.extend(crc.to_le_bytes());
        out
    }

    /// The header of a layer's log; `None` for bytes that are none. A log that cannot be read is one that is not there: it may
    /// have been cut short when it was made.
    pub(crate) fn decode(layer: u64, sector: &[u8; SECTOR]) -> Option<Self> {
        let mut reader = Reader(sector);
        let (magic, version, known, found) =
            (reader.take::<8>(), reader.u32(), reader.u32(), reader.u64());
        let crc = Reader(&sector[CRC_AT..]).u32();
        if magic != *MAGIC
            || version != VERSION
            || found != layer
            || crc != checksum(layer, PLACE, &sector[..CRC_AT])
        {
            return None;
        }
        let boot = BootId(reader.take());
        let (device, inode) = (reader.u64(), reader.u64());
        let (epoch, nonce) = (reader.u64(), reader.u64());
        let boot = (known != 0).then_some(boot);
        Some(Self { layer, boot, map: FileIdentity { device, inode }, epoch, nonce })
    }

    /// Appends the record with this index to `out`.
    pub(crate) fn encode_record(&self, index: u64, record: &Record, out: &mut Vec<u8>) {
        let start = out.len();
        let first = record.first_unit | u64::from(record.state as u8) << UNIT_BITS;
        out.extend(first.to_le_bytes());
        out.extend(record.units.to_le_bytes());
        let crc = checksum(self.nonce, index, &out[start..]);
        out.extend(crc.to_le_bytes());
    }

    /// The records behind the header, up to the first that is not whole.
    pub(crate) fn records(&self, bytes: &[u8]) -> Vec<Record> {
        bytes
            .chunks_exact(RECORD)
            .enumerate()
            .map_while(|(index, bytes)| self.decode_record(index as u64, bytes))
            .collect()
    }

    fn decode_record(&self, index: u64, bytes: &[u8]) -> Option<Record> {
        let mut reader = Reader(bytes);
        let (first, units, crc) = (reader.u64(), reader.u32(), reader.u32());
        if crc != checksum(self.nonce, index, &bytes[..12]) {
            return None;
        }
        let state = State::from_bits((first >> UNIT_BITS) as u8)?;
        Some(Record { first_unit: first & ((1 << UNIT_BITS) - 1), units, state })
    }
}

/// Which of two logs count for a map of this epoch, in the order in which they are replayed: the one bound to the epoch, then
/// the one that a sync under way had begun. A log of another boot, another file or another epoch does not count, and the
/// second counts only behind the first. An error where a log with records would count but for the boot, which cannot be known
/// here; one without says nothing whatever the boot.
pub(crate) fn which_count(
    logs: &[(LogHeader, Vec<Record>)],
    epoch: u64,
    map: FileIdentity,
    same_boot: impl Fn(Option<BootId>) -> Result<bool>,
) -> Result<Vec<&(LogHeader, Vec<Record>)>> {
    let mut counting = Vec::new();
    for expected in [epoch, epoch.wrapping_add(1)] {
        let Some(log) = logs.iter().find(|(log, _)| log.epoch == expected && log.map == map) else {
            break;
        };
        if !log.1.is_empty() && !same_boot(log.0.boot)? {
            break;
        }
        counting.push(log);
    }
    Ok(counting)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> LogHeader {
        let map = FileIdentity { device: 5, inode: 6 };
        LogHeader { layer: 9, boot: Some(BootId([7; 16])), map, epoch: 100, nonce: 0xdead_beef }
    }

    fn record(n: u64) -> Record {
        Record {
            first_unit: n * 1000,
            units: n as u32 + 1,
            state: if n.is_multiple_of(2) { State::Data } else { State::Zero },
        }
    }

    #[test]
    fn a_header_is_read_back_and_every_flipped_bit_makes_it_none() {
        for header in [header(), LogHeader { boot: None, ..header() }] {
            let good: [u8; SECTOR] = header.encode().try_into().unwrap();
            assert_eq!(LogHeader::decode(9, &good), Some(header));
            for bit in 0..SECTOR * 8 {
                let mut bad = good;
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(LogHeader::decode(9, &bad), None, "bit {bit}");
            }
        }
    }

    #[test]
    fn records_end_at_the_first_that_is_not_whole() {
        let header = header();
        let mut bytes = Vec::new();
        (0..10).for_each(|n| header.encode_record(n, &record(n), &mut bytes));
        assert_eq!(header.records(&bytes), (0..10).map(record).collect::<Vec<_>>());
        assert_eq!(header.records(&bytes[..RECORD * 4 + 15]).len(), 4);
        let mut damaged = bytes.clone();
        damaged[RECORD * 6 + 3] ^= 1;
        assert_eq!(header.records(&damaged).len(), 6);
        let earlier = LogHeader { nonce: 1, ..header };
        assert!(earlier.records(&bytes).is_empty(), "records of another use do not count");
        assert_eq!(header.records(&bytes[RECORD..]).len(), 0, "nor do records out of their place");
    }

    #[test]
    fn which_logs_count() {
        let at = |epoch| (LogHeader { epoch, ..header() }, vec![record(0)]);
        let map = header().map;
        let count = |logs: &[(LogHeader, Vec<Record>)], epoch| -> Vec<u64> {
            let same = |boot| Ok(boot == Some(BootId([7; 16])));
            let counting = which_count(logs, epoch, map, same).unwrap();
            counting.iter().map(|(header, _)| header.epoch).collect()
        };
        assert_eq!(count(&[at(100)], 100), [100]); // died between two syncs
        assert_eq!(count(&[at(101), at(100)], 100), [100, 101]); // died in a sync, before its epoch
        assert_eq!(count(&[at(100), at(101)], 101), [101]); // died in a sync, after its epoch
        assert_eq!(count(&[at(101)], 100), [] as [u64; 0]); // the first of two is missing
        assert_eq!(count(&[at(98), at(99)], 100), [] as [u64; 0]); // older than the map
        let other_boot = LogHeader { boot: Some(BootId([8; 16])), ..header() };
        assert_eq!(count(&[(other_boot, vec![record(0)])], 100), [] as [u64; 0]);
        let other_file = LogHeader { map: FileIdentity { device: 5, inode: 7 }, ..header() };
        assert_eq!(count(&[(other_file, vec![record(0)])], 100), [] as [u64; 0]);
    }

    #[test]
    fn the_boot_is_asked_for_only_where_a_log_with_records_would_count() {
        let unknown = |_| Err(vellum_engine::Error::new(vellum_engine::ErrorKind::Busy, "which?"));
        let can_tell =
            |records| which_count(&[(header(), records)], 100, header().map, unknown).is_ok();
        assert!(can_tell(Vec::new()));
        assert!(!can_tell(vec![record(0)]));
    }
}
