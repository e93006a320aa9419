//! Catalogs that are damaged, short, or another pool's.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use vellum_engine::{Catalog, ErrorKind, Head};
use vellum_local::Mode;

use crate::fixture::{Home, image, open, write_blocks};

/// Bytes in the header of a SQLite file.
const HEADER: usize = 100;
const PAGE: usize = 4096;
const IMAGES: usize = 51;

/// A pool with images in it, one of which has files, and its catalog, all of it in one file.
async fn pool_with_images(home: &Home) -> Vec<u8> {
    let pool = home.pool().await;
    for n in 0..50 {
        image(&pool, &format!("image-{n:02}")).await;
    }
    let head = pool.own(&image(&pool, "written").await.id).await.unwrap();
    write_blocks(&head, 0, 1, b'x').await;
    head.close().await.unwrap();
    drop(pool);
    let path = home.path("pool").join("pool.sqlite");
    // The pool closes its connections on threads of its own. Nobody changes the mode of a catalog that somebody has open.
    let mode = |mode: &str| {
        let db = rusqlite::Connection::open(&path).unwrap();
        db.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |row| row.get::<_, String>(0))
    };
    while mode("delete").is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(mode("wal").unwrap(), "wal");
    fs::read(&path).unwrap()
}

/// Puts a catalog in place, without what was written beside another one.
fn put(pool: &Path, bytes: &[u8]) {
    for beside in ["pool.sqlite-wal", "pool.sqlite-shm"] {
        let _ = fs::remove_file(pool.join(beside));
    }
    fs::write(pool.join("pool.sqlite"), bytes).unwrap();
}

/// The names of all images, or the kind of the error that a user sees.
async fn names(pool: &Path, mode: Mode) -> Result<Vec<String>, ErrorKind> {
    let pool = open(pool, mode).await.map_err(|error| error.kind())?;
    let images = pool.list(None, 1000).await.map_err(|error| error.kind())?;
    Ok(images.iter().map(|record| record.name.to_string()).collect())
}

/// Waits until this process has a file open no longer. A pool closes its connections on threads of its own.
async fn is_closed(path: &Path) {
    let is_open = || {
        let files = fs::read_dir("/proc/self/fd").unwrap();
        files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|target| target == path))
    };
    while is_open() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn is_clear(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::Invalid)
}

#[tokio::test]
async fn each_changed_byte_in_the_head_of_a_catalog_is_an_error_or_changes_nothing() {
    let home = Home::with_damage();
    let whole = pool_with_images(&home).await;
    let pool = home.path("pool");
    let expected = names(&pool, Mode::ReadOnly).await.unwrap();
    assert_eq!(expected.len(), IMAGES);
    let mut errors = 0;
    for at in 0..HEADER {
        for mode in [Mode::ReadOnly, Mode::Existing] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            put(&pool, &bytes);
            match names(&pool, mode).await {
                Ok(names) => assert_eq!(names, expected, "byte {at}, {mode:?}"),
                Err(kind) => {
                    assert!(is_clear(kind), "byte {at}, {mode:?}: {kind:?}");
                    errors += 1;
                }
            }
        }
    }
    assert!(errors > 50, "the damage hits nothing: {errors}");
}

