//! A pool in a directory of its own, and short ways to say what is done to it.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use vellum_core::{Buffer, Extent, Geometry, Runs};
use vellum_disk::{BootId, Disk, FileSystem, OpenMode, RealDisk};
use vellum_engine::{
    Catalog, ChildRef, Committed, Durability, ErrorKind, Guard, Guarded, Head, HeadChange,
    ImageRecord, Layer, Layering, NewImage, NewParent, ParentLink, Prepared, Repair, Result,
    Severity, Write,
};
use vellum_local::{LocalCatalog, LocalHead, Mode, OpenOptions};

pub(crate) type Pool = LocalCatalog<RealDisk>;
pub(crate) type Owner = LocalHead<RealDisk>;

pub(crate) const MIB: u64 = 1 << 20;

/// A directory that goes with its tests, and the path of a pool in it, which must be in order where its test ends.
pub(crate) struct Home {
    directory: tempfile::TempDir,
    is_checked: bool,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), is_checked: true }
    }

    /// One whose pool the test damages, and leaves so.
    pub(crate) fn with_damage() -> Self {
        let mut home = Self::new();
        home.is_checked = false;
        home
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The pool `pool`, created if it does not exist. Each call opens it anew, as another process would.
    pub(crate) async fn pool(&self) -> Pool {
        open(&self.path("pool"), Mode::CreateIfMissing).await.unwrap()
    }
}

impl Drop for Home {
    /// The check of the pool finds no damage and nothing stale. What a head leaves that was not closed is no damage.
    fn drop(&mut self) {
        let pool = self.path("pool");
        if !self.is_checked || std::thread::panicking() || !pool.join("pool.sqlite").exists() {
            return;
        }
        // The runtime of the test is still running, and knows nothing of another one on a thread of its own.
        let check = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let pool = open(&pool, Mode::Existing).await.unwrap();
                pool.check(None, Repair::No).await.unwrap()
            })
        });
        let wrong = [Severity::Damage, Severity::Stale];
        let mut findings = check.join().unwrap();
        findings.retain(|found| wrong.contains(&found.severity));
        assert!(findings.is_empty(), "{findings:?}");
    }
}

pub(crate) async fn open(path: &Path, mode: Mode) -> Result<Pool> {
    LocalCatalog::open(RealDisk::default(), path, OpenOptions { mode, ..OpenOptions::default() })
        .await
}

pub(crate) fn new_image(name: &str, size: u64) -> NewImage {
    NewImage {
        name: name.parse().unwrap(),
        size,
        geometry: Geometry::default(),
        layering: Layering::Sparse,
        block_size: 4096,
        parent: None,
        id: None,
        meta: Default::default(),
    }
}

pub(crate) async fn image(pool: &Pool, name: &str) -> ImageRecord {
    pool.create(new_image(name, MIB)).await.unwrap()
}

/// A clone of the newest snapshot.
pub(crate) async fn clone(pool: &Pool, parent: &ImageRecord, name: &str) -> Result<ImageRecord> {
    let snapshot = parent.snapshots.last().expect("it has a snapshot");
    let link = ParentLink {
        pool: pool.pool(),
        image: parent.id.clone(),
        revision: snapshot.revision.clone(),
    };
    let size = parent.revision(&snapshot.revision).unwrap().size;
    let parent = Some(NewParent { link, overlap: size });
    pool.create(NewImage { parent, ..new_image(name, size) }).await
}

pub(crate) fn child(pool: &Pool, record: &ImageRecord) -> ChildRef {
    ChildRef { pool: pool.pool(), image: record.id.clone() }
}

/// Takes a snapshot and goes on with the head that took over.
pub(crate) async fn snapshot(head: Owner, name: &str, auto: bool) -> (Owner, ImageRecord) {
    let change = HeadChange::Snapshot { name: name.parse().unwrap(), auto };
    let Committed { record, successor } =
        head.prepare(change).await.unwrap().commit().await.unwrap();
    (successor.expect("snapshots are sealed layers here"), record)
}

/// Snapshots an image that nobody owns.
pub(crate) async fn snapshot_of(pool: &Pool, image: &ImageRecord, name: &str) -> ImageRecord {
    let head = pool.own(&image.id).await.unwrap();
    let (head, record) = snapshot(head, name, false).await;
    head.close().await.unwrap();
    record
}

pub(crate) async fn write(head: &Owner, offset: u64, data: &[u8]) -> Result<Guarded> {
    head.write(Write {
        offset,
        data: Bytes::copy_from_slice(data),
        guard: Guard::Edges,
        durability: Durability::AtSync,
    })
    .await
}

/// Writes whole blocks, which needs nothing to be defined.
pub(crate) async fn write_blocks(head: &Owner, first: u64, blocks: u64, byte: u8) {
    let data = vec![byte; (blocks * 4096) as usize];
    assert_eq!(write(head, first * 4096, &data).await.unwrap(), Guarded::Done);
}

/// What a layer holds, with `?` for what it inherits.
pub(crate) async fn read(layer: &impl Layer, at: Extent) -> (Vec<u8>, Runs) {
    let buffer = Buffer::from_vec(vec![b'?'; at.len_usize()]);
    let (buffer, runs) = layer.read(at, buffer, 0..at.len_usize()).await;
    (buffer.to_vec(), runs.unwrap())
}

/// The first byte of a block, as a layer holds it.
pub(crate) async fn byte(layer: &impl Layer, block: u64) -> u8 {
    read(layer, Extent::new(block * 4096, 4096)).await.0[0]
}

#[track_caller]
pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// A disk that says it is another machine's.
#[derive(Clone, Debug)]
pub(crate) struct RemoteDisk(pub(crate) RealDisk);

impl Disk for RemoteDisk {
    type File = <RealDisk as Disk>::File;
    type Directory = <RealDisk as Disk>::Directory;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Self::File> {
        self.0.open(path, mode).await
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir(path).await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.0.remove_file(path).await
    }

    async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.0.remove_dir(path).await
    }

    async fn list_dir(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.0.list_dir(path).await
    }

    async fn open_dir(&self, path: &Path) -> io::Result<Self::Directory> {
        self.0.open_dir(path).await
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.sync_dir(path).await
    }

    async fn file_system(&self, path: &Path) -> io::Result<FileSystem> {
        let real = self.0.file_system(path).await?;
        Ok(FileSystem { name: "nfs".to_owned(), local: false, ..real })
    }

    async fn boot_id(&self) -> io::Result<Option<BootId>> {
        self.0.boot_id().await
    }
}
