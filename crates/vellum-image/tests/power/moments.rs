//! Single moments that stories have found, each told by itself.

use bytes::Bytes;
use vellum_core::{Buffer, Extent};
use vellum_engine::{Catalog, Repair};
use vellum_image::image::Open;
use vellum_image::{
    CreateOptions, DiscardPolicy, Image, ImageOptions, Pools, WriteOptions, ZeroOptions, admin,
};
use vellum_local::{Canary, LocalCatalog, Mode, OpenOptions, StoreOptions};
use vellum_sim::{Call, SimDisk};

use crate::ground::must_be_in_order;

type Engine = LocalCatalog<SimDisk>;

const SIZE: u64 = 64 << 10;

async fn pool(disk: &SimDisk) -> (Pools<Engine>, Engine) {
    pool_with(disk, None).await
}

async fn pool_with(disk: &SimDisk, canary: Option<Canary>) -> (Pools<Engine>, Engine) {
    let store = StoreOptions { canary, ..StoreOptions::default() };
    let options = OpenOptions { mode: Mode::CreateIfMissing, store, ..OpenOptions::default() };
    let catalog = LocalCatalog::open(disk.clone(), "/pool", options).await.unwrap();
    let pools = Pools::default();
    pools.add(catalog.clone());
    (pools, catalog)
}

async fn open(pools: &Pools<Engine>, catalog: &Engine, name: &str) -> Image<Engine> {
    let id = catalog.find(&name.parse().unwrap()).await.unwrap().id;
    Image::open(pools, catalog, &id, Open::Own, ImageOptions::default()).await.unwrap()
}

/// An image of this name, full of a byte, durably.
async fn filled(pools: &Pools<Engine>, catalog: &Engine, name: &str, byte: u8) -> Image<Engine> {
    let options = CreateOptions::default();
    admin::create(catalog, name.parse().unwrap(), SIZE, options).await.unwrap();
    let image = open(pools, catalog, name).await;
    let data = Bytes::from(vec![byte; SIZE as usize]);
    image.write(0, data, WriteOptions { durable: true }).await.unwrap();
    image
}

async fn content(image: &Image<Engine>) -> Vec<u8> {
    let length = SIZE as usize;
    let at = Extent::new(0, SIZE);
    let (buffer, holes) = image.read(at, Buffer::from_vec(vec![0xaa; length]), 0..length).await;
    holes.unwrap();
    buffer.to_vec()
}

#[tokio::test]
async fn zeros_are_not_acknowledged_before_those_they_rely_on() {
    let disk = SimDisk::new(1);
    let (pools, catalog) = pool(&disk).await;
    let image = filled(&pools, &catalog, "a", b'x').await;
    // So that zeros are a state of the new head, and no hole in a file.
    image.snapshot("s".parse().unwrap(), false).await.unwrap();
    let at = Extent::new(0, 8192);
    image.write(16384, Bytes::from(vec![b'y'; 4096]), WriteOptions::default()).await.unwrap();
    let hold = disk.hold(Call::Write, ".0");
    let mut first = Box::pin(image.write_zeroes(at, ZeroOptions::default()));
    tokio::select! {
        biased;
        _ = &mut first => panic!("its record cannot be written"),
        () = hold.arrived() => {}
    }
    let mut again = Box::pin(image.write_zeroes(at, ZeroOptions::default()));
    let mut discarded = Box::pin(image.discard(at, DiscardPolicy::Zero, false));
    for _ in 0..100 {
        assert!(futures::poll!(&mut again).is_pending());
        assert!(futures::poll!(&mut discarded).is_pending());
        tokio::task::yield_now().await;
    }
    drop(hold);
    let (first, again, discarded) = futures::join!(first, again, discarded);
    first.and(again).and(discarded).unwrap();
    image.close().await.unwrap();
    must_be_in_order(&pools, &catalog, Repair::No).await;
}

/// More than a snapshot leaves to be synced inside its gate.
const MUCH: u64 = 5 << 20;

