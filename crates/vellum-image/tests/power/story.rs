//! [`Story`]: random work on a tree of images in two pools, in many lives, of one process or of two at once.

use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vellum_engine::{Catalog, ImageRecord, Repair};
use vellum_image::image::Open;
use vellum_sim::{Call, Calls, SimDisk};

use crate::book::Book;
use crate::ground::{Ground, alive, must_be_in_order};
use crate::life::{Life, Mistake, POOLS};
use crate::work::values;

/// How many lives ended, and how.
#[derive(Debug, Default)]
pub struct Cuts {
    pub power: AtomicU64,
    pub deaths: AtomicU64,
    /// Of one process, while another lived on.
    pub deaths_alone: AtomicU64,
    /// Of any kind, at a call that SQLite made.
    pub of_the_catalog: AtomicU64,
    /// Lives with failures of the catalog's own files that were made to happen, and happened.
    pub catalog_failures: AtomicU64,
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Cuts {
    fn all(&self) -> [&AtomicU64; 5] {
        let Self { power, deaths, deaths_alone, of_the_catalog, catalog_failures } = self;
        [power, deaths, deaths_alone, of_the_catalog, catalog_failures]
    }

    pub fn add(&self, other: &Self) {
        for (counter, more) in self.all().into_iter().zip(other.all()) {
            count(counter, more.load(Ordering::Relaxed));
        }
    }

    /// Whether each kind has happened.
    pub fn are_complete(&self) -> bool {
        self.all().iter().all(|counter| counter.load(Ordering::Relaxed) > 0)
    }

    fn note(&self, power: bool, last: Option<&(Call, String)>) {
        count(if power { &self.power } else { &self.deaths }, 1);
        if last.is_some_and(|(_, file)| file.contains("pool.sqlite")) {
            count(&self.of_the_catalog, 1);
        }
    }
}

impl fmt::Display for Cuts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [power, deaths, alone, catalog, failures] =
            self.all().map(|counter| counter.load(Ordering::Relaxed));
        write!(
            f,
            "{power} power cuts, {deaths} deaths of all processes, {catalog} of both at a call of a catalog; {alone} \
             processes died while another lived on; a catalog's files failed in {failures} lives"
        )
    }
}

/// How a life ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// All processes die, and the machine goes on.
    Death,
    PowerCut,
}

/// A call that is to fail.
#[derive(Clone, Copy, Debug)]
pub struct Failing {
    pub calls: Calls,
    /// Which of them, from 1 on.
    pub number: u64,
    pub error: i32,
    pub of_a_catalog: bool,
}

/// A story, as far as it is told.
pub struct Story {
    pub cuts: Cuts,
    pub calls: Vec<(Call, String)>,
    disk: SimDisk,
    ground: Ground,
    mistake: Option<Mistake>,
    /// The layers have failed since the last look.
    failed: bool,
    chance: StdRng,
    book: Rc<Book>,
    processes: u64,
}

impl Story {
    /// Tells one.
    pub async fn tell(seed: u64, lives: u32, mistake: Option<Mistake>) -> Self {
        let mut story = Self::begin(seed, mistake);
        for _ in 0..lives {
            Box::pin(story.one_life()).await;
        }
        story
    }

    /// Tells of one life, which does what it is told until its end comes at a call, and looks. Answers with its calls if it came to
    /// its own end before. Looks again after a repair.
    pub async fn tell_until(
        seed: u64,
        call: u64,
        end: End,
        mistake: Option<Mistake>,
        does: impl AsyncFnOnce(&mut Life) -> Option<()>,
    ) -> Option<Vec<(Call, String)>> {
        let mut story = Self::begin(seed, mistake);
        story.disk.world().calls_left = Some(call);
        story.ground = story.new_ground();
        let disk = story.disk.clone();
        let life = async {
            let mut life = story.begin_life().await;
            does(&mut life).await.expect("nothing fails");
        };
        tokio::select! {
            biased;
            () = disk.ended() => {}
            () = life => {}
        }
        let came_to_its_own = !disk.is_over();
        let may_be_lost = story.ends_by(end);
        let calls = came_to_its_own.then(|| story.calls.clone());
        story.look_and_repair(may_be_lost).await;
        calls
    }

