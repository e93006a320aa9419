//! [`ObjectMap`]: which data objects exist, two bits each.
//!
//! ```text
//! u32 14 | 1 1 u32 8, objects u64 | 4 objects in a byte, the first in the top two bits | u32 length, then, unless it is 0,
//!                                                          crc u32 of the 14 bytes, blocks u32, crc u32 of each 4,096 bytes
//! ```
//!
//! The checksum is CRC-32C that begins with 0 and is not inverted at the end.

use crate::wire::{Decode, Encode, Malformed, Reader, Result, structure};

/// Data in one checksum, in bytes.
const BLOCK: usize = 4096;
/// Objects in a byte.
const IN_BYTE: u64 = 4;
/// The most objects that a map can have; librbd makes no larger one.
pub const OBJECTS_MAX: u64 = 256_000_000;
/// The most objects that one request can change.
pub const UPDATE_MAX: u64 = 262_144;

/// Whether a data object exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Existence {
    /// It does not.
    #[default]
    Absent = 0,
    /// It may, and may have changed since the last snapshot.
    Present = 1,
    /// It is about to be removed.
    Pending = 2,
    /// It does, and has not changed since the last snapshot.
    Clean = 3,
}

impl Existence {
    /// Each once, in the place of its number.
    pub const ALL: [Self; 4] = [Self::Absent, Self::Present, Self::Pending, Self::Clean];

    fn of_bits(bits: u8) -> Self {
        Self::ALL[usize::from(bits & 3)]
    }
}

/// Which data objects a head or a snapshot has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectMap {
    objects: u64,
    bits: Vec<u8>,
}

impl ObjectMap {
    /// A map of so many objects, at most [`OBJECTS_MAX`], of which none exists.
    pub fn new(objects: u64) -> Self {
        debug_assert!(objects <= OBJECTS_MAX);
        Self { objects, bits: vec![0; objects.div_ceil(IN_BYTE) as usize] }
    }

    /// How many objects it tells of.
    pub fn objects(&self) -> u64 {
        self.objects
    }

    /// Of one object; of one beyond the last, that it does not exist.
    pub fn get(&self, object: u64) -> Existence {
        if object >= self.objects {
            return Existence::Absent;
        }
        Existence::of_bits(self.bits[(object / IN_BYTE) as usize] >> shift(object))
    }

    /// Notes one object, which must be one that it tells of.
    pub fn set(&mut self, object: u64, to: Existence) {
        assert!(object < self.objects, "object {object} of {}", self.objects);
        let byte = &mut self.bits[(object / IN_BYTE) as usize];
        *byte = *byte & !(3 << shift(object)) | (to as u8) << shift(object);
    }

    /// Has it tell of so many objects. New ones do not exist.
    pub fn resize(&mut self, objects: u64) {
        debug_assert!(objects <= OBJECTS_MAX);
        for object in objects..self.objects.min(objects.next_multiple_of(IN_BYTE)) {
            self.set(object, Existence::Absent);
        }
        self.bits.resize(objects.div_ceil(IN_BYTE) as usize, 0);
        self.objects = objects;
    }

    /// What becomes of it when a snapshot takes what it says: whatever exists has not changed since.
    pub fn begin_after_snapshot(&mut self) {
        for object in 0..self.objects {
            if self.get(object) == Existence::Present {
                self.set(object, Existence::Clean);
            }
        }
    }
}

fn shift(object: u64) -> u32 {
    2 * (3 - (object % IN_BYTE) as u32)
}

/// CRC-32C that begins with 0 and is not inverted at the end.
fn checksum(bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(u32::MAX, bytes)
}

impl Encode for ObjectMap {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut header = Vec::new();
        structure(&mut header, 1, 1, |out| self.objects.encode(out));
        (header.len() as u32).encode(out);
        out.extend(&header);
        out.extend(&self.bits);
        let sums = self.bits.chunks(BLOCK).map(checksum).collect::<Vec<_>>();
        ((8 + 4 * sums.len()) as u32).encode(out);
        checksum(&header).encode(out);
        sums.encode(out);
    }
}

