//! [`Cells`]: what each part of an image may read as, by what was done to it and when.
//!
//! Each change is a candidate for what a part reads as. One is out once another came after it for sure: begun after it had
//! ended, and itself ended. So where changes overlap in time, any of them may be what is there.
//! After a power cut only those that were durable count as having come.

use std::collections::BTreeMap;
use std::sync::Arc;

use vellum_core::Extent;

/// Parts that no request tears: what one change made of such a part is there wholly or not at all.
const SECTOR: u64 = 512;

/// What a change makes of a part.
#[derive(Clone, Debug)]
pub enum Value {
    Zeros,
    /// Bytes that tell where they were written and by whom.
    Pattern(u64),
    /// Those of a whole image, at the same place.
    Of(Arc<Vec<u8>>),
}

impl Value {
    fn is(&self, at: Extent, bytes: &[u8]) -> bool {
        match self {
            Value::Zeros => bytes.iter().all(|byte| *byte == 0),
            Value::Pattern(seed) => (at.offset()..)
                .zip(bytes)
                .all(|(offset, byte)| *byte == pattern_byte(offset, *seed)),
            Value::Of(all) => all[at.offset() as usize..at.end() as usize] == *bytes,
        }
    }
}

fn pattern_byte(offset: u64, seed: u64) -> u8 {
    ((offset / 512).wrapping_mul(31).wrapping_add(seed) % 255) as u8 + 1
}

/// The bytes of [`Value::Pattern`]; never zero.
pub fn pattern(at: Extent, seed: u64) -> Vec<u8> {
    (at.offset()..at.end()).map(|offset| pattern_byte(offset, seed)).collect()
}

#[derive(Clone, Debug)]
struct Candidate {
    began: u64,
    /// `None` while it is under way.
    ended: Option<u64>,
    /// Whether it does what it says; else it may leave a part alone.
    sure: bool,
    durable: bool,
    value: Value,
}

impl Candidate {
    /// What was read while nothing was under way.
    fn found(content: Arc<Vec<u8>>, now: u64) -> Self {
        let value = Value::Of(content);
        Self { began: now, ended: Some(now), sure: true, durable: false, value }
    }
}

/// The parts of an image and their candidates.
#[derive(Clone, Debug, Default)]
pub struct Cells {
    size: u64,
    /// By the offset at which each part begins.
    cells: BTreeMap<u64, Vec<Candidate>>,
}

impl Cells {
    /// An image that holds this.
    pub fn new(content: Arc<Vec<u8>>) -> Self {
        let size = content.len() as u64;
        let settled = Candidate { durable: true, ..Candidate::found(content, 0) };
        Self { size, cells: BTreeMap::from([(0, vec![settled])]) }
    }

    fn cut(&mut self, at: u64) {
        if at < self.size && !self.cells.contains_key(&at) {
            let before = self.cells.range(..at).next_back().expect("one begins at 0").1.clone();
            self.cells.insert(at, before);
        }
    }

    /// A change begins, at a moment that names it.
    pub fn begin(&mut self, at: Extent, value: Value, sure: bool, now: u64) {
        if at.is_empty() {
            return;
        }
        self.cut(at.offset());
        self.cut(at.end());
        let candidate = Candidate { began: now, ended: None, sure, durable: false, value };
        for (_, cell) in self.cells.range_mut(at.offset()..at.end()) {
            cell.push(candidate.clone());
        }
    }

    /// It ended, and may be durable.
    pub fn end(&mut self, began: u64, now: u64, durable: bool) {
        let all = self.cells.values_mut().flatten();
        all.filter(|it| it.began == began)
            .for_each(|it| (it.ended, it.durable) = (Some(now), durable));
    }

    /// A sync that began at a moment has ended: what had ended before is durable.
    pub fn synced(&mut self, began: u64) {
        let all = self.cells.values_mut().flatten();
        all.filter(|it| it.ended.is_some_and(|ended| ended < began))
            .for_each(|it| it.durable = true);
    }

    /// It was refused, and changed nothing.
    pub fn refused(&mut self, began: u64) {
        self.cells.values_mut().for_each(|cell| cell.retain(|it| it.began != began));
    }

