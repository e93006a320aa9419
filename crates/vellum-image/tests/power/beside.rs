//! Single moments of two processes on the same pools, and of a catalog whose own files fail.

use bytes::Bytes;
use vellum_core::Extent;
use vellum_engine::{
    Catalog, Content, ErrorKind, Fill, Guarded, Happened, Head, Part, Repair, Result,
};
use vellum_image::image::Open;
use vellum_image::{CloneOptions, CreateOptions, Image, ImageOptions, Pools, WriteOptions, admin};
use vellum_local::{Canary, LocalCatalog, Mode, OpenOptions, StoreOptions};
use vellum_sim::{Call, Fault, SimDisk};

use crate::ground::{Engine, must_be_in_order};
use crate::life::POOLS;

const SIZE: u64 = 64 << 10;
const EIO: i32 = 5;

/// A process that has both pools open.
struct Process {
    disk: SimDisk,
    canary: Option<Canary>,
    pools: Pools<Engine>,
    catalogs: Vec<Engine>,
}

impl Process {
    async fn on(disk: &SimDisk, canary: Option<Canary>) -> Result<Self> {
        let (pools, mut catalogs) = (Pools::default(), Vec::new());
        for path in POOLS {
            let store = StoreOptions { canary, ..StoreOptions::default() };
            let options =
                OpenOptions { mode: Mode::CreateIfMissing, store, ..OpenOptions::default() };
            let catalog = LocalCatalog::open(disk.clone(), path, options).await?;
            pools.add(catalog.clone());
            catalogs.push(catalog);
        }
        Ok(Self { disk: disk.clone(), canary, pools, catalogs })
    }

    async fn new(seed: u64, canary: Option<Canary>) -> Self {
        let disk = SimDisk::new(seed).with_pool_at(POOLS[1]);
        Self::on(&disk, canary).await.unwrap()
    }

    async fn beside(&self, canary: Option<Canary>) -> Self {
        Self::on(&self.disk.another_process(), canary).await.unwrap()
    }

    async fn create(&self, name: &str) -> Result<()> {
        let options = CreateOptions::default();
        admin::create(&self.catalogs[0], name.parse().unwrap(), SIZE, options).await.map(|_| ())
    }

    async fn own(&self, name: &str) -> Result<Image<Engine>> {
        let id = self.catalogs[0].find(&name.parse().unwrap()).await?.id;
        let options = ImageOptions::default();
        Image::open(&self.pools, &self.catalogs[0], &id, Open::Own, options).await
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let id = self.catalogs[0].find(&name.parse().unwrap()).await?.id;
        admin::remove(&self.pools, &self.catalogs[0], &id).await
    }

    /// Writes a byte everywhere, durably.
    async fn fill(&self, name: &str, byte: u8) -> Result<()> {
        let image = self.own(name).await?;
        let data = Bytes::from(vec![byte; SIZE as usize]);
        image.write(0, data, WriteOptions { durable: true }).await?;
        image.close().await
    }

    /// Whether an image, which must be there, holds a byte everywhere.
    async fn holds(&self, name: &str, byte: u8) -> bool {
        let image = self.own(name).await.unwrap();
        let pieces = image.read_pieces(vellum_core::Extent::new(0, SIZE)).await.unwrap();
        pieces.iter().all(|piece| {
            piece.data.as_ref().is_some_and(|data| data.iter().all(|found| *found == byte))
        })
    }

    /// Clones `a@s` into the other pool.
    async fn clone_into_the_other(&self, name: &str) -> Result<()> {
        let record = self.catalogs[0].find(&"a".parse().unwrap()).await?;
        let snapshot = record.snapshot(&"s".parse().unwrap()).unwrap();
        let (from, into) = (&self.catalogs[0], &self.catalogs[1]);
        let (name, options) = (name.parse().unwrap(), CloneOptions::default());
        admin::clone(&self.pools, from, &record, snapshot, into, name, options).await.map(|_| ())
    }

    /// Lets a process do something until it dies, at a call. `None` if it has died.
    async fn until_it_dies<T>(&self, call: u64, does: impl Future<Output = T>) -> Option<T> {
        self.disk.dies_after(call);
        tokio::select! {
            biased;
            done = does => (!self.disk.is_over()).then_some(done),
            () = self.disk.ended() => None,
        }
    }

    /// The next process, after all have died, which finds the pools in order, unless a mistake was made.
    async fn after_all_died(self) -> Self {
        let disk = self.disk.after_all_died();
        self.next_on(&disk).await.unwrap()
    }

    /// The same, after a power cut; an error if the pools cannot be opened.
    async fn after_a_power_cut(self) -> Result<Self> {
        let disk = self.disk.power_cut();
        self.next_on(&disk).await
    }

    async fn next_on(self, disk: &SimDisk) -> Result<Self> {
        let next = Self::on(disk, None).await?;
        if self.canary.is_none() {
            next.must_be_in_order().await;
        }
        Ok(next)
    }

