//! The header of a qcow2 file, as far as it must be looked at before the file is trusted to the library that reads it.
//!
//! Layout: QEMU's `docs/interop/qcow2.txt`. imago parses the encryption method without acting on it, so that an encrypted image
//! would be read as its ciphertext; and a backing file could name any file of whoever imports.

use crate::convert::{Error, Result};

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// As much as this module looks at.
pub const LENGTH: usize = 112;

const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// What a header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Whether it names a backing file.
    pub has_backing: bool,
    /// Whether its data lies in another file.
    pub has_external_data: bool,
    crypt_method: u32,
    incompatible: u64,
}

/// Whether a file that begins like this is qcow2.
pub fn is_qcow2(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

impl Header {
    /// Reads a header; `None` if it is none, or ends early.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let u32_at = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        let u64_at = |at: usize| Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        if !is_qcow2(bytes) {
            return None;
        }
        let version = u32_at(4)?;
        let incompatible = if version >= 3 { u64_at(72)? } else { 0 };
        Some(Self {
            has_backing: u64_at(8)? != 0,
            has_external_data: incompatible & EXTERNAL_DATA != 0,
            crypt_method: u32_at(32)?,
            incompatible,
        })
    }

    /// Refuses what cannot be read rightly, or not without being asked.
    pub fn check(&self, allow_backing: bool) -> Result<()> {
        let refuse = |why: &str| Err(Error::Refused(why.to_owned()));
        if self.crypt_method != 0 {
            return refuse("the qcow2 file is encrypted; decrypt it first with `qemu-img convert`");
        }
        if self.incompatible & (DIRTY | CORRUPT) != 0 {
            return refuse(
                "the qcow2 file was not closed, or is marked as damaged; repair it first with `qemu-img check -r all`",
            );
        }
        if self.incompatible & EXTENDED_L2 != 0 {
            return refuse(
                "the qcow2 file has sub-clusters (extended_l2), which are not read here; convert it first with `qemu-img convert -O qcow2`",
            );
        }
        if self.incompatible & COMPRESSION != 0 {
            return refuse(
                "the qcow2 file is compressed with zstd, which is not read here; convert it first with `qemu-img convert -O qcow2`",
            );
        }
        if self.has_backing && !allow_backing {
            return refuse(
                "the qcow2 file has a backing file, which would be read with your rights; look which one with `qemu-img info`, and say --allow-backing if that is meant",
            );
        }
        if self.has_external_data && !allow_backing {
            return refuse(
                "the qcow2 file keeps its data in another file, which would be read with your rights; look which one with `qemu-img info`, and say --allow-backing if that is meant",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: u32, crypt: u32, backing: u64, incompatible: u64) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&version.to_be_bytes());
        bytes[8..16].copy_from_slice(&backing.to_be_bytes());
        bytes[32..36].copy_from_slice(&crypt.to_be_bytes());
        bytes[72..80].copy_from_slice(&incompatible.to_be_bytes());
        bytes
    }

    #[test]
    fn what_is_refused_and_what_is_not() {
        let check =
            |bytes: [u8; LENGTH], allow| Header::decode(&bytes).unwrap().check(allow).is_ok();
        assert!(check(header(3, 0, 0, 0), false) && check(header(2, 0, 0, 0), false));
        assert!(check(header(2, 0, 0, EXTENDED_L2), false), "version 2 has no feature bits there");
        for crypt in [1, 2] {
            assert!(!check(header(3, crypt, 0, 0), true));
        }
        for bit in [DIRTY, CORRUPT, EXTENDED_L2, COMPRESSION] {
            assert!(!check(header(3, 0, 0, bit), true), "{bit:#x}");
        }
        assert!(!check(header(3, 0, 500, 0), false) && check(header(3, 0, 500, 0), true));
        assert!(
            !check(header(3, 0, 0, EXTERNAL_DATA), false)
                && check(header(3, 0, 0, EXTERNAL_DATA), true)
        );
    }

    #[test]
    fn a_header_that_ends_early_is_none() {
        let bytes = header(3, 0, 0, 0);
        for length in 0..80 {
            assert_eq!(Header::decode(&bytes[..length]), None, "{length}");
        }
        assert!(
            Header::decode(
                b"not a qcow2 file, but long enough for its header to be looked at............"
            )
            .is_none()
        );
    }
}
