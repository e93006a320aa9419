//! Snapshots seal the head; a sealed revision reads the same for ever, and can only be filled.

use vellum_core::Extent;
use vellum_engine::{
    Below, Catalog, Change, ErrorKind, Guarded, Head, HeadChange, Ownership, Prepared, SetTo,
};

use crate::Result;
use crate::act::{self, Kept, data, done, fill, put, set, snapshot, write, write_of, zero, zeros};
use crate::harness::Harness;
use crate::pool::{Pool, snapshot_of};
use crate::see::refused;

super::cases! {
    a_snapshot_seals_the_head_and_puts_an_empty_revision_above_it,
    the_old_head_answers_sealed,
    the_ownership_belongs_to_the_successor,
    a_snapshot_reads_as_at_its_commit_whatever_is_written_later,
    what_is_written_while_a_snapshot_is_prepared_is_in_it,
    a_prepared_snapshot_that_is_dropped_never_happened,
    a_taken_snapshot_name_is_refused,
    snapshots_are_listed_oldest_first_and_each_reads_its_own,
    a_snapshot_of_nothing_is_one,
    a_removed_snapshot_leaves_what_newer_revisions_inherit,
    an_image_goes_with_its_snapshots,
    a_filler_defines_inherited_units_of_a_sealed_revision_only,
    a_filler_refuses_everything_else,
    a_revision_is_filled_by_one_at_a_time,
    a_revision_is_filled_while_its_image_is_owned,
    a_revision_that_is_open_for_reading_can_be_filled,
    what_a_filler_synced_is_found_by_another_process,
    an_image_is_not_removed_while_a_revision_is_filled,
    a_cut_leaves_the_head_as_it_was_but_for_the_parent,
    a_prepared_cut_that_is_dropped_never_happened,
    a_cut_reaches_the_revision_that_carries_the_link,
}

async fn a_snapshot_seals_the_head_and_puts_an_empty_revision_above_it<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    pool.needs_sealed_snapshots()?;
    let (before, head) = pool.own_new().await?;
    put(&head, pool.units(0, 2), 7).await?;
    let (record, successor) = snapshot(&head, "s").await?;
    let named = snapshot_of(&record, "s")?;
    assert_eq!((&named.revision, named.auto), (&before.head, false));
    assert_ne!(record.head, before.head);
    assert_ne!(record.version, before.version);
    let below = Below::Own { revision: before.head.clone(), overlap: pool.size() };
    assert_eq!((&record.head_revision().below, record.size()), (&below, pool.size()));
    assert!(record.revision(&before.head).is_some_and(|revision| revision.sealed));
    assert!(!record.head_revision().sealed);
    assert_eq!(pool.record("image").await?, record);
    pool.model().check(successor.layer()).await
}

async fn the_old_head_answers_sealed<H: Harness>(pool: Pool<H>) -> Result<()> {
    pool.needs_sealed_snapshots()?;
    let (_, head) = pool.own_new().await?;
    let (mut model, at) = (pool.model(), pool.units(0, 2));
    put(&head, at, 7).await?;
    model.put(at, 7);
    let (_, _successor) = snapshot(&head, "s").await?;
    assert_eq!(write(&head, at, 1).await?, Guarded::Sealed);
    assert_eq!(write(&head, Extent::new(pool.units(5, 1).offset(), 1), 1).await?, Guarded::Sealed);
    assert_eq!(fill(&head, [data(pool.units(5, 1), 1)], None).await?, Guarded::Sealed);
    assert_eq!(set(&head, at, SetTo::Zero).await?, Guarded::Sealed);
    head.sync().await?;
    refused(head.prepare(act::snapshot_named("t", Kept::Kept)?).await, ErrorKind::Invalid);
    model.check(head.layer()).await
}

async fn the_ownership_belongs_to_the_successor<H: Harness>(pool: Pool<H>) -> Result<()> {
    pool.needs_sealed_snapshots()?;
    let (_, head) = pool.own_new().await?;
    let (record, successor) = snapshot(&head, "s").await?;
    assert_eq!((head.ownership(), successor.ownership()), (Ownership::Lost, Ownership::Held));
    drop(head);
    refused(pool.catalog.own(&record.id).await, ErrorKind::InUse);
    put(&successor, pool.units(0, 1), 7).await?;
    drop(successor);
    pool.wait_until_free(&record).await
}

