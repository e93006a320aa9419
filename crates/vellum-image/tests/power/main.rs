//! Images on a simulated disk, catalog included, whose life ends at any call: by a power cut or by the death of the process.
//!
//! A [story](story) is random work on a tree of images, in many lives; what is [known](known) of it says what each sector, each
//! snapshot and each name may be afterwards. One seed tells one story:
//!
//! ```text
//! VELLUM_SEEDS=17..18 cargo test -p vellum-image --test power -- whatever_call
//! VELLUM_SEEDS=0..10000 cargo test --release -p vellum-image --test power -- whatever_call --nocapture
//! ```

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod known;
mod story;

use std::ops::Range;

use story::{Cuts, Story};

/// Lives in a story.
const LIVES: u32 = 50;

fn seeds() -> Range<u64> {
    let usual = 0..100;
    let Ok(asked) = std::env::var("VELLUM_SEEDS") else { return usual };
    let (first, end) = asked.split_once("..").expect("VELLUM_SEEDS is like 0..1000");
    first.parse().unwrap()..end.parse().unwrap()
}

fn tell(seed: u64, lives: u32) -> Story {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(Story::tell(seed, lives))
}

#[test]
fn whatever_call_a_life_ends_at_images_are_what_was_promised() {
    let (seeds, cuts) = (seeds(), Cuts::default());
    for seed in seeds.clone() {
        match std::panic::catch_unwind(|| tell(seed, LIVES)) {
            Ok(story) => cuts.add(&story.cuts),
            Err(_) => panic!("VELLUM_SEEDS={seed}..{} tells this story again", seed + 1),
        }
    }
    println!("{} seeds: {cuts}", seeds.end - seeds.start);
    assert!(cuts.power() > 0 && cuts.deaths() > 0 && cuts.of_the_catalog() > 0);
}

#[test]
fn a_seed_tells_the_same_story_each_time() {
    let calls = tell(7, 6).calls;
    assert!(calls.len() > 300);
    let again = tell(7, 6).calls;
    let parted = calls.iter().zip(&again).position(|(a, b)| a != b);
    assert_eq!(parted.map(|at| (at, &calls[at], &again[at])), None);
    assert_eq!(calls.len(), again.len());
    assert!(calls != tell(8, 6).calls);
}
