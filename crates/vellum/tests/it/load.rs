//! Operations while clients write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use vellum_core::Extent;
use vellum_engine::Layering;
use vellum_image::CloneOptions;
use vellum_image::image::Open;
use vellum_testkit::nbd::{Client, Command};

use crate::fixture::{MIB, PATIENCE, Place, content, filled, pattern, spec, within};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 512;
const SIZE: u64 = BLOCK * BLOCKS;

/// Writes stamps 1, 2, 3 ... to blocks in a scattered order, each after the one before was acknowledged.
struct Writer {
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Client>,
}

/// Which block a stamp goes to: a permutation, so that every block is written once in a round.
fn block_of(stamp: u64) -> u64 {
    (stamp * 197) % BLOCKS
}

fn stamped(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(BLOCK as usize / 8)
}

impl Writer {
    fn start(mut client: Client) -> Self {
        let (acknowledged, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (done, ended) = (acknowledged.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            for stamp in 1.. {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                if client.write(block_of(stamp) * BLOCK, &stamped(stamp)).is_err() {
                    break;
                }
                done.store(stamp, Ordering::SeqCst);
            }
            client
        });
        Self { acknowledged, stop, thread }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    async fn reaches(&self, stamp: u64) {
        crate::fixture::until("the writer goes on", async || self.acknowledged() >= stamp).await;
    }

    fn end(self) -> Client {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// The stamp up to which all writes are in `content`, and none after; the rest is `below`.
fn moment_of(content: &[u8], below: &[u8]) -> u64 {
    let stamp_of = |block: u64| {
        let bytes = &content[(block * BLOCK) as usize..][..BLOCK as usize];
        if bytes == &below[(block * BLOCK) as usize..][..BLOCK as usize] {
            return 0;
        }
        let stamp = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert!(bytes == stamped(stamp), "block {block} is torn");
        assert_eq!(block_of(stamp), block);
        stamp
    };
    let moment = (0..BLOCKS).map(stamp_of).max().unwrap();
    for earlier in moment.saturating_sub(BLOCKS - 1).max(1)..=moment {
        assert_eq!(
            stamp_of(block_of(earlier)),
            earlier,
            "a snapshot at {moment} lacks an earlier write"
        );
    }
    moment
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn snapshots_and_clones_of_an_image_that_is_written_show_one_moment_each() {
    let place = Place::new();
    let (holder, other) = (place.user().await, place.user().await);
    let below = pattern(SIZE, 1);
    filled(&holder, "gold", &below).await;
    holder.create_snapshot(&spec("gold@s")).await.unwrap();
    for layering in [Layering::Sparse, Layering::CopyUp] {
        let child = layering.to_string();
        let options = CloneOptions { layering: Some(layering), ..Default::default() };
        holder.clone_image(&spec("gold@s"), &spec(&child), options).await.unwrap();
        let serving = place.serve(&holder, "nbd").await;
        let writer = Writer::start(place.client("nbd", &child).await);
        let mut moments = Vec::new();
        for round in 0..8 {
            writer.reaches(writer.acknowledged() + 40).await;
            let before = writer.acknowledged();
            let clone = format!("{child}-{round}");
            within(other.clone_image(&spec(&child), &spec(&clone), Default::default()))
                .await
                .unwrap();
            moments.push((clone, before, writer.acknowledged()));
        }
        drop(writer.end());
        assert!(serving.shutdown(PATIENCE).await);
        for (clone, before, after) in moments {
            let moment = moment_of(&content(&other, &clone).await, &below);
            assert!((before..=after + 1).contains(&moment), "{clone}: {before} {moment} {after}");
        }
    }
    assert!(content(&other, "gold@s").await == below);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flatten_loses_no_write_and_brings_none_back() {
    let place = Place::new();
    let (holder, other) = (place.user().await, place.user().await);
    // Longer than what is written, so that the flatten has enough to do.
    let below = pattern(64 * MIB, 1);
    filled(&holder, "gold", &below).await;
    holder.create_snapshot(&spec("gold@s")).await.unwrap();
    holder.clone_image(&spec("gold@s"), &spec("child"), Default::default()).await.unwrap();
    let serving = place.serve(&holder, "nbd").await;
    let writer = Writer::start(place.client("nbd", "child").await);
    writer.reaches(50).await;
    let flattening = {
        let other = other.clone();
        tokio::spawn(
            async move { other.flatten(&spec("child"), Default::default(), |_, _| {}).await },
        )
    };
    // A snapshot in the middle makes the lowest layer of the image a sealed one.
    within(other.create_snapshot(&spec("child@middle"))).await.unwrap();
    within(flattening).await.unwrap().unwrap();
    within(other.remove(&spec("gold"))).await.unwrap();
    writer.reaches(writer.acknowledged() + 50).await;
    let acknowledged = writer.acknowledged();
    drop(writer.end());
    assert!(serving.shutdown(PATIENCE).await);
    let found = content(&other, "child").await;
    assert!(moment_of(&found, &below) >= acknowledged);
    assert!(found[SIZE as usize..] == below[SIZE as usize..]);
    moment_of(&content(&other, "child@middle").await, &below);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flatten_that_is_given_up_can_be_started_again() {
    let place = Place::new();
    let (holder, other) = (place.user().await, place.user().await);
    let below = pattern(32 * MIB, 1);
    filled(&holder, "gold", &below).await;
    holder.create_snapshot(&spec("gold@s")).await.unwrap();
    holder.clone_image(&spec("gold@s"), &spec("child"), Default::default()).await.unwrap();
    let serving = place.serve(&holder, "nbd").await;
    let client = place.client("nbd", "child").await;
    let slow = vellum_image::FlattenOptions { bytes_per_second: Some(MIB), ..Default::default() };
    let child = spec("child");
    let flatten = other.flatten(&child, slow, |_, _| {});
    tokio::time::timeout(Duration::from_millis(700), flatten).await.expect_err("it is slow");
    // Whoever asked is gone, and so is the flatten soon: a new one is not told that one is under way.
    crate::fixture::until("the flatten that nobody waits for ends", async || {
        within(other.flatten(&child, Default::default(), |_, _| {})).await.is_ok()
    })
    .await;
    within(other.remove(&spec("gold"))).await.unwrap();
    drop(client);
    assert!(serving.shutdown(PATIENCE).await);
    assert!(content(&other, "child").await == below);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_clients_of_one_image_see_each_others_writes() {
    let place = Place::new();
    let vellum = place.user().await;
    filled(&vellum, "a", &pattern(SIZE, 1)).await;
    let serving = place.serve(&vellum, "nbd").await;
    let mut clients = [place.client("nbd", "a").await, place.client("nbd", "a").await];
    for round in 0..64 {
        let at = round * BLOCK;
        clients[(round % 2) as usize].write(at, &stamped(round)).unwrap();
        let reader = &mut clients[((round + 1) % 2) as usize];
        assert!(reader.read(at, BLOCK as u32).unwrap() == stamped(round));
        reader.flush().unwrap();
    }
    clients[0].clear(Command::WriteZeroes, 0, SIZE as u32 / 2).unwrap();
    assert!(clients[1].read(0, SIZE as u32 / 2).unwrap().iter().all(|byte| *byte == 0));
    drop(clients);
    assert!(serving.shutdown(PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_drain_under_load_loses_nothing_that_was_acknowledged() {
    for round in 0..5 {
        let place = Place::new();
        let vellum = place.user().await;
        let below = pattern(SIZE, 1);
        filled(&vellum, "a", &below).await;
        let serving = place.serve(&vellum, "nbd").await;
        let writer = Writer::start(place.client("nbd", "a").await);
        writer.reaches(30 * round + 1).await;
        assert!(within(serving.shutdown(PATIENCE)).await);
        let acknowledged = writer.acknowledged();
        drop(writer.end());
        let other = place.user().await;
        assert!(moment_of(&content(&other, "a").await, &below) >= acknowledged);
    }
}

/// Each of these opens the image for a moment. A client that comes in that moment must not be turned away, nor may they be because
/// a client comes or goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn short_operations_and_short_connections_do_not_turn_each_other_away() {
    let place = Place::new();
    let (holder, other) = (place.user().await, place.user().await);
    filled(&holder, "a", &pattern(SIZE, 1)).await;
    let options = vellum::ServeOptions {
        socket: Some(place.file("nbd")),
        grace: Duration::ZERO,
        ..Default::default()
    };
    let serving = holder.serve(options).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let operator = {
        let (other, stop) = (other.clone(), stop.clone());
        tokio::spawn(async move {
            let mut round = 0;
            while !stop.load(Ordering::SeqCst) {
                let located = other.locate(&spec("a")).await?;
                other.usage(&located).await?;
                other.create_snapshot(&spec(&format!("a@r{round}"))).await?;
                other.discard(&spec("a"), Extent::new(0, BLOCK), Default::default()).await?;
                other.remove_snapshot(&spec(&format!("a@r{round}"))).await?;
                round += 1;
            }
            Ok::<_, vellum::Error>(round)
        })
    };
    for round in 0..150 {
        let mut client =
            place.try_client("nbd", "a").await.unwrap_or_else(|error| panic!("{round}: {error:#}"));
        client.write(BLOCK, &stamped(round)).unwrap();
        client.disconnect().unwrap();
        tokio::time::sleep(Duration::from_millis(round % 5)).await;
    }
    stop.store(true, Ordering::SeqCst);
    assert!(within(operator).await.unwrap().unwrap() > 0);
    assert!(serving.shutdown(PATIENCE).await);
    other.open_image(&spec("a"), Open::Own).await.unwrap();
}
