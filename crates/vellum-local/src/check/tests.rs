//! A check beside which something fails, on a simulated disk: nothing that it found or did is lost by it.

use bytes::Bytes;
use vellum_disk::{Disk, Durability as OnDisk, File, OpenMode};
use vellum_engine::{
    Catalog, ChildRef, Committed, Finding, Head, HeadChange, ImageId, ImageRecord, Prepared,
    Repair, Severity,
};
use vellum_sim::{Call, Fault};

use crate::testing::BLOCK;
use crate::testing::failures::EIO;
use crate::testing::pool::Pool;

/// A pool that is checked while something fails.
struct Checked {
    pool: Pool,
}

impl Checked {
    async fn new() -> Self {
        Self { pool: Pool::new(1).await }
    }

    /// An image with space in its data file that nothing refers to.
    async fn image_with_a_leak(&self, name: &str) -> ImageRecord {
        let record = self.pool.image(name).await;
        let path = Pool::file_of(&record, "data.0");
        let data = self.pool.disk.open(path.as_ref(), OpenMode::ReadWrite).await.unwrap();
        let bytes = Bytes::from(vec![b'?'; BLOCK as usize]);
        data.write_at(vec![bytes], 8 * BLOCK, OnDisk::AtSync).await.unwrap();
        data.sync_data().await.unwrap();
        record
    }

    fn fail(&self, call: Call, file: &'static str, times: u32, skip: u32) {
        self.pool.disk.fail(Fault { call, file, error: EIO, times, skip });
    }

    async fn check(&self, repair: Repair) -> Vec<Finding> {
        self.pool.catalog.check(None, repair).await.unwrap()
    }
}

/// What each finding means, and whether it stands.
fn told(findings: &[Finding]) -> Vec<(Severity, bool)> {
    findings.iter().map(|finding| (finding.severity, finding.stands())).collect()
}

fn failures(findings: &[Finding]) -> usize {
    findings.iter().filter(|finding| finding.is_failure()).count()
}

#[tokio::test]
async fn damage_is_told_also_if_a_leftover_cannot_be_removed_afterwards() {
    let checked = Checked::new().await;
    let damaged = checked.pool.image("damaged").await;
    let removed = checked.pool.image("removed").await;
    checked.pool.disk.damage(&Pool::file_of(&damaged, "map"), BLOCK + 20);
    // Once where it is removed, and once where the check tries again.
    checked.fail(Call::Remove, "map", 2, 0);
    checked.pool.catalog.remove(&removed.id, removed.version).await.unwrap();
    let found = checked.check(Repair::Safe).await;
    assert_eq!(told(&found), [(Severity::Damage, true), (Severity::Leak, true)], "{found:?}");
    assert_eq!(found[0].image.as_ref(), Some(&damaged.name));
    for named in [removed.head.as_str(), "cannot be removed", "os error 5"] {
        assert!(found[1].what.contains(named), "{found:?}");
    }
    assert_eq!(failures(&found), 1);
    let found = checked.check(Repair::Safe).await;
    assert_eq!(told(&found), [(Severity::Damage, true), (Severity::Leak, false)], "{found:?}");
    assert_eq!(failures(&found), 0, "damage is none");
}

#[tokio::test]
async fn what_was_freed_is_told_also_if_something_else_cannot_be() {
    let checked = Checked::new().await;
    for name in ["a", "b"] {
        checked.image_with_a_leak(name).await;
    }
    checked.fail(Call::Punch, "data.0", 1, 1);
    let found = checked.check(Repair::Safe).await;
    assert_eq!(told(&found), [(Severity::Leak, false), (Severity::Leak, true)], "{found:?}");
    assert_eq!(found[0].repaired.as_deref(), Some("freed it"));
    for named in [&BLOCK.to_string()[..], "cannot be freed", "os error 5"] {
        assert!(found[1].what.contains(named), "{found:?}");
    }
    assert_eq!(failures(&found), 1);
    assert_eq!(told(&checked.check(Repair::Safe).await), [(Severity::Leak, false)]);
    assert_eq!(checked.check(Repair::No).await, []);
}

#[tokio::test]
async fn what_was_freed_is_told_also_if_the_layer_cannot_be_closed_afterwards() {
    let checked = Checked::new().await;
    checked.image_with_a_leak("a").await;
    checked.image_with_a_leak("b").await;
    checked.fail(Call::SyncData, "data.0", 1, 0);
    let found = checked.check(Repair::Safe).await;
    let (freed, unknown) = ((Severity::Leak, false), (Severity::Unknown, true));
    assert_eq!(told(&found), [freed, unknown, freed], "{found:?}");
    assert!(found[1].what.contains("os error 5"), "{found:?}");
    assert_eq!(found[0].image, found[1].image);
    assert_eq!(failures(&found), 1);
}

#[tokio::test]
async fn lists_that_cannot_be_mended_are_told_and_images_looked_at_all_the_same() {
    let checked = Checked::new().await;
    let parent = checked.image_with_a_leak("parent").await;
    let change = HeadChange::Snapshot { name: "s".parse().unwrap(), auto: false };
    let head = checked.pool.catalog.own(&parent.id).await.unwrap();
    let Committed { record, successor } =
        head.prepare(change).await.unwrap().commit().await.unwrap();
    successor.unwrap().close().await.unwrap();
    let nobody =
        ChildRef { pool: checked.pool.catalog.pool(), image: ImageId::new("00000000000000ab") };
    checked.pool.catalog.attach(&record.id, &record.snapshots[0].revision, &nobody).await.unwrap();
    checked.fail(Call::Write, "pool.sqlite-wal", 1, 0);
    let found = checked.check(Repair::Safe).await;
    let expected = [(Severity::Unknown, true), (Severity::Stale, true), (Severity::Leak, false)];
    assert_eq!(told(&found), expected, "{found:?}");
    assert_eq!(failures(&found), 1);
    assert_eq!(told(&checked.check(Repair::Safe).await), [(Severity::Stale, false)]);
    assert_eq!(checked.check(Repair::No).await, []);
}

#[tokio::test]
async fn what_lies_among_the_files_of_layers_and_is_none_is_told_and_stays() {
    let checked = Checked::new().await;
    let image = checked.pool.image("image").await;
    let live = checked.pool.catalog.live_dir();
    let gone = ImageId::new("00000000000000ab");
    for name in [format!("{}.holder", image.id), format!("{gone}.holder"), "notes".to_owned()] {
        checked.pool.disk.open(&live.join(name), OpenMode::ReadWriteOrCreate).await.unwrap();
    }
    let expected = |mended: bool| [(Severity::Unknown, true), (Severity::Leak, !mended)];
    let found = checked.check(Repair::No).await;
    assert_eq!(told(&found), expected(false), "{found:?}");
    assert!(found[0].what.contains("live/notes") && found[1].what.contains(gone.as_str()));
    assert_eq!(told(&checked.check(Repair::Safe).await), expected(true));
    // The hint of an image that is there is its holder's.
    assert_eq!(told(&checked.check(Repair::No).await), [(Severity::Unknown, true)]);
}
