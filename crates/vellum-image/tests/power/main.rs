//! Images on a simulated disk, catalog included, whose life ends at any call: by a power cut or by the death of the process.
//!
//! A [story](story) is random work on a tree of images in two pools, in many [lives](life) of one process or of two at once; what is
//! [known](known) of it, and kept in a [book](book), says what each sector, each snapshot and each name may be afterwards. One seed
//! tells one story:
//!
//! ```text
//! VELLUM_SEEDS=17..18 cargo test -p vellum-image --test power -- whatever_call
//! VELLUM_SEEDS=0..10000 cargo test --release -p vellum-image --test power -- whatever_call --nocapture
//! ```
//!
//! Beside stories there is a program that ends at [every] call, and single [moments] of one process and of [two](beside).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod beside;
mod book;
mod every;
mod ground;
mod known;
mod life;
mod moments;
mod story;
mod work;

use std::ops::Range;

use life::Mistake;
use story::{Cuts, Story};
use vellum_image::Canary as OfImages;
use vellum_local::Canary;

/// Lives in a story.
const LIVES: u32 = 50;

/// The stories that are told when nobody asks for others.
const USUAL_SEEDS: Range<u64> = 0..70;

fn seeds() -> Range<u64> {
    let Ok(asked) = std::env::var("VELLUM_SEEDS") else { return USUAL_SEEDS };
    let (first, end) = asked.split_once("..").expect("VELLUM_SEEDS is like 0..1000");
    first.parse().unwrap()..end.parse().unwrap()
}

/// Tells something on one thread, whose clock goes on when there is nothing else to do.
fn told<T>(telling: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(telling)
}

fn tell(seed: u64, lives: u32, mistake: Option<Mistake>) -> Story {
    told(Story::tell(seed, lives, mistake))
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
    assert!(cuts.are_complete() || seeds.end - seeds.start < 5, "{cuts}");
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

/// How many stories are told before a mistake counts as not found: those that the sound engine is told as well.
const CANARY_SEEDS: u64 = USUAL_SEEDS.end;

/// Tells stories to an engine that makes a mistake, until one finds it.
fn finds(canary: Canary) {
    finds_mistake(Mistake::Engine(canary));
}

fn finds_mistake(mistake: Mistake) {
    let found = (0..CANARY_SEEDS)
        .position(|seed| std::panic::catch_unwind(|| tell(seed, LIVES, Some(mistake))).is_err());
    println!("{mistake:?} is found by story {found:?}");
    assert!(found.is_some(), "no story finds {mistake:?}");
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

#[test]
fn a_discard_that_inherits_where_it_should_be_zero_is_found() {
    finds(Canary::InheritForZero);
}

#[test]
fn a_copy_up_that_overwrites_is_found() {
    finds(Canary::FillOverwrites);
}

#[test]
fn an_image_with_two_owners_is_found() {
    finds(Canary::SharedOwnership);
}

#[test]
fn a_link_that_is_cut_while_units_are_missing_is_found() {
    finds_mistake(Mistake::Image(OfImages::CutTooEarly));
}
