//! Mutations of a layer: guarded write, fill, zero, inherit.
//!
//! Each goes the same way, with the units it touches held from the first step to the last:
//!
//! 1. Look at the states, and refuse or plan.
//! 2. Make sure that the pages of the map are whole which will change.
//! 3. Write the data.
//! 4. Only then change states in memory; a unit that is not data is written whole, since what its file holds is undefined.
//! 5. Append the change to the live log. Now it survives the death of the process, and is acknowledged.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use vellum_core::{Extent, Runs, State, zeros_for};
use vellum_disk::Disk;
use vellum_engine::{
    Content, Durability, Error, ErrorKind, Fill, Guard, Guarded, Missing, Result, SetTo, Write,
    check_range, check_whole_units,
};

use crate::canary::Canary;
use crate::format::live::Record;
use crate::layer::{Inner, LocalLayer};
use crate::log::{Appended, Log};
use crate::segment::extent_of;

/// Extents whose space is still to be freed; more are forgotten, and leak until somebody checks.
const FREEABLE_MAX: usize = 1 << 16;
/// So many units of data that become zeros at once change their state; fewer stay data, and are holes.
const SHOWN_ZEROS: u64 = 256;

/// A write of data to the file, with zeros around it where a unit is written whole.
struct DataWrite {
    offset: u64,
    parts: Vec<Bytes>,
}

impl DataWrite {
    fn extent(&self) -> Extent {
        extent_of(self.offset, &self.parts)
    }
}

/// Why a layer is synced though nobody asked for it.
#[derive(Clone, Copy)]
enum Why {
    /// Something was written a while ago.
    Clock,
    /// A log or the memory for changed pages is filling up.
    Pressure,
}

/// What a mutation is going to do. That of a small write needs no memory of its own.
#[derive(Default)]
struct Plan {
    writes: SmallVec<[DataWrite; 1]>,
    changes: SmallVec<[(Extent, State); 2]>,
}

impl<D: Disk> LocalLayer<D> {
    /// See [`Head::write`](vellum_engine::Head::write). The future must run to its end.
    pub(crate) async fn write(&self, write: Write) -> Result<Guarded> {
        let inner = &self.0;
        let _under_way = inner.mutations.read().await;
        if inner.role.sealed.load(Ordering::Acquire) {
            return Ok(Guarded::Sealed);
        }
        inner.check_poison().await?;
        let at = inner.check_range(write.extent())?;
        let units = inner.units.around(at);
        let _held = inner.ranges.lock(units).await;
        let states = inner.states_of(units).await?;
        let missing = inner.missing(&states, at, write.guard);
        if !missing.is_empty() {
            return Ok(Guarded::Missing(missing));
        }
        let mut plan = Plan::default();
        inner.plan_write(&mut plan, &states, at, write.data);
        self.carry_out(plan, write.durability).await?;
        Ok(Guarded::Done)
    }

    /// See [`Head::fill`](vellum_engine::Head::fill). The future must run to its end.
    pub(crate) async fn fill(&self, fill: Fill) -> Result<Guarded> {
        let inner = &self.0;
        let _under_way = inner.mutations.read().await;
        let sealed = inner.role.sealed.load(Ordering::Acquire);
        if sealed && (fill.then.is_some() || !inner.role.fillable.load(Ordering::Acquire)) {
            return Ok(Guarded::Sealed);
        }
        inner.check_poison().await?;
        let Some(hull) = inner.check_fill(&fill)? else { return Ok(Guarded::Done) };
        let _held = inner.ranges.lock(hull).await;
        let durability = fill.then.as_ref().map_or(Durability::AtSync, |write| write.durability);
        let mut plan = Plan::default();
        // The write lies over what is filled, so its own units are decided first, by the states they will have.
        let over = match &fill.then {
            None => Extent::default(),
            Some(write) => {
                let at = write.extent();
                let units = inner.units.around(at);
                let states = inner.states_after(&fill, units).await?;
                let missing = inner.missing(&states, at, Guard::Edges);
                if !missing.is_empty() {
                    return Ok(Guarded::Missing(missing));
                }
                inner.plan_write(&mut plan, &states, at, write.data.clone());
                units
            }
        };
        let written_last = std::mem::take(&mut plan.writes);
        inner.plan_parts(&mut plan, &fill, over).await?;
        plan.writes.extend(written_last);
        self.carry_out(plan, durability).await?;
        Ok(Guarded::Done)
    }

