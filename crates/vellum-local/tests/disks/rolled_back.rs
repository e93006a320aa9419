//! A volume that is at an earlier moment again, while the same kernel runs: one that was rolled back in place, and one whose file
//! system shut itself down. The live logs of a pool fit it in all that they are bound to, and run ahead of what it holds. With
//! them removed, as `docs/promises.md` says, it must be what a power cut leaves.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vellum_core::{Extent, Runs, State};
use vellum_disk::RealDisk;
use vellum_engine::{
    Catalog, Durability, Guard, Guarded, Head, ImageRecord, Layer, Repair, Result, SetTo, Severity,
    Write,
};
use vellum_local::{LocalCatalog, Mode, OpenOptions, StoreOptions};
use vellum_sim::{History, SECTOR, Value};
use vellum_testkit::mounted::{Kind, Mounted};
use vellum_testkit::process::closed;

use crate::fixture::{MIB, Owner, Pool, new_image, read, snapshot};
use crate::on;

const SIZE: u64 = 8 * MIB;
const BLOCK: u64 = 4096;
const BLOCKS: u64 = SIZE / BLOCK;
/// Before this one blocks are written from the beginning; those behind it first when nothing is synced any more.
const LATE: u64 = BLOCKS * 3 / 4;

pub fn trials() -> Vec<Trial> {
    let on_both = |name, test: crate::Test| {
        [(Kind::Ext4, 128), (Kind::Xfs, 320)].map(|(kind, size)| on(kind, size * MIB, name, test))
    };
    let all = [
        on_both("a_volume_rolled_back_without_its_logs_is_as_after_a_power_cut", |disk| {
            Box::pin(a_volume_rolled_back_without_its_logs_is_as_after_a_power_cut(disk))
        }),
        on_both("a_frozen_volume_rolled_back_without_its_logs_is_as_after_a_power_cut", |disk| {
            Box::pin(a_frozen_volume_rolled_back_without_its_logs_is_as_after_a_power_cut(disk))
        }),
        on_both("a_file_system_that_shut_down_without_its_logs_is_as_after_a_power_cut", |disk| {
            Box::pin(a_file_system_that_shut_down_without_its_logs_is_as_after_a_power_cut(disk))
        }),
    ];
    all.into_iter().flatten().collect()
}

async fn a_volume_rolled_back_without_its_logs_is_as_after_a_power_cut(disk: Mounted) {
    let story = in_use(&disk).await;
    disk.keep().unwrap();
    let (record, then) = goes_on(&disk, story).await;
    disk.go_back().unwrap();
    look_at_what_is_left(&disk, &record, then).await;
}

async fn a_frozen_volume_rolled_back_without_its_logs_is_as_after_a_power_cut(disk: Mounted) {
    let story = in_use(&disk).await;
    disk.keep_frozen().unwrap();
    let (record, then) = goes_on(&disk, story).await;
    disk.go_back().unwrap();
    look_at_what_is_left(&disk, &record, then).await;
}

async fn a_file_system_that_shut_down_without_its_logs_is_as_after_a_power_cut(disk: Mounted) {
    let Story { pool, record, head, history, .. } = in_use(&disk).await;
    let path = pool.path().to_owned();
    disk.shut_down(|| {
        drop((head, pool));
        closed(&path)
    })
    .unwrap();
    look_at_what_is_left(&disk, &record, history).await;
}

/// An image that is being written, and what it may read as.
struct Story {
    pool: Pool,
    record: ImageRecord,
    head: Owner,
    history: History,
    chance: StdRng,
}

impl Story {
    /// Writes and zeroes among the first so many blocks.
    async fn work(&mut self, changes: usize, blocks: u64) {
        for _ in 0..changes {
            let first = self.chance.random_range(0..blocks);
            let count = self.chance.random_range(1..=8).min(blocks - first);
            self.change(Extent::new(first * BLOCK, count * BLOCK)).await;
        }
    }

    async fn change(&mut self, at: Extent) {
        let number = match self.chance.random_bool(0.2) {
            true => 0,
            false => self.history.tick(),
        };
        let change = self.history.begin(at, Value::Holds(number), false);
        let done = match number {
            0 => self.head.set(at, SetTo::Zero, Durability::AtSync).await,
            _ => self.head.write(filled_with(number, at)).await,
        };
        assert_eq!(done.unwrap(), Guarded::Done);
        self.history.end(at, change, false);
    }

    async fn sync(&mut self) {
        let began = self.history.tick();
        self.head.sync().await.unwrap();
        self.history.synced(began);
    }
}

fn filled_with(number: u64, at: Extent) -> Write {
    let data = Bytes::from(number.to_le_bytes().repeat(at.len_usize() / 8));
    Write { offset: at.offset(), data, guard: Guard::Edges, durability: Durability::AtSync }
}

