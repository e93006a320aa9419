//! Pools of the embedded engine, in a temporary directory.

use std::sync::Arc;

use tempfile::TempDir;
use vellum_disk::RealDisk;
use vellum_local::{Canary, LocalCatalog, Mode, OpenOptions, StoreOptions};

/// The engine below the wrappers.
pub type Base = LocalCatalog<RealDisk>;

/// Where pools are. Clones share it.
#[derive(Clone)]
pub struct Place(Arc<TempDir>);

impl Place {
    pub fn new() -> Self {
        // In memory where there is such a file system: these tests are about rules, not about media.
        let place = std::path::Path::new("/dev/shm");
        let place = if place.is_dir() { place.to_owned() } else { std::env::temp_dir() };
        Self(Arc::new(tempfile::Builder::new().prefix("vellum-image-").tempdir_in(place).unwrap()))
    }

    /// Opens a pool, as another process would.
    pub async fn open(&self, pool: &str) -> Base {
        self.open_that_makes(pool, None).await
    }

    /// The same, with an engine that makes a mistake.
    pub async fn open_that_makes(&self, pool: &str, canary: Option<Canary>) -> Base {
        let store = StoreOptions { canary, ..StoreOptions::default() };
        let options = OpenOptions { mode: Mode::CreateIfMissing, store, ..OpenOptions::default() };
        LocalCatalog::open(RealDisk::default(), self.0.path().join(pool), options).await.unwrap()
    }

    /// The names of the pools that were opened.
    pub fn pools(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Where a pool is.
    pub fn path(&self, pool: &str) -> std::path::PathBuf {
        self.0.path().join(pool)
    }

    /// Takes away what only the end of a process leaves and the end of the machine does not.
    pub fn forget_unsynced(&self) {
        for entry in std::fs::read_dir(self.0.path().join("pool/live")).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
}