    /// Nothing is under way, and this was read now: it is what is there. What it replaced may come back by a power cut.
    pub fn settle(&mut self, content: Arc<Vec<u8>>, now: u64) {
        for cell in self.cells.values_mut() {
            forget_what_is_out_for_good(cell);
            let mut left = cell.iter().filter(|it| !is_out(it, cell, now));
            let durable = left.all(|it| it.durable);
            cell.push(Candidate { durable, ..Candidate::found(content.clone(), now) });
            forget_what_is_out_for_good(cell);
        }
        if self.cells.values().all(|cell| cell.len() == 1) {
            *self = Self::new(content);
        }
    }

    /// The power is cut while nothing is under way: what was not durable is there or not.
    pub fn power_cut(&mut self) {
        for cell in self.cells.values_mut() {
            forget_what_is_out_for_good(cell);
            cell.iter_mut().for_each(|it| it.sure = false);
        }
    }

    /// Whether whoever began to read at a moment may have found this.
    ///
    /// # Panics
    /// If not.
    pub fn check(&self, name: &str, at: Extent, bytes: &[u8], since: u64) {
        for (part, cell) in self.parts(at) {
            let found = &bytes[at.range_of(&part)];
            let allowed = cell.iter().filter(|it| !is_out(it, cell, since));
            assert!(
                allowed.clone().any(|it| it.value.is(part, found)),
                "{part} of {name} reads as {found:?}, and may read as {:?} of {cell:?}",
                allowed.collect::<Vec<_>>()
            );
        }
    }

    /// Whether what is found is what was there at one moment between two.
    ///
    /// # Panics
    /// If not.
    pub fn check_moment(&self, name: &str, bytes: &[u8], began: u64, ended: u64) {
        let all = Extent::new(0, self.size);
        self.check(name, all, bytes, began);
        let was = |moment: u64| {
            self.parts(all).all(|(part, cell)| {
                let found = &bytes[all.range_of(&part)];
                cell.iter().any(|it| {
                    it.began < moment && !is_out(it, cell, moment) && it.value.is(part, found)
                })
            })
        };
        assert!(
            (began..=ended + 1).any(was),
            "{name} holds what was there at no one moment from {began} to {ended}: {:?}",
            self.cells
        );
    }

    /// The parts of `at` that no request tears, with their candidates.
    fn parts(&self, at: Extent) -> impl Iterator<Item = (Extent, &Vec<Candidate>)> {
        let first = self.cells.range(..=at.offset()).next_back().map_or(0, |(offset, _)| *offset);
        let starts = self.cells.range(first..at.end().max(first));
        starts.flat_map(move |(offset, cell)| {
            let end = self.cells.range(offset + 1..).next().map_or(self.size, |(next, _)| *next);
            let part = Extent::between(*offset, end).intersect(&at);
            sectors(part).map(move |part| (part, cell))
        })
    }
}

/// Whether another change came after it for sure, and before a moment.
fn is_out(candidate: &Candidate, cell: &[Candidate], before: u64) -> bool {
    cell.iter().any(|later| {
        comes_after(candidate, later) && later.ended.is_some_and(|ended| ended < before)
    })
}

/// Forgets what something durable came after, which no power cut brings back.
fn forget_what_is_out_for_good(cell: &mut Vec<Candidate>) {
    let durable: Vec<_> = cell.iter().filter(|it| it.durable).cloned().collect();
    cell.retain(|it| !durable.iter().any(|later| comes_after(it, later)));
}

fn comes_after(candidate: &Candidate, later: &Candidate) -> bool {
    later.sure && candidate.ended.is_some_and(|ended| ended < later.began)
}

