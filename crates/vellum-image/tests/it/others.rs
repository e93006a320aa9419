//! What other processes, and clones in other pools, do to an image meanwhile.

use vellum_core::Extent;
use vellum_engine::fault::{Operation, When};
use vellum_engine::{
    Catalog, Change, Content, ErrorKind, Fill, Head, Layering, Part, SnapshotRecord,
};
use vellum_image::chain::DEPTH_MAX;
use vellum_image::image::Open;
use vellum_image::{
    CloneOptions, CreateOptions, DiscardPolicy, FlattenOptions, Image, ImageOptions, Job,
    MappedKind, ZeroOptions, admin,
};

use super::fixture::*;

const SIZE: u64 = 1 << 20;

async fn remove(fixture: &Fixture, name: &str) {
    let id = fixture.catalog.find(&image_name(name)).await.unwrap().id;
    admin::remove(&fixture.pools, &fixture.catalog, &id).await.unwrap();
}

/// An open image `c`, clone of `b`, clone of `a`, that has looked at nothing of `a` yet when another process flattens `b` and
/// removes `a`. Answers with what it holds.
async fn without_its_grandparent(fixture: &Fixture, layering: Layering) -> (Vec<u8>, TestImage) {
    let content = fixture.golden("a", SIZE).await;
    fixture.clone("a", "s", "b", mode(layering)).await;
    let b = fixture.open("b").await;
    b.snapshot(snapshot_name("s"), false).await.unwrap();
    b.close().await.unwrap();
    fixture.clone("b", "s", "c", mode(layering)).await;
    let c = fixture.open("c").await;
    let other = fixture.another_process().await;
    let b = other.open("b").await;
    b.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
    b.close().await.unwrap();
    remove(&other, "a").await;
    (content, c)
}

#[tokio::test]
async fn a_chain_whose_layer_another_process_took_away_is_read_anew() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        let fixture = Fixture::new().await;
        let (content, c) = without_its_grandparent(&fixture, layering).await;
        assert!(read(&c, Extent::new(0, 8192)).await == content[..8192], "a read, {layering:?}");
        write(&c, SIZE / 2 + 100, &[1; 50]).await.unwrap();
        let mut after = content;
        after[SIZE as usize / 2 + 100..][..50].fill(1);
        assert!(read_all(&c).await == after, "a copy-up, {layering:?}");
    }
}

/// `a`, with a snapshot that holds nothing of its own and goes with its name; `b` hangs on it, and `c` on `b`. Answers with what
/// they hold.
async fn family(fixture: &Fixture) -> Vec<u8> {
    let content = fixture.golden("a", SIZE).await;
    for (parent, snapshot, child) in [("a", "empty", "b"), ("b", "s", "c")] {
        let image = fixture.open(parent).await;
        image.snapshot(snapshot_name(snapshot), false).await.unwrap();
        image.close().await.unwrap();
        fixture.clone(parent, snapshot, child, mode(Layering::Sparse)).await;
    }
    content
}

/// Flattens `b`, and takes away the snapshot that it hung on; in the embedded engine its layer goes too.
async fn cut_off_b(fixture: &Fixture) {
    let b = fixture.open("b").await;
    b.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
    b.close().await.unwrap();
    let a = fixture.open("a").await;
    a.remove_snapshot(&snapshot_name("empty")).await.unwrap();
    a.close().await.unwrap();
}

#[tokio::test]
async fn a_chain_that_is_cut_at_any_moment_of_its_opening_is_opened() {
    for what in [Open::Own, Open::Read] {
        for skip in 0.. {
            let fixture = Fixture::new().await;
            let content = family(&fixture).await;
            let other = fixture.another_process().await;
            let pause = fixture.faults.pause_after(Operation::Look, skip);
            let opening = fixture.open_as("c", what.clone());
            tokio::pin!(opening);
            tokio::select! {
                c = &mut opening => {
                    c.unwrap();
                    assert!(skip > 4, "{skip} looks");
                    break;
                }
                () = pause.reached() => {}
            }
            cut_off_b(&other).await;
            pause.release();
            let c = opening.await.unwrap_or_else(|error| panic!("{what:?}, {skip}: {error:?}"));
            assert!(read_all(&c).await == content, "{what:?}, {skip}");
        }
    }
}

