//! [`Header`]: the first cluster of a qcow2 file, read with all checks that need nothing else, and written. Pure.

use vellum_core::IMAGE_SIZE_MAX;

use super::MAGIC;
use super::compressed::Compression;
use super::entry::Layout;
use crate::{Error, Result};

/// Bytes of a header that a reader must have before it knows how long the header is.
pub(crate) const FIXED_LENGTH: usize = 112;
/// Clusters are 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// The largest L1 table QEMU opens.
pub(crate) const L1_BYTES_MAX: u64 = 32 << 20;
const BACKING_NAME_MAX: usize = 1023;

const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_EXTERNAL_DATA: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const INCOMPATIBLE_KNOWN: u64 = (INCOMPATIBLE_EXTENDED_L2 << 1) - 1;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

const CONVERT: &str = "convert it with `qemu-img convert -O qcow2 OLD NEW`";
const REPAIR: &str =
    "make sure that nothing uses it, then repair it with `qemu-img check -r all FILE`";

/// What a file says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    /// Bytes of the disk.
    pub size: u64,
    pub layout: Layout,
    /// Where the L1 table of the active state lies.
    pub l1_offset: u64,
    pub compression: Compression,
    pub backing: Option<Backing>,
    /// The name of the file that holds the data, in files that hold none themselves.
    pub data_file: Option<Vec<u8>>,
}

/// The file that holds what is not allocated here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Backing {
    pub name: Vec<u8>,
    /// As the file names it, such as `raw` or `qcow2`.
    pub format: Option<Vec<u8>>,
}

/// How long the first cluster is, by the first [`FIXED_LENGTH`] bytes of a file (fewer, if it has fewer).
pub(crate) fn cluster_size(head: &[u8]) -> Result<u64> {
    let bits = Fields(head).u32(20)?;
    if !CLUSTER_BITS.contains(&bits) {
        return Err(Error::corrupt(format!("its clusters are 2^{bits} bytes; 2^9 to 2^21 can be")));
    }
    Ok(1 << bits)
}

impl Header {
    /// Reads the header from the first cluster of a file, or all of the file if it is shorter.
    pub(crate) fn decode(first_cluster: &[u8]) -> Result<Self> {
        let fields = Fields(first_cluster);
        if !first_cluster.starts_with(&MAGIC) {
            return Err(Error::corrupt("it does not begin as a qcow2 file does"));
        }
        let version = match fields.u32(4)? {
            version @ (2 | 3) => version,
            other => {
                return Err(Error::unsupported(format!(
                    "it is version {other} of qcow; 2 and 3 are read"
                ))
                .with_hint(CONVERT));
            }
        };
        refuse_encrypted(fields.u32(32)?)?;
        let incompatible = if version >= 3 { fields.u64(72)? } else { 0 };
        check_incompatible(incompatible)?;
        let header_length = if version >= 3 { fields.u32(100)? as usize } else { 72 };
        let layout = Layout {
            cluster_bits: cluster_size(first_cluster)?.trailing_zeros(),
            extended: incompatible & INCOMPATIBLE_EXTENDED_L2 != 0,
            version,
            external: incompatible & INCOMPATIBLE_EXTERNAL_DATA != 0,
        };
        if layout.extended && layout.cluster_bits < 14 {
            return Err(Error::corrupt(
                "it has extended L2 entries, but clusters smaller than 16 KiB",
            ));
        }
        let extensions = Extensions::decode(fields, header_length)?;
        Ok(Self {
            size: disk_size(fields, &layout)?,
            layout,
            l1_offset: l1_offset(fields, &layout)?,
            compression: compression(fields, incompatible, header_length)?,
            backing: backing(fields, extensions.backing_format)?,
            data_file: data_file(&layout, extensions.data_file)?,
        })
    }
}

