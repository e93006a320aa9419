//! What goes when something is removed, what stays, and what a crash leaves.

use std::path::PathBuf;

use rusqlite::Connection;
use vellum_engine::{Catalog, ErrorKind, Head, ImageRecord, Version};

use crate::fixture::{
    Home, Pool, byte, child, clone, image, kind, snapshot, snapshot_of, write_blocks,
};

fn layer_dir(pool: &Pool, record: &ImageRecord) -> PathBuf {
    pool.path().join("layers").join(record.head.as_str())
}

async fn written(pool: &Pool, name: &str) -> ImageRecord {
    let record = image(pool, name).await;
    let head = pool.own(&record.id).await.unwrap();
    write_blocks(&head, 0, 1, b'x').await;
    head.close().await.unwrap();
    record
}

fn database(home: &Home) -> Connection {
    Connection::open(home.path("pool").join("pool.sqlite")).unwrap()
}

#[tokio::test]
async fn an_image_goes_with_its_files() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = written(&pool, "a").await;
    assert!(layer_dir(&pool, &record).exists());
    assert!(pool.stored_bytes(&record.id, &record.head).await.unwrap() >= 4096);
    assert_eq!(kind(pool.remove(&record.id, Version(99)).await), ErrorKind::Conflict);
    pool.remove(&record.id, record.version).await.unwrap();
    assert!(!layer_dir(&pool, &record).exists());
    assert_eq!(kind(pool.get(&record.id).await), ErrorKind::NotFound);
    assert!(pool.pending().await.unwrap().is_empty());
    image(&pool, "a").await;
}

#[tokio::test]
async fn an_image_that_children_hang_on_stays() {
    let home = Home::new();
    let pool = home.pool().await;
    let parent = image(&pool, "parent").await;
    let parent = snapshot_of(&pool, &parent, "s").await;
    let made = clone(&pool, &parent, "child").await.unwrap();
    let version = parent.version;
    assert_eq!(kind(pool.remove(&parent.id, version).await), ErrorKind::HasChildren);
    pool.remove(&made.id, made.version).await.unwrap();
    assert!(pool.children(&parent.id).await.unwrap().is_empty());
    pool.remove(&parent.id, version).await.unwrap();
}

#[tokio::test]
async fn a_child_in_another_pool_is_attached_and_detached_by_hand() {
    let home = Home::new();
    let pool = home.pool().await;
    let parent = image(&pool, "parent").await;
    let (head, parent) = snapshot(pool.own(&parent.id).await.unwrap(), "s", true).await;
    let revision = &parent.snapshots[0].revision;
    let elsewhere = vellum_engine::ChildRef {
        pool: vellum_engine::PoolId([1; 16]),
        image: vellum_engine::ImageId::new("rbd_data.1"),
    };
    pool.attach(&parent.id, revision, &elsewhere).await.unwrap();
    assert_eq!(kind(pool.attach(&parent.id, &parent.head, &elsewhere).await), ErrorKind::NotFound);
    pool.detach(&parent.id, revision, &child(&pool, &parent)).await.unwrap();
    assert_eq!(pool.children(&parent.id).await.unwrap(), [(revision.clone(), elsewhere.clone())]);
    drop(head);
    for _ in 0..2 {
        pool.detach(&parent.id, revision, &elsewhere).await.unwrap();
    }
    let left = pool.get(&parent.id).await.unwrap();
    assert!(left.snapshots.is_empty(), "the automatic snapshot went with its last child");
    assert_eq!(left.revisions.len(), 1, "and what it named was empty");
}

#[tokio::test]
async fn files_that_a_crash_left_are_removed_at_the_next_opening() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = written(&pool, "a").await;
    let kept = written(&pool, "kept").await;
    // As if the process had died right after the transaction that removed the image.
    database(&home)
        .execute_batch(
            "BEGIN; DELETE FROM images WHERE name = 'a';
             INSERT INTO removed SELECT id FROM layers WHERE image NOT IN (SELECT id FROM images);
             DELETE FROM layers WHERE id IN (SELECT layer FROM removed); COMMIT;",
        )
        .unwrap();
    assert_eq!(pool.pending().await.unwrap().len(), 1);
    let again = home.pool().await;
    for _ in 0..200 {
        if again.pending().await.unwrap().is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(again.pending().await.unwrap().is_empty());
    assert!(!layer_dir(&pool, &record).exists());
    assert!(layer_dir(&pool, &kept).exists());
}

#[tokio::test]
async fn files_newer_than_a_restored_catalog_stay_until_somebody_says_so() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = written(&pool, "a").await;
    let strange = written(&pool, "strange").await;
    database(&home)
        .execute_batch(
            "BEGIN; DELETE FROM images WHERE name = 'strange';
             DELETE FROM layers WHERE image NOT IN (SELECT id FROM images); COMMIT;",
        )
        .unwrap();
    let again = home.pool().await;
    let pending = again.pending().await.unwrap();
    assert_eq!(pending.len(), 1);
    assert!(pending[0].what.contains(strange.head.as_str()), "{:?}", pending[0]);
    assert!(layer_dir(&pool, &strange).exists());
    for _ in 0..2 {
        again.resume(&pending[0]).await.unwrap();
    }
    assert!(!layer_dir(&pool, &strange).exists());
    assert!(again.pending().await.unwrap().is_empty());
    // A layer that is in use is never garbage, whatever somebody asks for.
    let lie = vellum_engine::Pending { what: String::new(), token: record.head.to_string() };
    again.resume(&lie).await.unwrap();
    assert!(layer_dir(&pool, &record).exists());
    let nonsense = vellum_engine::Pending { what: String::new(), token: "../..".into() };
    assert_eq!(kind(again.resume(&nonsense).await), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_reader_of_a_removed_image_reads_on_or_is_told_that_it_is_gone() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    let head = pool.own(&record.id).await.unwrap();
    write_blocks(&head, 0, 1, b'x').await;
    let (head, record) = snapshot(head, "s", false).await;
    head.close().await.unwrap();
    let other = home.pool().await;
    let revision = &record.snapshots[0].revision;
    let open = other.layer(&record.id, revision).await.unwrap();
    let unread = home.pool().await.layer(&record.id, revision).await.unwrap();
    assert_eq!(byte(&open, 0).await, b'x');
    pool.remove(&record.id, record.version).await.unwrap();
    assert_eq!(byte(&open, 0).await, b'x');
    let buffer = vellum_core::Buffer::from_vec(vec![0; 4096]);
    let at = vellum_core::Extent::new(0, 4096);
    let (_, result) = vellum_engine::Layer::read(&unread, at, buffer, 0..4096).await;
    assert_eq!(kind(result), ErrorKind::NotFound);
    assert_eq!(kind(other.layer(&record.id, revision).await), ErrorKind::NotFound);
}