#[tokio::test]
async fn an_image_is_cloned_by_a_record_that_was_true_before_it_was_cut_off() {
    let fixture = Fixture::new().await;
    let content = family(&fixture).await;
    let b = fixture.catalog.find(&image_name("b")).await.unwrap();
    cut_off_b(&fixture).await;
    let snapshot = b.snapshot(&snapshot_name("s")).unwrap();
    let (pools, catalog) = (&fixture.pools, &fixture.catalog);
    let (name, options) = (image_name("d"), CloneOptions::default());
    admin::clone(pools, catalog, &b, snapshot, catalog, name, options).await.unwrap();
    assert!(read_all(&fixture.open("d").await).await == content);
}

#[tokio::test]
async fn a_copy_up_from_a_layer_that_another_process_took_away_finds_the_content_elsewhere() {
    let fixture = Fixture::new().await;
    let (mut content, c) = without_its_grandparent(&fixture, Layering::Sparse).await;
    write(&c, 100, &[1; 50]).await.unwrap();
    content[100..150].fill(1);
    assert!(read_all(&c).await == content);
}

#[tokio::test]
async fn zeros_and_discards_over_a_layer_that_another_process_took_away_find_the_content_elsewhere()
{
    let fixture = Fixture::new().await;
    let (mut content, c) = without_its_grandparent(&fixture, Layering::CopyUp).await;
    let zeroed = Extent::new(100, 50);
    c.write_zeroes(zeroed, ZeroOptions::default()).await.unwrap();
    content[100..150].fill(0);
    assert!(read_all(&c).await == content);

    for layering in [Layering::Sparse, Layering::CopyUp] {
        let fixture = Fixture::new().await;
        let (mut content, c) = without_its_grandparent(&fixture, layering).await;
        c.discard(Extent::new(0, SIZE / 2), DiscardPolicy::Zero, false).await.unwrap();
        content[..SIZE as usize / 2].fill(0);
        assert!(read_all(&c).await == content);

        let fixture = Fixture::new().await;
        let (content, c) = without_its_grandparent(&fixture, layering).await;
        let fast = ZeroOptions { fast: true, ..ZeroOptions::default() };
        let error = c.write_zeroes(Extent::new(100, 50), fast).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(read_all(&c).await == content);
    }

    let fixture = Fixture::new().await;
    let (content, c) = without_its_grandparent(&fixture, Layering::Sparse).await;
    write(&c, 0, &[1; 4096]).await.unwrap();
    c.snapshot(snapshot_name("s"), false).await.unwrap();
    let unit = Extent::new(0, 4096);
    c.discard(unit, DiscardPolicy::Inherit, false).await.unwrap();
    assert!(read_all(&c).await == content);
}

#[tokio::test]
async fn a_map_over_a_layer_that_another_process_took_away_says_where_the_content_is_now() {
    let fixture = Fixture::new().await;
    let (_, c) = without_its_grandparent(&fixture, Layering::Sparse).await;
    let map = c.map(Extent::new(0, SIZE), usize::MAX).await.unwrap();
    let data = map.iter().map(|entry| (entry.at, entry.kind)).collect::<Vec<_>>();
    assert_eq!(data, [(Extent::new(0, SIZE), MappedKind::Data)]);
}

#[tokio::test]
async fn a_snapshot_whose_parent_another_process_cut_off_reads_as_before() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        let fixture = Fixture::new().await;
        let content = fixture.golden("a", SIZE).await;
        fixture.clone("a", "s", "b", mode(layering)).await;
        let b = fixture.open("b").await;
        b.snapshot(snapshot_name("s"), false).await.unwrap();
        b.close().await.unwrap();
        let snapshot = fixture.open_snapshot("b", "s").await;
        let other = fixture.another_process().await;
        let b = other.open("b").await;
        b.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
        b.close().await.unwrap();
        remove(&other, "a").await;
        assert!(read_all(&snapshot).await == content, "{layering:?}");
    }
}

