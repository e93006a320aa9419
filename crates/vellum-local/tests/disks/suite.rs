//! The conformance suite, each case on a file system of its own that ends with it.

use libtest_mimic::Trial;
use vellum_disk::RealDisk;
use vellum_local::{LocalCatalog, Mode, OpenOptions};
use vellum_suite::{Harness, Result, Skip};
use vellum_testkit::mounted::{Kind, Mounted};

/// The file systems, and sizes that leave a pool room for its reserve and are not below what can be made.
const DISKS: [(Kind, u64); 4] = [
    (Kind::Tmpfs, 96 << 20),
    (Kind::Ext4, 128 << 20),
    (Kind::Xfs, 300 << 20),
    (Kind::Btrfs, 256 << 20),
];

pub fn trials() -> Vec<Trial> {
    let suites = DISKS.into_iter().flat_map(|(kind, size)| {
        let name = format!("local-{}", kind.name());
        vellum_suite::trials(&name, move || OnDisk::new(kind, size))
    });
    suites.collect()
}

/// Pools on one file system.
struct OnDisk {
    kind: Kind,
    mounted: Result<Mounted, String>,
}

impl OnDisk {
    fn new(kind: Kind, size: u64) -> Result<Self> {
        let mounted = match kind.unavailable() {
            Some(reason) => Err(reason),
            None => Ok(Mounted::new(kind, size)?),
        };
        Ok(Self { kind, mounted })
    }

    fn mounted(&self) -> Result<&Mounted> {
        self.mounted.as_ref().map_err(Skip::because)
    }

    async fn pool(&self, name: &str) -> Result<LocalCatalog<RealDisk>> {
        let options = OpenOptions { mode: Mode::CreateIfMissing, ..OpenOptions::default() };
        let path = self.mounted()?.path().join(name);
        Ok(LocalCatalog::open(RealDisk::default(), path, options).await?)
    }
}

impl Harness for OnDisk {
    type Catalog = LocalCatalog<RealDisk>;

    async fn open(&self) -> Result<Self::Catalog> {
        self.pool("one").await
    }

    async fn open_second_pool(&self) -> Result<Self::Catalog> {
        self.pool("two").await
    }

    async fn exhaust_space(&self) -> Result<()> {
        if self.kind == Kind::Btrfs {
            return Err(Skip::because("btrfs tells of a full disk when it is too late, at a sync"));
        }
        self.mounted()?.fill()
    }

    async fn free_space(&self) -> Result<()> {
        self.mounted()?.empty()
    }
}