fn sectors(at: Extent) -> impl Iterator<Item = Extent> {
    let mut rest = at;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (part, after) = rest.split((rest.offset() / SECTOR + 1) * SECTOR);
        rest = after;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Extent = Extent::new(100, 100);

    fn cells() -> Cells {
        Cells::new(Arc::new(vec![9; 2000]))
    }

    fn written(cells: &mut Cells, at: Extent, seed: u64, began: u64, ended: u64) {
        cells.begin(at, Value::Pattern(seed), true, began);
        cells.end(began, ended, false);
    }

    fn allows(cells: &Cells, at: Extent, bytes: &[u8], since: u64) -> bool {
        std::panic::catch_unwind(|| cells.check("it", at, bytes, since)).is_ok()
    }

    #[test]
    fn what_was_replaced_is_out_and_what_overlaps_in_time_is_not() {
        let mut cells = cells();
        written(&mut cells, AT, 1, 10, 20);
        assert!(!allows(&cells, AT, &[9; 100], 30));
        assert!(allows(&cells, AT, &[9; 100], 15), "a read that began before it ended");
        written(&mut cells, AT, 2, 15, 25);
        assert!(allows(&cells, AT, &pattern(AT, 1), 30) && allows(&cells, AT, &pattern(AT, 2), 30));
        assert!(!allows(
            &cells,
            AT,
            &[pattern(AT, 1)[..50].to_vec(), pattern(AT, 2)[50..].to_vec()].concat(),
            30
        ));
        written(&mut cells, AT, 3, 40, 50);
        assert!(!allows(&cells, AT, &pattern(AT, 2), 60));
        assert!(
            allows(&cells, Extent::new(0, 100), &[9; 100], 60),
            "beside it nothing has changed"
        );
    }

    #[test]
    fn what_may_leave_a_part_alone_puts_nothing_out() {
        let mut cells = cells();
        cells.begin(AT, Value::Zeros, false, 10);
        cells.end(10, 20, false);
        assert!(allows(&cells, AT, &[9; 100], 30) && allows(&cells, AT, &[0; 100], 30));
        cells.refused(10);
        assert!(!allows(&cells, AT, &[0; 100], 30));
    }

    #[test]
    fn a_power_cut_brings_back_what_nothing_durable_came_after() {
        let mut cells = cells();
        let found = |seed: u64| {
            let mut bytes = vec![9; 2000];
            bytes[AT.offset() as usize..AT.end() as usize].copy_from_slice(&pattern(AT, seed));
            Arc::new(bytes)
        };
        cells.begin(AT, Value::Pattern(1), true, 10);
        cells.end(10, 20, true);
        written(&mut cells, AT, 2, 30, 40);
        cells.settle(found(2), 50);
        written(&mut cells, AT, 3, 60, 70);
        assert!(allows(&cells, AT, &pattern(AT, 3), 80));
        assert!(!allows(&cells, AT, &pattern(AT, 2), 80), "the power is on");
        let after = |cells: &Cells, bytes: &[u8]| {
            let mut cells = cells.clone();
            cells.power_cut();
            allows(&cells, AT, bytes, 100)
        };
        for seed in [1, 2, 3] {
            assert!(after(&cells, &pattern(AT, seed)));
        }
        assert!(!after(&cells, &[9; 100]), "a durable change came after it");
        cells.synced(90);
        assert!(after(&cells, &pattern(AT, 3)) && !after(&cells, &pattern(AT, 2)));
        cells.settle(found(3), 95);
        assert!(after(&cells, &pattern(AT, 3)) && !after(&cells, &pattern(AT, 1)));
    }

    #[test]
    fn a_moment_is_one_for_all_parts() {
        let mut cells = cells();
        let (first, second) = (Extent::new(0, 10), Extent::new(1000, 10));
        written(&mut cells, first, 1, 10, 20);
        written(&mut cells, second, 2, 30, 40);
        let found = |has_first: bool, has_second: bool| {
            let mut bytes = vec![9; 2000];
            if has_first {
                bytes[..10].copy_from_slice(&pattern(first, 1));
            }
            if has_second {
                bytes[1000..1010].copy_from_slice(&pattern(second, 2));
            }
            let cells = cells.clone();
            std::panic::catch_unwind(move || cells.check_moment("it", &bytes, 5, 50)).is_ok()
        };
        assert!(found(false, false) && found(true, false) && found(true, true));
        assert!(!found(false, true), "the second began when the first had ended");
    }
}
