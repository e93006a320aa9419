//! A program on its way: the images, what is known of them, and what they read as. What changes which there are is in [`tree`].

mod tree;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use vellum_core::{Buffer, Extent};
use vellum_engine::paced::{Pace, PacedCatalog};
use vellum_engine::{
    Catalog, Change, ErrorKind, ImageId, ImageRecord, Layering, NewImage, NewParent, ParentLink,
    Repair, Result, Severity, SnapshotId, Version,
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
    id: ImageId,
    called: RefCell<Called>,
    notes: RefCell<BTreeMap<String, Note>>,
    image: RefCell<Option<Image<C>>>,
    /// How many operations are under way that need it to be open.
    users: Cell<u32>,
    /// It is there, and not open yet.
    comes: Cell<bool>,
    /// A removal is under way, or over.
    leaves: Cell<bool>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    cells: Cells,
    parent: Option<Parent>,
    snapshots: Vec<Snapshot>,
    flattens: u32,
    /// Clones of it that are under way, and how many there ever were.
    clones: u32,
    clones_begun: u32,
    /// Discards to the parent that are under way.
    gives_back: u32,
    /// Those that end with a sync, by which time they are in nobody's way.
    gives_back_durably: u32,
}

impl State {
    fn begin_clone(&mut self) {
        self.clones += 1;
        self.clones_begun += 1;
    }

    /// How many clones of it are over.
    fn clones_ended(&self) -> u32 {
        self.clones_begun - self.clones
    }
}

/// What an image, or a snapshot of it, is called, since a version of its record.
#[derive(Clone)]
struct Called {
    name: String,
    since: Version,
}

impl Called {
    fn is_now(&mut self, name: String, since: Version) {
        if self.since < since {
            *self = Self { name, since };
        }
    }
}

/// What is noted on an image under some key, since a version of its record.
struct Note {
    text: Option<String>,
    since: Version,
}

#[derive(Clone)]
struct Parent {
    image: String,
    snapshot: SnapshotId,
    /// What can be seen of it: as long as the child, with zeros past the overlap.
    shown: Arc<Vec<u8>>,
}

#[derive(Clone)]
struct Snapshot {
    id: SnapshotId,
    called: Called,
    /// Goes with its last child.
    auto: bool,
    /// Removals of it that are under way.
    removals: u32,
    /// It has, or had, a child.
    is_parent: bool,
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

    fn with_snapshot<T>(
        &self,
        id: &SnapshotId,
        does: impl FnOnce(&mut Snapshot) -> T,
    ) -> Option<T> {
        self.state.borrow_mut().snapshots.iter_mut().find(|it| it.id == *id).map(does)
    }

    /// Whether a snapshot may be gone: somebody has taken it, or the image, or its last child may have.
    fn may_lack(&self, id: &SnapshotId) -> bool {
        let may_go = |it: &mut Snapshot| it.auto || it.removals > 0;
        self.leaves.get() || self.with_snapshot(id, may_go).unwrap_or(true)
    }
}

pub struct Run<G: Ground> {
    ground: G,
    pace: Pace,
    pools: Pools<Paced<G>>,
    catalog: Paced<G>,
    images: RefCell<Vec<Rc<Known<Paced<G>>>>>,
    /// Images that are being made.
    coming: Cell<usize>,
    clock: Cell<u64>,
    names: Cell<u32>,
}