#[tokio::test]
async fn a_flatten_keeps_what_a_filler_that_died_had_copied() {
    let fixture = Fixture::new().await;
    let (content, child) = fixture.child(SIZE, Layering::Sparse).await;
    let bottom = child.record().head;
    child.snapshot(snapshot_name("s"), false).await.unwrap();
    let id = child.id().clone();
    child.close().await.unwrap();
    // Dead before its sync, with everything copied.
    let filler = fixture.catalog.filler(&id, &bottom).await.unwrap();
    let all = Content::Data(content.clone().into());
    let parts = vec![Part { at: Extent::new(0, SIZE), content: all }];
    let _ = filler.fill(Fill { parts, then: None }).await.unwrap();
    drop(filler);
    let child = fixture.open("child").await;
    child.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
    child.close().await.unwrap();
    remove(&fixture, "gold").await;
    fixture.forget_unsynced();
    let later = fixture.another_process().await;
    assert!(read_all(&later.open("child").await).await == content);
}

#[tokio::test]
async fn a_stopped_flatten_keeps_what_it_copied_and_lets_others_fill() {
    let fixture = Fixture::new().await;
    let (content, child) = fixture.child(SIZE, Layering::Sparse).await;
    child.snapshot(snapshot_name("s"), false).await.unwrap();
    let job = Job::default();
    let pause = fixture.faults.pause(Operation::Fill);
    let flatten = tokio::spawn({
        let (child, job) = (child.clone(), job.clone());
        async move { child.flatten(FlattenOptions::default(), &job).await }
    });
    pause.reached().await;
    job.stop();
    pause.release();
    assert_eq!(flatten.await.unwrap().unwrap_err().kind(), ErrorKind::Stopped);
    let record = child.record();
    let (bottom, _, _) = record.parent().unwrap();
    let filler = fixture.catalog.filler(child.id(), &bottom.id).await.unwrap();
    filler.close().await.unwrap();
    child.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
    assert!(read_all(&child).await == content);
}

/// Makes a clone in another pool, of which somebody asks after it is in its parent's list and before it is there. Answers
/// whether its parent cannot be removed.
pub async fn a_clone_asked_for_too_early_keeps_its_parent(
    fixture: &Fixture,
    another: Engine,
) -> bool {
    fixture.golden("gold", SIZE).await;
    let gold = fixture.catalog.find(&image_name("gold")).await.unwrap();
    let snapshot = gold.snapshot(&snapshot_name("s")).unwrap().clone();
    let pause = fixture.faults.pause_after(Operation::Catalog, 1);
    let cloning = tokio::spawn({
        let (pools, parent, gold) = (fixture.pools.clone(), fixture.catalog.clone(), gold.clone());
        let another = another.clone();
        async move {
            let (name, options) = (image_name("child"), CloneOptions::default());
            admin::clone(&pools, &parent, &gold, &snapshot, &another, name, options).await
        }
    });
    pause.reached().await;
    fixture.faults.clear();
    let seen = fixture.another_process().await;
    seen.pools.add(another.clone());
    let children = admin::children(&seen.pools, &seen.catalog, &gold).await.unwrap();
    assert!(children.found.is_empty() && children.unreachable.is_empty(), "{children:?}");
    pause.release();
    cloning.await.unwrap().unwrap();
    let removed = admin::remove(&fixture.pools, &fixture.catalog, &gold.id).await;
    removed.is_err_and(|error| error.kind() == ErrorKind::HasChildren)
}

#[tokio::test]
async fn a_clone_in_another_pool_that_is_asked_for_too_early_stays_in_its_parents_list() {
    let fixture = Fixture::new().await;
    let another = fixture.another_pool().await;
    assert!(a_clone_asked_for_too_early_keeps_its_parent(&fixture, another).await);
}

