//! Races: the interleavings that lose data when the guard is a read before a write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use vellum_core::Extent;
use vellum_engine::count::Operation as Counted;
use vellum_engine::fault::Operation;
use vellum_engine::{Catalog, Layering};
use vellum_image::image::Open;
use vellum_image::{DiscardPolicy, FlattenOptions, Image, ImageOptions, Job, ZeroOptions};

use super::fixture::*;

const SIZE: u64 = 1 << 20;

/// A writer is stopped after it found the unit inherited and before it read the parent.
async fn with_a_writer_in_copy_up<F>(
    layering: Layering,
    meanwhile: impl FnOnce(TestImage) -> F,
) -> (Vec<u8>, TestImage, Fixture)
where
    F: Future<Output = ()>,
{
    let fixture = Fixture::new().await;
    let (content, child) = fixture.child(SIZE, layering).await;
    let pause = fixture.faults.pause(Operation::Read);
    let writer = tokio::spawn({
        let child = child.clone();
        async move { write(&child, 100, &[1; 50]).await }
    });
    pause.reached().await;
    meanwhile(child.clone()).await;
    pause.release();
    writer.await.unwrap().unwrap();
    (content, child, fixture)
}

#[tokio::test]
async fn two_writers_into_one_inherited_unit_both_land() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        let (mut content, child, _fixture) = with_a_writer_in_copy_up(layering, async |child| {
            write(&child, 200, &[2; 50]).await.unwrap();
        })
        .await;
        content[100..150].fill(1);
        content[200..250].fill(2);
        assert!(read_all(&child).await == content, "{layering:?}");
    }
}

/// How long a test looks whether something goes on that must wait.
const MOMENT: Duration = Duration::from_millis(50);

/// A writer in the middle of a copy-up, and what is asked for meanwhile, which must wait for it. Who asks first is first.
async fn behind_a_writer_in_copy_up<F>(
    layering: Layering,
    change: impl FnOnce(TestImage) -> F,
) -> (Vec<u8>, TestImage)
where
    F: Future<Output = vellum_engine::Result<()>> + Send + 'static,
{
    let mut waiting = None;
    let (content, child, _fixture) = with_a_writer_in_copy_up(layering, async |child| {
        let mut change = tokio::spawn(change(child));
        let early = tokio::time::timeout(MOMENT, &mut change).await;
        assert!(early.is_err(), "{layering:?}: it does not wait for the writer");
        waiting = Some(change);
    })
    .await;
    waiting.expect("it was asked for").await.unwrap().unwrap();
    (content, child)
}

#[tokio::test]
async fn a_discard_during_a_copy_up_comes_after_the_write() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        for (policy, asked) in [
            (DiscardPolicy::Zero, Extent::new(0, 4096)),
            (DiscardPolicy::Inherit, Extent::new(0, SIZE)),
        ] {
            let (content, child) = behind_a_writer_in_copy_up(layering, |child| async move {
                child.discard(asked, policy, false).await
            })
            .await;
            let first = read(&child, Extent::new(0, 4096)).await;
            let discarded = match policy {
                DiscardPolicy::Zero => first == [0; 4096],
                DiscardPolicy::Inherit => first == content[..4096],
            };
            assert!(discarded, "{layering:?}, {policy:?}: the write is undone by the discard");
            assert!(read(&child, Extent::new(4096, 4096)).await == content[4096..8192]);
        }
    }
}

#[tokio::test]
async fn zeroes_written_during_a_copy_up_come_after_the_write() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        for asked in [Extent::new(0, SIZE), Extent::new(120, 10)] {
            let (mut content, child) = behind_a_writer_in_copy_up(layering, |child| async move {
                child.write_zeroes(asked, ZeroOptions::default()).await
            })
            .await;
            content[100..150].fill(1);
            content[asked.offset() as usize..asked.end() as usize].fill(0);
            assert!(read_all(&child).await == content, "{layering:?}, {asked}");
        }
    }
}

#[tokio::test]
async fn what_is_sent_again_during_a_copy_up_waits_for_the_first_and_what_follows_lands_on_top() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        // The same request over another connection, and one that follows it, as a client sends them that lost the first.
        let (mut content, child) = behind_a_writer_in_copy_up(layering, |child| async move {
            write(&child, 100, &[1; 50]).await?;
            write(&child, 100, &[2; 50]).await
        })
        .await;
        content[100..150].fill(2);
        assert!(read_all(&child).await == content, "{layering:?}");
    }
}

#[tokio::test]
async fn what_is_given_back_to_the_parent_is_relied_on_by_nobody_before_it_is() {
    for policy in [DiscardPolicy::Zero, DiscardPolicy::Inherit] {
        let fixture = Fixture::new().await;
        let (content, child) = fixture.child(SIZE, Layering::Sparse).await;
        let at = Extent::new(0, 4096);
        write(&child, at.offset(), &[1; 4096]).await.unwrap();
        let pause = fixture.faults.pause(Operation::Set);
        let giving_back = tokio::spawn({
            let child = child.clone();
            async move { child.discard(at, DiscardPolicy::Inherit, false).await }
        });
        pause.reached().await;
        let mut next = tokio::spawn({
            let child = child.clone();
            async move { child.discard(at, policy, false).await }
        });
        assert!(tokio::time::timeout(MOMENT, &mut next).await.is_err(), "it does not wait");
        pause.release();
        giving_back.await.unwrap().unwrap();
        next.await.unwrap().unwrap();
        let shown = read(&child, at).await;
        match policy {
            DiscardPolicy::Zero => assert!(shown == [0; 4096]),
            DiscardPolicy::Inherit => assert!(shown == content[..4096]),
        }
    }
}