    async fn must_be_in_order(&self) {
        for catalog in &self.catalogs {
            must_be_in_order(&self.pools, catalog, Repair::No).await;
        }
    }
}

/// A process dies at a call of a removal; another one, which lives on, writes the image if it is there; then all die. Answers
/// whether the removal had more calls than that, and the image is lost.
async fn removal_beside_a_writer(call: u64, canary: Option<Canary>) -> (bool, bool) {
    let living = Process::new(call, canary).await;
    living.create("a").await.unwrap();
    living.fill("a", b'x').await.unwrap();
    let dying = living.beside(canary).await;
    if let Some(removed) = dying.until_it_dies(call, dying.remove("a")).await {
        removed.unwrap();
        return (false, false);
    }
    match living.fill("a", b'y').await {
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::NotFound, "call {call}: {error:?}");
            return (true, false);
        }
        Ok(()) => drop(dying),
    }
    let later = living.after_all_died().await;
    let there = later.catalogs[0].find(&"a".parse().unwrap()).await.is_ok();
    assert!(!there || later.holds("a", b'y').await, "call {call}");
    (true, !there)
}

#[tokio::test]
async fn what_is_written_after_a_removal_died_in_its_commit_stays() {
    let mut call = 1;
    loop {
        let (more, lost) = removal_beside_a_writer(call, None).await;
        assert!(!lost, "call {call}");
        if !more {
            break;
        }
        call += 1;
    }
    assert!(call > 10, "a removal has a commit and files to take away");
}

#[tokio::test]
async fn a_commit_left_by_a_process_that_died_and_not_settled_is_found() {
    let mut lost = 0;
    for call in 1..20 {
        lost += u32::from(removal_beside_a_writer(call, Some(Canary::Leftovers)).await.1);
    }
    assert!(lost > 0);
}

/// A process dies at a call of making a clone in the other pool, while or after another one lists the children of the parent;
/// then all die. Answers whether the clone had more calls than that, and is there and not in its parent's list.
async fn clone_beside_a_lister(call: u64, early: u32) -> (bool, bool) {
    let living = Process::new(call, None).await;
    living.disk.world().yields_max = 2;
    living.create("a").await.unwrap();
    let image = living.own("a").await.unwrap();
    image.snapshot("s".parse().unwrap(), false).await.unwrap();
    image.close().await.unwrap();
    let record = living.catalogs[0].find(&"a".parse().unwrap()).await.unwrap();
    let dying = living.beside(None).await;
    let listing = async {
        for _ in 0..early {
            tokio::task::yield_now().await;
        }
        admin::children(&living.pools, &living.catalogs[0], &record).await.unwrap();
    };
    let making = dying.until_it_dies(call, dying.clone_into_the_other("c"));
    let (made, ()) = futures::join!(making, listing);
    admin::children(&living.pools, &living.catalogs[0], &record).await.unwrap();
    drop(dying);
    let later = living.after_all_died().await;
    let there = later.catalogs[1].find(&"c".parse().unwrap()).await.is_ok();
    let listed = !later.catalogs[0].children(&record.id).await.unwrap().is_empty();
    assert!(there || made.is_none());
    (made.is_none(), there && !listed)
}

#[tokio::test]
async fn a_clone_whose_maker_dies_is_not_there_or_in_its_parents_list() {
    for early in 0..6 {
        let mut call = 1;
        loop {
            let (more, lost) = clone_beside_a_lister(call, early).await;
            assert!(!lost, "call {call}, {early}");
            if !more {
                break;
            }
            call += 1;
        }
        assert!(call > 6, "a clone has two commits");
    }
}

fn wal_sync_fails(disk: &SimDisk) {
    let file = "pool.sqlite-wal";
    disk.fail(Fault { call: Call::SyncData, file, error: EIO, times: 1, skip: 0 });
}

#[tokio::test]
async fn a_removal_that_may_have_happened_does_not_happen_to_who_writes_afterwards() {
    for seed in 0..10 {
        let process = Process::new(seed, None).await;
        process.create("a").await.unwrap();
        process.fill("a", b'x').await.unwrap();
        wal_sync_fails(&process.disk);
        let error = process.remove("a").await.unwrap_err();
        assert_eq!((error.kind(), error.happened()), (ErrorKind::Io, Happened::MaybeDone));
        process.fill("a", b'y').await.unwrap();
        assert!(process.after_all_died().await.holds("a", b'y').await);
    }
}