async fn a_snapshot_reads_as_at_its_commit_whatever_is_written_later<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.units(0, 4), 7).await?;
    zero(&head, pool.units(4, 2)).await?;
    model.put(pool.units(0, 4), 7);
    model.put(pool.units(4, 2), 0);
    let (record, successor) = snapshot(&head, "s").await?;
    let layer = pool.snapshot_layer(&record).await?;
    model.check(&layer).await?;
    put(&successor, pool.units(1, 8), 1).await?;
    zero(&successor, pool.units(2, 1)).await?;
    model.check(&layer).await?;
    model.check(&pool.snapshot_layer(&record).await?).await?;
    successor.sync().await?;
    model.check(&layer).await
}

async fn what_is_written_while_a_snapshot_is_prepared_is_in_it<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.units(0, 1), 1).await?;
    let prepared = head.prepare(act::snapshot_named("s", Kept::Kept)?).await?;
    put(&head, pool.units(1, 1), 2).await?;
    done(fill(&head, [zeros(pool.units(2, 1))], None).await?)?;
    let committed = prepared.commit().await?;
    model.put(pool.units(0, 1), 1);
    model.put(pool.units(1, 1), 2);
    model.put(pool.units(2, 1), 0);
    model.check(&pool.snapshot_layer(&committed.record).await?).await
}

async fn a_prepared_snapshot_that_is_dropped_never_happened<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (before, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.units(0, 1), 1).await?;
    drop(head.prepare(act::snapshot_named("s", Kept::Kept)?).await?);
    put(&head, pool.units(1, 1), 2).await?;
    model.put(pool.units(0, 1), 1);
    model.put(pool.units(1, 1), 2);
    model.check(head.layer()).await?;
    assert_eq!(pool.record("image").await?, before);
    // The name is free.
    let (record, _head) = snapshot(&head, "s").await?;
    model.check(&pool.snapshot_layer(&record).await?).await
}

async fn a_taken_snapshot_name_is_refused<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (record, head) = snapshot(&head, "s").await?;
    refused(head.prepare(act::snapshot_named("s", Kept::Auto)?).await, ErrorKind::Exists);
    assert_eq!(pool.record("image").await?, record);
    put(&head, pool.units(0, 1), 7).await
}

async fn snapshots_are_listed_oldest_first_and_each_reads_its_own<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    pool.needs_sealed_snapshots()?;
    let (_, mut head) = pool.own_new().await?;
    let names = ["z", "a", "m"];
    for (unit, name) in names.into_iter().enumerate() {
        put(&head, pool.units(unit as u64, 1), 7).await?;
        (_, head) = snapshot(&head, name).await?;
    }
    let record = pool.record("image").await?;
    let listed: Vec<_> =
        record.snapshots.iter().map(|snapshot| snapshot.name.to_string()).collect();
    assert_eq!(listed, names);
    for (unit, snapshot) in record.snapshots.iter().enumerate() {
        let mut model = pool.model();
        model.put(pool.units(unit as u64, 1), 7);
        model.check(&pool.catalog.layer(&record.id, &snapshot.revision).await?).await?;
    }
    pool.model().check(head.layer()).await
}

async fn a_snapshot_of_nothing_is_one<H: Harness>(pool: Pool<H>) -> Result<()> {
    let record = pool.golden("image").await?;
    pool.model().check(&pool.snapshot_layer(&record).await?).await?;
    let head = pool.own(&record).await?;
    pool.model().check(head.layer()).await
}

async fn a_removed_snapshot_leaves_what_newer_revisions_inherit<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    pool.needs_sealed_snapshots()?;
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.units(0, 2), 7).await?;
    model.put(pool.units(0, 2), 7);
    let (record, _head) = snapshot(&head, "s").await?;
    let named = snapshot_of(&record, "s")?.clone();
    let remove = Change::RemoveSnapshot(named.id);
    let record = pool.catalog.change(&record.id, record.version, remove).await?;
    assert!(record.snapshots.is_empty());
    let Below::Own { revision, .. } = &record.head_revision().below else {
        panic!("the head inherits from nothing: {record:?}");
    };
    model.check(&pool.catalog.layer(&record.id, revision).await?).await
}

