//! [`LayerId`]: the number that names a layer on disk, and its text.

use std::fmt;

use vellum_disk::Disk;
use vellum_engine::{Error, Result, RevisionId};

/// Names one layer of a pool for ever: a random number from 1 to 2^63 - 1, never reused, not even after an old copy of
/// the catalog was brought back. On disk and in a [`RevisionId`] it is 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(u64);

impl LayerId {
    /// The id with this number; `None` for 0 and for what needs 64 bits.
    pub fn new(number: u64) -> Option<Self> {
        (number != 0 && number <= i64::MAX as u64).then_some(Self(number))
    }

    /// A random id.
    pub fn random(disk: &impl Disk) -> Self {
        Self(random_number(disk))
    }

    /// The number.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The revision that this layer defines.
    pub fn revision(self) -> RevisionId {
        RevisionId::new(self.to_string())
    }

    /// The layer of a revision of this engine. `NotFound` if the text is none of its ids.
    pub fn of_revision(revision: &RevisionId) -> Result<Self> {
        Self::from_hex(revision.as_str()).ok_or_else(|| {
            Error::new(
                vellum_engine::ErrorKind::NotFound,
                format!("this pool has no revision {revision}"),
            )
        })
    }

    /// Reads what `Display` wrote: exactly 16 lower-case hex digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        number_from_hex(text).and_then(Self::new)
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LayerId({self})")
    }
}

/// A random number from 1 to 2^63 - 1.
///
/// # Panics
/// If the kernel has no random numbers to give, without which no id is safe to use.
pub(crate) fn random_number(disk: &impl Disk) -> u64 {
    loop {
        let mut bytes = [0; 8];
        disk.fill_with_chance(&mut bytes);
        let number = u64::from_le_bytes(bytes) >> 1;
        if number != 0 {
            return number;
        }
    }
}

/// The number that exactly 16 lower-case hex digits stand for.
pub(crate) fn number_from_hex(text: &str) -> Option<u64> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == 16 && text.bytes().all(is_digit))
        .then(|| u64::from_str_radix(text, 16).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_what_it_prints_and_nothing_else() {
        let id = LayerId::random(&vellum_sim::SimDisk::new(1));
        assert_eq!(LayerId::from_hex(&id.to_string()), Some(id));
        assert_eq!(LayerId::of_revision(&id.revision()).unwrap(), id);
        let too_large = "8000000000000000";
        for bad in ["", "0000000000000000", too_large, "+000000000000001", "00000000000000AB", "1"]
        {
            assert_eq!(LayerId::from_hex(bad), None, "{bad}");
        }
    }
}
