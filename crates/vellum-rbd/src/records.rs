//! What the keys of a header, of the trash and of the list of children hold.

use std::collections::{BTreeMap, BTreeSet};

use crate::wire::{Decode, Encode, Malformed, Reader, Result, Text, Time, fields, structure};

/// The snapshot that an image hangs on. It is stored once, also where snapshots of the image hang on it too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parent {
    /// The snapshot.
    pub of: ParentSpec,
    /// How much of it the head can see, in bytes. `None` where the head was cut off and a snapshot was not.
    pub head_overlap: Option<u64>,
}

fields! {
    /// A snapshot that an image can hang on.
    pub struct ParentSpec, version 1, oldest 1 {
        /// The pool; -1 for no parent.
        pub pool: i64,
        /// The namespace of the image in the pool.
        pub namespace: Text,
        /// The image's id.
        pub image: Text,
        /// The snapshot's id.
        pub snapshot: u64,
    }
}

impl Encode for Parent {
    fn encode(&self, out: &mut Vec<u8>) {
        structure(out, 2, 2, |out| {
            self.of.pool.encode(out);
            self.of.namespace.encode(out);
            self.of.image.encode(out);
            self.of.snapshot.encode(out);
            self.head_overlap.encode(out);
        });
    }
}

impl Decode for Parent {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        let (version, mut fields) = input.structure("parent", 2)?;
        let pool = fields.value()?;
        // Before namespaces, the overlap was always there.
        let namespace = if version < 2 { Text::default() } else { fields.value()? };
        let of = ParentSpec { pool, namespace, image: fields.value()?, snapshot: fields.value()? };
        let head_overlap = if version < 2 { Some(fields.value()?) } else { fields.value()? };
        Ok(Self { of, head_overlap })
    }
}

fields! {
    /// An image that hangs on a snapshot, in the list of its children of the second kind.
    pub struct Child, version 2, oldest 1 {
        /// The pool.
        pub pool: i64,
        /// The image's id.
        pub image: Text,
        /// The namespace of the image in the pool.
        pub namespace: Text,
    }
}

/// The children of a snapshot, in the image's header.
pub type Children = BTreeSet<Child>;

/// Whether a snapshot may be removed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
#[repr(u8)]
pub enum Protection {
    /// It may.
    #[default]
    Unprotected = 0,
    /// Somebody looks for children of the first kind; new ones are refused.
    Unprotecting = 1,
    /// It may not, since children of the first kind may hang on it.
    Protected = 2,
}

impl Encode for Protection {
    fn encode(&self, out: &mut Vec<u8>) {
        (*self as u8).encode(out);
    }
}

impl Decode for Protection {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        match input.value::<u8>()? {
            0 => Ok(Self::Unprotected),
            1 => Ok(Self::Unprotecting),
            2 => Ok(Self::Protected),
            other => {
                Err(Malformed::Unknown { what: "protection of a snapshot", value: other.into() })
            }
        }
    }
}

/// Whose a snapshot is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Purpose {
    /// Its user's.
    User,
    /// It was removed while children hang on it.
    Trash {
        /// The name that it had.
        name: Text,
        /// What it was for, as a number.
        purpose: u32,
    },
    /// A group's, a mirror's, or one that is not known here.
    Other {
        /// What it is for, as a number.
        purpose: u32,
        /// What is said of it.
        fields: Vec<u8>,
    },
}

const USER: u32 = 0;
const TRASH: u32 = 2;

impl Encode for Purpose {
    fn encode(&self, out: &mut Vec<u8>) {
        structure(out, 1, 1, |out| match self {
            Self::User => USER.encode(out),
            Self::Trash { name, purpose } => {
                TRASH.encode(out);
                name.encode(out);
                purpose.encode(out);
            }
            Self::Other { purpose, fields } => {
                purpose.encode(out);
                out.extend(fields);
            }
        });
    }
}

impl Decode for Purpose {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        let (_, mut fields) = input.structure("purpose of a snapshot", 1)?;
        Ok(match fields.value()? {
            USER => Self::User,
            TRASH => Self::Trash { name: fields.value()?, purpose: fields.value()? },
            purpose => Self::Other { purpose, fields: fields.rest().to_vec() },
        })
    }
}

fields! {
    /// A snapshot, as the header has it since Nautilus (14). Older ones had a parent of their own.
    pub struct Snapshot, version 8, oldest 8 {
        /// Its id, which its data objects know it by.
        pub id: u64,
        /// Its name.
        pub name: Text,
        /// Bytes in the image when it was taken.
        pub size: u64,
        /// Whether it may be removed.
        pub protection: Protection,
        /// [What is not to be relied on](crate::features::flag) of its object map.
        pub flags: u64,
        /// Whose it is.
        pub purpose: Purpose,
        /// When it was taken.
        pub time: Time,
        /// How many children of the second kind hang on it.
        pub children: u32,
        /// How much of the parent it can see, in bytes.
        pub parent_overlap: Option<u64>,
    }
}

fields! {
    /// What the cluster answers when it is asked for a snapshot.
    pub struct SnapshotInfo, version 1, oldest 1 {
        /// Its id.
        pub id: u64,
        /// Whose it is.
        pub purpose: Purpose,
        /// Its name.
        pub name: Text,
        /// Bytes in the image when it was taken.
        pub size: u64,
        /// When it was taken.
        pub time: Time,
        /// How many children of the second kind hang on it.
        pub children: u32,
    }
}

