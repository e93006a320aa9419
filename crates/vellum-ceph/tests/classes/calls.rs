//! Random calls of the class `rbd`.

use std::collections::BTreeMap;

use rand::RngExt;
use rand::rngs::StdRng;
use vellum_rados::{Found, ReadStep, WriteOp};
use vellum_rbd::Text;
use vellum_rbd::method::{self, CLASS, Call};
use vellum_rbd::names::HEAD;
use vellum_rbd::object_map::ObjectMap;
use vellum_rbd::records::{Child, ParentSpec, Protection, Purpose, SnapshotInfo, Trashed};
use vellum_rbd::wire::Time;
use vellum_rbd::{Decode, Encode};

use crate::both::Both;

const CALLS: usize = 250;

fn one_of<T: Clone>(chance: &mut StdRng, all: &[T]) -> T {
    all[chance.random_range(0..all.len())].clone()
}

fn name(chance: &mut StdRng) -> Text {
    one_of(chance, &["a", "b", "c"]).into()
}

fn id(chance: &mut StdRng) -> Text {
    one_of(chance, &["1a", "2b", "3c", "", "no-id"]).into()
}

fn call(both: &Both, object: &str, Call { method, input }: Call) {
    let _ = both.write(0, object, &WriteOp::new().call(CLASS, method, input));
}

/// Asks for something, which both must answer alike once it is made comparable.
fn ask(
    both: &Both,
    object: &str,
    method: &'static str,
    input: Vec<u8>,
    comparable: impl Fn(Vec<u8>) -> Vec<u8>,
) {
    let step = ReadStep::Call { class: CLASS, method, input };
    let (memory, real) = both.look(object, &step);
    let comparable = |found| match found {
        Found::Output(output) => comparable(output),
        other => panic!("{other:?}"),
    };
    assert_eq!(memory.map(comparable), real.map(comparable), "{object}: {step:?}");
}

/// Asks without more ado.
macro_rules! ask {
    ($both:expr, $object:expr, $ask:expr) => {{
        let ask = $ask;
        ask_as($both, $object, ask.method, ask.input)
    }};
}

fn ask_as(both: &Both, object: &str, method: &'static str, input: Vec<u8>) {
    ask(both, object, method, input, |output| output);
}

pub(crate) fn directories(both: &Both, chance: &mut StdRng, seed: u64) {
    use method::{directory, id as ids, layering, metadata};
    let object = &format!("directory.{seed}");
    both.write(0, object, &WriteOp::new().create(false)).unwrap();
    let named = &format!("id.{seed}");
    both.write(0, named, &WriteOp::new().create(false)).unwrap();
    for _ in 0..CALLS {
        let (a, b, c) = (name(chance), name(chance), id(chance));
        let snapshot = chance.random_range(1..3);
        match chance.random_range(0..14) {
            0..3 => call(both, object, directory::dir_add_image(a, c)),
            3 => call(both, object, directory::dir_remove_image(a, c)),
            4..6 => call(both, object, directory::dir_rename_image(a, b, c)),
            6 => ask!(both, object, directory::dir_get_id(a)),
            7 => ask!(both, object, directory::dir_get_name(c)),
            8 => ask!(both, object, directory::dir_list(a, chance.random_range(1..3))),
            9 => {
                let values = BTreeMap::from([(a, b)]);
                call(both, object, metadata::metadata_set(values));
                ask!(both, object, metadata::metadata_list(c, chance.random_range(0..3)));
            }
            10 => call(both, object, metadata::metadata_remove(a)),
            11 => {
                call(both, object, layering::add_child(1, a.clone(), snapshot, c));
                ask!(both, object, layering::get_children(1, a, snapshot));
            }
            12 => call(both, object, layering::remove_child(1, a, snapshot, c)),
            _ => {
                ask!(both, named, ids::get_id());
                call(both, named, ids::set_id(c));
                ask!(both, named, ids::get_id());
            }
        }
        both.hold_the_same(object);
    }
}

