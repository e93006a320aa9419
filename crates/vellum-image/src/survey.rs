//! A survey of a chain: who says what of the beginning of an extent, as far as a bounded number of pieces reaches.
//!
//! A petabyte may be one piece, or a thousand million. So whoever must know of a large extent asks for some pieces, works on
//! them, and asks again from where they ended: neither memory nor the time of one step grows with the image.

use vellum_core::{Extent, Runs, State};
use vellum_engine::{Layer, Result};

use crate::chain::{Chain, Extents, RUNS_MAX, end_of, load_some};

/// A piece, and who says what of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    /// Which bytes of the image.
    pub(crate) at: Extent,
    /// What they are: `Inherited` if no layer defines them; `Zero` by no layer past the end of what can be seen.
    pub(crate) state: State,
    /// The index of the topmost layer that defines them.
    pub(crate) link: Option<usize>,
}

/// A survey of the beginning of an extent.
#[derive(Debug)]
pub(crate) struct Survey {
    /// In ascending order, without gaps.
    pub(crate) pieces: Vec<Found>,
    /// Where they end: past the beginning of what was asked.
    pub(crate) end: u64,
}

impl<L: Layer> Chain<L> {
    /// Surveys a beginning of `at`, which is not empty: all of it, unless that takes many more than `most` pieces.
    pub(crate) async fn survey(&self, at: Extent, most: usize) -> Result<Survey> {
        let most = most.max(1);
        let mut end = at.end();
        let mut found = Vec::new();
        let mut pending = Extents::from_slice(&[at]);
        let mut runs = Runs::new();
        for (index, link) in self.links().iter().enumerate() {
            let mut next = Extents::new();
            let known = found.len();
            'extents: for extent in pending.into_iter().map(|extent| extent.clip(end)) {
                let (mut rest, past) = extent.split(link.limit);
                while !rest.is_empty() {
                    load_some(&link.layer, rest, most.saturating_add(1).min(RUNS_MAX), &mut runs)
                        .await?;
                    for run in &runs {
                        if found.len() - known + next.len() > most {
                            end = run.extent.offset();
                            break 'extents;
                        }
                        match run.state {
                            State::Inherited => next.push(run.extent),
                            state => found.push(Found { at: run.extent, state, link: Some(index) }),
                        }
                    }
                    rest = rest.split(end_of(&runs, rest)?).1;
                }
                if !past.is_empty() {
                    found.push(Found { at: past, state: State::Zero, link: None });
                }
            }
            end = end.min(bounded_end(&found, &next, most));
            keep_before(end, &mut found);
            pending = next.into_iter().filter(|extent| extent.offset() < end).collect();
            if pending.is_empty() {
                break;
            }
        }
        let undefined = |at: Extent| Found { at, state: State::Inherited, link: None };
        found.extend(pending.into_iter().map(undefined));
        keep_before(end, &mut found);
        found.sort_unstable_by_key(|piece| piece.at.offset());
        Ok(Survey { pieces: found, end })
    }
}

/// Where a survey must end to have no more than about twice as many pieces as were asked for. Pieces are disjoint, so that many
/// begin behind the first.
fn bounded_end(found: &[Found], pending: &Extents, most: usize) -> u64 {
    if found.len() + pending.len() <= 2 * most {
        return u64::MAX;
    }
    let found = found.iter().map(|piece| piece.at.offset());
    let mut offsets: Vec<u64> = found.chain(pending.iter().map(|extent| extent.offset())).collect();
    *offsets.select_nth_unstable(most).1
}

fn keep_before(end: u64, pieces: &mut Vec<Found>) {
    pieces.retain_mut(|piece| {
        piece.at = piece.at.clip(end);
        !piece.at.is_empty()
    });
}