fields! {
    /// An image in the trash.
    pub struct Trashed, version 2, oldest 1 {
        /// Who put it there: 0 a user, 1 a mirror, 2 a migration, 3 a removal that did not end, 4 a user, though children hang on it.
        pub source: u8,
        /// The name that it had.
        pub name: Text,
        /// When it was put there.
        pub since: Time,
        /// Until when it is kept.
        pub until: Time,
        /// 0 it is there, 1 it is being put there, 2 it is being removed, 3 it is being brought back.
        pub state: u8,
    }
}

fields! {
    /// Where an image is being moved from or to.
    pub struct Migration, version 3, oldest 1 {
        /// 1 in the header of the one that is moved, 2 in that of the one that it becomes.
        pub side: u8,
        /// The pool of the other.
        pub pool: i64,
        /// Its namespace.
        pub namespace: Text,
        /// Its name.
        pub name: Text,
        /// Its id.
        pub image: Text,
        /// The snapshots that are moved, each with the one that it becomes.
        pub snapshots: BTreeMap<u64, u64>,
        /// How much of the other can be seen, in bytes.
        pub overlap: u64,
        /// Whether what it inherits is copied too.
        pub flatten: bool,
        /// Whether it is mirrored.
        pub mirroring: bool,
        /// 0 it failed, 1 it is being prepared, 2 it is prepared, 3 it is carried out, 4 it was, 5 it is taken back.
        pub state: u8,
        /// What is said of that.
        pub description: Text,
        /// How it is mirrored.
        pub mirror_mode: u8,
        /// A source that is no image of a cluster.
        pub source: Text,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::tests::{bytes, is_written_as};

    // The bytes are those of a Ceph 16.2.15.

    #[test]
    fn a_parent_is_written_as_ceph_writes_it() {
        let of =
            ParentSpec { pool: 1, namespace: "".into(), image: "1009ec872245".into(), snapshot: 4 };
        is_written_as(
            &Parent { of: of.clone(), head_overlap: Some(24 << 20) },
            "02 02 2d000000 | 0100000000000000 | 00000000 | 0c000000 \"1009ec872245\" | 0400000000000000 | 01 0000800100000000",
        );
        let older = "01 01 28000000 0100000000000000 0c000000 \"1009ec872245\" 0400000000000000 0000800100000000";
        assert_eq!(Parent::from_bytes(&bytes(older)).unwrap().of, of);
    }

    #[test]
    fn a_snapshot_is_written_as_ceph_writes_it() {
        let snapshot = Snapshot {
            id: 4,
            name: "s1".into(),
            size: 24 << 20,
            protection: Protection::Protected,
            flags: 0,
            purpose: Purpose::User,
            time: Time { seconds: 0x6b02_8990, nanoseconds: 0x021e_ad33 },
            children: 1,
            parent_overlap: None,
        };
        is_written_as(
            &snapshot,
            "08 08 36000000 | 0400000000000000 | 02000000 \"s1\" | 0000800100000000 | 02 | 0000000000000000 |
             01 01 04000000 00000000 | 9089026b 33ad1e02 | 01000000 | 00",
        );
    }

    #[test]
    fn children_are_written_as_ceph_writes_them() {
        let child = Child { pool: 2, image: "10451fc24561".into(), namespace: "".into() };
        is_written_as(
            &Children::from([child]),
            "01000000 | 02 01 1c000000 | 0200000000000000 | 0c000000 \"10451fc24561\" | 00000000",
        );
        is_written_as(
            &BTreeSet::from([Text::from("1043bbca9749")]),
            "01000000 0c000000 \"1043bbca9749\"",
        );
    }

    #[test]
    fn a_migration_is_written_as_ceph_writes_it() {
        let migration = Migration {
            side: 2,
            pool: 1,
            namespace: "".into(),
            name: "mig".into(),
            image: "10ebb0a07da".into(),
            snapshots: BTreeMap::from([(8, 27)]),
            overlap: 0x180_0000,
            flatten: false,
            mirroring: false,
            state: 2,
            description: "".into(),
            mirror_mode: 0,
            source: "".into(),
        };
        is_written_as(
            &migration,
            "03 01 4b000000 02 | 0100000000000000 | 00000000 | 03000000 \"mig\" | 0b000000 \"10ebb0a07da\" |
             01000000 0800000000000000 1b00000000000000 | 0000800100000000 | 00 | 00 | 02 | 00000000 | 00 | 00000000",
        );
    }

    #[test]
    fn an_image_in_the_trash_is_written_as_rbd_writes_it() {
        let time = |seconds, nanoseconds| Time { seconds, nanoseconds };
        let trashed = Trashed {
            source: 0,
            name: "a".into(),
            since: time(0x6b0e_2084, 0x281e_f673),
            until: time(0x70dd_5524, 0x281e_f673),
            state: 0,
        };
        is_written_as(
            &trashed,
            "02 01 17000000 | 00 | 01000000 \"a\" | 84200e6b 73f61e28 | 2455dd70 73f61e28 | 00",
        );
    }

    #[test]
    fn clones_of_the_first_format_are_written_as_rbd_writes_them() {
        let children = BTreeSet::from([Text::from("1043bbca9749")]);
        is_written_as(&children, "01000000 0c000000 \"1043bbca9749\"");
    }

    #[test]
    fn a_purpose_that_is_not_known_is_written_as_it_was_read() {
        let group = bytes("01 01 08000000 01000000 \"abcd\"");
        assert_eq!(Purpose::from_bytes(&group).unwrap().to_bytes(), group);
        let trash = Purpose::Trash { name: "s1".into(), purpose: 0 };
        is_written_as(&trash, "01 01 0e000000 02000000 02000000 \"s1\" 00000000");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Parent::from_bytes(&bytes);
            let _ = Snapshot::from_bytes(&bytes);
            let _ = Migration::from_bytes(&bytes);
            let _ = Children::from_bytes(&bytes);
        }
    }
}
