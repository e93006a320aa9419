//! A live log: the state changes since the last sync, which survive the death of the process but not a power cut.
//!
//! ```text
//! header, one sector    0  magic "VELLULOG"   8  version u32   12  boot is known u32   16  layer u64   24  boot id (16)
//!                      40  device u64        48  inode u64     56  epoch u64           64  nonce u64   72  length u64
//!                      80  zeros            508  CRC-32C
//! record, 16 bytes      0  first unit (56 bits) and state (8 bits)                      8  units u32   12  CRC-32C
//! ```
//!
//! A record's checksum is seeded with the header's nonce and the record's index, so that records of an earlier use of the file,
//! or half a record, end the log instead of being believed.
//!
//! Where a log ends and where it is damaged are told apart by what the death of a process can leave: records are written in their
//! order, each time with a record of zeros behind the last; a write that is cut short ends where a page does; and the file had its
//! length before the header was written.

use vellum_core::State;
use vellum_disk::{BootId, FileIdentity};
use vellum_engine::{Error, Result};

use super::sector::is_blank;
use super::{PAGE, Reader, SECTOR, VERSION, checksum};

const MAGIC: &[u8; 8] = b"VELLULOG";
const BOOT_AT: usize = 24;
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
    /// How long the file was made before the log was begun in it. 0 in a log of an earlier program, which made it no longer than
    /// its records, and put no zeros behind them.
    pub length: u64,
}

/// A log as it is found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LiveLog {
    pub header: LogHeader,
    /// Up to the first that is not whole.
    pub records: Vec<Record>,
    /// What says that more were written; `None` where the log ends.
    pub damage: Option<String>,
}

