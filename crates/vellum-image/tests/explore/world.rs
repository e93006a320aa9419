//! A child of a golden image on the memory engine, for one order of what is done to it.

use std::cell::{Cell, RefCell};

use bytes::Bytes;
use tokio::runtime::Handle;
use vellum_core::{Buffer, Extent, Geometry};
use vellum_engine::memory::{MemoryCatalog, MemoryOptions, MemoryStore};
use vellum_engine::paced::{Pace, PacedCatalog};
use vellum_engine::{AtomicSpan, Catalog, ErrorKind, Layering, Repair, Snapshots};
use vellum_image::Canary;
use vellum_image::image::Open;
use vellum_image::{
    CloneOptions, CreateOptions, DiscardPolicy, FlattenOptions, Image, ImageOptions, Job, Pools,
    WriteOptions, ZeroOptions, admin, check,
};
use vellum_sim::{Order, Task};

use crate::acts::{Act, OBJECT, Plain, SIZE, UNIT};
use crate::judge::{Done, Judge};

type Engine = PacedCatalog<MemoryCatalog>;

/// The byte that the golden image is full of.
const GOLD: u8 = b'g';

/// What is explored: the image, and what each task does to it, one after the other.
#[derive(Clone, Debug)]
pub struct Scene {
    pub layering: Layering,
    /// The child has written something, and taken a snapshot, before.
    pub has_history: bool,
    /// It has taken a snapshot before, and written nothing.
    pub is_frozen: bool,
    /// What the engine can do.
    pub engine: MemoryOptions,
    pub tasks: Vec<Vec<Act>>,
    pub canary: Option<Canary>,
}

impl Scene {
    pub fn new(layering: Layering, tasks: &[&[Act]]) -> Self {
        let tasks = tasks.iter().map(|acts| acts.to_vec()).collect();
        let engine = MemoryOptions::default();
        Self { layering, has_history: false, is_frozen: false, engine, tasks, canary: None }
    }

    pub fn with_history(self) -> Self {
        Self { has_history: true, ..self }
    }

    pub fn frozen(self) -> Self {
        Self { is_frozen: true, ..self }
    }

    pub fn by_object(self) -> Self {
        let engine = MemoryOptions { atomic: AtomicSpan::Object, ..self.engine };
        Self { engine, ..self }
    }

    /// On an engine whose snapshots share objects with the head.
    pub fn sharing_objects(self) -> Self {
        let engine = MemoryOptions { snapshots: Snapshots::Native, inherit: false, ..self.engine };
        Self { engine, ..self }
    }

    fn count(&self, what: impl Fn(&Act) -> bool) -> usize {
        self.tasks.iter().flatten().filter(|act| what(act)).count()
    }

    /// Tells one order of it, and judges what came of it.
    pub fn play(&self, order: &mut Order, judge: &mut Judge) {
        let runtime = Handle::current();
        let world = runtime.block_on(World::new(self));
        let acts: Vec<Act> = self.tasks.iter().flatten().copied().collect();
        let log = Log { clock: Cell::new(0), done: RefCell::new(vec![None; acts.len()]) };
        let mut first = 0;
        let tasks = self.tasks.iter().map(|acts| {
            let number = first;
            first += acts.len();
            Box::pin(world.do_all(acts, number, &log)) as Task<'_>
        });
        order.run(tasks.collect::<Vec<_>>());
        let done = log.done.take().into_iter();
        let mut done: Vec<Done> = done.map(|done| done.expect("it ended")).collect();
        world.still_takes_operations(order);
        runtime.block_on(async {
            for (number, act) in acts.iter().enumerate() {
                if *act == Act::Snapshot {
                    done[number].seen = Some(world.snapshot(&name(number)).await);
                }
            }
            let last = world.content(&world.image).await;
            judge.judge(self.layering, &world.start, &acts, &done, &last);
            let flattened =
                acts.iter().zip(&done).any(|(act, done)| *act == Act::Flatten && !done.refused);
            world.look_again(flattened, &acts, &done, &last).await;
        });
    }
}