fn refuse_encrypted(method: u32) -> Result<()> {
    let name = match method {
        0 => return Ok(()),
        1 => "AES",
        2 => "LUKS",
        _ => "an unknown method",
    };
    Err(Error::unsupported(format!("it is encrypted ({name})")).with_hint(
        "decrypt it with `qemu-img convert`, giving the key by --object secret and the file by --image-opts",
    ))
}

fn check_incompatible(features: u64) -> Result<()> {
    if features & INCOMPATIBLE_CORRUPT != 0 {
        return Err(Error::corrupt("it is marked corrupt").with_hint(REPAIR));
    }
    if features & INCOMPATIBLE_DIRTY != 0 {
        let context = "it is marked dirty: it was not closed properly, or is in use";
        return Err(Error::unsupported(context).with_hint(REPAIR));
    }
    match features & !INCOMPATIBLE_KNOWN {
        0 => Ok(()),
        unknown => Err(Error::unsupported(format!("it uses features unknown here ({unknown:#x})"))
            .with_hint(CONVERT)),
    }
}

/// The size, checked against what the L1 table can reach.
fn disk_size(fields: Fields<'_>, layout: &Layout) -> Result<u64> {
    let size = fields.u64(24)?;
    if size > IMAGE_SIZE_MAX {
        return Err(Error::unsupported(format!("its disk has {size} bytes, more than 1 PiB")));
    }
    let (needed, present) = (size.div_ceil(layout.table_span()), u64::from(fields.u32(36)?));
    if present < needed || present * 8 > L1_BYTES_MAX {
        return Err(Error::corrupt(format!(
            "its L1 table has {present} entries, but a disk of {size} bytes needs {needed}, and at most {} can be",
            L1_BYTES_MAX / 8
        )));
    }
    Ok(size)
}

fn l1_offset(fields: Fields<'_>, layout: &Layout) -> Result<u64> {
    let offset = fields.u64(40)?;
    if offset.is_multiple_of(layout.cluster_size()) && offset <= i64::MAX as u64 {
        return Ok(offset);
    }
    Err(Error::corrupt(format!("its L1 table lies at {offset:#x}, where no table can lie")))
}

fn compression(fields: Fields<'_>, incompatible: u64, header_length: usize) -> Result<Compression> {
    // The field came later than version 3, so a shorter header means zlib.
    let method = if header_length > 104 { fields.0.get(104).copied().unwrap_or(0) } else { 0 };
    match (method, incompatible & INCOMPATIBLE_COMPRESSION != 0) {
        (0, false) => Ok(Compression::Zlib),
        (1, true) => Ok(Compression::Zstd),
        (0 | 1, _) => {
            Err(Error::corrupt("its compression method and its feature bit contradict each other"))
        }
        (other, _) => {
            Err(Error::unsupported(format!("it is compressed by method {other}, unknown here"))
                .with_hint(CONVERT))
        }
    }
}

fn backing(fields: Fields<'_>, format: Option<&[u8]>) -> Result<Option<Backing>> {
    let (offset, length) = (fields.u64(8)?, fields.u32(16)? as usize);
    if offset == 0 {
        return Ok(None);
    }
    let name = usize::try_from(offset).ok().and_then(|offset| fields.bytes(offset, length));
    match name.filter(|name| !name.is_empty() && name.len() <= BACKING_NAME_MAX) {
        Some(name) => Ok(Some(Backing { name: name.to_vec(), format: format.map(<[u8]>::to_vec) })),
        None => Err(Error::corrupt(format!(
            "the name of its backing file, {length} bytes at {offset:#x}, does not lie in its first cluster"
        ))),
    }
}

fn data_file(layout: &Layout, name: Option<&[u8]>) -> Result<Option<Vec<u8>>> {
    match (layout.external, name) {
        (false, _) => Ok(None),
        (true, Some(name)) => Ok(Some(name.to_vec())),
        (true, None) => {
            Err(Error::unsupported("its data lies in another file, which it does not name")
                .with_hint(
                    "convert it with `qemu-img convert`, naming the data file by --image-opts",
                ))
        }
    }
}

