//! What a process leaves that dies, or whose catalog fails under it. The bodies of such processes are tests of this binary,
//! run by other tests with a pool in the environment; alone they have nothing to do.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rusqlite::Connection;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vellum_disk::{BootId, Disk, FileSystem, OpenMode, RealDisk};
use vellum_engine::{
    Catalog, Change, Durability, ErrorKind, Guard, Guarded, Happened, Head, HeadChange, Pending,
    Prepared, Write,
};
use vellum_local::{LocalCatalog, Mode, OpenOptions};

use crate::fixture::{
    Home, MIB, Pool, byte, clone, image, kind, new_image, open, snapshot, write, write_blocks,
};

const POOL: &str = "VELLUM_TEST_POOL";

fn pool_of_this_process() -> Option<PathBuf> {
    std::env::var_os(POOL).map(PathBuf::from)
}

/// Runs a test of this binary as a process with a pool to work on. It ignores the signal that comes with a file size limit.
fn start(body: &str, pool: &Path) -> Child {
    Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", body, "--nocapture"])
        .env(POOL, pool)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_commit_that_fails_in_the_middle_is_settled_or_stops_the_head() {
    let home = Home::new();
    home.pool().await;
    let child = start("processes::body_with_a_log_that_cannot_grow", &home.path("pool"));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn body_with_a_log_that_cannot_grow() {
    let Some(path) = pool_of_this_process() else { return };
    let pool = open(&path, Mode::Existing).await.unwrap();
    let record = image(&pool, "a").await;
    let log = path.join("pool.sqlite-wal");
    // Room for the small transaction that settles, but not for the snapshot.
    let head = pool.own(&record.id).await.unwrap();
    write_blocks(&head, 0, 1, b'1').await;
    let prepared = head.prepare(snapshot_named("s")).await.unwrap();
    let length = log.metadata().unwrap().len();
    let before = limit_files(Some(length + 2 * 4120));
    let error = prepared.commit().await.unwrap_err();
    assert_eq!((error.kind(), error.happened()), (ErrorKind::Io, Happened::MaybeDone));
    setrlimit(Resource::Fsize, before).unwrap();
    assert!(
        pool.get(&record.id).await.unwrap().snapshots.is_empty(),
        "it is known not to have happened"
    );
    write_blocks(&head, 1, 1, b'2').await;
    let (head, record) = snapshot(head, "s", false).await;
    let sealed = pool.layer(&record.id, &record.snapshots[0].revision).await.unwrap();
    assert_eq!((byte(&sealed, 0).await, byte(&sealed, 1).await), (b'1', b'2'));

    // No room for either.
    write_blocks(&head, 0, 1, b'3').await;
    let prepared = head.prepare(snapshot_named("t")).await.unwrap();
    limit_files(Some(log.metadata().unwrap().len()));
    assert_eq!(prepared.commit().await.unwrap_err().happened(), Happened::MaybeDone);
    setrlimit(Resource::Fsize, before).unwrap();
    assert_eq!(kind(write(&head, 0, b"late").await), ErrorKind::Poisoned);
    assert_eq!(kind(head.sync().await), ErrorKind::Poisoned);
    assert_eq!(byte(head.layer(), 0).await, b'3');
    drop(head);
    let head = pool.own(&record.id).await.unwrap();
    assert_eq!(byte(head.layer(), 0).await, b'3');
    snapshot(head, "t", false).await;
}

fn snapshot_named(name: &str) -> HeadChange {
    HeadChange::Snapshot { name: name.parse().unwrap(), auto: false }
}

fn limit_files(bytes: Option<u64>) -> Rlimit {
    let before = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: bytes, ..before }).unwrap();
    before
}

#[tokio::test]
async fn a_killed_process_leaves_a_pool_that_is_whole() {
    let home = Home::new();
    home.pool().await;
    let mut random = StdRng::seed_from_u64(7);
    let mut looked_at = 0;
    for round in 0..12 {
        let mut child = start("processes::body_that_changes_what_it_can", &home.path("pool"));
        tokio::time::sleep(Duration::from_millis(random.random_range(60..400))).await;
        assert_eq!(child.try_wait().unwrap(), None, "it works until it is killed");
        child.kill().unwrap();
        child.wait().unwrap();
        looked_at += check(&home, round).await;
    }
    assert!(looked_at > 0, "some acknowledged writes were looked at");
}

/// Everything the catalog says is so, and nothing is held any more. Says how many acknowledged writes it looked at.
async fn check(home: &Home, round: u32) -> usize {
    let mut looked_at = 0;
    let pool = home.pool().await;
    let written = acknowledged(&home.path("pool"));
    let rows = Connection::open(home.path("pool").join("pool.sqlite")).unwrap();
    let verdict: String = rows.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok", "round {round}");
    assert!(!rows.prepare("PRAGMA foreign_key_check").unwrap().exists([]).unwrap());
    for record in pool.list(None, usize::MAX).await.unwrap() {
        for revision in &record.revisions {
            if revision.sealed {
                pool.layer(&record.id, &revision.id).await.unwrap();
            }
        }
        for (revision, child) in pool.children(&record.id).await.unwrap() {
            let child = pool.get(&child.image).await.unwrap();
            assert_eq!(child.parent().unwrap().1.revision, revision);
        }
        let head = pool.own(&record.id).await.unwrap();
        if let Some(expected) = written.get(record.id.as_str()) {
            assert_eq!(
                byte(head.layer(), 1).await,
                *expected,
                "round {round}: it was acknowledged"
            );
            looked_at += 1;
        }
        head.close().await.unwrap();
    }
    for pending in pool.pending().await.unwrap() {
        assert!(is_of_a_removed_layer(&pending), "{pending:?}");
        pool.resume(&pending).await.unwrap();
    }
    looked_at
}

