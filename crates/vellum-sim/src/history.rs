//! [`History`]: what each sector of an image may read as, by what was written to it and what was promised of that.
//!
//! Every change of a sector is a candidate for what it reads as. A candidate is out once another one is known to have come
//! after it: begun after it had ended, and itself ended. After a power cut only those that were durable count as having come.

use std::collections::BTreeMap;

use vellum_core::Extent;

use crate::SECTOR;

/// What a sector reads as.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Value {
    /// It falls through to the layer below.
    Inherited,
    /// It is filled with this number; 0 are zeros.
    Holds(u64),
}

/// Names a change that began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChangeId(u64);

#[derive(Clone, Copy, Debug)]
struct Candidate {
    began: u64,
    /// `None` while it is under way, and for good if a crash left it so.
    ended: Option<u64>,
    durable: bool,
    /// Whether it only changes what is inherited.
    fills: bool,
    value: Value,
}

/// Candidates by sector, and a clock that counts.
#[derive(Clone, Debug)]
pub struct History {
    now: u64,
    /// What ended before this is durable.
    synced: u64,
    sectors: BTreeMap<u64, Vec<Candidate>>,
}

impl Default for History {
    fn default() -> Self {
        Self::new()
    }
}

impl History {
    /// Nothing was ever written: all sectors are inherited.
    pub fn new() -> Self {
        Self { now: 1, synced: 0, sectors: BTreeMap::new() }
    }

    /// The moment now; every one is later than the one before.
    pub fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    fn numbers(at: Extent) -> std::ops::Range<u64> {
        at.offset() / SECTOR as u64..at.end().div_ceil(SECTOR as u64)
    }

    fn candidates(&mut self, sector: u64) -> &mut Vec<Candidate> {
        self.sectors.entry(sector).or_insert_with(|| {
            vec![Candidate {
                began: 0,
                ended: Some(0),
                durable: true,
                fills: false,
                value: Value::Inherited,
            }]
        })
    }

    /// A change begins.
    pub fn begin(&mut self, at: Extent, value: Value, fills: bool) -> ChangeId {
        let began = self.tick();
        let candidate = Candidate { began, ended: None, durable: false, fills, value };
        for sector in Self::numbers(at) {
            self.candidates(sector).push(candidate);
        }
        ChangeId(began)
    }

    /// It was acknowledged.
    pub fn end(&mut self, at: Extent, change: ChangeId, durable: bool) {
        let ended = self.tick();
        for sector in Self::numbers(at) {
            let candidates = self.candidates(sector);
            for candidate in candidates.iter_mut().filter(|known| known.began == change.0) {
                (candidate.ended, candidate.durable) = (Some(ended), durable);
            }
        }
    }

    /// It was refused, and changed nothing.
    pub fn refused(&mut self, at: Extent, change: ChangeId) {
        for sector in Self::numbers(at) {
            self.candidates(sector).retain(|candidate| candidate.began != change.0);
        }
    }

    /// A sync that began at a moment has ended well.
    pub fn synced(&mut self, began: u64) {
        self.synced = self.synced.max(began);
    }

    /// Whether a sector may read as this, by whoever began to read at a moment.
    pub fn allows(&self, sector: u64, value: Value, reading_since: u64) -> bool {
        self.allowed_since(sector, reading_since).contains(&value)
    }

    /// What whoever began to read at a moment may find.
    pub fn allowed_since(&self, sector: u64, reading_since: u64) -> Vec<Value> {
        self.allowed(sector, |later| later.ended.is_some_and(|ended| ended < reading_since))
    }

    /// What a sector may read as now.
    pub fn allowed_now(&self, sector: u64) -> Vec<Value> {
        self.allowed(sector, |later| later.ended.is_some())
    }

    /// What a sector may read as after a power cut.
    pub fn allowed_after_power_cut(&self, sector: u64) -> Vec<Value> {
        let candidates = self.sectors.get(&sector).map_or(&[][..], Vec::as_slice);
        self.allowed(sector, |later| {
            // A durable fill says nothing of what it found to be defined already.
            let durable = later.durable && (!later.fills || surely_filled(candidates, later));
            later.ended.is_some_and(|ended| durable || ended < self.synced)
        })
    }

