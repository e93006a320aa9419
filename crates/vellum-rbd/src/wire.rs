//! How Ceph writes values: little endian, strings and lists behind their length, structures behind their version.
//!
//! A structure with a version is `u8` version, `u8` the oldest version whose readers understand it, `u32` length, and its fields; a
//! reader skips what comes behind those it knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Bytes that are not what they should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    /// It ends in the middle.
    #[error("it ends where {needed} more bytes are expected and {left} are left")]
    Short {
        /// Bytes that the next value takes.
        needed: usize,
        /// Bytes that are there.
        left: usize,
    },
    /// Something is left behind the last value.
    #[error("{0} bytes behind its end")]
    Long(usize),
    /// A structure that only newer programs understand.
    #[error("a {what} of version {version} needs a newer program")]
    TooNew {
        /// The structure.
        what: &'static str,
        /// The oldest version whose readers understand it.
        version: u8,
    },
    /// A structure of a version that lacks what is needed.
    #[error("a {what} of version {version} is too old")]
    TooOld {
        /// The structure.
        what: &'static str,
        /// Its version.
        version: u8,
    },
    /// A value that does not exist.
    #[error("{value} is no {what}")]
    Unknown {
        /// What it should be.
        what: &'static str,
        /// What is there.
        value: u64,
    },
    /// A checksum that does not agree with the bytes.
    #[error("checksum {found:08x}, its bytes make {expected:08x}")]
    Checksum {
        /// What is there.
        found: u32,
        /// What the bytes make.
        expected: u32,
    },
}

/// The result of reading.
pub type Result<T> = std::result::Result<T, Malformed>;

/// What can be written.
pub trait Encode {
    /// Appends itself.
    fn encode(&self, out: &mut Vec<u8>);

    /// Itself alone.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }
}

/// What can be read.
pub trait Decode: Sized {
    /// Takes itself from the front.
    ///
    /// # Errors
    /// If it is not what is there.
    fn decode(input: &mut Reader<'_>) -> Result<Self>;

    /// Reads itself from bytes that hold nothing else.
    ///
    /// # Errors
    /// If it is not what is there, or something is left.
    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut input = Reader::new(bytes);
        let value = Self::decode(&mut input)?;
        match input.left() {
            0 => Ok(value),
            left => Err(Malformed::Long(left)),
        }
    }
}

/// Bytes that are read from the front.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// All of these.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// How many are left.
    pub fn left(&self) -> usize {
        self.0.len()
    }

    /// The next so many.
    ///
    /// # Errors
    /// If fewer are left.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let short = Malformed::Short { needed: length, left: self.left() };
        let (head, rest) = self.0.split_at_checked(length).ok_or(short)?;
        self.0 = rest;
        Ok(head)
    }

    /// All that are left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// The next value.
    ///
    /// # Errors
    /// If it is not what is there.
    pub fn value<T: Decode>(&mut self) -> Result<T> {
        T::decode(self)
    }

    /// The version and the fields of the next structure. `known` is the newest version that is understood.
    ///
    /// # Errors
    /// If its oldest reader must be newer than that.
    pub fn structure(&mut self, what: &'static str, known: u8) -> Result<(u8, Self)> {
        let (version, oldest): (u8, u8) = (self.value()?, self.value()?);
        let length: u32 = self.value()?;
        let fields = Self(self.take(length as usize)?);
        if oldest > known {
            return Err(Malformed::TooNew { what, version: oldest });
        }
        Ok((version, fields))
    }
}

/// Appends a structure.
pub fn structure(out: &mut Vec<u8>, version: u8, oldest: u8, fields: impl FnOnce(&mut Vec<u8>)) {
    out.extend([version, oldest]);
    let at = out.len();
    out.extend([0; 4]);
    fields(out);
    let length = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Encode for $number {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
        }

        impl Decode for $number {
            fn decode(input: &mut Reader<'_>) -> Result<Self> {
                let bytes = input.take(size_of::<Self>())?;
                Ok(Self::from_le_bytes(bytes.try_into().expect("as many as were taken")))
            }
        }
    )*};
}

numbers!(u8, u16, u32, u64, i32, i64);

impl Encode for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Decode for bool {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        Ok(input.value::<u8>()? != 0)
    }
}

/// A string or a blob. Ceph does not say in which encoding, and lets a user put any bytes into a name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Text(pub Vec<u8>);

impl Text {
    /// As a string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&String::from_utf8_lossy(&self.0), f)
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(&self.0), f)
    }
}

impl Encode for Text {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.0.len() as u32).encode(out);
        out.extend(&self.0);
    }
}

impl Decode for Text {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        let length: u32 = input.value()?;
        Ok(Self(input.take(length as usize)?.to_vec()))
    }
}

impl<T: Encode> Encode for Option<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.is_some().encode(out);
        if let Some(value) = self {
            value.encode(out);
        }
    }
}

impl<T: Decode> Decode for Option<T> {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        Ok(if input.value()? { Some(input.value()?) } else { None })
    }
}

macro_rules! tuples {
    ($($(($letter:ident, $place:tt)),+;)*) => {$(
        impl<$($letter: Encode),+> Encode for ($($letter,)+) {
            fn encode(&self, out: &mut Vec<u8>) {
                $(self.$place.encode(out);)+
            }
        }

        impl<$($letter: Decode),+> Decode for ($($letter,)+) {
            fn decode(input: &mut Reader<'_>) -> Result<Self> {
                Ok(($(input.value::<$letter>()?,)+))
            }
        }
    )*};
}

