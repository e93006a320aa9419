//! The conformance suite on the embedded engine: on the file system of temporary files, and on tmpfs. File systems that are made
//! for a test, and can be filled, are in `disks`; power cuts need the simulated disk and are ignored here.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;

use libtest_mimic::Arguments;
use tempfile::TempDir;
use vellum_disk::RealDisk;
use vellum_local::{LocalCatalog, Mode, OpenOptions};
use vellum_suite::{Harness, Result, trials};

/// Two pools in a directory.
struct Pools {
    directory: TempDir,
}

impl Pools {
    fn under(path: &Path) -> Result<Self> {
        Ok(Self { directory: tempfile::tempdir_in(path)? })
    }
}

async fn open(directory: &Path, name: &str) -> Result<LocalCatalog<RealDisk>> {
    let options = OpenOptions { mode: Mode::CreateIfMissing, ..OpenOptions::default() };
    Ok(LocalCatalog::open(RealDisk::default(), directory.join(name), options).await?)
}

impl Harness for Pools {
    type Catalog = LocalCatalog<RealDisk>;

    async fn open(&self) -> Result<Self::Catalog> {
        open(self.directory.path(), "one").await
    }

    async fn open_second_pool(&self) -> Result<Self::Catalog> {
        open(self.directory.path(), "two").await
    }
}

fn main() {
    let mut all = trials("local", || Pools::under(&std::env::temp_dir()));
    let tmpfs = Path::new("/dev/shm");
    if tmpfs.is_dir() {
        all.extend(trials("local-tmpfs", || Pools::under(tmpfs)));
    }
    libtest_mimic::run(&Arguments::from_args(), all).exit();
}
