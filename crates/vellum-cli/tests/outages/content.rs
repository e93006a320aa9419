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
    stamps.len() > 1 && words(sector).all(|word| word.is_of(number, stamps))
}

/// The words of a sector that are of none of these stamps, each with its place, for people.
pub fn strange_words(number: u64, sector: &[u8], stamps: &[u64]) -> String {
    let strange = words(sector).filter(|word| !word.is_of(number, stamps));
    let strange: Vec<String> =
        strange.map(|Word { place, value }| format!("{value:#018x} at word {place}")).collect();
    format!("{} strange words: {}", strange.len(), strange.join(", "))
}

/// Eight bytes of a sector.
struct Word {
    place: usize,
    value: u64,
}

impl Word {
    fn is_of(&self, number: u64, stamps: &[u64]) -> bool {
        match self.place % 2 {
            0 => stamps.contains(&self.value),
            _ => self.value == number || (self.value == 0 && stamps.contains(&0)),
        }
    }
}

fn words(sector: &[u8]) -> impl Iterator<Item = Word> + '_ {
    let value = |word: &[u8]| u64::from_le_bytes(word.try_into().expect("it has eight bytes"));
    sector.chunks_exact(8).map(value).enumerate().map(|(place, value)| Word { place, value })
}
