//! The in-memory reference engine: what the contract means, obviously right rather than fast.
//!
//! A [`MemoryStore`] is the medium: it outlives the catalogs opened on it, as a disk outlives processes.
//! [`MemoryStore::catalog`] opens it, as often as one likes; each [`MemoryCatalog`] stands for a process. Dropping one, with
//! all heads and layers from it, is the death of that process and loses nothing; [`MemoryStore::power_cut`] loses
//! all that was not synced. Two stores are two pools.
//!
//! Snapshots are sealed revisions, or share their objects with the head, as a test likes; units are blocks. Every call does all of its work under a lock when it is first polled, so
//! that it can neither be seen half done nor be left half done. There is no thread here, no file, and no cache.
//!
//! Modules in reading order: `content` (what a revision holds), `images` (the rules of the catalog, as a value),
//! `owners` (who holds what), `layer`, `head`, `shared` (objects that revisions share), `catalog`.

mod catalog;
mod content;
mod head;
mod images;
mod layer;
mod owners;
mod shared;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use vellum_core::IMAGE_SIZE_MAX;

pub use self::catalog::MemoryCatalog;
pub use self::head::{MemoryHead, MemoryPrepared};
pub use self::layer::MemoryLayer;

use self::images::Images;
use self::layer::Stored;
use self::owners::Owners;
use crate::{AtomicSpan, Capabilities, PoolId, RevisionId, Snapshots};

/// A pool in memory, whoever has it open. Clones share it.
#[derive(Clone)]
pub struct MemoryStore(Arc<Shared>);

struct Shared {
    pool: PoolId,
    capabilities: Capabilities,
    /// How often the power was cut: whoever opened something before the last time has lost it.
    boot: AtomicU64,
    full: AtomicBool,
    state: Mutex<State>,
}

/// All that the store knows. Lock order: a head's own lock, then this, then the content of a revision.
struct State {
    images: Images,
    stored: HashMap<RevisionId, Arc<Stored>>,
    owners: Owners,
}

/// What a store in memory lacks or promises, so that a test can see callers cope with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryOptions {
    /// See [`Capabilities::inherit`].
    pub inherit: bool,
    /// See [`Capabilities::ack_is_durable`].
    pub ack_is_durable: bool,
    /// See [`Capabilities::atomic`]. What reaches further is refused.
    pub atomic: AtomicSpan,
    /// See [`Capabilities::snapshots`]. Where they are native, revisions of an image share its objects: one that none of them
    /// defines anything of is absent, and through its absence all of them see the parent. What would touch it in the head
    /// before it was filled is refused, see [`Head::must_fill_first`](crate::Head::must_fill_first).
    pub snapshots: Snapshots,
}

impl Default for MemoryOptions {
    /// As the embedded engine.
    fn default() -> Self {
        Self {
            inherit: true,
            ack_is_durable: false,
            atomic: AtomicSpan::Image,
            snapshots: Snapshots::Sealed,
        }
    }
}

impl MemoryStore {
    /// A new, empty pool.
    pub fn new(options: MemoryOptions) -> Self {
        let mut pool = PoolId([0; 16]);
        getrandom::fill(&mut pool.0).expect("the system has random numbers");
        let state =
            State { images: Images::new(pool), stored: HashMap::new(), owners: Owners::default() };
        Self(Arc::new(Shared {
            pool,
            capabilities: capabilities(options),
            boot: AtomicU64::new(0),
            full: AtomicBool::new(false),
            state: Mutex::new(state),
        }))
    }

    /// Opens the pool, as another process would.
    pub fn catalog(&self) -> MemoryCatalog {
        MemoryCatalog::new(self.clone())
    }

    /// Loses all that was not synced. Heads opened before have lost their ownership; whoever wants to go on opens anew.
    pub fn power_cut(&self) {
        let mut state = self.0.state.lock();
        // The boot goes first: a head looks at it while it holds its revision's content, so each of its changes is either
        // made before and taken back here, or refused.
        self.0.boot.fetch_add(1, Ordering::SeqCst);
        state.owners = Owners::default();
        for stored in state.stored.values() {
            stored.lock().forget_unsynced();
        }
    }

    /// Whether there is no space for data, from now on. Then what would store a unit that holds no data yet fails with
    /// [`NoSpace`](crate::ErrorKind::NoSpace).
    pub fn set_full(&self, full: bool) {
        self.0.full.store(full, Ordering::SeqCst);
    }

    fn is_full(&self) -> bool {
        self.0.full.load(Ordering::SeqCst)
    }

    fn boot(&self) -> u64 {
        self.0.boot.load(Ordering::SeqCst)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(MemoryOptions::default())
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryStore({})", self.0.pool)
    }
}

fn capabilities(options: MemoryOptions) -> Capabilities {
    Capabilities {
        engine: "memory",
        size_max: IMAGE_SIZE_MAX,
        block_size_min: 512,
        block_size_max: 1 << 20,
        snapshots: options.snapshots,
        inherit: options.inherit,
        ack_is_durable: options.ack_is_durable,
        atomic: options.atomic,
        persistent: true,
    }
}