#[tokio::test]
async fn a_write_of_several_objects_is_overtaken_between_none_of_them() {
    let fixture = Fixture::new().await;
    let (mut content, child) = fixture.child(SIZE, Layering::CopyUp).await;
    // Whole objects need no copy-up, and the write is stopped at the second of them.
    let object = child.geometry().object_size();
    let (both, second) = (Extent::new(0, 2 * object), Extent::new(object, object));
    let pause = fixture.faults.pause_after(Operation::Write, 1);
    let first = tokio::spawn({
        let child = child.clone();
        async move { write(&child, both.offset(), &vec![1; both.len_usize()]).await }
    });
    pause.reached().await;
    let mut next = tokio::spawn({
        let child = child.clone();
        async move { write(&child, second.offset(), &vec![2; second.len_usize()]).await }
    });
    assert!(tokio::time::timeout(MOMENT, &mut next).await.is_err(), "it does not wait");
    pause.release();
    first.await.unwrap().unwrap();
    next.await.unwrap().unwrap();
    content[..both.len_usize()].fill(1);
    content[second.offset() as usize..second.end() as usize].fill(2);
    assert!(read_all(&child).await == content);
}

#[tokio::test]
async fn a_snapshot_during_a_copy_up_is_not_changed_by_it() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        let (mut content, child, fixture) = with_a_writer_in_copy_up(layering, async |child| {
            child.snapshot(snapshot_name("mid"), false).await.unwrap();
        })
        .await;
        assert!(read_all(&fixture.open_snapshot("child", "mid").await).await == content);
        content[100..150].fill(1);
        assert!(read_all(&child).await == content);
    }
}

/// How long a test waits for what must go on.
const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn writes_are_acknowledged_while_a_snapshot_syncs_what_is_dirty_and_are_in_it() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        let fixture = Fixture::new().await;
        let (mut content, child) = fixture.child(8 * SIZE, layering).await;
        // More than a snapshot leaves to be synced inside the gate.
        let much = pattern(Extent::new(0, 5 * SIZE), 1);
        write(&child, 0, &much).await.unwrap();
        content[..much.len()].copy_from_slice(&much);
        let pause = fixture.faults.pause(Operation::Sync);
        let snapshot = tokio::spawn({
            let child = child.clone();
            async move { child.snapshot(snapshot_name("s"), false).await }
        });
        tokio::time::timeout(LONG, pause.reached()).await.expect("it syncs");
        // One over what is dirty, and one that passes the gate a second time, after a copy-up.
        for offset in [100, 7 * SIZE + 100] {
            let acknowledged = tokio::time::timeout(LONG, write(&child, offset, &[2; 50])).await;
            acknowledged.expect("the gate is open while it syncs").unwrap();
            content[offset as usize..][..50].fill(2);
        }
        assert!(!snapshot.is_finished(), "{layering:?}");
        pause.release();
        snapshot.await.unwrap().unwrap();
        write(&child, 100, &[3; 50]).await.unwrap();
        assert!(read_all(&fixture.open_snapshot("child", "s").await).await == content);
    }
}

#[tokio::test]
async fn a_read_during_a_copy_up_sees_the_old_or_the_new() {
    let mut seen = Vec::new();
    let (mut content, child, _fixture) =
        with_a_writer_in_copy_up(Layering::Sparse, async |child| {
            seen = read(&child, Extent::new(0, 4096)).await.to_vec();
        })
        .await;
    assert!(seen == content[..4096], "nothing has landed yet");
    content[100..150].fill(1);
    assert!(read_all(&child).await == content);

    let fixture = Fixture::new().await;
    let (content, child) = fixture.child(SIZE, Layering::Sparse).await;
    // This time the reader is stopped, and the unit is copied up under it.
    let pause = fixture.faults.pause(Operation::Read);
    let reader = tokio::spawn({
        let child = child.clone();
        async move {
            let length = 4096;
            child
                .read(
                    Extent::new(0, 4096),
                    vellum_core::Buffer::from_vec(vec![0; length]),
                    0..length,
                )
                .await
        }
    });
    pause.reached().await;
    fixture.faults.clear();
    write(&child, 100, &[1; 50]).await.unwrap();
    pause.release();
    let (buffer, result) = reader.await.unwrap();
    result.unwrap();
    let mut new = content[..4096].to_vec();
    new[100..150].fill(1);
    assert!(buffer[..] == content[..4096] || buffer[..] == new[..]);
}

