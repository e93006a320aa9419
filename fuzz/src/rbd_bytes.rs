//! The RBD format as pure functions: what the keys of headers and directories hold, locks, object maps, and what clients say.
//!
//! An input says which, and the bytes. What is accepted must have been understood: written and read again it is the same. An
//! object map that was changed after it was written is refused, or says of each object what it said before.

use std::collections::BTreeSet;
use std::fmt::Debug;

use vellum_rbd::lock::{Lock, watch_of};
use vellum_rbd::notify::{Answer, Heard, Message};
use vellum_rbd::object_map::{Existence, ObjectMap};
use vellum_rbd::records::{Child, Migration, Parent, Snapshot, SnapshotInfo, Trashed};
use vellum_rbd::{Decode, Encode, Text, names};

use crate::input::Input;

/// See the module.
pub fn look_at(data: &[u8]) {
    let mut input = Input::new(data);
    let which = input.u8();
    match which % 12 {
        0 => again::<Parent>(input.rest()),
        1 => again::<BTreeSet<Child>>(input.rest()),
        2 => again::<Snapshot>(input.rest()),
        3 => again::<SnapshotInfo>(input.rest()),
        4 => again::<Trashed>(input.rest()),
        5 => again::<Migration>(input.rest()),
        6 => lock(input.rest()),
        7 => message(input.rest()),
        8 => heard(input.rest()),
        9 => again::<ObjectMap>(input.rest()),
        10 => changed_map(&mut input),
        _ => name(input.rest()),
    }
}

/// What is accepted is the same once it was written and read again.
pub(crate) fn again<T: Decode + Encode + PartialEq + Debug>(bytes: &[u8]) {
    match T::from_bytes(bytes) {
        Ok(value) => assert_eq!(T::from_bytes(&value.to_bytes()).as_ref(), Ok(&value)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// What is not understood of a client of another version is not said again.
fn message(bytes: &[u8]) {
    if !matches!(Message::from_bytes(bytes), Ok(Message::Unknown(_))) {
        again::<Message>(bytes);
    }
}

fn lock(bytes: &[u8]) {
    again::<Lock>(bytes);
    if let Some((holder, _)) = Lock::from_bytes(bytes).as_ref().ok().and_then(Lock::managed_holder)
    {
        let _ = watch_of(&holder.cookie);
    }
}

fn heard(bytes: &[u8]) {
    if let Ok(heard) = Heard::from_bytes(bytes) {
        let _ = heard.answer();
    }
    again::<Answer>(bytes);
}

/// A map that says what the input wants, and one byte of it changed.
fn changed_map(input: &mut Input<'_>) {
    let (at, mask) = (usize::from(input.u16()), input.u8());
    let bytes = input.rest();
    let mut map = ObjectMap::new(bytes.len() as u64);
    for (object, byte) in bytes.iter().enumerate() {
        map.set(object as u64, Existence::ALL[usize::from(byte % 4)]);
    }
    let mut written = map.to_bytes();
    again::<ObjectMap>(&written);
    let length = written.len();
    written[at % length] ^= mask;
    if let Ok(read) = ObjectMap::from_bytes(&written) {
        assert!((0..map.objects()).all(|object| read.get(object) == map.get(object)));
    }
}

fn name(bytes: &[u8]) {
    let text = Text(bytes.to_vec());
    again::<Text>(&text.to_bytes());
    let Some(text) = text.as_str() else { return };
    let prefix = names::data_prefix("1009ec872245", None);
    if let Some(number) = names::data_number(&prefix, text) {
        assert_eq!(names::data(&prefix, number), text);
    }
    if let Some(snapshot) = names::key::snapshot_id(text) {
        assert_eq!(names::key::snapshot(snapshot), text);
    }
}
