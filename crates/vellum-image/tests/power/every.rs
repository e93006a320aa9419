//! One program over catalogs and layers together, which ends at each of its calls: by the death of the process and by a power cut;
//! and of which each call fails, after which the process goes on.
//!
//! [Stories](crate::story) draw their calls at random, and may miss one for long. Here none is missed that this program makes.

use vellum_core::{Extent, Geometry};
use vellum_engine::Layering;
use vellum_image::{CloneOptions, CreateOptions, DiscardPolicy, ZeroOptions};
use vellum_sim::{Call, Calls};

use crate::ground::{EIO, ENOSPC};
use crate::known::{BEFORE_A_SECTOR, SECTOR, SIZE};
use crate::life::{Life, Mistake};
use crate::story::{End, Failing, Story};
use crate::told;
use crate::work::Worker;

const UNIT: u64 = 4096;
const OBJECT: u64 = 16 << 10;

/// Makes a golden image and two clones of its snapshot, one in the other pool and flattened, one in the same and removed; then
/// takes everything away but the first of them. Does nothing more once a catalog has failed: `None`.
async fn from_creation_to_removal(life: &mut Life) -> Option<()> {
    let geometry = Geometry::unstriped(OBJECT).unwrap();
    // A border between two sectors of each layer's map lies in the middle of what is written.
    let options = CreateOptions { geometry, ..CreateOptions::default() };
    life.create_as("gold", 0, BEFORE_A_SECTOR, options).await;
    let (gold, golden) = life.owned("gold").await?;
    let by = Worker::alone(&life.ground);
    by.write_at(&gold, &golden, Extent::new(0, SIZE), 1, false).await;
    by.sync(&gold, &golden).await;
    by.write_at(&gold, &golden, Extent::new(SECTOR, 2 * SECTOR), 2, false).await;
    life.snapshot(&gold, &golden).await;
    life.is_untroubled()?;
    by.write_at(&gold, &golden, Extent::new(UNIT, UNIT), 3, true).await;

    let frozen = gold.borrow().snapshots[0].name.clone();
    for (name, pool, layering) in [("child", 1, Layering::Sparse), ("copy", 0, Layering::CopyUp)] {
        let layering = Some(layering);
        let options = CloneOptions { layering, ..CloneOptions::default() };
        life.clone_as(&gold, &frozen, name, pool, options).await;
        let (known, image) = life.owned(name).await?;
        // The end of one unit and the beginning of the next, both inherited.
        let partly = Extent::new(11 * UNIT + 5 * SECTOR, UNIT);
        by.write_at(&known, &image, partly, 4, false).await;
        by.write_at(&known, &image, Extent::new(UNIT, UNIT), 5, true).await;
    }

    let (child, image) = life.owned("child").await?;
    by.zero_at(&child, &image, Extent::new(3 * SECTOR, UNIT), ZeroOptions::default()).await;
    life.snapshot(&child, &image).await;
    life.is_untroubled()?;
    let object = Extent::new(0, OBJECT);
    by.discard_at(&child, &image, object, DiscardPolicy::Inherit, false).await;
    by.write_at(&child, &image, Extent::new(SECTOR, SECTOR), 6, false).await;
    life.flatten(&child, &image).await;
    life.is_untroubled()?;
    life.rename_this(&child, "heir").await;
    life.is_untroubled()?;
    by.discard_at(&child, &image, Extent::new(UNIT, 2 * UNIT), DiscardPolicy::Zero, false).await;
    by.sync(&child, &image).await;

    let (copy, _) = life.owned("copy").await?;
    life.remove_this(&copy).await;
    life.is_untroubled()?;
    let frozen_child = child.borrow().snapshots[0].name.clone();
    life.remove_this_snapshot(&child, &image, frozen_child).await;
    life.is_untroubled()?;
    life.remove_this_snapshot(&gold, &golden, frozen).await;
    life.is_untroubled()?;
    by.write_at(&child, &image, Extent::new(0, 2 * SECTOR), 7, false).await;
    for known in [&gold, &child] {
        assert!(known.borrow().snapshots.is_empty() && known.borrow().parent.is_none());
    }
    drop((image, golden));
    life.remove_this(&gold).await;
    life.is_untroubled()?;
    assert_eq!(life.names(), ["heir"]);
    life.close_all().await;
    Some(())
}

