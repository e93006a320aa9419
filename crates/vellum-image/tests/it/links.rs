//! What a check says of links between images in two pools, and what it mends.

use std::time::SystemTime;

use vellum_engine::fault::{Operation, When};
use vellum_engine::{
    Catalog, ChildRef, ErrorKind, Finding, ImageRecord, Repair, RevisionId, Severity,
};
use vellum_image::check::{CHILDLESS_MIN, check, check_at};
use vellum_image::{CloneOptions, CreateOptions, Pools, admin};

use super::fixture::*;

const SIZE: u64 = 64 << 10;

/// An image `gold` with a snapshot, and a child of it in another pool.
struct Family {
    fixture: Fixture,
    another: Engine,
    gold: ImageRecord,
    child: ImageRecord,
}

impl Family {
    async fn new() -> Self {
        let fixture = Fixture::new().await;
        fixture.golden("gold", SIZE).await;
        Self::of(fixture).await
    }

    async fn of(fixture: Fixture) -> Self {
        let another = fixture.another_pool().await;
        let gold = fixture.catalog.find(&image_name("gold")).await.unwrap();
        let snapshot = gold.snapshot(&snapshot_name("s")).unwrap();
        let (pools, parent, options) = (&fixture.pools, &fixture.catalog, CloneOptions::default());
        let child =
            admin::clone(pools, parent, &gold, snapshot, &another, image_name("child"), options);
        let child = child.await.unwrap();
        Self { fixture, another, gold, child }
    }

    fn revision(&self) -> RevisionId {
        self.gold.snapshot(&snapshot_name("s")).unwrap().revision.clone()
    }

    /// Takes the child from its parent's list, as nothing does that keeps the rules.
    async fn forget_child(&self) {
        self.fixture.leaves_disorder();
        let child = ChildRef { pool: self.another.pool(), image: self.child.id.clone() };
        self.fixture.catalog.detach(&self.gold.id, &self.revision(), &child).await.unwrap();
    }

    async fn check_child(&self, repair: Repair) -> Vec<Finding> {
        check(&self.fixture.pools, &self.another, None, repair).await.unwrap()
    }

    async fn remove_gold(&self) -> ErrorKind {
        let (pools, catalog) = (&self.fixture.pools, &self.fixture.catalog);
        admin::remove(pools, catalog, &self.gold.id).await.unwrap_err().kind()
    }
}

fn only(findings: &[Finding]) -> &Finding {
    assert_eq!(findings.len(), 1, "{findings:?}");
    &findings[0]
}

#[tokio::test]
async fn a_child_that_its_parent_does_not_list_is_entered_in_the_list() {
    let family = Family::new().await;
    assert_eq!(family.check_child(Repair::No).await, []);
    family.forget_child().await;
    let found = family.check_child(Repair::No).await;
    assert!(only(&found).severity == Severity::Stale && only(&found).stands(), "{found:?}");
    assert_eq!(only(&found).image, Some(image_name("child")));
    let mended = family.check_child(Repair::Safe).await;
    assert!(only(&mended).severity == Severity::Stale && !only(&mended).stands(), "{mended:?}");
    assert_eq!(family.check_child(Repair::Safe).await, []);
    assert_eq!(family.remove_gold().await, ErrorKind::HasChildren);
}

#[tokio::test]
async fn a_child_that_cannot_be_entered_in_its_parents_list_is_damage_only_where_nothing_keeps_its_parent()
 {
    for (kind, severity) in [
        (ErrorKind::NotFound, Severity::Damage),
        (ErrorKind::Busy, Severity::Stale),
        (ErrorKind::NoSpace, Severity::Stale),
        (ErrorKind::Io, Severity::Stale),
    ] {
        let family = Family::new().await;
        family.forget_child().await;
        family.fixture.faults.fail(Operation::Catalog, 0, kind, When::Instead);
        let found = family.check_child(Repair::Safe).await;
        assert!(only(&found).severity == severity && only(&found).stands(), "{kind:?}: {found:?}");
        assert!(only(&found).what.contains("and cannot"), "{kind:?}: {found:?}");
        assert_eq!(only(&found).is_failure(), kind != ErrorKind::NotFound, "{kind:?}: {found:?}");
        let mended = family.check_child(Repair::Safe).await;
        assert!(!only(&mended).stands(), "{kind:?}: {mended:?}");
    }
}

