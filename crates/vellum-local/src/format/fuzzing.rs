//! The bytes on disk for the fuzz targets, behind the feature `fuzzing`: what is read is written again, since a reader that
//! accepts something must have understood it; and checksums are set right, or no changed byte would be looked at behind
//! them. Not part of the engine.

use vellum_engine::Result;

use super::live::{LogHeader, RECORD};
use super::{PAGE, Reader, SECTOR, checksum, header, ledger, live, sector};

/// The first page of a map, as it is understood, written again.
pub fn header_again(layer: u64, page: &[u8; PAGE]) -> Result<Vec<u8>> {
    let (header, epoch) = header::decode("map", layer, page)?;
    Ok(header::encode(&header, &epoch))
}

/// A page of states, as it is understood, written again in this epoch.
pub fn states_again(layer: u64, page: u64, epoch: u64, bytes: &[u8; PAGE]) -> Result<Vec<u8>> {
    let words = sector::decode("map", layer, page, bytes, false)?;
    Ok(sector::encode(layer, page, epoch, &words))
}

/// The first page of the ledger of a map with this many pages of states, as it is understood, written again in this epoch.
pub fn ledger_again(layer: u64, states: u64, epoch: u64, bytes: &[u8; PAGE]) -> Result<Vec<u8>> {
    let words = ledger::decode("map", layer, states, 0, bytes)?;
    Ok(ledger::encode(layer, states, 0, epoch, &words))
}

/// A live log, as far as it is understood, written again; `None` if it is none.
pub fn log_again(layer: u64, log: &[u8]) -> Option<Vec<u8>> {
    let (sector, records) = log.split_first_chunk()?;
    let header = LogHeader::decode(layer, sector)?;
    let mut again = header.encode();
    for (index, record) in header.records(records).iter().enumerate() {
        header.encode_record(index as u64, record, &mut again);
    }
    Some(again)
}

/// Sets the checksums of a map right: both sectors of its header, and every sector of states and of the ledger that holds something.
pub fn seal_map(layer: u64, map: &mut [u8]) {
    for (number, bytes) in map.chunks_exact_mut(SECTOR).enumerate() {
        let place = number as u64;
        if number < 2 {
            let crc = checksum(layer, place, &bytes[..header::CRC_AT]);
            bytes[header::CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        } else if number >= sector::SECTORS && bytes.iter().any(|byte| *byte != 0) {
            let crc = checksum(layer, place, &bytes[4..]);
            bytes[..4].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

/// Sets the checksums of a live log right: that of its header, and that of every whole record behind it.
pub fn seal_log(layer: u64, log: &mut [u8]) {
    let Some((head, records)) = log.split_first_chunk_mut::<SECTOR>() else { return };
    let crc = checksum(layer, live::PLACE, &head[..live::CRC_AT]);
    head[live::CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    let Some(header) = LogHeader::decode(layer, head) else { return };
    for (index, record) in records.chunks_exact_mut(RECORD).enumerate() {
        let crc = checksum(header.nonce, index as u64, &record[..RECORD - 4]);
        record[RECORD - 4..].copy_from_slice(&crc.to_le_bytes());
    }
}

/// The epoch that the sector of a page holds, for whoever wants to write it again as it is.
pub fn epoch_of(page: &[u8; PAGE]) -> u64 {
    Reader(&page[8..16]).u64()
}
