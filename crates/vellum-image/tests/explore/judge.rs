//! Whether some order of what was done explains what was seen.

use std::collections::HashSet;

use vellum_core::Extent;
use vellum_engine::Layering;

use crate::acts::{Act, Atom, Plain};

/// An act that was done: when, and what it saw.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Done {
    pub began: usize,
    pub ended: usize,
    /// What a read returned, or what a snapshot holds.
    pub seen: Option<Vec<u8>>,
    /// Whether it was refused, and so changed nothing.
    pub refused: bool,
}

impl Placed {
    /// Whether both cannot be under way at once.
    fn excludes(&self, other: &Self) -> bool {
        let overlap = self.changes.zip(other.changes);
        self.act != other.act && overlap.is_some_and(|(one, other)| one.overlaps(&other))
    }
}

/// Judges outcomes, each kind of them once.
#[derive(Default)]
pub struct Judge {
    explained: HashSet<Outcome>,
}

/// All that the judgement depends on: who ended before whom began, what was seen, and what is there at the end.
#[derive(PartialEq, Eq, Hash)]
struct Outcome {
    before: Vec<Vec<bool>>,
    seen: Vec<(Option<Vec<u8>>, bool)>,
    last: Vec<u8>,
}

struct Placed {
    act: usize,
    /// What the whole act changes.
    changes: Option<Extent>,
    /// Whether it need not happen.
    is_hint: bool,
    atom: Atom,
}

impl Judge {
    /// # Panics
    /// If no order of the acts that keeps who ended before whom began, and has changes that overlap one after the other, leads
    /// to what was seen.
    pub fn judge(
        &mut self,
        layering: Layering,
        start: &Plain,
        acts: &[Act],
        done: &[Done],
        last: &[u8],
    ) {
        let before: Vec<Vec<bool>> = done
            .iter()
            .map(|first| done.iter().map(|second| first.ended < second.began).collect())
            .collect();
        let seen = done.iter().map(|done| (done.seen.clone(), done.refused)).collect();
        let outcome = Outcome { before, seen, last: last.to_vec() };
        if self.explained.contains(&outcome) {
            return;
        }
        let atoms = acts.iter().enumerate().filter(|(act, _)| !done[*act].refused);
        let atoms: Vec<Placed> = atoms
            .flat_map(|(act, it)| {
                let (changes, is_hint) = (it.changes(), it.is_hint(layering));
                it.atoms().into_iter().map(move |atom| Placed { act, changes, is_hint, atom })
            })
            .collect();
        let mut left: Vec<bool> = vec![true; atoms.len()];
        assert!(
            explains(&outcome, done, &atoms, &mut left, start.clone()),
            "no order of {acts:?} explains what was seen: {done:?}, and {} at the end",
            runs(last)
        );
        self.explained.insert(outcome);
    }

    /// How many kinds of outcomes there were.
    pub fn kinds(&self) -> usize {
        self.explained.len()
    }
}

/// Whether what is left can be put in an order that ends with what is there.
fn explains(
    outcome: &Outcome,
    done: &[Done],
    atoms: &[Placed],
    left: &mut [bool],
    now: Plain,
) -> bool {
    if left.iter().all(|left| !left) {
        return now.content == outcome.last;
    }
    for next in 0..atoms.len() {
        let waits_for =
            |other: usize| left[other] && outcome.before[atoms[other].act][atoms[next].act];
        // Of what cannot be under way at once, either nothing is done yet or all of it.
        let is_begun = |other: usize| {
            let rest = |it: usize| left[it] && atoms[it].act == atoms[other].act;
            !left[other] && atoms[other].excludes(&atoms[next]) && (0..atoms.len()).any(rest)
        };
        let must_wait = (0..atoms.len()).any(|other| waits_for(other) || is_begun(other));
        if !left[next] || must_wait {
            continue;
        }
        let mut then = now.clone();
        let applies = then.apply(atoms[next].atom, done[atoms[next].act].seen.as_deref());
        left[next] = false;
        let explained = applies && explains(outcome, done, atoms, left, then)
            || atoms[next].is_hint && explains(outcome, done, atoms, left, now.clone());
        left[next] = true;
        if explained {
            return true;
        }
    }
    false
}

/// Bytes as runs, for people.
pub fn runs(bytes: &[u8]) -> String {
    let mut text = String::new();
    for run in bytes.chunk_by(|a, b| a == b) {
        text.push_str(&format!("{}x{} ", run[0], run.len()));
    }
    text
}
