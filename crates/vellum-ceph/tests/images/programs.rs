//! Random programs of what can be done with images, against plain bytes: requests, snapshots, clones, flattens, removals, and other
//! processes that open what one has closed.

use std::collections::BTreeMap;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vellum_core::{Buffer, Extent, Geometry, ImageName, SnapshotName};
use vellum_engine::{Catalog, Layering, Repair};
use vellum_image::image::Open;
use vellum_image::{
    CloneOptions, CreateOptions, DiscardPolicy, FlattenOptions, Image, ImageOptions, Job, Pools,
    WriteOptions, ZeroOptions, admin,
};

/// How many programs are run.
pub(crate) const SEEDS_IN_MEMORY: u64 = 60;
pub(crate) const SEEDS: u64 = 9;
const STEPS: usize = 120;
const BLOCK: u64 = 4096;

/// What an image holds: its head, and its snapshots.
#[derive(Clone, Default)]
pub(crate) struct Expected {
    pub(crate) head: Vec<u8>,
    pub(crate) snapshots: BTreeMap<String, Vec<u8>>,
    /// Whether it is a plain RBD image.
    pub(crate) is_plain: bool,
    is_striped: bool,
    /// Whose snapshot it is a clone of.
    pub(crate) parent: Option<(String, String)>,
    /// What the parent's snapshot holds, as far as the image can still see it.
    parent_bytes: Vec<u8>,
    /// Of its snapshots, those that still see the parent although the head was cut off.
    seen_by_snapshots: usize,
}

struct Program<C: Catalog> {
    random: StdRng,
    pools: Pools<C>,
    catalog: C,
    open: BTreeMap<String, Image<C>>,
    expected: BTreeMap<String, Expected>,
    numbers: u32,
    /// How many of three images are plain ones.
    plain: u64,
}

/// Runs the program of a seed, and returns what is there in the end. `connect` is another process each time.
pub(crate) async fn run<C: Catalog>(
    seed: u64,
    connect: impl AsyncFn() -> (Pools<C>, C),
) -> BTreeMap<String, Expected> {
    let (pools, catalog) = connect().await;
    let random = StdRng::seed_from_u64(seed);
    let (open, expected) = (BTreeMap::new(), BTreeMap::new());
    let plain = [0, 3, 1][seed as usize % 3];
    let mut program = Program { random, pools, catalog, open, expected, numbers: 0, plain };
    for step in 0..STEPS {
        if program.random.random_range(0..30) == 0 {
            program.close_all().await;
            (program.pools, program.catalog) = connect().await;
        }
        program.step().await;
        if step % 20 == 19 {
            program.look().await;
        }
    }
    program.look().await;
    program.close_all().await;
    let findings = program.catalog.check(None, Repair::No).await.unwrap();
    assert!(findings.is_empty(), "seed {seed}: {findings:?}");
    program.expected
}

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

impl<C: Catalog> Program<C> {
    fn number(&mut self) -> u32 {
        self.numbers += 1;
        self.numbers
    }

    fn some_image(&mut self) -> Option<String> {
        let count = self.expected.len();
        (count > 0).then(|| {
            let index = self.random.random_range(0..count);
            self.expected.keys().nth(index).unwrap().clone()
        })
    }

    async fn image(&mut self, of: &str) -> Image<C> {
        if let Some(image) = self.open.get(of) {
            return image.clone();
        }
        let record = self.catalog.find(&name(of)).await.unwrap();
        let (pools, options) = (&self.pools, ImageOptions::default());
        let image = Image::open(pools, &self.catalog, &record.id, Open::Own, options).await;
        let image = image.unwrap();
        self.open.insert(of.to_owned(), image.clone());
        image
    }

    async fn close(&mut self, of: &str) {
        if let Some(image) = self.open.remove(of) {
            image.close().await.unwrap();
        }
    }

    async fn close_all(&mut self) {
        for of in self.open.keys().cloned().collect::<Vec<_>>() {
            self.close(&of).await;
        }
    }

    async fn step(&mut self) {
        let Some(of) = self.some_image() else { return self.create().await };
        match self.random.random_range(0..100) {
            0..4 => self.create().await,
            4..12 => self.clone_of(&of).await,
            12..22 => self.snapshot(&of).await,
            22..26 => self.flatten(&of).await,
            26..30 => self.remove_snapshot(&of).await,
            30..34 => self.remove(&of).await,
            34..40 => self.close(&of).await,
            _ => self.request(&of).await,
        }
    }

