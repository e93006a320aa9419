//! [`Page`]: the states of 15,872 units, two bits each.

use std::sync::atomic::{AtomicU64, Ordering};

use vellum_core::State;

use crate::format::sector::{PAGE_UNITS, PAGE_WORDS, WORD_UNITS};

/// The states of the units of one page. Read by anybody at any time; changed by those who hold the units' range, each word in
/// one atomic step, since neighbours share words.
#[derive(Debug)]
pub(crate) struct Page(Box<[AtomicU64; PAGE_WORDS]>);

impl Page {
    /// A page as it was stored.
    pub(crate) fn new(words: &[u64; PAGE_WORDS]) -> Self {
        Self(Box::new(std::array::from_fn(|index| AtomicU64::new(words[index]))))
    }

    /// A copy, as it must be stored.
    pub(crate) fn words(&self) -> [u64; PAGE_WORDS] {
        std::array::from_fn(|index| self.0[index].load(Ordering::Acquire))
    }

    /// The state of the unit at an index within the page.
    pub(crate) fn state(&self, index: u64) -> State {
        let word = self.0[(index / WORD_UNITS) as usize].load(Ordering::Acquire);
        state_in(word, index % WORD_UNITS)
    }

    /// Tells `visit` of runs of equal state in `[first, end)`, as indices within the page, until it says no.
    pub(crate) fn runs(
        &self,
        first: u64,
        end: u64,
        mut visit: impl FnMut(u64, u64, State) -> bool,
    ) -> bool {
        let mut at = first;
        while at < end {
            let state = self.state(at);
            let stop = self.run_end(at, end, state);
            if !visit(at, stop, state) {
                return false;
            }
            at = stop;
        }
        true
    }

    /// Where the run of this state that covers `at` ends. Whole words are compared at once.
    fn run_end(&self, mut at: u64, end: u64, state: State) -> u64 {
        let uniform = 0x5555_5555_5555_5555 * state as u64;
        while at < end {
            let word = self.0[(at / WORD_UNITS) as usize].load(Ordering::Acquire);
            // Units that differ leave a bit; those before `at` are shifted out.
            let differing = (word ^ uniform) >> (2 * (at % WORD_UNITS));
            if differing != 0 {
                return (at + u64::from(differing.trailing_zeros()) / 2).min(end);
            }
            at = (at / WORD_UNITS + 1) * WORD_UNITS;
        }
        end
    }

    /// Whether a unit from this index on is defined.
    pub(crate) fn defines_beyond(&self, first: u64) -> bool {
        !self.runs(first, PAGE_UNITS, |_, _, state| !state.is_defined())
    }

    /// Sets the units `[first, end)`, as indices within the page.
    pub(crate) fn set(&self, first: u64, end: u64, state: State) {
        let mut at = first;
        while at < end {
            let stop = ((at / WORD_UNITS + 1) * WORD_UNITS).min(end);
            let units = stop - at;
            let ones = if units == WORD_UNITS { u64::MAX } else { (1 << (2 * units)) - 1 };
            let mask = ones << (2 * (at % WORD_UNITS));
            let bits = (0x5555_5555_5555_5555 * state as u64) & mask;
            let word = &self.0[(at / WORD_UNITS) as usize];
            let _ = word
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| Some(old & !mask | bits));
            at = stop;
        }
    }
}

fn state_in(word: u64, index: u64) -> State {
    match (word >> (2 * index)) & 3 {
        1 => State::Data,
        2 => State::Zero,
        // Three is refused when a page is read, and nobody writes it.
        _ => State::Inherited,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::sector::PAGE_UNITS;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_page_agrees_with_a_list_of_states(
            changes in proptest::collection::vec((0..PAGE_UNITS, 1u64..600, 0u8..3), 1..40),
            window in (0..PAGE_UNITS, 1u64..3000),
        ) {
            let page = Page::new(&[0; PAGE_WORDS]);
            let mut model = vec![State::Inherited; PAGE_UNITS as usize];
            for (first, length, state) in changes {
                let (end, state) = ((first + length).min(PAGE_UNITS), State::from_bits(state).unwrap());
                page.set(first, end, state);
                model[first as usize..end as usize].fill(state);
            }
            let (first, end) = (window.0, (window.0 + window.1).min(PAGE_UNITS));
            let mut at = first;
            let mut last = None;
            page.runs(first, end, |run, stop, state| {
                assert_eq!(run, at);
                assert!(stop > run && last != Some(state));
                assert!(model[run as usize..stop as usize].iter().all(|unit| *unit == state));
                (at, last) = (stop, Some(state));
                true
            });
            prop_assert_eq!(at, end);
            prop_assert_eq!(Page::new(&page.words()).words(), page.words());
        }
    }
}
