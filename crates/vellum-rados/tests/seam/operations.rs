//! Steps on one object.

use std::collections::{BTreeMap, BTreeSet};

use vellum_core::Buffer;
use vellum_rados::{
    Failure, Found, Objects, ReadOp, ReadStep, SnapContext, SnapId, WriteOp, WriteStep,
};

use crate::{Place, bytes, look, write};

crate::cases! {
    all_steps_take_effect_or_none,
    what_is_created_exclusively_is_created_once,
    an_attribute_is_compared_and_changed_in_one_step,
    an_object_is_changed_only_at_the_version_that_was_asserted,
    versions_grow_and_are_not_those_of_other_objects,
    a_key_is_compared_and_a_missing_one_is_empty,
    bytes_are_compared_where_they_lie,
    an_object_is_truncated_zeroed_and_removed,
    keys_are_listed_by_prefix_in_pieces,
    data_goes_into_a_part_of_a_buffer_that_comes_back_whatever_happens,
    attributes_length_and_data_are_of_one_moment,
    a_class_works_on_an_object_and_one_that_is_unknown_is_refused,
    many_operations_are_under_way_at_once,
    operations_on_one_object_take_effect_in_their_order,
    an_operation_whose_future_was_dropped_takes_effect,
    every_object_is_listed_once,
    every_pool_is_named_with_its_number,
    namespaces_keep_objects_apart,
    names_with_a_zero_byte_are_refused,
    a_range_of_no_bytes_is_refused_and_not_sent,
    a_look_that_was_refused_before_it_was_sent_leaves_nothing_behind,
    a_read_of_no_bytes_reads_none,
}

async fn all_steps_take_effect_or_none<P: Place>(place: P) {
    let pool = place.client().await;
    let op = WriteOp::new().write(0, "data").set_xattr("a", "1").set_omap("k", "v");
    write(&pool, "together", op).await.unwrap();
    assert_eq!(bytes(&pool, "together", 4).await.unwrap(), b"data");
    let call =
        WriteOp::new().write(0, "DATA").set_xattr("a", "2").call("rbd", "set_id", *b"\x01\0\0\0x");
    assert_eq!(write(&pool, "together", call).await, Err(Failure::EXISTS));
    assert_eq!(bytes(&pool, "together", 4).await.unwrap(), b"data");
    let xattrs = look(&pool, "together", ReadStep::Xattrs).await.unwrap();
    assert_eq!(xattrs, Found::Xattrs(BTreeMap::from([("a".to_owned(), b"1".to_vec())])));
    write(&pool, "nothing", WriteOp::new()).await.unwrap();
}

async fn what_is_created_exclusively_is_created_once<P: Place>(place: P) {
    let pool = place.client().await;
    let create = || write(&pool, "once", WriteOp::new().create(true).write(0, "x"));
    let (one, other) = tokio::join!(create(), create());
    assert!(one.is_ok() != other.is_ok(), "{one:?}, {other:?}");
    assert_eq!(one.and(other), Err(Failure::EXISTS));
    write(&pool, "once", WriteOp::new().create(false)).await.unwrap();
    let missing = write(&pool, "never", WriteOp::new().assert_exists().write(0, "x")).await;
    assert_eq!(missing, Err(Failure::NOT_FOUND));
    assert_eq!(bytes(&pool, "never", 1).await, Err(Failure::NOT_FOUND));
}

async fn version(pool: &impl Objects, object: &str) -> u64 {
    let op = ReadOp::new().then(ReadStep::Stat);
    let done = pool.read(object, SnapId::HEAD, op).await;
    done.result.map(|_| done.version).unwrap()
}

