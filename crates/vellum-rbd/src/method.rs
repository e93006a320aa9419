//! The methods of the object class `rbd`: what each is given, and what it answers.
//!
//! A method works on one object inside the cluster, in one step, and keeps the keys of headers and directories consistent with each
//! other. What it refuses stands here where a caller must know; numbers are those of errno(3).

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;

use crate::object_map::ObjectMap;
use crate::records::{
    Child, Children, Migration, ParentSpec, Protection, Purpose, SnapshotInfo, Trashed,
};
use crate::wire::{Decode, Encode, Result, Text, Time};

/// The name of the class.
pub const CLASS: &str = "rbd";

/// A call of a method that changes an object, and answers nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// The method.
    pub method: &'static str,
    /// What it is given.
    pub input: Vec<u8>,
}

/// A call of a method that looks at an object, and answers a `T`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask<T> {
    /// The method.
    pub method: &'static str,
    /// What it is given.
    pub input: Vec<u8>,
    answers: PhantomData<T>,
}

impl<T: Decode> Ask<T> {
    /// What it has answered.
    ///
    /// # Errors
    /// If it is no such thing.
    pub fn read(&self, output: &[u8]) -> Result<T> {
        T::from_bytes(output)
    }
}

/// Each method is given its arguments, one after the other.
macro_rules! methods {
    ($($(#[$meta:meta])* $kind:ident $name:ident($($argument:ident: $type:ty),*) $(-> $answer:ty)?;)*) => {
        $($(#[$meta])*
        pub fn $name($($argument: $type),*) -> methods!(@returns $kind $($answer)?) {
            #[allow(unused_mut, reason = "some are given nothing")]
            let mut input = Vec::new();
            $($argument.encode(&mut input);)*
            methods!(@make $kind stringify!($name), input)
        })*
    };
    (@returns does) => { Call };
    (@returns asks $answer:ty) => { Ask<$answer> };
    (@make does $method:expr, $input:expr) => { Call { method: $method, input: $input } };
    (@make asks $method:expr, $input:expr) => {
        Ask { method: $method, input: $input, answers: PhantomData }
    };
}

/// Of an object that holds the id of a name.
pub mod id {
    use super::*;

    methods! {
        /// Notes the id. `EEXIST` if there is one. The object must be there.
        does set_id(id: Text);
        /// The id. `ENOENT` if there is none.
        asks get_id() -> Text;
    }
}

/// Of the [directory](crate::names::DIRECTORY) of a pool's images.
pub mod directory {
    use super::*;

    methods! {
        /// Enters an image. `EEXIST` if the name is taken, `EBADF` if the id is.
        does dir_add_image(name: Text, id: Text);
        /// Takes an image out. `ENOENT` or `ESTALE` if these do not belong to each other.
        does dir_remove_image(name: Text, id: Text);
        /// Gives an image another name. `EEXIST` if that is taken, `ENOENT` or `ESTALE` if the old one is not the image's.
        does dir_rename_image(from: Text, to: Text, id: Text);
        /// The id of a name.
        asks dir_get_id(name: Text) -> Text;
        /// The name of an id.
        asks dir_get_name(id: Text) -> Text;
        /// Names and ids in the order of the names, behind one of them.
        asks dir_list(after: Text, max: u64) -> BTreeMap<Text, Text>;
    }
}

/// Of the [header](crate::names::header) of an image.
pub mod header {
    use super::*;

    methods! {
        /// Begins a header. `data_pool` is -1 unless the data has a pool of its own. `EEXIST` if there is one.
        does create(size: u64, order: u8, features: u64, prefix: Text, data_pool: i64);
        /// Sets the size, and clips what the head sees of a parent.
        does set_size(size: u64);
        /// Sets those of the features that the mask has.
        does set_features(features: u64, mask: u64);
        /// Sets the striping. Needs that feature.
        does set_stripe_unit_count(unit: u64, count: u64);
        /// Sets those of the [flags](crate::features::flag) of the head or a snapshot that the mask has.
        does set_flags(flags: u64, mask: u64, snapshot: u64);
        /// Sets those of the [operations](crate::features::operation) that the mask has, and the feature with them.
        does op_features_set(operations: u64, mask: u64);
        /// Notes that the image was changed.
        does set_modify_timestamp();
        /// Notes that the image was read.
        does set_access_timestamp();
        /// The order and the size, of the head or a snapshot.
        asks get_size(snapshot: u64) -> (u8, u64);
        /// The features, and those of them that a client must understand.
        asks get_features(snapshot: u64, only_reads: bool) -> (u64, u64);
        /// What the names of data objects begin with.
        asks get_object_prefix() -> Text;
        /// The pool of the data; -1 if it is that of the header.
        asks get_data_pool() -> i64;
        /// The highest snapshot id that was ever used, and those that are there, the newest first.
        asks get_snapcontext() -> (u64, Vec<u64>);
        /// The striping. `ENOEXEC` without that feature.
        asks get_stripe_unit_count() -> (u64, u64);
        /// The flags, of the head or a snapshot.
        asks get_flags(snapshot: u64) -> u64;
        /// The operations.
        asks op_features_get() -> u64;
        /// When the image was made.
        asks get_create_timestamp() -> Time;
        /// When it was changed, as far as its clients noted it.
        asks get_modify_timestamp() -> Time;
    }
}

/// Of a header: its snapshots.
pub mod snapshot {
    use super::*;

    methods! {
        /// Enters a snapshot with the size, the flags and the overlap of the head. `ESTALE` if the id is lower than one that was
        /// used, `EEXIST` if the id or the name is taken.
        does snapshot_add(name: Text, id: u64, purpose: Purpose);
        /// Takes a snapshot out. `EBUSY` if it is protected, or children hang on it.
        does snapshot_remove(id: u64);
        /// Gives a snapshot another name. `EEXIST` if that is taken.
        does snapshot_rename(id: u64, name: Text);
        /// Gives a snapshot that children hang on a name that nobody looks for. `EBUSY` if it is protected, `EEXIST` if it has one.
        does snapshot_trash_add(id: u64);
        /// Protects, or stops protecting. Needs layering.
        does set_protection_status(id: u64, protection: Protection);
        /// What is known of a snapshot.
        asks snapshot_get(id: u64) -> SnapshotInfo;
        /// Whether it is protected.
        asks get_protection_status(id: u64) -> Protection;
    }
}

/// Of a header: what it hangs on, and what hangs on it.
pub mod layering {
    use super::*;

    methods! {
        /// Hangs the image on a snapshot. `EEXIST` if it hangs on another, or its head sees one.
        does parent_attach(parent: ParentSpec, overlap: u64, again: bool);
        /// Cuts the head off, and with deep-flatten its snapshots. `ENOENT` if the head sees no parent.
        does parent_detach();
        /// What it hangs on; pool -1 for nothing.
        asks parent_get() -> ParentSpec;
        /// How much of it the head or a snapshot sees; `None` if it was cut off.
        asks parent_overlap_get(snapshot: u64) -> Option<u64>;
        /// Enters a child in the list of a snapshot. `ENOENT` if that is gone or in the trash, `EEXIST` if the child is there.
        does child_attach(snapshot: u64, child: Child);
        /// Takes a child out. `ENOENT` if it is not there.
        does child_detach(snapshot: u64, child: Child);
        /// The children of a snapshot. `ENOENT` if there are none.
        asks children_list(snapshot: u64) -> Children;
        /// Enters a child of the first kind. In [`CHILDREN`](crate::names::CHILDREN) of the child's pool. `EEXIST` if it is there.
        does add_child(pool: i64, parent: Text, snapshot: u64, child: Text);
        /// Takes one out. `ENOENT` if it is not there.
        does remove_child(pool: i64, parent: Text, snapshot: u64, child: Text);
        /// Those of a snapshot that are in this pool.
        asks get_children(pool: i64, parent: Text, snapshot: u64) -> BTreeSet<Text>;
    }
}

/// Of a header: whatever users put there, and moves.
pub mod metadata {
    use super::*;

    methods! {
        /// Sets keys.
        does metadata_set(values: BTreeMap<Text, Text>);
        /// Removes a key, if it is there.
        does metadata_remove(key: Text);
        /// Keys and values in the order of the keys, behind one of them.
        asks metadata_list(after: Text, max: u64) -> BTreeMap<Text, Text>;
        /// Begins, or changes, a move.
        does migration_set(migration: Migration);
        /// Says how far it is.
        does migration_set_state(state: u8, description: Text);
        /// Ends it.
        does migration_remove();
        /// What is known of it.
        asks migration_get() -> Migration;
    }
}

/// Of an object map, and of data objects.
pub mod data {
    use super::*;

    methods! {
        /// Writes all of it.
        does object_map_save(map: ObjectMap);
        /// Has it tell of so many objects. `ESTALE` if one that is left out is not in the state that new ones are in.
        does object_map_resize(objects: u64, new: u8);
        /// Sets objects from one to before another, those that are in the state that is named, if one is.
        does object_map_update(from: u64, to: u64, new: u8, current: Option<u8>);
        /// What becomes of the head's map when a snapshot is taken.
        does object_map_snap_add();
        /// What becomes of a map when the snapshot before it goes, whose map is given.
        does object_map_snap_remove(map: ObjectMap);
        /// The map.
        asks object_map_load() -> ObjectMap;
        /// Makes the object of these extents and their bytes, one after the other, if there is none.
        does sparse_copyup(extents: BTreeMap<u64, u64>, bytes: Text);
    }

    /// Makes the object of these bytes, if there is none.
    pub fn copyup(bytes: Vec<u8>) -> Call {
        Call { method: "copyup", input: bytes }
    }
}

/// Of the [trash](crate::names::TRASH).
pub mod trash {
    use super::*;

    methods! {
        /// Puts an image there. `EEXIST` if it is there.
        does trash_add(id: Text, image: Trashed);
        /// Takes it out.
        does trash_remove(id: Text);
        /// Says how far its removal, or its return, is. `ESTALE` if it was not in the state that is expected.
        does trash_state_set(id: Text, state: u8, expected: u8);
        /// What is known of it.
        asks trash_get(id: Text) -> Trashed;
        /// Images by their ids, in their order, behind one of them.
        asks trash_list(after: Text, max: u64) -> BTreeMap<Text, Trashed>;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tests::bytes;

    #[test]
    fn methods_are_given_their_arguments_one_after_the_other() {
        let create = header::create(1 << 24, 22, 61, "rbd_data.1".into(), -1);
        assert_eq!(create.method, "create");
        assert_eq!(
            create.input,
            bytes("0000000100000000 16 3d00000000000000 0a000000 \"rbd_data.1\" ffffffffffffffff")
        );
        let update = data::object_map_update(1, 3, 1, Some(0));
        assert_eq!(update.input, bytes("0100000000000000 0300000000000000 01 01 00"));
        assert_eq!(data::copyup(b"raw".to_vec()).input, b"raw");
        let ask = header::get_size(7);
        assert_eq!((ask.method, &ask.input[..]), ("get_size", &bytes("0700000000000000")[..]));
        assert_eq!(ask.read(&bytes("16 0000000100000000")), Ok((22, 1 << 24)));
    }
}
