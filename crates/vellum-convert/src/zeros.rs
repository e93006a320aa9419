//! Finding zeros in bytes, so that holes are kept where nothing else says where they are.

use vellum_core::{Extent, Runs, State};

/// Whether every byte is zero. True of no bytes.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Or-ing whole chunks, rather than stopping at the first byte, lets the compiler use wide registers.
    let mut chunks = bytes.chunks_exact(128);
    chunks.by_ref().all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
        && chunks.remainder().iter().all(|byte| *byte == 0)
}

/// Which blocks of `block` bytes (a power of two), counted from offset 0 of the image, are all zero in `bytes`, which lie at
/// `offset`: runs of [`State::Data`] and [`State::Zero`] that cover `bytes` exactly.
///
/// # Panics
/// If `block` is no power of two, or the end overflows.
pub fn zero_runs(bytes: &[u8], offset: u64, block: u64) -> Runs {
    let whole = Extent::new(offset, bytes.len() as u64);
    let mut runs = Runs::new();
    for extent in whole.chunks(block) {
        let state =
            if is_zero(&bytes[whole.range_of(&extent)]) { State::Zero } else { State::Data };
        runs.push(extent, state);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_byte_anywhere_is_not_zero() {
        for length in [1, 7, 127, 128, 129, 1000] {
            assert!(is_zero(&vec![0; length]));
            for at in [0, length / 2, length - 1] {
                let mut bytes = vec![0; length];
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {length}");
            }
        }
        assert!(is_zero(&[]));
    }

    proptest! {
        #[test]
        fn runs_cover_exactly_and_what_is_called_zero_is(
            offset in 0u64..10_000,
            pattern in prop::collection::vec(prop::bool::ANY, 1..200),
        ) {
            let bytes: Vec<u8> = pattern.iter().flat_map(|data| [u8::from(*data); 100]).collect();
            let runs = zero_runs(&bytes, offset, 512);
            let mut at = offset;
            for run in &runs {
                prop_assert_eq!(run.extent.offset(), at);
                let here = &bytes[(at - offset) as usize..(run.extent.end() - offset) as usize];
                prop_assert_eq!(run.state == State::Zero, is_zero(here));
                at = run.extent.end();
            }
            prop_assert_eq!(at, offset + bytes.len() as u64);
        }
    }
}
