//! The rules of the catalog, each on a database of its own; and the database itself under kills, races and damage.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use vellum_core::Geometry;
use vellum_disk::RealDisk;
use vellum_engine::{
    Below, ChildRef, ErrorKind, Happened, ImageId, ImageRecord, Layering, NewImage, NewParent,
    ParentLink, PoolId, Result, RevisionId, Version,
};

use super::children::ParentInPool;
use super::images::NewKeys;
use super::record::ImageNo;
use super::registry::{self, Place};
use super::snapshots::NewSnapshot;
use super::{Database, Outcome, children, connection, images, layers, record, snapshots};
use crate::LayerId;

const POOL: PoolId = PoolId([7; 16]);
const ELSEWHERE: PoolId = PoolId([9; 16]);

/// A catalog in a directory that goes with it.
struct Fixture {
    database: Database,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pool.sqlite");
        std::fs::File::create(&path).unwrap();
        let place = Place { path: directory.path().to_owned(), inode: 42 };
        let (database, ()) = Database::open(&path, None, move |db| {
            let transaction = db.transaction()?;
            registry::create(&transaction, POOL, &place)?;
            Ok(transaction.commit()?)
        })
        .await
        .unwrap();
        Self { database, path, _directory: directory }
    }

    async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> Outcome<T> + Send + 'static,
    ) -> Result<T> {
        self.database.write("test", change).await
    }

    async fn image(&self, name: &str, parent: Option<NewParent>) -> Result<ImageRecord> {
        self.write({
            let new = new_image(name, parent);
            move |db| images::create(db, POOL, keys(), &new)
        })
        .await
    }

    async fn snapshot(&self, image: &ImageRecord, name: &str, auto: bool) -> Result<ImageRecord> {
        let new = NewSnapshot { name: name.parse().unwrap(), auto };
        let image = number(image);
        self.write(move |db| {
            let sealed = layers::head(db, image)?.id;
            images::put_on_top(db, POOL, image, LayerId::random(&RealDisk::default()))?;
            snapshots::add(db, image, sealed, &new)?;
            layers::record_change(db, image)?;
            record::load(db, image)
        })
        .await
    }

    async fn load(&self, image: &ImageRecord) -> Result<ImageRecord> {
        let image = number(image);
        self.database.read("test", move |db| record::load(db, image)).await
    }
}

fn keys() -> NewKeys {
    NewKeys {
        image: ImageNo::random(&RealDisk::default()),
        head: LayerId::random(&RealDisk::default()),
    }
}

fn number(image: &ImageRecord) -> ImageNo {
    ImageNo::of(&image.id).unwrap()
}

fn new_image(name: &str, parent: Option<NewParent>) -> NewImage {
    NewImage {
        name: name.parse().unwrap(),
        size: 1 << 20,
        geometry: Geometry::default(),
        layering: Layering::Sparse,
        block_size: 4096,
        parent,
        id: None,
        meta: [("owner".to_owned(), "me".to_owned())].into(),
    }
}

fn parent_of(record: &ImageRecord) -> NewParent {
    let snapshot = record.snapshots.last().unwrap();
    let link =
        ParentLink { pool: POOL, image: record.id.clone(), revision: snapshot.revision.clone() };
    NewParent { link, overlap: 1 << 20 }
}