    /// What a sector may read as, given which changes are known to have come.
    fn allowed(&self, sector: u64, came: impl Fn(&Candidate) -> bool) -> Vec<Value> {
        let Some(candidates) = self.sectors.get(&sector) else { return vec![Value::Inherited] };
        let is_out = |candidate: &Candidate| {
            candidates.iter().any(|later| {
                let after = candidate.ended.is_some_and(|ended| ended < later.began);
                let replaces = !later.fills || candidate.value == Value::Inherited;
                after && replaces && came(later)
            })
        };
        let possible = |known: &&Candidate| !known.fills || found_something(candidates, known);
        let left = candidates.iter().filter(possible).filter(|known| !is_out(known));
        left.map(|known| known.value).collect()
    }

    /// Everything that is known of a sector.
    pub fn story(&self, sector: u64) -> String {
        format!("synced {}: {:?}", self.synced, self.sectors.get(&sector))
    }

    /// What was seen after the machine came back is what is there, durably.
    pub fn settle(&mut self, sector: u64, value: Value) {
        let candidate = Candidate {
            began: self.now,
            ended: Some(self.now),
            durable: true,
            fills: false,
            value,
        };
        self.sectors.insert(sector, vec![candidate]);
    }

    /// What was seen after the process came back is what is there; what a power cut would leave is another matter.
    pub fn see(&mut self, sector: u64, value: Value) {
        let now = self.now;
        self.candidates(sector).push(Candidate {
            began: now,
            ended: Some(now),
            durable: false,
            fills: false,
            value,
        });
    }
}

/// Whether the sector may have been inherited at some moment of a fill.
fn found_something(candidates: &[Candidate], fill: &Candidate) -> bool {
    candidates.iter().filter(|known| known.value == Value::Inherited).any(|inherited| {
        let defined_before = candidates.iter().any(|later| {
            later.value != Value::Inherited
                && inherited.ended.is_some_and(|ended| ended < later.began)
                && later.ended.is_some_and(|ended| ended < fill.began)
        });
        !defined_before && fill.ended.is_none_or(|ended| inherited.began < ended)
    })
}

/// Whether the sector was inherited at every moment of a fill, but for the fill itself.
fn surely_filled(candidates: &[Candidate], fill: &Candidate) -> bool {
    let cleared = candidates
        .iter()
        .filter(|known| known.value == Value::Inherited)
        .filter(|known| known.ended.is_some_and(|ended| ended < fill.began))
        .map(|known| known.began)
        .max();
    let others = candidates.iter().filter(|known| known.began != fill.began);
    cleared.is_some_and(|cleared| {
        others
            .filter(|known| known.value != Value::Inherited)
            .filter(|known| fill.ended.is_none_or(|ended| known.began < ended))
            .all(|known| known.ended.is_some_and(|ended| ended < cleared))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Extent = Extent::new(0, SECTOR as u64);
    const A: Value = Value::Holds(1);
    const B: Value = Value::Holds(2);

    fn written(history: &mut History, value: Value) {
        let change = history.begin(AT, value, false);
        history.end(AT, change, false);
    }

    #[test]
    fn what_was_replaced_may_not_be_read_any_more() {
        let mut history = History::new();
        written(&mut history, A);
        written(&mut history, B);
        assert_eq!(history.allowed_now(0), [B]);
        let under_way = history.begin(AT, A, false);
        assert_eq!(history.allowed_now(0), [B, A]);
        history.refused(AT, under_way);
        assert_eq!(history.allowed_now(0), [B]);
    }

    #[test]
    fn a_read_that_began_earlier_may_see_what_was_there_then() {
        let mut history = History::new();
        written(&mut history, A);
        let began = history.tick();
        written(&mut history, B);
        assert!(history.allows(0, A, began) && history.allows(0, B, began));
        let began = history.tick();
        assert!(!history.allows(0, A, began));
    }

    #[test]
    fn a_power_cut_may_undo_what_was_not_synced_and_nothing_else() {
        let mut history = History::new();
        written(&mut history, A);
        assert_eq!(history.allowed_after_power_cut(0), [Value::Inherited, A]);
        let began = history.tick();
        written(&mut history, B);
        history.synced(began);
        assert_eq!(history.allowed_after_power_cut(0), [A, B]);
    }

    #[test]
    fn a_fill_changes_what_is_inherited_alone() {
        let mut history = History::new();
        let filled = history.begin(AT, A, true);
        history.end(AT, filled, false);
        assert_eq!(history.allowed_now(0), [A]);
        let filled = history.begin(AT, B, true);
        history.end(AT, filled, false);
        assert_eq!(history.allowed_now(0), [A]);
    }
}