/// What each piece that was not synced keeps or loses is a matter of luck, and so is the order of what is done side by side.
const LUCKS: std::ops::Range<u64> = 0..5;

/// Ends it at every call, with so much luck. Answers how many it has.
fn end_at_every_call(luck: u64, end: End, mistake: Option<Mistake>) -> usize {
    let ended = (1..).find_map(|call| {
        let telling = || Story::tell_until(luck, call, end, mistake, from_creation_to_removal);
        let ended = std::panic::catch_unwind(|| told(telling()));
        ended.unwrap_or_else(|_| panic!("{end:?} at call {call}, luck {luck}"))
    });
    ended.expect("every program ends").len()
}

/// Lets each call fail that changes something, or that only looks, and ends the life later, in turn by death and by a power cut.
/// Answers how many failed. The calls that change something, `of` the program, say whose each is.
fn fail_at_every_call(
    of: &[(Call, String)],
    calls: Calls,
    error: i32,
    mistake: Option<Mistake>,
) -> usize {
    let failed = (1..).take_while(|number| {
        // What only looks is in no list: its life gives up, whosever call it was.
        let file = of.get(*number - 1).filter(|_| calls == Calls::Changes);
        let of_a_catalog = file.is_some_and(|(_, file)| file.contains("pool.sqlite"));
        let end = if number.is_multiple_of(2) { End::Death } else { End::PowerCut };
        let failing = Failing { calls, number: *number as u64, error, of_a_catalog };
        let telling =
            || Story::tell_failing(LUCKS.start, failing, end, mistake, from_creation_to_removal);
        let told = std::panic::catch_unwind(|| told(telling()));
        told.unwrap_or_else(|_| panic!("{failing:?}, {file:?}, then {end:?}"))
    });
    failed.count()
}

/// What it does if nothing is in its way.
fn calls_of_the_program() -> Vec<(Call, String)> {
    let never = u64::MAX;
    let told =
        told(Story::tell_until(LUCKS.start, never, End::Death, None, from_creation_to_removal));
    told.expect("it comes to its own end")
}

/// A mistake, asked for by a test, is found at some call.
fn finds(mistake: Mistake) {
    let told = std::panic::catch_unwind(|| {
        end_at_every_call(1, End::Death, Some(mistake));
        end_at_every_call(1, End::PowerCut, Some(mistake));
    });
    assert!(told.is_err(), "no end of the program finds {mistake:?}");
}

#[test]
fn a_program_over_catalogs_and_layers_ends_at_each_of_its_calls_in_both_ways() {
    let mut calls = vec![end_at_every_call(LUCKS.start, End::Death, None)];
    calls.extend(LUCKS.map(|luck| end_at_every_call(luck, End::PowerCut, None)));
    println!("{calls:?} calls");
    assert!(calls.iter().all(|calls| *calls > 200), "{calls:?} calls, so much of it is not done");
}

#[test]
fn a_program_over_catalogs_and_layers_goes_on_after_each_call_that_failed() {
    let of = calls_of_the_program();
    let changes = of.len();
    for error in [EIO, ENOSPC] {
        assert!(fail_at_every_call(&of, Calls::Changes, error, None) >= changes, "of {changes}");
    }
    let looks = fail_at_every_call(&of, Calls::Looks, EIO, None);
    println!("{changes} calls that change something, {looks} that look");
    assert!(looks > 100, "{looks} calls that look");
}

#[test]
fn a_program_finds_a_link_that_is_cut_while_units_are_missing() {
    finds(Mistake::Image(vellum_image::Canary::CutTooEarly));
}

#[test]
fn a_program_finds_a_log_of_another_boot_that_is_believed() {
    finds(Mistake::Engine(vellum_local::Canary::LogOfAnotherBoot));
}

#[test]
fn a_program_finds_a_sync_that_is_tried_again_after_it_failed() {
    let (of, again) =
        (calls_of_the_program(), Some(Mistake::Engine(vellum_local::Canary::SyncAgain)));
    let told = std::panic::catch_unwind(|| fail_at_every_call(&of, Calls::Changes, EIO, again));
    assert!(told.is_err(), "no failure of a call finds it");
}
