//! A program on its way: the images, and what is known of them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use vellum_core::{Buffer, Extent};
use vellum_engine::paced::{Pace, PacedCatalog};
use vellum_engine::{
    Catalog, Change, ErrorKind, ImageRecord, Layering, NewImage, NewParent, ParentLink, Repair,
    Severity, Version,
};
use vellum_image::image::Open;
use vellum_image::{
    DiscardPolicy, FlattenOptions, Image, ImageOptions, Job, MappedKind, Pools, WriteOptions,
    ZeroOptions, admin,
};

use super::cells::{Cells, Value, pattern};
use super::ground::Ground;
use super::program::{Act, Op, Program, READINGS, Reading, Shape, Step};

const IMAGES_MAX: usize = 10;

type Paced<G> = PacedCatalog<<G as Ground>::Catalog>;

/// An image, and what is known of it.
struct Known<C: Catalog> {
    /// What it was called at first, which is how it is known here for as long as it lives.
    name: String,
    called: RefCell<Called>,
    image: RefCell<Option<Image<C>>>,
    state: RefCell<State>,
}

struct State {
    cells: Cells,
    parent: Option<Parent>,
    snapshots: Vec<Snapshot>,
    flattens: u32,
    /// Discards to the parent that are under way.
    gives_back: u32,
    /// Those that end with a sync, by which time they are in nobody's way.
    gives_back_durably: u32,
}

/// What an image is called, since a version of its record.
struct Called {
    name: String,
    since: Version,
}

#[derive(Clone)]
struct Parent {
    image: String,
    snapshot: String,
    /// What can be seen of it: as long as the child, with zeros past the overlap.
    shown: Arc<Vec<u8>>,
}

#[derive(Clone)]
struct Snapshot {
    name: String,
    content: Content,
}

/// What a snapshot holds: one thing for ever, which the first look finds out.
#[derive(Clone)]
enum Content {
    Found(Arc<Vec<u8>>),
    OfAMoment { cells: Cells, began: u64, ended: u64 },
}

impl<C: Catalog> Known<C> {
    fn image(&self) -> Image<C> {
        self.image.borrow().clone().expect("it is open between steps that close it")
    }

    fn size(&self) -> u64 {
        self.image().size()
    }

    fn called(&self) -> String {
        self.called.borrow().name.clone()
    }
}

pub struct Run<G: Ground> {
    ground: G,
    pace: Pace,
    pools: Pools<Paced<G>>,
    catalog: Paced<G>,
    images: Vec<Rc<Known<Paced<G>>>>,
    clock: Cell<u64>,
    names: Cell<u32>,
}

/// Runs a program to its end, looking at all there is.
pub async fn run<G: Ground>(ground: G, program: &Program) {
    let mut run = Run::begin(ground, program.pace).await;
    for (number, shape) in program.chain.iter().enumerate() {
        run.create_or_clone(number.checked_sub(1), 0, shape).await;
    }
    for step in &program.steps {
        run.step(step).await;
    }
    run.look_at_all().await;
    run.reopen_all().await;
    run.look_at_all().await;
    run.check().await;
}

/// Up to two turns of others before each call of the engine, by a number.
fn pace(number: u64) -> Pace {
    let state = AtomicU64::new(number);
    Pace::new(move || {
        // Any sequence will do that a number begins.
        let next = state
            .load(Ordering::Relaxed)
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        state.store(next, Ordering::Relaxed);
        ((next >> 33) % 3) as u32
    })
}

impl<G: Ground> Run<G> {
    async fn begin(ground: G, number: u64) -> Self {
        let pace = pace(number);
        let catalog = PacedCatalog::new(ground.open().await, pace.clone());
        let pools = Pools::default();
        pools.add(catalog.clone());
        let (images, clock, names) = (Vec::new(), Cell::new(0), Cell::new(0));
        Self { ground, pace, pools, catalog, images, clock, names }
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    fn new_name(&self, what: &str) -> String {
        self.names.set(self.names.get() + 1);
        format!("{what}{}", self.names.get())
    }

    fn pick(&self, number: usize) -> Option<Rc<Known<Paced<G>>>> {
        let count = self.images.len();
        (count > 0).then(|| self.images[number % count].clone())
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Together(tasks) => {
                let this = &*self;
                let tasks = tasks.iter().map(|ops| async move {
                    for op in ops {
                        this.act(op).await;
                    }
                });
                futures::future::join_all(tasks).await;
                self.look_at_names().await;
                self.settle().await;
            }
            Step::Clone { image, which, shape } => {
                let image = image.checked_rem(self.images.len());
                self.create_or_clone(image, *which, shape).await;
            }
            Step::Reopen { image } => {
                let Some(known) = self.pick(*image) else { return };
                self.close(&known).await;
                self.open(&known).await;
            }
            Step::Remove { image } => self.remove(*image).await,
            Step::PowerCut { synced } => self.cut_power(*synced).await,
        }
    }

