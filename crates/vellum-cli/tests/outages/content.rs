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