#[tokio::test]
async fn a_child_whose_parent_was_removed_is_damage_that_no_repair_touches() {
    let family = Family::new().await;
    family.forget_child().await;
    let (pools, catalog) = (&family.fixture.pools, &family.fixture.catalog);
    admin::remove(pools, catalog, &family.gold.id).await.unwrap();
    for repair in [Repair::No, Repair::Safe] {
        let found = family.check_child(repair).await;
        assert!(only(&found).severity == Severity::Damage && only(&found).stands(), "{found:?}");
        assert!(only(&found).what.ends_with("is gone"), "{found:?}");
    }
}

#[tokio::test]
async fn a_child_whose_snapshot_was_removed_is_damage_that_names_it() {
    let fixture = Fixture::new().await;
    // One that holds nothing: where snapshots are layers, its layer goes with its name.
    fixture.create("gold", SIZE, CreateOptions::default()).await;
    let gold = fixture.open("gold").await;
    gold.snapshot(snapshot_name("s"), false).await.unwrap();
    let family = Family::of(fixture).await;
    family.forget_child().await;
    gold.remove_snapshot(&snapshot_name("s")).await.unwrap();
    gold.close().await.unwrap();
    let found = family.check_child(Repair::Safe).await;
    assert!(only(&found).severity == Severity::Damage && only(&found).stands(), "{found:?}");
    assert!(only(&found).what.contains("gold"), "{found:?}");
}

#[tokio::test]
async fn links_into_a_pool_that_is_not_known_are_unknown_and_stay() {
    let family = Family::new().await;
    let (gold, another) = (&family.fixture.catalog, &family.another);
    for (known, says) in [(gold, "a child is in pool"), (another, "its parent is in pool")] {
        let pools = Pools::default();
        pools.add(known.clone());
        let found = check(&pools, known, None, Repair::Safe).await.unwrap();
        assert_eq!(only(&found).severity, Severity::Unknown, "{found:?}");
        assert!(only(&found).what.starts_with(says) && only(&found).stands(), "{found:?}");
    }
    assert_eq!(family.check_child(Repair::No).await, []);
    assert_eq!(family.remove_gold().await, ErrorKind::HasChildren);
}

#[tokio::test]
async fn one_image_is_checked_without_the_others() {
    let family = Family::new().await;
    family.forget_child().await;
    let id = &family.child.id;
    let found = check(&family.fixture.pools, &family.another, Some(id), Repair::No).await.unwrap();
    assert_eq!(only(&found).severity, Severity::Stale);
    let gold = &family.gold.id;
    let (pools, catalog) = (&family.fixture.pools, &family.fixture.catalog);
    assert_eq!(check(pools, catalog, Some(gold), Repair::No).await.unwrap(), []);
    let nobody = check(pools, catalog, Some(&catalog.unused_id()), Repair::No).await;
    assert_eq!(nobody.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn an_automatic_snapshot_that_nobody_cloned_is_a_leak_that_goes_once_it_is_old() {
    let fixture = Fixture::new().await;
    fixture.leaves_disorder();
    fixture.golden("gold", SIZE).await;
    let gold = fixture.open("gold").await;
    for name in ["auto-used", "auto-left"] {
        gold.snapshot(snapshot_name(name), true).await.unwrap();
    }
    gold.close().await.unwrap();
    fixture.clone("gold", "auto-used", "child", CloneOptions::default()).await;
    let now = SystemTime::now();
    for (repair, at, repaired) in [
        (Repair::No, now + CHILDLESS_MIN, false),
        (Repair::Safe, now, false),
        (Repair::Safe, now + CHILDLESS_MIN, true),
    ] {
        let found = check_at(&fixture.pools, &fixture.catalog, None, repair, at).await.unwrap();
        let [leak] = &found[..] else { panic!("{found:?}") };
        assert_eq!((leak.severity, leak.repaired.is_some()), (Severity::Leak, repaired));
        assert!(leak.what.contains("auto-left"), "{}", leak.what);
    }
    let gold = fixture.catalog.find(&image_name("gold")).await.unwrap();
    let left: Vec<_> = gold.snapshots.iter().map(|it| it.name.to_string()).collect();
    assert_eq!(left, ["s", "auto-used"]);
}