#[tokio::test]
async fn a_request_whose_connection_died_leaves_the_unit_old_or_new_and_usable() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        for drop_at in [Operation::Read, Operation::Fill, Operation::Write] {
            let fixture = Fixture::new().await;
            let (content, child) = fixture.child(SIZE, layering).await;
            let pause = fixture.faults.pause(drop_at);
            let writer = tokio::spawn({
                let child = child.clone();
                async move { write(&child, 100, &[1; 50]).await }
            });
            pause.reached().await;
            writer.abort();
            let _ = writer.await;
            pause.release();
            fixture.faults.clear();
            // What comes later to the same bytes wins, whatever became of the dead request.
            write(&child, 120, &[2; 100]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
            let now = read(&child, Extent::new(0, 4096)).await;
            assert_eq!(now[120..220], [2; 100], "{layering:?} {drop_at:?}");
            assert!(
                now[100..120] == content[100..120] || now[100..120] == [1; 20],
                "{layering:?} {drop_at:?}"
            );
            assert!(now[220..] == content[220..4096], "{layering:?} {drop_at:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_snapshots_and_a_flatten_at_once_lose_nothing() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        let fixture = Fixture::new().await;
        let (mut content, child) = fixture.child(SIZE, layering).await;
        let writers: Vec<_> = (0..8u64)
            .map(|writer| {
                let child = child.clone();
                tokio::spawn(async move {
                    // Each has bytes of its own in every unit, so that all meet everywhere.
                    for unit in 0..SIZE / 4096 {
                        let offset = unit * 4096 + writer * 500;
                        write(&child, offset, &pattern(Extent::new(offset, 500), writer))
                            .await
                            .unwrap();
                    }
                })
            })
            .collect();
        let snapshots = tokio::spawn({
            let child = child.clone();
            async move {
                for number in 0..10 {
                    child.snapshot(snapshot_name(&format!("s{number}")), false).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        });
        child.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
        for writer in writers {
            writer.await.unwrap();
        }
        snapshots.await.unwrap();
        for unit in 0..SIZE / 4096 {
            for writer in 0..8u64 {
                let offset = unit * 4096 + writer * 500;
                content[offset as usize..][..500]
                    .copy_from_slice(&pattern(Extent::new(offset, 500), writer));
            }
        }
        assert!(read_all(&child).await == content, "{layering:?}");
        assert!(child.record().parent().is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn copy_ups_beyond_their_budget_wait_for_each_other_and_all_land() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        let fixture = Fixture::new().await;
        let (mut content, child) = fixture.child(SIZE, layering).await;
        child.close().await.unwrap();
        let id = fixture.catalog.find(&image_name("child")).await.unwrap().id;
        // Less than one object, so that each copy-up takes all there is.
        let limited = ImageOptions { copy_up_bytes_max: 4096, ..ImageOptions::default() };
        let (pools, catalog) = (&fixture.pools, &fixture.catalog);
        let child = Image::open(pools, catalog, &id, Open::Own, limited).await.unwrap();
        let pause = fixture.faults.pause(Operation::Fill);
        fixture.counts.reset();
        let writers: Vec<_> = (0..16u64)
            .map(|writer| {
                let child = child.clone();
                tokio::spawn(async move { write(&child, writer * 65_536 + 100, &[1; 50]).await })
            })
            .collect();
        pause.reached().await;
        tokio::time::sleep(MOMENT).await;
        let asked = |operation| fixture.counts.calls(operation);
        let read = asked(Counted::Read) + asked(Counted::TryRead);
        assert_eq!(
            (read, asked(Counted::Fill)),
            (1, 1),
            "{layering:?}: the first has all there is"
        );
        pause.release();
        for writer in writers {
            writer.await.unwrap().unwrap();
        }
        for writer in 0..16 {
            content[writer * 65_536 + 100..][..50].fill(1);
        }
        assert!(read_all(&child).await == content, "{layering:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_acknowledged_before_a_snapshot_is_in_it() {
    let fixture = Fixture::new().await;
    let (_, child) = fixture.child(SIZE, Layering::Sparse).await;
    let acknowledged = Arc::new(AtomicU64::new(0));
    let is_over = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (child, acknowledged, is_over) = (child.clone(), acknowledged.clone(), is_over.clone());
        async move {
            // To the end, so that there are writes beside every snapshot.
            for number in 1.. {
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
                write(&child, 8, &u64::to_le_bytes(number)).await.unwrap();
                acknowledged.store(number, Ordering::SeqCst);
            }
        }
    });
    let mut last = 0;
    for round in 0..30 {
        while acknowledged.load(Ordering::SeqCst) < last + 2 {
            tokio::task::yield_now().await;
        }
        let before = acknowledged.load(Ordering::SeqCst);
        let name = format!("s{round}");
        child.snapshot(snapshot_name(&name), false).await.unwrap();
        let after = acknowledged.load(Ordering::SeqCst);
        let frozen = read(&fixture.open_snapshot("child", &name).await, Extent::new(8, 8)).await;
        let frozen = u64::from_le_bytes(frozen.try_into().unwrap());
        assert!((before..=after + 1).contains(&frozen), "{before} <= {frozen} <= {after} + 1");
        last = after;
    }
    is_over.store(true, Ordering::SeqCst);
    writer.await.unwrap();
}