async fn an_image_goes_with_its_snapshots<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    put(&head, pool.all(), 7).await?;
    let (_, head) = snapshot(&head, "s").await?;
    put(&head, pool.units(0, 1), 8).await?;
    let (record, head) = snapshot(&head, "t").await?;
    head.close().await?;
    pool.catalog.remove(&record.id, record.version).await?;
    for snapshot in &record.snapshots {
        let layer = pool.catalog.layer(&record.id, &snapshot.revision).await;
        refused(layer, ErrorKind::NotFound);
    }
    assert!(pool.catalog.list(None, 10).await?.is_empty());
    Ok(())
}

async fn a_filler_defines_inherited_units_of_a_sealed_revision_only<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    pool.needs_sealed_snapshots()?;
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.units(1, 1), 7).await?;
    let (record, successor) = snapshot(&head, "s").await?;
    let layer = pool.snapshot_layer(&record).await?;
    let filler = pool.catalog.filler(&record.id, &snapshot_of(&record, "s")?.revision).await?;
    done(fill(&filler, [data(pool.units(0, 3), 1), zeros(pool.units(5, 1))], None).await?)?;
    model.put(pool.units(0, 3), 1);
    model.put(pool.units(1, 1), 7);
    model.put(pool.units(5, 1), 0);
    filler.sync().await?;
    for layer in [&layer, filler.layer(), &pool.snapshot_layer(&record).await?] {
        model.check(layer).await?;
    }
    pool.model().check(successor.layer()).await?;
    filler.close().await?;
    model.check(&layer).await
}

async fn a_filler_refuses_everything_else<H: Harness>(pool: Pool<H>) -> Result<()> {
    pool.needs_sealed_snapshots()?;
    let record = pool.golden("image").await?;
    let filler = pool.catalog.filler(&record.id, &snapshot_of(&record, "s")?.revision).await?;
    let at = pool.units(0, 1);
    let with_write = fill(&filler, [zeros(at)], Some(write_of(at, 7))).await?;
    for answer in [write(&filler, at, 7).await?, set(&filler, at, SetTo::Zero).await?, with_write] {
        assert_eq!(answer, Guarded::Sealed);
    }
    refused(filler.prepare(HeadChange::CutParent).await, ErrorKind::Invalid);
    refused(filler.prepare(act::snapshot_named("t", Kept::Kept)?).await, ErrorKind::Invalid);
    pool.model().check(filler.layer()).await
}

async fn a_revision_is_filled_by_one_at_a_time<H: Harness>(pool: Pool<H>) -> Result<()> {
    pool.needs_sealed_snapshots()?;
    let record = pool.golden("image").await?;
    let revision = &snapshot_of(&record, "s")?.revision;
    let filler = pool.catalog.filler(&record.id, revision).await?;
    refused(pool.catalog.filler(&record.id, revision).await, ErrorKind::InUse);
    filler.close().await?;
    let filler = pool.catalog.filler(&record.id, revision).await?;
    done(fill(&filler, [data(pool.units(0, 1), 7)], None).await?)
}

async fn a_revision_is_filled_while_its_image_is_owned<H: Harness>(pool: Pool<H>) -> Result<()> {
    pool.needs_sealed_snapshots()?;
    let record = pool.golden("image").await?;
    let head = pool.own(&record).await?;
    let filler = pool.catalog.filler(&record.id, &snapshot_of(&record, "s")?.revision).await?;
    let (mut below, mut above) = (pool.model(), pool.model());
    for unit in 0..4 {
        put(&head, pool.units(2 * unit, 1), 1).await?;
        done(fill(&filler, [data(pool.units(unit, 1), 2)], None).await?)?;
        above.put(pool.units(2 * unit, 1), 1);
        below.put(pool.units(unit, 1), 2);
    }
    above.check(head.layer()).await?;
    below.check(&pool.snapshot_layer(&record).await?).await
}

