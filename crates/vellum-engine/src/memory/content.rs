//! [`Content`]: what a revision defines, unit by unit. A plain value that knows nothing of locks, owners or durability.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use vellum_core::{Extent, Runs, State};

use crate::{Content as Filling, Fill, Guard, Missing};

/// The units of an image: how long they are, and where the last one ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Units {
    pub size: u64,
    pub unit: u64,
}

impl Units {
    /// The whole units that an extent touches, clipped to the size of the image.
    pub fn around(&self, at: Extent) -> Extent {
        at.align_out(self.unit).clip(self.size)
    }

    fn each(&self, at: Extent) -> impl Iterator<Item = Extent> + use<> {
        self.around(at).chunks(self.unit)
    }
}

/// States and data.
///
/// Invariants: a unit in state data has its bytes in `data`, as many as it is long. `unreclaimed` holds offsets of units
/// that were set to inherited and whose bytes are still in `data`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    /// From each offset on, until the next, units have this state; before the first they are inherited.
    states: BTreeMap<u64, State>,
    /// The bytes of units, by the offset of the unit.
    data: BTreeMap<u64, Bytes>,
    unreclaimed: BTreeSet<u64>,
}

impl Content {
    fn state_at(&self, offset: u64) -> State {
        self.states.range(..=offset).next_back().map_or(State::Inherited, |(_, state)| *state)
    }

    /// Appends the states of `at` to `out`, as long as that has no more than `runs_max` runs.
    pub fn states(&self, at: Extent, runs_max: usize, out: &mut Runs) {
        let mut from = at.offset();
        let mut state = self.state_at(from);
        let changes = self.states.range(from + 1..at.end().max(from + 1));
        for (offset, next) in changes.map(|(offset, next)| (*offset, *next)) {
            if next != state {
                if out.len() == runs_max {
                    return;
                }
                out.push(Extent::between(from, offset), state);
                (from, state) = (offset, next);
            }
        }
        if out.len() < runs_max {
            out.push(Extent::between(from, at.end()), state);
        }
    }

    pub fn all_states(&self, at: Extent) -> Runs {
        let mut runs = Runs::new();
        self.states(at, usize::MAX, &mut runs);
        runs
    }

    /// Fills `buffer`, which is as long as `at`, and says with what.
    pub fn read(&self, units: Units, at: Extent, buffer: &mut [u8]) -> Runs {
        let runs = self.all_states(at);
        for run in &runs {
            match run.state {
                State::Inherited => {}
                State::Zero => buffer[at.range_of(&run.extent)].fill(0),
                State::Data => {
                    for unit in units.each(run.extent) {
                        let part = unit.intersect(&run.extent);
                        let bytes = &self.data[&unit.offset()][unit.range_of(&part)];
                        buffer[at.range_of(&part)].copy_from_slice(bytes);
                    }
                }
            }
        }
        runs
    }

    /// The units that stand in the way of a write to `at`.
    pub fn missing(&self, units: Units, at: Extent, guard: Guard) -> Missing {
        self.missing_beside(units, at, guard, |_| false)
    }

    /// The units that stand in the way of the write of a fill: what it covers partly, and no part defines.
    pub fn missing_for(&self, units: Units, fill: &Fill) -> Missing {
        let Some(write) = &fill.then else { return Missing::new() };
        let filled = |unit: &Extent| fill.parts.iter().any(|part| part.at.contains(unit));
        self.missing_beside(units, write.extent(), Guard::Edges, filled)
    }

    fn missing_beside(
        &self,
        units: Units,
        at: Extent,
        guard: Guard,
        defined_otherwise: impl Fn(&Extent) -> bool,
    ) -> Missing {
        let mut missing = Missing::new();
        for unit in units.each(at) {
            let needed = guard == Guard::All || !at.contains(&unit);
            if !needed || self.state_at(unit.offset()).is_defined() || defined_otherwise(&unit) {
                continue;
            }
            match missing.last_mut() {
                Some(last) if last.end() == unit.offset() => {
                    *last = Extent::between(last.offset(), unit.end());
                }
                _ => missing.push(unit),
            }
        }
        missing
    }

