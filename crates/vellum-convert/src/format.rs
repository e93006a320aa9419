//! [`Format`]: raw or qcow2, by name or by the first bytes of a file.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// How a file holds a disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Format {
    /// The bytes of the disk, one after the other.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

/// Magic numbers of files that nobody means when saying "raw", with what to do about them.
const FOREIGN: [(&[u8], &str, &str); 10] = [
    (b"KDMV", "a VMDK disk image", CONVERT),
    (b"COWD", "a VMDK disk image", CONVERT),
    (b"# Disk DescriptorFile", "the descriptor of a VMDK disk image", CONVERT),
    (VHD, VHD_IMAGE, CONVERT),
    (b"vhdxfile", "a VHDX disk image", CONVERT),
    (b"QED\0", "a QED disk image", CONVERT),
    (b"<<< ", "a VDI disk image", CONVERT),
    (b"\x1f\x8b\x08", "compressed with gzip", UNPACK),
    (b"\xfd7zXZ\0", "compressed with xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK),
];
/// A VHD that grows begins with a copy of its footer, and one of fixed size has the disk there.
const VHD: &[u8] = b"conectix";
const VHD_IMAGE: &str = "a VHD disk image";
const CONVERT: &str = "convert it with `qemu-img convert -O qcow2 OLD NEW`; if it truly is a raw disk, name the format raw";
const UNPACK: &str = "unpack it first; if it truly is a raw disk, name the format raw";

impl Format {
    /// How many of a file's first bytes [`detect`](Self::detect) looks at.
    pub const HEAD_LENGTH: usize = 32;

    /// Tells the format by a file's first bytes (all of them, if it has fewer than [`HEAD_LENGTH`](Self::HEAD_LENGTH)).
    ///
    /// Raw has no mark of its own, so it is what nothing else is.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for formats that must not be mistaken for raw: other disk images and
    /// compressed files.
    pub fn detect(head: &[u8]) -> Result<Format> {
        if head.starts_with(&crate::qcow2::MAGIC) {
            return Ok(Format::Qcow2);
        }
        match FOREIGN.iter().find(|(magic, _, _)| head.starts_with(magic)) {
            None => Ok(Format::Raw),
            Some((_, what, hint)) => Err(foreign(what, hint)),
        }
    }

    /// How many of a file's last bytes [`check_end`](Self::check_end) looks at.
    pub const END_LENGTH: usize = 512;

    /// Looks at the last bytes of a file that is raw by its first ones: one format has its mark there.
    ///
    /// # Errors
    /// As [`detect`](Self::detect).
    pub fn check_end(end: &[u8]) -> Result<()> {
        if end.len() == Self::END_LENGTH && end.starts_with(VHD) {
            return Err(foreign(VHD_IMAGE, CONVERT));
        }
        Ok(())
    }
}

fn foreign(what: &str, hint: &str) -> Error {
    Error::unsupported(format!("this is {what}, neither raw nor qcow2")).with_hint(hint)
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        })
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "raw" => Ok(Format::Raw),
            "qcow2" => Ok(Format::Qcow2),
            _ => Err(Error::invalid(format!(
                "'{}' is not a format; write raw or qcow2",
                vellum_core::quoted(text)
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn what_has_no_mark_is_raw() {
        for head in [&b""[..], b"QFI", b"\xeb\x63\x90", &[0; 32]] {
            assert_eq!(Format::detect(head).unwrap(), Format::Raw, "{head:?}");
        }
        assert_eq!(Format::detect(b"QFI\xfb\0\0\0\x03").unwrap(), Format::Qcow2);
    }

    #[test]
    fn what_must_not_be_mistaken_for_raw_is_named() {
        for (head, word) in [
            (&b"KDMV\x01\0\0\0"[..], "VMDK"),
            (b"vhdxfile\0", "VHDX"),
            (b"conectix\0\0\0\x02", "VHD"),
            (b"<<< Oracle VM VirtualBox Disk Image >>>", "VDI"),
            (b"\xfd7zXZ\0\0\x04", "xz"),
        ] {
            let error = Format::detect(head).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains(word) && error.hint().is_some(), "{error:?}");
        }
    }

    #[test]
    fn a_mark_at_the_end_counts_where_the_file_ends_and_nowhere_else() {
        let mut end = [0; Format::END_LENGTH];
        assert!(Format::check_end(&end).is_ok());
        end[..8].copy_from_slice(b"conectix");
        let error = Format::check_end(&end).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("VHD") && error.hint().is_some(), "{error:?}");
        assert!(Format::check_end(&end[..511]).is_ok());
    }

    #[test]
    fn names_read_back() {
        for format in [Format::Raw, Format::Qcow2] {
            assert_eq!(format.to_string().parse::<Format>().unwrap(), format);
        }
        assert_eq!("vmdk".parse::<Format>().unwrap_err().kind(), ErrorKind::Invalid);
    }
}
