//! Random programs of every operation against plain byte arrays that know layers.
//!
//! The model keeps, for each image, what every byte must read as, what its parent image shows, and its snapshots. Where the
//! rules leave a choice (a discard of a part of a unit), it accepts exactly the choices allowed, byte by byte, and goes on
//! with what was chosen.

use bytes::Bytes;
use proptest::prelude::*;
use vellum_core::{Extent, Geometry};
use vellum_engine::Layering;
use vellum_image::{CloneOptions, DiscardPolicy, FlattenOptions, Job, WriteOptions, ZeroOptions};

use crate::fixture::*;

/// Not a multiple of any unit, so that the last unit is short.
const SIZE: u64 = 200_000 + 37;
const IMAGES_MAX: usize = 6;

#[derive(Clone, Debug)]
enum Op {
    Write { image: usize, at: Extent, seed: u8, durable: bool },
    WriteZeroes { image: usize, at: Extent, no_hole: bool, fast: bool },
    Discard { image: usize, at: Extent, to_parent: bool },
    Snapshot { image: usize },
    RemoveSnapshot { image: usize, which: usize },
    Clone { image: usize, which: usize, options: CloneShape },
    Flatten { image: usize },
    Sync { image: usize },
    Reopen { image: usize },
}

#[derive(Clone, Debug)]
struct CloneShape {
    layering: Layering,
    geometry: Geometry,
    block_size: u32,
}

struct ModelImage {
    name: String,
    image: TestImage,
    content: Vec<u8>,
    /// What the parent image shows; `None` without one.
    parent: Option<Vec<u8>>,
    snapshots: Vec<(String, Vec<u8>)>,
    snapshots_made: usize,
}

fn extents() -> impl Strategy<Value = Extent> {
    let lengths = prop_oneof![1u64..600, 1u64..20_000, Just(4096u64), Just(16_384u64), Just(SIZE)];
    let offsets = prop_oneof![0..SIZE, (0..SIZE / 4096).prop_map(|unit| unit * 4096), Just(0u64)];
    (offsets, lengths).prop_map(|(offset, length)| Extent::new(offset, length).clip(SIZE))
}

fn shapes() -> impl Strategy<Value = CloneShape> {
    let geometries = prop_oneof![
        Just(Geometry::unstriped(16 << 10).unwrap()),
        Just(Geometry::new(32 << 10, 4096, 3).unwrap()),
        Just(Geometry::default()),
    ];
    let layerings = prop_oneof![Just(Layering::Sparse), Just(Layering::CopyUp)];
    (layerings, geometries, prop_oneof![Just(512u32), Just(4096u32)])
        .prop_map(|(layering, geometry, block_size)| CloneShape { layering, geometry, block_size })
}

fn ops() -> impl Strategy<Value = Op> {
    let image = 0..IMAGES_MAX;
    prop_oneof![
        8 => (image.clone(), extents(), any::<u8>(), any::<bool>())
            .prop_map(|(image, at, seed, durable)| Op::Write { image, at, seed, durable }),
        3 => (image.clone(), extents(), any::<bool>(), any::<bool>())
            .prop_map(|(image, at, no_hole, fast)| Op::WriteZeroes { image, at, no_hole, fast }),
        4 => (image.clone(), extents(), any::<bool>())
            .prop_map(|(image, at, to_parent)| Op::Discard { image, at, to_parent }),
        2 => image.clone().prop_map(|image| Op::Snapshot { image }),
        1 => (image.clone(), any::<usize>()).prop_map(|(image, which)| Op::RemoveSnapshot { image, which }),
        2 => (image.clone(), any::<usize>(), shapes())
            .prop_map(|(image, which, options)| Op::Clone { image, which, options }),
        1 => image.clone().prop_map(|image| Op::Flatten { image }),
        1 => image.clone().prop_map(|image| Op::Sync { image }),
        1 => image.prop_map(|image| Op::Reopen { image }),
    ]
}

struct Model {
    fixture: Fixture,
    images: Vec<ModelImage>,
}

impl Model {
    async fn new() -> Self {
        let fixture = Fixture::new().await;
        let content = fixture.golden("i0", SIZE).await;
        let image = fixture.open("i0").await;
        let snapshots = vec![("s".to_owned(), content.clone())];
        let first = ModelImage {
            name: "i0".into(),
            image,
            content,
            parent: None,
            snapshots,
            snapshots_made: 0,
        };
        Self { fixture, images: vec![first] }
    }

    async fn run(&mut self, op: &Op) {
        match op.clone() {
            Op::Write { image, at, seed, durable } => self.write(image, at, seed, durable).await,
            Op::WriteZeroes { image, at, no_hole, fast } => {
                self.write_zeroes(image, at, no_hole, fast).await;
            }
            Op::Discard { image, at, to_parent } => self.discard(image, at, to_parent).await,
            Op::Snapshot { image } => self.snapshot(image).await,
            Op::RemoveSnapshot { image, which } => self.remove_snapshot(image, which).await,
            Op::Clone { image, which, options } => self.clone_image(image, which, options).await,
            Op::Flatten { image } => {
                let image = self.pick(image);
                image.image.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
                image.parent = None;
            }
            Op::Sync { image } => self.pick(image).image.sync().await.unwrap(),
            Op::Reopen { image } => self.reopen(image).await,
        }
    }

