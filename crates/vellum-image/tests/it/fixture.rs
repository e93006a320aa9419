//! A pool, and short ways to make images in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use vellum_core::{Buffer, Extent, Geometry, ImageName, SnapshotName};
use vellum_engine::count::{CountCatalog, Counts};
use vellum_engine::fault::{FaultCatalog, Faults};
use vellum_engine::{Catalog, ImageRecord, Layering, Repair, Result, Severity};
use vellum_image::image::Open;
use vellum_image::{
    CloneOptions, CreateOptions, Image, ImageOptions, Mapped, MappedKind, Pools, WriteOptions,
    admin, check,
};

use super::place::{Base, Place};

/// The engine under a wrapper that injects faults and pauses, under one that counts.
pub type Engine = CountCatalog<FaultCatalog<Base>>;
pub type TestImage = Image<Engine>;

pub const BLOCK: u64 = 4096;

pub struct Fixture {
    pub pools: Pools<Engine>,
    pub catalog: Engine,
    pub counts: Counts,
    pub faults: Faults,
    pub place: Place,
    end: End,
}

impl Fixture {
    pub async fn new() -> Self {
        Self::at(Place::new(), Arc::default()).await
    }

    async fn at(place: Place, disorder: Arc<AtomicBool>) -> Self {
        let (counts, faults) = (Counts::default(), Faults::default());
        let faulty = FaultCatalog::new(place.open("pool").await, faults.clone());
        let catalog = CountCatalog::new(faulty, counts.clone());
        let pools = Pools::default();
        pools.add(catalog.clone());
        let end = End { place: place.clone(), disorder };
        Self { pools, catalog, counts, faults, place, end }
    }

    /// The same pool, as another process has it open.
    pub async fn another_process(&self) -> Self {
        Self::at(self.place.clone(), self.end.disorder.clone()).await
    }

    /// Another pool, known here too.
    pub async fn another_pool(&self) -> Engine {
        self.add_pool(self.place.open("another").await)
    }

    /// The same, of a pool that was opened in a way of its own.
    pub fn add_pool(&self, base: Base) -> Engine {
        let faulty = FaultCatalog::new(base, self.faults.clone());
        let catalog = CountCatalog::new(faulty, self.counts.clone());
        self.pools.add(catalog.clone());
        catalog
    }

    /// Tells that the test leaves behind what a check must find.
    pub fn leaves_disorder(&self) {
        self.end.disorder.store(true, Ordering::Relaxed);
    }

    /// Takes away what only the end of a process leaves and the end of the machine does not.
    pub fn forget_unsynced(&self) {
        self.place.forget_unsynced();
    }

    pub async fn create(&self, name: &str, size: u64, options: CreateOptions) -> ImageRecord {
        admin::create(&self.catalog, image_name(name), size, options).await.unwrap()
    }

    /// An image filled with bytes that tell their offset, frozen as `@s`.
    pub async fn golden(&self, name: &str, size: u64) -> Vec<u8> {
        self.create(name, size, CreateOptions::default()).await;
        let content = pattern(Extent::new(0, size), 7);
        let image = self.open(name).await;
        write(&image, 0, &content).await.unwrap();
        image.snapshot(snapshot_name("s"), false).await.unwrap();
        image.close().await.unwrap();
        content
    }

    pub async fn clone(
        &self,
        parent: &str,
        snapshot: &str,
        child: &str,
        options: CloneOptions,
    ) -> ImageRecord {
        self.try_clone(parent, snapshot, child, options).await.unwrap()
    }

    pub async fn try_clone(
        &self,
        parent: &str,
        snapshot: &str,
        child: &str,
        options: CloneOptions,
    ) -> Result<ImageRecord> {
        let record = self.catalog.find(&image_name(parent)).await?;
        let snapshot = record.snapshot(&snapshot_name(snapshot)).expect("the snapshot exists");
        let (pools, catalog) = (&self.pools, &self.catalog);
        admin::clone(pools, catalog, &record, snapshot, catalog, image_name(child), options).await
    }

