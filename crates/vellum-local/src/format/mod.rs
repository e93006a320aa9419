//! Bytes on disk, as pure functions: no I/O here, and no panic whatever the bytes.
//!
//! [`header`] opens a map file, [`sector`] holds states, [`ledger`] names the pages of states that are whole, [`live`] is the
//! log of changes since the last sync. All numbers are little endian; every structure carries a CRC-32C that covers whatever names its place, so that bytes in the wrong place
//! are found as well as bytes that changed.

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub(crate) mod header;
pub(crate) mod ledger;
pub(crate) mod live;
pub(crate) mod sector;

use vellum_engine::{Error, ErrorKind, Result};

/// What a power cut leaves whole: the medium writes this many bytes or none of them.
pub(crate) const SECTOR: usize = 512;
/// A page of a map, and the header before the first: eight sectors.
pub(crate) const PAGE: usize = 4096;
/// The version of the format of layers. Raised when an older program must not even read.
pub(crate) const VERSION: u32 = 1;

/// The checksum of some bytes at a place of a layer.
fn checksum(layer: u64, place: u64, bytes: &[u8]) -> u32 {
    let seed = crc32c::crc32c(&layer.to_le_bytes());
    let seed = crc32c::crc32c_append(seed, &place.to_le_bytes());
    crc32c::crc32c_append(seed, bytes)
}

/// Reads numbers one after the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_first_chunk().expect("a layout is as long as its fields");
        self.0 = rest;
        *head
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(length);
        self.0 = rest;
        head
    }
}

fn unsupported_version(what: &str, version: u32) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "{what} has format version {version}, and this program knows up to {VERSION}; use a newer one"
        ),
    )
}

/// Refuses a structure whose features this program does not know.
fn check_features(what: &str, incompatible: u32) -> Result<()> {
    if incompatible == 0 {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "{what} needs features {incompatible:#x} that this program does not know; use a newer one"
        ),
    ))
}
