//! Tests of what only the store in memory has, and of its content against a model of single units. What the contract
//! says is tested by the conformance suite.

use bytes::Bytes;
use proptest::prelude::*;
use vellum_core::{Extent, Geometry, Runs, State};

use super::content::{Content, Units};
use super::{MemoryHead, MemoryOptions, MemoryStore};
use crate::{
    AtomicSpan, Catalog, Content as Filling, Durability, ErrorKind, Fill, Guard, Guarded, Head,
    Layer, Layering, NewImage, Ownership, Part, Result, SetTo, TryRead, Write,
};

const UNIT: u64 = 512;
const SIZE: u64 = 16 * UNIT - 100;

async fn own_new(store: &MemoryStore) -> MemoryHead {
    let catalog = store.catalog();
    let new = NewImage {
        name: "image".parse().unwrap(),
        size: SIZE,
        geometry: Geometry::unstriped(4096).unwrap(),
        layering: Layering::Sparse,
        block_size: UNIT as u32,
        parent: None,
        id: None,
        meta: Default::default(),
    };
    let record = catalog.create(new).await.unwrap();
    catalog.own(&record.id).await.unwrap()
}

fn write(offset: u64, length: u64) -> Write {
    let data = Bytes::from(vec![7; length as usize]);
    Write { offset, data, guard: Guard::Edges, durability: Durability::AtSync }
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[tokio::test]
async fn a_head_from_before_a_power_cut_has_lost_its_image() {
    let store = MemoryStore::default();
    let head = own_new(&store).await;
    store.power_cut();
    assert_eq!(head.ownership(), Ownership::Lost);
    assert_eq!(kind(head.write(write(0, UNIT)).await), ErrorKind::OwnershipLost);
    assert_eq!(kind(head.sync().await), ErrorKind::OwnershipLost);
    let name = "image".parse().unwrap();
    let record = store.catalog().find(&name).await.unwrap();
    let next = store.catalog().own(&record.id).await.unwrap();
    drop(head);
    assert_eq!(kind(store.catalog().own(&record.id).await), ErrorKind::InUse);
    assert_eq!(next.write(write(0, UNIT)).await.unwrap(), Guarded::Done);
}

#[tokio::test]
async fn a_full_store_takes_what_needs_no_space() {
    let store = MemoryStore::default();
    let head = own_new(&store).await;
    assert_eq!(head.write(write(0, UNIT)).await.unwrap(), Guarded::Done);
    store.set_full(true);
    assert_eq!(kind(head.write(write(0, 2 * UNIT)).await), ErrorKind::NoSpace);
    let part = Part { at: Extent::new(0, 2 * UNIT), content: Filling::Data(vec![1; 1024].into()) };
    let fill = Fill { parts: vec![part], then: None };
    assert_eq!(kind(head.fill(fill).await), ErrorKind::NoSpace);
    assert_eq!(head.write(write(9, 9)).await.unwrap(), Guarded::Done);
    let zeroed = head.set(Extent::new(UNIT, UNIT), SetTo::Zero, Durability::AtSync).await;
    assert_eq!(zeroed.unwrap(), Guarded::Done);
}

#[tokio::test]
async fn a_store_that_is_atomic_by_object_refuses_to_cross_a_border() {
    let options = MemoryOptions { atomic: AtomicSpan::Object, ..MemoryOptions::default() };
    let head = own_new(&MemoryStore::new(options)).await;
    assert_eq!(head.write(write(4096 - UNIT, UNIT)).await.unwrap(), Guarded::Done);
    assert_eq!(kind(head.write(write(4096 - UNIT, 2 * UNIT)).await), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_store_that_is_durable_at_once_loses_nothing_by_a_power_cut() {
    let options = MemoryOptions { ack_is_durable: true, ..MemoryOptions::default() };
    let store = MemoryStore::new(options);
    let head = own_new(&store).await;
    assert_eq!(head.write(write(0, UNIT)).await.unwrap(), Guarded::Done);
    store.power_cut();
    let mut buffer = [0; UNIT as usize];
    let mut runs = Runs::new();
    let done = head.layer().try_read(Extent::new(0, UNIT), &mut buffer, &mut runs);
    assert_eq!(done, TryRead::Done);
    assert!(runs.all(State::Data) && buffer == [7; UNIT as usize]);
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u8),
    Fill(u64, u64, u8),
    FillZero(u64, u64),
    Zero(u64, u64),
    Inherit(u64, u64),
    Reclaim,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = (0..SIZE, 1..4 * UNIT, 1..=255u8);
    let units = (0..16u64, 1..6u64);
    prop_oneof![
        bytes.prop_map(|(offset, length, byte)| Step::Write(offset, length, byte)),
        (units.clone(), 1..=255u8)
            .prop_map(|((first, count), byte)| Step::Fill(first, count, byte)),
        units.clone().prop_map(|(first, count)| Step::FillZero(first, count)),
        units.clone().prop_map(|(first, count)| Step::Zero(first, count)),
        units.prop_map(|(first, count)| Step::Inherit(first, count)),
        Just(Step::Reclaim),
    ]
}

/// Each byte as `None` where it is inherited, else the byte and whether its unit is data.
type Model = Vec<Option<(u8, State)>>;

fn apply(content: &mut Content, model: &mut Model, units: Units, step: Step) {
    let extent = |first, count| Extent::new(first * UNIT, count * UNIT).clip(SIZE);
    let mut put = |at: Extent, only_inherited: bool, value| {
        for byte in &mut model[at.offset() as usize..at.end() as usize] {
            if !only_inherited || byte.is_none() {
                *byte = value;
            }
        }
    };
    let filled = |at, content| Fill { parts: vec![Part { at, content }], then: None };
    match step {
        Step::Write(offset, length, byte) => {
            let at = Extent::new(offset, length).clip(SIZE);
            content.write(units, at, &vec![byte; at.len_usize()]);
            let around = units.around(at);
            put(around, true, Some((0, State::Data)));
            put(at, false, Some((byte, State::Data)));
            for (_, state) in
                model[around.offset() as usize..around.end() as usize].iter_mut().flatten()
            {
                *state = State::Data;
            }
        }
        Step::Fill(first, count, byte) => {
            let at = extent(first, count);
            let data = Bytes::from(vec![byte; at.len_usize()]);
            content.fill(units, &filled(at, Filling::Data(data)));
            put(at, true, Some((byte, State::Data)));
        }
        Step::FillZero(first, count) => {
            content.fill(units, &filled(extent(first, count), Filling::Zero));
            put(extent(first, count), true, Some((0, State::Zero)));
        }
        Step::Zero(first, count) => {
            content.set_zero(extent(first, count));
            put(extent(first, count), false, Some((0, State::Zero)));
        }
        Step::Inherit(first, count) => {
            content.set_inherit(extent(first, count));
            put(extent(first, count), false, None);
        }
        Step::Reclaim => {
            content.reclaim();
        }
    }
}

proptest! {
    #[test]
    fn content_is_what_a_model_of_single_bytes_is(steps in prop::collection::vec(step(), 1..40)) {
        let units = Units { size: SIZE, unit: UNIT };
        let (mut content, mut model) = (Content::default(), vec![None; SIZE as usize]);
        for step in steps {
            apply(&mut content, &mut model, units, step);
        }
        let mut buffer = vec![0xee; SIZE as usize];
        let runs = content.read(units, Extent::new(0, SIZE), &mut buffer);
        for run in &runs {
            for offset in run.extent.offset() as usize..run.extent.end() as usize {
                let (byte, state) = model[offset].unwrap_or((0xee, State::Inherited));
                prop_assert_eq!((buffer[offset], run.state), (byte, state), "at {}", offset);
            }
        }
        content.reclaim();
        let data = runs.in_state(State::Data).map(|at| at.length()).sum::<u64>();
        prop_assert!(content.stored_bytes() >= data && content.stored_bytes() < data + 17 * 9 + 1);
    }

    #[test]
    fn states_can_be_asked_for_in_pieces(steps in prop::collection::vec(step(), 1..20), runs_max in 1..4usize) {
        let units = Units { size: SIZE, unit: UNIT };
        let (mut content, mut model) = (Content::default(), vec![None; SIZE as usize]);
        for step in steps {
            apply(&mut content, &mut model, units, step);
        }
        let (mut rest, mut pieces) = (Extent::new(0, SIZE), Runs::new());
        while !rest.is_empty() {
            let mut some = Runs::new();
            content.states(rest, runs_max, &mut some);
            prop_assert!(!some.is_empty() && some.len() <= runs_max);
            for run in &some {
                pieces.push(run.extent, run.state);
            }
            rest = rest.split(some[some.len() - 1].extent.end()).1;
        }
        prop_assert_eq!(pieces, content.all_states(Extent::new(0, SIZE)));
    }
}
