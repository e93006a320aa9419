//! The table of layering rules, one behaviour a test, in both modes.

use vellum_core::{Extent, Geometry};
use vellum_engine::count::{CountCatalog, Counts, Operation};
use vellum_engine::paced::{Pace, PacedCatalog};
use vellum_engine::{Catalog, ErrorKind, Layering};
use vellum_image::image::Open;
use vellum_image::{
    CloneOptions, CreateOptions, DiscardPolicy, FlattenOptions, Image, ImageOptions, Job,
    MappedKind, Pools, ZeroOptions, admin,
};

use super::fixture::*;

const SIZE: u64 = 1 << 20;
const OBJECT: u64 = 64 << 10;

#[tokio::test]
async fn a_child_reads_its_parent_until_it_writes_and_the_parent_never_changes() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        let fixture = Fixture::new().await;
        let (mut content, child) = fixture.child(SIZE, layering).await;
        let golden = content.clone();
        assert!(read_all(&child).await == content);
        for (offset, length) in
            [(0, 4096), (5000, 3), (70_000, 9000), (SIZE - 5, 5), (300_000, 200_000)]
        {
            let data = pattern(Extent::new(offset, length), 99);
            write(&child, offset, &data).await.unwrap();
            content[offset as usize..][..data.len()].copy_from_slice(&data);
            assert!(read_all(&child).await == content, "{layering:?} at {offset}");
        }
        assert!(read_all(&fixture.open_snapshot("gold", "s").await).await == golden);
        assert!(read_all(&fixture.open("gold").await).await == golden);
    }
}

#[tokio::test]
async fn an_aligned_write_to_a_fresh_sparse_clone_reads_nothing_and_stores_one_block() {
    let fixture = Fixture::new().await;
    let (_, child) = fixture.child(SIZE, Layering::Sparse).await;
    fixture.counts.reset();
    write(&child, 8192, &[1; 4096]).await.unwrap();
    assert_eq!(fixture.counts.calls(Operation::Read) + fixture.counts.calls(Operation::TryRead), 0);
    assert_eq!((own_data(&child).await, child.copy_ups()), (BLOCK, 0));
}

#[tokio::test]
async fn the_same_write_in_copy_up_mode_stores_one_object() {
    let fixture = Fixture::new().await;
    let (_, child) = fixture.child(SIZE, Layering::CopyUp).await;
    write(&child, 8192, &[1; 4096]).await.unwrap();
    assert_eq!(own_data(&child).await, OBJECT);
    write(&child, OBJECT - 10, &[1; 20]).await.unwrap();
    assert_eq!((own_data(&child).await, child.copy_ups()), (2 * OBJECT, 2));
    write(&child, 12_345, &[1; 7]).await.unwrap();
    assert_eq!((own_data(&child).await, child.copy_ups()), (2 * OBJECT, 2));
}

#[tokio::test]
async fn a_partial_write_copies_up_its_edges_only() {
    let fixture = Fixture::new().await;
    let (_, child) = fixture.child(SIZE, Layering::Sparse).await;
    write(&child, 4096 + 100, &[1; 3 * 4096]).await.unwrap();
    assert_eq!(own_data(&child).await, 4 * BLOCK);
    let read_bytes = fixture.counts.bytes(Operation::Read);
    assert!(read_bytes <= 2 * BLOCK, "{read_bytes} bytes were read from below");
}

#[tokio::test]
async fn an_own_snapshot_does_not_bring_back_copies_of_objects() {
    let fixture = Fixture::new().await;
    let (_, child) = fixture.child(SIZE, Layering::CopyUp).await;
    write(&child, 0, &[1; 10]).await.unwrap();
    child.snapshot(snapshot_name("s1"), false).await.unwrap();
    assert_eq!(own_data(&child).await, 0);
    write(&child, 4096, &[2; 4096]).await.unwrap();
    assert_eq!(own_data(&child).await, BLOCK, "the object is the image's own already");
    write(&child, OBJECT, &[2; 4096]).await.unwrap();
    assert_eq!(own_data(&child).await, BLOCK + OBJECT, "this one is still the parent's");
}

