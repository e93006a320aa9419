//! [`Story`]: random work on a tree of images, in many lives.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Notify;
use vellum_core::{Buffer, Extent, Geometry, ImageName};
use vellum_engine::{Catalog, ErrorKind, ImageRecord, Layering, Repair, Result, Severity};
use vellum_image::image::Open;
use vellum_image::{
    CloneOptions, CreateOptions, DiscardPolicy, FlattenOptions, Image, ImageOptions, Job, Pools,
    WriteOptions, ZeroOptions, admin,
};
use vellum_local::{Canary, LocalCatalog, Mode, OpenOptions, StoreOptions};
use vellum_sim::{Call, Fault, SimDisk, Value};

use crate::known::{Frozen, Known, Pending, SECTOR, SECTORS, SIZE, sectors};

type Engine = LocalCatalog<SimDisk>;

const IMAGES_MAX: usize = 6;
const SNAPSHOTS_MAX: usize = 3;

/// How many lives ended, and how.
#[derive(Debug, Default)]
pub struct Cuts {
    power: AtomicU64,
    deaths: AtomicU64,
    catalog: AtomicU64,
}

impl Cuts {
    pub fn power(&self) -> u64 {
        self.power.load(Ordering::Relaxed)
    }

    pub fn deaths(&self) -> u64 {
        self.deaths.load(Ordering::Relaxed)
    }

    /// At a call that SQLite made.
    pub fn of_the_catalog(&self) -> u64 {
        self.catalog.load(Ordering::Relaxed)
    }

    pub fn add(&self, other: &Self) {
        self.power.fetch_add(other.power(), Ordering::Relaxed);
        self.deaths.fetch_add(other.deaths(), Ordering::Relaxed);
        self.catalog.fetch_add(other.of_the_catalog(), Ordering::Relaxed);
    }

    fn note(&self, power: bool, last: Option<&(Call, String)>) {
        let count = if power { &self.power } else { &self.deaths };
        count.fetch_add(1, Ordering::Relaxed);
        if last.is_some_and(|(_, file)| file.contains("pool.sqlite")) {
            self.catalog.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Display for Cuts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} power cuts, {} deaths of the process, {} of both at a call of the catalog",
            self.power(),
            self.deaths(),
            self.of_the_catalog()
        )
    }
}

type Shared<T> = Rc<RefCell<T>>;

/// A story, as far as it is told.
pub struct Story {
    pub cuts: Cuts,
    pub calls: Vec<(Call, String)>,
    disk: SimDisk,
    ground: Ground,
    canary: Option<Canary>,
    /// The storage has failed since the last look.
    failed: bool,
    chance: StdRng,
    images: Vec<Shared<Known>>,
    /// What was under way; told to those who act, who take it back when it has ended.
    pending: Shared<Vec<Pending>>,
    names: u32,
}

/// What a life has open.
struct Life {
    ground: Ground,
    pools: Pools<Engine>,
    catalog: Engine,
    open: BTreeMap<String, Image<Engine>>,
}

impl Life {
    async fn begin(ground: &Ground, canary: Option<Canary>, chance: &mut StdRng) -> Self {
        let store = StoreOptions {
            sync_interval: Duration::from_millis(chance.random_range(1..500)),
            changed_pages_max: 1,
            canary,
            ..StoreOptions::default()
        };
        let options = OpenOptions { mode: Mode::CreateIfMissing, store, ..OpenOptions::default() };
        let opened = LocalCatalog::open(ground.disk.clone(), "/pool", options).await;
        let catalog = alive(ground, opened).await.unwrap();
        let pools = Pools::default();
        pools.add(catalog.clone());
        Self { ground: ground.clone(), pools, catalog, open: BTreeMap::new() }
    }

    async fn record(&self, name: &str) -> ImageRecord {
        let name: ImageName = name.parse().unwrap();
        alive(&self.ground, self.catalog.find(&name).await).await.unwrap()
    }