/// Fills a part of an image, so many times as long as `MUCH`, that nobody else fills.
async fn fill(image: &Image<Engine>, part: u8, length: u64) {
    let data = Bytes::from(vec![part; length as usize]);
    image.write(u64::from(part) * MUCH, data, WriteOptions::default()).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_syncs_ahead_of_its_gate_while_much_is_left_and_three_times_at_most() {
    for ahead in 1..=3u8 {
        let disk = SimDisk::new(1);
        let (pools, catalog) = pool(&disk).await;
        let (name, options) = ("a".parse().unwrap(), CreateOptions::default());
        admin::create(&catalog, name, 8 * MUCH, options).await.unwrap();
        let image = open(&pools, &catalog, "a").await;
        fill(&image, 1, MUCH).await;
        let mut hold = disk.hold(Call::SyncData, "data.0");
        let mut taking = Box::pin(image.snapshot("s".parse().unwrap(), false));
        for sync in 1..=ahead {
            tokio::select! {
                biased;
                _ = &mut taking => panic!("its sync stands still"),
                () = hold.arrived() => {}
            }
            // Acknowledged while it stands still: the gate is open.
            let much = sync < ahead || ahead == 3;
            fill(&image, 1 + sync, if much { MUCH } else { 4096 }).await;
            let next = disk.hold(Call::SyncData, "data.0");
            drop(std::mem::replace(&mut hold, next));
        }
        tokio::select! {
            biased;
            _ = &mut taking => panic!("what is left is synced, ahead {ahead}"),
            () = hold.arrived() => {}
        }
        let mut late = Box::pin(fill(&image, 7, 4096));
        for _ in 0..100 {
            assert!(futures::poll!(&mut late).is_pending(), "the gate is open, ahead {ahead}");
            tokio::task::yield_now().await;
        }
        drop(hold);
        let (taken, ()) = futures::join!(taking, late);
        taken.unwrap();
        let id = image.id().clone();
        let (what, options) = (Open::Snapshot("s".parse().unwrap()), ImageOptions::default());
        let frozen = Image::open(&pools, &catalog, &id, what, options).await.unwrap();
        for (part, there) in (1..=7).map(|part| (part, part <= 1 + ahead)) {
            let at = Extent::new(u64::from(part) * MUCH, 4096);
            let pieces = frozen.read_pieces(at).await.unwrap();
            let is_there = pieces[0].data.as_ref().is_some_and(|data| data[0] == part);
            assert_eq!(is_there, there, "part {part}, ahead {ahead}");
        }
        drop(frozen);
        image.close().await.unwrap();
        must_be_in_order(&pools, &catalog, Repair::No).await;
    }
}

/// Ends the removal of an image at a call, by the death of the process, and the next life, which collects what it finds, at
/// another one, by a power cut. Answers whether the removal had more calls than that, and whether the image is damaged.
async fn removal_cut_at(call: u64, then: u64, canary: Option<Canary>) -> (bool, bool) {
    let disk = SimDisk::new(call ^ then);
    let (pools, catalog) = pool(&disk).await;
    filled(&pools, &catalog, "a", b'x').await.close().await.unwrap();
    let id = catalog.find(&"a".parse().unwrap()).await.unwrap().id;
    disk.world().calls_left = Some(call);
    tokio::select! {
        biased;
        removed = admin::remove(&pools, &catalog, &id) => {
            if !disk.is_over() {
                removed.unwrap();
                return (false, false);
            }
        }
        () = disk.ended() => {}
    }
    let disk = disk.process_death();
    disk.world().calls_left = Some(then);
    let collecting = async {
        let _open = pool_with(&disk, canary).await;
        for _ in 0..500 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        () = disk.ended() => {}
        () = collecting => {}
    }
    let disk = disk.power_cut();
    let (pools, catalog) = pool(&disk).await;
    if canary.is_none() {
        must_be_in_order(&pools, &catalog, Repair::No).await;
    }
    let found = vellum_image::check::check(&pools, &catalog, None, Repair::No).await.unwrap();
    if found.iter().any(|it| it.severity == vellum_engine::Severity::Damage) {
        return (true, true);
    }
    for record in catalog.list(None, 10).await.unwrap() {
        let image = open(&pools, &catalog, record.name.as_ref()).await;
        if content(&image).await != vec![b'x'; SIZE as usize] {
            return (true, true);
        }
    }
    (true, false)
}

#[tokio::test]
async fn a_removal_that_died_in_its_commit_takes_no_file_before_it_is_durable() {
    let mut call = 1;
    'calls: loop {
        for then in 5..25 {
            let (more, damaged) = removal_cut_at(call, then, None).await;
            assert!(!damaged, "calls {call}, {then}");
            if !more {
                break 'calls;
            }
        }
        call += 1;
    }
    assert!(call > 10, "a removal has a commit and files to take away");
}

#[tokio::test]
async fn a_catalog_that_is_believed_before_it_is_durable_is_found() {
    for call in 1..16 {
        for then in 5..25 {
            if removal_cut_at(call, then, Some(Canary::UnsyncedCatalog)).await.1 {
                return;
            }
        }
    }
    panic!("no removal finds it");
}
