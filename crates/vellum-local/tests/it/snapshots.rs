//! Snapshots and cut links: two halves, one outcome.

use std::time::Duration;

use rusqlite::Connection;
use vellum_core::Extent;
use vellum_disk::RealDisk;
use vellum_engine::{
    Catalog, Change, ErrorKind, Guarded, Happened, Head, HeadChange, Ownership, Prepared,
};
use vellum_local::{LocalCatalog, Mode, OpenOptions};

use crate::fixture::{
    Home, byte, child, clone, image, kind, read, snapshot, snapshot_of, write, write_blocks,
};

fn named(name: &str) -> HeadChange {
    HeadChange::Snapshot { name: name.parse().unwrap(), auto: false }
}

#[tokio::test]
async fn a_snapshot_keeps_what_was_there_and_the_successor_goes_on_alone() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    let old = pool.own(&record.id).await.unwrap();
    write_blocks(&old, 0, 1, b'1').await;
    let (new, record) = snapshot(old.clone(), "s", false).await;
    assert_eq!(write(&old, 0, &[b'x'; 4096]).await.unwrap(), Guarded::Sealed);
    assert_eq!((old.ownership(), new.ownership()), (Ownership::Lost, Ownership::Held));
    assert_eq!(kind(old.prepare(named("t")).await), ErrorKind::Invalid);
    write_blocks(&new, 0, 1, b'2').await;
    let sealed = pool.layer(&record.id, &record.snapshots[0].revision).await.unwrap();
    assert_eq!((byte(&sealed, 0).await, byte(new.layer(), 0).await), (b'1', b'2'));
    assert_eq!(byte(old.layer(), 0).await, b'1');
    assert_eq!(pool.get(&record.id).await.unwrap(), record);
    assert_eq!(kind(pool.own(&record.id).await), ErrorKind::InUse);
}

#[tokio::test]
async fn a_snapshot_is_durable_with_all_that_was_acknowledged() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    let head = pool.own(&record.id).await.unwrap();
    write_blocks(&head, 0, 8, b'1').await;
    let (head, record) = snapshot(head, "s", false).await;
    // Everything about the sealed layer is in its map: no live log is left of it.
    let logs: Vec<_> = std::fs::read_dir(pool.live_dir()).unwrap().collect();
    assert!(logs.is_empty(), "{logs:?}");
    drop(head);
    let again = home.pool().await;
    let layer = again.layer(&record.id, &record.snapshots[0].revision).await.unwrap();
    assert_eq!(read(&layer, Extent::new(0, 8 * 4096)).await.0, vec![b'1'; 8 * 4096]);
}

#[tokio::test]
async fn a_prepared_snapshot_that_is_dropped_leaves_the_head_as_it_was() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    let head = pool.own(&record.id).await.unwrap();
    drop(head.prepare(named("s")).await.unwrap());
    write_blocks(&head, 0, 1, b'1').await;
    let (_, after) = snapshot(head, "s", false).await;
    assert_eq!((after.snapshots.len(), after.revisions.len()), (1, 2));
}

#[tokio::test]
async fn a_taken_name_is_refused_before_anything_is_sealed() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    let (head, _) = snapshot(pool.own(&record.id).await.unwrap(), "s", false).await;
    assert_eq!(kind(head.prepare(named("s")).await), ErrorKind::Exists);
    write_blocks(&head, 0, 1, b'1').await;
}

#[tokio::test]
async fn io_goes_on_while_a_snapshot_is_prepared_and_is_in_it() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    let head = pool.own(&record.id).await.unwrap();
    let prepared = head.prepare(named("s")).await.unwrap();
    write_blocks(&head, 0, 1, b'1').await;
    let record = prepared.commit().await.unwrap().record;
    let sealed = pool.layer(&record.id, &record.snapshots[0].revision).await.unwrap();
    assert_eq!(byte(&sealed, 0).await, b'1');
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_committed_leaves_a_head_that_writes() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    let head = pool.own(&record.id).await.unwrap();
    write_blocks(&head, 0, 1, b'1').await;
    // Readers that never let go of the database do not matter to a log; a constraint that is only looked at when the
    // transaction ends does.
    let saboteur = Connection::open(home.path("pool").join("pool.sqlite")).unwrap();
    saboteur
        .execute_batch(
            "CREATE TABLE marks (layer INTEGER REFERENCES layers (id) DEFERRABLE INITIALLY DEFERRED);
             CREATE TRIGGER spoil AFTER INSERT ON snapshots BEGIN INSERT INTO marks VALUES (-1); END;",
        )
        .unwrap();
    let committed = head.prepare(named("s")).await.unwrap().commit().await;
    assert_eq!(kind(committed), ErrorKind::Corrupt);
    assert_eq!(head.ownership(), Ownership::Held);
    write_blocks(&head, 1, 1, b'2').await;
    head.sync().await.unwrap();
    saboteur.execute_batch("DROP TRIGGER spoil").unwrap();
    let (head, record) = snapshot(head, "s", false).await;
    assert_eq!(record.snapshots.len(), 1);
    let sealed = pool.layer(&record.id, &record.snapshots[0].revision).await.unwrap();
    assert_eq!((byte(&sealed, 0).await, byte(&sealed, 1).await), (b'1', b'2'));
    write_blocks(&head, 0, 1, b'3').await;
}

