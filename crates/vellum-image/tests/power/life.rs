//! [`Life`]: a process that has the pools open, and changes images in them.
//!
//! What a change must answer is asserted here, given what else may be under way: in the same process, in another one, or in
//! one that died and left it in doubt. An image with a change in doubt is left alone until its owner has settled that.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vellum_core::{Geometry, ImageName};
use vellum_engine::{Catalog, Error, ErrorKind, Happened, ImageRecord, Layering, Result};
use vellum_image::image::Open;
use vellum_image::{
    CloneOptions, CreateOptions, FlattenOptions, Image, ImageOptions, Job, Pools, admin,
};
use vellum_local::{LocalCatalog, Mode, OpenOptions, StoreOptions};

use crate::book::{Book, Shared};
use crate::ground::{Engine, Ground, alive};
use crate::known::{BEFORE_A_PAGE, BEFORE_A_SECTOR, Change, Frozen, Known, SIZE};
use crate::work::{Worker, try_values, values};

/// A mistake to make, in the engine or above it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mistake {
    Engine(vellum_local::Canary),
    Image(vellum_image::Canary),
}

impl Mistake {
    fn of_the_engine(self) -> Option<vellum_local::Canary> {
        if let Self::Engine(canary) = self { Some(canary) } else { None }
    }

    fn of_images(self) -> Option<vellum_image::Canary> {
        if let Self::Image(canary) = self { Some(canary) } else { None }
    }
}

/// Where the pools are.
pub const POOLS: [&str; 2] = ["/pool", "/other"];

const IMAGES_MAX: usize = 6;
const SNAPSHOTS_MAX: usize = 3;

/// What a process has open.
pub struct Life {
    pub ground: Ground,
    pub pools: Pools<Engine>,
    pub catalogs: Vec<Engine>,
    open: BTreeMap<String, Image<Engine>>,
    book: Rc<Book>,
    chance: StdRng,
    mistake: Option<Mistake>,
}

impl Life {
    /// Opens the pools. A catalog that was told to fail may refuse, which ends the life.
    pub async fn begin(
        ground: &Ground,
        book: &Rc<Book>,
        mistake: Option<Mistake>,
        mut chance: StdRng,
    ) -> Self {
        let pools = Pools::default();
        let mut catalogs = Vec::new();
        for path in POOLS {
            let store = StoreOptions {
                sync_interval: Duration::from_millis(chance.random_range(1..500)),
                changed_pages_max: 1,
                canary: mistake.and_then(Mistake::of_the_engine),
                ..StoreOptions::default()
            };
            let options =
                OpenOptions { mode: Mode::CreateIfMissing, store, ..OpenOptions::default() };
            let opened = LocalCatalog::open(ground.disk.clone(), path, options).await;
            let catalog = match alive(ground, opened).await {
                Err(error) if ground.explains(&error) => ground.give_up().await,
                opened => opened.unwrap(),
            };
            pools.add(catalog.clone());
            catalogs.push(catalog);
        }
        let (ground, book) = (ground.clone(), book.clone());
        Self { ground, pools, catalogs, open: BTreeMap::new(), book, chance, mistake }
    }

    /// Does this and that, and closes what it has opened.
    pub async fn live(&mut self) {
        for _ in 0..self.chance.random_range(1..5) {
            self.administer().await;
            if self.chance.random_bool(0.1) && !self.ground.catalog_trouble.get() {
                self.ground.make_trouble(&mut self.chance);
            }
            self.work().await;
        }
        self.close_all().await;
    }

    /// What the images that are there are called.
    pub fn names(&self) -> Vec<String> {
        self.book.images().iter().map(|known| known.borrow().called.0.clone()).collect()
    }

    pub async fn close_all(&mut self) {
        for (name, image) in std::mem::take(&mut self.open) {
            self.close(&name, image).await;
        }
    }

    /// An image of this name that it has, or opens for writing. `None` once a catalog has failed.
    pub async fn owned(&mut self, name: &str) -> Option<(Shared<Known>, Image<Engine>)> {
        self.is_untroubled()?;
        let known = self.book.find(name).expect("it is there");
        if !self.open.contains_key(name) {
            self.own(&known).await;
        }
        self.is_untroubled()?;
        Some((known, self.open[name].clone()))
    }

