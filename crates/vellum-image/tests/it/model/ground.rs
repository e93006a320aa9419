//! The engines that programs run on.

use vellum_engine::memory::{MemoryCatalog, MemoryOptions, MemoryStore};
use vellum_engine::{AtomicSpan, Catalog, Snapshots};

use crate::embedded::place::{Base, Place};

/// A pool that can be opened again.
pub trait Ground {
    type Catalog: Catalog;

    async fn open(&self) -> Self::Catalog;

    /// Loses what is not durable. `false` if it cannot.
    fn cut_power(&self) -> bool;
}

pub struct InMemory(MemoryStore);

impl InMemory {
    /// As the embedded engine.
    pub fn usual() -> Self {
        Self(MemoryStore::default())
    }

    /// As an engine that keeps objects on servers.
    pub fn by_object() -> Self {
        let options = MemoryOptions {
            inherit: false,
            ack_is_durable: true,
            atomic: AtomicSpan::Object,
            ..MemoryOptions::default()
        };
        Self(MemoryStore::new(options))
    }

    /// As one whose storage keeps old revisions of each object, so that snapshots share objects with the head.
    pub fn sharing_objects(atomic: AtomicSpan) -> Self {
        let snapshots = Snapshots::Native;
        let options =
            MemoryOptions { inherit: false, atomic, snapshots, ..MemoryOptions::default() };
        Self(MemoryStore::new(options))
    }

    /// As one that can inherit again, object by object.
    pub fn by_object_inheriting() -> Self {
        let options = MemoryOptions { atomic: AtomicSpan::Object, ..MemoryOptions::default() };
        Self(MemoryStore::new(options))
    }
}

impl Ground for InMemory {
    type Catalog = MemoryCatalog;

    async fn open(&self) -> MemoryCatalog {
        self.0.catalog()
    }

    fn cut_power(&self) -> bool {
        self.0.power_cut();
        true
    }
}

pub struct Embedded(Place);

impl Embedded {
    pub fn new() -> Self {
        Self(Place::new())
    }
}

impl Ground for Embedded {
    type Catalog = Base;

    async fn open(&self) -> Base {
        self.0.open("pool").await
    }

    fn cut_power(&self) -> bool {
        false
    }
}
