//! Pools that cannot be written.

use vellum_engine::{Catalog, Change, ErrorKind, Head};
use vellum_local::Mode;

use crate::fixture::{Home, Mount, byte, image, kind, new_image, open, snapshot_of, write_blocks};

#[tokio::test]
async fn a_pool_opened_for_reading_refuses_every_change_and_is_not_touched() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    let head = pool.own(&record.id).await.unwrap();
    write_blocks(&head, 0, 1, b'x').await;
    head.close().await.unwrap();
    let record = snapshot_of(&pool, &record, "s").await;
    let looker = open(&home.path("pool"), Mode::ReadOnly).await.unwrap();
    assert!(looker.is_read_only());
    let sealed = &record.snapshots[0].revision;
    assert_eq!(byte(&looker.layer(&record.id, sealed).await.unwrap(), 0).await, b'x');
    looker.read_head(&record.id).await.unwrap();
    let rename = Change::Rename("b".parse().unwrap());
    let read_only = ErrorKind::ReadOnly;
    assert_eq!(kind(looker.create(new_image("b", 4096)).await), read_only);
    assert_eq!(kind(looker.change(&record.id, record.version, rename).await), read_only);
    assert_eq!(kind(looker.remove(&record.id, record.version).await), read_only);
    assert_eq!(kind(looker.own(&record.id).await), read_only);
    assert_eq!(kind(looker.filler(&record.id, sealed).await), read_only);
    assert_eq!(pool.get(&record.id).await.unwrap(), record);
}

#[tokio::test]
async fn a_pool_on_a_read_only_file_system_opens_for_reading() {
    let home = Home::new();
    let Some(mount) = Mount::new(&home, "disk", &["-t", "tmpfs", "-o", "size=256m", "tmpfs"])
    else {
        return;
    };
    let path = mount.path.join("pool");
    let pool = open(&path, Mode::CreateIfMissing).await.unwrap();
    let record = image(&pool, "a").await;
    let head = pool.own(&record.id).await.unwrap();
    write_blocks(&head, 0, 1, b'x').await;
    head.close().await.unwrap();
    let record = snapshot_of(&pool, &record, "s").await;
    close(pool).await;
    mount.remount("ro");
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
    mount.remount("rw");
    for suffix in ["-wal", "-shm"] {
        std::fs::remove_file(path.join(format!("pool.sqlite{suffix}"))).unwrap();
    }
    mount.remount("ro");
    let looker = open(&path, Mode::Existing).await.unwrap();
    assert_eq!(looker.get(&record.id).await.unwrap(), record);
    // And one whose log was copied, but not the index.
    drop(looker);
    mount.remount("rw");
    std::fs::write(path.join("pool.sqlite-wal"), [0; 4096]).unwrap();
    mount.remount("ro");
    assert_eq!(kind(open(&path, Mode::Existing).await), ErrorKind::Unsupported);
    mount.remount("rw");
    std::fs::remove_file(path.join("pool.lock")).unwrap();
    std::fs::remove_file(path.join("pool.sqlite-wal")).unwrap();
    mount.remount("ro");
    let looker = open(&path, Mode::Existing).await.unwrap();
    looker.read_head(&record.id).await.unwrap();
}

/// Closes a pool and waits until its connections are gone, so that its file system can be remounted.
async fn close(pool: crate::fixture::Pool) {
    drop(pool);
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
}
