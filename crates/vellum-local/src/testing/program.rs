//! One program on one layer, which ends at each of its calls, by a power cut and by the death of its process; and of which each call
//! fails, whereupon it goes on. It works where two data files meet, and where two pages of the map do.

use std::cell::RefCell;
use std::collections::BTreeSet;

use vellum_core::Extent;
use vellum_engine::{
    Content, Durability, ErrorKind, Fill, Guard, Guarded, Happened, Part, Repair, Result, SetTo,
    Write,
};
use vellum_sim::{Call, Calls, ChangeId, History, SimDisk, Value};

use super::crashes::{bytes, values};
use super::failures::{EIO, ENOSPC};
use super::{BLOCK, Lab, SimLayer, assert_in_order, blocks, facts, findings};
use crate::format::sector::PAGE_UNITS;
use crate::segment::SEGMENT;
use crate::store::Access;

/// The first block of the second data file.
const FILES_MEET: u64 = SEGMENT / BLOCK;
/// The first block of the page of the map behind the one that has [`FILES_MEET`].
const PAGES_MEET: u64 = (FILES_MEET / PAGE_UNITS + 1) * PAGE_UNITS;
const SIZE: u64 = (PAGES_MEET + PAGE_UNITS) * BLOCK;
/// What the program touches, and a block around it.
const PLACES: [(u64, u64); 2] = [(FILES_MEET - 4, 8), (PAGES_MEET - 4, 8)];

/// Who carries the program out, and keeps a record of it.
struct Program<'a> {
    layer: &'a SimLayer,
    history: &'a RefCell<History>,
    /// What failed, where something may.
    failures: Option<&'a RefCell<Vec<ErrorKind>>>,
}

impl Program<'_> {
    async fn run(&self) {
        self.write(blocks(FILES_MEET - 2, 4), 1, Durability::AtSync).await;
        self.write(blocks(PAGES_MEET - 1, 2), 2, Durability::AtSync).await;
        self.sync().await;
        self.write(blocks(FILES_MEET - 1, 2), 3, Durability::AtSync).await;
        self.set(blocks(FILES_MEET - 3, 2), SetTo::Zero).await;
        self.set(blocks(PAGES_MEET - 2, 4), SetTo::Zero).await;
        self.write(blocks(PAGES_MEET, 1), 4, Durability::Durable).await;
        self.set(blocks(FILES_MEET - 1, 2), SetTo::Inherit).await;
        self.set(blocks(PAGES_MEET - 1, 2), SetTo::Inherit).await;
        // They are data again before their space is freed, of others it is freed.
        self.write(blocks(FILES_MEET, 1), 5, Durability::AtSync).await;
        let _ = self.accept(self.layer.reclaim().await);
        self.sync().await;
        self.fill(blocks(FILES_MEET - 3, 6), Some(6), None).await;
        self.fill(blocks(PAGES_MEET - 3, 6), None, Some((blocks(PAGES_MEET - 1, 2), 7))).await;
        let began = self.history.borrow_mut().tick();
        self.synced(began, self.layer.close().await);
    }

    /// What was done; or notes why it was not, if that may be.
    fn accept<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            let failures = self.failures.unwrap_or_else(|| panic!("{}", error.chain()));
            failures.borrow_mut().push(error.kind());
        }
        result
    }

    /// Notes how changes ended. What has failed changed nothing, or may have changed something, as it says itself.
    fn ended(&self, changes: &[(Extent, ChangeId)], done: Result<Guarded>, durable: bool) {
        let done = self.accept(done);
        let mut history = self.history.borrow_mut();
        for (at, change) in changes {
            match &done {
                Ok(done) => {
                    assert_eq!(*done, Guarded::Done);
                    history.end(*at, *change, durable);
                }
                Err(error) if error.happened() == Happened::NotDone => {
                    history.refused(*at, *change);
                }
                Err(_) => {}
            }
        }
    }

    fn synced(&self, began: u64, synced: Result<()>) {
        if self.accept(synced).is_ok() {
            self.history.borrow_mut().synced(began);
        }
    }

    fn begin(&self, at: Extent, value: Value, fills: bool) -> ChangeId {
        self.history.borrow_mut().begin(at, value, fills)
    }

    async fn write(&self, at: Extent, number: u64, durability: Durability) {
        let change = self.begin(at, Value::Holds(number), false);
        let data = bytes(at, number);
        let write = Write { offset: at.offset(), data, guard: Guard::Edges, durability };
        let done = self.layer.write(write).await;
        self.ended(&[(at, change)], done, durability == Durability::Durable);
    }

    async fn set(&self, at: Extent, to: SetTo) {
        let value = if to == SetTo::Zero { Value::Holds(0) } else { Value::Inherited };
        let change = self.begin(at, value, false);
        let done = self.layer.set(at, to, Durability::AtSync).await;
        self.ended(&[(at, change)], done, false);
    }

    /// Fills with a number or with zeros, and writes over it.
    async fn fill(&self, at: Extent, number: Option<u64>, over: Option<(Extent, u64)>) {
        let value = Value::Holds(number.unwrap_or(0));
        let filled = self.begin(at, value, true);
        let content = number.map_or(Content::Zero, |number| Content::Data(bytes(at, number)));
        let written = over.map(|(at, number)| (at, self.begin(at, Value::Holds(number), false)));
        let then = over.map(|(at, number)| Write {
            offset: at.offset(),
            data: bytes(at, number),
            guard: Guard::Edges,
            durability: Durability::AtSync,
        });
        let fill = Fill { parts: vec![Part { at, content }], then };
        let changes: Vec<_> = std::iter::once((at, filled)).chain(written).collect();
        self.ended(&changes, self.layer.fill(fill).await, false);
    }

    async fn sync(&self) {
        let began = self.history.borrow_mut().tick();
        self.synced(began, self.layer.sync().await);
    }
}