/// What was done, and a clock that counts.
struct Log {
    clock: Cell<usize>,
    done: RefCell<Vec<Option<Done>>>,
}

impl Log {
    fn tick(&self) -> usize {
        self.clock.replace(self.clock.get() + 1)
    }
}

fn name(number: usize) -> String {
    format!("s{number}")
}

struct World {
    pools: Pools<Engine>,
    catalog: Engine,
    image: Image<Engine>,
    start: Plain,
    /// What the snapshot from before holds, if there is one.
    before: Option<Vec<u8>>,
    refuses_inherit: bool,
    flattens: bool,
    /// There is another flatten, or a discard to the parent.
    flatten_meets: bool,
}

impl World {
    async fn new(scene: &Scene) -> Self {
        let store = MemoryStore::new(scene.engine);
        let catalog = PacedCatalog::new(store.catalog(), Pace::new(|| 1));
        let pools = Pools::default();
        pools.add(catalog.clone());
        let small = CreateOptions {
            geometry: Geometry::unstriped(OBJECT).unwrap(),
            block_size: UNIT as u32,
            ..CreateOptions::default()
        };
        admin::create(&catalog, "gold".parse().unwrap(), SIZE, small).await.unwrap();
        let gold = open(&pools, &catalog, "gold", Open::Own, None).await;
        for at in Extent::new(0, SIZE).chunks(OBJECT) {
            let bytes = Bytes::from(vec![GOLD; at.len_usize()]);
            gold.write(at.offset(), bytes, WriteOptions::default()).await.unwrap();
        }
        gold.snapshot("s".parse().unwrap(), false).await.unwrap();
        gold.close().await.unwrap();
        let record = catalog.find(&"gold".parse().unwrap()).await.unwrap();
        let snapshot = record.snapshot(&"s".parse().unwrap()).unwrap();
        let options = CloneOptions { layering: Some(scene.layering), ..CloneOptions::default() };
        let child = "child".parse().unwrap();
        admin::clone(&pools, &catalog, &record, snapshot, &catalog, child, options).await.unwrap();
        let image = open(&pools, &catalog, "child", Open::Own, scene.canary).await;
        let mut content = vec![GOLD; SIZE as usize];
        let parent = Some(content.clone());
        let mut before = None;
        if scene.has_history {
            // In the second unit, and the rest of the object is the parent's still, in sparse mode.
            image.write(UNIT, Bytes::from(vec![b'o'; 300]), WriteOptions::default()).await.unwrap();
            content[UNIT as usize..][..300].fill(b'o');
        }
        if scene.has_history || scene.is_frozen {
            image.snapshot("before".parse().unwrap(), false).await.unwrap();
            before = Some(content.clone());
        }
        Self {
            pools,
            catalog,
            image,
            start: Plain { content, parent },
            before,
            refuses_inherit: !scene.engine.inherit,
            flattens: scene.count(|act| *act == Act::Flatten) > 0,
            flatten_meets: scene.count(|act| *act == Act::Flatten || gives_back(act)) > 1,
        }
    }

    async fn do_all(&self, acts: &[Act], first: usize, log: &Log) {
        for (number, act) in (first..).zip(acts) {
            let began = log.tick();
            let (seen, refused) = self.act(*act, number).await;
            let ended = log.tick();
            log.done.borrow_mut()[number] = Some(Done { began, ended, seen, refused });
        }
    }

