//! The ledger of a map: which of its pages are on the medium as a whole, one bit each.
//!
//! It lies behind the last page of states, in pages of the same layout: eight sectors, each checked by itself, with 62 words. The
//! words say other things: bit *n* of page *k* stands for page *k* * 31,744 + *n* of states, the first in the lowest bit.
//!
//! Without it a sector of states that reads as zeros could be one that a power cut kept from being written, or one that the
//! medium lost; the first means that its units are inherited, and the second that nobody knows. A page that the ledger names had all
//! its sectors on the medium before it was named, so what is missing of it is lost. A ledger that lacks a name knows less, and
//! says nothing that is not so.

use vellum_engine::{Error, Result};

use super::PAGE;
use super::sector::{self, PAGE_WORDS};

/// Pages of states that one page of the ledger tells of: with blocks of 4 KiB, 1.9 TiB of the image.
pub(crate) const PAGES_NAMED: u64 = PAGE_WORDS as u64 * 64;

/// Pages of the ledger of a map that has this many pages of states.
pub(crate) fn pages(states: u64) -> u64 {
    states.div_ceil(PAGES_NAMED)
}

/// Where in the map a page of its ledger lies.
pub(crate) fn page_at(states: u64, number: u64) -> u64 {
    sector::page_at(states + number)
}

/// Writes a page of the ledger of a map that has `states` pages of states.
pub(crate) fn encode(
    layer: u64,
    states: u64,
    number: u64,
    epoch: u64,
    words: &[u64; PAGE_WORDS],
) -> Vec<u8> {
    sector::encode(layer, states + number, epoch, words)
}

/// Reads a page of the ledger. A sector that was never written names nothing. `what` names the file in errors.
pub(crate) fn decode(
    what: &str,
    layer: u64,
    states: u64,
    number: u64,
    bytes: &[u8; PAGE],
) -> Result<[u64; PAGE_WORDS]> {
    let words = sector::decode_words(what, layer, states + number, bytes)?;
    let named = states.saturating_sub(number * PAGES_NAMED);
    let is_named = |bit: u64| words[(bit / 64) as usize] >> (bit % 64) & 1 == 1;
    if (named..PAGES_NAMED).any(is_named) {
        return Err(Error::corrupt(format!(
            "{what}: page {number} of the ledger names pages of states past the last, of which there are {states}"
        )));
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_lies_behind_the_states_and_is_read_as_it_was_written() {
        assert_eq!((PAGES_NAMED, pages(1), pages(31_744), pages(31_745)), (31_744, 1, 1, 2));
        let mut words = [0; PAGE_WORDS];
        (words[0], words[495]) = (0b101, 1 << 63);
        let bytes: [u8; PAGE] = encode(9, 40_000, 0, 3, &words).try_into().unwrap();
        assert_eq!(bytes[8..24], [3, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(decode("map", 9, 40_000, 0, &bytes).unwrap(), words);
        let elsewhere = [decode("map", 9, 40_000, 1, &bytes), decode("map", 8, 40_000, 0, &bytes)];
        assert!(elsewhere.iter().all(Result::is_err));
        assert_eq!(decode("map", 9, 40_000, 0, &[0; PAGE]).unwrap(), [0; PAGE_WORDS]);
    }

    #[test]
    fn a_ledger_that_names_pages_past_the_last_is_damage() {
        let mut words = [0; PAGE_WORDS];
        words[0] = 0b111;
        for (states, is_good) in [(2, false), (3, true)] {
            let bytes: [u8; PAGE] = encode(9, states, 0, 3, &words).try_into().unwrap();
            assert_eq!(decode("map", 9, states, 0, &bytes).is_ok(), is_good, "{states}");
        }
    }

    #[test]
    fn every_flipped_bit_of_a_ledger_is_found() {
        let mut words = [0; PAGE_WORDS];
        (words[0], words[100], words[495]) = (0b101, u64::MAX, 1 << 63);
        let states = PAGES_NAMED;
        let good: [u8; PAGE] = encode(9, states, 0, 3, &words).try_into().unwrap();
        assert_eq!(decode("map", 9, states, 0, &good).unwrap(), words);
        for bit in 0..PAGE * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = decode("map", 9, states, 0, &bytes).unwrap_err();
            assert_eq!(error.kind(), vellum_engine::ErrorKind::Corrupt, "bit {bit}");
        }
    }
}
