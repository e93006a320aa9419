//! [`Model`]: what some units of a layer hold, and must hold after a step. Where pages meet and where the image begins and
//! ends there are more of them.

use bytes::Bytes;
use vellum_core::{Buffer, Extent, Runs, State};
use vellum_engine::{
    Durability, Error, ErrorKind, Guard, Guarded, Known, Layer, SetTo, TryRead, Write,
};
use vellum_local::fuzzing;
use vellum_local::store::LayerFacts;

use super::{Opened, PAGE_UNITS};

/// What a unit holds.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Seen {
    Inherited,
    Bytes(Vec<u8>),
    /// It cannot be read.
    Damaged,
}

/// What some units hold.
pub(super) struct Model {
    size: u64,
    block: u64,
    /// Numbers of units, in runs.
    windows: Vec<(u64, u64)>,
    units: Vec<(u64, Seen)>,
    /// Pages whose states cannot be read.
    bad_pages: Vec<u64>,
}

impl Model {
    /// What a layer holds now.
    pub(super) async fn of(layer: &Opened, facts: &LayerFacts) -> Self {
        let (size, block) = (facts.size, u64::from(facts.block_size));
        let last = size.div_ceil(block);
        let windows = [(0, 8), (PAGE_UNITS - 3, PAGE_UNITS + 2), (last.saturating_sub(3), last)];
        let mut windows: Vec<_> =
            windows.into_iter().map(|(first, end)| (first, end.min(last))).collect();
        windows.retain(|(first, end)| first < end);
        windows.dedup_by(|next, before| next.0 < before.1);
        let mut model = Self { size, block, windows, units: Vec::new(), bad_pages: Vec::new() };
        let pages = size.div_ceil(PAGE_UNITS * block);
        for page in 0..pages {
            if is_bad(layer, model.page(page)).await {
                model.bad_pages.push(page);
            }
        }
        for unit in model.windows.clone().into_iter().flat_map(|(first, end)| first..end) {
            let seen = see(layer, model.unit(unit)).await;
            model.units.push((unit, seen));
        }
        model
    }

    /// Whether something cannot be read.
    pub(super) fn is_damaged(&self) -> bool {
        !self.bad_pages.is_empty() || self.units.iter().any(|(_, seen)| *seen == Seen::Damaged)
    }

    fn unit(&self, unit: u64) -> Extent {
        Extent::between(unit * self.block, (unit + 1) * self.block).clip(self.size)
    }

    fn page(&self, page: u64) -> Extent {
        let length = PAGE_UNITS * self.block;
        Extent::between(page * length, (page + 1) * length).clip(self.size)
    }

    /// What an input means by a place and a length: units of one window, or all of the image. In parts of units if so wanted.
    pub(super) fn range(&self, place: u8, length: u8, in_parts: bool) -> Extent {
        if length == u8::MAX && !in_parts {
            return Extent::new(0, self.size);
        }
        let (first, end) = self.windows[usize::from(place) % self.windows.len()];
        let first = first + u64::from(place) / 8 % (end - first);
        let end = end.min(first + 1 + u64::from(length) % 4);
        let whole = Extent::between(self.unit(first).offset(), self.unit(end - 1).end());
        if !in_parts {
            return whole;
        }
        let cut = u64::from(length) * 2 % whole.length().min(512);
        let from = if place & 1 != 0 { whole.offset() + cut } else { whole.offset() };
        let to = if place & 2 != 0 { whole.end() - cut } else { whole.end() };
        if from < to { Extent::between(from, to) } else { whole }
    }

    /// The layer holds what it must.
    pub(super) async fn compare(&self, layer: &Opened, who: &str) {
        for (unit, expected) in &self.units {
            let seen = see(layer, self.unit(*unit)).await;
            assert!(
                seen == *expected,
                "{who} sees unit {unit} as {}, expected {}",
                seen.name(),
                expected.name()
            );
        }
    }