    /// See [`Head::set`](vellum_engine::Head::set). The future must run to its end.
    pub(crate) async fn set(
        &self,
        at: Extent,
        to: SetTo,
        durability: Durability,
    ) -> Result<Guarded> {
        let inner = &self.0;
        inner.check_whole_units(at)?;
        let to = if inner.shared.makes(Canary::InheritForZero) { SetTo::Inherit } else { to };
        // A page at a time, so that a large range neither holds up all writers nor collects without bound.
        let mut is_begun = false;
        for (page, piece) in inner.units.by_page(at) {
            let set = self.set_in_page(page, piece, to).await;
            match set.map_err(|error| maybe_done_if(is_begun, error))? {
                Guarded::Done => is_begun = true,
                refused => return Ok(refused),
            }
        }
        if durability == Durability::Durable {
            self.sync().await.map_err(Error::maybe_done)?;
        }
        Ok(Guarded::Done)
    }

    /// Sets units of one page.
    async fn set_in_page(&self, page: u64, piece: Extent, to: SetTo) -> Result<Guarded> {
        let inner = &self.0;
        let _under_way = inner.mutations.read().await;
        if inner.role.sealed.load(Ordering::Acquire) {
            return Ok(Guarded::Sealed);
        }
        inner.check_poison().await?;
        if to == SetTo::Inherit && !inner.pages.is_present(page) {
            return Ok(Guarded::Done);
        }
        let _held = inner.ranges.lock(piece).await;
        match to {
            SetTo::Zero => self.set_zero(piece).await?,
            SetTo::Inherit => self.set_inherit(piece).await?,
        }
        Ok(Guarded::Done)
    }

    /// Zeros punch at once: under data a hole is the new content, and the state need not change. It does where many units in a row
    /// become zero, so that whoever asks for the map sees what can be skipped; a record for each small one would cost more than
    /// it tells. On a full disk that is left out: the space is free by then, and the content what it must be.
    async fn set_zero(&self, piece: Extent) -> Result<()> {
        let inner = &self.0;
        let states = inner.states_of(piece).await?;
        let shows = piece.length() >= SHOWN_ZEROS * inner.units.block
            || piece == Extent::new(0, inner.facts.size);
        let punches = states.iter().any(|run| run.state == State::Data);
        let zeroed = self.zero_runs(&states, shows).await;
        // What was punched reads as zeros, whatever fails afterwards.
        zeroed.map_err(|error| maybe_done_if(punches, error))
    }

    /// Zeros runs, and shows it in the states of those that are data if that is wanted.
    async fn zero_runs(&self, states: &Runs, shows: bool) -> Result<()> {
        let inner = &self.0;
        let (mut hidden, mut shown) = (Plan::default(), Plan::default());
        for run in states {
            match run.state {
                State::Data => {
                    inner.segments.punch(run.extent).await?;
                    self.note_unsynced(run.extent.length());
                    if shows {
                        shown.changes.push((run.extent, State::Zero));
                    }
                }
                State::Inherited => hidden.changes.push((run.extent, State::Zero)),
                State::Zero => {}
            }
        }
        self.carry_out(hidden, Durability::AtSync).await?;
        match self.carry_out(shown, Durability::AtSync).await {
            Err(error) if error.kind() == ErrorKind::NoSpace => Ok(()),
            result => result,
        }
    }