/// Runs a program to its end, looking at all there is.
pub async fn run<G: Ground>(ground: G, program: &Program) {
    let mut run = Run::begin(ground, program.pace).await;
    for shape in &program.chain {
        run.extend_chain(shape).await;
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
        let (images, coming) = Default::default();
        let (clock, names) = Default::default();
        Self { ground, pace, pools, catalog, images, coming, clock, names }
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    fn new_name(&self, what: &str) -> String {
        self.names.set(self.names.get() + 1);
        format!("{what}{}", self.names.get())
    }

    /// All images but those that come or leave just now.
    fn images(&self) -> Vec<Rc<Known<Paced<G>>>> {
        let is_here = |known: &&Rc<Known<_>>| !known.comes.get() && !known.leaves.get();
        self.images.borrow().iter().filter(is_here).cloned().collect()
    }

    fn pick(&self, number: usize) -> Option<Rc<Known<Paced<G>>>> {
        let images = self.images();
        Some(images[number.checked_rem(images.len())?].clone())
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
            Step::Reopen { image } => {
                let Some(known) = self.pick(*image) else { return };
                self.close(&known).await;
                self.open(&known).await;
            }
            Step::PowerCut { synced } => self.cut_power(*synced).await,
        }
    }

    async fn cut_power(&self, synced: bool) {
        for known in self.images().iter().filter(|_| synced) {
            self.sync(known).await;
        }
        if !self.ground.cut_power() {
            return;
        }
        for known in &self.images() {
            drop(known.image.take());
            known.state.borrow_mut().cells.power_cut();
        }
        for known in &self.images() {
            self.open(known).await;
            let content = Arc::new(self.look_at(known).await);
            known.state.borrow_mut().cells = Cells::new(content);
        }
        self.look_at_names().await;
        self.look_at_all().await;
    }

    async fn act(&self, op: &Op) {
        let Some(known) = self.pick(op.image) else { return };
        match op.act {
            Act::Clone { which, auto, ref shape } => self.clone(&known, which, auto, shape).await,
            Act::Remove => self.remove(&known).await,
            ref act => {
                known.users.update(|users| users + 1);
                self.use_image(&known, act).await;
                known.users.update(|users| users - 1);
            }
        }
    }

    /// What needs the image to stay open.
    async fn use_image(&self, known: &Known<Paced<G>>, act: &Act) {
        let size = known.size();
        match *act {
            Act::Read { at, by } => self.read(known, at.clip(size), by).await,
            Act::Write { at, seed, durable } => {
                self.write(known, at.clip(size), seed, durable).await;
            }
            Act::Zero { at, options } => self.zero(known, at.clip(size), options).await,
            Act::Discard { at, to_parent, durable } => {
                self.discard(known, at.clip(size), to_parent, durable).await;
            }
            Act::Sync => self.sync(known).await,
            Act::Snapshot => drop(self.snapshot(known, false).await),
            Act::RemoveSnapshot { which } => self.remove_snapshot(known, which).await,
            Act::RenameSnapshot { which } => self.rename_snapshot(known, which).await,
            Act::Flatten => self.flatten(known).await,
            Act::Map => self.map(known).await,
            Act::Rename { taken } => self.rename(known, taken).await,
            Act::Note { key, away } => self.note(known, key, away).await,
            Act::Clone { .. } | Act::Remove => unreachable!("neither needs it to stay open"),
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
        for known in &self.images() {
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
        for known in &self.images() {
            self.look_at(known).await;
            let snapshots = known.state.borrow().snapshots.clone();
            for snapshot in snapshots {
                let there = self.look_at_snapshot(known, &snapshot.id).await;
                assert!(there.is_some(), "{} of {} is gone", snapshot.called.name, known.name);
            }
        }
    }

    /// What a snapshot holds; nothing if it is gone, where it may be.
    async fn look_at_snapshot(
        &self,
        known: &Known<Paced<G>>,
        id: &SnapshotId,
    ) -> Option<Arc<Vec<u8>>> {
        let image = loop {
            let name = known.with_snapshot(id, |it| it.called.name.clone())?;
            let open_as = Open::Snapshot(name.parse().unwrap());
            match self.try_open(known, open_as).await {
                Ok(image) => break image,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
                    if known.may_lack(id) {
                        return None;
                    }
                    // It was renamed meanwhile, which whoever did it may not have heard yet.
                    tokio::task::yield_now().await;
                }
            }
        };
        let content = match try_read(&image, Extent::new(0, image.size())).await {
            Ok(content) => content,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
                assert!(known.may_lack(id), "{error:?}");
                return None;
            }
        };
        known.with_snapshot(id, |snapshot| {
            let name = format!("{}@{}", known.name, snapshot.called.name);
            let found = match &snapshot.content {
                Content::Found(found) => {
                    assert!(**found == content, "{name} has changed");
                    found.clone()
                }
                Content::OfAMoment { cells, began, ended } => {
                    cells.check_moment(&name, &content, *began, *ended);
                    Arc::new(content)
                }
            };
            snapshot.content = Content::Found(found.clone());
            found
        })
    }

    async fn try_open(&self, known: &Known<Paced<G>>, what: Open) -> Result<Image<Paced<G>>> {
        Image::open(&self.pools, &self.catalog, &known.id, what, ImageOptions::default()).await
    }

    async fn open(&self, known: &Known<Paced<G>>) {
        let image = self.try_open(known, Open::Own).await.unwrap();
        *known.image.borrow_mut() = Some(image);
    }

    async fn close(&self, known: &Known<Paced<G>>) {
        let image = known.image.take().expect("it is open");
        let began = self.tick();
        image.close().await.unwrap();
        known.state.borrow_mut().cells.synced(began);
    }

    /// As another process does later.
    async fn reopen_all(&mut self) {
        for known in &self.images() {
            self.close(known).await;
        }
        self.catalog = PacedCatalog::new(self.ground.open().await, self.pace.clone());
        self.pools.add(self.catalog.clone());
        for known in &self.images() {
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
    try_read(image, at).await.unwrap()
}

/// The same, where the image may be taken away meanwhile.
async fn try_read<C: Catalog>(image: &Image<C>, at: Extent) -> Result<Vec<u8>> {
    let length = at.len_usize();
    let (buffer, holes) = image.read(at, Buffer::from_vec(vec![0xaa; length]), 0..length).await;
    for hole in holes? {
        assert!(buffer[at.range_of(&hole)].iter().all(|byte| *byte == 0), "{hole} is no hole");
    }
    Ok(buffer.to_vec())
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