async fn an_object_is_changed_only_at_the_version_that_was_asserted<P: Place>(place: P) {
    let pool = place.client().await;
    let missing = WriteOp::new().assert_version(1).write(0, "x");
    assert_eq!(write(&pool, "versioned", missing).await, Err(Failure::NOT_FOUND));
    write(&pool, "versioned", WriteOp::new().write(0, "one")).await.unwrap();
    let first = version(&pool, "versioned").await;
    let second = WriteOp::new().assert_version(first).write(0, "two");
    write(&pool, "versioned", second.clone()).await.unwrap();
    // Older than what is there, and newer.
    let newer = WriteOp::new().assert_version(first + (1 << 40)).write(0, "six");
    for op in [second, newer] {
        assert_eq!(write(&pool, "versioned", op).await, Err(Failure::MISMATCH));
    }
    assert_eq!(bytes(&pool, "versioned", 3).await.unwrap(), b"two");
    // Attributes, keys and methods of classes count as well.
    for op in [
        WriteOp::new().set_xattr("a", "1"),
        WriteOp::new().set_omap("k", "v"),
        WriteOp::new().call("lock", "lock", asked_for_a_lock()),
    ] {
        let before = version(&pool, "versioned").await;
        let changed = write(&pool, "versioned", op).await;
        if changed == Err(Failure::UNSUPPORTED) {
            continue;
        }
        changed.unwrap();
        assert!(version(&pool, "versioned").await > before);
    }
}

/// To take a lock, as the class of a real cluster wants to be asked: its name, exclusively, with no cookie, tag or description.
fn asked_for_a_lock() -> Vec<u8> {
    let fields = [&1_u32.to_le_bytes()[..], b"x", &[1], &[0; 12], &[0; 8], &[0]].concat();
    [&[1, 1][..], &(fields.len() as u32).to_le_bytes(), &fields].concat()
}

async fn versions_grow_and_are_not_those_of_other_objects<P: Place>(place: P) {
    let pool = place.client().await;
    for object in ["grows", "other"] {
        write(&pool, object, WriteOp::new().write(0, "x")).await.unwrap();
    }
    let (before, other) = (version(&pool, "grows").await, version(&pool, "other").await);
    write(&pool, "grows", WriteOp::new().write(0, "y")).await.unwrap();
    assert!(version(&pool, "grows").await > before);
    assert_eq!(version(&pool, "other").await, other);
    // One that comes again is not at a version that it was at before.
    let before = version(&pool, "grows").await;
    write(&pool, "grows", WriteOp::new().remove()).await.unwrap();
    write(&pool, "grows", WriteOp::new().write(0, "z")).await.unwrap();
    assert!(version(&pool, "grows").await > before);
}

async fn an_attribute_is_compared_and_changed_in_one_step<P: Place>(place: P) {
    let pool = place.client().await;
    let swap = |from: &str, to: &str| {
        write(&pool, "swap", WriteOp::new().compare_xattr("v", from).set_xattr("v", to))
    };
    assert_eq!(swap("", "1").await, Err(Failure::NOT_FOUND), "there is no object");
    write(&pool, "swap", WriteOp::new().create(true)).await.unwrap();
    swap("", "1").await.unwrap();
    assert_eq!(swap("", "2").await, Err(Failure::MISMATCH));
    swap("1", "2").await.unwrap();
    let gone = WriteOp::new().then(WriteStep::RemoveXattr("v".to_owned()));
    write(&pool, "swap", gone).await.unwrap();
    swap("", "3").await.unwrap();
}

async fn a_key_is_compared_and_a_missing_one_is_empty<P: Place>(place: P) {
    let pool = place.client().await;
    let set = |from: &[u8], to: &[u8]| {
        write(&pool, "keys", WriteOp::new().compare_omap(*b"k\0y", from).set_omap(*b"k\0y", to))
    };
    write(&pool, "keys", WriteOp::new().create(true)).await.unwrap();
    set(b"", b"\0\xff").await.unwrap();
    assert_eq!(set(b"", b"x").await, Err(Failure::MISMATCH));
    set(b"\0\xff", b"").await.unwrap();
    let keys = BTreeSet::from([b"k\0y".to_vec(), b"other".to_vec()]);
    let found = look(&pool, "keys", ReadStep::OmapKeys(keys.clone())).await.unwrap();
    let values = BTreeMap::from([(b"k\0y".to_vec(), Vec::new())]);
    assert_eq!(found, Found::Omap { values, more: false });
    write(&pool, "keys", WriteOp::new().then(WriteStep::RemoveOmap(keys.clone()))).await.unwrap();
    let found = look(&pool, "keys", ReadStep::OmapKeys(keys)).await.unwrap();
    assert_eq!(found, Found::Omap { values: BTreeMap::new(), more: false });
}

