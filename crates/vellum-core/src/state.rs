//! What a layer says of each of its units: [`State`], and [`Runs`] of equal state.

use smallvec::SmallVec;

use crate::Extent;

/// What a layer defines of a unit. The numbers are the two bits kept on disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
pub enum State {
    /// Falls through to the layer below; zeros where nothing lies below.
    #[default]
    Inherited = 0,
    /// Holds data in this layer.
    Data = 1,
    /// Reads as zeros here, whatever lies below: a tombstone.
    Zero = 2,
}

impl State {
    /// The state that two bits stand for; `3` stands for nothing.
    #[inline]
    pub const fn from_bits(bits: u8) -> Option<State> {
        match bits {
            0 => Some(State::Inherited),
            1 => Some(State::Data),
            2 => Some(State::Zero),
            _ => None,
        }
    }

    /// Whether the layer itself says what the unit reads as.
    #[inline]
    pub const fn is_defined(self) -> bool {
        !matches!(self, State::Inherited)
    }
}

/// An extent whose units all have one state.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Run {
    /// The bytes.
    pub extent: Extent,
    /// What the layer says of them.
    pub state: State,
}

/// Adjacent runs in ascending order, no two neighbours of the same state. Up to four need no allocation.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Runs(SmallVec<[Run; 4]>);

impl Runs {
    /// No runs.
    pub fn new() -> Self {
        Self(SmallVec::new())
    }

    /// Appends a run, merging it with the last one if their states are equal. An empty extent is dropped.
    ///
    /// # Panics
    /// If it does not start where the last run ended.
    #[inline]
    pub fn push(&mut self, extent: Extent, state: State) {
        if extent.is_empty() {
            return;
        }
        if let Some(last) = self.0.last_mut() {
            assert_eq!(last.extent.end(), extent.offset(), "runs are adjacent");
            if last.state == state {
                last.extent = Extent::between(last.extent.offset(), extent.end());
                return;
            }
        }
        self.0.push(Run { extent, state });
    }

    /// Forgets all runs, keeping the space.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether every run has this state. True of no runs.
    pub fn all(&self, state: State) -> bool {
        self.0.iter().all(|run| run.state == state)
    }

    /// Whether any run has this state.
    pub fn any(&self, state: State) -> bool {
        self.0.iter().any(|run| run.state == state)
    }

    /// The extents of the runs in this state.
    pub fn in_state(&self, state: State) -> impl Iterator<Item = Extent> + '_ {
        self.0.iter().filter(move |run| run.state == state).map(|run| run.extent)
    }
}

impl std::ops::Deref for Runs {
    type Target = [Run];
    fn deref(&self) -> &[Run] {
        &self.0
    }
}

impl<'a> IntoIterator for &'a Runs {
    type Item = &'a Run;
    type IntoIter = std::slice::Iter<'a, Run>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_state_become_one_run() {
        let mut runs = Runs::new();
        runs.push(Extent::new(0, 10), State::Data);
        runs.push(Extent::new(10, 0), State::Zero);
        runs.push(Extent::new(10, 5), State::Data);
        runs.push(Extent::new(15, 5), State::Zero);
        assert_eq!(
            &runs[..],
            &[
                Run { extent: Extent::new(0, 15), state: State::Data },
                Run { extent: Extent::new(15, 5), state: State::Zero },
            ]
        );
        assert!(runs.any(State::Zero) && !runs.all(State::Data) && !runs.any(State::Inherited));
    }
}