    fn layering(&mut self) -> Layering {
        let is_plain = self.random.random_range(0..3) < self.plain;
        if is_plain { Layering::CopyUp } else { Layering::Sparse }
    }

    async fn create(&mut self) {
        let new = format!("image{}", self.number());
        let geometry = match self.random.random_range(0..3) {
            0 => Geometry::unstriped(64 << 10).unwrap(),
            1 => Geometry::new(32 << 10, 8 << 10, 3).unwrap(),
            _ => Geometry::default(),
        };
        let size = self.random.random_range(1..200_000);
        let layering = self.layering();
        let options =
            CreateOptions { geometry, layering, block_size: BLOCK as u32, meta: BTreeMap::new() };
        admin::create(&self.catalog, name(&new), size, options).await.unwrap();
        let head = vec![0; size as usize];
        let (is_plain, is_striped) = (layering == Layering::CopyUp, geometry.stripe_count() > 1);
        self.expected.insert(new, Expected { head, is_plain, is_striped, ..Expected::default() });
    }

    async fn clone_of(&mut self, of: &str) {
        let snapshots: Vec<String> = self.expected[of].snapshots.keys().cloned().collect();
        if snapshots.is_empty() || self.expected.len() > 8 {
            return;
        }
        let snapshot = snapshots[self.random.random_range(0..snapshots.len())].clone();
        let parent = self.catalog.find(&name(of)).await.unwrap();
        let named: SnapshotName = snapshot.parse().unwrap();
        let record = parent.snapshot(&named).unwrap().clone();
        let new = format!("clone{}", self.number());
        let geometry =
            (self.random.random_range(0..2) == 0).then(|| Geometry::unstriped(16 << 10).unwrap());
        let layering = self.layering();
        let options =
            CloneOptions { geometry, layering: Some(layering), ..CloneOptions::default() };
        let (pools, catalog) = (&self.pools, &self.catalog);
        admin::clone(pools, catalog, &parent, &record, catalog, name(&new), options).await.unwrap();
        let head = self.expected[of].snapshots[&snapshot].clone();
        let parent = Some((of.to_owned(), snapshot));
        let expected = Expected {
            parent_bytes: head.clone(),
            head,
            parent,
            is_plain: layering == Layering::CopyUp,
            is_striped: geometry.is_none() && self.expected[of].is_striped,
            ..Expected::default()
        };
        self.expected.insert(new, expected);
    }

    async fn snapshot(&mut self, of: &str) {
        if self.expected[of].snapshots.len() > 3 {
            return;
        }
        let new = format!("s{}", self.number());
        let image = self.image(of).await;
        image.snapshot(new.parse().unwrap(), false).await.unwrap();
        let expected = self.expected.get_mut(of).unwrap();
        expected.snapshots.insert(new, expected.head.clone());
    }

    async fn flatten(&mut self, of: &str) {
        let image = self.image(of).await;
        image.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
        let expected = self.expected.get_mut(of).unwrap();
        expected.parent_bytes.clear();
        expected.seen_by_snapshots = expected.snapshots.len();
        // With one that `rbd` can open, its snapshots are cut off as well.
        if expected.snapshots.is_empty() || expected.is_plain {
            expected.parent = None;
        }
    }

    fn has_children(&self, of: &str, snapshot: Option<&str>) -> bool {
        self.expected.values().any(|image| {
            image.parent.as_ref().is_some_and(|(parent, on)| {
                parent == of && snapshot.is_none_or(|snapshot| snapshot == on)
            })
        })
    }

    async fn remove_snapshot(&mut self, of: &str) {
        let Some(snapshot) = self.expected[of].snapshots.keys().next().cloned() else { return };
        let image = self.image(of).await;
        let removed = image.remove_snapshot(&snapshot.parse().unwrap()).await;
        let has_children = self.has_children(of, Some(&snapshot));
        assert_eq!(removed.is_err(), has_children, "{of}@{snapshot}: {removed:?}");
        if has_children {
            return;
        }
        let expected = self.expected.get_mut(of).unwrap();
        expected.snapshots.remove(&snapshot);
        if expected.parent_bytes.is_empty() && expected.parent.is_some() {
            let record = self.catalog.find(&name(of)).await.unwrap();
            if record.parent_link().is_none() {
                self.expected.get_mut(of).unwrap().parent = None;
            }
        }
    }