async fn bytes_are_compared_where_they_lie<P: Place>(place: P) {
    let pool = place.client().await;
    write(&pool, "compare", WriteOp::new().write(0, "abcdef")).await.unwrap();
    let change = |offset, data: &'static str| {
        let compare = WriteStep::CompareExtent { offset, data: data.into() };
        write(&pool, "compare", WriteOp::new().then(compare).write(0, "ABC"))
    };
    assert_eq!(change(2, "cdX").await, Err(Failure::MISMATCH));
    assert_eq!(bytes(&pool, "compare", 6).await.unwrap(), b"abcdef");
    change(2, "cd").await.unwrap();
    change(5, "f\0\0").await.unwrap();
    assert_eq!(bytes(&pool, "compare", 6).await.unwrap(), b"ABCdef");
}

async fn an_object_is_truncated_zeroed_and_removed<P: Place>(place: P) {
    let pool = place.client().await;
    let step = |step| write(&pool, "shrink", WriteOp::new().then(step));
    step(WriteStep::Zero { offset: 0, length: 9 }).await.unwrap();
    step(WriteStep::Truncate(9)).await.unwrap();
    assert_eq!(bytes(&pool, "shrink", 1).await, Err(Failure::NOT_FOUND), "neither makes one");
    step(WriteStep::WriteFull("0123456789".into())).await.unwrap();
    step(WriteStep::Zero { offset: 2, length: 3 }).await.unwrap();
    step(WriteStep::Truncate(7)).await.unwrap();
    step(WriteStep::AllocHint { object_size: 4 << 20, write_size: 4 << 20 }).await.unwrap();
    assert_eq!(bytes(&pool, "shrink", 9).await.unwrap(), b"01\x00\x00\x0056??");
    assert_eq!(look(&pool, "shrink", ReadStep::Stat).await, Ok(Found::Length(7)));
    step(WriteStep::Remove).await.unwrap();
    assert_eq!(step(WriteStep::Remove).await, Err(Failure::NOT_FOUND));
    assert_eq!(look(&pool, "shrink", ReadStep::AssertExists).await, Err(Failure::NOT_FOUND));
}

async fn keys_are_listed_by_prefix_in_pieces<P: Place>(place: P) {
    let pool = place.client().await;
    let all: BTreeMap<Vec<u8>, Vec<u8>> = (0..25_u8)
        .map(|number| (format!("image_{number:02}").into_bytes(), vec![number]))
        .chain([(b"other".to_vec(), Vec::new()), (b"a".to_vec(), Vec::new())])
        .collect();
    write(&pool, "listed", WriteOp::new().then(WriteStep::SetOmap(all))).await.unwrap();
    let (mut after, mut listed) = (String::new(), Vec::new());
    loop {
        let step = ReadStep::Omap { after, prefix: "image_".to_owned(), max: 10 };
        let Found::Omap { values, more } = look(&pool, "listed", step).await.unwrap() else {
            panic!("keys were asked for");
        };
        assert!(values.len() <= 10);
        after = String::from_utf8(values.keys().last().unwrap().clone()).unwrap();
        listed.extend(values.into_values().flatten());
        if !more {
            break;
        }
    }
    assert_eq!(listed, (0..25).collect::<Vec<u8>>());
}

async fn data_goes_into_a_part_of_a_buffer_that_comes_back_whatever_happens<P: Place>(place: P) {
    let pool = place.client().await;
    write(&pool, "part", WriteOp::new().write(0, "0123456789")).await.unwrap();
    for (object, at, filled, expected) in [
        ("part", 3, Some(4), &b"??3456????"[..]),
        ("part", 8, Some(2), b"??89??????"),
        ("part", 99, Some(0), b"??????????"),
        ("absent", 0, None, b"??????????"),
    ] {
        let buffer = Buffer::from_vec(vec![b'?'; 10]);
        let done = pool.read(object, SnapId::HEAD, ReadOp::new().data(at, buffer, 2..6)).await;
        assert_eq!(done.buffer.unwrap()[..], *expected, "{object} from {at}");
        assert_eq!(done.result.ok().map(|(read, _)| read), filled, "{object} from {at}");
    }
    let buffer = Buffer::from_vec(vec![0; 10]);
    let done = pool.read("part", SnapId::HEAD, ReadOp::new().data(0, buffer, 5..11)).await;
    assert_eq!((done.buffer.unwrap().len(), done.result), (10, Err(Failure::INVALID)));
}