/// What lies in the place of a log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// No log was begun there.
    Nothing,
    /// One of this layer.
    Log(LiveLog),
    /// One of another layer.
    OfAnother(LogHeader),
    /// What no process writes: it was damaged, or torn by a power cut, which another boot followed.
    Unreadable {
        /// It was written in this boot, so that it is damaged. Where this is not set, that is not known.
        of_this_boot: bool,
    },
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
        for number in [self.map.device, self.map.inode, self.epoch, self.nonce, self.length] {
            out.extend(number.to_le_bytes());
        }
        out.resize(CRC_AT, 0);
        let crc = checksum(self.layer, PLACE, &out);
        out.extend(crc.to_le_bytes());
        out
    }

    /// The header of a layer's log; `None` for bytes that are none.
    pub(crate) fn decode(layer: u64, sector: &[u8; SECTOR]) -> Option<Self> {
        Self::of_any_layer(sector).filter(|header| header.layer == layer)
    }

    fn of_any_layer(sector: &[u8; SECTOR]) -> Option<Self> {
        let mut reader = Reader(sector);
        let (magic, version, known, layer) =
            (reader.take::<8>(), reader.u32(), reader.u32(), reader.u64());
        let crc = Reader(&sector[CRC_AT..]).u32();
        if magic != *MAGIC || version != VERSION || crc != checksum(layer, PLACE, &sector[..CRC_AT])
        {
            return None;
        }
        let boot = BootId(reader.take());
        let (device, inode) = (reader.u64(), reader.u64());
        let (epoch, nonce, length) = (reader.u64(), reader.u64(), reader.u64());
        let boot = (known != 0).then_some(boot);
        Some(Self { layer, boot, map: FileIdentity { device, inode }, epoch, nonce, length })
    }

    /// Whether bytes that are no header were one of this boot: they still say so, or would be a header if they did.
    fn was_of_boot(layer: u64, boot: BootId, bytes: &[u8]) -> bool {
        let place = BOOT_AT..BOOT_AT + boot.0.len();
        let mended = bytes.first_chunk::<SECTOR>().is_some_and(|sector| {
            let mut sector = *sector;
            sector[place.clone()].copy_from_slice(&boot.0);
            Self::decode(layer, &sector).is_some()
        });
        mended || bytes.get(place) == Some(&boot.0)
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

impl LiveLog {
    /// The log behind a header. `behind` is all the rest of its file.
    pub(crate) fn read(header: LogHeader, behind: &[u8]) -> Self {
        let records = header.records(behind);
        let damage = header.damage(behind, records.len());
        Self { header, records, damage }
    }

    /// Whether something was written to it.
    pub(crate) fn says_something(&self) -> bool {
        !self.records.is_empty() || self.damage.is_some()
    }
}

impl LogHeader {
    /// What says that a log did not end behind so many records.
    fn damage(&self, behind: &[u8], whole: usize) -> Option<String> {
        let length = (SECTOR + behind.len()) as u64;
        if length < self.length {
            return Some(format!("is cut short: it has {length} bytes, expected {}", self.length));
        }
        let at = SECTOR + whole * RECORD;
        let next = behind.get(whole * RECORD..(whole + 1) * RECORD);
        let ends_in_zeros = next.is_none_or(is_blank);
        let may_be_cut = self.length == 0 || at.is_multiple_of(PAGE);
        if (ends_in_zeros || may_be_cut) && !self.goes_on(behind, whole) {
            return None;
        }
        Some(format!("has a record at byte {at} that is not what was written"))
    }

    /// Whether records of this log lie behind one that is not whole. Those of an earlier use may lie there too, of which one in
    /// 2^32 looks like one of this log: so it takes two in a row, or one right behind a record, a sector or a page that was lost.
    fn goes_on(&self, behind: &[u8], lost: usize) -> bool {
        let is_whole = |index: usize| {
            let bytes = behind.get(index * RECORD..(index + 1) * RECORD);
            bytes.is_some_and(|bytes| self.decode_record(index as u64, bytes).is_some())
        };
        let at = SECTOR + lost * RECORD;
        let right_behind = [RECORD, SECTOR, PAGE].map(|size| (at / size + 1) * size);
        right_behind.into_iter().any(|at| is_whole((at - SECTOR) / RECORD))
            || (lost + 1..behind.len() / RECORD).any(|it| is_whole(it) && is_whole(it + 1))
    }
}

/// What the bytes of a file are that is in the place of a log of this layer, where this is the boot.
///
/// A process that dies leaves an empty file, zeros or a header in the place of a header, and nothing else.
pub(crate) fn find(layer: u64, boot: Option<BootId>, bytes: &[u8]) -> Found {
    let (head, behind) = bytes.split_at(bytes.len().min(SECTOR));
    if bytes.is_empty() || (head.len() == SECTOR && is_blank(head)) {
        return Found::Nothing;
    }
    match head.first_chunk().and_then(LogHeader::of_any_layer) {
        Some(header) if header.layer == layer => Found::Log(LiveLog::read(header, behind)),
        Some(header) => Found::OfAnother(header),
        None => {
            let of_this_boot = boot.is_some_and(|boot| LogHeader::was_of_boot(layer, boot, head));
            Found::Unreadable { of_this_boot }
        }
    }
}

/// Which of two logs count for a map of this epoch, in the order in which they are replayed: the one bound to the epoch, then
/// the one that a sync under way had begun. A log of another boot, another file or another epoch does not count, and the
/// second counts only behind the first. An error where a log that says something would count but for the boot, which cannot be
/// known here; one that says nothing does so whatever the boot. And an error where one that counts is damaged.
pub(crate) fn which_count(
    logs: &[LiveLog],
    epoch: u64,
    map: FileIdentity,
    same_boot: impl Fn(Option<BootId>) -> Result<bool>,
) -> Result<Vec<&LiveLog>> {
    let mut counting = Vec::new();
    for expected in [epoch, epoch.wrapping_add(1)] {
        let is_next = |log: &&LiveLog| log.header.epoch == expected && log.header.map == map;
        let Some(log) = logs.iter().find(is_next) else { break };
        if log.says_something() && !same_boot(log.header.boot)? {
            break;
        }
        if let Some(damage) = &log.damage {
            return Err(Error::corrupt(damage.clone()));
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
        let boot = Some(BootId([7; 16]));
        LogHeader { layer: 9, boot, map, epoch: 100, nonce: 0xdead_beef, length: FILE as u64 }
    }

    /// As long as the files of these tests are made: two pages.
    const FILE: usize = 2 * PAGE;

    /// The file of a log with so many records.
    fn file(header: &LogHeader, records: u64) -> Vec<u8> {
        let mut bytes = header.encode();
        (0..records).for_each(|n| header.encode_record(n, &record(n), &mut bytes));
        bytes.resize(FILE, 0);
        bytes
    }

    fn log(bytes: &[u8]) -> LiveLog {
        match find(9, header().boot, bytes) {
            Found::Log(log) => log,
            other => panic!("{other:?}"),
        }
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
        let of = |header| log(&file(&header, 1));
        let at = |epoch| of(LogHeader { epoch, ..header() });
        let map = header().map;
        let same = |boot| Ok(boot == Some(BootId([7; 16])));
        let count = |logs: &[LiveLog], epoch| -> Vec<u64> {
            let counting = which_count(logs, epoch, map, same).unwrap();
            counting.iter().map(|log| log.header.epoch).collect()
        };
        assert_eq!(count(&[at(100)], 100), [100]); // died between two syncs
        assert_eq!(count(&[at(101), at(100)], 100), [100, 101]); // died in a sync, before its epoch
        assert_eq!(count(&[at(100), at(101)], 101), [101]); // died in a sync, after its epoch
        assert_eq!(count(&[at(101)], 100), [] as [u64; 0]); // the first of two is missing
        assert_eq!(count(&[at(98), at(99)], 100), [] as [u64; 0]); // older than the map
        let other_boot = LogHeader { boot: Some(BootId([8; 16])), ..header() };
        assert_eq!(count(&[of(other_boot)], 100), [] as [u64; 0]);
        let other_file = LogHeader { map: FileIdentity { device: 5, inode: 7 }, ..header() };
        assert_eq!(count(&[of(other_file)], 100), [] as [u64; 0]);
        // One that counts must be whole, and no other.
        let damaged = |header| LiveLog { damage: Some("is damaged".into()), ..of(header) };
        let next = LogHeader { epoch: 101, ..header() };
        for logs in [vec![damaged(header())], vec![at(100), damaged(next)]] {
            assert!(which_count(&logs, 100, map, same).is_err());
        }
        for header in [other_boot, other_file, next] {
            assert_eq!(count(&[damaged(header)], 100), [] as [u64; 0]);
        }
    }

    #[test]
    fn the_boot_is_asked_for_only_where_a_log_with_records_would_count() {
        let unknown = |_| Err(vellum_engine::Error::new(vellum_engine::ErrorKind::Busy, "which?"));
        let can_tell = |records| {
            let log = log(&file(&header(), records));
            which_count(&[log], 100, header().map, unknown).is_ok()
        };
        assert!(can_tell(0));
        assert!(!can_tell(1));
    }

    #[test]
    fn every_flipped_bit_of_a_log_of_this_boot_is_damage() {
        let good = file(&header(), 20);
        assert_eq!((log(&good).records.len(), log(&good).damage), (20, None));
        for bit in 0..(SECTOR + 21 * RECORD) * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            match find(9, header().boot, &bad) {
                Found::Unreadable { of_this_boot: true } => assert!(bit / 8 < SECTOR, "bit {bit}"),
                Found::Log(log) => {
                    assert_eq!(log.records.len(), (bit / 8 - SECTOR) / RECORD, "bit {bit}");
                    assert!(log.damage.is_some(), "bit {bit}");
                }
                found => panic!("bit {bit}: {found:?}"),
            }
        }
    }

    #[test]
    fn records_that_read_as_zeros_are_damage_where_others_lie_behind_them() {
        let good = file(&header(), 400);
        let all = [(0, 1), (5, 1), (398, 1), (0, 32), (64, 32), (224, 32), (224, 174), (3, 100)];
        for (first, count) in all {
            let mut bad = good.clone();
            bad[SECTOR + first * RECORD..][..count * RECORD].fill(0);
            assert!(log(&bad).damage.is_some(), "{count} from {first}");
        }
        // The last ones could as well not have been written.
        let mut shorter = good;
        shorter[SECTOR + 300 * RECORD..].fill(0);
        assert_eq!((log(&shorter).records.len(), log(&shorter).damage), (300, None));
    }

    #[test]
    fn a_file_that_is_shorter_than_it_was_made_is_damage_of_any_length() {
        let good = file(&header(), 4);
        for length in 0..FILE {
            match find(9, header().boot, &good[..length]) {
                Found::Log(log) => assert!(log.damage.is_some(), "{length}"),
                Found::Unreadable { of_this_boot } => {
                    assert_eq!(of_this_boot, length >= 40, "{length}");
                }
                found => assert_eq!((length, found), (0, Found::Nothing)),
            }
        }
    }

    #[test]
    fn what_the_death_of_a_process_leaves_is_no_damage() {
        // Records of an earlier use lie in the file, and a write ends at a page that it had not begun.
        let earlier = file(&LogHeader { nonce: 1, ..header() }, 479);
        assert_eq!(find(9, header().boot, &[]), Found::Nothing);
        assert_eq!(find(9, header().boot, &[0; FILE]), Found::Nothing);
        for (records, zeros) in [(0, RECORD), (7, RECORD), (PAGE_RECORDS, 0)] {
            let mut bytes = earlier.clone();
            let new = &file(&header(), records)[..SECTOR + records as usize * RECORD + zeros];
            bytes[..new.len()].copy_from_slice(new);
            let log = log(&bytes);
            assert_eq!((log.records.len() as u64, log.damage), (records, None));
        }
        // An earlier program put no zeros behind its records, and made no file longer than them.
        let before = LogHeader { length: 0, ..header() };
        let old = &file(&before, 7)[..SECTOR + 7 * RECORD];
        let mut over = earlier;
        over[..old.len()].copy_from_slice(old);
        for bytes in [old, &over] {
            assert_eq!((log(bytes).records.len(), log(bytes).damage), (7, None));
        }
    }

    /// Records in the first page of a file.
    const PAGE_RECORDS: u64 = ((PAGE - SECTOR) / RECORD) as u64;

    #[test]
    fn what_another_boot_left_is_not_known_to_be_damaged() {
        let mut bytes = file(&header(), 4);
        bytes[60] ^= 1;
        let found = find(9, Some(BootId([8; 16])), &bytes);
        assert_eq!(found, Found::Unreadable { of_this_boot: false });
        let of_another = LogHeader { layer: 10, ..header() };
        assert_eq!(find(9, header().boot, &file(&of_another, 4)), Found::OfAnother(of_another));
    }
}