#[tokio::test]
async fn parts_of_the_parent_that_are_zero_take_no_data_on_copy_up() {
    let fixture = Fixture::new().await;
    fixture.create("gold", SIZE, CreateOptions::default()).await;
    let gold = fixture.open("gold").await;
    write(&gold, 0, &[5; 4096]).await.unwrap();
    gold.snapshot(snapshot_name("s"), false).await.unwrap();
    gold.close().await.unwrap();
    fixture.clone("gold", "s", "child", mode(Layering::CopyUp)).await;
    let child = fixture.open("child").await;
    write(&child, 2 * OBJECT + 5, &[1; 10]).await.unwrap();
    assert_eq!(
        own_data(&child).await,
        BLOCK,
        "an object that the parent does not have is not copied up"
    );
}

#[tokio::test]
async fn writing_zeroes_hides_the_parent_and_stores_nothing() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        let fixture = Fixture::new().await;
        let (mut content, child) = fixture.child(SIZE, layering).await;
        child.write_zeroes(Extent::new(OBJECT, 2 * OBJECT), ZeroOptions::default()).await.unwrap();
        content[OBJECT as usize..][..2 * OBJECT as usize].fill(0);
        assert!(read_all(&child).await == content);
        assert_eq!(own_data(&child).await, 0);
    }
}

#[tokio::test]
async fn writing_zeroes_at_any_alignment_zeroes_exactly_that() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        for (offset, length) in
            [(1, 1), (4095, 2), (100, 8192), (OBJECT - 1, 2), (SIZE - 4097, 4097), (3, SIZE - 7)]
        {
            let fixture = Fixture::new().await;
            let (mut content, child) = fixture.child(SIZE, layering).await;
            child.write_zeroes(Extent::new(offset, length), ZeroOptions::default()).await.unwrap();
            content[offset as usize..][..length as usize].fill(0);
            assert!(read_all(&child).await == content, "{layering:?} {offset}+{length}");
        }
    }
}

#[tokio::test]
async fn fast_zero_refuses_what_needs_a_copy_up_and_changes_nothing() {
    let fast = ZeroOptions { fast: true, ..ZeroOptions::default() };
    let cases =
        [(Layering::Sparse, Extent::new(100, 8192)), (Layering::CopyUp, Extent::new(4096, 4096))];
    for (layering, at) in cases {
        let fixture = Fixture::new().await;
        let (content, child) = fixture.child(SIZE, layering).await;
        let error = child.write_zeroes(at, fast).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(read(&child, Extent::new(0, 4096)).await == content[..4096]);
        child.write_zeroes(Extent::new(0, OBJECT), fast).await.unwrap();
        assert_eq!(read(&child, Extent::new(0, 4096)).await, [0; 4096]);
    }
}

#[tokio::test]
async fn zeroes_with_no_hole_are_data() {
    let fixture = Fixture::new().await;
    let (_, child) = fixture.child(SIZE, Layering::Sparse).await;
    let no_hole = ZeroOptions { no_hole: true, ..ZeroOptions::default() };
    child.write_zeroes(Extent::new(0, 8192), no_hole).await.unwrap();
    assert_eq!(own_data(&child).await, 8192);
    assert_eq!(read(&child, Extent::new(0, 8192)).await, [0; 8192]);
}

#[tokio::test]
async fn zeroes_over_nothing_leave_no_tombstones() {
    let fixture = Fixture::new().await;
    fixture.create("gold", 1 << 50, CreateOptions::default()).await;
    let gold = fixture.open("gold").await;
    write(&gold, 1 << 40, &[5; 4096]).await.unwrap();
    gold.snapshot(snapshot_name("s"), false).await.unwrap();
    fixture.clone("gold", "s", "child", CloneOptions::default()).await;
    let child = fixture.open("child").await;
    let all = Extent::new(0, 1 << 50);
    child.discard(all, DiscardPolicy::Zero, false).await.unwrap();
    let map = child.map(all, 100).await.unwrap();
    let zero: Vec<_> =
        map.iter().filter(|entry| entry.kind == MappedKind::Zero).map(|entry| entry.at).collect();
    assert_eq!(zero, [Extent::new(1 << 40, 4096)]);
    assert_eq!(map.last().unwrap().at.end(), 1 << 50);
}

