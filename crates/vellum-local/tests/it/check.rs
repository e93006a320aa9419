//! What a check finds, what it repairs, and what it leaves alone.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use vellum_core::Extent;
use vellum_engine::{
    Catalog, ChildRef, ErrorKind, Finding, Head, ImageId, ImageRecord, PoolId, Repair, Severity,
};
use vellum_local::Mode;

use crate::fixture::{
    Home, MIB, Pool, byte, clone, image, kind, open, read, snapshot, snapshot_of, write_blocks,
};

const BLOCK: u64 = 4096;

fn layer_dir(pool: &Pool, record: &ImageRecord) -> PathBuf {
    pool.path().join("layers").join(record.head.as_str())
}

/// An image with blocks 0 to 3 and 10, closed.
async fn written(pool: &Pool, name: &str) -> ImageRecord {
    let record = image(pool, name).await;
    let head = pool.own(&record.id).await.unwrap();
    write_blocks(&head, 0, 4, b'x').await;
    write_blocks(&head, 10, 1, b'y').await;
    head.close().await.unwrap();
    record
}

async fn check(pool: &Pool) -> Vec<Finding> {
    pool.check(None, Repair::No).await.unwrap()
}

fn severities(findings: &[Finding]) -> Vec<Severity> {
    findings.iter().map(|finding| finding.severity).collect()
}

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

fn database(home: &Home) -> Connection {
    Connection::open(home.path("pool").join("pool.sqlite")).unwrap()
}

#[tokio::test]
async fn a_pool_in_good_order_has_no_findings() {
    let home = Home::new();
    let pool = home.pool().await;
    let parent = written(&pool, "parent").await;
    let parent = snapshot_of(&pool, &parent, "s").await;
    let child = clone(&pool, &parent, "child").await.unwrap();
    let head = pool.own(&child.id).await.unwrap();
    write_blocks(&head, 5, 2, b'z').await;
    // Its process dies, and leaves a log behind.
    drop(head);
    for repair in [Repair::No, Repair::Safe] {
        let findings = home.pool().await.check(None, repair).await.unwrap();
        assert!(findings.is_empty(), "{repair:?}: {findings:?}");
    }
    let head = pool.own(&child.id).await.unwrap();
    assert_eq!(byte(head.layer(), 5).await, b'z');
}

#[tokio::test]
async fn lost_and_damaged_files_are_damage_that_names_image_and_place() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm, &str); 5] = [
        ("a data file is missing", |dir| fs::remove_file(dir.join("data.0")).unwrap(), ""),
        (
            "a data file is short",
            |dir| {
                let file = fs::OpenOptions::new().write(true).open(dir.join("data.0")).unwrap();
                file.set_len(2 * BLOCK).unwrap();
            },
            "",
        ),
        ("a page of the map is damaged", |dir| flip(&dir.join("map"), BLOCK + 20), "map"),
        ("the header of the map is damaged", |dir| flip(&dir.join("map"), 20), "map"),
        ("the map is missing", |dir| fs::remove_file(dir.join("map")).unwrap(), "map"),
    ];
    for (what, harm, named) in harms {
        for repair in [Repair::No, Repair::Safe] {
            let home = Home::with_damage();
            let pool = home.pool().await;
            let record = written(&pool, "harmed").await;
            written(&pool, "whole").await;
            harm(&layer_dir(&pool, &record));
            let findings = home.pool().await.check(None, repair).await.unwrap();
            assert_eq!(severities(&findings), [Severity::Damage], "{what}: {findings:?}");
            let finding = &findings[0];
            assert_eq!(finding.image.as_ref().map(|name| name.as_str()), Some("harmed"), "{what}");
            assert!(finding.stands() && finding.what.contains(named), "{what}: {finding:?}");
        }
    }
}

#[tokio::test]
async fn lost_files_of_an_image_whose_log_is_there_are_damage_that_names_it() {
    for repair in [Repair::No, Repair::Safe] {
        let home = Home::with_damage();
        let pool = home.pool().await;
        let record = image(&pool, "lost").await;
        let head = pool.own(&record.id).await.unwrap();
        write_blocks(&head, 0, 4, b'x').await;
        head.sync().await.unwrap();
        write_blocks(&head, 4, 1, b'y').await;
        // Its process dies, and somebody takes the files away.
        drop(head);
        fs::remove_dir_all(layer_dir(&pool, &record)).unwrap();
        let pool = home.pool().await;
        let findings = pool.check(None, repair).await.unwrap();
        assert_eq!(severities(&findings), [Severity::Damage], "{findings:?}");
        assert_eq!(findings[0].image.as_ref(), Some(&record.name));
        assert_eq!(kind(pool.own(&record.id).await), ErrorKind::Corrupt);
        assert_eq!(kind(pool.read_head(&record.id).await), ErrorKind::Corrupt);
    }
}