    async fn image(&self, name: &str, what: Open) -> Image<Engine> {
        let id = self.record(name).await.id;
        let opened =
            Image::open(&self.pools, &self.catalog, &id, what, ImageOptions::default()).await;
        alive(&self.ground, opened).await.unwrap()
    }
}

/// What a life stands on.
#[derive(Clone)]
struct Ground {
    disk: SimDisk,
    /// The storage was told to fail.
    trouble: Rc<Cell<bool>>,
    /// It did, and somebody was told, who gave the life up.
    heard: Rc<Cell<bool>>,
    given_up: Rc<Notify>,
}

impl Ground {
    fn new(disk: &SimDisk) -> Self {
        Self {
            disk: disk.clone(),
            trouble: Rc::default(),
            heard: Rc::default(),
            given_up: Rc::default(),
        }
    }

    /// Lets the storage fail from now on: a sync of a layer, or every write once the space is used up.
    fn make_trouble(&self, chance: &mut StdRng) {
        self.trouble.set(true);
        if chance.random_bool(0.3) {
            self.disk.world().free = chance.random_range(0..200);
        } else {
            let file = if chance.random_bool(0.7) { "data.0" } else { "map" };
            self.disk.fail(Fault { call: Call::SyncData, file, error: EIO, times: 1, skip: 0 });
        }
    }
}

const EIO: i32 = 5;

/// An answer, which in a life that is over nobody hears; one that the failing storage gave ends the life.
async fn alive<T>(ground: &Ground, result: Result<T>) -> Result<T> {
    if ground.disk.is_over() {
        std::future::pending::<()>().await;
    }
    let of_the_storage = result.as_ref().err().is_some_and(|error| {
        matches!(error.kind(), ErrorKind::Io | ErrorKind::Poisoned | ErrorKind::NoSpace)
    });
    if of_the_storage && ground.trouble.get() {
        ground.heard.set(true);
        ground.given_up.notify_one();
        std::future::pending::<()>().await;
    }
    result
}

impl Story {
    /// Tells one.
    pub async fn tell(seed: u64, lives: u32, canary: Option<Canary>) -> Self {
        let disk = SimDisk::new(seed);
        let mut story = Self {
            cuts: Cuts::default(),
            calls: Vec::new(),
            ground: Ground::new(&disk),
            disk,
            canary,
            failed: false,
            chance: StdRng::seed_from_u64(seed ^ 0x5eed),
            images: Vec::new(),
            pending: Rc::default(),
            names: 0,
        };
        story.disk.world().yields_max = 2;
        for _ in 0..lives {
            story.one_life().await;
        }
        story
    }

    /// A life that ends at some call; then perhaps a few that do not get further than opening; then a look.
    async fn one_life(&mut self) {
        let calls = if self.chance.random_bool(0.3) { 1..60 } else { 1..900 };
        let calls = self.chance.random_range(calls);
        let (disk, ground) = self.let_live(calls);
        tokio::select! {
            biased;
            () = self.live() => {}
            () = disk.ended() => {}
            () = ground.given_up.notified() => {}
        }
        let mut power_was_cut = self.end_life();
        while self.chance.random_bool(0.6) {
            let calls = self.chance.random_range(1..60);
            let (disk, _) = self.let_live(calls);
            tokio::select! {
                biased;
                () = self.only_open() => {}
                () = disk.ended() => {}
            }
            power_was_cut |= self.end_life();
        }
        self.ground = Ground::new(&self.disk);
        self.look(power_was_cut).await;
        self.failed = false;
        self.calls.extend(self.disk.take_trace());
        self.disk = self.disk.process_death();
    }

    fn let_live(&mut self, calls: u64) -> (SimDisk, Ground) {
        self.disk.world().calls_left = Some(calls);
        self.ground = Ground::new(&self.disk);
        (self.disk.clone(), self.ground.clone())
    }

