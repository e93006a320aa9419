//! What Vellum keeps on Ceph beside the RBD format, as pure functions; and whole pools in which others have written.
//!
//! An input says which. What is accepted of bytes must have been understood: written and read again it is the same. What is asked of
//! pools stands in `pool`.

mod pool;

use vellum_ceph::keys::{self, Elsewhere, Key, Sparse};
use vellum_ceph::pending::Pending;
use vellum_ceph::presence::Presence;
use vellum_ceph::states::ObjectStates;
use vellum_core::State;
use vellum_engine::RevisionId;

use crate::input::Input;
use crate::rbd_bytes::again;

/// See the module.
pub fn look_at(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 12 {
        0 => states(&mut input),
        1 => presence(&mut input),
        2 => key(&String::from_utf8_lossy(input.rest())),
        3 => again::<Sparse>(input.rest()),
        4 => again::<Elsewhere>(input.rest()),
        5 => again::<Pending>(input.rest()),
        _ => pool::look_at(&mut input),
    }
}

/// An attribute of an object of some units, and a change of some of them.
fn states(input: &mut Input<'_>) {
    let (all, shift) = (u32::from(input.u16()) % 4096 + 1, input.u8() % 32);
    let (from, to) = (u32::from(input.u16()) % all, u32::from(input.u16()) % all);
    let state = input.one_of(&[State::Inherited, State::Data, State::Zero]);
    let bytes = input.rest();
    let Ok(states) = ObjectStates::decode(bytes, shift, all) else { return };
    assert_eq!(states.encode(shift, all), bytes, "one way to write the same states");
    let units = from.min(to)..from.max(to);
    let changed = states.with(units.clone(), state, all);
    for unit in 0..all {
        let expected = if units.contains(&unit) { state } else { states.get(unit) };
        assert_eq!(changed.get(unit), expected, "unit {unit}");
    }
    let written = changed.encode(shift, all);
    assert_eq!(ObjectStates::decode(&written, shift, all), Ok(changed));
}

/// A page of a bitmap: its checksum is set right where the input wants it.
fn presence(input: &mut Input<'_>) {
    let (is_summed, page, from) = (input.u8() != 0, input.u64(), input.u64());
    let mut bytes = input.rest().to_vec();
    if is_summed {
        bytes.resize(512, 0);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    }
    let mut read = Presence::default();
    assert!(read.take_page(page, &bytes) || !is_summed || page > u64::MAX / 4096 - 1);
    let listed: Vec<u64> = read.iter().collect();
    assert!(listed.is_sorted() && listed.iter().all(|object| read.contains(*object)));
    assert_eq!(read.next(from), listed.iter().copied().find(|object| *object >= from));
    let mut again = Presence::default();
    for (page, bytes) in read.pages() {
        assert!(again.take_page(page, &bytes), "what was written is not read");
    }
    assert_eq!(again, read);
}

/// A key that is read prints as one that reads as the same; so does the name of a revision.
fn key(text: &str) {
    if let Some(key) = Key::read(text) {
        let again = match &key {
            Key::Auto(snapshot) => keys::auto(*snapshot),
            Key::Dropped(snapshot) => keys::dropped(*snapshot),
            Key::Child(snapshot, child) => keys::child(*snapshot, child),
            Key::Reader(client, watch) => keys::reader(*client, *watch),
        };
        assert_eq!(Key::read(&again), Some(key));
    }
    let (image, _) = text.split_once('@').unwrap_or((text, ""));
    if let Some(Some(snapshot)) = keys::snapshot_of(image, &RevisionId::new(text)) {
        assert_eq!(keys::snapshot_revision(image, snapshot).as_str(), text);
    }
}
