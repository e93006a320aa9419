//! Pools on a file system that cannot be written.

use libtest_mimic::Trial;
use vellum_engine::{Catalog, ErrorKind, Head};
use vellum_local::Mode;
use vellum_testkit::mounted::{Kind, Mounted};
use vellum_testkit::process::closed;

use crate::fixture::{MIB, byte, image, kind, open, snapshot_of, write_blocks};
use crate::on;

pub fn trials() -> Vec<Trial> {
    let disks = [(Kind::Tmpfs, 256), (Kind::Ext4, 256), (Kind::Xfs, 320), (Kind::Btrfs, 256)];
    let trial = |(kind, size)| {
        on(kind, size * MIB, "a_pool_on_a_read_only_file_system_opens_for_reading", |disk| {
            Box::pin(a_pool_on_a_read_only_file_system_opens_for_reading(disk))
        })
    };
    disks.map(trial).into()
}

async fn a_pool_on_a_read_only_file_system_opens_for_reading(disk: Mounted) {
    let path = disk.path().join("pool");
    let pool = open(&path, Mode::CreateIfMissing).await.unwrap();
    let record = image(&pool, "a").await;
    let head = pool.own(&record.id).await.unwrap();
    write_blocks(&head, 0, 1, b'x').await;
    head.close().await.unwrap();
    let record = snapshot_of(&pool, &record, "s").await;
    drop(pool);
    closed(&path).unwrap();
    disk.remount("ro").unwrap();
    for mode in [Mode::CreateIfMissing, Mode::Existing, Mode::ReadOnly] {
        let looker = open(&path, mode).await.unwrap();
        assert!(looker.is_read_only());
        assert_eq!(looker.get(&record.id).await.unwrap(), record);
        let sealed = looker.layer(&record.id, &record.snapshots[0].revision).await.unwrap();
        assert_eq!(byte(&sealed, 0).await, b'x');
        looker.read_head(&record.id).await.unwrap();
        assert_eq!(kind(looker.own(&record.id).await), ErrorKind::ReadOnly);
    }
    // As a copy made without the log and its index, for an image of a file system.
    closed(&path).unwrap();
    disk.remount("rw").unwrap();
    for suffix in ["-wal", "-shm"] {
        std::fs::remove_file(path.join(format!("pool.sqlite{suffix}"))).unwrap();
    }
    disk.remount("ro").unwrap();
    let looker = open(&path, Mode::Existing).await.unwrap();
    assert_eq!(looker.get(&record.id).await.unwrap(), record);
    // And one whose log was copied, but not the index.
    drop(looker);
    closed(&path).unwrap();
    disk.remount("rw").unwrap();
    std::fs::write(path.join("pool.sqlite-wal"), [0; 4096]).unwrap();
    disk.remount("ro").unwrap();
    assert_eq!(kind(open(&path, Mode::Existing).await), ErrorKind::Unsupported);
    disk.remount("rw").unwrap();
    std::fs::remove_file(path.join("pool.lock")).unwrap();
    std::fs::remove_file(path.join("pool.sqlite-wal")).unwrap();
    disk.remount("ro").unwrap();
    let looker = open(&path, Mode::Existing).await.unwrap();
    looker.read_head(&record.id).await.unwrap();
}
