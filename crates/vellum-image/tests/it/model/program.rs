//! Random programs: what is generated, and shrunk.
//!
//! A new operation is one more [`Act`], its line in [`ops`], and its arm in [`Run::act`](super::run::Run).

use proptest::prelude::*;
use vellum_core::{Extent, Geometry};
use vellum_engine::Layering::{self, CopyUp, Sparse};
use vellum_image::ZeroOptions;

/// The longest image.
const SIZE_MAX: u64 = 50_000;
/// The deepest chain of images that a program begins with.
pub const DEPTH_MAX: usize = 8;

/// What is done to an image; images and snapshots are numbers of those that there are, counted round.
#[derive(Clone, Debug)]
pub struct Op {
    pub image: usize,
    pub act: Act,
}

/// What is done.
#[derive(Clone, Debug)]
pub enum Act {
    Read {
        at: Extent,
        by: Reading,
    },
    Write {
        at: Extent,
        seed: u64,
        durable: bool,
    },
    Zero {
        at: Extent,
        options: ZeroOptions,
    },
    Discard {
        at: Extent,
        to_parent: bool,
        durable: bool,
    },
    Sync,
    Snapshot,
    RemoveSnapshot {
        which: usize,
    },
    Flatten,
    Map,
    /// Gives it a name that nothing had, or that of an image.
    Rename {
        taken: Option<usize>,
    },
    RenameSnapshot {
        which: usize,
    },
    /// Notes something on it, under one of a few keys, or takes that away.
    Note {
        key: u8,
        away: bool,
    },
    /// A clone of a snapshot, which is made first if there is none, or if it is to go with its last child.
    Clone {
        which: usize,
        auto: bool,
        shape: Shape,
    },
    /// Removes it, unless it is in use.
    Remove,
}

/// A way to read.
#[derive(Clone, Copy, Debug)]
pub enum Reading {
    /// Into a buffer.
    Buffer,
    /// Piece by piece, holes left out, as most requests of a client are.
    Pieces,
    /// At once where nothing has to be waited for, and else piece by piece, as small requests of a client are.
    AtOnce,
}

pub const READINGS: [Reading; 3] = [Reading::Buffer, Reading::Pieces, Reading::AtOnce];

/// One after the other.
#[derive(Clone, Debug)]
pub enum Step {
    /// Several tasks at once, each with its operations one after the other.
    Together(Vec<Vec<Op>>),
    Reopen {
        image: usize,
    },
    /// The power is cut, where the engine can do that, perhaps after all was made durable.
    PowerCut {
        synced: bool,
    },
}

/// What an image is made with.
#[derive(Clone, Debug)]
pub struct Shape {
    pub size: u64,
    /// How much of the parent can be seen, as far as both reach.
    pub overlap: u64,
    pub layering: Layering,
    pub geometry: Geometry,
    pub block_size: u32,
}

#[derive(Clone, Debug)]
pub struct Program {
    /// How calls of the engine are put in between each other.
    pub pace: u64,
    /// The images there are at first, each a clone of the one before.
    pub chain: Vec<Shape>,
    pub steps: Vec<Step>,
}

fn extents() -> impl Strategy<Value = Extent> + Clone {
    let lengths =
        prop_oneof![1u64..600, 1u64..20_000, Just(4096u64), Just(16_384u64), Just(SIZE_MAX)];
    let units = prop_oneof![Just(512u64), Just(4096u64), Just(16_384u64)];
    let aligned = (units, 0..SIZE_MAX).prop_map(|(unit, offset)| offset / unit * unit);
    let offsets = prop_oneof![0..SIZE_MAX, aligned, Just(0u64)];
    (offsets, lengths).prop_map(|(offset, length)| Extent::new(offset, length))
}

fn shapes() -> impl Strategy<Value = Shape> {
    let geometries = prop_oneof![
        Just(Geometry::unstriped(16 << 10).unwrap()),
        Just(Geometry::new(32 << 10, 4096, 3).unwrap()),
        Just(Geometry::new(8192, 4096, 1).unwrap()),
        Just(Geometry::new(4096, 512, 4).unwrap()),
        Just(Geometry::default()),
    ];
    // Multiples of units, and such that the last unit is short.
    let sizes = prop_oneof![4 => Just(40_037u64), 1 => Just(16_384u64), 1 => 1..SIZE_MAX];
    let overlaps = prop_oneof![3 => Just(u64::MAX), 1 => 0..SIZE_MAX, 1 => (0..12u64).prop_map(|unit| unit * 4096)];
    let blocks = prop_oneof![Just(512u32), Just(4096u32)];
    (sizes, overlaps, prop_oneof![Just(Sparse), Just(CopyUp)], geometries, blocks).prop_map(
        |(size, overlap, layering, geometry, block_size)| {
            let fits = geometry.accepts_block_size(u64::from(block_size));
            let block_size = if fits { block_size } else { 512 };
            Shape { size, overlap, layering, geometry, block_size }
        },
    )
}

fn ops() -> impl Strategy<Value = Op> {
    let (at, flag) = (extents(), any::<bool>());
    let acts = prop_oneof![
        8 => (at.clone(), 0u64..250, flag)
            .prop_map(|(at, seed, durable)| Act::Write { at, seed, durable }),
        3 => (at.clone(), flag, flag, flag).prop_map(|(at, no_hole, fast, durable)| {
            Act::Zero { at, options: ZeroOptions { no_hole, fast, durable } }
        }),
        4 => (at.clone(), flag, flag)
            .prop_map(|(at, to_parent, durable)| Act::Discard { at, to_parent, durable }),
        4 => (at, prop::sample::select(READINGS.to_vec())).prop_map(|(at, by)| Act::Read { at, by }),
        2 => Just(Act::Snapshot),
        1 => any::<usize>().prop_map(|which| Act::RemoveSnapshot { which }),
        2 => Just(Act::Flatten),
        1 => Just(Act::Sync),
        1 => Just(Act::Map),
        1 => prop::option::weighted(0.3, any::<usize>()).prop_map(|taken| Act::Rename { taken }),
        1 => any::<usize>().prop_map(|which| Act::RenameSnapshot { which }),
        1 => (0..3u8, any::<bool>()).prop_map(|(key, away)| Act::Note { key, away }),
        3 => (any::<usize>(), any::<bool>(), shapes())
            .prop_map(|(which, auto, shape)| Act::Clone { which, auto, shape }),
        1 => Just(Act::Remove),
    ];
    (any::<usize>(), acts).prop_map(|(image, act)| Op { image, act })
}

fn steps() -> impl Strategy<Value = Step> {
    let together = prop::collection::vec(prop::collection::vec(ops(), 1..4), 1..5);
    prop_oneof![
        8 => together.prop_map(Step::Together),
        1 => any::<usize>().prop_map(|image| Step::Reopen { image }),
        1 => any::<bool>().prop_map(|synced| Step::PowerCut { synced }),
    ]
}

pub fn programs() -> impl Strategy<Value = Program> {
    let chain = prop::collection::vec(shapes(), 1..=DEPTH_MAX);
    (any::<u64>(), chain, prop::collection::vec(steps(), 1..12))
        .prop_map(|(pace, chain, steps)| Program { pace, chain, steps })
}