pub(crate) fn trash(both: &Both, chance: &mut StdRng, seed: u64) {
    use method::trash;
    let object = &format!("trash.{seed}");
    both.write(0, object, &WriteOp::new().create(false)).unwrap();
    for _ in 0..CALLS {
        let id = id(chance);
        let state = |chance: &mut StdRng| chance.random_range(0..4_u8);
        match chance.random_range(0..7) {
            0..2 => {
                let time = Time { seconds: chance.random_range(0..9), nanoseconds: 7 };
                let (source, state) = (chance.random_range(0..5), state(chance));
                let name = name(chance);
                let image = Trashed { source, name, since: time, until: time, state };
                call(both, object, trash::trash_add(id, image));
            }
            2 => call(both, object, trash::trash_remove(id)),
            3..5 => {
                call(both, object, trash::trash_state_set(id, state(chance), state(chance)));
            }
            5 => ask!(both, object, trash::trash_get(id)),
            _ => ask!(both, object, trash::trash_list(id, chance.random_range(0..4))),
        }
        both.hold_the_same(object);
    }
}

pub(crate) fn headers(both: &Both, chance: &mut StdRng, seed: u64) {
    use method::header;
    let object = &format!("header.{seed}");
    both.write(0, object, &WriteOp::new().create(false)).unwrap();
    // Nothing is known of what was not begun.
    ask!(both, object, header::get_size(HEAD));
    call(both, object, header::set_size(7));
    for features in [1 << 20, 0x80] {
        call(both, object, header::create(1 << 24, 22, features, "p".into(), -1));
    }
    let features = one_of(chance, &[0x3d, 0x1, 0x1d, 0x3f, 0x0]);
    call(both, object, header::create(1 << 24, 22, features, "".into(), -1));
    call(both, object, header::create(1 << 24, 22, features, "rbd_data.1".into(), 7));
    call(both, object, header::create(1 << 24, 22, features, "rbd_data.1".into(), -1));
    call(both, object, header::create(1 << 24, 22, features, "rbd_data.1".into(), -1));
    both.hold_the_same(object);
    let mut newest = 0;
    for _ in 0..CALLS {
        let any = chance.random_range(0..9);
        let of = one_of(chance, &[HEAD, newest, newest.saturating_sub(1), any]);
        if chance.random_bool(0.5) {
            head_call(both, chance, object, of);
        } else {
            snapshot_call(both, chance, object, of, &mut newest);
        }
        both.hold_the_same(object);
    }
}

fn head_call(both: &Both, chance: &mut StdRng, object: &str, of: u64) {
    use method::header;
    let bits = |chance: &mut StdRng| chance.random_range(0..64_u64);
    match chance.random_range(0..14) {
        0 => call(both, object, header::set_size(chance.random_range(0..1 << 25))),
        1 => {
            let mask = one_of(chance, &[4, 8, 0x1c, 0x20, 1, 0x100, 1 << 30]);
            call(both, object, header::set_features(one_of(chance, &[0, mask]), mask));
        }
        2 => {
            let unit = one_of(chance, &[0, 4096, 1 << 22, 1 << 23, 5000]);
            call(both, object, header::set_stripe_unit_count(unit, chance.random_range(0..3)));
        }
        3 => call(both, object, header::set_flags(bits(chance) & 3, bits(chance) & 3, of)),
        4 => {
            call(both, object, header::op_features_set(bits(chance) & 31, bits(chance) & 31));
        }
        5 => ask!(both, object, header::get_size(of)),
        6 => ask!(both, object, header::get_features(of, chance.random_bool(0.5))),
        7 => ask!(both, object, header::get_object_prefix()),
        8 => ask!(both, object, header::get_data_pool()),
        9 => ask!(both, object, header::get_snapcontext()),
        10 => ask!(both, object, header::get_stripe_unit_count()),
        11 => ask!(both, object, header::get_flags(of)),
        12 => ask!(both, object, header::op_features_get()),
        _ => call(both, object, header::set_modify_timestamp()),
    }
}