    async fn set_inherit(&self, piece: Extent) -> Result<()> {
        let inner = &self.0;
        let states = inner.states_of(piece).await?;
        let defined: Vec<_> = states.iter().filter(|run| run.state.is_defined()).collect();
        let plan = Plan {
            writes: SmallVec::new(),
            changes: defined.iter().map(|run| (run.extent, State::Inherited)).collect(),
        };
        self.carry_out(plan, Durability::AtSync).await?;
        let mut freeable = inner.freeable.lock();
        let data = defined.iter().filter(|run| run.state == State::Data).map(|run| run.extent);
        let room = FREEABLE_MAX - freeable.len().min(FREEABLE_MAX);
        freeable.extend(data.take(room));
        Ok(())
    }

    /// See [`Head::reclaim`](vellum_engine::Head::reclaim). The future must run to its end.
    pub(crate) async fn reclaim(&self) -> Result<u64> {
        let inner = &self.0;
        let extents = std::mem::take(&mut *inner.freeable.lock());
        if extents.is_empty() {
            return Ok(0);
        }
        // Durable first: after a power cut the units could be data again, and must find it.
        self.sync().await?;
        let _under_way = inner.mutations.read().await;
        // The files are another owner's by now, or what they hold is a snapshot's.
        if inner.role.sealed.load(Ordering::Acquire) {
            return Ok(0);
        }
        inner.check_poison().await?;
        let mut freed = 0;
        for extent in extents {
            let _held = inner.ranges.lock(extent).await;
            for inherited in inner.states_of(extent).await?.in_state(State::Inherited) {
                if !inner.pages.are_durable(inherited) {
                    // Inherited once more, after it was data again for a while: the next time.
                    inner.freeable.lock().push(inherited);
                    continue;
                }
                inner.segments.punch(inherited).await?;
                freed += inherited.length();
            }
        }
        Ok(freed)
    }

    /// Steps two to five.
    async fn carry_out(&self, plan: Plan, durability: Durability) -> Result<()> {
        let inner = &self.0;
        // What is boxed here and below happens rarely, and would make the future of every write larger.
        if inner.map.get().is_none() && (!plan.writes.is_empty() || !plan.changes.is_empty()) {
            Box::pin(inner.create_files()).await?;
        }
        inner.make_pages_whole(&plan.changes).await?;
        // Before any data: a log for which there is no room fails the write while nothing has happened yet.
        let log = if plan.changes.is_empty() { None } else { Some(inner.live_log().await?) };
        // Where the states are on the medium and stay, data that is durable by itself is all there is to a durable write.
        let by_itself = durability == Durability::Durable && inner.states_are_durable(&plan);
        for write in plan.writes {
            let length = write.extent().length();
            if by_itself {
                self.write_durably(write).await?;
            } else {
                inner.segments.write(write.offset, write.parts).await?;
                self.note_unsynced(length);
            }
        }
        if let Some(log) = log {
            inner.change(&plan.changes).await.map_err(Error::maybe_done)?;
            self.log_changes(log, &plan.changes).await.map_err(Error::maybe_done)?;
        }
        if durability == Durability::Durable && !by_itself {
            Box::pin(self.sync()).await.map_err(Error::maybe_done)?;
        }
        Ok(())
    }

