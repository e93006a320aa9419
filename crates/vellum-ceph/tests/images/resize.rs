//! Images that become larger and smaller: by random programs against plain bytes, by clients that die in the middle, and by Vellum and
//! `rbd` in turns.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vellum_ceph::{CephCatalog, NoParent, ReadParent, Shrink, classes};
use vellum_core::{Buffer, Extent, Geometry};
use vellum_engine::{Catalog, ErrorKind, ImageRecord, Layering, Repair, Result};
use vellum_image::image::Open;
use vellum_image::{
    CloneOptions, CreateOptions, DiscardPolicy, FlattenOptions, Image, ImageOptions, Job, Pools,
    WriteOptions, ZeroOptions, admin,
};
use vellum_rados::{Event, Objects, SnapContext, Watch, WriteOp};
use vellum_rbd::method::{CLASS, header as method};
use vellum_rbd::names;
use vellum_testkit::ceph::{Cluster, POOLS};

use crate::deaths::{self, CHANGES_MAX, Client, OBJECT, SIZE};
use crate::interop::check_object_map;
use crate::programs::assert_reads;
use crate::strangers::export_of;
use crate::{connect, in_memory};

const SEEDS_IN_MEMORY: u64 = 90;
const STEPS: usize = 60;
const BLOCK: u64 = 4096;
const SIZE_MAX: u64 = 400_000;

/// The snapshot that the head of an image hangs on, opened.
struct Parent<O: Objects>(Image<CephCatalog<O>>);

impl<O: Objects> ReadParent for Parent<O> {
    async fn read(&self, at: Extent) -> Result<Bytes> {
        let buffer = Buffer::from_vec(vec![0xee; at.len_usize()]);
        let (buffer, read) = self.0.read(at, buffer, 0..at.len_usize()).await;
        read.map(|_| Bytes::copy_from_slice(&buffer))
    }
}

async fn parent_of<O: Objects>(
    pools: &Pools<CephCatalog<O>>,
    record: &ImageRecord,
) -> Option<Parent<O>> {
    let (_, link, _) = record.parent()?;
    let catalog = pools.get(link.pool).unwrap();
    let parent = catalog.get(&link.image).await.unwrap();
    let frozen = parent.snapshots.iter().find(|it| it.revision == link.revision).unwrap();
    let (what, options) = (Open::Snapshot(frozen.name.clone()), ImageOptions::default());
    Some(Parent(Image::open(pools, &catalog, &link.image, what, options).await.unwrap()))
}

/// Gives an image another size, whatever it is.
pub(crate) async fn resize<O: Objects>(
    pools: &Pools<CephCatalog<O>>,
    catalog: &CephCatalog<O>,
    of: &str,
    size: u64,
) -> Result<()> {
    let record = catalog.find(&of.parse().unwrap()).await?;
    let resized = match parent_of(pools, &record).await {
        Some(parent) => catalog.resize(&record.id, size, Shrink::Allowed, parent).await?,
        None => catalog.resize(&record.id, size, Shrink::Allowed, NoParent).await?,
    };
    assert_eq!(resized.revision(&resized.head).unwrap().size, size);
    Ok(())
}

/// Where the parent of an image is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum On {
    Nothing,
    Here,
    AnotherCluster,
}

/// An image that is given many sizes.
struct Sizes<O: Objects> {
    random: StdRng,
    pools: Pools<CephCatalog<O>>,
    catalog: CephCatalog<O>,
    known: Known,
    numbers: u32,
    told: String,
}

/// What it holds.
struct Known {
    head: Vec<u8>,
    snapshots: BTreeMap<String, Vec<u8>>,
    /// What the head can see of the parent.
    seen: Vec<u8>,
    is_plain: bool,
    is_striped: bool,
}

