//! [`Ground`]: what a process stands on, and which answers of a storage that fails its life goes on after.

use std::cell::Cell;
use std::rc::Rc;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::sync::Notify;
use vellum_engine::{Error, ErrorKind, Repair, Result, Severity};
use vellum_image::{Pools, check};
use vellum_local::LocalCatalog;
use vellum_sim::{Call, Fault, SimDisk};

pub type Engine = LocalCatalog<SimDisk>;

pub const EIO: i32 = 5;
pub const ENOSPC: i32 = 28;

/// What a process stands on. Those that live at once share all but the disk.
#[derive(Clone)]
pub struct Ground {
    pub disk: SimDisk,
    /// Names the process in the book.
    pub process: u64,
    /// Another one lives, or lived, at the same time.
    pub beside: Rc<Cell<bool>>,
    /// Layers were told to fail.
    pub trouble: Rc<Cell<bool>>,
    /// A catalog was told to fail.
    pub catalog_trouble: Rc<Cell<bool>>,
    /// One of them did, and somebody was told, who gave the life up.
    pub heard: Rc<Cell<bool>>,
    /// A catalog failed, and failed again when that was to be settled: an image has stopped.
    unsettled: Rc<Cell<bool>>,
    pub given_up: Rc<Notify>,
    /// When these lives began, or somebody last heard from a catalog.
    answered: Rc<Cell<u64>>,
    began: u64,
    /// How many calls had failed by then.
    failures: u64,
}

impl Ground {
    pub fn new(disk: &SimDisk, process: u64) -> Self {
        let began = disk.world().now();
        Self {
            disk: disk.clone(),
            process,
            beside: Rc::default(),
            trouble: Rc::default(),
            catalog_trouble: Rc::default(),
            heard: Rc::default(),
            unsettled: Rc::default(),
            given_up: Rc::default(),
            answered: Rc::new(Cell::new(began)),
            began,
            failures: disk.world().failures(),
        }
    }

    /// What another process stands on, which begins now.
    pub fn of_another(&self, process: u64) -> Self {
        self.beside.set(true);
        Self { disk: self.disk.another_process(), process, ..self.clone() }
    }

    /// Lets layers fail from now on: a sync, another call of one of their files, or every write once the space is used up.
    pub fn make_trouble(&self, chance: &mut StdRng) {
        self.trouble.set(true);
        let (call, file) = match chance.random_range(0..10) {
            0..2 => {
                self.disk.world().free = chance.random_range(0..200);
                return;
            }
            2..5 => (Call::SyncData, "data.0"),
            5 => (Call::SyncData, "map"),
            6 => (Call::Write, one_of(chance, &["data.0", "map", ".0", ".1"])),
            7 => (Call::Punch, "data.0"),
            8 => (Call::Create, one_of(chance, &["data.0", "map", ".0", ".1"])),
            // Of whichever directory, since a layer's has a name of its own.
            _ => (Call::SyncDir, ""),
        };
        let error = if chance.random_bool(0.7) { EIO } else { ENOSPC };
        let most = if call == Call::SyncData { 2 } else { 4 };
        let (times, skip) = (chance.random_range(1..3), chance.random_range(0..most));
        self.disk.fail(Fault { call, file, error, times, skip });
    }

    /// Lets a catalog fail, at some call that is still to come.
    pub fn make_catalog_trouble(&self, chance: &mut StdRng) {
        self.catalog_trouble.set(true);
        let file = if chance.random_bool(0.8) { "pool.sqlite-wal" } else { "pool.sqlite" };
        let error = if chance.random_bool(0.6) { EIO } else { ENOSPC };
        let (call, times, skip) = if chance.random_bool(0.5) {
            (Call::SyncData, 1, chance.random_range(0..3))
        } else {
            (Call::Write, chance.random_range(1..4), chance.random_range(0..12))
        };
        self.disk.fail(Fault { call, file, error, times, skip });
    }

    /// Whether an error is what a catalog that was told to fail may say.
    pub fn explains(&self, error: &Error) -> bool {
        self.catalog_trouble.get() && matches!(error.kind(), ErrorKind::Io | ErrorKind::NoSpace)
    }

    /// A catalog has answered.
    pub fn hears(&self) {
        self.answered.set(self.disk.world().now());
    }

    /// Whether a catalog did fail.
    pub fn catalog_failed(&self) -> bool {
        self.catalog_trouble.get() && self.disk.world().failed_at() > self.began
    }

    /// Whether storage has failed and perhaps nobody who knows it could leave a mark, or it failed again when it was to be settled:
    /// who dies then takes the knowledge along, which is two failures at once, and not promised to be survived.
    pub fn took_along(&self) -> bool {
        let unheard = self.disk.world().failed_at() > self.answered.get();
        // Where two calls failed, who was told has heard of one of them; and of two of a catalog the second may have been what
        // was to settle the first.
        let twice = self.disk.world().failures() > self.failures + 1;
        let layers = self.trouble.get() && (!self.heard.get() || twice);
        let catalog = self.catalog_trouble.get() && (unheard || twice) && !self.heard.get();
        self.unsettled.get() || layers || catalog
    }

    /// Ends the lives of all who stand on it.
    pub async fn give_up<T>(&self) -> T {
        self.heard.set(true);
        self.end_lives().await
    }

    async fn end_lives<T>(&self) -> T {
        self.given_up.notify_one();
        std::future::pending().await
    }
}

fn one_of<T: Copy>(chance: &mut StdRng, all: &[T]) -> T {
    all[chance.random_range(0..all.len())]
}

/// Checks a pool, which must be in order but for what a crash may leave: space that nothing refers to, and children in other pools
/// that deny it.
pub async fn must_be_in_order(pools: &Pools<Engine>, catalog: &Engine, repair: Repair) {
    let mut found = check::check(pools, catalog, None, repair).await.unwrap();
    found.retain(|it| {
        let denied = it.what.contains("is listed as a child, and does not hang on it");
        it.severity != Severity::Leak && !(it.severity == Severity::Stale && denied)
    });
    assert!(found.is_empty(), "a check finds {found:?}");
}

/// An answer, which in a life that is over nobody hears; one that failing layers gave ends the life.
pub async fn alive<T>(ground: &Ground, result: Result<T>) -> Result<T> {
    if ground.disk.is_over() {
        std::future::pending::<()>().await;
    }
    let Err(error) = &result else { return result };
    let of_the_storage =
        matches!(error.kind(), ErrorKind::Io | ErrorKind::Poisoned | ErrorKind::NoSpace);
    // An image whose catalog failed in the middle of a change has to be opened again.
    let stopped = ground.catalog_trouble.get() && error.kind() == ErrorKind::Poisoned;
    if stopped {
        ground.unsettled.set(true);
    }
    if of_the_storage && (ground.trouble.get() || stopped) {
        // Who hears of a full disk has not heard of a sync that failed beside it, and may end before that leaves its mark.
        let of_another =
            error.kind() == ErrorKind::NoSpace && ground.disk.world().failed_at() > ground.began;
        return if of_another { ground.end_lives().await } else { ground.give_up().await };
    }
    result
}