    async fn remove(&mut self, of: &str) {
        self.close(of).await;
        let record = self.catalog.find(&name(of)).await.unwrap();
        let removed = admin::remove(&self.pools, &self.catalog, &record.id).await;
        let has_children = self.has_children(of, None);
        assert_eq!(removed.is_err(), has_children, "{of}: {removed:?}");
        if !has_children {
            self.expected.remove(of);
        }
    }

    async fn request(&mut self, of: &str) {
        let image = self.image(of).await;
        let size = self.expected[of].head.len() as u64;
        let offset = self.random.random_range(0..size);
        let length = match self.random.random_range(0..3) {
            0 => self.random.random_range(1..=600),
            1 => BLOCK,
            _ => self.random.random_range(1..=40_000),
        };
        let kind = self.random.random_range(0..10);
        // Objects of a plain image that are discarded in part may stay as they are.
        let is_plain = self.expected[of].is_plain;
        let at = match is_plain && kind >= 8 {
            true => Extent::new(0, size),
            false => Extent::new(offset, length).clip(size),
        };
        let range = at.offset() as usize..at.end() as usize;
        match kind {
            0..6 => {
                let byte = self.random.random_range(1..=255);
                let data = Bytes::from(vec![byte; at.len_usize()]);
                image.write(at.offset(), data, WriteOptions::default()).await.unwrap();
                self.expected.get_mut(of).unwrap().head[range].fill(byte);
            }
            6 | 7 => {
                image.write_zeroes(at, ZeroOptions::default()).await.unwrap();
                self.expected.get_mut(of).unwrap().head[range].fill(0);
            }
            8 | 9 if kind == 8 || self.expected[of].is_striped && is_plain => {
                let policy = DiscardPolicy::Zero;
                image.discard(at, policy, false).await.unwrap();
                self.discarded(of, at, None);
            }
            _ => {
                image.discard(at, DiscardPolicy::Inherit, false).await.unwrap();
                self.discarded(of, at, Some(()));
            }
        }
    }

    /// Whole blocks read as zeros, or as the parent, afterwards.
    fn discarded(&mut self, of: &str, at: Extent, to_parent: Option<()>) {
        let expected = self.expected.get_mut(of).unwrap();
        let size = expected.head.len() as u64;
        for block in at.align_out(BLOCK).chunks(BLOCK) {
            let block = block.clip(size);
            if !at.contains(&block) {
                continue;
            }
            for byte in block.offset() as usize..block.end() as usize {
                let below = expected.parent_bytes.get(byte).copied().unwrap_or(0);
                expected.head[byte] = if to_parent.is_some() { below } else { 0 };
            }
        }
    }

    /// Every image, and every snapshot, holds what it should.
    async fn look(&mut self) {
        for of in self.expected.keys().cloned().collect::<Vec<_>>() {
            let image = self.image(&of).await;
            let expected = self.expected[&of].clone();
            assert_reads(&image, &expected.head, &of).await;
            let record = self.catalog.find(&name(&of)).await.unwrap();
            for (snapshot, bytes) in &expected.snapshots {
                let open = Open::Snapshot(snapshot.parse().unwrap());
                let (pools, options) = (&self.pools, ImageOptions::default());
                let opened = Image::open(pools, &self.catalog, &record.id, open, options).await;
                assert_reads(&opened.unwrap(), bytes, &format!("{of}@{snapshot}")).await;
            }
        }
    }
}

pub(crate) async fn assert_reads<C: Catalog>(image: &Image<C>, expected: &[u8], what: &str) {
    assert_eq!(image.size(), expected.len() as u64, "{what}");
    let at = Extent::new(0, image.size());
    let buffer = Buffer::from_vec(vec![0xee; at.len_usize()]);
    let (buffer, read) = image.read(at, buffer, 0..at.len_usize()).await;
    read.unwrap();
    let differs = buffer.iter().zip(expected).position(|(found, expected)| found != expected);
    assert_eq!(differs, None, "{what} at {differs:?}");
}