impl<O: Objects> Sizes<O> {
    /// Makes the image of a seed.
    async fn begin(
        seed: u64,
        (pools, catalog): (Pools<CephCatalog<O>>, CephCatalog<O>),
        elsewhere: Option<CephCatalog<O>>,
    ) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let geometry = match seed % 3 {
            0 => Geometry::unstriped(64 << 10).unwrap(),
            1 => Geometry::new(32 << 10, 8 << 10, 3).unwrap(),
            _ => Geometry::unstriped(16 << 10).unwrap(),
        };
        let layering =
            if (seed / 3).is_multiple_of(2) { Layering::CopyUp } else { Layering::Sparse };
        let on = match (seed / 6 % 3, &elsewhere) {
            (0, _) => On::Nothing,
            (1, Some(_)) if layering == Layering::Sparse => On::AnotherCluster,
            _ => On::Here,
        };
        let told = format!("seed {seed}, {layering:?} in {geometry:?} on {on:?}");
        let size = random.random_range(1..SIZE_MAX);
        let mut head = vec![0; size as usize];
        let name = |text: &str| text.parse().unwrap();
        match on {
            On::Nothing => {
                let block_size = BLOCK as u32;
                let meta = BTreeMap::new();
                let options = CreateOptions { geometry, layering, block_size, meta };
                admin::create(&catalog, name("vm"), size, options).await.unwrap();
            }
            On::Here | On::AnotherCluster => {
                let of = elsewhere.filter(|_| on == On::AnotherCluster);
                let of = of.unwrap_or_else(|| catalog.clone());
                pools.add(of.clone());
                let options = CreateOptions { layering, ..CreateOptions::default() };
                let golden = admin::create(&of, name("golden"), size, options).await.unwrap();
                let image = open(&pools, &of, "golden", Open::Own).await;
                // All of it, or a part.
                let some = if seed.is_multiple_of(2) { size } else { size.div_ceil(3) };
                head[..some as usize].iter_mut().zip(1_u32..).for_each(|(byte, at)| {
                    *byte = (at / 512 % 251) as u8 + 1;
                });
                let bytes = Bytes::copy_from_slice(&head[..some as usize]);
                image.write(0, bytes, WriteOptions::default()).await.unwrap();
                image.snapshot("s".parse().unwrap(), false).await.unwrap();
                image.close().await.unwrap();
                let golden = of.get(&golden.id).await.unwrap();
                let frozen = golden.snapshots[0].clone();
                let (geometry, layering) = (Some(geometry), Some(layering));
                let options = CloneOptions { geometry, layering, ..CloneOptions::default() };
                admin::clone(&pools, &of, &golden, &frozen, &catalog, name("vm"), options)
                    .await
                    .unwrap();
            }
        }
        let seen = if on == On::Nothing { Vec::new() } else { head.clone() };
        let (is_plain, is_striped) = (layering == Layering::CopyUp, geometry.is_striped());
        let known = Known { head, snapshots: BTreeMap::new(), seen, is_plain, is_striped };
        Self { random, pools, catalog, known, numbers: 0, told }
    }

    fn size(&self) -> u64 {
        self.known.head.len() as u64
    }

    async fn own(&self) -> Image<CephCatalog<O>> {
        open(&self.pools, &self.catalog, "vm", Open::Own).await
    }

    async fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..34 => self.resize().await,
            34..46 => self.snapshot().await,
            46..50 => self.remove_snapshot().await,
            50..52 => self.flatten().await,
            _ => self.request().await,
        }
    }

    async fn resize(&mut self) {
        let size = match self.random.random_range(0..4) {
            // Within a block, or just beside.
            0 => self.size().saturating_sub(3000) + self.random.random_range(1..6000),
            1 => self.random.random_range(1..=SIZE_MAX / BLOCK) * BLOCK,
            2 => self.random.random_range(1..40_000),
            _ => self.random.random_range(1..SIZE_MAX),
        };
        let resized = resize(&self.pools, &self.catalog, "vm", size).await;
        resized.unwrap_or_else(|error| panic!("{}: {}", self.told, error.chain()));
        self.known.head.resize(size as usize, 0);
        self.known.seen.truncate(size as usize);
    }

    async fn snapshot(&mut self) {
        if self.known.snapshots.len() > 3 {
            return;
        }
        self.numbers += 1;
        let name = format!("s{}", self.numbers);
        let image = self.own().await;
        image.snapshot(name.parse().unwrap(), false).await.unwrap();
        image.close().await.unwrap();
        self.known.snapshots.insert(name, self.known.head.clone());
    }

    async fn remove_snapshot(&mut self) {
        let Some((name, _)) = self.known.snapshots.pop_first() else { return };
        let image = self.own().await;
        image.remove_snapshot(&name.parse().unwrap()).await.unwrap();
        image.close().await.unwrap();
    }

    async fn flatten(&mut self) {
        let image = self.own().await;
        image.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
        image.close().await.unwrap();
        self.known.seen.clear();
    }

    async fn request(&mut self) {
        let (size, image) = (self.size(), self.own().await);
        let offset = self.random.random_range(0..size);
        let length = [600, BLOCK, 40_000][self.random.random_range(0..3)];
        let length = self.random.random_range(1..=length);
        let at = Extent::new(offset, length).clip(size);
        let range = at.offset() as usize..at.end() as usize;
        match self.random.random_range(0..10) {
            0..6 => {
                let byte = self.random.random_range(1..=255);
                let data = Bytes::from(vec![byte; at.len_usize()]);
                image.write(at.offset(), data, WriteOptions::default()).await.unwrap();
                self.known.head[range].fill(byte);
            }
            6 | 7 => {
                image.write_zeroes(at, ZeroOptions::default()).await.unwrap();
                self.known.head[range].fill(0);
            }
            // What an image does not define shows the parent, as far as it still may.
            8 if !self.known.is_plain => {
                let at = at.align_out(BLOCK).clip(size);
                image.discard(at, DiscardPolicy::Inherit, false).await.unwrap();
                for byte in at.offset() as usize..at.end() as usize {
                    self.known.head[byte] = self.known.seen.get(byte).copied().unwrap_or(0);
                }
            }
            8 if !self.known.is_striped => {
                let at = Extent::new(0, size);
                image.discard(at, DiscardPolicy::Inherit, false).await.unwrap();
                self.known.head = self.known.seen.clone();
                self.known.head.resize(size as usize, 0);
            }
            _ => {
                image.discard(Extent::new(0, size), DiscardPolicy::Zero, false).await.unwrap();
                self.known.head.fill(0);
            }
        }
        image.close().await.unwrap();
    }

    async fn look(&self) {
        let snapshots = self.known.snapshots.iter();
        let snapshots =
            snapshots.map(|(name, bytes)| (Open::Snapshot(name.parse().unwrap()), bytes));
        for (what, bytes) in snapshots.chain([(Open::Read, &self.known.head)]) {
            let told = format!("{}: {what:?}", self.told);
            let image = open(&self.pools, &self.catalog, "vm", what).await;
            assert_reads(&image, bytes, &told).await;
            image.close().await.unwrap();
        }
    }
}