#[tokio::test]
async fn a_clone_in_another_pool_that_may_have_been_made_is_in_its_parents_list() {
    for seed in 0..10 {
        let process = Process::new(seed, None).await;
        process.create("a").await.unwrap();
        let image = process.own("a").await.unwrap();
        image.snapshot("s".parse().unwrap(), false).await.unwrap();
        let id = image.id().clone();
        image.close().await.unwrap();
        // The parent's list is in another file, whose sync goes well; this is the child's.
        let file = "other/pool.sqlite-wal";
        process.disk.fail(Fault { call: Call::SyncData, file, error: EIO, times: 1, skip: 0 });
        let error = process.clone_into_the_other("c").await.unwrap_err();
        assert_eq!((error.kind(), error.happened()), (ErrorKind::Io, Happened::MaybeDone));
        let later = process.after_a_power_cut().await.unwrap();
        let there = later.catalogs[1].find(&"c".parse().unwrap()).await.is_ok();
        let listed = !later.catalogs[0].children(&id).await.unwrap().is_empty();
        assert!(listed || !there);
    }
}

#[tokio::test]
async fn what_is_committed_after_a_catalog_was_opened_whose_log_could_not_be_synced_stays() {
    for call in 1..12 {
        let first = Process::new(call, None).await;
        first.create("a").await.unwrap();
        // It dies in a commit, which the next one finds in the log.
        let _ = first.until_it_dies(call, first.create("b")).await;
        let disk = first.disk.after_all_died();
        wal_sync_fails(&disk);
        let second = match Process::on(&disk, None).await {
            Ok(second) => second,
            Err(_) => Process::on(&disk.after_all_died(), None).await.unwrap(),
        };
        second.create("c").await.unwrap();
        let third = second.after_a_power_cut().await.unwrap();
        for name in ["a", "c"] {
            assert!(third.own(name).await.is_ok(), "{name} is lost, call {call}");
        }
    }
}

#[tokio::test]
async fn what_is_committed_after_a_catalog_was_closed_whose_storage_failed_stays() {
    let files = ["pool.sqlite-wal", "pool.sqlite"];
    let calls = files.iter().flat_map(|file| [(file, Call::Write), (file, Call::SyncData)]);
    for ((file, call), skip) in calls.flat_map(|at| (0..6).map(move |skip| (at, skip))) {
        for seed in 0..10 {
            let first = Process::new(seed, None).await;
            first.create("a").await.unwrap();
            first.create("b").await.unwrap();
            let disk = first.disk.clone();
            disk.fail(Fault { call, file, error: EIO, times: 1, skip });
            drop(first);
            let second = Process::on(&disk.after_all_died(), None).await.unwrap();
            second.create("c").await.unwrap();
            let third = second.after_a_power_cut().await.unwrap();
            for name in ["a", "b", "c"] {
                let what = format!("{name} is lost: {call:?} {skip} of {file}, seed {seed}");
                assert!(third.own(name).await.is_ok(), "{what}");
            }
        }
    }
}

#[tokio::test]
async fn a_pool_whose_creation_failed_can_be_made_again_and_keeps_what_comes_then() {
    // In the order in which a catalog is made, and given its log.
    let files = ["pool.sqlite-journal", "pool.sqlite", "pool.sqlite-wal"];
    let moments = files.iter().flat_map(|file| {
        let calls = [Call::Write, Call::SyncData].into_iter();
        calls.flat_map(move |call| (0..6).map(move |skip| (file, call, skip)))
    });
    for (file, call, skip) in moments {
        for seed in 0..20 {
            let disk = SimDisk::new(seed).with_pool_at(POOLS[1]);
            disk.fail(Fault { call, file, error: EIO, times: 1, skip });
            let first = match Process::on(&disk, None).await {
                Ok(first) => first,
                Err(_) => Process::on(&disk.after_all_died(), None).await.unwrap(),
            };
            let _ = first.create("a").await;
            first.create("b").await.unwrap();
            let again = first.after_a_power_cut().await;
            let what = format!("{call:?} {skip} of {file}, seed {seed}");
            let again = again.unwrap_or_else(|error| panic!("{error:?}, {what}"));
            assert!(again.own("b").await.is_ok(), "b is lost, {what}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_opens_a_layer_while_another_process_begins_to_fill_it_finds_it_whole() {
    for seed in 0..300 {
        let filling = Process::new(seed, None).await;
        filling.create("a").await.unwrap();
        let image = filling.own("a").await.unwrap();
        image.snapshot("s".parse().unwrap(), false).await.unwrap();
        let record = image.record();
        image.close().await.unwrap();
        let looking = filling.beside(None).await;
        filling.disk.world().yields_max = 4;
        let revision = &record.snapshots[0].revision;
        let fill = async {
            let head = filling.catalogs[0].filler(&record.id, revision).await.unwrap();
            let data = Content::Data(Bytes::from_static(&[7; 4096]));
            let parts = vec![Part { at: Extent::new(0, 4096), content: data }];
            assert_eq!(head.fill(Fill { parts, then: None }).await.unwrap(), Guarded::Done);
            head.close().await.unwrap();
        };
        let look = async {
            for _ in 0..20 {
                looking.catalogs[0].layer(&record.id, revision).await.unwrap();
            }
        };
        tokio::join!(fill, look);
        filling.must_be_in_order().await;
    }
}