fn place_of(record: &ImageRecord) -> ParentInPool {
    ParentInPool::of(&parent_of(record).link).unwrap()
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[tokio::test]
async fn a_record_is_read_as_it_was_written() {
    let fixture = Fixture::new().await;
    let made = fixture.image("a", None).await.unwrap();
    assert_eq!((made.name.as_str(), made.size(), made.version), ("a", 1 << 20, Version(1)));
    assert_eq!(made.geometry, Geometry::default());
    assert_eq!(made.meta["owner"], "me");
    assert!(!made.head_revision().sealed);
    let found = fixture.database.read("test", |db| images::find(db, &"a".parse().unwrap())).await;
    assert_eq!(found.unwrap(), made);
}

#[tokio::test]
async fn a_taken_name_is_refused_and_changes_nothing() {
    let fixture = Fixture::new().await;
    let a = fixture.image("a", None).await.unwrap();
    assert_eq!(kind(fixture.image("a", None).await), ErrorKind::Exists);
    fixture.image("b", None).await.unwrap();
    let image = number(&a);
    let renamed = fixture.write(move |db| images::rename(db, image, &"b".parse().unwrap())).await;
    assert_eq!(kind(renamed), ErrorKind::Exists);
    assert_eq!(fixture.load(&a).await.unwrap(), a);
}

#[tokio::test]
async fn names_come_in_order_and_in_pages() {
    let fixture = Fixture::new().await;
    for name in ["c", "a", "b", "B"] {
        fixture.image(name, None).await.unwrap();
    }
    let page = |after: Option<&str>, max| {
        let after = after.map(|name| name.parse().unwrap());
        fixture.database.read("test", move |db| images::list(db, after.as_ref(), max))
    };
    let names = |records: Vec<ImageRecord>| -> Vec<String> {
        records.into_iter().map(|record| record.name.to_string()).collect()
    };
    assert_eq!(names(page(None, 3).await.unwrap()), ["B", "a", "b"]);
    assert_eq!(names(page(Some("b"), 3).await.unwrap()), ["c"]);
    assert!(page(None, 0).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_snapshot_seals_the_head_and_puts_an_empty_layer_above_it() {
    let fixture = Fixture::new().await;
    let image = fixture.image("a", None).await.unwrap();
    let after = fixture.snapshot(&image, "s", false).await.unwrap();
    assert_eq!(after.snapshots[0].revision, image.head);
    assert!(after.revision(&image.head).unwrap().sealed);
    let own = Below::Own { revision: image.head.clone(), overlap: 1 << 20 };
    assert_eq!(after.head_revision().below, own);
    assert_eq!(kind(fixture.snapshot(&image, "s", false).await), ErrorKind::Exists);
    assert_eq!(fixture.load(&image).await.unwrap(), after);
}

#[tokio::test]
async fn a_clone_is_in_its_parents_list_and_keeps_snapshot_and_image_in_place() {
    let fixture = Fixture::new().await;
    let parent = fixture.image("parent", None).await.unwrap();
    let parent = fixture.snapshot(&parent, "s", false).await.unwrap();
    let child = fixture.image("child", Some(parent_of(&parent))).await.unwrap();
    let image = number(&parent);
    let listed = fixture.database.read("test", move |db| children::of_image(db, image)).await;
    let expected = ChildRef { pool: POOL, image: child.id.clone() };
    assert_eq!(listed.unwrap(), [(parent.snapshots[0].revision.clone(), expected)]);
    let snapshot = parent.snapshots[0].id.clone();
    let removed = fixture.write(move |db| snapshots::remove(db, image, &snapshot)).await;
    assert_eq!(kind(removed), ErrorKind::HasChildren);
    let removed = fixture.write(move |db| images::remove(db, POOL, image, &[], &[])).await;
    assert_eq!(kind(removed), ErrorKind::HasChildren);
}

#[tokio::test]
async fn a_parent_in_this_pool_must_be_a_snapshot_that_is_large_enough() {
    let fixture = Fixture::new().await;
    let parent = fixture.image("parent", None).await.unwrap();
    let link = |revision: &RevisionId, overlap| NewParent {
        link: ParentLink { pool: POOL, image: parent.id.clone(), revision: revision.clone() },
        overlap,
    };
    let head = link(&parent.head, 4096);
    assert_eq!(kind(fixture.image("child", Some(head)).await), ErrorKind::NotFound);
    let strange = link(&RevisionId::new("no id"), 4096);
    assert_eq!(kind(fixture.image("child", Some(strange)).await), ErrorKind::NotFound);
    let sealed = fixture.snapshot(&parent, "s", false).await.unwrap().snapshots[0].revision.clone();
    let too_wide = link(&sealed, (1 << 20) + 1);
    assert_eq!(kind(fixture.image("child", Some(too_wide)).await), ErrorKind::Invalid);
    fixture.image("child", Some(link(&sealed, 0))).await.unwrap();
}

#[tokio::test]
async fn an_automatic_snapshot_goes_with_its_last_child_and_a_kept_one_stays() {
    let fixture = Fixture::new().await;
    let parent = fixture.image("parent", None).await.unwrap();
    for (name, auto) in [("auto", true), ("kept", false)] {
        let sealed = fixture.snapshot(&parent, name, auto).await.unwrap();
        let one = fixture.image("one", Some(parent_of(&sealed))).await.unwrap();
        let two = fixture.image("two", Some(parent_of(&sealed))).await.unwrap();
        for (child, lost) in [(one, false), (two, auto)] {
            let image = number(&child);
            fixture.write(move |db| images::remove(db, POOL, image, &[], &[])).await.unwrap();
            let left = fixture.load(&parent).await.unwrap();
            assert_eq!(left.snapshots.iter().any(|snapshot| snapshot.name.as_str() == name), !lost);
        }
    }
}

#[tokio::test]
async fn attaching_and_detaching_twice_is_the_same_as_once() {
    let fixture = Fixture::new().await;
    let parent = fixture.image("parent", None).await.unwrap();
    let parent = fixture.snapshot(&parent, "s", true).await.unwrap();
    let child = ChildRef { pool: ELSEWHERE, image: ImageId::new("rbd.17") };
    let (place, image) = (place_of(&parent), number(&parent));
    for _ in 0..2 {
        let child = child.clone();
        fixture.write(move |db| children::list(db, &place, &child)).await.unwrap();
    }
    let listed = fixture.database.read("test", move |db| children::of_image(db, image)).await;
    assert_eq!(listed.unwrap().len(), 1);
    let mut versions = Vec::new();
    for _ in 0..2 {
        let id = child.image.clone();
        let unlist = move |db: &Connection| children::unlist(db, ELSEWHERE, &place, &id, &[]);
        fixture.write(unlist).await.unwrap();
        versions.push(fixture.load(&parent).await.unwrap().version);
    }
    assert_eq!(versions[0], versions[1]);
    assert!(fixture.load(&parent).await.unwrap().snapshots.is_empty());
    let again = fixture.write(move |db| children::list(db, &place, &child)).await;
    assert_eq!(kind(again), ErrorKind::NotFound, "no snapshot names the revision any more");
}

#[tokio::test]
async fn an_empty_layer_without_a_name_is_taken_out_and_overlaps_never_grow() {
    let fixture = Fixture::new().await;
    let image = fixture.image("a", None).await.unwrap();
    fixture.snapshot(&image, "s1", false).await.unwrap();
    let record = fixture.snapshot(&image, "s2", false).await.unwrap();
    let [lower, middle] = [0, 1].map(|n| record.snapshots[n].revision.clone());
    let (number, snapshot) = (number(&image), record.snapshots[1].id.clone());
    let layer = LayerId::of_revision(&middle).unwrap();
    let take_out = move |db: &Connection| layers::take_out_empty(db, number, &[layer]);
    fixture.write(take_out).await.unwrap();
    assert_eq!(fixture.load(&image).await.unwrap(), record, "a snapshot names it");
    fixture
        .write(move |db| {
            db.execute(
                "UPDATE layers SET overlap = 8192 WHERE id = ?1",
                [record::layer_key(layer)],
            )?;
            snapshots::remove(db, number, &snapshot)
        })
        .await
        .unwrap();
    assert_eq!(
        fixture.database.read("test", move |db| layers::unnamed(db, number)).await.unwrap(),
        [layer]
    );
    fixture.write(take_out).await.unwrap();
    let record = fixture.load(&image).await.unwrap();
    assert_eq!(record.head_revision().below, Below::Own { revision: lower, overlap: 8192 });
    assert_eq!(record.revision(&middle), None);
}

#[tokio::test]
async fn what_lies_above_an_empty_bottom_layer_inherits_the_parent() {
    let fixture = Fixture::new().await;
    let parent = fixture.image("parent", None).await.unwrap();
    let parent = fixture.snapshot(&parent, "s", true).await.unwrap();
    let child = fixture.image("child", Some(parent_of(&parent))).await.unwrap();
    let sealed = fixture.snapshot(&child, "s", false).await.unwrap();
    let (number, snapshot) = (number(&child), sealed.snapshots[0].id.clone());
    let bottom = LayerId::of_revision(&sealed.snapshots[0].revision).unwrap();
    fixture
        .write(move |db| {
            snapshots::remove(db, number, &snapshot)?;
            layers::take_out_empty(db, number, &[bottom])
        })
        .await
        .unwrap();
    let record = fixture.load(&child).await.unwrap();
    let (carrier, link, overlap) = record.parent().unwrap();
    assert_eq!((&carrier.id, link, overlap), (&record.head, &parent_of(&parent).link, 1 << 20));
    let empty = LayerId::of_revision(&parent.snapshots[0].revision).unwrap();
    let cut = fixture.write(move |db| images::cut_parent(db, POOL, number, &[empty])).await;
    cut.unwrap();
    assert_eq!(fixture.load(&child).await.unwrap().parent(), None);
    let parent = fixture.load(&parent).await.unwrap();
    assert!(parent.snapshots.is_empty());
    assert_eq!(parent.revisions.len(), 1, "what lost its name by it was empty, and went too");
}

#[tokio::test]
async fn a_chain_grows_to_its_limit_and_no_further() {
    let fixture = Fixture::new().await;
    let image = fixture.image("a", None).await.unwrap();
    let number = number(&image);
    fixture
        .write(move |db| {
            for _ in 1..layers::DEPTH_MAX {
                images::put_on_top(db, POOL, number, LayerId::random(&RealDisk::default()))?;
            }
            Ok(())
        })
        .await
        .unwrap();
    let deeper = fixture.write(move |db| {
        images::put_on_top(db, POOL, number, LayerId::random(&RealDisk::default()))
    });
    assert_eq!(kind(deeper.await), ErrorKind::Invalid);
    let record = fixture
        .write(move |db| {
            let head = layers::head(db, number)?;
            let Below::Own { revision, .. } = head.below else { panic!("the head is on top") };
            let new = NewSnapshot { name: "s".parse().unwrap(), auto: false };
            snapshots::add(db, number, LayerId::of_revision(&revision)?, &new)?;
            record::load(db, number)
        })
        .await
        .unwrap();
    fixture.image("child", Some(parent_of(&record))).await.unwrap();
}

#[tokio::test]
async fn a_record_that_changed_is_a_conflict() {
    let fixture = Fixture::new().await;
    let image = fixture.image("a", None).await.unwrap();
    fixture.snapshot(&image, "s", false).await.unwrap();
    let (number, at) = (number(&image), image.version);
    let stale = fixture.write(move |db| images::at_version(db, number, at)).await;
    assert_eq!(kind(stale), ErrorKind::Conflict);
}

#[tokio::test]
async fn what_a_user_hangs_on_an_image_is_bounded() {
    let fixture = Fixture::new().await;
    let image = number(&fixture.image("a", None).await.unwrap());
    let put = |key: String, value: String| {
        fixture.write(move |db| images::put_meta(db, image, &key, Some(&value)))
    };
    put("k".into(), "v".repeat(64 << 10)).await.unwrap();
    assert_eq!(kind(put("k".into(), "v".repeat((64 << 10) + 1)).await), ErrorKind::Invalid);
    assert_eq!(kind(put("k".repeat(257), "v".into()).await), ErrorKind::Invalid);
    assert_eq!(kind(put(String::new(), "v".into()).await), ErrorKind::Invalid);
    let many = fixture.write(move |db| {
        (0..1024).try_for_each(|n| images::put_meta(db, image, &n.to_string(), Some("v")))
    });
    assert_eq!(kind(many.await), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_prepared_change_that_is_dropped_never_happened() {
    let fixture = Fixture::new().await;
    let new = new_image("a", None);
    let (record, undecided) = fixture
        .database
        .prepare("test", move |db| images::create(db, POOL, keys(), &new))
        .await
        .unwrap();
    drop(undecided);
    assert_eq!(kind(fixture.load(&record).await), ErrorKind::NotFound);
    fixture.image("a", None).await.unwrap();
}

#[tokio::test]
async fn a_prepared_change_keeps_writers_out_and_readers_in_until_it_is_committed() {
    let fixture = Fixture::new().await;
    let image = fixture.image("a", None).await.unwrap();
    let number = number(&image);
    let ((), undecided) = fixture
        .database
        .prepare("test", move |db| images::rename(db, number, &"b".parse().unwrap()))
        .await
        .unwrap();
    assert_eq!(fixture.load(&image).await.unwrap().name.as_str(), "a");
    let other = fixture.database.clone();
    let waiting = tokio::spawn(async move { other.settle().await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    undecided.commit(move |db| layers::record_change(db, number)).await.unwrap();
    waiting.await.unwrap().unwrap();
    let after = fixture.load(&image).await.unwrap();
    assert_eq!((after.name.as_str(), after.version), ("b", Version(2)));
}

#[tokio::test]
async fn a_prepared_change_that_is_not_decided_in_time_is_undone_and_others_change_the_catalog() {
    let fixture = Fixture::new().await;
    let image = fixture.image("a", None).await.unwrap();
    let number = number(&image);
    let prepare = |wait| {
        let database = fixture.database.clone().with_decision_wait(wait);
        let rename = move |db: &Connection| images::rename(db, number, &"late".parse().unwrap());
        async move { database.prepare("rename an image", rename).await.unwrap().1 }
    };
    let undecided = prepare(Duration::from_millis(100)).await;
    // Neither on another connection, as another process has one, nor on this one is it waited for longer.
    let (other, ()) = Database::open(&fixture.path, None, |_| Ok(())).await.unwrap();
    other.settle().await.unwrap();
    fixture.image("b", None).await.unwrap();
    let error = undecided.commit(move |db| layers::record_change(db, number)).await.unwrap_err();
    assert_eq!((error.kind(), error.happened()), (ErrorKind::Busy, Happened::NotDone));
    assert!(error.to_string().contains("100ms"), "{error}");
    assert_eq!(fixture.load(&image).await.unwrap(), image);
    // Whoever decides in time is heard, as before.
    let undecided = prepare(Duration::from_secs(600)).await;
    undecided.commit(|_| Ok(())).await.unwrap();
    assert_eq!(fixture.load(&image).await.unwrap().name.as_str(), "late");
}

#[tokio::test]
async fn a_catalog_that_another_process_keeps_is_busy_and_unchanged() {
    let fixture = Fixture::new().await;
    let other = Connection::open(&fixture.path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = fixture.image("a", None).await.unwrap_err();
    assert_eq!((error.kind(), error.happened()), (ErrorKind::Busy, Happened::NotDone));
    other.execute_batch("ROLLBACK").unwrap();
    fixture.image("a", None).await.unwrap();
}

#[tokio::test]
async fn two_catalogs_that_race_for_a_name_have_one_winner() {
    let fixture = Fixture::new().await;
    let (second, ()) = Database::open(&fixture.path, None, |_| Ok(())).await.unwrap();
    for round in 0..20 {
        let create = |database: Database| {
            let new = new_image(&format!("image-{round}"), None);
            async move { database.write("test", move |db| images::create(db, POOL, keys(), &new)).await }
        };
        let (one, two) = tokio::join!(
            tokio::spawn(create(fixture.database.clone())),
            tokio::spawn(create(second.clone()))
        );
        let results = [one.unwrap(), two.unwrap()];
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        let loser = results.into_iter().find_map(Result::err).unwrap();
        assert_eq!(loser.kind(), ErrorKind::Exists);
    }
}

#[tokio::test]
async fn two_catalogs_that_race_for_a_snapshot_keep_one_chain() {
    let fixture = Fixture::new().await;
    let image = fixture.image("a", None).await.unwrap();
    let (second, ()) = Database::open(&fixture.path, None, |_| Ok(())).await.unwrap();
    let snap = |database: Database, name: String| {
        let number = number(&image);
        async move {
            let new = NewSnapshot { name: name.parse().unwrap(), auto: false };
            let change = move |db: &Connection| {
                let sealed = layers::head(db, number)?.id;
                images::put_on_top(db, POOL, number, LayerId::random(&RealDisk::default()))?;
                snapshots::add(db, number, sealed, &new)
            };
            database.write("test", change).await
        }
    };
    let tasks: Vec<_> = (0..20)
        .flat_map(|n| {
            let one = tokio::spawn(snap(fixture.database.clone(), format!("one-{n}")));
            [one, tokio::spawn(snap(second.clone(), format!("two-{n}")))]
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let record = fixture.load(&image).await.unwrap();
    assert_eq!((record.snapshots.len(), record.revisions.len()), (40, 41));
    assert_eq!(record.revisions.iter().filter(|revision| !revision.sealed).count(), 1);
}

#[tokio::test]
async fn a_transaction_cut_short_leaves_nothing() {
    let fixture = Fixture::new().await;
    let image = number(&fixture.image("a", None).await.unwrap());
    // What a killed process leaves: the files as they are in the middle of a transaction, and nobody who has them open.
    let copy = tempfile::tempdir().unwrap();
    let path = copy.path().join("pool.sqlite");
    let (from, to) = (fixture.path.clone(), path.clone());
    let cut = fixture.write(move |db| {
        images::put_on_top(db, POOL, image, LayerId::random(&RealDisk::default()))?;
        for suffix in ["", "-wal", "-shm"] {
            let beside = |path: &Path| format!("{}{suffix}", path.display());
            std::fs::copy(beside(&from), beside(&to)).unwrap();
        }
        Err::<(), _>(super::failure::corrupt("not done"))
    });
    assert!(cut.await.is_err());
    let (database, row) = Database::open(&path, None, |db| registry::load(db)).await.unwrap();
    assert_eq!(row.id, POOL);
    let record = database.read("test", move |db| record::load(db, image)).await.unwrap();
    assert_eq!((record.revisions.len(), record.version), (1, Version(1)));
}

#[tokio::test]
async fn numbers_that_no_image_has_are_corrupt() {
    for damage in [
        "UPDATE images SET block_size = 1 << 31",
        "UPDATE images SET block_size = 256",
        "UPDATE images SET block_size = 1 << 20, stripe_unit = 65536, object_size = 65536",
        "UPDATE layers SET size = 9223372036854775807",
        "UPDATE layers SET overlap = 9223372036854775807",
        "UPDATE images SET object_size = 0",
        "UPDATE images SET stripe_count = -1",
    ] {
        let fixture = Fixture::new().await;
        let image = fixture.image("image", None).await.unwrap();
        fixture.write(move |db| Ok(db.execute_batch(damage)?)).await.unwrap();
        let error = fixture.load(&image).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{damage}");
    }
}

#[tokio::test]
async fn a_damaged_catalog_is_corrupt_and_not_a_panic() {
    let fixture = Fixture::new().await;
    for n in 0..200 {
        fixture.image(&format!("image-{n}"), None).await.unwrap();
    }
    let Fixture { database, path, _directory } = fixture;
    drop(database);
    let whole = loop {
        let db = Connection::open(&path).unwrap();
        let busy: i64 =
            db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
        if busy == 0 {
            break std::fs::read(&path).unwrap();
        }
    };
    let damages: [fn(&mut Vec<u8>); 3] = [
        |bytes| bytes[..16].fill(b'x'),
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| bytes[4096..].iter_mut().for_each(|byte| *byte ^= 0x55),
    ];
    for damage in damages {
        let mut bytes = whole.clone();
        damage(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let outcome = match Database::open_read_only(&path, None, |db| registry::load(db)).await {
            Ok((database, _)) => {
                database.read("test", |db| images::list(db, None, 1000)).await.map(drop)
            }
            Err(error) => Err(error),
        };
        assert_eq!(kind(outcome), ErrorKind::Corrupt);
    }
}

#[tokio::test]
async fn a_catalog_that_all_have_left_is_whole_without_its_log() {
    for n in 0..20 {
        let fixture = Fixture::new().await;
        let image = fixture.image("image", None).await.unwrap();
        let Fixture { database, path, _directory: directory } = fixture;
        drop(database);
        vellum_testkit::process::closed(directory.path()).unwrap();
        std::fs::remove_file(connection::log_of(&path)).unwrap();
        let (database, _) = Database::open(&path, None, |db| registry::load(db)).await.unwrap();
        let found = database.read("test", |db| images::list(db, None, 10)).await.unwrap();
        assert_eq!(found.len(), 1, "round {n}");
        assert_eq!(found[0].id, image.id);
    }
}

#[tokio::test]
async fn a_catalog_of_another_version_or_program_is_refused() {
    let fixture = Fixture::new().await;
    for (pragma, expected) in [
        ("PRAGMA user_version = 2", ErrorKind::Unsupported),
        ("PRAGMA user_version = 1; PRAGMA application_id = 1", ErrorKind::Corrupt),
    ] {
        Connection::open(&fixture.path).unwrap().execute_batch(pragma).unwrap();
        let opened = Database::open(&fixture.path, None, |db| registry::load(db)).await.map(drop);
        assert_eq!(kind(opened), expected, "{pragma}");
    }
}

#[tokio::test]
async fn unknown_features_refuse_the_pool_or_its_change() {
    let fixture = Fixture::new().await;
    let load = || async { Database::open(&fixture.path, None, |db| registry::load(db)).await };
    fixture
        .write(|db| Ok(db.execute("UPDATE pool SET compat = 1, ro_compat = 1", [])?))
        .await
        .unwrap();
    assert!(load().await.unwrap().1.look_only);
    fixture.write(|db| Ok(db.execute("UPDATE pool SET incompat = 4", [])?)).await.unwrap();
    assert_eq!(kind(load().await.map(drop)), ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_new_pool_id_reaches_the_links_within_the_pool() {
    let fixture = Fixture::new().await;
    let parent = fixture.image("parent", None).await.unwrap();
    let parent = fixture.snapshot(&parent, "s", true).await.unwrap();
    let child = fixture.image("child", Some(parent_of(&parent))).await.unwrap();
    fixture.write(|db| registry::change_id(db, ELSEWHERE)).await.unwrap();
    let link = fixture.load(&child).await.unwrap().parent().unwrap().1.clone();
    assert_eq!(link.pool, ELSEWHERE);
    let image = number(&child);
    fixture.write(move |db| images::remove(db, ELSEWHERE, image, &[], &[])).await.unwrap();
    assert!(fixture.load(&parent).await.unwrap().snapshots.is_empty());
}

#[tokio::test]
async fn removed_layers_are_in_the_catalog_until_they_are_forgotten() {
    let fixture = Fixture::new().await;
    let image = fixture.image("a", None).await.unwrap();
    let (number, layer) = (number(&image), LayerId::of_revision(&image.head).unwrap());
    fixture.write(move |db| images::remove(db, POOL, number, &[layer], &[])).await.unwrap();
    let removed = |db: &Connection| layers::removed(db, 10);
    assert_eq!(fixture.database.read("test", removed).await.unwrap(), [layer]);
    fixture.write(move |db| layers::forget_removed(db, &[layer])).await.unwrap();
    assert!(fixture.database.read("test", removed).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_catalog_opened_for_looking_takes_no_changes() {
    let fixture = Fixture::new().await;
    let (database, row) =
        Database::open_read_only(&fixture.path, None, |db| registry::load(db)).await.unwrap();
    assert_eq!(row.id, POOL);
    assert_eq!(kind(database.settle().await), ErrorKind::ReadOnly);
    let image = fixture.image("a", None).await.unwrap();
    let number = number(&image);
    let seen = database.read("test", move |db| record::load(db, number)).await.unwrap();
    assert_eq!(seen, image, "a looker sees what a writer beside it committed");
}

#[test]
fn a_connection_for_looking_needs_no_files_beside_a_clean_catalog() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool.sqlite");
    let db = Connection::open(&path).unwrap();
    super::schema::create(&db).unwrap();
    drop(db);
    connection::check_format(
        &connection::open(&path, None, connection::Purpose::ReadOnly).unwrap(),
    )
    .unwrap();
}