async fn attributes_length_and_data_are_of_one_moment<P: Place>(place: P) {
    let pool = place.client().await;
    let change = |number: u8| {
        let data = vec![number; usize::from(number) + 1];
        let op = WriteOp::new().then(WriteStep::WriteFull(data.into()));
        write(&pool, "moment", op.set_xattr("number", [number]))
    };
    change(0).await.unwrap();
    let writer = async {
        for number in 0..200 {
            change(number).await.unwrap();
        }
    };
    let reader = async {
        for _ in 0..200 {
            let buffer = Buffer::from_vec(vec![0; 300]);
            let op = ReadOp::new().then(ReadStep::Stat).then(ReadStep::Xattrs);
            let done = pool.read("moment", SnapId::HEAD, op.data(0, buffer, 0..300)).await;
            let (read, found) = done.result.unwrap();
            let [Found::Length(length), Found::Xattrs(xattrs)] = &found[..] else {
                panic!("{found:?}");
            };
            let number = xattrs["number"][0];
            assert_eq!((read as u64, *length), (u64::from(number) + 1, u64::from(number) + 1));
            assert!(done.buffer.unwrap()[..read].iter().all(|byte| *byte == number));
        }
    };
    tokio::join!(writer, reader);
}

async fn a_class_works_on_an_object_and_one_that_is_unknown_is_refused<P: Place>(place: P) {
    let pool = place.client().await;
    let id = [&4_u32.to_le_bytes()[..], b"abcd"].concat();
    let set = || WriteOp::new().create(false).call("rbd", "set_id", id.clone());
    write(&pool, "rbd_id.x", set()).await.unwrap();
    assert_eq!(write(&pool, "rbd_id.x", set()).await, Err(Failure::EXISTS));
    let get = |class, method| ReadStep::Call { class, method, input: Vec::new() };
    let found = look(&pool, "rbd_id.x", get("rbd", "get_id")).await;
    assert_eq!(found, Ok(Found::Output(id.clone())));
    let unknown = look(&pool, "rbd_id.x", get("nobodys", "get_id")).await.unwrap_err();
    assert!([Failure::NOT_PERMITTED, Failure::UNSUPPORTED].contains(&unknown), "{unknown:?}");
    let unknown = look(&pool, "rbd_id.x", get("rbd", "nobodys")).await.unwrap_err();
    assert_eq!(unknown, Failure::UNSUPPORTED);
}

async fn many_operations_are_under_way_at_once<P: Place>(place: P) {
    let pool = place.client().await;
    let work = (0..2000_u32).map(|number| {
        let pool = pool.clone();
        tokio::spawn(async move {
            let object = format!("many.{number}");
            let data = number.to_le_bytes().to_vec();
            write(&pool, &object, WriteOp::new().write(0, data.clone())).await.unwrap();
            assert_eq!(bytes(&pool, &object, 4).await.unwrap(), data);
        })
    });
    for done in futures::future::join_all(work).await {
        done.unwrap();
    }
}

async fn operations_on_one_object_take_effect_in_their_order<P: Place>(place: P) {
    let pool = place.client().await;
    let writes =
        (0..100_u8).map(|number| write(&pool, "order", WriteOp::new().write(0, vec![number])));
    // Polled one after the other, and answered in whatever order.
    for done in futures::future::join_all(writes).await {
        done.unwrap();
    }
    assert_eq!(bytes(&pool, "order", 1).await.unwrap(), [99]);
}

async fn an_operation_whose_future_was_dropped_takes_effect<P: Place>(place: P) {
    let pool = place.client().await;
    for number in 0..50_u8 {
        let context = SnapContext::default();
        let op = WriteOp::new().write(0, vec![number; 1 << 16]);
        let mut dropped = Box::pin(pool.write("dropped", &context, op));
        let _ = futures::poll!(&mut dropped);
        let buffer = Buffer::from_vec(vec![0; 1 << 16]);
        let op = ReadOp::new().data(0, buffer, 0..1 << 16);
        let mut read = Box::pin(pool.read("dropped", SnapId::HEAD, op));
        let _ = futures::poll!(&mut read);
    }
    // What comes later to the same object waits for them.
    write(&pool, "dropped", WriteOp::new().write(1 << 16, "end")).await.unwrap();
    assert_eq!(bytes(&pool, "dropped", 1 << 16).await.unwrap(), [49; 1 << 16]);
}