    /// Writes twice: first to the page cache, where a full disk shows and harms nothing; then through it. Should that fail,
    /// the kernel has reported an error that may be of any write before, and will not report it again: as after a failed sync
    /// of the file, nothing that was not synced can be counted on.
    async fn write_durably(&self, write: DataWrite) -> Result<()> {
        let segments = &self.0.segments;
        segments.write(write.offset, write.parts.clone()).await?;
        match segments.write_through(write.offset, write.parts).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.0.poison("write through to the data", error).await),
        }
    }

    async fn log_changes(&self, mut log: Log<D::File>, changes: &[(Extent, State)]) -> Result<()> {
        let records = changes.iter().flat_map(|(at, state)| self.0.records(*at, *state));
        let records: SmallVec<[Record; 2]> = records.collect();
        loop {
            match log.append(&records).await? {
                Appended::Done => break,
                Appended::Full => return Box::pin(self.sync()).await,
                Appended::Retired => log = self.0.live_log().await?,
            }
        }
        let (changed, most) = (self.0.pages.changes(), self.0.shared.options.changed_pages_max);
        if changed > 2 * most {
            // Whoever changes pages faster than they can be synced waits for it, lest they fill the memory.
            return Box::pin(self.sync()).await;
        }
        if log.is_filling_up() || changed > most {
            self.sync_soon(Why::Pressure);
        } else {
            self.sync_soon(Why::Clock);
        }
        Ok(())
    }

    fn note_unsynced(&self, bytes: u64) {
        self.0.unsynced_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.sync_soon(Why::Clock);
    }

    /// Syncs after a while, if the layer is still open then; does nothing if a sync is on its way for the same reason.
    fn sync_soon(&self, why: Why) {
        let on_its_way = &self.0.sync_on_its_way[why as usize];
        // Looked at first, since all writers share its cache line.
        if on_its_way.load(Ordering::Acquire) || on_its_way.swap(true, Ordering::AcqRel) {
            return;
        }
        let after = match why {
            Why::Clock => self.0.shared.options.sync_interval,
            Why::Pressure => Duration::ZERO,
        };
        let layer = std::sync::Arc::downgrade(&self.0);
        self.0.shared.runtime.spawn(async move {
            tokio::time::sleep(after).await;
            if let Some(layer) = layer.upgrade() {
                layer.sync_on_its_way[why as usize].store(false, Ordering::Release);
                // A failure poisons the layer, and whoever writes or syncs next is told.
                let _ = LocalLayer(layer).sync().await;
            }
        });
    }
}

impl<D: Disk> Inner<D> {
    fn check_range(&self, at: Extent) -> Result<Extent> {
        check_range(at, self.facts.size).map(|()| at)
    }

    fn check_whole_units(&self, at: Extent) -> Result<()> {
        check_whole_units(at, self.facts.size, self.units.block)
    }

    /// All units that a fill touches; `None` if there are none.
    fn check_fill(&self, fill: &Fill) -> Result<Option<Extent>> {
        fill.check_parts(|at| self.check_whole_units(at))?;
        let written = match &fill.then {
            Some(write) => Some(self.units.around(self.check_range(write.extent())?)),
            None => None,
        };
        let touched = [fill.parts.first(), fill.parts.last()].into_iter().flatten();
        let touched = touched.map(|part| part.at).chain(written);
        Ok(touched.reduce(|hull, at| {
            Extent::between(hull.offset().min(at.offset()), hull.end().max(at.end()))
        }))
    }

    /// The inherited units that stand in the way of a write.
    fn missing(&self, states: &Runs, at: Extent, guard: Guard) -> Missing {
        let mut missing = Missing::new();
        for inherited in states.in_state(State::Inherited) {
            match guard {
                Guard::All => missing.push(inherited),
                Guard::Edges => {
                    for edge in [at.offset(), at.end() - 1] {
                        let unit = self.units.around(Extent::new(edge, 1));
                        if inherited.contains(&unit)
                            && !at.contains(&unit)
                            && missing.last() != Some(&unit)
                        {
                            missing.push(unit);
                        }
                    }
                }
            }
        }
        merge_neighbours(missing)
    }

    /// Plans a write over units of these states, none of which stands in the way.
    fn plan_write(&self, plan: &mut Plan, states: &Runs, at: Extent, data: Bytes) {
        let (mut start, mut end) = (at.offset(), at.end());
        for run in states.iter().filter(|run| run.state != State::Data) {
            plan.changes.push((run.extent, State::Data));
            // A unit that becomes data is written whole.
            if run.extent.contains(&Extent::new(at.offset(), 1)) {
                start = self.units.around(Extent::new(at.offset(), 1)).offset();
            }
            if run.extent.contains(&Extent::new(at.end() - 1, 1)) {
                end = self.units.around(Extent::new(at.end() - 1, 1)).end();
            }
        }
        // The largest block is 1 MiB, so padding is shorter.
        let zeros = |from: u64, to: u64| zeros_for(from, (to - from) as usize);
        let parts = [zeros(start, at.offset()), data, zeros(at.end(), end)];
        let parts = parts.into_iter().filter(|part| !part.is_empty()).collect();
        plan.writes.push(DataWrite { offset: start, parts });
    }

