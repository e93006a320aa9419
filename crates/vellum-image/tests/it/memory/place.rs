//! Pools of the memory engine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use vellum_engine::memory::{MemoryCatalog, MemoryStore};

/// The engine below the wrappers.
pub type Base = MemoryCatalog;

/// Where pools are. Clones share it.
#[derive(Clone, Default)]
pub struct Place(Arc<Mutex<HashMap<String, MemoryStore>>>);

impl Place {
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a pool, as another process would.
    pub async fn open(&self, pool: &str) -> Base {
        self.0.lock().unwrap().entry(pool.to_owned()).or_default().catalog()
    }

    /// The names of the pools that were opened.
    pub fn pools(&self) -> Vec<String> {
        self.0.lock().unwrap().keys().cloned().collect()
    }

    /// Takes away what only the end of a process leaves and the end of the machine does not.
    pub fn forget_unsynced(&self) {
        self.0.lock().unwrap().values().for_each(MemoryStore::power_cut);
    }
}