async fn open<C: Catalog>(pools: &Pools<C>, catalog: &C, of: &str, what: Open) -> Image<C> {
    let id = catalog.find(&of.parse().unwrap()).await.unwrap().id;
    Image::open(pools, catalog, &id, what, ImageOptions::default()).await.unwrap()
}

/// Runs the program of a seed, and returns what is there in the end.
async fn program<O: Objects>(
    seed: u64,
    connected: (Pools<CephCatalog<O>>, CephCatalog<O>),
    elsewhere: Option<CephCatalog<O>>,
) -> Known {
    let mut sizes = Sizes::begin(seed, connected, elsewhere).await;
    for step in 0..STEPS {
        sizes.step().await;
        if step % 6 == 5 {
            sizes.look().await;
        }
    }
    sizes.look().await;
    let findings = sizes.catalog.check(None, Repair::No).await.unwrap();
    assert!(findings.is_empty(), "{}: {findings:?}", sizes.told);
    sizes.known
}

pub(crate) async fn programs_in_memory() {
    for seed in 0..SEEDS_IN_MEMORY {
        let [here, there] = [(); 2].map(|()| classes::cluster(&POOLS).client(POOLS[0], ""));
        program(seed, in_memory(here), Some(in_memory(there).1)).await;
    }
}

pub(crate) async fn programs_on(cluster: Arc<Cluster>) {
    // Those of plain images, which `rbd` reads as well, come more often.
    for seed in [0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 16] {
        let namespace = format!("sizes{seed}");
        let named = format!("{}/{namespace}", POOLS[0]);
        cluster.ok("rbd", &["namespace", "create", &named]).unwrap();
        let known = program(seed, connect(&cluster, &namespace).await, None).await;
        if known.is_plain {
            rbd_reads(&cluster, &format!("{named}/vm"), &known);
        }
    }
}

/// `rbd` reads the same of the head and of each snapshot, also once it has cut them off their parent.
fn rbd_reads(cluster: &Cluster, spec: &str, known: &Known) {
    let dir = tempfile::tempdir().unwrap();
    let check = |when: &str| {
        let snapshots = known.snapshots.iter();
        let snapshots = snapshots.map(|(name, bytes)| (format!("{spec}@{name}"), bytes));
        for (what, bytes) in snapshots.chain([(spec.to_owned(), &known.head)]) {
            assert!(export_of(cluster, &what, dir.path()) == *bytes, "{what} {when}");
            check_object_map(cluster, &what, when);
        }
    };
    check("as it was left");
    if cluster.ok("rbd", &["info", spec]).unwrap().contains("parent:") {
        cluster.ok("rbd", &["flatten", "--no-progress", spec]).unwrap();
        check("after `rbd flatten`");
    }
}