fn snapshot_call(both: &Both, chance: &mut StdRng, object: &str, of: u64, newest: &mut u64) {
    use method::{layering, snapshot};
    let child = Child { pool: 2, image: name(chance), namespace: "".into() };
    match chance.random_range(0..16) {
        0..3 => {
            let id = *newest + one_of(chance, &[0, 1, 1, 1]);
            call(both, object, snapshot::snapshot_add(name(chance), id, Purpose::User));
            *newest = id.max(*newest);
        }
        3 => call(both, object, snapshot::snapshot_remove(of)),
        4 => call(both, object, snapshot::snapshot_rename(of, name(chance))),
        5 => call(both, object, snapshot::snapshot_trash_add(of)),
        6 => {
            let protection = one_of(
                chance,
                &[Protection::Unprotected, Protection::Unprotecting, Protection::Protected],
            );
            call(both, object, snapshot::set_protection_status(of, protection));
        }
        7 => {
            let asked = snapshot::snapshot_get(of);
            ask(both, object, asked.method, asked.input, |output| {
                let mut info = SnapshotInfo::from_bytes(&output).unwrap();
                info.time = Time::default();
                if matches!(info.purpose, Purpose::Trash { .. }) {
                    info.name = "".into();
                }
                info.to_bytes()
            });
        }
        8 => ask!(both, object, snapshot::get_protection_status(of)),
        9 => {
            let of = ParentSpec {
                pool: one_of(chance, &[1, 1, -1]),
                namespace: "".into(),
                image: one_of(chance, &["1a", "1a", "2b", ""]).into(),
                snapshot: one_of(chance, &[4, 4, HEAD]),
            };
            let overlap = one_of(chance, &[0, 1 << 20, 1 << 25]);
            call(both, object, layering::parent_attach(of, overlap, chance.random_bool(0.2)));
        }
        10 => call(both, object, layering::parent_detach()),
        11 => ask!(both, object, layering::parent_get()),
        12 => ask!(both, object, layering::parent_overlap_get(of)),
        13 => call(both, object, layering::child_attach(of, child)),
        14 => call(both, object, layering::child_detach(of, child)),
        _ => ask!(both, object, layering::children_list(of)),
    }
}

pub(crate) fn maps(both: &Both, chance: &mut StdRng, seed: u64) {
    use method::data;
    let object = &format!("map.{seed}");
    both.write(0, object, &WriteOp::new().create(false)).unwrap();
    call(both, object, data::object_map_resize(20, 0));
    for number in 0..CALLS {
        let (from, to) = (chance.random_range(0..40), chance.random_range(0..45));
        let state = |chance: &mut StdRng| chance.random_range(0..4_u8);
        match chance.random_range(0..12) {
            0 => call(both, object, data::object_map_resize(from, state(chance))),
            1..6 => {
                let current = chance.random_bool(0.5).then(|| state(chance));
                call(both, object, data::object_map_update(from, to, state(chance), current));
            }
            6 => call(both, object, data::object_map_snap_add()),
            7 => {
                let mut gone = ObjectMap::new(chance.random_range(0..30));
                for object in 0..gone.objects() {
                    if chance.random_bool(0.3) {
                        gone.set(object, vellum_rbd::object_map::Existence::Present);
                    }
                }
                call(both, object, data::object_map_snap_remove(gone));
            }
            8 => call(both, object, data::object_map_save(ObjectMap::new(from))),
            _ => {}
        }
        let asked = data::object_map_load();
        // The answer of a real cluster has no checksums, and anything behind the last object.
        ask(both, object, asked.method, asked.input, |output| {
            let map = ObjectMap::from_bytes(&output).unwrap();
            (0..map.objects()).map(|object| map.get(object) as u8).collect()
        });
        let copied = &format!("copied.{seed}.{}", number % 5);
        if chance.random_bool(0.5) {
            call(both, copied, data::copyup(vec![number as u8; chance.random_range(0..9)]));
        } else {
            let extents = BTreeMap::from([(from, 3), (from + 9, 4)]);
            call(both, copied, data::sparse_copyup(extents, Text(vec![number as u8; 7])));
        }
        let (memory, real) = both.look(copied, &ReadStep::Stat);
        assert_eq!(memory, real, "{copied}");
    }
}