#[tokio::test]
async fn a_catalog_of_any_other_length_is_an_error_or_lacks_nothing() {
    let home = Home::with_damage();
    let whole = pool_with_images(&home).await;
    let pool = home.path("pool");
    let expected = names(&pool, Mode::ReadOnly).await.unwrap();
    let lengths = (1..whole.len()).step_by(1009).chain([1, 99, 100, 511, 4095, 4096, 4097]);
    for length in lengths {
        for mode in [Mode::ReadOnly, Mode::CreateIfMissing] {
            put(&pool, &whole[..length]);
            match names(&pool, mode).await {
                // Its last page may have nothing in it.
                Ok(names) => {
                    assert!(length > whole.len() - PAGE, "{length} bytes, {mode:?}");
                    assert_eq!(names, expected, "{length} bytes, {mode:?}");
                }
                Err(kind) => assert!(is_clear(kind), "{length} bytes, {mode:?}: {kind:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_changed_byte_in_the_log_of_a_closed_catalog_takes_nothing_away() {
    let home = Home::with_damage();
    let pool = home.pool().await;
    for n in 0..20 {
        image(&pool, &format!("image-{n:02}")).await;
    }
    drop(pool);
    let pool = home.path("pool");
    let log = pool.join("pool.sqlite-wal");
    // The log goes on for as long as its frames have the salts of its header; those of an older one have others.
    let frame = |n: usize| 32 + n * (24 + PAGE);
    let mut bytes = fs::read(&log).unwrap();
    let patience = Instant::now() + Duration::from_secs(20);
    while bytes[frame(1) + 8..frame(1) + 16] == bytes[16..24] {
        assert!(Instant::now() < patience, "the log of a closed catalog has more than one frame");
        tokio::time::sleep(Duration::from_millis(5)).await;
        bytes = fs::read(&log).unwrap();
    }
    assert!(bytes.len() > frame(20), "each image was a commit of its own");
    let catalog = fs::read(pool.join("pool.sqlite")).unwrap();
    // Each byte of the log's header and of the first two frames', and some of their pages and of what follows.
    let heads = (0..frame(0) + 24).chain(frame(1)..frame(1) + 24);
    for at in heads.chain((0..frame(4)).step_by(97)) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        for mode in [Mode::ReadOnly, Mode::Existing] {
            put(&pool, &catalog);
            fs::write(&log, &bytes).unwrap();
            assert_eq!(names(&pool, mode).await.unwrap().len(), 20, "byte {at}, {mode:?}");
            is_closed(&pool.join("pool.sqlite-wal")).await;
        }
    }
}

#[tokio::test]
async fn a_catalog_that_was_only_looked_at_keeps_its_log_as_it_was() {
    let home = Home::new();
    let live = home.pool().await;
    for n in 0..20 {
        image(&live, &format!("image-{n:02}")).await;
    }
    // As a process that was killed leaves it, and the file system read-only for all we know.
    let files = ["pool.sqlite", "pool.sqlite-wal"];
    let left = files.map(|file| fs::read(home.path("pool").join(file)).unwrap());
    assert!(left[1].len() > 2 * PAGE, "the log has more than one frame");
    drop(live);
    is_closed(&home.path("pool").join("pool.sqlite-wal")).await;
    let pool = home.path("pool");
    put(&pool, &left[0]);
    fs::write(pool.join("pool.sqlite-wal"), &left[1]).unwrap();
    for _ in 0..3 {
        assert_eq!(names(&pool, Mode::ReadOnly).await.unwrap().len(), 20);
        is_closed(&pool.join("pool.sqlite-wal")).await;
        for (file, left) in files.iter().zip(&left) {
            assert!(fs::read(pool.join(file)).unwrap() == *left, "{file} was written");
        }
    }
    // Whoever may write leaves it in order.
    assert_eq!(names(&pool, Mode::Existing).await.unwrap().len(), 20);
    is_closed(&pool.join("pool.sqlite-wal")).await;
    assert!(fs::read(pool.join("pool.sqlite")).unwrap() != left[0]);
}

#[tokio::test]
async fn an_emptied_catalog_beside_layers_is_corrupt_and_no_new_one_is_made() {
    let home = Home::with_damage();
    pool_with_images(&home).await;
    let pool = home.path("pool");
    put(&pool, &[]);
    for mode in [Mode::ReadOnly, Mode::Existing, Mode::CreateIfMissing, Mode::ReadOnly] {
        assert_eq!(names(&pool, mode).await.unwrap_err(), ErrorKind::Corrupt, "{mode:?}");
    }
}

#[tokio::test]
async fn the_catalog_of_another_pool_is_refused() {
    let (home, elsewhere) = (Home::with_damage(), Home::new());
    let own = pool_with_images(&home).await;
    let stranger = pool_with_images(&elsewhere).await;
    assert_ne!(own, stranger);
    let pool = home.path("pool");
    put(&pool, &stranger);
    for mode in [Mode::ReadOnly, Mode::Existing] {
        assert_eq!(names(&pool, mode).await.unwrap_err(), ErrorKind::Invalid, "{mode:?}");
    }
}