async fn every_object_is_listed_once<P: Place>(place: P) {
    let client = place.client().await;
    let pool = place.other(&client, "rbd2", "listed").await;
    let all: BTreeSet<String> = (0..2500).map(|number| format!("o{number}")).collect();
    let make = |object: &String| {
        let (pool, object) = (pool.clone(), object.clone());
        async move { write(&pool, &object, WriteOp::new().create(true)).await.unwrap() }
    };
    futures::future::join_all(all.iter().map(make)).await;
    let (mut list, mut listed) = (pool.list(), Vec::new());
    while let Some(names) = list.next().await {
        listed.extend(names.unwrap());
    }
    assert_eq!(listed.len(), all.len());
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), all);
    // One that nobody takes ends.
    drop(pool.list());
    let mut begun = pool.list();
    begun.next().await.unwrap().unwrap();
}

async fn every_pool_is_named_with_its_number<P: Place>(place: P) {
    let client = place.client().await;
    let pools = client.pools().await.unwrap();
    for name in ["rbd", "rbd2"] {
        let number = place.other(&client, name, "").await.pool();
        assert!(pools.contains(&(number, name.to_owned())), "{name} is not in {pools:?}");
    }
}

async fn namespaces_keep_objects_apart<P: Place>(place: P) {
    let here = place.client().await;
    let there = place.other(&here, "rbd", "apart").await;
    assert_eq!(here.pool(), there.pool());
    write(&there, "apart", WriteOp::new().write(0, "there")).await.unwrap();
    assert_eq!(bytes(&here, "apart", 5).await, Err(Failure::NOT_FOUND));
    assert_eq!(bytes(&there, "apart", 5).await.unwrap(), b"there");
}

async fn names_with_a_zero_byte_are_refused<P: Place>(place: P) {
    let pool = place.client().await;
    let op = || WriteOp::new().create(false);
    assert_eq!(write(&pool, "a\0b", op()).await, Err(Failure::INVALID));
    assert_eq!(write(&pool, "x", op().set_xattr("a\0b", "")).await, Err(Failure::INVALID));
    assert_eq!(bytes(&pool, "a\0b", 1).await, Err(Failure::INVALID));
    assert_eq!(bytes(&pool, "x", 1).await, Err(Failure::NOT_FOUND), "nothing was begun");
}

async fn a_range_of_no_bytes_is_refused_and_not_sent<P: Place>(place: P) {
    let pool = place.client().await;
    let zero = WriteStep::Zero { offset: 1, length: 0 };
    for nothing in [zero, WriteStep::WriteFull(bytes::Bytes::new())] {
        let refused = write(&pool, "range", WriteOp::new().write(0, "abc").then(nothing)).await;
        assert_eq!(refused, Err(Failure::INVALID));
    }
    assert_eq!(bytes(&pool, "range", 3).await, Err(Failure::NOT_FOUND));
}

async fn a_look_that_was_refused_before_it_was_sent_leaves_nothing_behind<P: Place>(place: P) {
    let pool = place.client().await;
    write(&pool, "refused", WriteOp::new().set_omap("k", "v")).await.unwrap();
    let omap = || ReadStep::Omap { after: String::new(), prefix: String::new(), max: 10 };
    let keys = ReadStep::OmapKeys(BTreeSet::from([b"k".to_vec()]));
    for step in [omap(), keys, ReadStep::Xattrs, ReadStep::Stat] {
        let buffer = Buffer::from_vec(vec![0; 4]);
        let op = ReadOp::new().then(omap()).then(step).data(0, buffer, 0..5);
        let done = pool.read("refused", SnapId::HEAD, op).await;
        assert_eq!((done.result, done.buffer.unwrap().len()), (Err(Failure::INVALID), 4));
    }
}

async fn a_read_of_no_bytes_reads_none<P: Place>(place: P) {
    let pool = place.client().await;
    write(&pool, "none", WriteOp::new().write(0, "abc")).await.unwrap();
    let read = async |object| {
        let buffer = Buffer::from_vec(vec![b'?'; 4]);
        let done = pool.read(object, SnapId::HEAD, ReadOp::new().data(0, buffer, 2..2)).await;
        (done.result, done.buffer.unwrap().to_vec())
    };
    assert_eq!(read("none").await, (Ok((0, Vec::new())), b"????".to_vec()));
    assert_eq!(read("never").await, (Err(Failure::NOT_FOUND), b"????".to_vec()));
}