/// What a resize that somebody died in may leave of the head: bytes before and after it, and then as many as there were, of which those
/// beyond the new end may be zeros.
fn is_between(found: &[u8], before: &[u8], after: &[u8]) -> bool {
    let kept = after.len().min(before.len());
    found == after
        || found.len() == before.len()
            && found[..kept] == before[..kept]
            && found.iter().zip(before).all(|(found, before)| found == before || *found == 0)
}

/// The sizes that images get at whose every change somebody dies.
const DEATHS: [(&str, u64); 9] = [
    ("gold-child", OBJECT + 5000),
    ("gold-child", 3 * OBJECT),
    ("gold-child", 5 * OBJECT + 100),
    ("plain-child", OBJECT + 5000),
    ("plain-child", 2 * OBJECT),
    ("plain-child", 5 * OBJECT + 100),
    ("plain", 5000),
    ("flat", 6000),
    ("old", OBJECT),
];

pub(crate) async fn a_death_in_a_resize_brings_nothing_back() {
    let mut deaths = 0;
    for (of, size) in DEATHS {
        let cluster = deaths::scene().await;
        let client = Client::new(&cluster);
        let before = client.contents().await;
        cluster.end_after(client.number, CHANGES_MAX);
        resize(&client.pools, &client.one, of, size).await.unwrap();
        let changes = CHANGES_MAX - cluster.changes_left(client.number).unwrap();
        let mut after = before.clone();
        after.get_mut(of).unwrap().resize(size as usize, 0);
        assert!(Client::new(&cluster).contents().await == after, "{of} of {size} bytes");
        for change in 0..changes {
            // The next who makes it larger is of this program, or knows nothing of what it notes.
            for knows in [true, false] {
                let told = format!("{of} of {size} bytes, dead after {change} of {changes}");
                let cluster = deaths::scene().await;
                let client = Client::new(&cluster);
                cluster.end_after(client.number, change);
                let _ = resize(&client.pools, &client.one, of, size).await;
                drop(client);
                let client = Client::new(&cluster);
                let found = client.contents().await;
                for (name, bytes) in &found {
                    let is_fine = match name == of {
                        true => is_between(bytes, &before[of], &after[of]),
                        false => *bytes == before[name],
                    };
                    assert!(is_fine, "{told}: {name} reads something else");
                }
                grow(&client, of, knows).await;
                let mut expected = found.clone();
                expected.get_mut(of).unwrap().resize((8 * OBJECT) as usize, 0);
                assert!(client.contents().await == expected, "{told}, larger, {knows}");
                assert_eq!(deaths::findings(&client, Repair::Safe).await, [""; 0], "{told}");
                assert_eq!(deaths::findings(&client, Repair::No).await, [""; 0], "{told}");
                assert!(client.contents().await == expected, "{told}, mended");
                let image = client.own(of).await.unwrap();
                deaths::write(&image, SIZE + 5, OBJECT, 3).await.unwrap();
                image.close().await.unwrap();
                expected.get_mut(of).unwrap()[SIZE as usize + 5..][..OBJECT as usize].fill(3);
                assert!(client.contents().await == expected, "{told}, written");
                deaths += 1;
            }
        }
    }
    assert!(deaths > 150, "{deaths} deaths only");
}

/// Gives an image eight objects; also by the header alone, as the clients do that have no more to do.
async fn grow(client: &Client, of: &str, knows: bool) {
    if knows {
        return resize(&client.pools, &client.one, of, 8 * OBJECT).await.unwrap();
    }
    let id = client.one.find(&of.parse().unwrap()).await.unwrap().id;
    let set = method::set_size(8 * OBJECT);
    let op = WriteOp::new().call(CLASS, set.method, set.input);
    let header = names::header(id.as_str());
    client.pool.write(&header, &SnapContext::default(), op).await.unwrap();
}

pub(crate) async fn what_cannot_be_resized_stays_as_it_is() {
    let cluster = deaths::scene().await;
    let client = Client::new(&cluster);
    let before = client.contents().await;
    let try_to = async |of: &str, size: u64, shrink: Shrink| {
        let id = client.one.find(&of.parse().unwrap()).await.unwrap().id;
        client.one.resize(&id, size, shrink, NoParent).await.map(drop)
    };
    for (of, size, shrink) in [
        ("flat", SIZE - 1, Shrink::Refused),
        ("flat", 0, Shrink::Allowed),
        ("flat", u64::MAX, Shrink::Allowed),
        // More objects than an object map tells of.
        ("plain", 300_000_000 * OBJECT, Shrink::Allowed),
        // Snapshots see the parent, and nobody reads it.
        ("plain-child", 1, Shrink::Allowed),
    ] {
        let error = try_to(of, size, shrink).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{of}, {size}: {error}");
    }
    assert!(client.contents().await == before);
    let other = Client::new(&cluster);
    let image = other.own("flat").await.unwrap();
    let error = try_to("flat", 1, Shrink::Allowed).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    image.close().await.unwrap();
    try_to("flat", SIZE, Shrink::Refused).await.unwrap();
    assert!(client.contents().await == before);
    assert_eq!(deaths::findings(&client, Repair::No).await, [""; 0]);
}