#[tokio::test]
async fn space_under_units_that_are_not_data_is_a_leak_and_can_be_freed() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = written(&pool, "image").await;
    // As a write leaves it that was never acknowledged.
    let data = layer_dir(&pool, &record).join("data.0");
    let file = fs::OpenOptions::new().write(true).open(&data).unwrap();
    file.write_all_at(&[7; 3 * BLOCK as usize], 6 * BLOCK).unwrap();
    file.sync_all().unwrap();
    let findings = check(&pool).await;
    assert_eq!(severities(&findings), [Severity::Leak], "{findings:?}");
    assert!(findings[0].what.contains(&(3 * BLOCK).to_string()), "{findings:?}");
    let repaired = pool.check(None, Repair::Safe).await.unwrap();
    assert!(repaired.len() == 1 && !repaired[0].stands(), "{repaired:?}");
    assert!(check(&pool).await.is_empty());
    let head = pool.own(&record.id).await.unwrap();
    let (bytes, _) = read(head.layer(), Extent::new(0, 11 * BLOCK)).await;
    let seen: Vec<u8> = bytes.chunks(BLOCK as usize).map(|block| block[0]).collect();
    assert_eq!(seen, b"xxxx??????y");
}

#[tokio::test]
async fn bytes_behind_the_end_of_an_image_are_a_leak_that_is_freed_if_that_is_asked_for() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = written(&pool, "image").await;
    let data = layer_dir(&pool, &record).join("data.0");
    let file = fs::OpenOptions::new().write(true).open(&data).unwrap();
    file.write_all_at(&[7; 3 * BLOCK as usize], MIB + 6 * BLOCK).unwrap();
    file.sync_all().unwrap();
    for repair in [Repair::No, Repair::Safe] {
        let findings = pool.check(None, repair).await.unwrap();
        assert_eq!(severities(&findings), [Severity::Leak], "{findings:?}");
        let expected = [(3 * BLOCK).to_string(), "behind the end of the image".to_owned()];
        assert!(expected.iter().all(|told| findings[0].what.contains(told)), "{findings:?}");
        assert!(findings[0].stands(), "{findings:?}");
    }
    let freed = pool.check(None, Repair::WithUnknownFiles).await.unwrap();
    assert!(freed.len() == 1 && !freed[0].stands(), "{freed:?}");
    assert!(check(&pool).await.is_empty());
    let head = pool.own(&record.id).await.unwrap();
    assert_eq!((byte(head.layer(), 3).await, byte(head.layer(), 10).await), (b'x', b'y'));
}

#[tokio::test]
async fn what_lies_in_a_layers_directory_and_is_none_of_its_files_is_unknown_and_stays() {
    let home = Home::new();
    let pool = home.pool().await;
    let used = written(&pool, "used").await;
    let unused = image(&pool, "unused").await;
    // Of an image of 1 MiB there is one data file at most.
    let mut strangers = vec![layer_dir(&pool, &used).join("data.1")];
    strangers.push(layer_dir(&pool, &used).join("notes"));
    fs::create_dir(layer_dir(&pool, &unused)).unwrap();
    strangers.extend(["a", "b", "c", "d", "e"].map(|name| layer_dir(&pool, &unused).join(name)));
    for stranger in &strangers {
        fs::write(stranger, b"?").unwrap();
    }
    for repair in [Repair::No, Repair::Safe, Repair::WithUnknownFiles] {
        let findings = pool.check(None, repair).await.unwrap();
        assert_eq!(severities(&findings), [Severity::Unknown; 2], "{findings:?}");
        let of = |name: &str| {
            let of_it =
                |found: &&Finding| found.image.as_ref().is_some_and(|it| it.as_str() == name);
            findings.iter().find(of_it).unwrap_or_else(|| panic!("{findings:?}"))
        };
        for name in ["data.1", "notes"] {
            assert!(of("used").what.contains(name) && of("used").stands(), "{findings:?}");
        }
        assert!(of("unused").what.ends_with("and 2 more"), "{findings:?}");
        assert!(strangers.iter().all(|stranger| stranger.exists()), "{repair:?}");
    }
    // Space that nothing refers to is freed all the same.
    let data = layer_dir(&pool, &used).join("data.0");
    let file = fs::OpenOptions::new().write(true).open(&data).unwrap();
    file.write_all_at(&[7; BLOCK as usize], 6 * BLOCK).unwrap();
    file.sync_all().unwrap();
    let findings = pool.check(None, Repair::Safe).await.unwrap();
    let freed: Vec<_> = findings.iter().filter(|found| !found.stands()).collect();
    assert!(freed.len() == 1 && freed[0].severity == Severity::Leak, "{findings:?}");
}

