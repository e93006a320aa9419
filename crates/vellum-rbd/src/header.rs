//! [`Header`]: all that the keys of an image's header say, read at one moment.

use std::collections::BTreeMap;

use crate::Features;
use crate::names::key;
use crate::records::{Children, Migration, Parent, Snapshot};
use crate::wire::{Decode, Encode, Malformed, Text, Time};

/// What a header says of an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// Bytes in the image.
    pub size: u64,
    /// The binary logarithm of the object size.
    pub order: u8,
    /// What it has.
    pub features: Features,
    /// What the names of its data objects begin with.
    pub prefix: Text,
    /// The highest snapshot id that was ever used.
    pub snap_seq: u64,
    /// The pool of the data objects, if it is not that of the header.
    pub data_pool: Option<i64>,
    /// Bytes in a stripe unit, and objects in a set, if it is striped otherwise than object by object.
    pub striping: Option<(u64, u64)>,
    /// [What is not to be relied on](crate::features::flag) at the head.
    pub flags: u64,
    /// [What has been done](crate::features::operation) with it.
    pub operations: u64,
    /// What it hangs on.
    pub parent: Option<Parent>,
    /// Its snapshots by their ids, the oldest first.
    pub snapshots: BTreeMap<u64, Snapshot>,
    /// The children of the second kind of each of them.
    pub children: BTreeMap<u64, Children>,
    /// Whatever users put there.
    pub metadata: BTreeMap<Text, Text>,
    /// Where it is being moved from or to.
    pub migration: Option<Migration>,
    /// When it was made.
    pub created: Time,
    /// Keys that are not known here, and left alone.
    pub unknown: Vec<Text>,
}

/// A key of a header that does not hold what it should, or is not there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("key {key} of the header")]
pub struct BadHeader {
    /// Which.
    pub key: Text,
    /// Why; `None` if it is missing.
    #[source]
    pub why: Option<Malformed>,
}

/// Keys of times that change without the image being another one, and those of what is not looked at.
const IGNORED: [&str; 4] = [key::ACCESSED, key::MODIFIED, "snap_limit", "rbd_group_ref"];

impl Header {
    /// What these keys say.
    ///
    /// # Errors
    /// If a key that every image has is missing, or one that is known cannot be read, or says what cannot be: an order that no
    /// object has, a snapshot under another's id, or one newer than the newest.
    pub fn read(keys: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Self, BadHeader> {
        let keys = Keys(keys);
        let order: u8 = keys.must(key::ORDER)?;
        if !(12..=25).contains(&order) {
            let why = Malformed::Unknown { what: "order", value: order.into() };
            return Err(bad(key::ORDER, Some(why)));
        }
        let striping = match (keys.find(key::STRIPE_UNIT)?, keys.find(key::STRIPE_COUNT)?) {
            (Some(unit), Some(count)) => Some((unit, count)),
            (None, None) => None,
            (Some(_), None) => return Err(bad(key::STRIPE_COUNT, None)),
            (None, Some(_)) => return Err(bad(key::STRIPE_UNIT, None)),
        };
        let mut header = Self {
            size: keys.must(key::SIZE)?,
            order,
            features: Features(keys.must(key::FEATURES)?),
            prefix: keys.must(key::OBJECT_PREFIX)?,
            snap_seq: keys.must(key::SNAP_SEQ)?,
            data_pool: keys.find(key::DATA_POOL)?,
            striping,
            flags: keys.find(key::FLAGS)?.unwrap_or(0),
            operations: keys.find(key::OPERATIONS)?.unwrap_or(0),
            parent: keys.find(key::PARENT)?,
            snapshots: BTreeMap::new(),
            children: BTreeMap::new(),
            metadata: BTreeMap::new(),
            migration: keys.find(key::MIGRATION)?,
            created: keys.find(key::CREATED)?.unwrap_or_default(),
            unknown: Vec::new(),
        };
        keys.0.iter().try_for_each(|(name, value)| header.take(name, value))?;
        Ok(header)
    }

    /// Takes a key whose name is not always the same.
    fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), BadHeader> {
        let text = String::from_utf8_lossy(name);
        let failed = |why| bad(&text, Some(why));
        if let Some(id) = key::snapshot_id(&text) {
            let snapshot = Snapshot::from_bytes(value).map_err(failed)?;
            if snapshot.id != id || id > self.snap_seq {
                let why = Malformed::Unknown { what: "snapshot of this image", value: snapshot.id };
                return Err(bad(&text, Some(why)));
            }
            self.snapshots.insert(id, snapshot);
        } else if let Some(id) = key::children_id(&text) {
            self.children.insert(id, Children::from_bytes(value).map_err(failed)?);
        } else if let Some(name) = name.strip_prefix(key::METADATA.as_bytes()) {
            self.metadata.insert(Text(name.to_vec()), Text(value.to_vec()));
        } else if !KNOWN.contains(&&*text) && !IGNORED.contains(&&*text) {
            self.unknown.push(Text(name.to_vec()));
        }
        Ok(())
    }

