//! Calls of the engine that fail in the middle of a request or an operation, with each kind of error: what the open image does
//! afterwards. It goes on where nothing was lost, and says why where it does not.

use vellum_core::Extent;
use vellum_engine::fault::{Operation, When};
use vellum_engine::{Catalog, ErrorKind, Layering, Repair, Severity};
use vellum_image::image::Open;
use vellum_image::{
    CloneOptions, DiscardPolicy, FlattenOptions, Image, ImageOptions, Job, ZeroOptions, admin,
};

use super::fixture::*;

const SIZE: u64 = 1 << 20;
const OBJECT: u64 = 64 << 10;
const MODES: [Layering; 2] = [Layering::Sparse, Layering::CopyUp];
/// Every kind that a call for bytes may fail with and go on afterwards.
const KINDS: [ErrorKind; 5] =
    [ErrorKind::Io, ErrorKind::NoSpace, ErrorKind::Corrupt, ErrorKind::NotFound, ErrorKind::Busy];
const WHEN: [When; 2] = [When::Instead, When::Afterwards];

/// An open image goes on: it takes a write that needs a copy-up, and an operation, which waits for every pass of the gate.
async fn goes_on(fixture: &Fixture, child: &TestImage, mut content: Vec<u8>, what: &str) {
    assert!(read_all(child).await == content, "{what}");
    let at = SIZE - OBJECT - 100;
    write(child, at, &[7; 200]).await.unwrap();
    content[at as usize..][..200].fill(7);
    child.snapshot(snapshot_name("later"), false).await.unwrap();
    write(child, at, &[8; 10]).await.unwrap();
    let frozen = fixture.open_snapshot("child", "later").await;
    assert!(read_all(&frozen).await == content, "{what}");
    content[at as usize..][..10].fill(8);
    assert!(read_all(child).await == content, "{what}");
}

#[tokio::test]
async fn a_copy_up_whose_read_fails_changes_nothing_and_gives_back_what_it_held() {
    for layering in MODES {
        for kind in KINDS {
            let fixture = Fixture::new().await;
            let (content, child) = fixture.child(SIZE, layering).await;
            child.close().await.unwrap();
            // One copy-up takes all there is, so that memory that is not given back stops the next one.
            let limited = ImageOptions { copy_up_bytes_max: 4096, ..ImageOptions::default() };
            let id = fixture.catalog.find(&image_name("child")).await.unwrap().id;
            let child = Image::open(&fixture.pools, &fixture.catalog, &id, Open::Own, limited);
            let child = child.await.unwrap();
            for _ in 0..3 {
                fixture.faults.fail(Operation::Read, 0, kind, When::Instead);
                let error = write(&child, 100, &[1; 50]).await.unwrap_err();
                assert_eq!(error.kind(), kind, "{layering:?}");
                assert_eq!(own_data(&child).await, 0, "{layering:?} {kind:?}");
            }
            goes_on(&fixture, &child, content, &format!("{layering:?} {kind:?}")).await;
        }
    }
}

#[tokio::test]
async fn a_copy_up_whose_fill_fails_leaves_the_bytes_old_or_new_and_their_neighbours_alone() {
    for layering in MODES {
        for kind in KINDS {
            for when in WHEN {
                let fixture = Fixture::new().await;
                let (mut content, child) = fixture.child(SIZE, layering).await;
                fixture.faults.fail(Operation::Fill, 0, kind, when);
                let result = write(&child, 100, &[1; 50]).await;
                if when == When::Afterwards {
                    content[100..150].fill(1);
                }
                // A layer that is not found is looked for in the catalog, and is there: so the failure is told.
                assert_eq!(result.unwrap_err().kind(), kind, "{layering:?}");
                goes_on(&fixture, &child, content, &format!("{layering:?} {kind:?} {when:?}"))
                    .await;
            }
        }
    }
}

fn range(at: Extent) -> std::ops::Range<usize> {
    at.offset() as usize..at.end() as usize
}