    fn pick(&mut self, image: usize) -> &mut ModelImage {
        let count = self.images.len();
        &mut self.images[image % count]
    }

    async fn write(&mut self, image: usize, at: Extent, seed: u8, durable: bool) {
        let image = self.pick(image);
        let data = pattern(at, u64::from(seed));
        image.content[range(at)].copy_from_slice(&data);
        image.image.write(at.offset(), Bytes::from(data), WriteOptions { durable }).await.unwrap();
    }

    async fn write_zeroes(&mut self, image: usize, at: Extent, no_hole: bool, fast: bool) {
        let image = self.pick(image);
        let options = ZeroOptions { no_hole, fast, durable: false };
        match image.image.write_zeroes(at, options).await {
            Ok(()) => image.content[range(at)].fill(0),
            Err(error) => {
                assert!(fast, "only fast zeroes may be refused: {error:?}");
                // And then nothing has changed, which the next look at all of it tells.
            }
        }
    }

    async fn discard(&mut self, image: usize, at: Extent, to_parent: bool) {
        let image = self.pick(image);
        let (policy, shown) = if to_parent {
            (DiscardPolicy::Inherit, image.parent.clone().unwrap_or_else(|| vec![0; SIZE as usize]))
        } else {
            (DiscardPolicy::Zero, vec![0; SIZE as usize])
        };
        image.image.discard(at, policy, false).await.unwrap();
        let record = image.image.record();
        let unit = match (record.layering, image.parent.is_some()) {
            (Layering::CopyUp, true) => None,
            _ => Some(u64::from(record.block_size)),
        };
        if let Some(unit) = unit {
            let end = if at.end() == SIZE { SIZE } else { at.end() / unit * unit };
            let whole = Extent::between(at.offset().next_multiple_of(unit).min(end), end);
            image.content[range(whole)].copy_from_slice(&shown[range(whole)]);
        }
        image.accept(at, |offset| vec![shown[offset]]).await;
    }

    async fn snapshot(&mut self, image: usize) {
        let image = self.pick(image);
        let name = format!("t{}", image.snapshots_made);
        image.snapshots_made += 1;
        image.image.snapshot(snapshot_name(&name), false).await.unwrap();
        image.snapshots.push((name, image.content.clone()));
    }

    async fn remove_snapshot(&mut self, image: usize, which: usize) {
        let image = self.pick(image);
        if image.snapshots.is_empty() {
            return;
        }
        let which = which % image.snapshots.len();
        let name = snapshot_name(&image.snapshots[which].0);
        match image.image.remove_snapshot(&name).await {
            Ok(_) => drop(image.snapshots.remove(which)),
            Err(error) => assert_eq!(error.kind(), vellum_engine::ErrorKind::HasChildren),
        }
    }

    async fn clone_image(&mut self, image: usize, which: usize, shape: CloneShape) {
        let name = format!("i{}", self.images.len());
        let parent = self.pick(image);
        if parent.snapshots.is_empty() || name == format!("i{IMAGES_MAX}") {
            return;
        }
        let (snapshot, content) = parent.snapshots[which % parent.snapshots.len()].clone();
        let parent = parent.name.clone();
        let options = CloneOptions {
            layering: Some(shape.layering),
            geometry: Some(shape.geometry),
            block_size: Some(shape.block_size),
            ..CloneOptions::default()
        };
        self.fixture.clone(&parent, &snapshot, &name, options).await;
        let image = self.fixture.open(&name).await;
        let parent = Some(content.clone());
        self.images.push(ModelImage {
            name,
            image,
            content,
            parent,
            snapshots: Vec::new(),
            snapshots_made: 0,
        });
    }

    async fn reopen(&mut self, image: usize) {
        let count = self.images.len();
        let image = self.images.remove(image % count);
        let ModelImage { name, image: open, content, parent, snapshots, snapshots_made } = image;
        open.close().await.unwrap();
        let image = self.fixture.open(&name).await;
        self.images.push(ModelImage { name, image, content, parent, snapshots, snapshots_made });
    }

    async fn check(&self) {
        for image in &self.images {
            assert!(read_all(&image.image).await == image.content, "image {}", image.name);
            for (snapshot, content) in &image.snapshots {
                let open = self.fixture.open_snapshot(&image.name, snapshot).await;
                assert!(read_all(&open).await == *content, "snapshot {}@{snapshot}", image.name);
            }
        }
    }
}

impl ModelImage {
    /// Takes over what the image now reads as in `at`, if every byte is what it was or one of what `allowed` says.
    async fn accept(&mut self, at: Extent, allowed: impl Fn(usize) -> Vec<u8>) {
        let now = read(&self.image, at).await;
        for (byte, offset) in now.iter().zip(range(at)) {
            let was = self.content[offset];
            assert!(
                *byte == was || allowed(offset).contains(byte),
                "byte {offset} of {} is {byte}, was {was}, may be {:?}",
                self.name,
                allowed(offset)
            );
            self.content[offset] = *byte;
        }
    }
}

fn range(at: Extent) -> std::ops::Range<usize> {
    at.offset() as usize..at.end() as usize
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn random_programs_read_as_the_model_says(program in proptest::collection::vec(ops(), 1..50)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut model = Model::new().await;
            for op in &program {
                model.run(op).await;
            }
            model.check().await;
        });
    }
}