    /// Whether a unit that `at` touches holds no data yet.
    pub fn lacks_data(&self, units: Units, at: Extent) -> bool {
        !self.all_states(units.around(at)).all(State::Data)
    }

    /// Whether a fill would make data of a unit.
    pub fn fill_needs_space(&self, units: Units, fill: &Fill) -> bool {
        let written =
            fill.then.as_ref().is_some_and(|write| self.lacks_data(units, write.extent()));
        written
            || fill.parts.iter().any(|part| {
                matches!(part.content, Filling::Data(_))
                    && self.all_states(part.at).any(State::Inherited)
            })
    }

    /// Writes; what a unit that was not data holds beside it becomes zeros.
    pub fn write(&mut self, units: Units, at: Extent, bytes: &[u8]) {
        for unit in units.each(at) {
            let part = unit.intersect(&at);
            let mut whole = match self.state_at(unit.offset()) {
                State::Data => BytesMut::from(&self.data[&unit.offset()][..]),
                State::Zero | State::Inherited => BytesMut::zeroed(unit.len_usize()),
            };
            whole[unit.range_of(&part)].copy_from_slice(&bytes[at.range_of(&part)]);
            self.data.insert(unit.offset(), whole.freeze());
            self.unreclaimed.remove(&unit.offset());
        }
        self.set_state(units.around(at), State::Data);
    }

    /// Defines the inherited units among the parts, then applies the write.
    pub fn fill(&mut self, units: Units, fill: &Fill) {
        for part in &fill.parts {
            for inherited in self.all_states(part.at).in_state(State::Inherited) {
                match &part.content {
                    Filling::Data(data) => {
                        self.write(units, inherited, &data[part.at.range_of(&inherited)]);
                    }
                    Filling::Zero => self.set_zero(inherited),
                }
            }
        }
        if let Some(write) = &fill.then {
            self.write(units, write.extent(), &write.data);
        }
    }

    /// Makes units zero and frees their bytes at once.
    pub fn set_zero(&mut self, at: Extent) {
        for offset in self.data_offsets(at) {
            self.data.remove(&offset);
            self.unreclaimed.remove(&offset);
        }
        self.set_state(at, State::Zero);
    }

    /// Makes units inherited. Their bytes stay until [`reclaim`](Self::reclaim).
    pub fn set_inherit(&mut self, at: Extent) {
        let offsets = self.data_offsets(at);
        self.unreclaimed.extend(offsets);
        self.set_state(at, State::Inherited);
    }

    /// Frees the bytes of units that were set to inherited, and says how many.
    pub fn reclaim(&mut self) -> u64 {
        let offsets = std::mem::take(&mut self.unreclaimed);
        offsets.iter().filter_map(|offset| self.data.remove(offset)).map(|d| d.len() as u64).sum()
    }

    pub fn wants_reclaim(&self) -> bool {
        !self.unreclaimed.is_empty()
    }

    /// What it takes to keep all this, in bytes.
    pub fn stored_bytes(&self) -> u64 {
        let per_entry = (size_of::<u64>() + size_of::<State>()) as u64;
        let data: u64 = self.data.values().map(|bytes| bytes.len() as u64).sum();
        data + self.states.len() as u64 * per_entry
    }

    fn data_offsets(&self, at: Extent) -> Vec<u64> {
        self.data.range(at.offset()..at.end()).map(|(offset, _)| *offset).collect()
    }

    fn set_state(&mut self, at: Extent, state: State) {
        let after = self.state_at(at.end());
        let inside: Vec<u64> =
            self.states.range(at.offset()..=at.end()).map(|(offset, _)| *offset).collect();
        for offset in inside {
            self.states.remove(&offset);
        }
        // Only where it changes, so that what was written in order takes no more room than what was written at once.
        if self.state_at(at.offset()) != state {
            self.states.insert(at.offset(), state);
        }
        if after != state {
            self.states.insert(at.end(), after);
        }
    }
}
