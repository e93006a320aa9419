//! An image that several have open, and hand to each other.

use std::time::Duration;

use vellum_core::Extent;
use vellum_engine::{Catalog, ErrorKind, Layering, Ownership};
use vellum_image::{CreateOptions, DiscardPolicy, FlattenOptions, Job, MappedKind, ZeroOptions};

use super::fixture::*;

const SIZE: u64 = 1 << 20;

fn block(number: u64) -> Extent {
    Extent::new(number * BLOCK, BLOCK)
}

/// What another process does to an image while it has it.
async fn elsewhere(there: &Fixture, seed: u8) {
    let image = there.open("child").await;
    write(&image, block(2).offset(), &[seed; BLOCK as usize]).await.unwrap();
    image.write_zeroes(block(3), ZeroOptions::default()).await.unwrap();
    image.snapshot(snapshot_name(&format!("there-{seed}")), false).await.unwrap();
    write(&image, block(4).offset(), &[seed; BLOCK as usize]).await.unwrap();
    image.close().await.unwrap();
}

#[tokio::test]
async fn an_image_comes_back_with_whatever_request_is_next_and_with_what_the_other_wrote() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        let here = Fixture::new().await;
        let (mut want, image) = here.child(SIZE, layering).await;
        let there = here.another_process().await;
        for seed in 1..=9_u8 {
            let at = block(20 + u64::from(seed));
            image.hand_over().await.unwrap();
            image.hand_over().await.unwrap();
            assert_eq!((image.is_handed_over(), image.ownership()), (true, Ownership::Lost));
            elsewhere(&there, seed).await;
            want[2 * 4096..][..4096].fill(seed);
            want[3 * 4096..][..4096].fill(0);
            want[4 * 4096..][..4096].fill(seed);
            match seed {
                1 => assert!(read(&image, block(4)).await == [seed; 4096]),
                2 => {
                    write(&image, at.offset() + 7, &[seed; 100]).await.unwrap();
                    want[at.offset() as usize + 7..][..100].fill(seed);
                }
                3 => {
                    image.write_zeroes(at, ZeroOptions::default()).await.unwrap();
                    want[at.offset() as usize..][..4096].fill(0);
                }
                4 => {
                    image.discard(block(4), DiscardPolicy::Zero, false).await.unwrap();
                    let zeroed = layering == Layering::Sparse || is_zero(&image, block(4)).await;
                    assert!(zeroed, "its object was written, and is not inherited any more");
                    want[4 * 4096..][..4096].fill(0);
                }
                5 => drop(image.snapshot(snapshot_name("here"), false).await.unwrap()),
                6 => {
                    let map = image.map(block(4), 9).await.unwrap();
                    assert_eq!((map[0].kind, map[0].depth), (MappedKind::Data, 1));
                }
                7 => {
                    let (options, job) = (FlattenOptions::default(), Job::default());
                    assert!(image.flatten(options, &job).await.unwrap().parent().is_none());
                }
                8 => image.discard(at, DiscardPolicy::Inherit, false).await.unwrap(),
                _ => {
                    image.sync().await.unwrap();
                    assert!(image.is_handed_over(), "there is nothing to sync");
                }
            }
            if seed == 8 {
                want[at.offset() as usize..][..4096].copy_from_slice(&read(&image, at).await);
            }
            assert!(read_all(&image).await == want, "after {seed}, {layering:?}");
            assert_eq!((image.is_handed_over(), image.ownership()), (false, Ownership::Held));
        }
        image.close().await.unwrap();
    }
}

async fn is_zero(image: &TestImage, at: Extent) -> bool {
    read(image, at).await.iter().all(|byte| *byte == 0)
}