/// The header extensions that matter here.
#[derive(Default)]
struct Extensions<'a> {
    backing_format: Option<&'a [u8]>,
    data_file: Option<&'a [u8]>,
}

impl<'a> Extensions<'a> {
    /// Extensions follow the header, each 8 bytes of type and length and then its content, padded to 8 bytes. They end with a
    /// mark, or where the backing file's name or the cluster begins to be something else.
    fn decode(fields: Fields<'a>, header_length: usize) -> Result<Self> {
        let broken = || Error::corrupt("its header extensions do not fit into its first cluster");
        let backing_name = fields.u64(8)?;
        let end = match usize::try_from(backing_name) {
            Ok(name) if name != 0 => name.min(fields.0.len()),
            _ => fields.0.len(),
        };
        if header_length < 72 || header_length > fields.0.len() {
            return Err(Error::corrupt(format!(
                "its header claims to be {header_length} bytes long"
            )));
        }
        let (mut at, mut found) = (header_length, Self::default());
        while at + 8 <= end {
            let (kind, length) = (fields.u32(at)?, fields.u32(at + 4)? as usize);
            if kind == EXTENSION_END {
                break;
            }
            let content = fields
                .bytes(at + 8, length)
                .filter(|_| at + 8 + length <= end)
                .ok_or_else(broken)?;
            match kind {
                EXTENSION_BACKING_FORMAT => found.backing_format = Some(content),
                EXTENSION_DATA_FILE => found.data_file = Some(content),
                _ => {}
            }
            at += 8 + length.next_multiple_of(8);
        }
        Ok(found)
    }
}

/// Big-endian fields at fixed places.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(self, at: usize, length: usize) -> Option<&'a [u8]> {
        self.0.get(at..at.checked_add(length)?)
    }

    fn array<const N: usize>(self, at: usize) -> Result<[u8; N]> {
        self.bytes(at, N).and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
            Error::corrupt(format!("the file ends in its header, after {} bytes", self.0.len()))
        })
    }

    fn u32(self, at: usize) -> Result<u32> {
        self.array(at).map(u32::from_be_bytes)
    }

    fn u64(self, at: usize) -> Result<u64> {
        self.array(at).map(u64::from_be_bytes)
    }
}

/// What a file that is written says of itself: version 3, no backing file, 16-bit reference counts, nothing incompatible.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewHeader {
    pub size: u64,
    pub cluster_bits: u32,
    pub l1_offset: u64,
    pub l1_entries: u32,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
}