/// Overwrites the beginning of the states of an image with zeros.
fn lose_states(directory: &Path, bytes: usize) {
    let map = fs::OpenOptions::new().write(true).open(directory.join("map")).unwrap();
    map.write_all_at(&vec![0; bytes], 4096).unwrap();
}

#[tokio::test]
async fn states_that_were_lost_are_damage_and_no_repair_frees_their_data() {
    // One sector of the only page, and the whole page.
    for lost in [512, 4096] {
        let home = Home::with_damage();
        let pool = home.pool().await;
        let record = written(&pool, "image").await;
        let directory = layer_dir(&pool, &record);
        lose_states(&directory, lost);
        let data = fs::read(directory.join("data.0")).unwrap();
        let pool = home.pool().await;
        for repair in [Repair::No, Repair::Safe, Repair::WithUnknownFiles] {
            let findings = pool.check(None, repair).await.unwrap();
            assert_eq!(severities(&findings), [Severity::Damage], "{findings:?}");
            assert!(findings[0].stands() && findings[0].what.contains("is lost"), "{findings:?}");
        }
        assert!(fs::read(directory.join("data.0")).unwrap() == data, "it is all there");
    }
}

#[tokio::test]
async fn space_whose_states_were_never_written_is_not_freed_unless_that_is_asked_for() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = written(&pool, "image").await;
    let directory = layer_dir(&pool, &record);
    // The only page, and the ledger behind it: as a power cut before the first sync leaves it.
    lose_states(&directory, 2 * 4096);
    let data = fs::read(directory.join("data.0")).unwrap();
    let pool = home.pool().await;
    for repair in [Repair::No, Repair::Safe] {
        let findings = pool.check(None, repair).await.unwrap();
        assert_eq!(severities(&findings), [Severity::Leak], "{findings:?}");
        assert!(findings[0].stands() && findings[0].what.contains("never written"));
    }
    assert!(fs::read(directory.join("data.0")).unwrap() == data, "it is all there");
    let freed = pool.check(None, Repair::WithUnknownFiles).await.unwrap();
    assert!(freed.iter().all(|finding| !finding.stands()), "{freed:?}");
    assert!(check(&pool).await.is_empty());
}

#[tokio::test]
async fn what_cannot_be_looked_at_keeps_no_check_from_looking_at_the_rest() {
    let home = Home::with_damage();
    let pool = home.pool().await;
    let odd = written(&pool, "a").await;
    let damaged = written(&pool, "b").await;
    let map = layer_dir(&pool, &odd).join("map");
    fs::remove_file(&map).unwrap();
    fs::create_dir(&map).unwrap();
    let data = layer_dir(&pool, &damaged).join("data.0");
    fs::OpenOptions::new().write(true).open(data).unwrap().set_len(0).unwrap();
    let found = severities(&check(&home.pool().await).await);
    assert_eq!(found, [Severity::Damage, Severity::Damage]);
}

#[tokio::test]
async fn a_layer_that_is_remembered_as_removed_and_is_there_stays_and_is_forgotten() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = written(&pool, "image").await;
    let mistake = "INSERT INTO removed SELECT id FROM layers";
    assert_eq!(database(&home).execute(mistake, []).unwrap(), 1);
    let findings = check(&pool).await;
    assert!(severities(&findings).contains(&Severity::Stale), "{findings:?}");
    let repaired = pool.check(None, Repair::Safe).await.unwrap();
    assert!(repaired.iter().all(|finding| !finding.stands()), "{repaired:?}");
    assert!(check(&pool).await.is_empty());
    drop(pool);
    let head = home.pool().await.own(&record.id).await.unwrap();
    assert_eq!(byte(head.layer(), 0).await, b'x');
}