    /// Answers whether what was not synced may be lost: the power was cut, or the storage failed.
    fn end_life(&mut self) -> bool {
        let trace = self.disk.take_trace();
        // Who dies after a failed sync and before it could leave a mark takes the knowledge along: that is two failures at
        // once, and not promised to be survived.
        let unheard = self.ground.trouble.get() && !self.ground.heard.get();
        let power = self.chance.random_bool(0.7) || unheard;
        self.cuts.note(power, trace.last());
        self.calls.extend(trace);
        self.disk = if power { self.disk.power_cut() } else { self.disk.process_death() };
        self.disk.world().free = u64::MAX;
        self.failed |= self.ground.trouble.get();
        power || self.ground.trouble.get()
    }

    /// What recovery does, and nothing else.
    async fn only_open(&mut self) {
        let life = self.begin_life().await;
        let listed = alive(&self.ground, life.catalog.list(None, 100).await).await.unwrap();
        for record in listed {
            drop(life.image(record.name.as_ref(), Open::Own).await);
        }
    }

    async fn begin_life(&mut self) -> Life {
        Life::begin(&self.ground, self.canary, &mut self.chance).await
    }

    async fn live(&mut self) {
        let mut life = self.begin_life().await;
        for _ in 0..self.chance.random_range(1..5) {
            self.administer(&mut life).await;
            if self.chance.random_bool(0.07) {
                self.ground.make_trouble(&mut self.chance);
            }
            self.work(&life).await;
        }
        for (name, image) in std::mem::take(&mut life.open) {
            self.close(&name, image).await;
        }
    }

    fn known(&self, name: &str) -> Shared<Known> {
        self.images.iter().find(|known| known.borrow().name == name).expect("it exists").clone()
    }

    fn pick(&mut self) -> Option<Shared<Known>> {
        let count = self.images.len();
        (count > 0).then(|| self.images[self.chance.random_range(0..count)].clone())
    }

