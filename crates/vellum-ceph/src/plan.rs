//! What a change does to a data object of a sparse image: which steps, and which states afterwards. Pure.
//!
//! What lies under a unit that is not data is undefined, so a unit that becomes data is always written as a whole.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use vellum_core::{Extent, State};
use vellum_engine::{Content, Fill, Guard, Missing, SetTo, Write};
use vellum_rados::{WriteOp, WriteStep};

use crate::keys::STATES;
use crate::place::Place;
use crate::states::ObjectStates;

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Plan {
    /// Nothing, since it is so already.
    Nothing,
    /// Nothing, since these units are inherited.
    Missing(Missing),
    /// To take these steps; the states stay as they are.
    Write(Vec<WriteStep>),
    /// To take these steps, and to have these states afterwards.
    Change(Vec<WriteStep>, ObjectStates),
    /// To remove the object, which then inherits everything.
    Remove,
}

impl Plan {
    /// The whole operation on an object with such states, which fails if it has others by now.
    pub fn operation(&self, place: &Place, before: &ObjectStates) -> WriteOp {
        let all = place.units_of_object();
        let attribute = |states: &ObjectStates| states.encode(place.unit_shift(), all);
        let mut op = WriteOp::new();
        match self {
            Self::Nothing | Self::Missing(_) => return op,
            Self::Remove => return op.remove(),
            Self::Write(steps) => op.steps.extend(steps.iter().cloned()),
            Self::Change(steps, after) => {
                op = match before {
                    ObjectStates::Absent => op.create(true).then(alloc_hint(place)),
                    before => op.compare_xattr(STATES, attribute(before)),
                };
                op.steps.extend(steps.iter().cloned());
                op = op.set_xattr(STATES, attribute(after));
            }
        }
        op
    }
}

/// How large an object is going to be.
pub(crate) fn alloc_hint(place: &Place) -> WriteStep {
    let object_size = place.geometry().object_size();
    WriteStep::AllocHint { object_size, write_size: object_size }
}

/// Of a write that lies in one object.
pub fn write(place: &Place, states: &ObjectStates, write: &Write) -> Plan {
    let missing = missing(place, states, write.extent(), write.guard);
    if !missing.is_empty() {
        return Plan::Missing(missing);
    }
    let mut steps = Vec::new();
    let after = put(place, states, write, &mut steps);
    done(states, after, steps)
}

/// Of a fill whose parts, and whose write, lie in one object.
pub fn fill(place: &Place, states: &ObjectStates, fill: &Fill) -> Plan {
    let (mut after, mut steps) = (states.clone(), Vec::new());
    for part in &fill.parts {
        let units = place.units(part.at);
        for (run, _) in states.runs(units).filter(|(_, state)| *state == State::Inherited) {
            let to = match &part.content {
                Content::Zero => State::Zero,
                Content::Data(data) => {
                    let at = place.image_of(&run, part.at);
                    let data = data.slice(part.at.range_of(&at));
                    steps.push(WriteStep::Write { offset: place.offset(at.offset()), data });
                    State::Data
                }
            };
            after = after.with(run, to, place.units_of_object());
        }
    }
    if let Some(write) = &fill.then {
        let missing = missing(place, &after, write.extent(), Guard::Edges);
        if !missing.is_empty() {
            return Plan::Missing(missing);
        }
        after = put(place, &after, write, &mut steps);
    }
    done(states, after, steps)
}

/// Of whole units of one object that become zero, or inherited.
pub fn set(place: &Place, states: &ObjectStates, at: Extent, to: SetTo) -> Plan {
    let to = match to {
        SetTo::Zero => State::Zero,
        SetTo::Inherit => State::Inherited,
    };
    let (mut after, mut steps) = (states.clone(), Vec::new());
    for (run, state) in states.runs(place.units(at)).filter(|(_, state)| *state != to) {
        if state == State::Data {
            let offset = u64::from(run.start) * place.unit();
            let length = u64::from(run.end - run.start) * place.unit();
            steps.push(WriteStep::Zero { offset, length });
        }
        after = after.with(run, to, place.units_of_object());
    }
    done(states, after, steps)
}