#[tokio::test]
async fn what_is_in_use_is_not_known_and_goes_on_undisturbed() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = written(&pool, "image").await;
    let head = pool.own(&record.id).await.unwrap();
    for repair in [Repair::No, Repair::Safe] {
        let findings = home.pool().await.check(None, repair).await.unwrap();
        assert_eq!(severities(&findings), [Severity::Unknown], "{findings:?}");
    }
    write_blocks(&head, 20, 1, b'z').await;
    head.close().await.unwrap();
    assert!(check(&pool).await.is_empty());
}

#[tokio::test]
async fn files_that_no_row_ever_mentioned_are_removed_only_if_that_is_asked_for() {
    let home = Home::new();
    let pool = home.pool().await;
    written(&pool, "image").await;
    let stray = pool.path().join("layers/00000000000000ab");
    fs::create_dir(&stray).unwrap();
    fs::write(stray.join("map"), b"?").unwrap();
    let findings = check(&pool).await;
    assert_eq!(severities(&findings), [Severity::Unknown], "{findings:?}");
    let kept = pool.check(None, Repair::Safe).await.unwrap();
    assert!(kept.len() == 1 && kept[0].stands() && stray.exists(), "{kept:?}");
    let removed = pool.check(None, Repair::WithUnknownFiles).await.unwrap();
    assert!(removed.len() == 1 && !removed[0].stands(), "{removed:?}");
    assert!(!stray.exists() && check(&pool).await.is_empty());
}

#[tokio::test]
async fn lists_that_do_not_agree_with_links_are_stale_and_are_mended() {
    let home = Home::new();
    let pool = home.pool().await;
    let parent = written(&pool, "parent").await;
    let parent = snapshot_of(&pool, &parent, "s").await;
    let child = clone(&pool, &parent, "child").await.unwrap();
    let nobody = ChildRef { pool: pool.pool(), image: ImageId::new("00000000000000ab") };
    let elsewhere = ChildRef { pool: PoolId([9; 16]), image: ImageId::new("what") };
    let revision = parent.snapshots[0].revision.clone();
    database(&home).execute("DELETE FROM children", []).unwrap();
    for child in [&nobody, &elsewhere] {
        pool.attach(&parent.id, &revision, child).await.unwrap();
    }
    let findings = check(&pool).await;
    assert_eq!(severities(&findings), [Severity::Stale, Severity::Stale], "{findings:?}");
    let repaired = pool.check(None, Repair::Safe).await.unwrap();
    assert!(repaired.iter().all(|finding| !finding.stands()), "{repaired:?}");
    assert!(check(&pool).await.is_empty());
    let listed: Vec<_> =
        pool.children(&parent.id).await.unwrap().into_iter().map(|(_, child)| child).collect();
    let mut expected = vec![ChildRef { pool: pool.pool(), image: child.id }, elsewhere];
    expected.sort();
    let mut sorted = listed;
    sorted.sort();
    assert_eq!(sorted, expected);
}

#[tokio::test]
async fn a_catalog_that_breaks_its_invariants_is_damage_and_nothing_is_repaired_by_it() {
    for harm in [
        "UPDATE layers SET sealed = 1",
        "UPDATE layers SET sealed = 0",
        "UPDATE layers SET overlap = 9000000 WHERE below = 'own'",
        "UPDATE images SET block_size = 3",
        "PRAGMA foreign_keys = off; DELETE FROM layers WHERE sealed = 1",
        "UPDATE layers SET below = 'own', below_layer = id, overlap = size WHERE below <> 'parent'",
        "DELETE FROM children; DELETE FROM snapshots",
    ] {
        let home = Home::with_damage();
        let pool = home.pool().await;
        let record = image(&pool, "image").await;
        let head = pool.own(&record.id).await.unwrap();
        write_blocks(&head, 0, 1, b'x').await;
        let (head, record) = snapshot(head, "s", false).await;
        head.close().await.unwrap();
        clone(&pool, &record, "child").await.unwrap();
        let stray = pool.path().join("layers/00000000000000ab");
        fs::create_dir(&stray).unwrap();
        database(&home).execute_batch(harm).unwrap();
        let findings = home.pool().await.check(None, Repair::Safe).await.unwrap();
        assert!(!findings.is_empty(), "{harm}");
        assert!(
            findings.iter().all(|finding| finding.severity == Severity::Damage),
            "{harm}: {findings:?}"
        );
        assert!(stray.exists(), "{harm}");
    }
}

