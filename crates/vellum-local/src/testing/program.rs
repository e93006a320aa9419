//! One program on one layer, which ends at each of its calls, by a power cut and by the death of its process. It works where two
//! data files meet, and where two pages of the map do.

use std::cell::RefCell;
use std::collections::BTreeSet;

use vellum_core::Extent;
use vellum_engine::{Content, Durability, Fill, Guard, Guarded, Part, Repair, SetTo, Write};
use vellum_sim::{ChangeId, History, SimDisk, Value};

use super::crashes::{bytes, values};
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
        self.layer.reclaim().await.unwrap();
        self.sync().await;
        self.fill(blocks(FILES_MEET - 3, 6), Some(6), None).await;
        self.fill(blocks(PAGES_MEET - 3, 6), None, Some((blocks(PAGES_MEET - 1, 2), 7))).await;
        let began = self.history.borrow_mut().tick();
        self.layer.close().await.unwrap();
        self.history.borrow_mut().synced(began);
    }

    fn begin(&self, at: Extent, value: Value, fills: bool) -> ChangeId {
        self.history.borrow_mut().begin(at, value, fills)
    }

    async fn write(&self, at: Extent, number: u64, durability: Durability) {
        let change = self.begin(at, Value::Holds(number), false);
        let data = bytes(at, number);
        let write = Write { offset: at.offset(), data, guard: Guard::Edges, durability };
        assert_eq!(self.layer.write(write).await.unwrap(), Guarded::Done);
        self.history.borrow_mut().end(at, change, durability == Durability::Durable);
    }

    async fn set(&self, at: Extent, to: SetTo) {
        let value = if to == SetTo::Zero { Value::Holds(0) } else { Value::Inherited };
        let change = self.begin(at, value, false);
        assert_eq!(self.layer.set(at, to, Durability::AtSync).await.unwrap(), Guarded::Done);
        self.history.borrow_mut().end(at, change, false);
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
        assert_eq!(self.layer.fill(fill).await.unwrap(), Guarded::Done);
        let mut history = self.history.borrow_mut();
        history.end(at, filled, false);
        if let Some((at, change)) = written {
            history.end(at, change, false);
        }
    }

    async fn sync(&self) {
        let began = self.history.borrow_mut().tick();
        self.layer.sync().await.unwrap();
        self.history.borrow_mut().synced(began);
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

/// Ends the program at a call. `None` once it has fewer; otherwise what the next life finds, which must be allowed and in order,
/// and stay once it was synced.
async fn end_at(call: u64, seed: u64, power_cut: bool) -> Option<Vec<(u64, Value)>> {
    let lab = Lab::on(SimDisk::new(seed), facts(SIZE, BLOCK)).await;
    let history = RefCell::new(History::new());
    let layer = lab.own().await;
    lab.disk.world().calls_left = Some(call);
    let program = Program { layer: &layer, history: &history };
    let is_over = tokio::select! {
        biased;
        () = program.run() => true,
        () = lab.disk.ended() => false,
    };
    let lab = if power_cut { lab.after_power_cut().await } else { lab.after_death().await };
    let access = if call.is_multiple_of(2) { Access::Read } else { Access::Own };
    let found = everything(&lab.open(access).await.unwrap()).await;
    let what = format!("call {call}, seed {seed}, power cut: {power_cut}");
    for (sector, value) in &found {
        let history = history.borrow();
        let allowed = if power_cut {
            history.allowed_after_power_cut(*sector)
        } else {
            history.allowed_now(*sector)
        };
        assert!(
            allowed.contains(value),
            "{what}: sector {sector} reads as {value:?}, and may read as {allowed:?}; {}",
            history.story(*sector)
        );
    }
    let owner = lab.own().await;
    assert_in_order(&owner).await;
    // Space that nothing refers to may be freed, which changes nothing.
    match call % 3 {
        0 => drop(findings(&owner, Repair::Safe).await.unwrap()),
        _ => owner.sync().await.unwrap(),
    }
    let lab = lab.after_power_cut().await;
    let kept = everything(&lab.own().await).await;
    assert!(kept == found, "{what}: {found:?}, then {kept:?}");
    (!is_over).then_some(found)
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
