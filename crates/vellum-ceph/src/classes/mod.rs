//! Ceph's object classes in memory, for tests: what the storage daemons of a real cluster do when they are called.
//!
//! | module | what it does |
//! |---|---|
//! | `rbd` | keeps headers, directories and object maps |
//! | `lock` | who holds a lock on an object |
//! | `keys` | keys of an object, as values of a type |
//!
//! They behave as Ceph 16.2 does where the engine can tell; a test calls both in the same random order and compares.

mod keys;
mod lock;
mod rbd;

pub use lock::Lock;
pub use rbd::Rbd;

use vellum_rados::memory::MemoryCluster;

/// A cluster in memory with these pools and all classes that the engine calls.
pub fn cluster(pools: &[&str]) -> MemoryCluster {
    MemoryCluster::new(pools).with_class("rbd", Rbd).with_class("lock", Lock)
}
