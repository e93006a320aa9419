//! Which objects an image has, and the keys in them.
//!
//! | object | holds |
//! |---|---|
//! | [`DIRECTORY`] | keys: the names and ids of a pool's images, each by the other |
//! | [`id_object`] | the id of the image of a name |
//! | [`header`] | keys: all that is known of an image; its lock; its clients watch it |
//! | [`object_map`] | which data objects the head, or a snapshot, has |
//! | [`data`] | a part of the content |
//! | [`CHILDREN`] | keys: children of the first kind, in the pool of the child |
//! | [`TRASH`] | keys: images that were put aside |

use crate::wire::{Encode, Text};

/// The directory of a pool's images.
pub const DIRECTORY: &str = "rbd_directory";
/// The list of children of the first kind.
pub const CHILDREN: &str = "rbd_children";
/// The list of what is in the trash.
pub const TRASH: &str = "rbd_trash";
/// What says that the pool is for images.
pub const INFO: &str = "rbd_info";
/// The list of a pool's namespaces.
pub const NAMESPACES: &str = "rbd_namespace";

/// The longest prefix of the names of data objects, in bytes.
pub const PREFIX_MAX: usize = 43;
/// The longest id, in bytes.
pub const ID_MAX: usize = 14;

/// The snapshot id that stands for the head.
pub const HEAD: u64 = u64::MAX - 1;

/// The object that holds the id of the image of this name.
pub fn id_object(name: &str) -> String {
    format!("rbd_id.{name}")
}

/// The header of an image.
pub fn header(id: &str) -> String {
    format!("rbd_header.{id}")
}

/// The object map of an image's head, or of one of its snapshots.
pub fn object_map(id: &str, snapshot: Option<u64>) -> String {
    match snapshot {
        None => format!("rbd_object_map.{id}"),
        Some(snapshot) => format!("rbd_object_map.{id}.{snapshot:016x}"),
    }
}

/// What the names of an image's data objects begin with. With a pool of their own for data they name the pool of the header.
pub fn data_prefix(id: &str, metadata_pool: Option<i64>) -> String {
    match metadata_pool {
        None => format!("rbd_data.{id}"),
        Some(pool) => format!("rbd_data.{pool}.{id}"),
    }
}

/// The data object of this number.
pub fn data(prefix: &str, number: u64) -> String {
    format!("{prefix}.{number:016x}")
}

/// The number of a data object; `None` if it is not one of this prefix.
pub fn data_number(prefix: &str, name: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?.strip_prefix('.')?;
    let number = u64::from_str_radix(digits, 16).ok()?;
    (data(prefix, number) == name).then_some(number)
}

/// An id for a new image, as librbd makes one: the number of this client at the cluster, and chance.
pub fn new_id(client: u64, chance: u32) -> String {
    let id = format!("{client:x}{chance:x}");
    id[id.len().saturating_sub(ID_MAX)..].to_owned()
}