    /// The keys that say this, as the cluster would have written them itself. Those that are not known here are not among them.
    pub fn to_keys(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut keys = BTreeMap::new();
        let mut set = |key: &str, value: Vec<u8>| keys.insert(key.as_bytes().to_vec(), value);
        set(key::SIZE, self.size.to_bytes());
        set(key::ORDER, self.order.to_bytes());
        set(key::FEATURES, self.features.0.to_bytes());
        set(key::OBJECT_PREFIX, self.prefix.to_bytes());
        set(key::SNAP_SEQ, self.snap_seq.to_bytes());
        for time in [key::CREATED, key::ACCESSED, key::MODIFIED] {
            set(time, self.created.to_bytes());
        }
        if let Some(pool) = self.data_pool {
            set(key::DATA_POOL, pool.to_bytes());
        }
        if let Some((unit, count)) = self.striping {
            set(key::STRIPE_UNIT, unit.to_bytes());
            set(key::STRIPE_COUNT, count.to_bytes());
        }
        for (key, bits) in [(key::FLAGS, self.flags), (key::OPERATIONS, self.operations)] {
            if bits != 0 {
                set(key, bits.to_bytes());
            }
        }
        if let Some(parent) = &self.parent {
            set(key::PARENT, parent.to_bytes());
        }
        if let Some(migration) = &self.migration {
            set(key::MIGRATION, migration.to_bytes());
        }
        for (id, snapshot) in &self.snapshots {
            set(&key::snapshot(*id), snapshot.to_bytes());
        }
        for (id, children) in &self.children {
            set(&key::children(*id), children.to_bytes());
        }
        for (name, value) in &self.metadata {
            let name = [key::METADATA.as_bytes(), &name.0].concat();
            keys.insert(name, value.0.clone());
        }
        keys
    }

    /// The ids of its snapshots, the newest first, as data objects are written under.
    pub fn snap_context(&self) -> Vec<u64> {
        self.snapshots.keys().rev().copied().collect()
    }

    /// Bytes in an object.
    pub fn object_size(&self) -> u64 {
        1 << self.order
    }
}

/// Keys that are read by their names.
const KNOWN: [&str; 13] = [
    key::SIZE,
    key::ORDER,
    key::FEATURES,
    key::OBJECT_PREFIX,
    key::SNAP_SEQ,
    key::DATA_POOL,
    key::STRIPE_UNIT,
    key::STRIPE_COUNT,
    key::FLAGS,
    key::OPERATIONS,
    key::PARENT,
    key::MIGRATION,
    key::CREATED,
];

fn bad(key: &str, why: Option<Malformed>) -> BadHeader {
    BadHeader { key: key.into(), why }
}

struct Keys<'a>(&'a BTreeMap<Vec<u8>, Vec<u8>>);