pub(crate) async fn whoever_watches_hears_of_a_resize() {
    let cluster = deaths::scene().await;
    let client = Client::new(&cluster);
    let id = client.one.find(&"flat".parse().unwrap()).await.unwrap().id;
    let watcher = cluster.client(POOLS[0], "");
    let mut watch = watcher.watch(&names::header(id.as_str())).await.unwrap();
    let heard = tokio::spawn(async move {
        let mut heard = Vec::new();
        while let Some(Event::Said { said, bytes, .. }) = watch.next().await {
            let _ = watch.answer(said, Vec::new()).await;
            heard.push(vellum_rbd::Decode::from_bytes(&bytes).unwrap());
            if heard.last() == Some(&vellum_rbd::notify::Message::HeaderChanged) {
                break;
            }
        }
    });
    resize(&client.pools, &client.one, "flat", 100).await.unwrap();
    heard.await.unwrap();
}

pub(crate) async fn what_was_resized_reads_the_same_to_rbd(cluster: Arc<Cluster>) {
    let named = format!("{}/resized", POOLS[0]);
    cluster.ok("rbd", &["namespace", "create", &named]).unwrap();
    let (pools, catalog) = connect(&cluster, "resized").await;
    let spec = |what: &str| format!("{named}/{what}");
    let rbd = |arguments: &[&str]| cluster.ok("rbd", arguments).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..12_u32 << 20).map(|at| (at / 4096 % 250) as u8 + 1).collect();
    let file = dir.path().join("content");
    std::fs::write(&file, &content).unwrap();
    let file = file.to_string_lossy().into_owned();
    rbd(&["import", "--no-progress", "--object-size", "1M", &file, &spec("golden")]);
    rbd(&["snap", "create", "--no-progress", &spec("golden@s")]);
    let clone = ["clone", "--rbd-default-clone-format", "2", &spec("golden@s"), &spec("vm")];
    rbd(&clone);
    rbd(&["snap", "create", "--no-progress", &spec("vm@before")]);
    resize(&pools, &catalog, "vm", 5_500_000).await.unwrap();
    assert!(rbd(&["info", &spec("vm")]).contains("size 5.2 MiB in 6 objects"));
    rbd(&["snap", "create", "--no-progress", &spec("vm@smaller")]);
    resize(&pools, &catalog, "vm", 12 << 20).await.unwrap();
    rbd(&["snap", "create", "--no-progress", &spec("vm@larger")]);
    let used = rbd(&["du", "--format", "json", &spec("vm")]);
    assert!(used.contains("\"name\":\"vm\""), "{used}");
    rbd(&["resize", "--no-progress", "--allow-shrink", "--size", "3M", &spec("vm")]);
    rbd(&["resize", "--no-progress", "--size", "7M", &spec("vm")]);
    let larger = |kept: usize, size: usize| {
        let mut bytes = content[..kept].to_vec();
        bytes.resize(size, 0);
        bytes
    };
    let expected = [
        ("vm@before", content.clone()),
        ("vm@smaller", larger(5_500_000, 5_500_000)),
        ("vm@larger", larger(5_500_000, 12 << 20)),
        ("vm", larger(3 << 20, 7 << 20)),
    ];
    let check = async |when: &str| {
        for (what, bytes) in &expected {
            assert!(export_of(&cluster, &spec(what), dir.path()) == *bytes, "{what} {when}");
            let open_as = match what.split_once('@') {
                Some((_, snapshot)) => Open::Snapshot(snapshot.parse().unwrap()),
                None => Open::Read,
            };
            let image = open(&pools, &catalog, "vm", open_as).await;
            assert_reads(&image, bytes, &format!("{what} {when}")).await;
            image.close().await.unwrap();
            rbd(&["object-map", "check", "--no-progress", &spec(what)]);
            let info = rbd(&["info", &spec(what)]);
            assert!(!info.contains("invalid"), "{what} {when}: {info}");
        }
    };
    check("as it was left").await;
    rbd(&["flatten", "--no-progress", &spec("vm")]);
    check("after `rbd flatten`").await;
}
