//! The header of a map file: one page before the states.
//!
//! ```text
//! sector 0, written once         0  magic "VELLUMAP"    8  version u32        12  incompatible features u32
//!                               16  read-only-compatible features u32         20  compatible features u32
//!                               24  layer u64          32  size u64           40  block size u32      44  zero u32
//!                               48  image id, 16 hex digits                   64  length u16, image name (130 bytes in all)
//!                              194  length u16, what lies below (302 bytes in all)   496  zeros      508  CRC-32C
//! sector 1, written at each sync 0  magic "VELLUMEP"    8  epoch u64          16  poisoned u32        20  zero u32
//!                               24  last good sync, seconds since 1970 u64    32  failed sync u64     40  zeros  508  CRC-32C
//! sectors 2 to 7                 zeros
//! ```
//!
//! Image name and what lies below are for people and for rebuilding a lost catalog; nothing trusts them.

use vellum_engine::{Error, ErrorKind, Result};

use super::{PAGE, Reader, SECTOR, VERSION, check_features, checksum, unsupported_version};

const MAGIC: &[u8; 8] = b"VELLUMAP";
const EPOCH_MAGIC: &[u8; 8] = b"VELLUMEP";
const NAME_MAX: usize = 128;
const BELOW_MAX: usize = 300;
pub(super) const CRC_AT: usize = 508;
const READ_ONLY_COMPATIBLE_AT: usize = 16;
/// Where the sector that each sync writes lies in the file.
pub(crate) const EPOCH_AT: u64 = SECTOR as u64;

/// What never changes of a layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub layer: u64,
    pub size: u64,
    pub block_size: u32,
    pub image: [u8; 16],
    pub image_name: String,
    pub below: String,
}

/// What each sync writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Epoch {
    pub epoch: u64,
    pub last_sync: u64,
    /// When a sync failed, after which the layer takes no writes until it is opened anew.
    pub poisoned: Option<u64>,
}

/// The first page of a new map.
pub(crate) fn encode(header: &Header, epoch: &Epoch) -> Vec<u8> {
    let mut out = Vec::with_capacity(PAGE);
    out.extend(MAGIC);
    for number in [VERSION, 0, 0, 0] {
        out.extend(number.to_le_bytes());
    }
    out.extend(header.layer.to_le_bytes());
    out.extend(header.size.to_le_bytes());
    out.extend(header.block_size.to_le_bytes());
    out.extend([0; 4]);
    out.extend(header.image);
    push_text(&mut out, &header.image_name, NAME_MAX);
    push_text(&mut out, &header.below, BELOW_MAX);
    seal(&mut out, header.layer, 0);
    out.extend(encode_epoch(header.layer, epoch));
    out.resize(PAGE, 0);
    out
}

/// The sector at [`EPOCH_AT`].
pub(crate) fn encode_epoch(layer: u64, epoch: &Epoch) -> Vec<u8> {
    let mut out = Vec::with_capacity(SECTOR);
    out.extend(EPOCH_MAGIC);
    out.extend(epoch.epoch.to_le_bytes());
    out.extend(u32::from(epoch.poisoned.is_some()).to_le_bytes());
    out.extend([0; 4]);
    out.extend(epoch.last_sync.to_le_bytes());
    out.extend(epoch.poisoned.unwrap_or(0).to_le_bytes());
    seal(&mut out, layer, 1);
    out
}

/// Reads the first page of a map. `what` names the file in errors.
pub(crate) fn decode(what: &str, layer: u64, page: &[u8; PAGE]) -> Result<(Header, Epoch)> {
    let fixed = &page[..SECTOR];
    let mut reader = Reader(fixed);
    if reader.take() != *MAGIC {
        return Err(Error::corrupt(format!("{what}: no map begins like this")));
    }
    let version = reader.u32();
    let incompatible = reader.u32();
    // The checksum first: a damaged version is damage, not a newer program's work.
    check(what, layer, 0, fixed)?;
    if version != VERSION {
        return Err(unsupported_version(what, version));
    }
    check_features(what, incompatible)?;
    let (_read_only_compatible, _compatible) = (reader.u32(), reader.u32());
    let (found, size, block_size) = (reader.u64(), reader.u64(), reader.u32());
    let _zero = reader.u32();
    let image = reader.take();
    let image_name = text(what, &mut reader, NAME_MAX)?;
    let below = text(what, &mut reader, BELOW_MAX)?;
    if found != layer {
        return Err(Error::corrupt(format!(
            "{what}: belongs to layer {found:016x}, expected {layer:016x}"
        )));
    }
    let header = Header { layer, size, block_size, image, image_name, below };
    Ok((header, decode_epoch(what, layer, &page[SECTOR..2 * SECTOR])?))
}

/// Fails unless this program may write a map with this first page, which was [decoded](decode) before.
pub(crate) fn check_writable(what: &str, page: &[u8; PAGE]) -> Result<()> {
    let unknown = Reader(&page[READ_ONLY_COMPATIBLE_AT..]).u32();
    if unknown == 0 {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "{what} uses features {unknown:#x} that this program can read and must not write; use a newer one"
        ),
    ))
}

