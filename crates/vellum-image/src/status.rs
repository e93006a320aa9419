//! Which layer defines what: the picture that `vellum map` draws and that NBD's block status tells.

use vellum_core::{Extent, State};
use vellum_engine::{Catalog, Layer, Result};

use crate::Image;
use crate::chain::Chain;
use crate::steps::Step;
use crate::survey::Found;

/// How many pieces are looked at in one step, at most.
const PIECES_MAX: usize = 1 << 16;

/// An extent, and who says what of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped {
    /// Which bytes of the image.
    pub at: Extent,
    /// What they are.
    pub kind: MappedKind,
    /// Which layer says so: 1 for the image's top layer, 2 for the one below, and so on; 0 if none does.
    pub depth: usize,
}

/// What an extent of an image is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MappedKind {
    /// A layer holds data.
    Data,
    /// A layer says that it reads as zeros.
    Zero,
    /// No layer defines it: zeros.
    Nothing,
}

impl<C: Catalog> Image<C> {
    /// The map of an extent: what covers a beginning of it, in ascending order, neighbours that are alike merged. Stops after
    /// about `entries_max` entries; ask again from where it ended.
    pub async fn map(&self, at: Extent, entries_max: usize) -> Result<Vec<Mapped>> {
        let at = self.check_range(at).await?;
        self.on_a_view(|view| async move { map_of(&view.chain, at, entries_max).await }).await
    }
}

async fn map_of<L: Layer>(
    chain: &Chain<L>,
    at: Extent,
    entries_max: usize,
) -> Result<Step<Vec<Mapped>>> {
    let mut rest = at;
    let mut map: Vec<Mapped> = Vec::new();
    while !rest.is_empty() {
        tokio::task::yield_now().await; // a petabyte is many steps, and each may find all it needs in memory
        let most = entries_max.saturating_sub(map.len()).clamp(1, PIECES_MAX);
        let survey = chain.survey(rest, most).await?;
        for entry in survey.pieces.into_iter().map(mapped) {
            let full = map.len() >= entries_max.max(1);
            match map.last_mut() {
                Some(last) if (last.kind, last.depth) == (entry.kind, entry.depth) => {
                    last.at = Extent::between(last.at.offset(), entry.at.end());
                }
                // The last entry may go on in the next step, so the limit is looked at only when another begins.
                _ if full => return Ok(Step::Done(map)),
                _ => map.push(entry),
            }
        }
        rest = rest.split(survey.end).1;
    }
    Ok(Step::Done(map))
}

fn mapped(found: Found) -> Mapped {
    let (kind, depth) = match (found.state, found.link) {
        (State::Data, Some(link)) => (MappedKind::Data, link + 1),
        (State::Zero, Some(link)) => (MappedKind::Zero, link + 1),
        _ => (MappedKind::Nothing, 0),
    };
    Mapped { at: found.at, kind, depth }
}