    /// A golden image and an open child of it.
    pub async fn child(&self, size: u64, layering: Layering) -> (Vec<u8>, TestImage) {
        let content = self.golden("gold", size).await;
        self.clone("gold", "s", "child", mode(layering)).await;
        (content, self.open("child").await)
    }

    pub async fn open(&self, name: &str) -> TestImage {
        self.open_as(name, Open::Own).await.unwrap()
    }

    pub async fn open_snapshot(&self, name: &str, snapshot: &str) -> TestImage {
        self.open_as(name, Open::Snapshot(snapshot_name(snapshot))).await.unwrap()
    }

    pub async fn open_as(&self, name: &str, what: Open) -> Result<TestImage> {
        let id = self.catalog.find(&image_name(name)).await?.id;
        Image::open(&self.pools, &self.catalog, &id, what, ImageOptions::default()).await
    }
}

/// The end of a scene, at which a check of all its pools must find them in order. Layers that the test still has open for writing
/// are in use, and not looked at.
struct End {
    place: Place,
    /// It is to leave disorder behind.
    disorder: Arc<AtomicBool>,
}

impl Drop for End {
    fn drop(&mut self) {
        if std::thread::panicking() || self.disorder.load(Ordering::Relaxed) {
            return;
        }
        // As another process does, since the runtime of the test stands still here.
        let place = self.place.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(must_be_in_order(&place));
        })
        .join()
        .expect("the pools are in order");
    }
}

/// Checks every pool of a place.
async fn must_be_in_order(place: &Place) {
    let (pools, mut catalogs) = (Pools::default(), Vec::new());
    for pool in place.pools() {
        let catalog = place.open(&pool).await;
        pools.add(catalog.clone());
        catalogs.push(catalog);
    }
    for catalog in catalogs {
        let mut found = check::check(&pools, &catalog, None, Repair::No).await.unwrap();
        found.retain(|it| !matches!(it.severity, Severity::Leak | Severity::Unknown));
        assert!(found.is_empty(), "a check finds {found:?}");
    }
}

pub fn image_name(name: &str) -> ImageName {
    name.parse().unwrap()
}

pub fn snapshot_name(name: &str) -> SnapshotName {
    name.parse().unwrap()
}

pub fn mode(layering: Layering) -> CloneOptions {
    CloneOptions {
        layering: Some(layering),
        geometry: Some(Geometry::unstriped(64 << 10).unwrap()),
        ..CloneOptions::default()
    }
}

/// Bytes that tell where they were written and by whom; never zero.
pub fn pattern(at: Extent, seed: u64) -> Vec<u8> {
    (at.offset()..at.end())
        .map(|offset| ((offset / 512).wrapping_mul(31).wrapping_add(seed) % 255) as u8 + 1)
        .collect()
}

pub async fn write(image: &TestImage, offset: u64, data: &[u8]) -> Result<()> {
    image.write(offset, Bytes::copy_from_slice(data), WriteOptions::default()).await
}

pub async fn read(image: &TestImage, at: Extent) -> Vec<u8> {
    let length = at.len_usize();
    let (buffer, holes) = image.read(at, Buffer::from_vec(vec![0xaa; length]), 0..length).await;
    for hole in holes.unwrap() {
        assert!(
            buffer[at.range_of(&hole)].iter().all(|byte| *byte == 0),
            "the hole {hole} reads as zeros"
        );
    }
    let waited = buffer.to_vec();
    let mut inline = vec![0x55; length];
    if image.try_read(at, &mut inline, &mut Default::default()) {
        assert!(inline == waited, "both ways of reading {at} agree");
    }
    waited
}

pub async fn read_all(image: &TestImage) -> Vec<u8> {
    read(image, Extent::new(0, image.size())).await
}

/// Bytes that the image's own top layer holds as data.
pub async fn own_data(image: &TestImage) -> u64 {
    let map = image.map(Extent::new(0, image.size()), usize::MAX).await.unwrap();
    map.iter().filter(|entry| is_own_data(entry)).map(|entry| entry.at.length()).sum()
}

fn is_own_data(entry: &Mapped) -> bool {
    entry.kind == MappedKind::Data && entry.depth == 1
}