    async fn cut_power(&self, synced: bool) {
        for known in self.images.iter().filter(|_| synced) {
            self.sync(known).await;
        }
        if !self.ground.cut_power() {
            return;
        }
        for known in &self.images {
            drop(known.image.take());
            known.state.borrow_mut().cells.power_cut();
        }
        for known in &self.images {
            self.open(known).await;
            let content = Arc::new(self.look_at(known).await);
            known.state.borrow_mut().cells = Cells::new(content);
        }
        self.look_at_names().await;
        self.look_at_all().await;
    }

    async fn act(&self, op: &Op) {
        let Some(known) = self.pick(op.image) else { return };
        let size = known.size();
        match op.act {
            Act::Read { at, by } => self.read(&known, at.clip(size), by).await,
            Act::Write { at, seed, durable } => {
                self.write(&known, at.clip(size), seed, durable).await;
            }
            Act::Zero { at, options } => self.zero(&known, at.clip(size), options).await,
            Act::Discard { at, to_parent, durable } => {
                self.discard(&known, at.clip(size), to_parent, durable).await;
            }
            Act::Sync => self.sync(&known).await,
            Act::Snapshot => self.snapshot(&known).await,
            Act::RemoveSnapshot { which } => self.remove_snapshot(&known, which).await,
            Act::Flatten => self.flatten(&known).await,
            Act::Map => self.map(&known).await,
            Act::Rename { taken } => self.rename(&known, taken).await,
        }
    }

    async fn sync(&self, known: &Known<Paced<G>>) {
        let began = self.tick();
        known.image().sync().await.unwrap();
        known.state.borrow_mut().cells.synced(began);
    }

    async fn read(&self, known: &Known<Paced<G>>, at: Extent, by: Reading) {
        let began = self.tick();
        let bytes = read_by(&known.image(), at, by).await;
        known.state.borrow().cells.check(&known.name, at, &bytes, began);
    }

    async fn write(&self, known: &Known<Paced<G>>, at: Extent, seed: u64, durable: bool) {
        let began = self.tick();
        known.state.borrow_mut().cells.begin(at, Value::Pattern(seed), true, began);
        let data = Bytes::from(pattern(at, seed));
        known.image().write(at.offset(), data, WriteOptions { durable }).await.unwrap();
        known.state.borrow_mut().cells.end(began, self.tick(), durable);
    }