impl NewHeader {
    /// The header and, after it, the mark that ends the (empty) list of extensions.
    pub(crate) fn encode(&self) -> [u8; FIXED_LENGTH + 8] {
        let mut bytes = [0; FIXED_LENGTH + 8];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(4, &3u32.to_be_bytes());
        put(20, &self.cluster_bits.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &self.l1_entries.to_be_bytes());
        put(40, &self.l1_offset.to_be_bytes());
        put(48, &self.refcount_table_offset.to_be_bytes());
        put(56, &self.refcount_table_clusters.to_be_bytes());
        // The order of the width of a reference count: 2^4 bits.
        put(96, &4u32.to_be_bytes());
        put(100, &(FIXED_LENGTH as u32).to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    const SIZE: u64 = 10 << 30;

    /// A header as written, in a cluster, with some bytes changed.
    fn cluster(changes: &[(usize, &[u8])]) -> Vec<u8> {
        let header = NewHeader {
            size: SIZE,
            cluster_bits: 16,
            l1_offset: 0x30000,
            l1_entries: 20,
            refcount_table_offset: 0x10000,
            refcount_table_clusters: 1,
        };
        let mut bytes = header.encode().to_vec();
        bytes.resize(1 << 16, 0);
        for (at, field) in changes {
            bytes[*at..at + field.len()].copy_from_slice(field);
        }
        bytes
    }

    #[test]
    fn what_is_written_reads_back() {
        let header = Header::decode(&cluster(&[])).unwrap();
        assert_eq!(
            (header.size, header.l1_offset, header.layout.cluster_bits),
            (SIZE, 0x30000, 16)
        );
        assert_eq!(header.layout.version, 3);
        assert!(!header.layout.extended && !header.layout.external);
        assert_eq!(
            (header.backing, header.data_file, header.compression),
            (None, None, Compression::Zlib)
        );
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_its_reason() {
        use ErrorKind::{Corrupt, Unsupported};
        let check = |kind, word: &str, changes: &[(usize, &[u8])]| {
            let error = Header::decode(&cluster(changes)).unwrap_err();
            assert_eq!(error.kind(), kind, "{error:?}");
            assert!(error.to_string().contains(word), "{error} does not say {word}");
        };
        check(Corrupt, "does not begin", &[(0, b"X")]);
        check(Unsupported, "version 4", &[(7, &[4])]);
        check(Corrupt, "2^8 bytes", &[(23, &[8])]);
        check(Corrupt, "2^22 bytes", &[(23, &[22])]);
        check(Unsupported, "1 PiB", &[(24, &[0x10])]);
        check(Unsupported, "AES", &[(35, &[1])]);
        check(Unsupported, "LUKS", &[(35, &[2])]);
        check(Corrupt, "needs 20", &[(39, &[19])]);
        check(Corrupt, "at most 4194304", &[(36, &[1])]);
        check(Corrupt, "no table can lie", &[(47, &[1])]);
        check(Corrupt, "no table can lie", &[(40, &[0x80])]);
        check(Unsupported, "dirty", &[(79, &[1])]);
        check(Corrupt, "corrupt", &[(79, &[3])]);
        check(Unsupported, "does not name", &[(79, &[4])]);
        check(Corrupt, "contradict", &[(79, &[8])]);
        check(Corrupt, "contradict", &[(104, &[1])]);
        check(Unsupported, "method 2", &[(79, &[8]), (104, &[2])]);
        check(Unsupported, "0x20", &[(79, &[0x20])]);
        check(Corrupt, "smaller than 16 KiB", &[(79, &[0x10]), (23, &[13])]);
        check(Corrupt, "claims to be", &[(100, &[1])]);
        check(Corrupt, "extensions", &[(112, &[1, 1, 1, 1, 0xff, 0xff, 0xff, 0xff])]);
        check(Corrupt, "backing file", &[(8, &[1])]);
        check(Corrupt, "backing file", &[(14, &[1]), (18, &[0xff])]);
    }

    #[test]
    fn names_of_other_files_are_found() {
        let mut extensions = EXTENSION_BACKING_FORMAT.to_be_bytes().to_vec();
        extensions.extend(3u32.to_be_bytes());
        extensions.extend(b"raw\0\0\0\0\0");
        extensions.extend(EXTENSION_DATA_FILE.to_be_bytes());
        extensions.extend(6u32.to_be_bytes());
        extensions.extend(b"d.data\0\0");
        let changes: [(usize, &[u8]); 5] =
            [(14, &[4]), (19, &[8]), (79, &[4]), (112, &extensions), (0x400, b"base.raw")];
        let header = Header::decode(&cluster(&changes)).unwrap();
        let backing = Backing { name: b"base.raw".to_vec(), format: Some(b"raw".to_vec()) };
        assert_eq!(header.backing, Some(backing));
        assert_eq!(header.data_file.as_deref(), Some(&b"d.data"[..]));
    }

    #[test]
    fn a_file_that_ends_in_its_header_is_corrupt() {
        let whole = cluster(&[]);
        for length in 0..104 {
            let error = Header::decode(&whole[..length]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{length}: {error}");
        }
    }
}
