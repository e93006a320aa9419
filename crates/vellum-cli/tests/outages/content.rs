//! What the load writes: sectors that tell which request wrote them and where they belong.

use vellum_core::Extent;

/// Bytes that an outage keeps or loses together.
pub const SECTOR: u64 = 512;

/// Bytes of a request: each sector repeats the request's stamp and its own number, so that a sector in a wrong place is found.
pub fn filled(stamp: u64, at: Extent) -> Vec<u8> {
    let numbers = at.offset() / SECTOR..at.end() / SECTOR;
    numbers
        .flat_map(|number| {
            [stamp.to_le_bytes(), number.to_le_bytes()].concat().repeat(SECTOR as usize / 16)
        })
        .collect()
}

/// Which stamp a sector holds, 0 for zeros; `None` if it is nothing that was ever written to this sector.
pub fn stamp_of(number: u64, sector: &[u8]) -> Option<u64> {
    if sector.iter().all(|byte| *byte == 0) {
        return Some(0);
    }
    let stamp = u64::from_le_bytes(sector[..8].try_into().expect("a sector has 512 bytes"));
    let at = Extent::new(number * SECTOR, SECTOR);
    (stamp != 0 && sector == filled(stamp, at)).then_some(stamp)
}

/// Whether each part of a sector is of one of these stamps, though not all of the same.
pub fn is_mixture(number: u64, sector: &[u8], stamps: &[u64]) -> bool {
    let may_be = |(place, word): (usize, &[u8])| {
        let word = u64::from_le_bytes(word.try_into().expect("it has eight bytes"));
        match place % 2 {
            0 => stamps.contains(&word),
            _ => word == number || (word == 0 && stamps.contains(&0)),
        }
    };
    stamps.len() > 1 && sector.chunks_exact(8).enumerate().all(may_be)
}