    async fn zero(&self, known: &Known<Paced<G>>, at: Extent, options: ZeroOptions) {
        let began = self.tick();
        known.state.borrow_mut().cells.begin(at, Value::Zeros, true, began);
        let result = known.image().write_zeroes(at, options).await;
        let cells = &mut known.state.borrow_mut().cells;
        match result {
            Ok(()) => cells.end(began, self.tick(), options.durable),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
                assert!(options.fast, "only fast zeroes may be refused: {error:?}");
                cells.refused(began);
            }
        }
    }

    async fn discard(&self, known: &Known<Paced<G>>, at: Extent, to_parent: bool, durable: bool) {
        let began = self.tick();
        let busy = {
            let mut state = known.state.borrow_mut();
            let value = match &state.parent {
                Some(parent) if to_parent => Value::Of(parent.shown.clone()),
                _ => Value::Zeros,
            };
            let record = known.image().record();
            for (part, sure) in discarded(&record, state.parent.is_some(), at) {
                state.cells.begin(part, value.clone(), sure, began);
            }
            state.gives_back += u32::from(to_parent && !durable);
            state.gives_back_durably += u32::from(to_parent && durable);
            to_parent && state.flattens > 0
        };
        let policy = if to_parent { DiscardPolicy::Inherit } else { DiscardPolicy::Zero };
        let result = known.image().discard(at, policy, durable).await;
        let mut state = known.state.borrow_mut();
        state.gives_back -= u32::from(to_parent && !durable);
        state.gives_back_durably -= u32::from(to_parent && durable);
        let able = !to_parent || self.catalog.capabilities().inherit;
        match result {
            Ok(()) => {
                assert!(able && !busy, "a discard to the parent that must be refused");
                state.cells.end(began, self.tick(), durable);
            }
            Err(error) => {
                let kind = error.kind();
                let expected =
                    if able { (busy, ErrorKind::Busy) } else { (true, ErrorKind::Unsupported) };
                assert_eq!((true, kind), expected, "{error:?}");
                state.cells.refused(began);
            }
        }
    }

    async fn snapshot(&self, known: &Known<Paced<G>>) {
        let name = self.new_name("s");
        let began = self.tick();
        known.image().snapshot(name.parse().unwrap(), false).await.unwrap();
        let ended = self.tick();
        let mut state = known.state.borrow_mut();
        state.cells.synced(began);
        let content = Content::OfAMoment { cells: state.cells.clone(), began, ended };
        state.snapshots.push(Snapshot { name, content });
    }

    async fn remove_snapshot(&self, known: &Known<Paced<G>>, which: usize) {
        let snapshot = {
            let state = known.state.borrow();
            let Some(which) = which.checked_rem(state.snapshots.len()) else { return };
            state.snapshots[which].name.clone()
        };
        let children = || {
            let hangs = |other: &Rc<Known<Paced<G>>>| {
                let state = other.state.borrow();
                let parent = state.parent.as_ref();
                parent.is_some_and(|it| it.image == known.name && it.snapshot == snapshot)
            };
            self.images.iter().any(hangs)
        };
        let had_children = children();
        match known.image().remove_snapshot(&snapshot.parse().unwrap()).await {
            Ok(_) => {
                assert!(!children(), "{snapshot} had children");
                known.state.borrow_mut().snapshots.retain(|it| it.name != snapshot);
            }
            Err(error) if error.kind() == ErrorKind::HasChildren => assert!(had_children),
            // Somebody else was faster.
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
                let state = known.state.borrow();
                assert!(state.snapshots.iter().all(|it| it.name != snapshot));
            }
        }
    }

    async fn flatten(&self, known: &Known<Paced<G>>) {
        let (busy, may_be_busy) = {
            let mut state = known.state.borrow_mut();
            let busy = state.flattens > 0 || state.gives_back > 0;
            state.flattens += 1;
            (busy, busy || state.gives_back_durably > 0)
        };
        let result = known.image().flatten(FlattenOptions::default(), &Job::default()).await;
        let mut state = known.state.borrow_mut();
        state.flattens -= 1;
        match result {
            Ok(record) => {
                assert!(!busy && record.parent().is_none());
                state.parent = None;
            }
            Err(error) => {
                assert_eq!((may_be_busy, error.kind()), (true, ErrorKind::Busy), "{error:?}");
            }
        }
    }

    /// Whoever uses an image goes on, whatever it is called. No two are called the same.
    async fn rename(&self, known: &Known<Paced<G>>, taken: Option<usize>) {
        let other = taken.and_then(|number| self.pick(number));
        let name = other.as_ref().map_or_else(|| self.new_name("r"), |other| other.called());
        let change = |_: &ImageRecord| Ok(Change::Rename(name.parse().unwrap()));
        match admin::change(&self.catalog, known.image().id(), change).await {
            Ok(record) => {
                let mut called = known.called.borrow_mut();
                if called.since < record.version {
                    *called = Called { name, since: record.version };
                }
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Exists, "{error:?}");
                assert!(other.is_some(), "{error:?}");
            }
        }
    }

    /// Every image is found by what it is called, and no other is there.
    async fn look_at_names(&self) {
        let records = self.catalog.list(None, 2 * IMAGES_MAX).await.unwrap();
        assert_eq!(records.len(), self.images.len());
        for known in &self.images {
            assert_eq!(self.find(&known.called()).await.id, *known.image().id());
        }
    }

    /// What a map says reads as zeros does.
    async fn map(&self, known: &Known<Paced<G>>) {
        let all = Extent::new(0, known.size());
        let began = self.tick();
        let map = known.image().map(all, usize::MAX).await.unwrap();
        assert_eq!(map.iter().map(|entry| entry.at.length()).sum::<u64>(), all.length());
        let zeros = map.iter().filter(|entry| entry.kind != MappedKind::Data);
        for entry in zeros {
            let bytes = vec![0; entry.at.len_usize()];
            known.state.borrow().cells.check(&known.name, entry.at, &bytes, began);
        }
    }

    /// Nothing is under way: what is there now is what is there.
    async fn settle(&self) {
        for known in &self.images {
            let content = self.look_at(known).await;
            known.state.borrow_mut().cells.settle(Arc::new(content), self.tick());
        }
    }

    async fn look_at(&self, known: &Known<Paced<G>>) -> Vec<u8> {
        let all = Extent::new(0, known.size());
        let began = self.tick();
        let content = read(&known.image(), all).await;
        for by in READINGS {
            let again = read_by(&known.image(), all, by).await;
            assert!(again == content, "{} reads otherwise by {by:?}", known.name);
        }
        known.state.borrow().cells.check(&known.name, all, &content, began);
        content
    }

    async fn look_at_all(&self) {
        for known in &self.images {
            self.look_at(known).await;
            let count = known.state.borrow().snapshots.len();
            for which in 0..count {
                self.look_at_snapshot(known, which).await;
            }
        }
    }

    async fn look_at_snapshot(&self, known: &Known<Paced<G>>, which: usize) -> Arc<Vec<u8>> {
        let snapshot = known.state.borrow().snapshots[which].clone();
        let open_as = Open::Snapshot(snapshot.name.parse().unwrap());
        let image = self.open_as(&known.called(), open_as).await;
        let content = read(&image, Extent::new(0, image.size())).await;
        let name = format!("{}@{}", known.name, snapshot.name);
        match snapshot.content {
            Content::Found(found) => {
                assert!(*found == content, "{name} has changed");
                found
            }
            Content::OfAMoment { cells, began, ended } => {
                cells.check_moment(&name, &content, began, ended);
                let content = Arc::new(content);
                let state = &mut known.state.borrow_mut();
                state.snapshots[which].content = Content::Found(content.clone());
                content
            }
        }
    }

    async fn find(&self, name: &str) -> ImageRecord {
        self.catalog.find(&name.parse().unwrap()).await.unwrap()
    }

    async fn open_as(&self, name: &str, what: Open) -> Image<Paced<G>> {
        let id = self.find(name).await.id;
        let options = ImageOptions::default();
        Image::open(&self.pools, &self.catalog, &id, what, options).await.unwrap()
    }

    async fn open(&self, known: &Known<Paced<G>>) {
        let image = self.open_as(&known.called(), Open::Own).await;
        *known.image.borrow_mut() = Some(image);
    }

    async fn close(&self, known: &Known<Paced<G>>) {
        let image = known.image.take().expect("it is open");
        let began = self.tick();
        image.close().await.unwrap();
        known.state.borrow_mut().cells.synced(began);
    }

    /// A new image, or a clone of a snapshot of another one, open.
    async fn create_or_clone(&mut self, parent: Option<usize>, which: usize, shape: &Shape) {
        if self.images.len() >= IMAGES_MAX {
            return;
        }
        let name = self.new_name("i");
        let parent = match parent {
            Some(number) => Some(self.parent_of(&self.images[number].clone(), which, shape).await),
            None => None,
        };
        let new = NewImage {
            name: name.parse().unwrap(),
            size: shape.size,
            geometry: shape.geometry,
            layering: shape.layering,
            block_size: shape.block_size,
            parent: parent.as_ref().map(|(_, new)| new.clone()),
            id: None,
            meta: Default::default(),
        };
        self.catalog.create(new).await.unwrap();
        let image = self.open_as(&name, Open::Own).await;
        let parent = parent.map(|(parent, _)| parent);
        let zeros = || Arc::new(vec![0; shape.size as usize]);
        let content = parent.as_ref().map_or_else(zeros, |parent| parent.shown.clone());
        let (cells, snapshots) = (Cells::new(content), Vec::new());
        let state =
            State { cells, parent, snapshots, flattens: 0, gives_back: 0, gives_back_durably: 0 };
        let called = RefCell::new(Called { name: name.clone(), since: image.record().version });
        let (image, state) = (RefCell::new(Some(image)), RefCell::new(state));
        let known = Known { name, called, image, state };
        if self.images.is_empty() {
            // So that there is something to inherit.
            self.write(&known, Extent::new(0, shape.size), 251, false).await;
        }
        self.images.push(Rc::new(known));
        self.settle().await;
    }

    async fn parent_of(
        &self,
        known: &Known<Paced<G>>,
        which: usize,
        shape: &Shape,
    ) -> (Parent, NewParent) {
        if known.state.borrow().snapshots.is_empty() {
            self.snapshot(known).await;
        }
        let which = which % known.state.borrow().snapshots.len();
        let content = self.look_at_snapshot(known, which).await;
        let snapshot = known.state.borrow().snapshots[which].name.clone();
        let record = self.find(&known.called()).await;
        let revision = record.snapshot(&snapshot.parse().unwrap()).unwrap().revision.clone();
        let overlap = shape.overlap.min(shape.size).min(content.len() as u64);
        let mut shown = content[..overlap as usize].to_vec();
        shown.resize(shape.size as usize, 0);
        let link = ParentLink { pool: self.catalog.pool(), image: record.id, revision };
        let parent = Parent { image: known.name.clone(), snapshot, shown: Arc::new(shown) };
        (parent, NewParent { link, overlap })
    }

    async fn remove(&mut self, image: usize) {
        let Some(known) = self.pick(image) else { return };
        self.close(&known).await;
        let id = self.find(&known.called()).await.id;
        let children = self.images.iter().any(|other| {
            let state = other.state.borrow();
            state.parent.as_ref().is_some_and(|parent| parent.image == known.name)
        });
        match admin::remove(&self.pools, &self.catalog, &id).await {
            Ok(()) => {
                assert!(!children, "{} had children", known.name);
                self.images.retain(|other| other.name != known.name);
            }
            Err(error) => {
                assert_eq!((children, error.kind()), (true, ErrorKind::HasChildren), "{error:?}");
                self.open(&known).await;
            }
        }
    }

    /// As another process does later.
    async fn reopen_all(&mut self) {
        for known in &self.images {
            self.close(known).await;
        }
        self.catalog = PacedCatalog::new(self.ground.open().await, self.pace.clone());
        self.pools.add(self.catalog.clone());
        for known in &self.images {
            self.open(known).await;
        }
    }

    async fn check(&self) {
        let found = vellum_image::check::check(&self.pools, &self.catalog, None, Repair::No).await;
        let bad: Vec<_> = found
            .unwrap()
            .into_iter()
            .filter(|it| !matches!(it.severity, Severity::Leak | Severity::Unknown))
            .collect();
        assert!(bad.is_empty(), "{bad:?}");
    }
}

