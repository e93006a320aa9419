//! Races: the interleavings that lose data when the guard is a read before a write.

use std::sync::Arc;
use std::time::Duration;

use vellum_core::Extent;
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

#[tokio::test]
async fn a_discard_during_a_copy_up_is_ordered_before_or_after_the_write() {
    let (content, child, _fixture) = with_a_writer_in_copy_up(Layering::Sparse, async |child| {
        child.discard(Extent::new(0, 4096), DiscardPolicy::Zero, false).await.unwrap();
    })
    .await;
    let mut after = vec![0; 4096];
    after[100..150].fill(1);
    assert!(read(&child, Extent::new(0, 4096)).await == after, "the write came after the discard");
    assert!(read(&child, Extent::new(4096, 4096)).await == content[4096..8192]);
}

#[tokio::test]
async fn zeroes_written_during_a_copy_up_do_not_bring_the_parent_back() {
    let (_, child, _fixture) = with_a_writer_in_copy_up(Layering::CopyUp, async |child| {
        child.write_zeroes(Extent::new(0, SIZE), ZeroOptions::default()).await.unwrap();
    })
    .await;
    let mut after = vec![0; SIZE as usize];
    after[100..150].fill(1);
    assert!(read_all(&child).await == after);
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

#[tokio::test]
async fn a_read_during_a_copy_up_sees_the_old_or_the_new() {
    let (mut content, child, _fixture) =
        with_a_writer_in_copy_up(Layering::Sparse, async |_| {}).await;
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
        let writers: Vec<_> = (0..16u64)
            .map(|writer| {
                let child = child.clone();
                tokio::spawn(async move { write(&child, writer * 65_536 + 100, &[1; 50]).await })
            })
            .collect();
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
    let acknowledged = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let writer = tokio::spawn({
        let (child, acknowledged) = (child.clone(), acknowledged.clone());
        async move {
            for number in 1..=3000u64 {
                write(&child, 8, &number.to_le_bytes()).await.unwrap();
                acknowledged.store(number, std::sync::atomic::Ordering::SeqCst);
            }
        }
    });
    for round in 0..30 {
        let before = acknowledged.load(std::sync::atomic::Ordering::SeqCst);
        let name = format!("s{round}");
        child.snapshot(snapshot_name(&name), false).await.unwrap();
        let after = acknowledged.load(std::sync::atomic::Ordering::SeqCst);
        let frozen = read(&fixture.open_snapshot("child", &name).await, Extent::new(8, 8)).await;
        let frozen = u64::from_le_bytes(frozen.try_into().unwrap());
        if before > 0 {
            assert!((before..=after + 1).contains(&frozen), "{before} <= {frozen} <= {after} + 1");
        }
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
}
