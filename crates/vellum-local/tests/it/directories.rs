//! What is a pool, what is not, and which one it is.

use std::path::Path;
use std::process::Command;

use vellum_disk::RealDisk;
use vellum_engine::{Catalog, ErrorKind, Head};
use vellum_local::{Copies, LocalCatalog, Mode, OpenOptions};

use crate::fixture::{Home, byte, clone, image, kind, open, snapshot_of, write_blocks};

#[tokio::test]
async fn a_pool_is_created_once_and_found_again() {
    let home = Home::new();
    let path = home.path("pool");
    assert_eq!(kind(open(&path, Mode::Existing).await), ErrorKind::NotFound);
    assert!(!path.exists(), "looking creates nothing");
    let made = home.pool().await;
    let record = image(&made, "a").await;
    let id = made.pool();
    drop(made);
    for mode in [Mode::CreateIfMissing, Mode::Existing, Mode::ReadOnly] {
        let found = open(&path, mode).await.unwrap();
        assert_eq!((found.pool(), found.get(&record.id).await.unwrap()), (id, record.clone()));
    }
}

#[tokio::test]
async fn two_who_create_a_pool_at_once_get_the_same_one() {
    for _ in 0..10 {
        let home = Home::new();
        let path = home.path("pool");
        let create = || open(&path, Mode::CreateIfMissing);
        let (one, two, three) = tokio::join!(create(), create(), create());
        let ids = [one.unwrap().pool(), two.unwrap().pool(), three.unwrap().pool()];
        assert!(ids.iter().all(|id| *id == ids[0]));
    }
}

#[tokio::test]
async fn a_directory_with_other_things_is_left_alone() {
    let home = Home::new();
    let path = home.path("pool");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("letter"), "dear").unwrap();
    assert_eq!(kind(open(&path, Mode::CreateIfMissing).await), ErrorKind::Invalid);
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1);
    std::fs::remove_file(path.join("letter")).unwrap();
    std::fs::create_dir(path.join("lost+found")).unwrap();
    open(&path, Mode::CreateIfMissing).await.unwrap();
}

#[tokio::test]
async fn layers_without_a_catalog_are_not_made_into_a_new_pool() {
    let home = Home::new();
    let path = home.path("pool");
    home.pool().await;
    std::fs::create_dir(path.join("layers/00000000000000ab")).unwrap();
    std::fs::remove_file(path.join("pool.sqlite")).unwrap();
    for mode in [Mode::CreateIfMissing, Mode::Existing] {
        assert_eq!(kind(open(&path, mode).await), ErrorKind::Corrupt);
    }
}

#[tokio::test]
async fn a_catalog_without_the_directory_of_its_layers_is_corrupt_and_none_is_made() {
    let home = Home::new();
    let path = home.path("pool");
    image(&home.pool().await, "a").await;
    std::fs::remove_dir(path.join("layers")).unwrap();
    for mode in [Mode::ReadOnly, Mode::Existing, Mode::CreateIfMissing, Mode::ReadOnly] {
        assert_eq!(kind(open(&path, mode).await), ErrorKind::Corrupt, "{mode:?}");
    }
    std::fs::create_dir(path.join("layers")).unwrap();
    open(&path, Mode::Existing).await.unwrap();
}

#[tokio::test]
async fn a_pool_whose_lock_file_was_removed_is_refused_and_none_is_made() {
    let home = Home::new();
    let path = home.path("pool");
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    let head = pool.own(&record.id).await.unwrap();
    std::fs::remove_file(path.join("pool.lock")).unwrap();
    for mode in [Mode::ReadOnly, Mode::Existing, Mode::CreateIfMissing, Mode::ReadOnly] {
        assert_eq!(kind(open(&path, mode).await), ErrorKind::Corrupt, "{mode:?}");
    }
    write_blocks(&head, 0, 1, b'x').await;
    head.close().await.unwrap();
    drop(pool);
    std::fs::write(path.join("pool.lock"), "").unwrap();
    open(&path, Mode::Existing).await.unwrap().own(&record.id).await.unwrap();
}