    /// Does one thing, and says what it saw and whether it was refused.
    async fn act(&self, act: Act, number: usize) -> (Option<Vec<u8>>, bool) {
        let image = &self.image;
        match act {
            Act::Write { at, byte } => {
                let data = Bytes::from(vec![byte; at.len_usize()]);
                image.write(at.offset(), data, WriteOptions::default()).await.unwrap();
            }
            Act::Zero { at } => image.write_zeroes(at, ZeroOptions::default()).await.unwrap(),
            Act::Discard { at, policy } => {
                if let Err(error) = image.discard(at, policy, false).await {
                    let kind = error.kind();
                    let busy = kind == ErrorKind::Busy && self.flattens;
                    let cannot = kind == ErrorKind::Unsupported && self.refuses_inherit;
                    assert!(policy == DiscardPolicy::Inherit && (busy || cannot), "{error:?}");
                    return (None, true);
                }
            }
            Act::Read { at } => {
                let length = at.len_usize();
                let buffer = Buffer::from_vec(vec![0xaa; length]);
                let (buffer, holes) = image.read(at, buffer, 0..length).await;
                holes.unwrap();
                return (Some(buffer.to_vec()), false);
            }
            Act::Snapshot => {
                image.snapshot(name(number).parse().unwrap(), false).await.unwrap();
            }
            Act::Flatten => {
                let options = FlattenOptions { copies: 2, ..FlattenOptions::default() };
                if let Err(error) = image.flatten(options, &Job::default()).await {
                    assert!(error.kind() == ErrorKind::Busy && self.flatten_meets, "{error:?}");
                    return (None, true);
                }
            }
            Act::Sync => image.sync().await.unwrap(),
        }
        (None, false)
    }

    /// An operation waits until nobody is inside the gate, so it would wait for ever for a pass that was not given back.
    fn still_takes_operations(&self, order: &mut Order) {
        let last = async {
            self.image.snapshot("last".parse().unwrap(), false).await.unwrap();
        };
        order.run([Box::pin(last) as Task<'_>]);
    }

    async fn content(&self, image: &Image<Engine>) -> Vec<u8> {
        let length = SIZE as usize;
        let at = Extent::new(0, SIZE);
        let (buffer, holes) = image.read(at, Buffer::from_vec(vec![0xaa; length]), 0..length).await;
        holes.unwrap();
        buffer.to_vec()
    }

    async fn snapshot(&self, name: &str) -> Vec<u8> {
        let open_as = Open::Snapshot(name.parse().unwrap());
        let snapshot = open(&self.pools, &self.catalog, "child", open_as, None).await;
        self.content(&snapshot).await
    }

    /// What other readers see: whoever opens the image anew, after its parent was removed if it was flattened.
    async fn look_again(self, flattened: bool, acts: &[Act], done: &[Done], last: &[u8]) {
        if let Some(before) = &self.before {
            assert!(self.snapshot("before").await == *before, "the snapshot from before");
        }
        assert_eq!(self.image.record().parent().is_none(), flattened);
        let image = self.image.clone();
        image.close().await.unwrap();
        let gold = self.catalog.find(&"gold".parse().unwrap()).await.unwrap();
        if flattened {
            admin::remove(&self.pools, &self.catalog, &gold.id).await.unwrap();
        } else {
            let gold = open(&self.pools, &self.catalog, "gold", Open::Own, None).await;
            assert!(self.content(&gold).await == vec![GOLD; SIZE as usize], "the parent changed");
        }
        let again = open(&self.pools, &self.catalog, "child", Open::Own, None).await;
        assert!(self.content(&again).await == last, "it reads otherwise when it is opened anew");
        for (number, _) in acts.iter().enumerate().filter(|(_, act)| **act == Act::Snapshot) {
            let now = self.snapshot(&name(number)).await;
            assert!(Some(&now) == done[number].seen.as_ref(), "snapshot {number} has changed");
        }
        if let Some(before) = &self.before {
            assert!(self.snapshot("before").await == *before, "the snapshot from before");
        }
        again.close().await.unwrap();
        let found = check::check(&self.pools, &self.catalog, None, Repair::No).await.unwrap();
        assert!(found.is_empty(), "a check finds {found:?}");
    }
}

fn gives_back(act: &Act) -> bool {
    matches!(act, Act::Discard { policy: DiscardPolicy::Inherit, .. })
}

async fn open(
    pools: &Pools<Engine>,
    catalog: &Engine,
    name: &str,
    what: Open,
    canary: Option<Canary>,
) -> Image<Engine> {
    let id = catalog.find(&name.parse().unwrap()).await.unwrap().id;
    let options = ImageOptions { canary, ..ImageOptions::default() };
    Image::open(pools, catalog, &id, what, options).await.unwrap()
}