#[tokio::test]
async fn the_entry_of_a_clone_that_was_given_up_is_stale() {
    let fixture = Fixture::new().await;
    fixture.golden("gold", SIZE).await;
    let another = fixture.another_pool().await;
    let gold = fixture.catalog.find(&image_name("gold")).await.unwrap();
    let snapshot = gold.snapshot(&snapshot_name("s")).unwrap();
    let pause = fixture.faults.pause_after(Operation::Catalog, 1);
    let (name, options) = (image_name("child"), CloneOptions::default());
    let (pools, catalog) = (&fixture.pools, &fixture.catalog);
    tokio::select! {
        _ = admin::clone(pools, catalog, &gold, snapshot, &another, name, options) => panic!(),
        () = pause.reached() => {}
    }
    fixture.faults.clear();
    assert_eq!(catalog.children(&gold.id).await.unwrap().len(), 1);
    let children = admin::children(pools, catalog, &gold).await.unwrap();
    assert!(children.found.is_empty() && children.unreachable.is_empty(), "{children:?}");
    assert!(catalog.children(&gold.id).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_child_that_was_removed_or_cut_off_is_so_though_its_parents_pool_cannot_be_told() {
    let fixture = Fixture::new().await;
    fixture.golden("gold", SIZE).await;
    let another = fixture.another_pool().await;
    let gold = fixture.catalog.find(&image_name("gold")).await.unwrap();
    let snapshot = gold.snapshot(&snapshot_name("s")).unwrap();
    for name in ["one", "two"] {
        let (name, options) = (image_name(name), CloneOptions::default());
        admin::clone(&fixture.pools, &fixture.catalog, &gold, snapshot, &another, name, options)
            .await
            .unwrap();
    }
    let one = another.find(&image_name("one")).await.unwrap().id;
    // The removal of the child is one call, and the parent's list the next.
    fixture.faults.fail(Operation::Catalog, 1, ErrorKind::Io, When::Instead);
    admin::remove(&fixture.pools, &another, &one).await.unwrap();
    let two = another.find(&image_name("two")).await.unwrap().id;
    let options = ImageOptions::default();
    let image = Image::open(&fixture.pools, &another, &two, Open::Own, options).await.unwrap();
    fixture.faults.fail(Operation::Catalog, 0, ErrorKind::Io, When::Instead);
    image.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
    fixture.faults.clear();
    assert_eq!(fixture.catalog.children(&gold.id).await.unwrap().len(), 2);
    admin::remove(&fixture.pools, &fixture.catalog, &gold.id).await.unwrap();
}

#[tokio::test]
async fn snapshots_stop_before_a_chain_through_several_pools_is_too_deep_to_be_opened() {
    let fixture = Fixture::new().await;
    fixture.create("i", 4096, CreateOptions::default()).await;
    let image = fixture.open("i").await;
    for layer in 0..DEPTH_MAX - 4 {
        write(&image, 0, &[1]).await.unwrap();
        image.snapshot(snapshot_name(&format!("s{layer}")), false).await.unwrap();
    }
    image.close().await.unwrap();
    let another = fixture.another_pool().await;
    let record = fixture.catalog.find(&image_name("i")).await.unwrap();
    let last = record.snapshots.last().unwrap();
    let (name, options) = (image_name("child"), CloneOptions::default());
    let child =
        admin::clone(&fixture.pools, &fixture.catalog, &record, last, &another, name, options)
            .await
            .unwrap();
    let open =
        || Image::open(&fixture.pools, &another, &child.id, Open::Own, ImageOptions::default());
    let image = open().await.unwrap();
    let mut taken = 0;
    let refused = loop {
        write(&image, 0, &[1]).await.unwrap();
        match image.snapshot(snapshot_name(&format!("s{taken}")), false).await {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((taken, refused.kind()), (3, ErrorKind::Invalid));
    image.close().await.unwrap();
    let image = open().await.unwrap();
    image.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
}

#[tokio::test]
async fn an_image_whose_snapshots_come_and_go_is_as_deep_as_its_record_says() {
    let fixture = Fixture::new().await;
    let (content, child) = fixture.child(SIZE, Layering::Sparse).await;
    let is_as_recorded = |what: &str| {
        let below = 1;
        assert_eq!(child.depth(), child.record().revisions.len() + below, "{what}");
    };
    is_as_recorded("at first");
    for round in 0..5 {
        let name = snapshot_name(&format!("s{round}"));
        child.snapshot(name.clone(), false).await.unwrap();
        is_as_recorded("after a snapshot");
        child.remove_snapshot(&name).await.unwrap();
        is_as_recorded("after its removal");
    }
    // Removed by another process, which this one hears of at its next snapshot.
    let other = fixture.another_process().await;
    for round in 0..5 {
        let name = snapshot_name(&format!("t{round}"));
        child.snapshot(name.clone(), false).await.unwrap();
        is_as_recorded("after removals by others");
        let removal = |snapshot: &SnapshotRecord| Change::RemoveSnapshot(snapshot.id.clone());
        let (pools, catalog) = (&other.pools, &other.catalog);
        admin::change_snapshot(pools, catalog, child.id(), &name, removal).await.unwrap();
    }
    assert!(read_all(&child).await == content);
    child.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
    assert!(read_all(&child).await == content);
}