#[tokio::test]
async fn a_whole_inherited_object_discarded_reads_zeros_or_the_parent_as_the_policy_says() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        let fixture = Fixture::new().await;
        let (content, child) = fixture.child(SIZE, layering).await;
        let object = Extent::new(OBJECT, OBJECT);
        let parent = &content[OBJECT as usize..2 * OBJECT as usize];
        child.discard(object, DiscardPolicy::Zero, false).await.unwrap();
        assert!(read(&child, object).await.iter().all(|byte| *byte == 0));
        child.discard(object, DiscardPolicy::Inherit, false).await.unwrap();
        assert!(read(&child, object).await == parent);
        write(&child, OBJECT + 17, &[9; 5000]).await.unwrap();
        child.discard(object, DiscardPolicy::Inherit, true).await.unwrap();
        assert!(read(&child, object).await == parent);
        assert_eq!(own_data(&child).await, 0);
    }
}

#[tokio::test]
async fn a_partial_discard_of_an_inherited_unit_copies_nothing_up() {
    for (layering, at) in
        [(Layering::Sparse, Extent::new(100, 3000)), (Layering::CopyUp, Extent::new(4096, 8192))]
    {
        let fixture = Fixture::new().await;
        let (content, child) = fixture.child(SIZE, layering).await;
        child.discard(at, DiscardPolicy::Zero, false).await.unwrap();
        child.discard(at, DiscardPolicy::Inherit, false).await.unwrap();
        assert_eq!((own_data(&child).await, child.copy_ups()), (0, 0));
        assert!(read_all(&child).await == content);
    }
}

#[tokio::test]
async fn discard_to_the_parent_shows_the_parent_even_where_an_own_snapshot_lies_between() {
    let fixture = Fixture::new().await;
    let (content, child) = fixture.child(SIZE, Layering::Sparse).await;
    write(&child, 0, &[1; 8192]).await.unwrap();
    child.snapshot(snapshot_name("s1"), false).await.unwrap();
    write(&child, 4096, &[2; 8192]).await.unwrap();
    let at = Extent::new(0, 16384);
    child.discard(at, DiscardPolicy::Inherit, false).await.unwrap();
    assert!(read(&child, at).await == content[..16384]);
    let snapshot = fixture.open_snapshot("child", "s1").await;
    assert_eq!(read(&snapshot, Extent::new(0, 8192)).await, [1; 8192]);
}

#[tokio::test]
async fn snapshots_keep_what_was_and_go_on_reading_it_after_everything_changed() {
    let fixture = Fixture::new().await;
    let (content, child) = fixture.child(SIZE, Layering::Sparse).await;
    let mut states = vec![content];
    for round in 0..8u8 {
        child.snapshot(snapshot_name(&format!("s{round}")), false).await.unwrap();
        let mut now = states.last().unwrap().clone();
        let (offset, length) = (usize::from(round) * 50_000, 60_000);
        now[offset..offset + length].fill(round + 1);
        write(&child, offset as u64, &vec![round + 1; length]).await.unwrap();
        states.push(now);
    }
    child.write_zeroes(Extent::new(0, SIZE), ZeroOptions::default()).await.unwrap();
    for (round, state) in states.iter().enumerate().take(8) {
        let snapshot = fixture.open_snapshot("child", &format!("s{round}")).await;
        assert!(read_all(&snapshot).await == *state, "snapshot {round}");
    }
}

#[tokio::test]
async fn a_clone_may_differ_from_its_parent_in_object_size_block_size_and_striping() {
    let geometries = [
        Geometry::new(16 << 10, 4096, 3).unwrap(),
        Geometry::new(1 << 20, 64 << 10, 16).unwrap(),
        Geometry::unstriped(4096).unwrap(),
    ];
    for geometry in geometries {
        for (layering, block_size) in
            [(Layering::Sparse, 4096), (Layering::CopyUp, 512), (Layering::Sparse, 512)]
        {
            let fixture = Fixture::new().await;
            let size = SIZE - 1234;
            let mut content = fixture.golden("gold", size).await;
            let options = CloneOptions {
                geometry: Some(geometry),
                layering: Some(layering),
                block_size: Some(block_size),
                ..CloneOptions::default()
            };
            fixture.clone("gold", "s", "child", options).await;
            let child = fixture.open("child").await;
            for (offset, length) in [(3, 70_000), (500_001, 511), (size - 3, 3)] {
                let data = pattern(Extent::new(offset, length), 3);
                write(&child, offset, &data).await.unwrap();
                content[offset as usize..][..data.len()].copy_from_slice(&data);
            }
            assert!(read_all(&child).await == content, "{geometry:?} {layering:?} {block_size}");
            child.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
            assert!(
                read_all(&child).await == content,
                "flattened {geometry:?} {layering:?} {block_size}"
            );
        }
    }
}

