//! A page of states: eight sectors, each checked by itself, since a power cut may keep some and lose others.
//!
//! ```text
//! sector   0  CRC-32C u32    4  zero u32    8  epoch u64    16  62 words u64, 32 units each, unit 0 in the lowest two bits
//! ```
//!
//! A sector of zeros was never written, and all its units are inherited; unless the [ledger](super::ledger) says that the page was
//! whole: then the sector is lost.

use vellum_engine::{Error, Result};

use super::{PAGE, Reader, SECTOR, checksum};

/// Sectors in a page.
pub(crate) const SECTORS: usize = PAGE / SECTOR;
/// Words of states in a sector.
pub(crate) const SECTOR_WORDS: usize = 62;
/// Words of states in a page.
pub(crate) const PAGE_WORDS: usize = SECTORS * SECTOR_WORDS;
/// Units in a word, at two bits each.
pub(crate) const WORD_UNITS: u64 = 32;
/// Units in a sector: with blocks of 4 KiB, 7.75 MiB of the image.
pub(crate) const SECTOR_UNITS: u64 = SECTOR_WORDS as u64 * WORD_UNITS;
/// Units in a page: with blocks of 4 KiB, 62 MiB of the image.
pub(crate) const PAGE_UNITS: u64 = PAGE_WORDS as u64 * WORD_UNITS;

/// Where in the file the page with this number lies, behind the header.
pub(crate) fn page_at(page: u64) -> u64 {
    (page + 1) * PAGE as u64
}

/// Writes the page with this number.
pub(crate) fn encode(layer: u64, page: u64, epoch: u64, words: &[u64; PAGE_WORDS]) -> Vec<u8> {
    let mut out = Vec::with_capacity(PAGE);
    for (number, words) in words.chunks_exact(SECTOR_WORDS).enumerate() {
        let start = out.len();
        out.extend([0; 8]);
        out.extend(epoch.to_le_bytes());
        words.iter().for_each(|word| out.extend(word.to_le_bytes()));
        let crc = checksum(layer, place(page, number), &out[start + 4..]);
        out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    }
    out
}

/// Reads the page with this number, whole or not as the ledger says. `what` names the file in errors.
pub(crate) fn decode(
    what: &str,
    layer: u64,
    page: u64,
    bytes: &[u8; PAGE],
    is_whole: bool,
) -> Result<[u64; PAGE_WORDS]> {
    let lost = never_written(bytes).trailing_zeros() as usize;
    if is_whole && lost < SECTORS {
        return Err(bad(what, page, lost, "is lost: it was written, and reads as zeros"));
    }
    let words = decode_words(what, layer, page, bytes)?;
    // Two bits set in one unit stand for no state.
    let is_no_state = |word: &u64| word & (word >> 1) & 0x5555_5555_5555_5555 != 0;
    if let Some(at) = words.iter().position(is_no_state) {
        let why = format!("holds {:#018x}, which has a state that does not exist", words[at]);
        return Err(bad(what, page, at / SECTOR_WORDS, &why));
    }
    Ok(words)
}

/// Reads a page of this layout, whatever its words say. `what` names the file in errors.
pub(super) fn decode_words(
    what: &str,
    layer: u64,
    page: u64,
    bytes: &[u8; PAGE],
) -> Result<[u64; PAGE_WORDS]> {
    let mut words = [0; PAGE_WORDS];
    let sectors = bytes.chunks_exact(SECTOR).zip(words.chunks_exact_mut(SECTOR_WORDS));
    for (number, (sector, words)) in sectors.enumerate() {
        if is_blank(sector) {
            continue;
        }
        let mut reader = Reader(sector);
        let found = reader.u32();
        let expected = checksum(layer, place(page, number), &sector[4..]);
        if found != expected {
            let why = format!("has checksum {found:08x}, its bytes make {expected:08x}");
            return Err(bad(what, page, number, &why));
        }
        let (_zero, _epoch) = (reader.u32(), reader.u64());
        words.fill_with(|| reader.u64());
    }
    Ok(words)
}

fn bad(what: &str, page: u64, sector: usize, why: &str) -> Error {
    let at = page_at(page) + (sector * SECTOR) as u64;
    Error::corrupt(format!("{what}: the sector of the map at {at} {why}"))
}

/// Whether a sector was never written; so looks one too that was lost.
pub(crate) fn is_blank(sector: &[u8]) -> bool {
    sector.iter().all(|byte| *byte == 0)
}

/// Which sectors of a page were never written, one bit each, the first in the lowest.
pub(crate) fn never_written(bytes: &[u8; PAGE]) -> u8 {
    let sectors = bytes.chunks_exact(SECTOR).enumerate();
    let blank = sectors.filter(|(_, sector)| is_blank(sector));
    blank.fold(0, |bits, (number, _)| bits | 1 << number)
}

/// Where a sector belongs; 0 and 1 are taken by the header.
fn place(page: u64, sector: usize) -> u64 {
    (page + 1) * SECTORS as u64 + sector as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> [u64; PAGE_WORDS] {
        std::array::from_fn(|i| if i % 3 == 0 { 0x5555_aaaa_0001_8000 } else { 0 })
    }

    fn bytes(page: u64) -> [u8; PAGE] {
        encode(9, page, 3, &words()).try_into().unwrap()
    }

    #[test]
    fn the_layout_is_what_the_picture_says() {
        assert_eq!((PAGE_UNITS, PAGE_WORDS), (15_872, 496));
        let bytes = bytes(0);
        assert_eq!(bytes[8..24], [3, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 1, 0, 0xaa, 0xaa, 0x55, 0x55]);
        for is_whole in [false, true] {
            assert_eq!(decode("map", 9, 0, &bytes, is_whole).unwrap(), words());
        }
    }

    #[test]
    fn a_page_that_was_never_written_is_all_inherited_and_sectors_stand_alone() {
        assert_eq!(decode("map", 9, 5, &[0; PAGE], false).unwrap(), [0; PAGE_WORDS]);
        // Torn: the first half is new, the second was never written.
        let mut torn = bytes(5);
        torn[PAGE / 2..].fill(0);
        let read = decode("map", 9, 5, &torn, false).unwrap();
        assert_eq!(read[..PAGE_WORDS / 2], words()[..PAGE_WORDS / 2]);
        assert!(read[PAGE_WORDS / 2..].iter().all(|word| *word == 0));
    }

    #[test]
    fn a_sector_that_reads_as_zeros_in_a_page_that_was_whole_is_lost() {
        for sector in 0..SECTORS {
            let mut lost = bytes(5);
            lost[sector * SECTOR..][..SECTOR].fill(0);
            let error = decode("map", 9, 5, &lost, true).unwrap_err();
            let at = 6 * PAGE + sector * SECTOR;
            assert!(error.to_string().contains(&format!("at {at} is lost")), "{error}");
        }
        assert!(decode("map", 9, 5, &[0; PAGE], true).is_err());
    }

    #[test]
    fn every_flipped_bit_and_every_misplaced_page_is_found() {
        let good = bytes(5);
        for bit in 0..PAGE * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode("map", 9, 5, &bad, false).is_err(), "bit {bit}");
        }
        let elsewhere = [decode("map", 9, 6, &good, false), decode("map", 8, 5, &good, false)];
        assert!(elsewhere.iter().all(Result::is_err));
    }

    #[test]
    fn a_state_that_does_not_exist_is_damage_even_with_a_good_checksum() {
        let mut words = words();
        words[100] = 3;
        let bytes: [u8; PAGE] = encode(9, 0, 1, &words).try_into().unwrap();
        assert!(decode("map", 9, 0, &bytes, false).is_err());
    }
}