/// Of an object that keeps what lies before an offset, since the image is about to end there. Units behind it become zero, and what a
/// unit of data holds behind it zeros. What is inherited stays so: the overlap ends with the image.
pub fn trim(place: &Place, states: &ObjectStates, end: u64) -> Plan {
    if !states.exists() {
        return Plan::Nothing;
    }
    let (mut after, mut steps) = (states.clone(), Vec::new());
    let behind = end.div_ceil(place.unit()) as u32;
    // Not punched: until the image is smaller, the unit must be there as a whole.
    steps.extend(zeros_behind(place, states, end));
    let all = place.units_of_object();
    for (run, _) in states.runs(behind..all).filter(|(_, state)| *state == State::Data) {
        let offset = u64::from(run.start) * place.unit();
        let length = u64::from(run.end - run.start) * place.unit();
        steps.push(WriteStep::Zero { offset, length });
        after = after.with(run, State::Zero, all);
    }
    done(states, after, steps)
}

/// Of an object in which the image ends, since it is about to go on there: the unit that it ends in holds zeros behind its end, and is
/// there as a whole.
pub fn extend(place: &Place, states: &ObjectStates, end: u64) -> Plan {
    zeros_behind(place, states, end).map_or(Plan::Nothing, |zeros| Plan::Write(vec![zeros]))
}

/// Zeros for the rest of the unit that an offset lies in, if it is data.
fn zeros_behind(place: &Place, states: &ObjectStates, offset: u64) -> Option<WriteStep> {
    let is_data = states.get((offset / place.unit()) as u32) == State::Data;
    let rest = offset.next_multiple_of(place.unit()) - offset;
    let data = BytesMut::zeroed(rest as usize).freeze();
    (rest > 0 && is_data).then_some(WriteStep::Write { offset, data })
}

fn done(before: &ObjectStates, after: ObjectStates, steps: Vec<WriteStep>) -> Plan {
    match (after == *before, steps.is_empty()) {
        (true, true) => Plan::Nothing,
        (true, false) => Plan::Write(steps),
        (false, _) => Plan::Change(steps, after),
    }
}

/// The inherited units that must be defined for a write, as bytes of the image.
fn missing(place: &Place, states: &ObjectStates, at: Extent, guard: Guard) -> Missing {
    let mut missing = Missing::new();
    let units = place.units(at);
    for (run, _) in states.runs(units).filter(|(_, state)| *state == State::Inherited) {
        for unit in run {
            let unit = place.image_of(&(unit..unit + 1), at);
            if guard == Guard::Edges && at.contains(&unit) {
                continue;
            }
            match missing.last_mut() {
                Some(last) if last.end() == unit.offset() => {
                    *last = Extent::between(last.offset(), unit.end());
                }
                _ => missing.push(unit),
            }
        }
    }
    missing
}

/// Writes, with zeros around it in a unit that was none before, and says what the states are then.
fn put(
    place: &Place,
    states: &ObjectStates,
    write: &Write,
    steps: &mut Vec<WriteStep>,
) -> ObjectStates {
    let (at, units) = (write.extent(), place.units(write.extent()));
    let whole = |unit: u32| place.image_of(&(unit..unit + 1), at);
    let is_data = |unit: u32| states.get(unit) == State::Data;
    let start = if is_data(units.start) { at.offset() } else { whole(units.start).offset() };
    let end = if is_data(units.end - 1) { at.end() } else { whole(units.end - 1).end() };
    let data = with_zeros_around(Extent::between(start, end), at, &write.data);
    steps.push(WriteStep::Write { offset: place.offset(start), data });
    if units.clone().all(is_data) {
        return states.clone();
    }
    states.with(units, State::Data, place.units_of_object())
}

fn with_zeros_around(all: Extent, at: Extent, data: &Bytes) -> Bytes {
    if all == at {
        return data.clone();
    }
    let mut bytes = BytesMut::zeroed(all.len_usize());
    bytes[all.range_of(&at)].copy_from_slice(data);
    bytes.freeze()
}