#[tokio::test]
async fn a_chain_of_clones_reads_through_to_its_end() {
    let fixture = Fixture::new().await;
    let mut content = fixture.golden("i0", SIZE).await;
    for depth in 1..=20u64 {
        let (parent, name) = (format!("i{}", depth - 1), format!("i{depth}"));
        fixture.clone(&parent, "s", &name, CloneOptions::default()).await;
        let image = fixture.open(&name).await;
        let offset = depth * 40_000;
        let data = pattern(Extent::new(offset, 5000), depth);
        write(&image, offset, &data).await.unwrap();
        content[offset as usize..][..5000].copy_from_slice(&data);
        image.snapshot(snapshot_name("s"), false).await.unwrap();
        assert!(read_all(&image).await == content, "depth {depth}");
        image.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_chain_deeper_than_the_limit_is_refused_and_one_as_deep_is_read_through_all_of_it() {
    let fixture = Fixture::new().await;
    let options = CreateOptions { block_size: 512, ..CreateOptions::default() };
    fixture.create("i", 512 * (vellum_image::chain::DEPTH_MAX as u64 + 1), options).await;
    let image = fixture.open("i").await;
    let mut layers = 1;
    let byte_of = |layer: usize| (layer % 251) as u8 + 1;
    let refused = loop {
        // Each layer holds a block that no other does.
        write(&image, 512 * layers as u64, &[byte_of(layers)]).await.unwrap();
        match image.snapshot(snapshot_name(&format!("s{layers}")), false).await {
            Ok(_) => layers += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((layers, refused.kind()), (vellum_image::chain::DEPTH_MAX, ErrorKind::Invalid));
    image.close().await.unwrap();
    let last = format!("s{}", layers - 1);
    fixture.clone("i", &last, "child", CloneOptions::default()).await;
    let child = fixture.open("child").await;
    assert_eq!(child.depth(), vellum_image::chain::DEPTH_MAX);
    let content = read_all(&child).await;
    assert!((1..layers).all(|layer| content[512 * layer] == byte_of(layer)));
    assert!(content[..512] == [0; 512], "what no layer has");
    let error = child.snapshot(snapshot_name("s"), false).await.unwrap_err();
    assert!(error.chain().contains("flatten"), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_flatten_takes_as_long_as_its_limit_wants_and_can_be_stopped_meanwhile() {
    let fixture = Fixture::new().await;
    let (content, child) = fixture.child(4 * SIZE, Layering::Sparse).await;
    let limited = FlattenOptions { bytes_per_second: Some(SIZE / 4), ..Default::default() };
    let job = Job::default();
    job.stop();
    assert_eq!(child.flatten(limited, &job).await.unwrap_err().kind(), ErrorKind::Stopped);
    let began = tokio::time::Instant::now();
    child.flatten(limited, &Job::default()).await.unwrap();
    // The first step of 1 MiB does not wait.
    assert!(began.elapsed() >= std::time::Duration::from_secs(12), "{:?}", began.elapsed());
    assert!(child.record().parent().is_none() && read_all(&child).await == content);
}

#[tokio::test]
async fn pieces_of_a_read_tile_it_and_zeros_are_none() {
    let fixture = Fixture::new().await;
    let (mut content, child) = fixture.child(SIZE, Layering::Sparse).await;
    let zeros = [Extent::new(8192, 4096), Extent::new(OBJECT, 2 * OBJECT)];
    for at in zeros {
        child.write_zeroes(at, ZeroOptions::default()).await.unwrap();
        content[at.offset() as usize..at.end() as usize].fill(0);
    }
    for at in [Extent::new(0, SIZE), Extent::new(9000, 5 * OBJECT), Extent::new(OBJECT, OBJECT)] {
        let mut end = at.offset();
        for piece in child.read_pieces(at).await.unwrap() {
            assert!(piece.at.offset() == end && !piece.at.is_empty(), "{piece:?} of {at}");
            end = piece.at.end();
            let expected = &content[piece.at.offset() as usize..end as usize];
            match piece.data {
                Some(data) => assert!(data == expected, "{}", piece.at),
                None => assert!(expected.iter().all(|byte| *byte == 0), "{}", piece.at),
            }
        }
        assert_eq!(end, at.end());
    }
    let pieces = child.read_pieces(Extent::new(0, SIZE)).await.unwrap();
    let holes: Vec<Extent> =
        pieces.iter().filter(|piece| piece.data.is_none()).map(|piece| piece.at).collect();
    assert_eq!(holes, zeros);
}

#[tokio::test]
async fn flatten_makes_an_image_and_all_its_snapshots_independent() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        let fixture = Fixture::new().await;
        let (content, child) = fixture.child(SIZE, layering).await;
        write(&child, 100, &[1; 100]).await.unwrap();
        let at_s1 = read_all(&child).await;
        child.snapshot(snapshot_name("s1"), false).await.unwrap();
        child.write_zeroes(Extent::new(0, 2 * OBJECT), ZeroOptions::default()).await.unwrap();
        let head = read_all(&child).await;
        let gold = fixture.catalog.find(&image_name("gold")).await.unwrap();
        assert_eq!(
            admin::remove(&fixture.pools, &fixture.catalog, &gold.id).await.unwrap_err().kind(),
            ErrorKind::HasChildren
        );
        let record = child.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
        assert!(record.parent().is_none());
        admin::remove(&fixture.pools, &fixture.catalog, &gold.id).await.unwrap();
        assert!(read_all(&child).await == head);
        assert!(read_all(&fixture.open_snapshot("child", "s1").await).await == at_s1);
        child.close().await.unwrap();
        let reopened = fixture.open("child").await;
        assert!(read_all(&reopened).await == head);
        assert!(content != head);
    }
}

#[tokio::test]
async fn a_stopped_flatten_goes_on_where_it_was() {
    let fixture = Fixture::new().await;
    let (content, child) = fixture.child(SIZE, Layering::Sparse).await;
    let job = Job::default();
    job.stop();
    let error = child.flatten(FlattenOptions::default(), &job).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stopped);
    assert!(child.record().parent().is_some());
    child.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
    assert!(child.record().parent().is_none());
    assert!(read_all(&child).await == content);
}

#[tokio::test]
async fn a_snapshot_with_children_is_not_removed_and_an_automatic_one_goes_with_its_last_child() {
    let fixture = Fixture::new().await;
    fixture.create("gold", SIZE, CreateOptions::default()).await;
    let gold = fixture.open("gold").await;
    gold.snapshot(snapshot_name("auto"), true).await.unwrap();
    fixture.clone("gold", "auto", "child", CloneOptions::default()).await;
    let error = gold.remove_snapshot(&snapshot_name("auto")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HasChildren);
    let child = fixture.catalog.find(&image_name("child")).await.unwrap();
    admin::remove(&fixture.pools, &fixture.catalog, &child.id).await.unwrap();
    let record = fixture.catalog.find(&image_name("gold")).await.unwrap();
    assert!(record.snapshots.is_empty(), "{:?}", record.snapshots);
}

#[tokio::test]
async fn requests_beyond_the_end_and_writes_to_snapshots_are_refused() {
    let fixture = Fixture::new().await;
    let (_, child) = fixture.child(SIZE, Layering::Sparse).await;
    assert_eq!(write(&child, SIZE - 1, &[0; 2]).await.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(write(&child, u64::MAX, &[0; 2]).await.unwrap_err().kind(), ErrorKind::Invalid);
    let snapshot = fixture.open_snapshot("gold", "s").await;
    assert_eq!(write(&snapshot, 0, &[0; 2]).await.unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(
        snapshot.write_zeroes(Extent::new(0, 1), ZeroOptions::default()).await.unwrap_err().kind(),
        ErrorKind::ReadOnly
    );
    assert_eq!(fixture.open_as("child", Open::Own).await.unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(fixture.open_as("nobody", Open::Own).await.unwrap_err().kind(), ErrorKind::NotFound);
}

/// An image of small blocks, every other of which a layer defines, each layer another share of them.
async fn fragmented(fixture: &Fixture, size: u64) -> (Vec<u8>, TestImage) {
    let small = CreateOptions { block_size: 512, ..CreateOptions::default() };
    fixture.create("fragmented", size, small).await;
    let image = fixture.open("fragmented").await;
    let mut content = vec![0; size as usize];
    for layer in 0..3u64 {
        for block in (layer..size / 512).step_by(4) {
            let at = Extent::new(block * 512, 512);
            write(&image, at.offset(), &pattern(at, layer)).await.unwrap();
            content[at.offset() as usize..at.end() as usize].copy_from_slice(&pattern(at, layer));
        }
        image.snapshot(snapshot_name(&format!("s{layer}")), false).await.unwrap();
    }
    (content, image)
}

#[tokio::test]
async fn a_map_is_the_same_however_few_entries_are_asked_for_at_once() {
    let fixture = Fixture::new().await;
    let size = 400 * 512;
    let (_, image) = fragmented(&fixture, size).await;
    let whole = image.map(Extent::new(0, size), usize::MAX).await.unwrap();
    assert_eq!(whole.len(), 400);
    for most in [1, 2, 3, 7, 100] {
        let mut parts = Vec::new();
        let mut rest = Extent::new(0, size);
        while !rest.is_empty() {
            let map = image.map(rest, most).await.unwrap();
            assert!(map.len() <= most && map[0].at.offset() == rest.offset());
            rest = rest.split(map.last().unwrap().at.end()).1;
            parts.extend(map);
        }
        assert_eq!(parts, whole, "{most} at once");
    }
}

#[tokio::test]
async fn more_pieces_than_one_step_takes_are_zeroed_and_discarded_all_the_same() {
    let size = 3 * (1 << 14) * 512;
    for discard in [false, true] {
        let fixture = Fixture::new().await;
        let (content, image) = fragmented(&fixture, size).await;
        assert!(read_all(&image).await == content);
        let whole = Extent::new(0, size);
        if discard {
            image.discard(whole, DiscardPolicy::Zero, false).await.unwrap();
        } else {
            image.write_zeroes(whole, ZeroOptions::default()).await.unwrap();
        }
        assert!(read_all(&image).await.iter().all(|byte| *byte == 0));
        let map = image.map(whole, usize::MAX).await.unwrap();
        assert!(map.iter().all(|entry| entry.kind != MappedKind::Data));
    }
}

#[tokio::test]
async fn a_discard_over_many_finely_striped_objects_looks_at_each_object_once() {
    let fixture = Fixture::new().await;
    let size = 64 << 30;
    fixture.create("gold", size, CreateOptions::default()).await;
    let gold = fixture.open("gold").await;
    write(&gold, 0, &[1; 512]).await.unwrap();
    gold.snapshot(snapshot_name("s"), false).await.unwrap();
    gold.close().await.unwrap();
    let striped = CloneOptions {
        layering: Some(Layering::CopyUp),
        geometry: Some(Geometry::new(4 << 20, 512, 2).unwrap()),
        block_size: Some(512),
        ..CloneOptions::default()
    };
    fixture.clone("gold", "s", "child", striped).await;
    // Without a memory of states, so that every look at one is a call.
    let (counts, pools) = (Counts::default(), Pools::default());
    let forgetful = PacedCatalog::new(fixture.catalog.clone(), Pace::new(|| 0));
    let catalog = CountCatalog::new(forgetful, counts.clone());
    pools.add(catalog.clone());
    let id = catalog.find(&image_name("child")).await.unwrap().id;
    let child = Image::open(&pools, &catalog, &id, Open::Own, ImageOptions::default());
    let child = child.await.unwrap();
    counts.reset();
    // Both ends cover an object in part; each has thousands of stripe units.
    child.discard(Extent::new(512, size - 1024), DiscardPolicy::Zero, false).await.unwrap();
    let stripe_units = 2 * child.geometry().object_set_size() / 512;
    let looks = counts.calls(Operation::LoadStates);
    // At two layers, to learn what shows and then what is there; never at all of an object for each of its stripe units.
    assert!(
        (stripe_units..5 * stripe_units).contains(&looks),
        "{looks} looks at {stripe_units} stripe units"
    );
    assert!(counts.calls(Operation::Set) < 10, "{counts:?}");
    child.close().await.unwrap();
    let child = fixture.open("child").await;
    assert_eq!(read(&child, Extent::new(0, 1024)).await, [[1; 512], [0; 512]].concat());
}

#[tokio::test]
async fn fast_zeroes_that_are_refused_at_their_end_have_not_begun() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        let fixture = Fixture::new().await;
        let (content, child) = fixture.child(SIZE, layering).await;
        // Whole units and objects, then a part of one.
        let at = Extent::new(0, 4 * OBJECT + 100);
        let fast = ZeroOptions { fast: true, ..ZeroOptions::default() };
        let error = child.write_zeroes(at, fast).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(read_all(&child).await == content, "{layering:?}");
    }
}