    fn new_name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}{}", self.names)
    }

    async fn close(&self, name: &str, image: Image<Engine>) {
        let known = self.known(name);
        let began = known.borrow_mut().history.tick();
        alive(&self.ground, image.close().await).await.unwrap();
        known.borrow_mut().history.synced(began);
    }

    /// Changes of the catalog, one after another.
    async fn administer(&mut self, life: &mut Life) {
        for _ in 0..self.chance.random_range(1..4) {
            match self.chance.random_range(0..12) {
                0..2 => self.create(life).await,
                2..6 => self.clone_snapshot(life).await,
                6..8 => self.remove_snapshot(life).await,
                8 => self.remove(life).await,
                _ => {}
            }
        }
        for known in self.images.clone() {
            let name = known.borrow().name.clone();
            if !life.open.contains_key(&name) && self.chance.random_bool(0.6) {
                let image = life.image(&name, Open::Own).await;
                life.open.insert(name, image);
            }
        }
    }

    fn begin(&self, pending: Pending) {
        self.pending.borrow_mut().push(pending);
    }

    /// The change that began last has ended.
    fn ended(&self) {
        self.pending.borrow_mut().pop();
    }

    fn shape(&mut self) -> (Layering, Geometry, u32) {
        let layering =
            if self.chance.random_bool(0.5) { Layering::Sparse } else { Layering::CopyUp };
        let geometry = match self.chance.random_range(0..3) {
            0 => Geometry::unstriped(16 << 10).unwrap(),
            1 => Geometry::new(32 << 10, 4096, 3).unwrap(),
            _ => Geometry::default(),
        };
        (layering, geometry, if self.chance.random_bool(0.3) { 512 } else { 4096 })
    }

    async fn create(&mut self, life: &Life) {
        if self.images.len() >= IMAGES_MAX {
            return;
        }
        let name = self.new_name("i");
        let (layering, geometry, block_size) = self.shape();
        let options = CreateOptions { geometry, layering, block_size, ..CreateOptions::default() };
        self.begin(Pending::Create { name: name.clone() });
        let made = admin::create(&life.catalog, name.parse().unwrap(), SIZE, options).await;
        alive(&self.ground, made).await.unwrap();
        self.ended();
        self.add(name, &Frozen::zeros(), None);
    }

    fn add(&mut self, name: String, content: &Frozen, parent: Option<Frozen>) {
        let history = content.history();
        let known = Known { name, history, snapshots: Vec::new(), parent, flattens: false };
        self.images.push(Rc::new(RefCell::new(known)));
    }

    async fn clone_snapshot(&mut self, life: &Life) {
        let Some(parent) = self.pick() else { return };
        let count = parent.borrow().snapshots.len();
        if count == 0 || self.images.len() >= IMAGES_MAX {
            return;
        }
        let which = self.chance.random_range(0..count);
        let (image, snapshot) = {
            let parent = parent.borrow();
            (parent.name.clone(), parent.snapshots[which].name.clone())
        };
        self.look_at_snapshot(life, &parent, &snapshot).await;
        let content = parent.borrow().snapshots[which].content.clone();
        let name = self.new_name("c");
        let (layering, geometry, block_size) = self.shape();
        let options = CloneOptions {
            geometry: Some(geometry),
            layering: Some(layering),
            block_size: Some(block_size),
            ..CloneOptions::default()
        };
        let record = life.record(&image).await;
        let snapshot = record.snapshot(&snapshot.parse().unwrap()).expect("it was looked at");
        self.begin(Pending::Clone { name: name.clone(), content: content.clone() });
        let (pools, catalog) = (&life.pools, &life.catalog);
        let child = name.parse().unwrap();
        let made = admin::clone(pools, catalog, &record, snapshot, catalog, child, options).await;
        alive(&self.ground, made).await.unwrap();
        self.ended();
        self.add(name, &content, Some(content.clone()));
    }

    async fn remove_snapshot(&mut self, life: &Life) {
        let Some(known) = self.pick() else { return };
        let name = known.borrow().name.clone();
        let count = known.borrow().snapshots.len();
        let (Some(image), true) = (life.open.get(&name), count > 0) else { return };
        let which = self.chance.random_range(0..count);
        let snapshot = known.borrow().snapshots[which].name.clone();
        self.begin(Pending::RemoveSnapshot { image: name, name: snapshot.clone() });
        let removed = image.remove_snapshot(&snapshot.parse().unwrap()).await;
        let removed = alive(&self.ground, removed).await;
        self.ended();
        match removed {
            Ok(_) => drop(known.borrow_mut().snapshots.remove(which)),
            Err(error) => assert_eq!(error.kind(), ErrorKind::HasChildren, "{error:?}"),
        }
    }

    async fn remove(&mut self, life: &mut Life) {
        let Some(known) = self.pick() else { return };
        let name = known.borrow().name.clone();
        if let Some(image) = life.open.remove(&name) {
            self.close(&name, image).await;
        }
        let id = life.record(&name).await.id;
        self.begin(Pending::Remove { name: name.clone() });
        let removed = admin::remove(&life.pools, &life.catalog, &id).await;
        let removed = alive(&self.ground, removed).await;
        self.ended();
        match removed {
            Ok(()) => self.images.retain(|known| known.borrow().name != name),
            Err(error) => assert_eq!(error.kind(), ErrorKind::HasChildren, "{error:?}"),
        }
    }

    /// Several who write at once, and perhaps one who snapshots or flattens meanwhile.
    async fn work(&mut self, life: &Life) {
        let open: Vec<_> =
            life.open.iter().map(|(name, image)| (self.known(name), image)).collect();
        if open.is_empty() {
            return;
        }
        let workers = (0..3).map(|_| {
            let mut worker = Worker {
                ground: life.ground.clone(),
                open: &open,
                chance: StdRng::seed_from_u64(self.chance.random()),
            };
            async move {
                for _ in 0..8 {
                    worker.act().await;
                }
            }
        });
        let workers: Vec<_> = workers.collect();
        let beside = self.chance.random_range(0..4);
        let (known, image) = &open[self.chance.random_range(0..open.len())];
        let snapshot = self.new_name("s");
        let pauses = self.chance.random_range(0..200);
        let beside = async {
            for _ in 0..pauses {
                tokio::task::yield_now().await;
            }
            match beside {
                0 | 1 => self.snapshot(known, image, snapshot).await,
                2 => self.flatten(known, image).await,
                _ => {}
            }
        };
        futures::future::join(futures::future::join_all(workers), beside).await;
    }

    async fn snapshot(&self, known: &Shared<Known>, image: &Image<Engine>, name: String) {
        if known.borrow().snapshots.len() >= SNAPSHOTS_MAX {
            return;
        }
        let since = known.borrow_mut().history.tick();
        let of = known.borrow().name.clone();
        self.begin(Pending::Snapshot { image: of, name: name.clone(), since });
        let taken = image.snapshot(name.parse().unwrap(), false).await;
        alive(&self.ground, taken).await.unwrap();
        self.ended();
        known.borrow_mut().has_snapshot(name, since);
    }

    async fn flatten(&self, known: &Shared<Known>, image: &Image<Engine>) {
        known.borrow_mut().flattens = true;
        let name = known.borrow().name.clone();
        self.begin(Pending::Flatten { image: name });
        let flattened = image.flatten(FlattenOptions::default(), &Job::default()).await;
        let flattened = alive(&self.ground, flattened).await;
        self.ended();
        let mut known = known.borrow_mut();
        known.flattens = false;
        match flattened {
            Ok(_) => known.parent = None,
            // A discard that gives the parent's content back is under way.
            Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}"),
        }
    }

    /// Opens everything there is, and compares.
    async fn look(&mut self, power_was_cut: bool) {
        let life = self.begin_life().await;
        let records = life.catalog.list(None, 100).await.unwrap();
        let pending = std::mem::take(&mut *self.pending.borrow_mut());
        for pending in pending {
            self.settle_pending(&records, pending);
        }
        let mut names: Vec<_> = records.iter().map(|record| record.name.to_string()).collect();
        let mut expected: Vec<_> =
            self.images.iter().map(|known| known.borrow().name.clone()).collect();
        names.sort();
        expected.sort();
        assert_eq!(names, expected);
        for record in &records {
            self.look_at_image(&life, record, power_was_cut).await;
        }
        let repair = if self.chance.random_bool(0.3) { Repair::Safe } else { Repair::No };
        let found = vellum_image::check::check(&life.pools, &life.catalog, None, repair).await;
        let bad: Vec<_> =
            found.unwrap().into_iter().filter(|it| it.severity != Severity::Leak).collect();
        assert!(bad.is_empty(), "{bad:?}");
    }

    /// Finds out whether what was under way has happened.
    fn settle_pending(&mut self, records: &[ImageRecord], pending: Pending) {
        let find = |name: &str| records.iter().find(|record| record.name.to_string() == name);
        let has = |image: &str, snapshot: &str| {
            find(image).is_some_and(|it| it.snapshot(&snapshot.parse().unwrap()).is_some())
        };
        match pending {
            Pending::Create { name } if find(&name).is_some() => {
                self.add(name, &Frozen::zeros(), None);
            }
            Pending::Clone { name, content } if find(&name).is_some() => {
                self.add(name, &content, Some(content.clone()));
            }
            Pending::Remove { name } if find(&name).is_none() => {
                self.images.retain(|known| known.borrow().name != name);
            }
            Pending::Snapshot { image, name, since } if has(&image, &name) => {
                self.known(&image).borrow_mut().has_snapshot(name, since);
            }
            Pending::RemoveSnapshot { image, name } if !has(&image, &name) => {
                self.known(&image).borrow_mut().snapshots.retain(|known| known.name != name);
            }
            Pending::Flatten { image } => {
                let known = self.known(&image);
                known.borrow_mut().flattens = false;
                if find(&image).is_some_and(|record| record.parent().is_none()) {
                    known.borrow_mut().parent = None;
                }
            }
            _ => {}
        }
    }

    async fn look_at_image(&mut self, life: &Life, record: &ImageRecord, power_was_cut: bool) {
        let name = record.name.to_string();
        let known = self.known(&name);
        // After a failed sync only an owner drops what is cached and not on the medium.
        let own = self.chance.random_bool(0.7) || self.failed;
        let what = if own { Open::Own } else { Open::Read };
        let image = life.image(&name, what).await;
        if self.failed {
            // So that what is seen of an image whose own syncs did not fail is durable as well.
            image.sync().await.unwrap();
        }
        let found = values(&image).await;
        {
            let history = &mut known.borrow_mut().history;
            history.tick();
            for (sector, value) in (0..).zip(&found) {
                let allowed = if power_was_cut {
                    history.allowed_after_power_cut(sector)
                } else {
                    history.allowed_now(sector)
                };
                assert!(
                    allowed.contains(value),
                    "sector {sector} of {name} reads as {value:?} (power was cut: {power_was_cut}), and may read as \
                     {allowed:?}; {}",
                    history.story(sector)
                );
                if power_was_cut {
                    history.settle(sector, *value);
                } else {
                    history.see(sector, *value);
                }
            }
        }
        let snapshots: Vec<_> = known.borrow().snapshots.iter().map(|it| it.name.clone()).collect();
        let mut listed: Vec<_> = record.snapshots.iter().map(|it| it.name.to_string()).collect();
        let mut expected = snapshots.clone();
        listed.sort();
        expected.sort();
        assert_eq!(listed, expected, "snapshots of {name}");
        for snapshot in snapshots {
            self.look_at_snapshot(life, &known, &snapshot).await;
        }
        assert_eq!(record.parent().is_some(), known.borrow().parent.is_some(), "{name}");
    }

    async fn look_at_snapshot(&self, life: &Life, known: &Shared<Known>, snapshot: &str) {
        let name = known.borrow().name.clone();
        let open = Open::Snapshot(snapshot.parse().unwrap());
        let found = values(&life.image(&name, open).await).await;
        let mut known = known.borrow_mut();
        let kept = known.snapshots.iter_mut().find(|it| it.name == snapshot).unwrap();
        kept.content.find(&format!("{name}@{snapshot}"), &found);
    }
}

