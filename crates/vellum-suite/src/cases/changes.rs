//! A record changes as a whole or not at all, and only from the version its change was decided on.

use vellum_engine::{Catalog, Change, ErrorKind, ImageRecord};

use crate::Result;
use crate::harness::Harness;
use crate::pool::{Pool, image_name, snapshot_of};
use crate::see::refused;

super::cases! {
    a_rename_changes_the_name_and_nothing_else,
    a_rename_to_a_taken_name_is_refused_and_changes_nothing,
    a_rename_to_its_own_name_is_none,
    a_change_of_an_old_record_is_a_conflict_and_changes_nothing,
    a_removal_of_an_old_record_is_a_conflict_and_removes_nothing,
    keys_are_set_replaced_and_removed,
    each_change_makes_another_version,
    many_that_change_one_version_have_one_winner,
    an_image_in_use_can_be_renamed,
    a_renamed_snapshot_names_the_same_revision,
    a_snapshot_is_not_renamed_to_a_taken_name,
    a_snapshot_that_does_not_exist_is_not_found,
}

async fn rename<H: Harness>(
    pool: &Pool<H>,
    record: &ImageRecord,
    name: &str,
) -> Result<vellum_engine::Result<ImageRecord>> {
    let change = Change::Rename(image_name(name)?);
    Ok(pool.catalog.change(&record.id, record.version, change).await)
}

async fn a_rename_changes_the_name_and_nothing_else<H: Harness>(pool: Pool<H>) -> Result<()> {
    let before = pool.golden("before").await?;
    let after = rename(&pool, &before, "after").await??;
    let (name, version) = (after.name.clone(), after.version);
    assert_eq!(name, image_name("after")?);
    assert_eq!(after, ImageRecord { name, version, ..before });
    assert_eq!(pool.record("after").await?, after);
    refused(pool.catalog.find(&image_name("before")?).await, ErrorKind::NotFound);
    pool.create("before").await?;
    Ok(())
}

async fn a_rename_to_a_taken_name_is_refused_and_changes_nothing<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (first, second) = (pool.create("first").await?, pool.create("second").await?);
    refused(rename(&pool, &first, "second").await?, ErrorKind::Exists);
    assert_eq!(pool.catalog.list(None, 10).await?, [first, second]);
    Ok(())
}

async fn a_rename_to_its_own_name_is_none<H: Harness>(pool: Pool<H>) -> Result<()> {
    let record = pool.create("image").await?;
    assert_eq!(rename(&pool, &record, "image").await??.name, record.name);
    Ok(())
}

async fn a_change_of_an_old_record_is_a_conflict_and_changes_nothing<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let old = pool.create("image").await?;
    let new = rename(&pool, &old, "renamed").await??;
    refused(rename(&pool, &old, "again").await?, ErrorKind::Conflict);
    let meta = Change::Meta("key".into(), Some("value".into()));
    refused(pool.catalog.change(&old.id, old.version, meta).await, ErrorKind::Conflict);
    assert_eq!(pool.catalog.list(None, 10).await?, [new]);
    Ok(())
}

async fn a_removal_of_an_old_record_is_a_conflict_and_removes_nothing<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let old = pool.create("image").await?;
    let new = rename(&pool, &old, "renamed").await??;
    refused(pool.catalog.remove(&old.id, old.version).await, ErrorKind::Conflict);
    assert_eq!(pool.catalog.get(&new.id).await?, new);
    pool.catalog.remove(&new.id, new.version).await?;
    Ok(())
}

async fn keys_are_set_replaced_and_removed<H: Harness>(pool: Pool<H>) -> Result<()> {
    let mut record = pool.create("image").await?;
    for (value, expected) in [
        (Some("one"), Some("one")),
        (Some("two"), Some("two")),
        (Some(""), Some("")),
        (None, None),
        (None, None),
    ] {
        let change = Change::Meta("key".into(), value.map(str::to_owned));
        record = pool.catalog.change(&record.id, record.version, change).await?;
        assert_eq!(record.meta.get("key").map(String::as_str), expected);
        assert_eq!(pool.record("image").await?, record);
    }
    Ok(())
}