#[tokio::test]
async fn a_busy_catalog_fails_the_snapshot_and_not_the_writes() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    let head = pool.own(&record.id).await.unwrap();
    let other = Connection::open(home.path("pool").join("pool.sqlite")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let preparing = tokio::spawn({
        let head = head.clone();
        async move { head.prepare(named("s")).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    write_blocks(&head, 0, 1, b'1').await;
    assert_eq!(kind(preparing.await.unwrap()), ErrorKind::Busy);
    other.execute_batch("ROLLBACK").unwrap();
    snapshot(head, "s", false).await;
}

#[tokio::test]
async fn a_snapshot_that_is_decided_too_late_is_busy_and_others_went_on_meanwhile() {
    let home = Home::new();
    let options = OpenOptions {
        mode: Mode::CreateIfMissing,
        decision_wait: Duration::from_millis(100),
        ..OpenOptions::default()
    };
    let pool = LocalCatalog::open(RealDisk::default(), home.path("pool"), options).await.unwrap();
    let record = image(&pool, "a").await;
    let head = pool.own(&record.id).await.unwrap();
    write_blocks(&head, 0, 1, b'1').await;
    let late = head.prepare(named("s")).await.unwrap();
    // Another process waits until the catalog is free, and has to wait no longer than that.
    image(&home.pool().await, "b").await;
    let error = late.commit().await.unwrap_err();
    assert_eq!((error.kind(), error.happened()), (ErrorKind::Busy, Happened::NotDone));
    assert_eq!(pool.get(&record.id).await.unwrap(), record);
    assert_eq!(head.ownership(), Ownership::Held);
    write_blocks(&head, 0, 1, b'2').await;
    head.close().await.unwrap();
    let record = snapshot_of(&home.pool().await, &record, "s").await;
    let sealed = pool.layer(&record.id, &record.snapshots[0].revision).await.unwrap();
    assert_eq!((record.snapshots.len(), byte(&sealed, 0).await), (1, b'2'));
}

#[tokio::test]
async fn cutting_the_link_makes_the_child_free_and_lets_the_automatic_snapshot_go() {
    let home = Home::new();
    let pool = home.pool().await;
    let parent = image(&pool, "parent").await;
    let head = pool.own(&parent.id).await.unwrap();
    write_blocks(&head, 0, 1, b'p').await;
    let (head, parent) = snapshot(head, "auto", true).await;
    head.close().await.unwrap();
    let record = clone(&pool, &parent, "child").await.unwrap();
    let listed = pool.children(&parent.id).await.unwrap();
    assert_eq!(listed, [(parent.snapshots[0].revision.clone(), child(&pool, &record))]);
    let owner = pool.own(&record.id).await.unwrap();
    write_blocks(&owner, 0, 1, b'c').await;
    let committed = owner.prepare(HeadChange::CutParent).await.unwrap().commit().await.unwrap();
    assert!(committed.successor.is_none());
    assert_eq!(committed.record.parent(), None);
    write_blocks(&owner, 1, 1, b'd').await;
    drop(owner);
    assert!(pool.children(&parent.id).await.unwrap().is_empty());
    let parent = pool.get(&parent.id).await.unwrap();
    assert!(parent.snapshots.is_empty());
    pool.remove(&parent.id, parent.version).await.unwrap();
    let child = home.pool().await.read_head(&record.id).await.unwrap();
    assert_eq!((byte(&child, 0).await, byte(&child, 1).await), (b'c', b'd'));
}

#[tokio::test]
async fn a_revision_without_a_name_stays_while_newer_ones_inherit_from_it() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    let head = pool.own(&record.id).await.unwrap();
    write_blocks(&head, 0, 1, b'1').await;
    let (head, _) = snapshot(head, "holds-data", false).await;
    let (head, record) = snapshot(head, "holds-nothing", false).await;
    let [full, empty] = [0, 1].map(|n| record.snapshots[n].clone());
    let after =
        pool.change(&record.id, record.version, Change::RemoveSnapshot(empty.id)).await.unwrap();
    assert_eq!(after.revision(&empty.revision), None, "it defined nothing, so it was taken out");
    let after =
        pool.change(&record.id, after.version, Change::RemoveSnapshot(full.id)).await.unwrap();
    assert!(after.snapshots.is_empty());
    assert_eq!(after.revisions.len(), 2);
    let kept = pool.layer(&record.id, &full.revision).await.unwrap();
    assert_eq!(byte(&kept, 0).await, b'1');
    drop(head);
    assert_eq!(pool.get(&record.id).await.unwrap(), after);
}

#[tokio::test]
async fn an_empty_revision_that_is_being_filled_is_not_taken_out() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    let record = snapshot_of(&pool, &record, "s").await;
    let snapshot = record.snapshots[0].clone();
    let filler = home.pool().await.filler(&record.id, &snapshot.revision).await.unwrap();
    let change = Change::RemoveSnapshot(snapshot.id);
    let after = pool.change(&record.id, record.version, change).await.unwrap();
    assert!(after.revision(&snapshot.revision).is_some());
    filler.close().await.unwrap();
}
