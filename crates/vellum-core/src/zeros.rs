//! [`zeros_for`]: zeros to write somewhere, which tear only where sectors do.

use bytes::Bytes;

/// The most that there are at once.
pub const ZEROS_MAX: usize = 1 << 20;

/// Bytes of a page of memory.
const PAGE: usize = 4096;

#[repr(align(4096))]
struct Pages([u8; ZEROS_MAX + PAGE]);

static ZEROS: Pages = Pages([0; ZEROS_MAX + PAGE]);

/// So many zeros, at most [`ZEROS_MAX`], to be written to this offset of something that is stored.
///
/// Linux copies what is written from memory page by page of *the source*, and stops where the next page must be brought in first. A
/// process that is killed there leaves what was copied. So where pages of the source begin, sectors of the target must, or one is
/// left half written: of 400 kills of a process that wrote from a file in memory, 334 left a torn sector where the source began 39
/// bytes behind a page, and none where it began with one (Linux 6.18, ext4).
///
/// # Panics
/// For more than there are.
pub fn zeros_for(offset: u64, length: usize) -> Bytes {
    assert!(length <= ZEROS_MAX, "there are {ZEROS_MAX} zeros at once, and not {length}");
    let start = (offset % PAGE as u64) as usize;
    Bytes::from_static(&ZEROS.0[start..start + length])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_zeros_begin_where_those_of_their_target_do() {
        for offset in [0, 1, 511, 512, 4095, 4096, 70_001] {
            for length in [0, 1, 5000, ZEROS_MAX] {
                let zeros = zeros_for(offset, length);
                assert_eq!(zeros.as_ptr() as usize % PAGE, offset as usize % PAGE);
                assert!(zeros.len() == length && zeros.iter().all(|byte| *byte == 0));
            }
        }
    }
}
