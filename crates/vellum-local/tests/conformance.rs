//! The conformance suite on the embedded engine: on the file system of temporary files, on tmpfs, and, where mounting is
//! allowed, on a small file system of its own that can be filled. Power cuts need a simulated disk and are ignored here.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Arguments;
use tempfile::TempDir;
use vellum_disk::RealDisk;
use vellum_local::{LocalCatalog, Mode, OpenOptions};
use vellum_suite::{Harness, Result, Skip, trials};

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

/// A pool on a file system that ends with its case.
struct SmallDisk {
    directory: TempDir,
    filler: PathBuf,
    mounted: bool,
}

impl SmallDisk {
    fn mount() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let filler = directory.path().join("filler");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=96m", "tmpfs"])
            .arg(directory.path())
            .output()?;
        Ok(Self { directory, filler, mounted: mounted.status.success() })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.directory.path()).status();
    }
}

impl Harness for SmallDisk {
    type Catalog = LocalCatalog<RealDisk>;

    async fn open(&self) -> Result<Self::Catalog> {
        if !self.mounted {
            return Err(Skip::because("mounting a small file system is not allowed here"));
        }
        open(self.directory.path(), "pool").await
    }

    async fn exhaust_space(&self) -> Result<()> {
        let mut filler = std::fs::File::create(&self.filler)?;
        let chunk = vec![1; 4096];
        while filler.write_all(&chunk).is_ok() {}
        Ok(())
    }

    async fn free_space(&self) -> Result<()> {
        Ok(std::fs::remove_file(&self.filler)?)
    }
}

fn main() {
    let mut all = trials("local", || Pools::under(&std::env::temp_dir()));
    let tmpfs = Path::new("/dev/shm");
    if tmpfs.is_dir() {
        all.extend(trials("local-tmpfs", || Pools::under(tmpfs)));
    }
    all.extend(trials("local-small-disk", SmallDisk::mount));
    libtest_mimic::run(&Arguments::from_args(), all).exit();
}