/// Whether the cluster takes an id.
pub fn is_id(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Keys of the directory.
pub mod directory {
    /// Under which the id of an image lies.
    pub fn name(name: &str) -> String {
        format!("name_{name}")
    }

    /// Under which the name of an image lies; in the trash, what is known of it.
    pub fn id(id: &str) -> String {
        format!("id_{id}")
    }
}

/// Keys of a header.
pub mod key {
    /// Bytes in the image: `u64`.
    pub const SIZE: &str = "size";
    /// The binary logarithm of the object size: `u8`.
    pub const ORDER: &str = "order";
    /// [`Features`](crate::Features).
    pub const FEATURES: &str = "features";
    /// What the names of data objects begin with.
    pub const OBJECT_PREFIX: &str = "object_prefix";
    /// The highest snapshot id that was ever used: `u64`.
    pub const SNAP_SEQ: &str = "snap_seq";
    /// The pool of the data objects: `i64`.
    pub const DATA_POOL: &str = "data_pool_id";
    /// Bytes in a stripe unit: `u64`.
    pub const STRIPE_UNIT: &str = "stripe_unit";
    /// Objects in a set: `u64`.
    pub const STRIPE_COUNT: &str = "stripe_count";
    /// [`flags`](crate::features::flag).
    pub const FLAGS: &str = "flags";
    /// [`operations`](crate::features::operation).
    pub const OPERATIONS: &str = "op_features";
    /// [`Parent`](crate::records::Parent).
    pub const PARENT: &str = "parent";
    /// When the image was made: [`Time`](crate::wire::Time).
    pub const CREATED: &str = "create_timestamp";
    /// When it was read, as far as its clients noted it.
    pub const ACCESSED: &str = "access_timestamp";
    /// When it was changed, as far as its clients noted it.
    pub const MODIFIED: &str = "modify_timestamp";
    /// [`Migration`](crate::records::Migration).
    pub const MIGRATION: &str = "migration";

    /// [`Snapshot`](crate::records::Snapshot).
    pub fn snapshot(id: u64) -> String {
        format!("snapshot_{id:016x}")
    }

    /// The snapshot that a key is of.
    pub fn snapshot_id(key: &str) -> Option<u64> {
        let id = u64::from_str_radix(key.strip_prefix("snapshot_")?, 16).ok()?;
        (snapshot(id) == key).then_some(id)
    }

    /// A set of [`Child`](crate::records::Child).
    pub fn children(snapshot: u64) -> String {
        format!("snap_children_{snapshot:016x}")
    }

    /// The snapshot whose children a key is of.
    pub fn children_id(key: &str) -> Option<u64> {
        let id = u64::from_str_radix(key.strip_prefix("snap_children_")?, 16).ok()?;
        (children(id) == key).then_some(id)
    }

    /// What the keys of whatever users have put there begin with.
    pub const METADATA: &str = "metadata_";

    /// Whatever a user has put there.
    pub fn metadata(key: &str) -> String {
        format!("{METADATA}{key}")
    }
}

/// The key of the children of a snapshot, in [`CHILDREN`].
pub fn children_of(pool: u64, image: &str, snapshot: u64) -> Vec<u8> {
    (pool, Text::from(image), snapshot).to_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tests::bytes;

    #[test]
    fn objects_and_keys_have_the_names_that_ceph_gives_them() {
        assert_eq!(
            data(&data_prefix("1009ec872245", None), 26),
            "rbd_data.1009ec872245.000000000000001a"
        );
        assert_eq!(data_prefix("1009ec872245", Some(2)), "rbd_data.2.1009ec872245");
        assert_eq!(object_map("10", Some(4)), "rbd_object_map.10.0000000000000004");
        assert_eq!(key::snapshot(4), "snapshot_0000000000000004");
        assert_eq!(
            children_of(1, "1009ec872245", 4),
            bytes("0100000000000000 0c000000 \"1009ec872245\" 0400000000000000")
        );
    }

    #[test]
    fn names_are_read_only_as_they_are_written() {
        assert_eq!(data_number("rbd_data.1", "rbd_data.1.00000000000000ff"), Some(255));
        for other in [
            "rbd_data.1.ff",
            "rbd_data.1.00000000000000FF",
            "rbd_data.12.0000000000000000",
            "rbd_data.1",
        ] {
            assert_eq!(data_number("rbd_data.1", other), None, "{other}");
        }
        assert_eq!(key::snapshot_id("snapshot_0000000000000004"), Some(4));
        assert_eq!(key::snapshot_id("snapshot_4"), None);
    }

    #[test]
    fn ids_are_the_last_digits_of_client_and_chance() {
        assert_eq!(new_id(0x1009, 0xec87_2245), "1009ec872245");
        assert_eq!(new_id(0x0012_3456_789a, 0xec87_2245), "56789aec872245");
        assert!(is_id("1009ec872245") && !is_id("") && !is_id("a-b"));
    }
}