    /// The states that units will have once the parts of a fill are in place.
    async fn states_after(&self, fill: &Fill, units: Extent) -> Result<Runs> {
        let mut after = Runs::new();
        for run in &self.states_of(units).await? {
            let mut rest = run.extent;
            for part in fill.parts.iter().filter(|_| run.state == State::Inherited) {
                let filled = rest.intersect(&part.at);
                if filled.is_empty() {
                    continue;
                }
                after.push(rest.clip(filled.offset()), run.state);
                let state = match part.content {
                    Content::Data(_) => State::Data,
                    Content::Zero => State::Zero,
                };
                after.push(filled, state);
                rest = rest.split(filled.end()).1;
            }
            after.push(rest, run.state);
        }
        Ok(after)
    }

    /// Plans what a fill does to inherited units; those in `over` get their state from the write that lies over them.
    async fn plan_parts(&self, plan: &mut Plan, fill: &Fill, over: Extent) -> Result<()> {
        let decided = std::mem::take(&mut plan.changes);
        for part in &fill.parts {
            let states = self.states_of(part.at).await?;
            let overwrites = self.shared.makes(Canary::FillOverwrites);
            let free = states.iter().filter(|run| overwrites || run.state == State::Inherited);
            for inherited in free.map(|run| run.extent) {
                let state = match &part.content {
                    Content::Zero => State::Zero,
                    Content::Data(data) => {
                        let parts = vec![data.slice(part.at.range_of(&inherited))];
                        plan.writes.push(DataWrite { offset: inherited.offset(), parts });
                        State::Data
                    }
                };
                // Zeros under the write have no state of their own; data does, whoever wrote over it.
                let outside = state == State::Zero && !over.is_empty();
                let (before, rest) = if outside {
                    inherited.split(over.offset())
                } else {
                    (inherited, Extent::default())
                };
                let after = if outside { rest.split(over.end()).1 } else { rest };
                plan.changes.extend(
                    [before, after].into_iter().filter(|at| !at.is_empty()).map(|at| (at, state)),
                );
            }
        }
        plan.changes.extend(decided);
        Ok(())
    }

    /// Whether a power cut finds the states that a plan leaves.
    fn states_are_durable(&self, plan: &Plan) -> bool {
        plan.changes.is_empty()
            && plan.writes.iter().all(|write| self.pages.are_durable(write.extent()))
    }

    /// Makes the pages of some units ready for states.
    async fn make_pages_whole(&self, changes: &[(Extent, State)]) -> Result<()> {
        for (at, _) in changes {
            for (page, _) in self.units.by_page(*at) {
                if !self.pages.is_ready(page) {
                    Box::pin(self.make_whole(page)).await?;
                }
            }
        }
        Ok(())
    }

    /// Changes states in memory, of units whose pages exist.
    pub(crate) async fn change(&self, changes: &[(Extent, State)]) -> Result<()> {
        while let Err(page) = self.pages.change(changes) {
            Box::pin(self.page(page)).await?;
        }
        Ok(())
    }

    /// A change as records: one, unless it covers more units than fit into one.
    fn records(&self, at: Extent, state: State) -> impl Iterator<Item = Record> + use<D> {
        let (first, end) = self.units.span(at);
        Extent::between(first, end).chunks(1 << 31).map(move |units| Record {
            first_unit: units.offset(),
            units: units.length() as u32,
            state,
        })
    }
}

/// An error of something that has several steps, of which some were made already.
fn maybe_done_if(is_begun: bool, error: Error) -> Error {
    if is_begun { error.maybe_done() } else { error }
}

fn merge_neighbours(units: Missing) -> Missing {
    let mut merged = Missing::new();
    for unit in units {
        match merged.last_mut() {
            Some(last) if last.end() == unit.offset() => {
                *last = Extent::between(last.offset(), unit.end());
            }
            _ => merged.push(unit),
        }
    }
    merged
}