async fn read<C: Catalog>(image: &Image<C>, at: Extent) -> Vec<u8> {
    let length = at.len_usize();
    let (buffer, holes) = image.read(at, Buffer::from_vec(vec![0xaa; length]), 0..length).await;
    for hole in holes.unwrap() {
        assert!(buffer[at.range_of(&hole)].iter().all(|byte| *byte == 0), "{hole} is no hole");
    }
    buffer.to_vec()
}

/// The same in one of the ways that a server reads. What is said to be a hole must be zeros for whoever reads it.
async fn read_by<C: Catalog>(image: &Image<C>, at: Extent, by: Reading) -> Vec<u8> {
    match by {
        Reading::Buffer => read(image, at).await,
        Reading::Pieces => {
            let (mut bytes, mut rest) = (vec![0; at.len_usize()], at);
            for piece in image.read_pieces(at).await.unwrap() {
                assert_eq!(piece.at.offset(), rest.offset(), "pieces follow each other");
                rest = rest.split(piece.at.end()).1;
                if let Some(data) = piece.data {
                    bytes[at.range_of(&piece.at)].copy_from_slice(&data);
                }
            }
            assert!(rest.is_empty(), "{rest} of {at} is in no piece");
            bytes
        }
        Reading::AtOnce => {
            let (mut bytes, mut holes) = (vec![0xaa; at.len_usize()], Default::default());
            if !image.try_read(at, &mut bytes, &mut holes) {
                return Box::pin(read_by(image, at, Reading::Pieces)).await;
            }
            for hole in holes {
                assert!(bytes[at.range_of(&hole)].iter().all(|byte| *byte == 0), "{hole}");
            }
            bytes
        }
    }
}

/// The parts of a discard that change, and whether they do so for sure: whole units; of a child that copies up, whole objects,
/// while units of others may be left alone.
fn discarded(record: &ImageRecord, has_parent: bool, at: Extent) -> Vec<(Extent, bool)> {
    let (unit, size) = (u64::from(record.block_size), record.size());
    let whole_units = |at: Extent| {
        let end = if at.end() == size { size } else { at.end() / unit * unit };
        Extent::between(at.offset().next_multiple_of(unit).min(end), end)
    };
    if record.layering == Layering::Sparse || !has_parent {
        return vec![(whole_units(at), true)];
    }
    let pieces = record.geometry.objects(at).map(|piece| {
        let mut object = record.geometry.object_image_extents(piece.object, size);
        (whole_units(piece.image), object.all(|part| at.contains(&part)))
    });
    pieces.collect()
}