/// What each sector reads as; none may be torn.
async fn values(image: &Image<Engine>) -> Vec<Value> {
    read(image, Extent::new(0, SIZE)).await
}

async fn read(image: &Image<Engine>, at: Extent) -> Vec<Value> {
    let length = at.len_usize();
    let (buffer, holes) = image.read(at, Buffer::from_vec(vec![0xaa; length]), 0..length).await;
    holes.unwrap();
    let sector = |bytes: &[u8]| {
        let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert!(bytes.chunks(8).all(|part| part == number.to_le_bytes()), "a sector is torn");
        Value::Holds(number)
    };
    buffer.chunks(SECTOR as usize).map(sector).collect()
}

/// One of those who work on the images of a life at the same time.
struct Worker<'a> {
    ground: Ground,
    open: &'a [(Shared<Known>, &'a Image<Engine>)],
    chance: StdRng,
}

impl Worker<'_> {
    async fn act(&mut self) {
        let (known, image) = self.open[self.chance.random_range(0..self.open.len())].clone();
        match self.chance.random_range(0..20) {
            0..8 => self.write(&known, image).await,
            8..11 => self.zero(&known, image).await,
            11..15 => self.discard(&known, image).await,
            15..18 => self.read(&known, image).await,
            _ => {
                let began = known.borrow_mut().history.tick();
                alive(&self.ground, image.sync().await).await.unwrap();
                known.borrow_mut().history.synced(began);
            }
        }
    }

    fn somewhere(&mut self) -> Extent {
        let first = self.chance.random_range(0..SECTORS);
        let length = self.chance.random_range(1..40);
        let at = Extent::new(first * SECTOR, length * SECTOR).clip(SIZE);
        if self.chance.random_bool(0.5) { at.align_out(4096).clip(SIZE) } else { at }
    }

    async fn write(&mut self, known: &Shared<Known>, image: &Image<Engine>) {
        let (at, number) = (self.somewhere(), self.chance.random_range(1..u64::MAX));
        let durable = self.chance.random_bool(0.15);
        let change = known.borrow_mut().history.begin(at, Value::Holds(number), false);
        let data = Bytes::from(number.to_le_bytes().repeat(at.len_usize() / 8));
        let written = image.write(at.offset(), data, WriteOptions { durable }).await;
        alive(&self.ground, written).await.unwrap();
        known.borrow_mut().history.end(at, change, durable);
    }

    async fn zero(&mut self, known: &Shared<Known>, image: &Image<Engine>) {
        let at = self.somewhere();
        let options = ZeroOptions {
            no_hole: self.chance.random_bool(0.3),
            fast: self.chance.random_bool(0.3),
            durable: self.chance.random_bool(0.15),
        };
        let change = known.borrow_mut().history.begin(at, Value::Holds(0), false);
        let zeroed = alive(&self.ground, image.write_zeroes(at, options).await).await;
        let history = &mut known.borrow_mut().history;
        match zeroed {
            Ok(()) => history.end(at, change, options.durable),
            Err(error) => {
                assert!(options.fast, "only fast zeroes may be refused: {error:?}");
                history.refused(at, change);
            }
        }
    }

    async fn discard(&mut self, known: &Shared<Known>, image: &Image<Engine>) {
        let at = self.somewhere().align_out(4096).clip(SIZE);
        let (has_parent, flattens) = {
            let known = known.borrow();
            (known.parent.is_some(), known.flattens)
        };
        let inherit = self.chance.random_bool(0.6) && !flattens;
        let policy = if inherit { DiscardPolicy::Inherit } else { DiscardPolicy::Zero };
        let durable = self.chance.random_bool(0.15);
        let changes: Vec<_> = sectors(at)
            .map(|sector| {
                let mut known = known.borrow_mut();
                let value = match (&known.parent, inherit) {
                    (Some(parent), true) => parent.value(sector),
                    _ => Value::Holds(0),
                };
                let at = Extent::new(sector * SECTOR, SECTOR);
                (at, known.history.begin(at, value, false))
            })
            .collect();
        let discarded = alive(&self.ground, image.discard(at, policy, durable).await).await;
        // A child that copies up gives whole objects back, and leaves the rest as it is.
        let surely = !(has_parent && image.record().layering == Layering::CopyUp);
        let history = &mut known.borrow_mut().history;
        match discarded {
            Ok(()) if surely => {
                changes.into_iter().for_each(|(at, change)| history.end(at, change, durable));
            }
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
            }
        }
    }

    async fn read(&mut self, known: &Shared<Known>, image: &Image<Engine>) {
        let at = self.somewhere();
        let began = known.borrow_mut().history.tick();
        let (buffer, holes) = {
            let length = at.len_usize();
            image.read(at, Buffer::from_vec(vec![0xaa; length]), 0..length).await
        };
        alive(&self.ground, holes).await.unwrap();
        for (sector, bytes) in sectors(at).zip(buffer.chunks(SECTOR as usize)) {
            let value = Value::Holds(u64::from_le_bytes(bytes[..8].try_into().unwrap()));
            let known = known.borrow();
            assert!(
                known.history.allows(sector, value, began),
                "sector {sector} of {} reads as {value:?}, and may read as {:?}",
                known.name,
                known.history.allowed_now(sector)
            );
        }
    }
}