#[tokio::test]
async fn a_pool_that_was_brought_back_without_its_live_directory_goes_on() {
    for mode in [Mode::Existing, Mode::CreateIfMissing] {
        let home = Home::new();
        let path = home.path("pool");
        let record = image(&home.pool().await, "a").await;
        std::fs::remove_dir_all(path.join("live")).unwrap();
        let looker = open(&path, Mode::ReadOnly).await.unwrap();
        looker.read_head(&record.id).await.unwrap();
        assert!(!path.join("live").exists(), "looking makes nothing");
        let head = open(&path, mode).await.unwrap().own(&record.id).await.unwrap();
        write_blocks(&head, 0, 1, b'x').await;
        head.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_pool_that_is_moved_while_an_image_is_written_is_synced_where_it_is() {
    let home = Home::new();
    let (path, elsewhere) = (home.path("pool"), home.path("elsewhere"));
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    let head = pool.own(&record.id).await.unwrap();
    write_blocks(&head, 0, 1, b'a').await;
    std::fs::rename(&path, &elsewhere).unwrap();
    write_blocks(&head, 1, 1, b'b').await;
    head.sync().await.unwrap();
    write_blocks(&head, 2, 1, b'c').await;
    head.sync().await.unwrap();
    std::fs::rename(&elsewhere, &path).unwrap();
    write_blocks(&head, 3, 1, b'd').await;
    head.close().await.unwrap();
    let layer = pool.read_head(&record.id).await.unwrap();
    for (block, expected) in [b'a', b'b', b'c', b'd'].into_iter().enumerate() {
        assert_eq!(byte(&layer, block as u64).await, expected);
    }
}

#[tokio::test]
async fn what_a_crash_left_of_a_creation_is_completed() {
    let home = Home::new();
    let path = home.path("pool");
    std::fs::create_dir(&path).unwrap();
    let pieces: [fn(&Path); 4] = [
        |path| drop(std::fs::File::create(path.join("pool.lock")).unwrap()),
        |path| std::fs::create_dir(path.join("layers")).unwrap(),
        |path| std::fs::create_dir(path.join("live")).unwrap(),
        |path| drop(std::fs::File::create(path.join("pool.sqlite")).unwrap()),
    ];
    for piece in pieces {
        piece(&path);
        assert_eq!(kind(open(&path, Mode::Existing).await), ErrorKind::NotFound);
    }
    open(&path, Mode::CreateIfMissing).await.unwrap();
    open(&path, Mode::Existing).await.unwrap();
}

#[tokio::test]
async fn a_moved_pool_stays_the_same_and_a_copied_one_is_refused() {
    let home = Home::new();
    let (first, second, third) = (home.path("pool"), home.path("moved"), home.path("copy"));
    let id = home.pool().await.pool();
    std::fs::rename(&first, &second).unwrap();
    assert_eq!(open(&second, Mode::Existing).await.unwrap().pool(), id);
    copy(&second, &third);
    for mode in [Mode::Existing, Mode::ReadOnly] {
        let error = open(&third, mode).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(second.to_str().unwrap()), "{error}");
    }
    assert_eq!(open(&second, Mode::Existing).await.unwrap().pool(), id, "the original opens");
    std::fs::remove_dir_all(&second).unwrap();
    assert_eq!(open(&third, Mode::Existing).await.unwrap().pool(), id, "the original is gone");
}

#[tokio::test]
async fn a_copied_pool_with_a_new_id_is_a_pool_of_its_own() {
    let home = Home::new();
    let (path, copied) = (home.path("pool"), home.path("copy"));
    let pool = home.pool().await;
    let parent = image(&pool, "parent").await;
    let parent = snapshot_of(&pool, &parent, "s").await;
    let child = clone(&pool, &parent, "child").await.unwrap();
    copy(&path, &copied);
    let options = OpenOptions { copies: Copies::GiveNewId, ..OpenOptions::default() };
    let own = LocalCatalog::open(RealDisk::default(), &copied, options).await.unwrap();
    assert_ne!(own.pool(), pool.pool());
    let link = own.get(&child.id).await.unwrap().parent().unwrap().1.clone();
    assert_eq!((link.pool, &link.image), (own.pool(), &parent.id));
    let again = open(&copied, Mode::Existing).await.unwrap();
    assert_eq!(again.pool(), own.pool());
    assert_eq!(again.children(&parent.id).await.unwrap()[0].1.pool, own.pool());
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

#[tokio::test]
async fn a_network_file_system_is_refused_before_anything_is_made() {
    // No network file system can be mounted in a test, so a disk says that this is one.
    let home = Home::new();
    let path = home.path("pool");
    let opened = LocalCatalog::open(
        crate::fixture::RemoteDisk(RealDisk::default()),
        &path,
        OpenOptions { mode: Mode::CreateIfMissing, ..OpenOptions::default() },
    )
    .await;
    let error = opened.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("nfs"), "{error}");
    assert!(!path.exists());
}
