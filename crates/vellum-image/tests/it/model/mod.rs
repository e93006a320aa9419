//! Random programs of every operation, from several tasks at once, against plain bytes that know layers.
//!
//! The model keeps what each part of each image may read as, by what was done to it and [when](cells); where requests overlap
//! in time it accepts what any of them left, and goes on with what it finds. A snapshot holds what was there at one moment.
//! [Programs](program) are run on [several engines](ground), with calls of the engine put in between each other; a program is the
//! same each time on the memory engine.
//!
//! ```text
//! PROPTEST_CASES=10000 cargo test --release -p vellum-image --test it -- model
//! ```
//!
//! A program that once failed becomes a test of its own below, with its steps spelled out.

mod cells;
mod ground;
mod program;
mod run;

use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use vellum_core::{Extent, Geometry};
use vellum_engine::AtomicSpan;
use vellum_engine::Layering::{self, CopyUp, Sparse};
use vellum_image::ZeroOptions;

use ground::{Embedded, Ground, InMemory};
use program::{Act, Op, Program, Shape, Step};

/// Runs so many random programs, or as many as `PROPTEST_CASES` asks for.
fn random_programs<G: Ground>(usual: u32, ground: impl Fn() -> G) {
    let mut config = ProptestConfig {
        max_shrink_iters: 5_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = usual;
    }
    let result = TestRunner::new(config).run(&program::programs(), |program| {
        let told =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(ground(), &program)));
        told.map_err(|panic| {
            let text = panic.downcast_ref::<String>().map_or("it panicked", String::as_str);
            TestCaseError::fail(text.chars().take(500).collect::<String>())
        })
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

fn run<G: Ground>(ground: G, program: &Program) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(run::run(ground, program));
}

#[test]
fn random_programs_read_as_the_model_says() {
    random_programs(150, InMemory::usual);
}

#[test]
fn random_programs_read_as_the_model_says_where_a_call_reaches_one_object() {
    random_programs(100, InMemory::by_object);
    random_programs(50, InMemory::by_object_inheriting);
}

#[test]
fn random_programs_read_as_the_model_says_where_snapshots_share_objects() {
    random_programs(50, || InMemory::sharing_objects(AtomicSpan::Object));
    random_programs(50, || InMemory::sharing_objects(AtomicSpan::Image));
}

#[test]
fn random_programs_read_as_the_model_says_on_the_embedded_engine() {
    random_programs(60, Embedded::new);
}

/// An image with objects of 16 KiB.
fn shape(layering: Layering) -> Shape {
    Shape {
        size: 40_037,
        overlap: u64::MAX,
        layering,
        geometry: Geometry::unstriped(16 << 10).unwrap(),
        block_size: 4096,
    }
}

/// On each engine, with some paces.
fn on_every_engine(chain: &[Shape], steps: &[Step]) {
    for pace in 0..20 {
        let program = Program { pace, chain: chain.to_vec(), steps: steps.to_vec() };
        run(InMemory::usual(), &program);
        run(InMemory::by_object(), &program);
        run(InMemory::by_object_inheriting(), &program);
        run(InMemory::sharing_objects(AtomicSpan::Object), &program);
    }
    run(Embedded::new(), &Program { pace: 0, chain: chain.to_vec(), steps: steps.to_vec() });
}

#[test]
fn one_byte_is_written_and_read() {
    let at = Extent::new(0, 1);
    let write = Op { image: 0, act: Act::Write { at, seed: 0, durable: false } };
    on_every_engine(&[shape(Sparse)], &[Step::Together(vec![vec![write]])]);
}

#[test]
fn a_discard_within_the_short_last_unit_leaves_it_alone() {
    let write = Act::Write { at: Extent::new(0, 1), seed: 0, durable: false };
    let at = Extent::new(36_865, 1);
    let discard = Act::Discard { at, to_parent: false, durable: false };
    let acts = [write.clone(), write, discard];
    for image in [0, 1] {
        for layering in [Sparse, CopyUp] {
            let task = acts.iter().map(|act| Op { image, act: act.clone() }).collect();
            let steps = [Step::Together(vec![task])];
            on_every_engine(&[shape(Sparse), shape(layering)], &steps);
        }
    }
}

/// A child of one image, to which this is done, one after the other, in both modes, on each engine.
fn done_to_a_child(acts: &[Act]) {
    for layering in [Sparse, CopyUp] {
        let task = acts.iter().map(|act| Op { image: 1, act: act.clone() }).collect();
        let steps = [Step::Together(vec![task])];
        on_every_engine(&[shape(Sparse), shape(layering)], &steps);
    }
}

#[test]
fn zeroes_discards_and_a_flatten_across_objects_reach_one_at_a_time() {
    // From within the first object to within the last.
    let at = Extent::new(8192, 28_672);
    for act in [
        Act::Zero { at, options: ZeroOptions::default() },
        Act::Discard { at, to_parent: false, durable: false },
        Act::Discard { at, to_parent: true, durable: false },
        Act::Flatten,
    ] {
        done_to_a_child(&[act]);
    }
}

#[test]
fn zeroes_and_discards_fill_an_object_that_a_snapshot_shares_before_they_touch_it() {
    // A unit of an object that the head has nothing of: what the snapshot shows there is the parent's.
    let at = Extent::new(4096, 4096);
    for act in [
        Act::Zero { at, options: ZeroOptions::default() },
        Act::Discard { at, to_parent: false, durable: false },
    ] {
        done_to_a_child(&[Act::Snapshot, act]);
    }
}