    /// `None` once a catalog has failed.
    pub fn is_untroubled(&self) -> Option<()> {
        (!self.ground.catalog_failed()).then_some(())
    }

    /// Whether another process may be in the way.
    fn beside(&self) -> bool {
        self.ground.beside.get()
    }

    /// The record of an image; `None` where another process may have removed it.
    async fn record(&self, known: &Shared<Known>) -> Option<ImageRecord> {
        let (name, pool) = (known.borrow().name.clone(), known.borrow().pool);
        for called in self.book.may_be_called(&name) {
            let found = self.catalogs[pool].find(&called.parse::<ImageName>().unwrap()).await;
            match alive(&self.ground, found).await {
                Ok(record) => return Some(record),
                Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}"),
            }
        }
        // Another process may have given it another name since.
        assert!(self.book.may_lack_image(&name) || self.beside(), "{name} is not there");
        None
    }

    async fn open_as(&self, known: &Shared<Known>, what: Open) -> Result<Image<Engine>> {
        let pool = known.borrow().pool;
        let Some(record) = self.record(known).await else {
            return Err(Error::new(ErrorKind::NotFound, "it is gone"));
        };
        let catalog = &self.catalogs[pool];
        let canary = self.mistake.and_then(Mistake::of_images);
        let options = ImageOptions { canary, ..ImageOptions::default() };
        let opened = Image::open(&self.pools, catalog, &record.id, what, options).await;
        alive(&self.ground, opened).await
    }

    /// Opens an image that is there, and that nobody else has.
    pub async fn image(&self, known: &Shared<Known>, what: Open) -> Image<Engine> {
        self.open_as(known, what).await.unwrap()
    }

    /// Opens an image for writing, and lets it go again.
    pub async fn opens(&self, known: &Shared<Known>) {
        match self.open_as(known, Open::Own).await {
            Ok(image) => drop(image),
            Err(error) => assert!(self.ground.explains(&error), "{error:?}"),
        }
    }

    /// Opens an image for writing. What was in doubt about it is decided then: nothing that is under way can come true any more.
    async fn own(&mut self, known: &Shared<Known>) {
        let (name, process) = (known.borrow().name.clone(), self.ground.process);
        let others = self.book.is_held_beside(process, &name)
            || self.book.may_be(&name, |change| matches!(change, Change::Remove));
        self.book.hold(process, &name, false);
        let opened = self.open_as(known, Open::Own).await;
        match opened {
            Ok(image) => {
                assert!(!self.book.is_owned_beside(process, &name), "{name} has two owners");
                self.book.hold(process, &name, true);
                self.book.decide(&name, Some(&image.record()));
                if self.book.take_left(&name) {
                    let found = values(&image).await;
                    known.borrow_mut().sees(&found, false);
                }
                self.open.insert(name, image);
            }
            Err(error) => {
                self.book.let_go(process, &name);
                match error.kind() {
                    ErrorKind::InUse => assert!(self.beside() || others, "{name}: {error:?}"),
                    ErrorKind::NotFound => assert!(self.beside() || others, "{error:?}"),
                    _ => assert!(self.ground.explains(&error), "{error:?}"),
                }
            }
        }
    }

    async fn close(&self, name: &str, image: Image<Engine>) {
        let known = self.book.find(name).expect("it was open");
        let began = known.borrow_mut().history.tick();
        self.book.hold(self.ground.process, name, false);
        alive(&self.ground, image.close().await).await.unwrap();
        known.borrow_mut().history.synced(began);
        self.book.let_go(self.ground.process, name);
    }

    /// Makes a change and says what came of it. `None` if nobody knows.
    async fn change<T>(
        &self,
        image: &str,
        change: Change,
        result: impl Future<Output = Result<T>>,
    ) -> Option<Result<T>> {
        let number = self.book.begin(self.ground.process, image, change);
        let result = alive(&self.ground, result.await).await;
        self.ground.hears();
        match &result {
            Err(error) if error.happened() != Happened::NotDone => {
                assert!(self.ground.explains(error), "{error:?}");
                self.book.lost(number);
                None
            }
            _ => {
                self.book.ended(number);
                Some(result)
            }
        }
    }

    /// An image that nothing is in doubt of.
    fn pick(&mut self) -> Option<Shared<Known>> {
        let mut images = self.book.images();
        images.retain(|known| !self.book.is_in_doubt(&known.borrow().name));
        let count = images.len();
        (count > 0).then(|| images.swap_remove(self.chance.random_range(0..count)))
    }

    fn pick_snapshot(&mut self, known: &Shared<Known>) -> Option<String> {
        let known = known.borrow();
        let count = known.snapshots.len();
        (count > 0).then(|| known.snapshots[self.chance.random_range(0..count)].name.clone())
    }

    /// Changes of the catalogs, one after another.
    async fn administer(&mut self) {
        for _ in 0..self.chance.random_range(1..4) {
            if self.chance.random_bool(0.04) && !self.ground.trouble.get() {
                self.ground.make_catalog_trouble(&mut self.chance);
            }
            match self.chance.random_range(0..14) {
                0..2 => self.create().await,
                2..6 => self.clone_snapshot().await,
                6..8 => self.remove_snapshot().await,
                8 => self.remove().await,
                9 => self.list_children().await,
                10 => self.rename().await,
                _ => {}
            }
        }
        for known in self.book.images() {
            let name = known.borrow().name.clone();
            let open = self.open.contains_key(&name);
            let held = self.book.is_held_beside(self.ground.process, &name);
            let wanted = self.chance.random_bool(if held { 0.1 } else { 0.6 });
            if !open && wanted {
                self.own(&known).await;
            }
        }
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

    /// A pool for something new, if there is room for it.
    fn room(&mut self) -> Option<usize> {
        (self.book.images().len() < IMAGES_MAX).then(|| self.chance.random_range(0..POOLS.len()))
    }

    async fn create(&mut self) {
        let Some(pool) = self.room() else { return };
        let name = self.book.new_name("i");
        let (layering, geometry, block_size) = self.shape();
        let options = CreateOptions { geometry, layering, block_size, ..CreateOptions::default() };
        let before = match self.chance.random_range(0..10) {
            0..7 => 0,
            7..9 => BEFORE_A_SECTOR,
            _ => BEFORE_A_PAGE,
        };
        self.create_as(&name, pool, before, options).await;
    }

    /// Makes an image, with so much before what is known of it.
    pub async fn create_as(&self, name: &str, pool: usize, before: u64, options: CreateOptions) {
        let (catalog, name, size) = (&self.catalogs[pool], name.to_owned(), before + SIZE);
        let making = admin::create(catalog, name.parse().unwrap(), size, options);
        match self.change(&name, Change::Create { pool }, making).await {
            Some(Ok(_)) => self.book.add(&name, pool, &Frozen::zeros(), None),
            Some(Err(error)) => assert!(self.ground.explains(&error), "{error:?}"),
            None => {}
        }
    }

    async fn clone_snapshot(&mut self) {
        let Some(parent) = self.pick() else { return };
        let (Some(snapshot), Some(pool)) = (self.pick_snapshot(&parent), self.room()) else {
            return;
        };
        let name = self.book.new_name("c");
        let (layering, geometry, block_size) = self.shape();
        let options = CloneOptions {
            geometry: Some(geometry),
            layering: Some(layering),
            block_size: Some(block_size),
            ..CloneOptions::default()
        };
        let pauses = self.chance.random_range(0..60);
        let listing = self.chance.random_bool(0.5).then_some(async {
            for _ in 0..pauses {
                tokio::task::yield_now().await;
            }
            self.list_children_of(&parent).await;
        });
        let making = self.clone_as(&parent, &snapshot, &name, pool, options);
        futures::future::join(making, futures::future::OptionFuture::from(listing)).await;
    }

    /// Clones a snapshot.
    pub async fn clone_as(
        &self,
        parent: &Shared<Known>,
        snapshot: &str,
        name: &str,
        pool: usize,
        options: CloneOptions,
    ) {
        let of = parent.borrow().name.clone();
        let Some(content) = self.look_at_snapshot(parent, snapshot).await else { return };
        let Some(record) = self.record(parent).await else { return };
        let Some(frozen) = record.snapshot(&snapshot.parse().unwrap()) else {
            assert!(self.book.may_lack(&of, snapshot), "{of} has lost {snapshot}");
            return;
        };
        let (from, into) = (&self.catalogs[parent.borrow().pool], &self.catalogs[pool]);
        let child = name.parse().unwrap();
        let making = admin::clone(&self.pools, from, &record, frozen, into, child, options);
        let change = Change::Clone { pool, content: content.clone() };
        match self.change(name, change, making).await {
            Some(Ok(_)) => self.book.add(name, pool, &content, Some(content.clone())),
            Some(Err(error)) if error.kind() == ErrorKind::NotFound => {
                assert!(self.book.may_lack(&of, snapshot), "{error:?}");
            }
            Some(Err(error)) => assert!(self.ground.explains(&error), "{error:?}"),
            None => {}
        }
    }

    async fn list_children(&mut self) {
        if let Some(known) = self.pick() {
            self.list_children_of(&known).await;
        }
    }

    /// Who asks for children takes entries that are stale from the list, and only those.
    async fn list_children_of(&self, known: &Shared<Known>) {
        let (name, pool) = (known.borrow().name.clone(), known.borrow().pool);
        let Some(record) = self.record(known).await else { return };
        let children = admin::children(&self.pools, &self.catalogs[pool], &record).await;
        match alive(&self.ground, children).await {
            Ok(children) => {
                for child in children.found {
                    let child = child.record.name.to_string();
                    let there = self.book.find_called(&child).is_some();
                    let known = there || self.book.may_have_image(&child);
                    // Another process may have removed it since.
                    assert!(known || self.beside(), "{child} of {name}");
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                assert!(self.book.may_lack_image(&name), "{error:?}");
            }
            Err(error) => assert!(self.ground.explains(&error), "{error:?}"),
        }
    }

    async fn remove_snapshot(&mut self) {
        let Some(known) = self.pick() else { return };
        let name = known.borrow().name.clone();
        let Some(image) = self.open.get(&name).cloned() else { return };
        let Some(snapshot) = self.pick_snapshot(&known) else { return };
        self.remove_this_snapshot(&known, &image, snapshot).await;
    }

    /// Removes a snapshot, unless it has children.
    pub async fn remove_this_snapshot(
        &self,
        known: &Shared<Known>,
        image: &Image<Engine>,
        snapshot: String,
    ) {
        let name = known.borrow().name.clone();
        let removing = async { image.remove_snapshot(&snapshot.parse().unwrap()).await };
        let change = Change::RemoveSnapshot { name: snapshot.clone() };
        match self.change(&name, change, removing).await {
            Some(Ok(_)) => known.borrow_mut().snapshots.retain(|it| it.name != snapshot),
            Some(Err(error)) if error.kind() == ErrorKind::HasChildren => {}
            Some(Err(error)) => assert!(self.ground.explains(&error), "{error:?}"),
            None => {}
        }
    }

    async fn rename(&mut self) {
        let Some(known) = self.pick() else { return };
        let to = self.book.new_name("r");
        self.rename_this(&known, &to).await;
    }

    /// Gives an image another name, whoever has it open.
    pub async fn rename_this(&self, known: &Shared<Known>, to: &str) {
        let (name, pool) = (known.borrow().name.clone(), known.borrow().pool);
        let Some(record) = self.record(known).await else { return };
        let another = |_: &ImageRecord| Ok(vellum_engine::Change::Rename(to.parse().unwrap()));
        let renaming = admin::change(&self.catalogs[pool], &record.id, another);
        match self.change(&name, Change::Rename { to: to.to_owned() }, renaming).await {
            Some(Ok(record)) => known.borrow_mut().is_called(&record),
            Some(Err(error)) => match error.kind() {
                ErrorKind::NotFound => assert!(self.book.may_lack_image(&name), "{error:?}"),
                ErrorKind::Conflict => assert!(self.beside(), "{error:?}"),
                _ => assert!(self.ground.explains(&error), "{error:?}"),
            },
            None => {}
        }
    }

    async fn remove(&mut self) {
        let Some(known) = self.pick() else { return };
        self.remove_this(&known).await;
    }

    /// Closes an image and removes it, unless it has children.
    pub async fn remove_this(&mut self, known: &Shared<Known>) {
        let (name, pool) = (known.borrow().name.clone(), known.borrow().pool);
        if let Some(image) = self.open.remove(&name) {
            self.close(&name, image).await;
        }
        let Some(record) = self.record(known).await else { return };
        let removing = admin::remove(&self.pools, &self.catalogs[pool], &record.id);
        match self.change(&name, Change::Remove, removing).await {
            Some(Ok(())) => self.book.remove(&name),
            Some(Err(error)) => match error.kind() {
                ErrorKind::HasChildren => {}
                ErrorKind::NotFound => assert!(self.book.may_lack_image(&name), "{error:?}"),
                ErrorKind::InUse | ErrorKind::Conflict => assert!(self.beside(), "{error:?}"),
                _ => assert!(self.ground.explains(&error), "{error:?}"),
            },
            None => {}
        }
    }

    /// Several who write at once, and perhaps one who snapshots or flattens meanwhile.
    async fn work(&mut self) {
        let open: Vec<_> = self
            .open
            .iter()
            .map(|(name, image)| (self.book.find(name).expect("it is open"), image))
            .collect();
        if open.is_empty() {
            return;
        }
        let workers = (0..3).map(|_| {
            let mut worker = Worker {
                ground: self.ground.clone(),
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
        let pauses = self.chance.random_range(0..200);
        let beside = async {
            for _ in 0..pauses {
                tokio::task::yield_now().await;
            }
            match beside {
                0 | 1 => self.snapshot(known, image).await,
                2 => self.flatten(known, image).await,
                _ => {}
            }
        };
        futures::future::join(futures::future::join_all(workers), beside).await;
    }

    pub async fn snapshot(&self, known: &Shared<Known>, image: &Image<Engine>) {
        if known.borrow().snapshots.len() >= SNAPSHOTS_MAX {
            return;
        }
        let since = known.borrow_mut().history.tick();
        let of = known.borrow().name.clone();
        let name = self.book.new_name("s");
        let taking = image.snapshot(name.parse().unwrap(), false);
        match self.change(&of, Change::Snapshot { name: name.clone(), since }, taking).await {
            Some(Ok(_)) => known.borrow_mut().has_snapshot(name, since),
            Some(Err(error)) => assert!(self.ground.explains(&error), "{error:?}"),
            None => self.find_out(known, image).await,
        }
    }

    pub async fn flatten(&self, known: &Shared<Known>, image: &Image<Engine>) {
        known.borrow_mut().flattens = true;
        let name = known.borrow().name.clone();
        let job = Job::default();
        let flattening = image.flatten(FlattenOptions::default(), &job);
        let flattened = self.change(&name, Change::Flatten, flattening).await;
        if flattened.is_some() {
            known.borrow_mut().flattens = false;
        }
        match flattened {
            Some(Ok(_)) => known.borrow_mut().parent = None,
            Some(Err(error)) => match error.kind() {
                // A discard that gives the parent's content back is under way.
                ErrorKind::Busy => {}
                // A layer below was taken away meanwhile.
                ErrorKind::NotFound => assert!(self.beside(), "{error:?}"),
                _ => assert!(self.ground.explains(&error), "{error:?}"),
            },
            None => self.find_out(known, image).await,
        }
    }

    /// An image that goes on after a change whose end is not known has settled it. One that could not has stopped, which ends this
    /// life, and whoever opens it next finds out.
    async fn find_out(&self, known: &Shared<Known>, image: &Image<Engine>) {
        alive(&self.ground, image.sync().await).await.expect("what fails ends this life");
        let name = known.borrow().name.clone();
        let record = self.record(known).await.expect("it is owned");
        self.book.decide(&name, Some(&record));
    }

    /// What a snapshot reads as, which must be what it was; `None` where it may be gone.
    pub async fn look_at_snapshot(&self, known: &Shared<Known>, snapshot: &str) -> Option<Frozen> {
        let name = known.borrow().name.clone();
        let opened = self.open_as(known, Open::Snapshot(snapshot.parse().unwrap())).await;
        let found = match opened {
            Ok(image) => alive(&self.ground, try_values(&image).await).await,
            Err(error) => Err(error),
        };
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
                assert!(self.book.may_lack(&name, snapshot), "{error:?}");
                return None;
            }
        };
        let mut known = known.borrow_mut();
        let Some(kept) = known.snapshot(snapshot) else {
            assert!(self.beside(), "{name} has lost {snapshot}");
            return None;
        };
        kept.content.find(&format!("{name}@{snapshot}"), &found);
        Some(kept.content.clone())
    }
}