#[tokio::test]
async fn a_request_waits_for_an_image_that_another_has() {
    let here = Fixture::new().await;
    here.create("a", SIZE, CreateOptions::default()).await;
    let there = here.another_process().await;
    let mine = here.open("a").await;
    mine.hand_over().await.unwrap();
    let theirs = there.open("a").await;
    write(&theirs, 0, &[1; 4096]).await.unwrap();
    let waiting = tokio::spawn({
        let mine = mine.clone();
        async move { read(&mine, block(0)).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    write(&theirs, 0, &[2; 4096]).await.unwrap();
    theirs.hand_over().await.unwrap();
    assert!(waiting.await.unwrap() == [2; 4096]);
    mine.close().await.unwrap();
    // Whoever closed an image gave it up for good, also one that was away.
    write(&theirs, 0, &[3; 4096]).await.unwrap();
    theirs.hand_over().await.unwrap();
    theirs.clone().close().await.unwrap();
    let error = write(&theirs, 0, &[4; 4096]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OwnershipLost);
    // Nor is one handed over that was closed, and so kept for a return.
    let closed = here.open("a").await;
    closed.clone().close().await.unwrap();
    assert_eq!(closed.hand_over().await.unwrap_err().kind(), ErrorKind::OwnershipLost);
    assert_eq!(write(&closed, 0, &[5; 4096]).await.unwrap_err().kind(), ErrorKind::OwnershipLost);
    assert!(read(&here.open("a").await, block(0)).await == [3; 4096]);
}

#[tokio::test]
async fn an_image_that_is_flattened_or_open_for_reading_is_not_handed_over() {
    let here = Fixture::new().await;
    let (_, image) = here.child(4 * SIZE, Layering::Sparse).await;
    let job = Job::default();
    let slow = FlattenOptions { bytes_per_second: Some(1), ..FlattenOptions::default() };
    let flatten = image.flatten(slow, &job);
    let refused = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!image.can_be_handed_over());
        let refused = image.hand_over().await;
        job.stop();
        refused
    };
    assert!(image.can_be_handed_over());
    let (flattened, refused) = futures::join!(flatten, refused);
    assert_eq!(flattened.unwrap_err().kind(), ErrorKind::Stopped);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Busy);
    image.hand_over().await.unwrap();
    assert!(!image.can_be_handed_over());
    let snapshot = here.open_snapshot("gold", "s").await;
    assert_eq!(snapshot.hand_over().await.unwrap_err().kind(), ErrorKind::ReadOnly);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_hand_an_image_to_each_other_beside_their_requests_lose_no_write() {
    const ROUNDS: u64 = 60;
    let here = Fixture::new().await;
    let (want, first) = here.child(SIZE, Layering::Sparse).await;
    let there = here.another_process().await;
    first.hand_over().await.unwrap();
    let second = there.open("child").await;
    let mut writers = tokio::task::JoinSet::new();
    for (nth, image) in [first.clone(), second.clone()].into_iter().enumerate() {
        for task in 0..3 {
            let image = image.clone();
            // Each has a block of its own, which is in an object with those of others.
            let at = block(nth as u64 + 2 * task);
            writers.spawn(async move {
                for round in 0..ROUNDS {
                    let byte = round as u8 + 1;
                    write(&image, at.offset() + round, &[byte; 64]).await.unwrap();
                    let found = read(&image, at).await;
                    assert!(found[round as usize..][..64] == [byte; 64]);
                }
            });
        }
    }
    let give = async {
        loop {
            for image in [&first, &second] {
                image.hand_over().await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let all = async { while writers.join_next().await.transpose().unwrap().is_some() {} };
    tokio::select! { () = give => (), () = all => () }
    for image in [&first, &second] {
        image.hand_over().await.unwrap();
    }
    let now = read_all(&first).await;
    for nth in 0..6_usize {
        let ours = &now[nth * 4096..][..4096];
        let mut expected = want[nth * 4096..][..4096].to_vec();
        for round in 0..ROUNDS as usize {
            expected[round..][..64].fill(round as u8 + 1);
        }
        assert!(ours == expected, "block {nth}");
    }
    assert!(now[6 * 4096..] == want[6 * 4096..]);
    first.close().await.unwrap();
    second.close().await.unwrap();
    let record = here.catalog.find(&image_name("child")).await.unwrap();
    assert!(record.parent().is_some());
}