    /// Tells of one life in which a call fails. Where it was a catalog's it goes on, and does this and that; where it was a layer's
    /// and somebody hears of it, it gives up. It ends, and what is left is looked at, and looked at again after a repair. Answers
    /// whether there was such a call.
    pub async fn tell_failing(
        seed: u64,
        failing: Failing,
        end: End,
        mistake: Option<Mistake>,
        does: impl AsyncFnOnce(&mut Life) -> Option<()>,
    ) -> bool {
        let mut story = Self::begin(seed, mistake);
        story.ground = story.new_ground();
        story.disk.world().fail_one(failing.calls, failing.number, failing.error);
        let troubled = if failing.of_a_catalog {
            &story.ground.catalog_trouble
        } else {
            &story.ground.trouble
        };
        troubled.set(true);
        let given_up = story.ground.given_up.clone();
        let life = async {
            let mut life = story.begin_life().await;
            if does(&mut life).await.is_none() {
                life.live().await;
            }
        };
        tokio::select! {
            biased;
            () = given_up.notified() => {}
            () = life => {}
        }
        let has_failed = story.disk.world().failures() > 0;
        let end = if story.ground.took_along() { End::PowerCut } else { end };
        let may_be_lost = story.ends_by(end);
        story.look_and_repair(may_be_lost).await;
        has_failed
    }

    async fn look_and_repair(&mut self, may_be_lost: bool) {
        self.ground = self.new_ground();
        self.look(may_be_lost).await;
        self.repair_and_look().await;
    }

    fn begin(seed: u64, mistake: Option<Mistake>) -> Self {
        let disk = SimDisk::new(seed).with_pool_at(POOLS[1]);
        let story = Self {
            cuts: Cuts::default(),
            calls: Vec::new(),
            ground: Ground::new(&disk, 0),
            disk,
            mistake,
            failed: false,
            chance: StdRng::seed_from_u64(seed ^ 0x5eed),
            book: Rc::default(),
            processes: 0,
        };
        story.disk.world().yields_max = 2;
        story
    }

    /// A life, of one process or of two, that ends at some call; then perhaps a few that do not get further than opening; then
    /// a look.
    async fn one_life(&mut self) {
        let calls = if self.chance.random_bool(0.3) { 1..60 } else { 1..900 };
        self.let_live(calls);
        if self.chance.random_bool(0.1) {
            self.ground.make_catalog_trouble(&mut self.chance);
        }
        let first = self.a_life(self.ground.clone());
        let another = self.chance.random_bool(0.5).then(|| self.begins_beside());
        let another = another.map(|ground| self.a_life(ground));
        let given_up = self.ground.given_up.clone();
        tokio::select! {
            biased;
            () = given_up.notified() => {}
            _ = futures::future::join(first, futures::future::OptionFuture::from(another)) => {}
        }
        let mut may_be_lost = self.end_life();
        while self.chance.random_bool(0.6) {
            self.let_live(1..60);
            if self.chance.random_bool(0.1) {
                self.ground.make_catalog_trouble(&mut self.chance);
            }
            let (disk, given_up) = (self.disk.clone(), self.ground.given_up.clone());
            tokio::select! {
                biased;
                () = disk.ended() => {}
                () = given_up.notified() => {}
                () = self.only_open() => {}
            }
            may_be_lost |= self.end_life();
        }
        self.ground = self.new_ground();
        self.look(may_be_lost).await;
        self.failed = false;
        self.calls.extend(self.disk.take_trace());
        self.disk = self.disk.process_death();
    }

    fn new_ground(&mut self) -> Ground {
        self.processes += 1;
        Ground::new(&self.disk, self.processes)
    }

    fn let_live(&mut self, calls: std::ops::Range<u64>) {
        self.disk.world().calls_left = Some(self.chance.random_range(calls));
        self.ground = self.new_ground();
    }

    /// What a second process stands on. One of the two may die alone.
    fn begins_beside(&mut self) -> Ground {
        self.processes += 1;
        let ground = self.ground.of_another(self.processes);
        let calls = self.chance.random_range(1..250);
        match self.chance.random_range(0..5) {
            0 | 1 => self.ground.disk.dies_after(calls),
            2 | 3 => ground.disk.dies_after(calls),
            _ => {}
        }
        ground
    }

    /// What a process does until it ends.
    fn a_life(&mut self, ground: Ground) -> impl Future<Output = ()> + use<> {
        let (book, mistake) = (self.book.clone(), self.mistake);
        let chance = StdRng::seed_from_u64(self.chance.random());
        async move {
            let live = async { Life::begin(&ground, &book, mistake, chance).await.live().await };
            tokio::select! {
                biased;
                () = live => {}
                () = ground.disk.ended() => {
                    book.died(ground.process);
                    if ground.took_along() {
                        // Nobody goes on after two failures at once.
                        ground.given_up.notify_one();
                    }
                }
            }
        }
    }

    /// Ends a life, somehow.
    fn end_life(&mut self) -> bool {
        let power = self.chance.random_bool(0.7) || self.ground.took_along();
        self.ends_by(if power { End::PowerCut } else { End::Death })
    }