/// What is said of each rule of the catalog that is broken, and what breaks it and no other.
const BROKEN_RULES: [(&str, &str); 7] = [
    (
        "has no head that can be written",
        "UPDATE layers SET sealed = 1 WHERE id = (SELECT head FROM images WHERE name = 'child')",
    ),
    (
        "can be written and is no image's head",
        "INSERT INTO layers (id, image, size, sealed, created, below, overlap)
         SELECT 77, id, 4096, 0, 0, 'nothing', 0 FROM images WHERE name = 'image'",
    ),
    (
        "does not lie above a sealed layer of its own image, as it says",
        "UPDATE layers SET below_layer = (SELECT head FROM images WHERE name = 'child') WHERE below = 'own'",
    ),
    (
        "overlaps what lies below it beyond an end",
        "UPDATE layers SET overlap = size + 1 WHERE below = 'own'",
    ),
    (
        "names no sealed layer of its image",
        "INSERT INTO snapshots (image, name, layer, auto, created)
         SELECT id, 't', head, 0, 0 FROM images WHERE name = 'image'",
    ),
    (
        "has children, and no snapshot that keeps it",
        "INSERT INTO children (layer, pool, image)
         SELECT head, zeroblob(16), 'elsewhere' FROM images WHERE name = 'image'",
    ),
    ("hangs on a layer that no snapshot keeps", "DELETE FROM children; DELETE FROM snapshots"),
];

#[tokio::test]
async fn each_rule_of_the_catalog_that_is_broken_is_told_in_its_own_words() {
    for (told, harm) in BROKEN_RULES {
        let home = Home::with_damage();
        let pool = home.pool().await;
        let parent = image(&pool, "image").await;
        let parent = snapshot_of(&pool, &parent, "s").await;
        clone(&pool, &parent, "child").await.unwrap();
        assert!(check(&pool).await.is_empty());
        database(&home).execute_batch(harm).unwrap();
        let findings = check(&pool).await;
        assert!(severities(&findings).iter().all(|found| *found == Severity::Damage), "{harm}");
        for (rule, _) in BROKEN_RULES {
            let is_told = findings.iter().any(|found| found.what.ends_with(rule));
            assert_eq!(is_told, rule == told, "{harm}: {rule}: {findings:?}");
        }
    }
}

#[tokio::test]
async fn what_is_no_file_in_the_place_of_one_is_damage() {
    type Put = fn(&Path);
    let kinds: [(&str, Put); 4] = [
        ("a directory", |path| fs::create_dir(path).unwrap()),
        ("links in a circle", |path| std::os::unix::fs::symlink(path, path).unwrap()),
        ("a device", |path| std::os::unix::fs::symlink("/dev/zero", path).unwrap()),
        ("a socket", |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap())),
    ];
    for (what, put) in kinds {
        for place in ["map", "data.0", ""] {
            let home = Home::with_damage();
            let pool = home.pool().await;
            let record = image(&pool, "a").await;
            let head = pool.own(&record.id).await.unwrap();
            write_blocks(&head, 0, 1, b'x').await;
            head.close().await.unwrap();
            drop(pool);
            let layers = fs::read_dir(home.path("pool/layers")).unwrap();
            let layer = layers.map(|layer| layer.unwrap().path()).next().unwrap();
            let path = if place.is_empty() { layer.clone() } else { layer.join(place) };
            if place.is_empty() && what == "a directory" {
                continue;
            }
            // Out of the way, whatever it is.
            fs::rename(&path, home.path("before")).unwrap();
            put(&path);
            let pool = open(&home.path("pool"), Mode::Existing).await.unwrap();
            let findings = pool.check(None, Repair::No).await.unwrap();
            let is_damage = findings.iter().any(|found| found.severity == Severity::Damage);
            assert!(is_damage, "{what} in the place of '{place}': {findings:?}");
            let read = pool.read_head(&record.id).await;
            if place != "data.0" {
                assert_eq!(kind(read), ErrorKind::Corrupt, "{what} in the place of '{place}'");
            }
        }
    }
}
