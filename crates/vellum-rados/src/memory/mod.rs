//! RADOS in memory, for tests: a cluster whose clients live in one process. It is the reference of what the seam promises, and
//! behaves as Ceph 16.2 does where the engine can tell, snapshots and class methods included.
//!
//! | module | what it does |
//! |---|---|
//! | `object` | one object: its content, what snapshots keep of it, and the steps of an operation |
//! | `pool` | [`MemoryPool`]: the seam, for one client |
//! | `watch` | who watches which object, and what they are told |
//!
//! Object classes are not here: whoever needs one [brings it](MemoryCluster::with_class).

mod object;
mod pool;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

pub use object::{Class, ClassObject};
pub use pool::MemoryPool;
pub use watch::MemoryWatch;

use crate::failure::{Failure, Result};
use object::{Classes, Object};
use watch::Watchers;

/// A cluster in memory. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryCluster(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    id: [u8; 16],
    classes: Arc<Classes>,
}

/// All that a cluster knows.
#[derive(Default)]
struct State {
    clients: u64,
    pools: BTreeMap<String, i64>,
    /// The highest snapshot id that each pool gave out.
    snapshots: HashMap<i64, u64>,
    objects: BTreeMap<Address, Object>,
    watchers: Watchers,
    blocklisted: BTreeSet<u64>,
    /// How many changes clients may still make.
    ends: BTreeMap<u64, u64>,
    is_full: bool,
    /// Clients, each with a pool that it may only look at.
    read_only: BTreeSet<(u64, i64)>,
    /// The version that the next change makes.
    version: u64,
}

/// Where an object is: its pool, its namespace, its name.
type Address = (i64, String, String);

impl MemoryCluster {
    /// One with these pools, numbered from 1 on.
    pub fn new(pools: &[&str]) -> Self {
        let state = State {
            pools: pools.iter().map(|name| (*name).to_owned()).zip(1..).collect(),
            ..State::default()
        };
        // No two of a process are the same.
        static CLUSTERS: AtomicU64 = AtomicU64::new(1);
        let number = u128::from(CLUSTERS.fetch_add(1, Ordering::Relaxed));
        let (state, id) = (Mutex::new(state), number.to_le_bytes());
        Self(Arc::new(Shared { state, id, classes: Arc::default() }))
    }

    /// Another one that holds what this one does, under the same id, and knows nobody who watches, or is to end, here.
    #[must_use]
    pub fn copied(&self) -> Self {
        let state = self.0.state.lock();
        let copy = State {
            clients: state.clients,
            pools: state.pools.clone(),
            snapshots: state.snapshots.clone(),
            objects: state.objects.clone(),
            watchers: Watchers::default(),
            blocklisted: state.blocklisted.clone(),
            ends: BTreeMap::new(),
            is_full: state.is_full,
            read_only: state.read_only.clone(),
            version: state.version,
        };
        let (state, id, classes) = (Mutex::new(copy), self.0.id, self.0.classes.clone());
        Self(Arc::new(Shared { state, id, classes }))
    }

    /// With a class of this name in addition.
    ///
    /// # Panics
    /// If somebody has the cluster already.
    #[must_use]
    pub fn with_class(mut self, name: &'static str, class: impl Class) -> Self {
        let shared = Arc::get_mut(&mut self.0).expect("classes come before clients");
        let classes = Arc::get_mut(&mut shared.classes).expect("classes come before copies");
        classes.insert(name, Box::new(class));
        self
    }

    /// A client of its own, at a pool and a namespace.
    ///
    /// # Panics
    /// If there is no such pool.
    pub fn client(&self, pool: &str, namespace: &str) -> MemoryPool {
        let mut state = self.0.state.lock();
        state.clients += 1;
        let pool = state.pools[pool];
        MemoryPool::new(self.clone(), state.clients, pool, namespace)
    }

    /// Refuses all that a client sends from now on.
    pub fn blocklist(&self, client: u64) {
        self.0.state.lock().blocklist(client);
    }

    /// Ends a client with its so many-th change from now on: that one is made, its answer is not heard, and nothing that the client
    /// sends later. Zero is at once.
    pub fn end_after(&self, client: u64, changes: u64) {
        let mut state = self.0.state.lock();
        match changes {
            0 => state.blocklist(client),
            changes => drop(state.ends.insert(client, changes)),
        }
    }

    /// How many changes a client may still make that is to end; `None` once it has ended, or if it is not to.
    pub fn changes_left(&self, client: u64) -> Option<u64> {
        self.0.state.lock().ends.get(&client).copied()
    }

    /// Has a client only look at a pool from now on: what it would change there, or watch, is not permitted.
    ///
    /// # Panics
    /// If there is no such pool.
    pub fn set_read_only(&self, client: u64, pool: &str) {
        let mut state = self.0.state.lock();
        let pool = state.pools[pool];
        state.read_only.insert((client, pool));
    }

    /// Whether the cluster takes nothing by which it would hold more bytes, or more objects.
    pub fn set_full(&self, is_full: bool) {
        self.0.state.lock().is_full = is_full;
    }
}

impl State {
    fn blocklist(&mut self, client: u64) {
        self.blocklisted.insert(client);
        self.watchers.lose(client);
    }

    /// A client has made a change. Whether it hears of that.
    fn has_changed(&mut self, client: u64) -> Result<()> {
        let Some(left) = self.ends.get_mut(&client) else { return Ok(()) };
        *left -= 1;
        if *left > 0 {
            return Ok(());
        }
        self.ends.remove(&client);
        self.blocklist(client);
        Err(Failure::BLOCKLISTED)
    }
}

impl fmt::Debug for MemoryCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryCluster({} objects)", self.0.state.lock().objects.len())
    }
}