    /// Answers whether what was not synced may be lost: the power was cut, or the storage failed.
    fn ends_by(&mut self, end: End) -> bool {
        let trace = self.disk.take_trace();
        let power = end == End::PowerCut;
        self.cuts.note(power, trace.last());
        count(&self.cuts.deaths_alone, self.disk.world().take_deaths_alone());
        if self.ground.catalog_failed() {
            count(&self.cuts.catalog_failures, 1);
        }
        self.calls.extend(trace);
        self.disk = if power { self.disk.power_cut() } else { self.disk.after_all_died() };
        self.disk.world().free = u64::MAX;
        for process in 0..=self.processes {
            self.book.died(process);
        }
        self.failed |= self.ground.trouble.get();
        power || self.ground.trouble.get()
    }

    /// What recovery does, and nothing else.
    async fn only_open(&mut self) {
        let life = self.begin_life().await;
        for catalog in &life.catalogs {
            for record in alive(&self.ground, catalog.list(None, 100).await).await.unwrap() {
                if let Some(known) = self.book.find_called(record.name.as_ref()) {
                    life.opens(&known).await;
                }
            }
        }
    }

    async fn begin_life(&mut self) -> Life {
        let chance = StdRng::seed_from_u64(self.chance.random());
        Life::begin(&self.ground, &self.book, self.mistake, chance).await
    }

    /// Opens everything there is, and compares.
    async fn look(&mut self, may_be_lost: bool) {
        let life = self.begin_life().await;
        let mut records = Vec::new();
        for catalog in &life.catalogs {
            records.push(catalog.list(None, 100).await.unwrap());
        }
        let all = || records.iter().flatten();
        for image in self.book.in_doubt() {
            self.book.decide(&image, self.book.record_of(&image, all()));
        }
        self.book.is_settled();
        for (pool, records) in records.iter().enumerate() {
            let mut names: Vec<_> = records.iter().map(|record| record.name.to_string()).collect();
            let known = self.book.images();
            let known = known.iter().filter(|known| known.borrow().pool == pool);
            let mut expected: Vec<_> = known.map(|known| known.borrow().called.0.clone()).collect();
            names.sort();
            expected.sort();
            assert_eq!(names, expected);
            for record in records {
                self.look_at_image(&life, record, may_be_lost).await;
            }
        }
        give_up_what_was_dropped().await;
        let mut repaired = Vec::new();
        for (catalog, records) in life.catalogs.iter().zip(&records) {
            let repair = if self.chance.random_bool(0.3) { Repair::Safe } else { Repair::No };
            must_be_in_order(&life.pools, catalog, repair).await;
            repaired.extend(records.iter().filter(|_| repair == Repair::Safe));
        }
        // What was repaired is what nothing refers to, and nothing else.
        for record in repaired {
            self.look_at_image(&life, record, false).await;
        }
    }

    /// Repairs all that is safe to be repaired, after which everything is as it was.
    async fn repair_and_look(&mut self) {
        give_up_what_was_dropped().await;
        let life = self.begin_life().await;
        for catalog in &life.catalogs {
            must_be_in_order(&life.pools, catalog, Repair::Safe).await;
        }
        self.look(false).await;
    }

    async fn look_at_image(&mut self, life: &Life, record: &ImageRecord, may_be_lost: bool) {
        let known = self.book.find_called(record.name.as_ref()).expect("the names agree");
        let name = known.borrow().name.clone();
        // After a failed sync only an owner drops what is cached and not on the medium.
        let own = self.chance.random_bool(0.7) || self.failed;
        let what = if own { Open::Own } else { Open::Read };
        let image = life.image(&known, what).await;
        if self.failed {
            // So that what is seen of an image whose own syncs did not fail is durable as well.
            image.sync().await.unwrap();
        }
        let found = values(&image).await;
        known.borrow_mut().sees(&found, may_be_lost);
        let snapshots: Vec<_> = known.borrow().snapshots.iter().map(|it| it.name.clone()).collect();
        let mut listed: Vec<_> = record.snapshots.iter().map(|it| it.name.to_string()).collect();
        let mut expected = snapshots.clone();
        listed.sort();
        expected.sort();
        assert_eq!(listed, expected, "snapshots of {name}");
        for snapshot in snapshots {
            life.look_at_snapshot(&known, &snapshot).await.expect("nobody takes it away");
        }
        assert_eq!(record.parent().is_some(), known.borrow().parent.is_some(), "{name}");
    }
}

/// Whoever was dropped gives up what it holds a little later.
async fn give_up_what_was_dropped() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}