tuples! {
    (A, 0), (B, 1);
    (A, 0), (B, 1), (C, 2);
    (A, 0), (B, 1), (C, 2), (D, 3);
    (A, 0), (B, 1), (C, 2), (D, 3), (E, 4);
}

impl<T: Encode> Encode for Vec<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.len() as u32).encode(out);
        self.iter().for_each(|value| value.encode(out));
    }
}

impl<T: Encode> Encode for BTreeSet<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.len() as u32).encode(out);
        self.iter().for_each(|value| value.encode(out));
    }
}

impl<K: Encode, V: Encode> Encode for BTreeMap<K, V> {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.len() as u32).encode(out);
        for (key, value) in self {
            key.encode(out);
            value.encode(out);
        }
    }
}

/// As many as a count before them says. They are collected as they come, so that a count which lies costs nothing.
fn many<T: Decode, C: Default + Extend<T>>(input: &mut Reader<'_>) -> Result<C> {
    let count: u32 = input.value()?;
    let mut values = C::default();
    for _ in 0..count {
        values.extend([input.value()?]);
    }
    Ok(values)
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        many(input)
    }
}

impl<T: Decode + Ord> Decode for BTreeSet<T> {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        many(input)
    }
}

impl<K: Decode + Ord, V: Decode> Decode for BTreeMap<K, V> {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        many(input)
    }
}

/// A moment, since 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time {
    /// Whole seconds.
    pub seconds: u32,
    /// And so many nanoseconds.
    pub nanoseconds: u32,
}

impl Encode for Time {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.seconds, self.nanoseconds).encode(out);
    }
}

impl Decode for Time {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        let (seconds, nanoseconds) = input.value()?;
        Ok(Self { seconds, nanoseconds })
    }
}

/// A structure whose fields are written one after the other, and read by whoever knows its version.
macro_rules! fields {
    ($(#[$meta:meta])* pub struct $name:ident, version $version:literal, oldest $oldest:literal {
        $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        impl $crate::wire::Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                $crate::wire::structure(out, $version, $oldest, |out| {
                    $($crate::wire::Encode::encode(&self.$field, out);)*
                });
            }
        }

        impl $crate::wire::Decode for $name {
            fn decode(input: &mut $crate::wire::Reader<'_>) -> $crate::wire::Result<Self> {
                let (version, mut fields) = input.structure(stringify!($name), $version)?;
                if version < $version {
                    return Err($crate::wire::Malformed::TooOld { what: stringify!($name), version });
                }
                Ok(Self { $($field: fields.value()?,)* })
            }
        }
    };
}
pub(crate) use fields;

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes from hex digits, with strings in quotes; `|` and blanks are for people.
    pub(crate) fn bytes(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, part) in text.split('"').enumerate() {
            if index % 2 == 1 {
                out.extend(part.as_bytes());
                continue;
            }
            let digits: String = part.chars().filter(char::is_ascii_hexdigit).collect();
            let pairs = digits.as_bytes().chunks(2);
            out.extend(
                pairs.map(|pair| {
                    u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()
                }),
            );
        }
        out
    }

    /// Asserts that a value is written as these bytes, and read from them.
    pub(crate) fn is_written_as<T: Encode + Decode + PartialEq + fmt::Debug>(
        value: &T,
        text: &str,
    ) {
        assert_eq!(value.to_bytes(), bytes(text), "{value:?}");
        assert_eq!(T::from_bytes(&bytes(text)).as_ref(), Ok(value));
    }

    #[test]
    fn values_are_written_as_ceph_writes_them() {
        is_written_as(&0x0102_0304_u32, "04030201");
        is_written_as(&-2_i64, "feffffffffffffff");
        is_written_as(&Text::from("ab"), "02000000 \"ab\"");
        is_written_as(&Some(7_u8), "01 07");
        is_written_as(&None::<u64>, "00");
        is_written_as(&vec![1_u16, 2], "02000000 0100 0200");
        is_written_as(&BTreeMap::from([(1_u8, Text::from("x"))]), "01000000 01 01000000 \"x\"");
    }

    #[test]
    fn a_count_that_lies_is_short_and_costs_nothing() {
        let lie = bytes("ffffffff 01");
        assert!(matches!(Vec::<u64>::from_bytes(&lie), Err(Malformed::Short { .. })));
        assert!(matches!(Text::from_bytes(&lie), Err(Malformed::Short { .. })));
    }

    fields! {
        /// For the tests.
        pub struct Example, version 2, oldest 1 {
            /// One.
            pub one: u8,
        }
    }

    #[test]
    fn what_a_newer_program_has_added_is_skipped_unless_it_must_be_understood() {
        is_written_as(&Example { one: 5 }, "02 01 01000000 05");
        let read = |text: &str| Example::from_bytes(&bytes(text));
        assert_eq!(read("07 02 03000000 05 ffff"), Ok(Example { one: 5 }));
        assert!(matches!(read("07 03 01000000 05"), Err(Malformed::TooNew { version: 3, .. })));
        assert!(matches!(read("02 01 00000000"), Err(Malformed::Short { .. })));
        assert!(matches!(read("02 01 01000000 05 00"), Err(Malformed::Long(1))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = BTreeMap::<Text, Vec<Option<u64>>>::from_bytes(&bytes);
            let _ = Example::from_bytes(&bytes);
        }
    }
}
