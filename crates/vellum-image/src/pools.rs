//! [`Pools`]: where the catalog of a parent's pool is found.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use vellum_engine::{Catalog, Error, ErrorKind, PoolId, Result};

/// The pools that are open in this process, by id. Links between images name pools by id, since names are local to a home.
/// Clones share one set.
#[derive(Clone, Debug)]
pub struct Pools<C>(Arc<RwLock<HashMap<PoolId, C>>>);

impl<C> Default for Pools<C> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<C: Catalog> Pools<C> {
    /// Adds a pool, replacing one with the same id.
    pub fn add(&self, catalog: C) {
        self.0.write().insert(catalog.pool(), catalog);
    }

    /// The catalog of a pool. `NotFound` if it is not open here.
    pub fn get(&self, id: PoolId) -> Result<C> {
        self.0.read().get(&id).cloned().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!(
                    "pool {id} is not among the pools known here; add it with `vellum pool create`"
                ),
            )
        })
    }
}