#[tokio::test]
async fn zeroes_and_discards_that_fail_in_the_middle_leave_each_unit_old_or_new() {
    for layering in MODES {
        for operation in [Operation::Read, Operation::Set, Operation::Fill, Operation::Write] {
            for (skip, when) in [(0, When::Instead), (0, When::Afterwards), (1, When::Instead)] {
                for discard in [None, Some(DiscardPolicy::Zero), Some(DiscardPolicy::Inherit)] {
                    let fixture = Fixture::new().await;
                    let (mut content, child) = fixture.child(SIZE, layering).await;
                    // Data, zeros and what is the parent's; over an own snapshot.
                    write(&child, 0, &[1; 10_000]).await.unwrap();
                    content[..10_000].fill(1);
                    child.snapshot(snapshot_name("own"), false).await.unwrap();
                    write(&child, 2 * OBJECT, &[2; 10_000]).await.unwrap();
                    content[2 * OBJECT as usize..][..10_000].fill(2);
                    let at = Extent::new(5000, 3 * OBJECT);
                    fixture.faults.fail(operation, skip, ErrorKind::Io, when);
                    let result = match discard {
                        None => child.write_zeroes(at, ZeroOptions::default()).await,
                        Some(policy) => child.discard(at, policy, false).await,
                    };
                    fixture.faults.clear();
                    let gold = pattern(Extent::new(0, SIZE), 7);
                    let what = format!("{layering:?} {operation:?} {skip} {when:?} {discard:?}");
                    let now = read_all(&child).await;
                    let zeros = vec![0; SIZE as usize];
                    let inherits = discard == Some(DiscardPolicy::Inherit);
                    let changed = if inherits { &gold } else { &zeros };
                    for unit in Extent::new(0, SIZE).chunks(4096) {
                        let part = unit.intersect(&at);
                        let (before, after) = (unit.clip(part.offset()), unit.split(part.end()).1);
                        for outside in
                            [before, after].map(|at| range(if part.is_empty() { unit } else { at }))
                        {
                            assert!(now[outside.clone()] == content[outside], "{unit}: {what}");
                        }
                        let part = range(part);
                        let is_old = now[part.clone()] == content[part.clone()];
                        assert!(is_old || now[part.clone()] == changed[part], "{unit}: {what}");
                    }
                    if result.is_ok() && discard.is_none() {
                        assert!(now[5000..][..3 * OBJECT as usize].iter().all(|byte| *byte == 0));
                    }
                    goes_on(&fixture, &child, now, &what).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_snapshot_that_fails_before_its_commit_took_effect_leaves_image_and_name_free() {
    for layering in MODES {
        for kind in [ErrorKind::Io, ErrorKind::NoSpace, ErrorKind::Busy, ErrorKind::Conflict] {
            let fixture = Fixture::new().await;
            let (mut content, child) = fixture.child(SIZE, layering).await;
            write(&child, 100, &[1; 50]).await.unwrap();
            content[100..150].fill(1);
            fixture.faults.fail(Operation::Commit, 0, kind, When::Instead);
            let error = child.snapshot(snapshot_name("s"), false).await.unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(child.record().snapshots.is_empty());
            child.snapshot(snapshot_name("s"), false).await.unwrap();
            let error = child.snapshot(snapshot_name("s"), false).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Exists);
            goes_on(&fixture, &child, content, &format!("{layering:?} {kind:?}")).await;
        }
    }
}

#[tokio::test]
async fn a_snapshot_whose_sync_fails_poisons_the_image_and_reads_go_on() {
    let fixture = Fixture::new().await;
    let (mut content, child) = fixture.child(SIZE, Layering::Sparse).await;
    write(&child, 100, &[1; 50]).await.unwrap();
    content[100..150].fill(1);
    fixture.faults.fail(Operation::Sync, 0, ErrorKind::Io, When::Instead);
    let error = child.snapshot(snapshot_name("s"), false).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(read_all(&child).await == content);
    let poisoned = [
        write(&child, 100, &[1; 50]).await.unwrap_err(),
        child.write_zeroes(Extent::new(0, 4096), ZeroOptions::default()).await.unwrap_err(),
        child.discard(Extent::new(0, 4096), DiscardPolicy::Zero, false).await.unwrap_err(),
        child.sync().await.unwrap_err(),
        child.snapshot(snapshot_name("s"), false).await.unwrap_err(),
        child.flatten(FlattenOptions::default(), &Job::default()).await.unwrap_err(),
        child.clone().close().await.unwrap_err(),
    ];
    for error in &poisoned {
        assert_eq!(error.kind(), ErrorKind::Poisoned, "{error:?}");
    }
    // Closed all the same: somebody else may own it, and finds what had reached the engine.
    let child = fixture.open("child").await;
    assert!(child.record().snapshots.is_empty());
    goes_on(&fixture, &child, content, "opened again").await;
}

#[tokio::test]
async fn a_snapshot_that_was_made_although_its_commit_failed_stops_writers_until_it_is_opened_again()
 {
    let fixture = Fixture::new().await;
    let (mut content, child) = fixture.child(SIZE, Layering::Sparse).await;
    write(&child, 100, &[1; 50]).await.unwrap();
    content[100..150].fill(1);
    fixture.faults.fail(Operation::Commit, 0, ErrorKind::Io, When::Afterwards);
    let error = child.snapshot(snapshot_name("s"), false).await.unwrap_err();
    assert_eq!(error.happened(), vellum_engine::Happened::MaybeDone);
    assert!(read_all(&child).await == content);
    let error = write(&child, 100, &[2; 50]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OwnershipLost);
    child.close().await.unwrap();
    let child = fixture.open("child").await;
    assert!(child.record().snapshot(&snapshot_name("s")).is_some());
    let frozen = fixture.open_snapshot("child", "s").await;
    assert!(read_all(&frozen).await == content);
    goes_on(&fixture, &child, content, "opened again").await;
}

/// A child with something of its own, with and without an own snapshot.
async fn to_flatten(layering: Layering, frozen: bool) -> (Fixture, Vec<u8>, TestImage) {
    let fixture = Fixture::new().await;
    let (mut content, child) = fixture.child(4 * SIZE, layering).await;
    write(&child, 100, &[1; 50]).await.unwrap();
    content[100..150].fill(1);
    if frozen {
        child.snapshot(snapshot_name("own"), false).await.unwrap();
        write(&child, 5000, &[2; 50]).await.unwrap();
        content[5000..5050].fill(2);
    }
    (fixture, content, child)
}

#[tokio::test]
async fn a_flatten_that_fails_in_the_middle_keeps_the_link_and_is_finished_by_the_next() {
    for layering in MODES {
        for frozen in [false, true] {
            for kind in KINDS {
                for (operation, skip, when) in [
                    (Operation::Read, 0, When::Instead),
                    (Operation::Read, 2, When::Instead),
                    (Operation::Fill, 0, When::Instead),
                    (Operation::Fill, 1, When::Afterwards),
                    (Operation::Commit, 0, When::Instead),
                ] {
                    let (fixture, content, child) = to_flatten(layering, frozen).await;
                    let what = format!("{layering:?} {frozen} {kind:?} {operation:?} {skip}");
                    fixture.faults.fail(operation, skip, kind, when);
                    let options = FlattenOptions { copies: 1, ..FlattenOptions::default() };
                    let error = child.flatten(options, &Job::default()).await.unwrap_err();
                    assert_eq!(error.kind(), kind, "{what}");
                    assert!(child.record().parent().is_some(), "{what}");
                    assert!(read_all(&child).await == content, "{what}");
                    // Nobody holds it any more: not the flatten, and not its filler.
                    let at = Extent::new(0, OBJECT);
                    child.discard(at, DiscardPolicy::Inherit, false).await.unwrap();
                    let gold = pattern(at, 7);
                    assert!(read(&child, at).await == gold, "{what}");
                    child.flatten(options, &Job::default()).await.unwrap();
                    let parent = fixture.catalog.find(&image_name("gold")).await.unwrap();
                    admin::remove(&fixture.pools, &fixture.catalog, &parent.id).await.unwrap();
                    let content = [&gold, &content[OBJECT as usize..]].concat();
                    assert!(read_all(&child).await == content, "{what}");
                    child.close().await.unwrap();
                    assert!(read_all(&fixture.open("child").await).await == content, "{what}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_flatten_whose_sync_fails_keeps_the_link() {
    for frozen in [false, true] {
        for skip in 0..2 {
            let (fixture, content, child) = to_flatten(Layering::Sparse, frozen).await;
            fixture.faults.fail(Operation::Sync, skip, ErrorKind::Io, When::Instead);
            let flattened = child.flatten(FlattenOptions::default(), &Job::default()).await;
            fixture.faults.clear();
            assert!(flattened.is_err() || (frozen && skip == 1), "{frozen} {skip}");
            let is_cut = flattened.is_ok();
            assert_eq!(child.record().parent().is_none(), is_cut, "{frozen} {skip}");
            assert!(read_all(&child).await == content);
            let _ = child.close().await;
            let child = fixture.open("child").await;
            assert_eq!(child.record().parent().is_none(), is_cut, "{frozen} {skip}");
            child.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
            assert!(read_all(&child).await == content, "{frozen} {skip}");
        }
    }
}

#[tokio::test]
async fn a_link_that_was_cut_although_the_commit_failed_is_gone_once_the_image_is_flattened_again()
{
    for layering in MODES {
        let (fixture, content, child) = to_flatten(layering, true).await;
        fixture.faults.fail(Operation::Commit, 0, ErrorKind::Io, When::Afterwards);
        child.flatten(FlattenOptions::default(), &Job::default()).await.unwrap_err();
        assert!(read_all(&child).await == content);
        child.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
        let parent = fixture.catalog.find(&image_name("gold")).await.unwrap();
        admin::remove(&fixture.pools, &fixture.catalog, &parent.id).await.unwrap();
        assert!(read_all(&child).await == content, "{layering:?}");
        // There is nothing that could show through any more.
        child.discard(Extent::new(0, SIZE), DiscardPolicy::Inherit, false).await.unwrap();
        let now = read_all(&child).await;
        assert!(now[..SIZE as usize].iter().all(|byte| *byte == 0), "{layering:?}");
        child.close().await.unwrap();
        assert!(read_all(&fixture.open("child").await).await == now, "{layering:?}");
    }
}

#[tokio::test]
async fn a_clone_into_another_pool_that_fails_in_the_middle_is_there_or_not_and_harms_no_other() {
    for when in WHEN {
        for skip in 0..2 {
            let fixture = Fixture::new().await;
            let content = fixture.golden("gold", SIZE).await;
            let another = fixture.another_pool().await;
            let gold = fixture.catalog.find(&image_name("gold")).await.unwrap();
            let snapshot = gold.snapshot(&snapshot_name("s")).unwrap();
            let clone = async |name: &str| {
                let (pools, parent, options) =
                    (&fixture.pools, &fixture.catalog, CloneOptions::default());
                admin::clone(pools, parent, &gold, snapshot, &another, image_name(name), options)
                    .await
            };
            fixture.faults.fail(Operation::Catalog, skip, ErrorKind::Io, when);
            clone("child").await.unwrap_err();
            let id = clone("other").await.unwrap().id;
            let options = ImageOptions::default();
            let other = Image::open(&fixture.pools, &another, &id, Open::Own, options);
            assert!(read_all(&other.await.unwrap()).await == content);
            for catalog in [&fixture.catalog, &another] {
                let found =
                    vellum_image::check::check(&fixture.pools, catalog, None, Repair::Safe).await;
                let damage = |it: &vellum_engine::Finding| it.severity == Severity::Damage;
                assert!(!found.unwrap().iter().any(damage), "{when:?} {skip}");
            }
            let error = admin::remove(&fixture.pools, &fixture.catalog, &gold.id).await;
            assert_eq!(error.unwrap_err().kind(), ErrorKind::HasChildren, "{when:?} {skip}");
        }
    }
}
