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
mod moments;
mod story;

use std::ops::Range;

use story::{Cuts, Story};
use vellum_local::Canary;

/// Lives in a story.
const LIVES: u32 = 50;

fn seeds() -> Range<u64> {
    let usual = 0..100;
    let Ok(asked) = std::env::var("VELLUM_SEEDS") else { return usual };
    let (first, end) = asked.split_once("..").expect("VELLUM_SEEDS is like 0..1000");
    first.parse().unwrap()..end.parse().unwrap()
}

fn tell(seed: u64, lives: u32, canary: Option<Canary>) -> Story {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(Story::tell(seed, lives, canary))
}

#[test]
fn whatever_call_a_life_ends_at_images_are_what_was_promised() {
    let (seeds, cuts) = (seeds(), Cuts::default());
    for seed in seeds.clone() {
        match std::panic::catch_unwind(|| tell(seed, LIVES, None)) {
            Ok(story) => cuts.add(&story.cuts),
            Err(_) => panic!("VELLUM_SEEDS={seed}..{} tells this story again", seed + 1),
        }
    }
    println!("{} seeds: {cuts}", seeds.end - seeds.start);
    assert!(cuts.power() > 0 && cuts.deaths() > 0 && cuts.of_the_catalog() > 0);
}

#[test]
fn a_seed_tells_the_same_story_each_time() {
    let calls = tell(7, 6, None).calls;
    assert!(calls.len() > 300);
    let again = tell(7, 6, None).calls;
    let parted = calls.iter().zip(&again).position(|(a, b)| a != b);
    assert_eq!(parted.map(|at| (at, &calls[at], &again[at])), None);
    assert_eq!(calls.len(), again.len());
    assert!(calls != tell(8, 6, None).calls);
}

/// How many stories are told before a mistake counts as not found.
const CANARY_SEEDS: u64 = 300;

/// Tells stories to an engine that makes a mistake, until one finds it.
fn finds(canary: Canary) {
    let found = (0..CANARY_SEEDS)
        .position(|seed| std::panic::catch_unwind(|| tell(seed, LIVES, Some(canary))).is_err());
    println!("{canary:?} is found by story {found:?}");
    assert!(found.is_some(), "no story finds {canary:?}");
}

#[test]
fn states_that_get_ahead_of_their_data_are_found() {
    finds(Canary::PagesAfterData);
}

#[test]
fn a_sync_that_overtakes_another_is_found() {
    finds(Canary::OvertakingSync);
}

#[test]
fn a_log_of_another_boot_that_is_believed_is_found() {
    finds(Canary::LogOfAnotherBoot);
}

#[test]
fn a_failed_sync_that_is_repeated_is_found() {
    finds(Canary::SyncAgain);
}