fn decode_epoch(what: &str, layer: u64, sector: &[u8]) -> Result<Epoch> {
    let mut reader = Reader(sector);
    if reader.take() != *EPOCH_MAGIC {
        return Err(Error::corrupt(format!("{what}: sector 1 holds no epoch")));
    }
    check(what, layer, 1, sector)?;
    let epoch = reader.u64();
    let (poisoned, _zero) = (reader.u32(), reader.u32());
    let (last_sync, failed) = (reader.u64(), reader.u64());
    Ok(Epoch { epoch, last_sync, poisoned: (poisoned != 0).then_some(failed) })
}

fn push_text(out: &mut Vec<u8>, text: &str, max: usize) {
    let mut length = text.len().min(max);
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    out.extend((length as u16).to_le_bytes());
    out.extend(&text.as_bytes()[..length]);
    out.resize(out.len() + max - length, 0);
}

fn text(what: &str, reader: &mut Reader<'_>, max: usize) -> Result<String> {
    let length = usize::from(reader.u16());
    let field = reader.bytes(max);
    let bytes = field.get(..length).ok_or_else(|| {
        Error::corrupt(format!("{what}: a text of {length} bytes in a field of {max}"))
    })?;
    String::from_utf8(bytes.to_vec())
        .map_err(|_| Error::corrupt(format!("{what}: a text is not UTF-8")))
}

fn seal(out: &mut Vec<u8>, layer: u64, place: u64) {
    out.resize(CRC_AT, 0);
    let crc = checksum(layer, place, out);
    out.extend(crc.to_le_bytes());
}

fn check(what: &str, layer: u64, place: u64, sector: &[u8]) -> Result<()> {
    let (bytes, crc) = sector.split_at(CRC_AT);
    let found = Reader(crc).u32();
    let expected = checksum(layer, place, bytes);
    if found == expected {
        return Ok(());
    }
    Err(Error::corrupt(format!(
        "{what}: sector {place} of the header has checksum {found:08x}, its bytes make {expected:08x}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> (Header, Epoch) {
        let header = Header {
            layer: 0x0123_4567_89ab_cdef,
            size: 10 << 30,
            block_size: 4096,
            image: *b"00000000000000aa",
            image_name: "golden".into(),
            below: "nothing".into(),
        };
        (header, Epoch { epoch: 7, last_sync: 1_700_000_000, poisoned: None })
    }

    fn page(header: &Header, epoch: &Epoch) -> [u8; PAGE] {
        encode(header, epoch).try_into().unwrap()
    }

    #[test]
    fn fields_lie_where_the_picture_says() {
        let (header, epoch) = example();
        let page = page(&header, &epoch);
        assert_eq!(page[..8], *b"VELLUMAP");
        assert_eq!(page[8..24], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(page[24..32], [0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01]);
        assert_eq!(page[32..44], [0, 0, 0, 0x80, 2, 0, 0, 0, 0, 0x10, 0, 0]);
        assert_eq!(page[48..64], *b"00000000000000aa");
        assert_eq!(page[64..72], *b"\x06\x00golden");
        assert_eq!(page[194..203], *b"\x07\x00nothing");
        assert_eq!(page[512..528], *b"VELLUMEP\x07\0\0\0\0\0\0\0");
        assert_eq!(page[1024..], [0; PAGE - 1024]);
    }

    #[test]
    fn what_was_written_is_read_back_and_long_texts_are_cut_at_a_character() {
        let (mut header, mut epoch) = example();
        epoch.poisoned = Some(1_700_000_005);
        assert_eq!(
            decode("map", header.layer, &page(&header, &epoch)).unwrap(),
            (header.clone(), epoch)
        );
        header.below = "\u{e9}".repeat(400);
        let (read, _) = decode("map", header.layer, &page(&header, &epoch)).unwrap();
        assert_eq!(read.below, "\u{e9}".repeat(150));
    }

    #[test]
    fn features_decide_whether_a_map_is_read_written_or_left_alone() {
        let (header, epoch) = example();
        let with_feature = |at: usize| {
            let mut bytes = encode(&header, &epoch);
            bytes[at] = 4;
            let mut sector = bytes[..CRC_AT].to_vec();
            seal(&mut sector, header.layer, 0);
            bytes[..SECTOR].copy_from_slice(&sector);
            <[u8; PAGE]>::try_from(bytes).unwrap()
        };
        for (at, read, written) in [(12, false, false), (16, true, false), (20, true, true)] {
            let page = with_feature(at);
            assert_eq!(decode("map", header.layer, &page).is_ok(), read, "{at}");
            assert_eq!(read && check_writable("map", &page).is_ok(), written, "{at}");
        }
    }

    #[test]
    fn every_flipped_bit_of_the_header_is_found() {
        let (header, epoch) = example();
        let good = page(&header, &epoch);
        for bit in 0..2 * SECTOR * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode("map", header.layer, &bad).is_err(), "bit {bit}");
        }
        assert!(decode("map", header.layer + 1, &good).is_err(), "another layer's map");
    }
}