async fn each_change_makes_another_version<H: Harness>(pool: Pool<H>) -> Result<()> {
    let mut record = pool.golden("image").await?;
    let mut versions = vec![record.version];
    let id = snapshot_of(&record, "s")?.id.clone();
    for change in [
        Change::Rename(image_name("renamed")?),
        Change::Meta("key".into(), Some("value".into())),
        Change::RenameSnapshot(id.clone(), "t".parse()?),
        Change::RemoveSnapshot(id),
    ] {
        record = pool.catalog.change(&record.id, record.version, change).await?;
        versions.push(record.version);
    }
    let all = versions.len();
    versions.sort();
    versions.dedup();
    assert_eq!(versions.len(), all);
    Ok(())
}

async fn many_that_change_one_version_have_one_winner<H: Harness>(pool: Pool<H>) -> Result<()> {
    let record = pool.create("image").await?;
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let (catalog, record) = (pool.catalog.clone(), record.clone());
            let change = Change::Meta("winner".into(), Some(task.to_string()));
            tokio::spawn(async move { catalog.change(&record.id, record.version, change).await })
        })
        .collect();
    let mut winners = Vec::new();
    for task in tasks {
        match task.await? {
            Ok(record) => winners.push(record),
            lost => refused(lost, ErrorKind::Conflict),
        }
    }
    assert_eq!(winners, [pool.record("image").await?]);
    Ok(())
}

async fn an_image_in_use_can_be_renamed<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    rename(&pool, &record, "renamed").await??;
    crate::act::put(&head, pool.units(0, 1), 7).await?;
    let (record, _head) = crate::act::snapshot(&head, "s").await?;
    assert_eq!(record.name, image_name("renamed")?);
    Ok(())
}

async fn a_renamed_snapshot_names_the_same_revision<H: Harness>(pool: Pool<H>) -> Result<()> {
    let record = pool.golden("image").await?;
    let before = snapshot_of(&record, "s")?;
    let change = Change::RenameSnapshot(before.id.clone(), "t".parse()?);
    let renamed = pool.catalog.change(&record.id, record.version, change).await?;
    let after = snapshot_of(&renamed, "t")?;
    assert_eq!((&after.id, &after.revision), (&before.id, &before.revision));
    assert_eq!(renamed.snapshots.len(), 1);
    assert_eq!(pool.record("image").await?, renamed);
    Ok(())
}

async fn a_snapshot_is_not_renamed_to_a_taken_name<H: Harness>(pool: Pool<H>) -> Result<()> {
    let record = pool.golden("image").await?;
    let head = pool.own(&record).await?;
    let (record, _head) = crate::act::snapshot(&head, "t").await?;
    let id = snapshot_of(&record, "s")?.id.clone();
    let change = Change::RenameSnapshot(id, "t".parse()?);
    refused(pool.catalog.change(&record.id, record.version, change).await, ErrorKind::Exists);
    assert_eq!(pool.record("image").await?, record);
    Ok(())
}

async fn a_snapshot_that_does_not_exist_is_not_found<H: Harness>(pool: Pool<H>) -> Result<()> {
    let record = pool.golden("image").await?;
    let id = snapshot_of(&record, "s")?.id.clone();
    let remove = Change::RemoveSnapshot(id.clone());
    let record = pool.catalog.change(&record.id, record.version, remove).await?;
    for change in [Change::RemoveSnapshot(id.clone()), Change::RenameSnapshot(id, "t".parse()?)] {
        refused(pool.catalog.change(&record.id, record.version, change).await, ErrorKind::NotFound);
    }
    assert_eq!(pool.record("image").await?, record);
    Ok(())
}