async fn a_revision_that_is_open_for_reading_can_be_filled<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    pool.needs_sealed_snapshots()?;
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.units(1, 1), 7).await?;
    let (record, _) = snapshot(&head, "s").await?;
    drop(head);
    // Another process, in which the first to open the revision only reads it.
    let pool = pool.reborn().await?;
    let layer = pool.snapshot_layer(&record).await?;
    let filler = pool.catalog.filler(&record.id, &snapshot_of(&record, "s")?.revision).await?;
    done(fill(&filler, [data(pool.units(0, 3), 1)], None).await?)?;
    model.put(pool.units(0, 3), 1);
    model.put(pool.units(1, 1), 7);
    filler.sync().await?;
    model.check(&layer).await?;
    filler.close().await?;
    model.check(&layer).await
}

async fn what_a_filler_synced_is_found_by_another_process<H: Harness>(pool: Pool<H>) -> Result<()> {
    pool.needs_sealed_snapshots()?;
    let record = pool.golden("image").await?;
    let filler = pool.catalog.filler(&record.id, &snapshot_of(&record, "s")?.revision).await?;
    let mut model = pool.model();
    done(fill(&filler, [data(pool.units(0, 3), 1), zeros(pool.units(3, 1))], None).await?)?;
    model.put(pool.units(0, 3), 1);
    model.put(pool.units(3, 1), 0);
    filler.sync().await?;
    drop(filler);
    let pool = pool.reborn().await?;
    model.check(&pool.snapshot_layer(&record).await?).await
}

async fn an_image_is_not_removed_while_a_revision_is_filled<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    pool.needs_sealed_snapshots()?;
    let record = pool.golden("image").await?;
    let filler = pool.catalog.filler(&record.id, &snapshot_of(&record, "s")?.revision).await?;
    refused(pool.catalog.remove(&record.id, record.version).await, ErrorKind::InUse);
    done(fill(&filler, [data(pool.units(0, 1), 7)], None).await?)?;
    filler.close().await?;
    pool.catalog.remove(&record.id, record.version).await?;
    Ok(())
}

async fn a_cut_leaves_the_head_as_it_was_but_for_the_parent<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let parent = pool.golden("parent").await?;
    let child = pool.clone_of(&parent, "child").await?;
    let head = pool.own(&child).await?;
    let mut model = pool.model();
    put(&head, pool.units(0, 1), 7).await?;
    model.put(pool.units(0, 1), 7);
    let cut = act::cut(&head).await?;
    assert!(cut.parent().is_none());
    assert_eq!((&cut.head, &cut.head_revision().below), (&child.head, &Below::Nothing));
    assert_ne!(cut.version, child.version);
    assert_eq!(pool.record("child").await?, cut);
    assert!(pool.catalog.children(&parent.id).await?.is_empty());
    put(&head, pool.units(1, 1), 8).await?;
    model.put(pool.units(1, 1), 8);
    model.check(head.layer()).await
}

async fn a_prepared_cut_that_is_dropped_never_happened<H: Harness>(pool: Pool<H>) -> Result<()> {
    let parent = pool.golden("parent").await?;
    let child = pool.clone_of(&parent, "child").await?;
    let head = pool.own(&child).await?;
    drop(head.prepare(HeadChange::CutParent).await?);
    assert_eq!(pool.record("child").await?, child);
    assert_eq!(pool.catalog.children(&parent.id).await?.len(), 1);
    put(&head, pool.units(0, 1), 7).await
}

async fn a_cut_reaches_the_revision_that_carries_the_link<H: Harness>(pool: Pool<H>) -> Result<()> {
    pool.needs_sealed_snapshots()?;
    let parent = pool.golden("parent").await?;
    let child = pool.clone_of(&parent, "child").await?;
    let head = pool.own(&child).await?;
    let (child, head) = snapshot(&head, "s").await?;
    assert!(child.parent().is_some_and(|(revision, ..)| revision.id != child.head));
    let cut = act::cut(&head).await?;
    assert!(cut.parent().is_none());
    assert_eq!(cut.snapshots, child.snapshots);
    assert_eq!(cut.head_revision(), child.head_revision());
    assert!(pool.catalog.children(&parent.id).await?.is_empty());
    Ok(())
}