/// What is in all places.
async fn everything(layer: &SimLayer) -> Vec<(u64, Value)> {
    let mut all = Vec::new();
    for (first, count) in PLACES {
        all.extend(values(layer, blocks(first, count)).await);
    }
    all
}

/// Asserts that everything reads as it may.
fn assert_allowed(
    found: &[(u64, Value)],
    history: &History,
    allowed: impl Fn(&History, u64) -> Vec<Value>,
    what: &str,
) {
    for (sector, value) in found {
        let allowed = allowed(history, *sector);
        assert!(
            allowed.contains(value),
            "{what}: sector {sector} reads as {value:?}, and may read as {allowed:?}; {}",
            history.story(*sector)
        );
    }
}

/// How a life of the program ended.
struct Ended {
    power_cut: bool,
    /// Whether what was acknowledged and not synced may be gone.
    synced_only: bool,
    /// Who looks first at what is left.
    access: Access,
    /// Whether the next owner frees what nothing refers to.
    repairs: bool,
}

/// The next life after one of the program: what it finds, which must be allowed and in order, and stay once it was synced.
async fn what_is_left(lab: Lab, history: &History, ended: Ended, what: &str) -> Vec<(u64, Value)> {
    let lab = if ended.power_cut { lab.after_power_cut().await } else { lab.after_death().await };
    let found = everything(&lab.open(ended.access).await.unwrap()).await;
    let allowed =
        if ended.synced_only { History::allowed_after_power_cut } else { History::allowed_now };
    assert_allowed(&found, history, allowed, what);
    let owner = lab.own().await;
    assert_in_order(&owner).await;
    // Space that nothing refers to may be freed, which changes nothing.
    if ended.repairs {
        findings(&owner, Repair::Safe).await.unwrap();
    } else {
        owner.sync().await.unwrap();
    }
    let lab = lab.after_power_cut().await;
    let kept = everything(&lab.own().await).await;
    assert!(kept == found, "{what}: {found:?}, then {kept:?}");
    found
}

/// Ends the program at a call. `None` once it has fewer; otherwise what the next life finds.
async fn end_at(call: u64, seed: u64, power_cut: bool) -> Option<Vec<(u64, Value)>> {
    let lab = Lab::on(SimDisk::new(seed), facts(SIZE, BLOCK)).await;
    let history = RefCell::new(History::new());
    let layer = lab.own().await;
    lab.disk.world().calls_left = Some(call);
    let program = Program { layer: &layer, history: &history, failures: None };
    let is_over = tokio::select! {
        biased;
        () = program.run() => true,
        () = lab.disk.ended() => false,
    };
    let access = if call.is_multiple_of(2) { Access::Read } else { Access::Own };
    let ended =
        Ended { power_cut, synced_only: power_cut, access, repairs: call.is_multiple_of(3) };
    let what = format!("call {call}, seed {seed}, power cut: {power_cut}");
    let found = what_is_left(lab, &history.into_inner(), ended, &what).await;
    (!is_over).then_some(found)
}

