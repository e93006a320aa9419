//! What is done to an image, and what it does to plain bytes.

use vellum_core::Extent;
use vellum_engine::Layering;
use vellum_image::DiscardPolicy;

/// Units of both images.
pub const UNIT: u64 = 2048;
/// Two units, so that few orders are alike.
pub const OBJECT: u64 = 4096;
/// An object, and a short one with a short last unit.
pub const SIZE: u64 = OBJECT + UNIT + 100;

/// One request or operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    Write { at: Extent, byte: u8 },
    Zero { at: Extent },
    Discard { at: Extent, policy: DiscardPolicy },
    Read { at: Extent },
    Snapshot,
    Flatten,
    Sync,
}

/// A part of an act that happens at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Atom {
    Put {
        at: Extent,
        byte: u8,
    },
    /// Shows the parent again, or zeros if there is none any more.
    Inherit {
        at: Extent,
    },
    Read {
        at: Extent,
    },
    Snapshot,
    Cut,
}

impl Act {
    /// What it asks to change. Where that overlaps, one is done before the other.
    pub fn changes(self) -> Option<Extent> {
        match self {
            Act::Write { at, .. } | Act::Zero { at } | Act::Discard { at, .. } => Some(at),
            Act::Read { .. } | Act::Snapshot | Act::Flatten | Act::Sync => None,
        }
    }

    /// Whether it is a hint that may be taken for units or not: a discard of a part of an object, where objects are copied up
    /// whole.
    pub fn is_hint(self, layering: Layering) -> bool {
        let whole = |at: Extent| at.align_in(OBJECT) == at;
        matches!(self, Act::Discard { at, .. } if layering == Layering::CopyUp && !whole(at))
    }

    /// Its atoms, which may happen in any order. A write within one object is one; what zeroes and discards do is one for each
    /// unit, since units may be found in different states.
    pub fn atoms(self) -> Vec<Atom> {
        match self {
            Act::Write { at, byte } => vec![Atom::Put { at, byte }],
            Act::Zero { at } => by_unit(at).map(|at| Atom::Put { at, byte: 0 }).collect(),
            Act::Discard { at, policy: DiscardPolicy::Zero } => {
                by_unit(at).map(|at| Atom::Put { at, byte: 0 }).collect()
            }
            Act::Discard { at, policy: DiscardPolicy::Inherit } => {
                by_unit(at).map(|at| Atom::Inherit { at }).collect()
            }
            Act::Read { at } => vec![Atom::Read { at }],
            Act::Snapshot => vec![Atom::Snapshot],
            Act::Flatten => vec![Atom::Cut],
            Act::Sync => Vec::new(),
        }
    }
}

fn by_unit(at: Extent) -> impl Iterator<Item = Extent> {
    at.chunks(UNIT)
}

/// An image as plain bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plain {
    pub content: Vec<u8>,
    /// What the parent shows; `None` without one.
    pub parent: Option<Vec<u8>>,
}

impl Plain {
    /// Applies an atom, unless what it saw was something else.
    pub fn apply(&mut self, atom: Atom, seen: Option<&[u8]>) -> bool {
        match atom {
            Atom::Put { at, byte } => self.content[range(at)].fill(byte),
            Atom::Inherit { at } => match &self.parent {
                Some(parent) => self.content[range(at)].copy_from_slice(&parent[range(at)]),
                None => self.content[range(at)].fill(0),
            },
            Atom::Read { at } => return seen.is_none_or(|seen| seen == &self.content[range(at)]),
            Atom::Snapshot => return seen.is_none_or(|seen| seen == self.content),
            Atom::Cut => self.parent = None,
        }
        true
    }
}

pub fn range(at: Extent) -> std::ops::Range<usize> {
    at.offset() as usize..at.end() as usize
}