/// Nothing else is left to be done: no files are there that no row ever mentioned.
fn is_of_a_removed_layer(pending: &Pending) -> bool {
    pending.what == format!("layer {} was removed, its files are still to go", pending.token)
}

#[tokio::test]
async fn what_a_process_removed_that_died_before_its_files_went_is_pending_and_is_finished() {
    let home = Home::new();
    // It makes the pool too: whoever opens it here looks for what is to be removed, at a moment of its own.
    let path = home.path("pool");
    let child = start("processes::body_that_dies_before_it_removes_a_map", &path);
    let status = child.wait_with_output().unwrap().status;
    assert_eq!(status.code(), Some(DIED_ON_PURPOSE));
    // Whoever may change nothing leaves it as it is.
    let pending = open(&path, Mode::ReadOnly).await.unwrap().pending().await.unwrap();
    let [of_a] = &pending[..] else { panic!("{pending:?}") };
    assert!(is_of_a_removed_layer(of_a), "{pending:?}");
    let files = path.join("layers").join(&of_a.token);
    assert!(files.join("map").exists() && files.join("data.0").exists());

    let pool = home.pool().await;
    assert_eq!(pool.list(None, usize::MAX).await.unwrap(), []);
    pool.resume(of_a).await.unwrap();
    assert!(!files.exists());
    assert_eq!(pool.pending().await.unwrap(), []);
    drop(pool);
    check(&home, 0).await;
}

const DIED_ON_PURPOSE: i32 = 77;

#[tokio::test]
async fn body_that_dies_before_it_removes_a_map() {
    let Some(path) = pool_of_this_process() else { return };
    let disk = DyingDisk(RealDisk::default());
    let options = OpenOptions { mode: Mode::CreateIfMissing, ..OpenOptions::default() };
    let pool = LocalCatalog::open(disk, &path, options).await.unwrap();
    let record = pool.create(new_image("a", MIB)).await.unwrap();
    let head = pool.own(&record.id).await.unwrap();
    let (guard, durability) = (Guard::Edges, Durability::AtSync);
    let write = Write { offset: 0, data: vec![b'a'; 4096].into(), guard, durability };
    assert_eq!(head.write(write).await.unwrap(), Guarded::Done);
    head.close().await.unwrap();
    drop(pool.remove(&record.id, record.version).await);
    panic!("it has died by now");
}

/// A disk whose process dies where it would remove the first file of a layer.
#[derive(Clone, Debug)]
struct DyingDisk(RealDisk);

impl Disk for DyingDisk {
    type File = <RealDisk as Disk>::File;
    type Directory = <RealDisk as Disk>::Directory;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Self::File> {
        self.0.open(path, mode).await
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir(path).await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        if path.ends_with("map") {
            std::process::exit(DIED_ON_PURPOSE);
        }
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
        self.0.file_system(path).await
    }

    async fn boot_id(&self) -> io::Result<Option<BootId>> {
        self.0.boot_id().await
    }
}

/// What each image holds whose last write was acknowledged, by the writers' own account.
fn acknowledged(pool: &Path) -> HashMap<String, u8> {
    let account = std::fs::read_to_string(account_of(pool)).unwrap_or_default();
    let mut written = HashMap::new();
    for line in account.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["done", id, byte] => written.insert(id.to_owned(), byte.parse().unwrap()),
            ["begin", id] => written.remove(id),
            _ => None,
        };
    }
    written
}

fn account_of(pool: &Path) -> PathBuf {
    pool.with_extension("account")
}

fn account(pool: &Pool, line: &str) {
    let path = account_of(pool.path());
    let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

#[tokio::test]
async fn body_that_changes_what_it_can() {
    let Some(path) = pool_of_this_process() else { return };
    let pool = open(&path, Mode::Existing).await.unwrap();
    let mut random = StdRng::seed_from_u64(u64::from(std::process::id()));
    for n in 0.. {
        let images = pool.list(None, 1000).await.unwrap();
        match images.get(random.random_range(0..8)) {
            None => drop(image(&pool, &format!("{}-{n}", std::process::id())).await),
            Some(found) => change(&pool, &mut random, found.clone(), n).await,
        }
    }
}

async fn change(pool: &Pool, random: &mut StdRng, record: vellum_engine::ImageRecord, n: u32) {
    let name = format!("{}-{n}", std::process::id());
    match random.random_range(0..5) {
        0 => drop(pool.remove(&record.id, record.version).await),
        1 if !record.snapshots.is_empty() => drop(clone(pool, &record, &name).await),
        2 if !record.snapshots.is_empty() => {
            let gone = Change::RemoveSnapshot(record.snapshots[0].id.clone());
            drop(pool.change(&record.id, record.version, gone).await);
        }
        3 => {
            let renamed = Change::Rename(name.parse().unwrap());
            drop(pool.change(&record.id, record.version, renamed).await);
        }
        _ => {
            let head = pool.own(&record.id).await.unwrap();
            let byte = b'a' + (n % 26) as u8;
            account(pool, &format!("begin {}\n", record.id));
            write_blocks(&head, 0, 2, byte).await;
            let (head, _) = snapshot(head, &name, random.random_bool(0.5)).await;
            write_blocks(&head, 0, 2, byte).await;
            account(pool, &format!("done {} {byte}\n", record.id));
            if random.random_bool(0.5) {
                head.close().await.unwrap();
            }
        }
    }
}