    /// Writes, and notes it. Says whether all of it was done, or none because units were missing.
    pub(super) async fn write(&mut self, layer: &Opened, at: Extent, seed: u8) -> bool {
        let at = at.clip(at.offset() + (32 << 10));
        let data: Vec<u8> =
            (0..at.len_usize()).map(|index| seed.wrapping_add(index as u8)).collect();
        let write = Write {
            offset: at.offset(),
            data: Bytes::from(data.clone()),
            guard: Guard::Edges,
            durability: Durability::AtSync,
        };
        let missing = self.units.iter().any(|(unit, seen)| {
            let unit = self.unit(*unit);
            *seen == Seen::Inherited && unit.overlaps(&at) && !at.contains(&unit)
        });
        match fuzzing::write(layer, write).await {
            Ok(Guarded::Done) => {
                assert!(!missing, "a unit that is inherited was written in part");
                self.check_sound(at);
                self.apply(at, |within| Some(data[at.range_of(&within)].to_vec()));
                true
            }
            Ok(Guarded::Missing(_)) => {
                // At the edge of a window lies what the model does not know.
                assert!(missing, "nothing is missing at {at}");
                true
            }
            Ok(Guarded::Sealed) => panic!("an owner finds its layer sealed"),
            Err(error) => self.check_failure(at, &error),
        }
    }

    /// Sets whole units, and notes it. Says whether it was done.
    pub(super) async fn set(&mut self, layer: &Opened, at: Extent, to: SetTo) -> bool {
        match fuzzing::set(layer, at, to).await {
            Ok(Guarded::Done) => {
                let zero = to == SetTo::Zero;
                self.apply(at, |within| zero.then(|| vec![0; within.len_usize()]));
                true
            }
            Ok(other) => panic!("{other:?} where units are set"),
            Err(error) => self.check_failure(at, &error),
        }
    }

    /// What succeeds does not lie on a damaged page.
    fn check_sound(&self, at: Extent) {
        assert!(!self.touches_damage(at), "a write to a damaged page succeeds");
    }

    fn touches_damage(&self, at: Extent) -> bool {
        self.bad_pages.iter().any(|page| self.page(*page).overlaps(&at))
    }

    fn check_failure(&self, at: Extent, error: &Error) -> bool {
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
        assert!(self.touches_damage(at), "{} at {at}, where nothing is damaged", error.chain());
        false
    }

    /// Changes units: to bytes over what they held, or to nothing.
    fn apply(&mut self, at: Extent, content: impl Fn(Extent) -> Option<Vec<u8>>) {
        let (size, block) = (self.size, self.block);
        for (unit, seen) in &mut self.units {
            let unit = Extent::between(*unit * block, (*unit + 1) * block).clip(size);
            let within = unit.intersect(&at);
            if within.is_empty() {
                continue;
            }
            let Some(new) = content(within) else {
                *seen = Seen::Inherited;
                continue;
            };
            let mut bytes = match std::mem::replace(seen, Seen::Inherited) {
                Seen::Bytes(bytes) => bytes,
                _ => vec![0; unit.len_usize()],
            };
            bytes[unit.range_of(&within)].copy_from_slice(&new);
            *seen = Seen::Bytes(bytes);
        }
    }
}

impl Seen {
    fn name(&self) -> String {
        match self {
            Seen::Inherited => "inherited".to_owned(),
            Seen::Damaged => "damaged".to_owned(),
            Seen::Bytes(bytes) => {
                format!("{} bytes that begin {:?}", bytes.len(), &bytes[..4.min(bytes.len())])
            }
        }
    }
}

/// Whether the states of a page cannot be read.
async fn is_bad(layer: &Opened, page: Extent) -> bool {
    match layer.load_states(page, usize::MAX, &mut Runs::new()).await {
        Ok(()) => false,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
            true
        }
    }
}

/// What a unit holds, read in each way, which must agree.
async fn see(layer: &Opened, at: Extent) -> Seen {
    let length = at.len_usize();
    let (bytes, runs) = layer.read(at, Buffer::from_vec(vec![b'?'; length]), 0..length).await;
    let runs = match runs {
        Ok(runs) => runs,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
            return Seen::Damaged;
        }
    };
    let (mut again, mut same) = (vec![b'?'; length], Runs::new());
    if layer.try_read(at, &mut again, &mut same) == TryRead::Done {
        assert!(again == bytes[..] && same == runs, "reading without waiting sees the same");
    }
    if layer.states(at, usize::MAX, &mut same) == Known::All {
        assert_eq!(same, runs);
    }
    if runs.all(State::Inherited) { Seen::Inherited } else { Seen::Bytes(bytes.to_vec()) }
}