impl Decode for ObjectMap {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        let length: u32 = input.value()?;
        let header = input.take(length as usize)?;
        let mut within = Reader::new(header);
        let (_, mut fields) = within.structure("object map", 1)?;
        // Nothing guards the length of the header: a longer one would take the footer for bits.
        if within.left() > 0 {
            return Err(Malformed::Long(within.left()));
        }
        let objects: u64 = fields.value()?;
        if objects > OBJECTS_MAX {
            return Err(Malformed::Unknown { what: "number of objects", value: objects });
        }
        let bits = input.take(objects.div_ceil(IN_BYTE) as usize)?;
        let length: u32 = input.value()?;
        let mut footer = Reader::new(input.take(length as usize)?);
        if length > 0 {
            check(&mut footer, header)?;
            let blocks: u32 = footer.value()?;
            if blocks as usize != bits.len().div_ceil(BLOCK) {
                return Err(Malformed::Unknown {
                    what: "number of checksums",
                    value: blocks.into(),
                });
            }
            bits.chunks(BLOCK).try_for_each(|block| check(&mut footer, block))?;
        }
        Ok(Self { objects, bits: bits.to_vec() })
    }
}

/// Takes a checksum, which must be that of these bytes.
fn check(footer: &mut Reader<'_>, bytes: &[u8]) -> Result<()> {
    let (found, expected) = (footer.value()?, checksum(bytes));
    if found == expected { Ok(()) } else { Err(Malformed::Checksum { found, expected }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::tests::{bytes, is_written_as};

    fn map(objects: &[Existence]) -> ObjectMap {
        let mut map = ObjectMap::new(objects.len() as u64);
        (0..).zip(objects).for_each(|(object, existence)| map.set(object, *existence));
        map
    }

    // The bytes are those of a Ceph 16.2.15: six objects, of which the first and the third exist.

    const HEAD: &str =
        "0e000000 0101 08000000 0600000000000000 | cc00 | 0c000000 71c2d259 01000000 999e4ad7";

    #[test]
    fn a_map_is_written_as_ceph_writes_it() {
        use Existence::{Absent, Clean, Present};
        let mut head = map(&[Present, Absent, Present, Absent, Absent, Absent]);
        is_written_as(
            &head,
            "0e000000 0101 08000000 0600000000000000 | 4400 | 0c000000 71c2d259 01000000 d8a79db1",
        );
        head.begin_after_snapshot();
        assert_eq!(head, map(&[Clean, Absent, Clean, Absent, Absent, Absent]));
        is_written_as(&head, HEAD);
    }

    #[test]
    fn every_flipped_bit_is_found_but_those_of_lengths_that_fit() {
        let good = bytes(HEAD);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(
                ObjectMap::from_bytes(&bad).ok(),
                ObjectMap::from_bytes(&good).ok(),
                "bit {bit}"
            );
        }
        let without = bytes("0e000000 0101 08000000 0600000000000000 | cc00 | 00000000");
        assert_eq!(ObjectMap::from_bytes(&without), ObjectMap::from_bytes(&good));
    }

    #[test]
    fn a_header_longer_than_what_it_holds_is_refused() {
        // Its last bits, and then a footer of no length, are zeros of what was the footer.
        let mut bad = map(&[Existence::Present; 16]).to_bytes();
        bad.truncate(4 + 14 + 4);
        bad.resize(4 + 14 + 12 + 4 + 4, 0);
        bad[0] = 14 + 12;
        assert_eq!(ObjectMap::from_bytes(&bad), Err(Malformed::Long(12)));
    }

    #[test]
    fn a_number_of_objects_that_lies_costs_nothing() {
        for objects in ["0000000000000010", "ffffffffffffffff", "00e1f50500000000"] {
            let lie = bytes(&format!("0e000000 0101 08000000 {objects} | cc00 | 00000000"));
            assert!(ObjectMap::from_bytes(&lie).is_err(), "{objects}");
        }
    }

    proptest! {
        #[test]
        fn a_map_agrees_with_a_list(
            changes in proptest::collection::vec((0..20_000_u64, 0..4_u8), 0..50),
            sizes in proptest::collection::vec(0..20_000_u64, 1..4),
        ) {
            let mut list = vec![Existence::Absent; sizes[0] as usize];
            let mut map = ObjectMap::new(sizes[0]);
            for size in &sizes {
                let objects = list.len() as u64;
                for (object, bits) in changes.iter().filter(|(object, _)| *object < objects) {
                    list[*object as usize] = Existence::of_bits(*bits);
                    map.set(*object, Existence::of_bits(*bits));
                }
                list.resize(*size as usize, Existence::Absent);
                map.resize(*size);
                let read = ObjectMap::from_bytes(&map.to_bytes()).unwrap();
                prop_assert_eq!(&read, &map);
                prop_assert_eq!(read.objects(), *size);
                prop_assert!((0..).zip(&list).all(|(object, existence)| read.get(object) == *existence));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = ObjectMap::from_bytes(&bytes);
        }
    }
}