/// Opens the pool; nothing is synced there but when it is asked for.
async fn open(disk: &Mounted, mode: Mode) -> Result<Pool> {
    let store =
        StoreOptions { sync_interval: Duration::from_secs(3600), ..StoreOptions::default() };
    let options = OpenOptions { mode, store, ..OpenOptions::default() };
    LocalCatalog::open(RealDisk::default(), disk.path().join("pool"), options).await
}

/// An image in the middle of its work: much of it synced, some of it in the page cache alone, and all of it in its live log, which
/// is on the medium.
async fn in_use(disk: &Mounted) -> Story {
    let pool = open(disk, Mode::CreateIfMissing).await.unwrap();
    let record = pool.create(new_image("image", SIZE)).await.unwrap();
    let head = pool.own(&record.id).await.unwrap();
    let (history, chance) = (History::new(), StdRng::seed_from_u64(17));
    let mut story = Story { pool, record, head, history, chance };
    for _ in 0..4 {
        story.work(100, LATE).await;
        story.sync().await;
    }
    story.work(100, BLOCKS).await;
    for block in [LATE, BLOCKS - 1] {
        story.change(Extent::new(block * BLOCK, BLOCK)).await;
    }
    for log in logs(story.pool.path()) {
        std::fs::File::open(log).unwrap().sync_all().unwrap();
    }
    story
}

/// Works on, in what will never have been; answers what was there before.
async fn goes_on(disk: &Mounted, mut story: Story) -> (ImageRecord, History) {
    let then = story.history.clone();
    story.work(100, BLOCKS).await;
    story.sync().await;
    let (head, _) = snapshot(story.head.clone(), "never", false).await;
    story.head = head;
    story.work(100, BLOCKS).await;
    story.head.close().await.unwrap();
    drop(story.pool);
    closed(&disk.path().join("pool")).unwrap();
    (story.record, then)
}

async fn look_at_what_is_left(disk: &Mounted, record: &ImageRecord, mut history: History) {
    let path = disk.path().join("pool");
    let all = Extent::new(0, SIZE);
    let states = async || {
        let pool = open(disk, Mode::ReadOnly).await.unwrap();
        let head = pool.read_head(&record.id).await.unwrap();
        let mut runs = Runs::new();
        head.load_states(all, usize::MAX, &mut runs).await.unwrap();
        runs
    };
    let believed = states().await;
    closed(&path).unwrap();
    for log in logs(&path) {
        std::fs::remove_file(log).unwrap();
    }
    // Were the logs not believed, this would show nothing.
    assert_ne!(states().await, believed);
    closed(&path).unwrap();

    let pool = open(disk, Mode::Existing).await.unwrap();
    assert_eq!(pool.get(&record.id).await.unwrap(), *record);
    nothing_is_wrong(&pool, Repair::Safe).await;
    assert_eq!(pool.check(None, Repair::No).await.unwrap(), []);
    let head = pool.own(&record.id).await.unwrap();
    let (bytes, runs) = read(head.layer(), all).await;
    for (sector, content) in bytes.chunks(SECTOR).enumerate() {
        let sector = sector as u64;
        let (found, allowed) =
            (value(&runs, sector, content), history.allowed_after_power_cut(sector));
        let story = history.story(sector);
        assert!(allowed.contains(&found), "{sector}: {found:?}, and not {allowed:?}; {story}");
        history.settle(sector, found);
    }
    // And it goes on.
    let mut story =
        Story { pool, record: record.clone(), head, history, chance: StdRng::seed_from_u64(18) };
    story.work(100, BLOCKS).await;
    story.head.close().await.unwrap();
    nothing_is_wrong(&story.pool, Repair::No).await;
}

/// A check finds space that nothing refers to, as a power cut leaves it, and nothing else.
async fn nothing_is_wrong(pool: &Pool, repair: Repair) {
    let found = pool.check(None, repair).await.unwrap();
    assert!(found.iter().all(|finding| finding.severity == Severity::Leak), "{found:?}");
}

fn value(runs: &Runs, sector: u64, content: &[u8]) -> Value {
    let at = sector * SECTOR as u64;
    let run = runs.iter().find(|run| run.extent.offset() <= at && at < run.extent.end()).unwrap();
    if run.state == State::Inherited {
        return Value::Inherited;
    }
    let number: [u8; 8] = content[..8].try_into().unwrap();
    let whole = content.chunks(8).all(|chunk| chunk == number);
    assert!(whole, "sector {sector} is torn");
    Value::Holds(u64::from_le_bytes(number))
}

/// What is to be removed from the pool's `live` directory.
fn logs(pool: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(pool.join("live")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}
