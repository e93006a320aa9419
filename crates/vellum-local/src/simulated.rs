//! The conformance suite on a simulated disk, which can cut the power and run full. Files of layers, locks and logs are
//! simulated; the catalog lies on a real directory, since the suite's processes are threads that run at once, and SQLite on the
//! simulated disk does not wait for another thread's lock as long as it would. It keeps what was committed, whatever the power does:
//! that the power also cuts the catalog is for the stories of `vellum-image`.

use std::io;
use std::path::{Path, PathBuf};

use libtest_mimic::Arguments;
use parking_lot::Mutex;
use tempfile::TempDir;
use vellum_disk::{BootId, Disk, FileSystem, OpenMode};
use vellum_suite::{Harness, Result, trials};

use crate::{LocalCatalog, Mode, OpenOptions};
use vellum_sim::SimDisk;

/// Where a simulated disk has its pool.
const SIMULATED: &str = "/pool";

/// A simulated disk that is found at a real directory, beside the catalog.
#[derive(Clone, Debug)]
struct Beside {
    simulated: SimDisk,
    real: PathBuf,
}

impl Beside {
    fn simulated_path(&self, path: &Path) -> PathBuf {
        let inside = path.strip_prefix(&self.real).expect("an engine stays in its directory");
        Path::new(SIMULATED).join(inside)
    }

    fn real_path(&self, path: &Path) -> PathBuf {
        let inside = path.strip_prefix(SIMULATED).expect("the disk has one pool");
        self.real.join(inside)
    }
}

impl Disk for Beside {
    type File = <SimDisk as Disk>::File;
    type Directory = <SimDisk as Disk>::Directory;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Self::File> {
        if path == self.real.join("pool.sqlite") && mode == OpenMode::Create {
            std::fs::File::create_new(path)?;
        }
        self.simulated.open(&self.simulated_path(path), mode).await
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.simulated.create_dir(&self.simulated_path(path)).await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.simulated.remove_file(&self.simulated_path(path)).await
    }

    async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.simulated.remove_dir(&self.simulated_path(path)).await
    }

    async fn list_dir(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let simulated = self.simulated.list_dir(&self.simulated_path(path)).await?;
        let simulated = simulated.iter().map(|path| self.real_path(path));
        let catalog = self.real.join("pool.sqlite");
        let real = (path == self.real && catalog.exists()).then_some(catalog);
        Ok(simulated.chain(real).collect())
    }

    async fn open_dir(&self, path: &Path) -> io::Result<Self::Directory> {
        self.simulated.open_dir(&self.simulated_path(path)).await
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.simulated.sync_dir(&self.simulated_path(path)).await
    }

    async fn file_system(&self, path: &Path) -> io::Result<FileSystem> {
        self.simulated.file_system(&self.simulated_path(path)).await
    }

    async fn boot_id(&self) -> io::Result<Option<BootId>> {
        self.simulated.boot_id().await
    }
}

/// Two pools, each on a simulated disk of its own.
struct Simulated {
    directory: TempDir,
    one: Mutex<SimDisk>,
    two: SimDisk,
}

impl Simulated {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        for pool in ["one", "two"] {
            std::fs::create_dir(directory.path().join(pool))?;
        }
        Ok(Self { directory, one: Mutex::new(SimDisk::new(1)), two: SimDisk::new(2) })
    }

    async fn open(&self, name: &str, simulated: SimDisk) -> Result<LocalCatalog<Beside>> {
        let real = self.directory.path().join(name);
        let disk = Beside { simulated, real: real.clone() };
        let options = OpenOptions { mode: Mode::CreateIfMissing, ..OpenOptions::default() };
        Ok(LocalCatalog::open(disk, real, options).await?)
    }
}

impl Harness for Simulated {
    type Catalog = LocalCatalog<Beside>;

    async fn open(&self) -> Result<Self::Catalog> {
        let disk = self.one.lock().clone();
        self.open("one", disk).await
    }

    async fn open_second_pool(&self) -> Result<Self::Catalog> {
        self.open("two", self.two.clone()).await
    }

    async fn power_cut(&self) -> Result<()> {
        let mut disk = self.one.lock();
        *disk = disk.power_cut();
        Ok(())
    }

    async fn exhaust_space(&self) -> Result<()> {
        self.one.lock().world().free = 1;
        Ok(())
    }

    async fn free_space(&self) -> Result<()> {
        self.one.lock().world().free = u64::MAX;
        Ok(())
    }
}

#[test]
fn the_engine_conforms_and_survives_power_cuts() {
    let all = trials("local-simulated", Simulated::new);
    let asked = all.len();
    let arguments = Arguments { quiet: true, ..Arguments::default() };
    let conclusion = libtest_mimic::run(&arguments, all);
    assert!(!conclusion.has_failed());
    assert!(
        conclusion.num_ignored <= 2,
        "it can be asked everything but what it says it cannot do"
    );
    assert_eq!(conclusion.num_passed + conclusion.num_ignored, asked as u64);
}