impl Keys<'_> {
    fn find<T: Decode>(&self, key: &str) -> Result<Option<T>, BadHeader> {
        let value = self.0.get(key.as_bytes()).map(|value| T::from_bytes(value));
        value.transpose().map_err(|why| bad(key, Some(why)))
    }

    fn must<T: Decode>(&self, key: &str) -> Result<T, BadHeader> {
        self.find(key)?.ok_or_else(|| bad(key, None))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::tests::bytes;

    /// The header of a clone of 16 MiB, of a Ceph 16.2.15, with a snapshot and a key of a user besides.
    fn keys() -> BTreeMap<Vec<u8>, Vec<u8>> {
        let keys = [
            ("size", "0000000100000000"),
            ("order", "16"),
            ("features", "3d01000000000000"),
            ("op_features", "0200000000000000"),
            ("object_prefix", "15000000 \"rbd_data.11a22d4ac843\""),
            ("snap_seq", "0400000000000000"),
            (
                "parent",
                "02 02 2d000000 0200000000000000 00000000 0c000000 \"11a27ca480de\" 0400000000000000 01 0000000100000000",
            ),
            (
                "snapshot_0000000000000004",
                "08 08 36000000 0400000000000000 02000000 \"s1\" 0000800100000000 02 0000000000000000 \
                 01 01 04000000 00000000 9089026b 33ad1e02 01000000 00",
            ),
            (
                "snap_children_0000000000000004",
                "01000000 02 01 1c000000 0200000000000000 0c000000 \"10451fc24561\" 00000000",
            ),
            ("create_timestamp", "9089026b 33ad1e02"),
            ("modify_timestamp", "9089026b 33ad1e02"),
            ("metadata_conf_rbd_cache", "\"false\""),
            ("vellum", "01"),
        ];
        keys.map(|(key, value)| (key.into(), bytes(value))).into()
    }

    #[test]
    fn all_that_a_header_holds_is_read() {
        let header = Header::read(&keys()).unwrap();
        assert_eq!((header.size, header.order, header.features.0), (1 << 24, 22, 0x13d));
        assert_eq!((header.operations, header.snap_seq, header.flags), (2, 4, 0));
        assert_eq!(header.parent.as_ref().unwrap().of.image, "11a27ca480de".into());
        assert_eq!(header.snap_context(), [4]);
        assert_eq!(header.snapshots[&4].name, "s1".into());
        assert_eq!(header.children[&4].first().unwrap().image, "10451fc24561".into());
        assert_eq!(header.metadata[&"conf_rbd_cache".into()], "false".into());
        assert_eq!(header.unknown, ["vellum".into()]);
        assert_eq!((header.data_pool, header.striping, header.migration), (None, None, None));
    }

    #[test]
    fn a_header_is_written_as_it_was_read() {
        let mut known = keys();
        known.remove(&b"vellum"[..]);
        known.insert("access_timestamp".into(), known[&b"create_timestamp"[..]].clone());
        let header = Header::read(&known).unwrap();
        assert_eq!(header.to_keys(), known);
    }

    #[test]
    fn what_is_missing_or_cannot_be_is_named() {
        for key in ["size", "order", "features", "object_prefix", "snap_seq"] {
            let mut lacking = keys();
            lacking.remove(key.as_bytes());
            assert_eq!(Header::read(&lacking), Err(BadHeader { key: key.into(), why: None }));
        }
        for (key, value) in [
            ("order", "0b"),
            ("order", "3f"),
            ("size", "00"),
            ("snap_seq", "0300000000000000"),
            ("stripe_unit", "0010000000000000"),
            (
                "snapshot_0000000000000003",
                "08 08 36000000 0400000000000000 02000000 \"s1\" 0000800100000000 02 0000000000000000 \
                 01 01 04000000 00000000 9089026b 33ad1e02 01000000 00",
            ),
            ("parent", "02"),
        ] {
            let mut wrong = keys();
            wrong.insert(key.into(), bytes(value));
            assert!(Header::read(&wrong).is_err(), "{key} {value}");
        }
    }

    proptest! {
        #[test]
        fn any_value_of_any_key_is_read_or_refused(index in 0_usize..13, value: Vec<u8>) {
            let mut changed = keys();
            let key = changed.keys().nth(index).unwrap().clone();
            changed.insert(key, value);
            let _ = Header::read(&changed);
        }
    }
}