/// One call that fails.
#[derive(Clone, Copy, Debug)]
struct Failing {
    calls: Calls,
    number: u64,
    error: i32,
}

/// Runs the program to its end with a call that fails. `None` once it has fewer; otherwise what failed, and whether it poisoned the
/// layer.
async fn fail_at(failing: Failing, seed: u64, power_cut: bool) -> Option<(Call, bool)> {
    let lab = Lab::on(SimDisk::new(seed), facts(SIZE, BLOCK)).await;
    let (history, failures) = (RefCell::new(History::new()), RefCell::default());
    let layer = lab.own().await;
    lab.disk.world().fail_one(failing.calls, failing.number, failing.error);
    Program { layer: &layer, history: &history, failures: Some(&failures) }.run().await;
    let (call, file) = lab.disk.world().last_failure().cloned()?;
    let what = format!("{failing:?}, {call:?} {file}, seed {seed}, power cut: {power_cut}");
    let poisoned = layer.0.poison.get().is_some();
    let failures = failures.into_inner();
    for (index, kind) in failures.iter().enumerate() {
        let expected = match (index, failing.error) {
            (0, ENOSPC) => ErrorKind::NoSpace,
            (0, _) => ErrorKind::Io,
            _ if poisoned => ErrorKind::Poisoned,
            _ => panic!("{what}: it failed twice: {failures:?}"),
        };
        assert_eq!(*kind, expected, "{what}: {failures:?}");
    }
    let history = history.into_inner();
    assert_allowed(&everything(&layer).await, &history, History::allowed_now, &what);
    drop(layer);
    // After a failed sync a reader may see what is in the cache alone, which the next owner drops.
    let reads_first = failing.number.is_multiple_of(2) && !poisoned;
    let access = if reads_first { Access::Read } else { Access::Own };
    let (synced_only, repairs) = (power_cut || poisoned, failing.number.is_multiple_of(3));
    let ended = Ended { power_cut, synced_only, access, repairs };
    what_is_left(lab, &history, ended, &what).await;
    Some((call, poisoned))
}

#[tokio::test]
async fn a_process_that_dies_at_any_call_of_a_program_leaves_what_it_acknowledged() {
    let mut contents = BTreeSet::new();
    let mut call = 1;
    while let Some(found) = end_at(call, 1, false).await {
        contents.insert(found);
        call += 1;
    }
    assert!(call > 50 && contents.len() > 10, "{call} calls, {} contents", contents.len());
}

#[tokio::test]
async fn a_power_cut_at_any_call_of_a_program_leaves_what_was_promised() {
    let mut contents = BTreeSet::new();
    for seed in 0..10 {
        let mut call = 1;
        while let Some(found) = end_at(call, seed, true).await {
            contents.insert(found);
            call += 1;
        }
    }
    assert!(contents.len() > 100, "{} contents", contents.len());
}

/// Lets each call of the program fail, by this error. Answers how many there are, and how often the layer was poisoned.
async fn fail_at_every_call(calls: Calls, error: i32) -> (u64, u64) {
    let mut poisoned = 0;
    for number in 1.. {
        for (seed, power_cut) in [(1, false), (1, true), (2, true), (3, true)] {
            let failing = Failing { calls, number, error };
            let Some((call, has_poisoned)) = fail_at(failing, seed, power_cut).await else {
                return (number - 1, poisoned);
            };
            assert!(!(has_poisoned && call.only_looks()), "{failing:?}: {call:?}");
            poisoned += u64::from(has_poisoned);
        }
    }
    unreachable!("every program ends")
}

#[tokio::test]
async fn whatever_call_fails_a_program_goes_on_or_is_poisoned_and_what_it_acknowledged_is_there() {
    for error in [EIO, ENOSPC] {
        let (calls, poisoned) = fail_at_every_call(Calls::Changes, error).await;
        assert!(calls > 50 && poisoned > 20, "{calls} calls, {poisoned} times poisoned");
    }
}

#[tokio::test]
async fn whatever_read_fails_a_program_goes_on_and_what_it_acknowledged_is_there() {
    let (looks, _) = fail_at_every_call(Calls::Looks, EIO).await;
    assert!(looks > 5, "{looks} reads");
}