/// Whether bytes of so many in an object's beginning, from `offset` on, hold all of the data that the states promise.
pub fn is_whole(place: &Place, states: &ObjectStates, at: Extent, read: u64) -> bool {
    let ObjectStates::Map(_) = states else { return true };
    let units: Range<u32> = place.units(at);
    let end = at.offset() + read;
    states
        .runs(units)
        .filter(|(_, state)| *state == State::Data)
        .all(|(run, _)| place.image_of(&run, at).intersect(&at).end() <= end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vellum_core::Geometry;
    use vellum_engine::{Durability, Part};

    use super::*;

    const UNIT: u64 = 512;
    const UNITS: u32 = 8;
    const SIZE: u64 = 7 * UNIT + 100;

    fn place() -> Place {
        Place::new(Geometry::unstriped(4096).unwrap(), SIZE, UNIT)
    }

    fn write_of(offset: u64, length: u64, byte: u8) -> Write {
        let data = Bytes::from(vec![byte; length as usize]);
        Write { offset, data, guard: Guard::Edges, durability: Durability::AtSync }
    }

    #[test]
    fn the_first_write_of_a_unit_is_one_step_and_says_its_states() {
        let (place, absent) = (place(), ObjectStates::Absent);
        let plan = write(&place, &absent, &write_of(UNIT, UNIT, 7));
        let Plan::Change(steps, after) = &plan else { panic!("{plan:?}") };
        let data = Bytes::from(vec![7; UNIT as usize]);
        assert_eq!(steps[..], [WriteStep::Write { offset: UNIT, data }]);
        let op = plan.operation(&place, &absent);
        assert_eq!(op.steps[0], WriteStep::Create { exclusive: true });
        assert!(op.check().is_ok());
        // Known data is written without a look at the states.
        let again = write(&place, after, &write_of(UNIT + 1, 5, 8));
        assert!(matches!(&again, Plan::Write(steps) if steps.len() == 1), "{again:?}");
        let next = write(&place, after, &write_of(2 * UNIT, UNIT, 9)).operation(&place, after);
        assert!(matches!(next.steps[0], WriteStep::CompareXattr { .. }));
    }

    #[test]
    fn what_lies_behind_a_new_end_is_zero_and_what_is_inherited_stays_so() {
        let (place, end) = (place(), 2 * UNIT + 100);
        let states = ObjectStates::Absent.with(1..5, State::Data, UNITS);
        let Plan::Change(steps, after) = trim(&place, &states, end) else { panic!() };
        let data = Bytes::from(vec![0; UNIT as usize - 100]);
        let rest = WriteStep::Write { offset: end, data };
        let behind = WriteStep::Zero { offset: 3 * UNIT, length: 2 * UNIT };
        assert_eq!(steps, [rest.clone(), behind]);
        let expected = states.with(3..5, State::Zero, UNITS);
        assert_eq!(after, expected);
        assert_eq!(trim(&place, &after, end), Plan::Write(vec![rest.clone()]));
        assert_eq!(trim(&place, &after, 3 * UNIT), Plan::Nothing);
        assert_eq!(trim(&place, &ObjectStates::Absent, end), Plan::Nothing);
        assert_eq!(extend(&place, &after, end), Plan::Write(vec![rest]));
        for whole in [0, 3 * UNIT, 3 * UNIT + 100] {
            assert_eq!(extend(&place, &after, whole), Plan::Nothing, "{whole}");
        }
    }

    /// An object and its image as plain bytes: of each byte, what it reads as, if it is defined.
    #[derive(Clone)]
    struct Model {
        object: Vec<u8>,
        states: ObjectStates,
        image: Vec<Option<u8>>,
    }

    impl Model {
        fn carry_out(&mut self, plan: &Plan) {
            let (Plan::Write(steps) | Plan::Change(steps, _)) = plan else { return };
            for step in steps {
                match step {
                    WriteStep::Write { offset, data } => {
                        let end = *offset as usize + data.len();
                        self.object.resize(self.object.len().max(end), 0xdd);
                        self.object[*offset as usize..end].copy_from_slice(data);
                    }
                    WriteStep::Zero { offset, length } => {
                        assert!(*length > 0, "a range of no bytes is not sent");
                        let end = ((offset + length) as usize).min(self.object.len());
                        // What is undefined may be anything.
                        self.object[(*offset as usize).min(end)..end].fill(0xdd);
                    }
                    other => panic!("{other:?}"),
                }
            }
            if let Plan::Change(_, after) = plan {
                self.states = after.clone();
            }
        }

        fn check(&self) -> Result<(), TestCaseError> {
            for (offset, expected) in self.image.iter().enumerate() {
                let found = match self.states.get(offset as u32 / UNIT as u32) {
                    State::Inherited => None,
                    State::Zero => Some(0),
                    State::Data => Some(self.object[offset]),
                };
                prop_assert_eq!(found, *expected, "at {}", offset);
            }
            Ok(())
        }

        fn units(&self, first: u32, count: u32) -> Extent {
            Extent::new(u64::from(first) * UNIT, u64::from(count) * UNIT).clip(SIZE)
        }

        fn put(&mut self, at: Extent, byte: Option<u8>, only_inherited: bool) {
            for slot in &mut self.image[at.offset() as usize..at.end() as usize] {
                if !only_inherited || slot.is_none() {
                    *slot = byte;
                }
            }
        }

        /// Whether a write there would leave a unit defined in part.
        fn lacks(&self, at: Extent) -> bool {
            let around = place().around(at);
            let edges =
                [at.split(at.offset()).0, around.split(at.offset()).0, around.split(at.end()).1];
            edges.iter().any(|edge| {
                let bytes = &self.image[edge.offset() as usize..edge.end() as usize];
                bytes.iter().any(Option::is_none)
            })
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, u64, u8),
        Fill(u32, u32, Option<u8>, Option<(u64, u64, u8)>),
        Set(u32, u32, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        let bytes = (0..SIZE, 1..3 * UNIT, 1..=250_u8);
        let units = (0..UNITS, 1..4_u32);
        prop_oneof![
            bytes.clone().prop_map(|(offset, length, byte)| Step::Write(offset, length, byte)),
            (units.clone(), prop::option::of(1..=250_u8), prop::option::of(bytes))
                .prop_map(|((first, count), byte, then)| Step::Fill(first, count, byte, then)),
            (units, any::<bool>()).prop_map(|((first, count), zero)| Step::Set(first, count, zero)),
        ]
    }

    fn clipped(offset: u64, length: u64, byte: u8) -> Write {
        write_of(offset, length.min(SIZE - offset), byte)
    }

    proptest! {
        #[test]
        fn an_object_is_what_a_model_of_single_bytes_is(steps in prop::collection::vec(step(), 1..30)) {
            let place = place();
            let image = vec![None; SIZE as usize];
            let mut model = Model { object: Vec::new(), states: ObjectStates::Absent, image };
            for step in steps {
                let plan = match step {
                    Step::Write(offset, length, byte) => {
                        let wanted = clipped(offset, length, byte);
                        let plan = write(&place, &model.states, &wanted);
                        let lacks = model.lacks(wanted.extent());
                        prop_assert_eq!(matches!(plan, Plan::Missing(_)), lacks);
                        if !lacks {
                            model.put(wanted.extent(), Some(byte), false);
                        }
                        plan
                    }
                    Step::Fill(first, count, byte, then) => {
                        let at = model.units(first, count);
                        if at.is_empty() {
                            continue;
                        }
                        let content = match byte {
                            None => Content::Zero,
                            Some(byte) => Content::Data(vec![byte; at.len_usize()].into()),
                        };
                        let then = then.map(|(offset, length, byte)| clipped(offset, length, byte));
                        let wanted = Fill { parts: vec![Part { at, content }], then: then.clone() };
                        let plan = fill(&place, &model.states, &wanted);
                        let mut filled = model.clone();
                        filled.put(at, Some(byte.unwrap_or(0)), true);
                        let lacks = then.as_ref().is_some_and(|write| filled.lacks(write.extent()));
                        prop_assert_eq!(matches!(plan, Plan::Missing(_)), lacks);
                        if !lacks {
                            model.put(at, Some(byte.unwrap_or(0)), true);
                            if let Some(write) = then {
                                model.put(write.extent(), Some(write.data[0]), false);
                            }
                        }
                        plan
                    }
                    Step::Set(first, count, zero) => {
                        let at = model.units(first, count);
                        if at.is_empty() {
                            continue;
                        }
                        let to = if zero { SetTo::Zero } else { SetTo::Inherit };
                        model.put(at, zero.then_some(0), false);
                        set(&place, &model.states, at, to)
                    }
                };
                prop_assert!(plan.operation(&place, &model.states).check().is_ok());
                model.carry_out(&plan);
                model.check()?;
                let all = Extent::new(0, SIZE);
                prop_assert!(is_whole(&place, &model.states, all, model.object.len() as u64));
            }
        }
    }
}
