//! [`Owners`]: who holds which revision, alone or shared with others.

use std::collections::HashMap;
use std::fmt;

use super::MemoryStore;
use crate::RevisionId;

/// What is held at the moment.
#[derive(Debug, Default)]
pub(crate) struct Owners(HashMap<RevisionId, Held>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Held {
    Alone,
    Shared(usize),
}

/// How a revision is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hold {
    /// By the one who writes or fills it.
    Alone,
    /// By those who read a head and keep writers out.
    Shared,
}

impl Owners {
    /// Takes hold of a revision, or says that somebody holds it in a way that conflicts.
    fn take(&mut self, revision: &RevisionId, hold: Hold) -> bool {
        match (self.0.get_mut(revision), hold) {
            (None, Hold::Alone) => {
                self.0.insert(revision.clone(), Held::Alone);
                true
            }
            (None, Hold::Shared) => {
                self.0.insert(revision.clone(), Held::Shared(1));
                true
            }
            (Some(Held::Shared(count)), Hold::Shared) => {
                *count += 1;
                true
            }
            (Some(_), _) => false,
        }
    }

    fn release(&mut self, revision: &RevisionId) {
        match self.0.get_mut(revision) {
            Some(Held::Shared(count)) if *count > 1 => *count -= 1,
            _ => {
                self.0.remove(revision);
            }
        }
    }

    pub fn is_held(&self, revision: &RevisionId) -> bool {
        self.0.contains_key(revision)
    }
}

/// A revision that is held, until this is dropped or the power is cut.
pub(crate) struct Lock {
    store: MemoryStore,
    revision: RevisionId,
    boot: u64,
}

impl Lock {
    /// Takes hold of a revision under the lock of the store; `None` if somebody else has it.
    pub fn take(
        store: &MemoryStore,
        owners: &mut Owners,
        revision: &RevisionId,
        hold: Hold,
    ) -> Option<Self> {
        let lock = || Self { store: store.clone(), revision: revision.clone(), boot: store.boot() };
        owners.take(revision, hold).then(lock)
    }

    /// Whether the power was cut since.
    pub fn is_lost(&self) -> bool {
        self.boot != self.store.boot()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut state = self.store.0.state.lock();
        if !self.is_lost() {
            state.owners.release(&self.revision);
        }
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lock({})", self.revision)
    }
}
