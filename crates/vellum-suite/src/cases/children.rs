//! Children hang on snapshots: what lists them, what they keep in place, and what goes with the last of them.

use vellum_core::Extent;
use vellum_engine::{
    Below, Catalog, Change, ChildRef, ErrorKind, Head, ImageRecord, NewImage, NewParent, Repair,
    Severity, Snapshots,
};

use crate::Result;
use crate::act::{self, Kept};
use crate::harness::Harness;
use crate::pool::{Pool, snapshot_of};
use crate::see::refused;

super::cases! {
    a_clone_is_in_its_parents_list_and_says_its_parent,
    a_clone_defines_nothing_yet,
    a_clone_of_a_revision_without_a_name_is_refused,
    a_clone_of_a_removed_snapshot_is_refused,
    an_overlap_beyond_either_image_is_refused,
    a_clone_may_be_smaller_or_larger_than_its_parent,
    an_image_with_children_is_not_removed,
    a_snapshot_with_children_is_not_removed,
    children_are_listed_with_the_revision_they_hang_on,
    attaching_twice_is_attaching_once,
    detaching_twice_is_detaching_once,
    who_is_listed_and_is_no_child_is_found_by_a_check,
    nothing_is_attached_where_no_snapshot_is,
    a_kept_snapshot_stays_without_children,
    an_automatic_snapshot_goes_when_its_last_child_is_removed,
    an_automatic_snapshot_goes_when_its_last_child_is_detached,
    an_automatic_snapshot_goes_when_its_last_child_is_cut_off,
    an_automatic_snapshot_that_was_renamed_is_kept,
    a_clone_of_a_clone_keeps_both_in_place,
    a_child_in_another_pool_keeps_its_parent_in_place_until_it_is_detached,
}

fn child_of<H: Harness>(pool: &Pool<H>, child: &ImageRecord) -> ChildRef {
    ChildRef { pool: pool.catalog.pool(), image: child.id.clone() }
}

async fn children<H: Harness>(pool: &Pool<H>, image: &ImageRecord) -> Result<Vec<ChildRef>> {
    let listed = pool.catalog.children(&image.id).await?;
    Ok(listed.into_iter().map(|(_, child)| child).collect())
}

/// Removes an image, whatever its version is by now.
async fn remove<H: Harness>(
    pool: &Pool<H>,
    image: &ImageRecord,
) -> Result<vellum_engine::Result<()>> {
    let version = pool.catalog.get(&image.id).await?.version;
    Ok(pool.catalog.remove(&image.id, version).await)
}

async fn a_clone_is_in_its_parents_list_and_says_its_parent<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let parent = pool.golden("parent").await?;
    assert!(children(&pool, &parent).await?.is_empty());
    let child = pool.clone_of(&parent, "child").await?;
    assert_eq!(children(&pool, &parent).await?, [child_of(&pool, &child)]);
    let (revision, link, overlap) = child.parent().expect("a clone has a parent");
    assert_eq!((&revision.id, overlap), (&child.head, pool.size()));
    assert_eq!((link.pool, &link.image), (pool.catalog.pool(), &parent.id));
    assert_eq!(link.revision, snapshot_of(&parent, "s")?.revision);
    assert_eq!(pool.record("child").await?, child);
    Ok(())
}

async fn a_clone_defines_nothing_yet<H: Harness>(pool: Pool<H>) -> Result<()> {
    let parent = pool.create("parent").await?;
    let head = pool.own(&parent).await?;
    act::put(&head, pool.all(), 7).await?;
    let (parent, _head) = act::snapshot(&head, "s").await?;
    let child = pool.clone_of(&parent, "child").await?;
    let head = pool.own(&child).await?;
    pool.model().check(head.layer()).await
}

async fn a_clone_of_a_revision_without_a_name_is_refused<H: Harness>(pool: Pool<H>) -> Result<()> {
    let parent = pool.golden("parent").await?;
    let mut new = pool.new_clone("child", &pool, &parent)?;
    for link in new.parent.iter_mut().map(|parent| &mut parent.link) {
        link.revision = parent.head.clone();
    }
    refused(pool.catalog.create(new).await, ErrorKind::NotFound);
    assert_eq!(pool.catalog.list(None, 10).await?, std::slice::from_ref(&parent));
    assert!(children(&pool, &parent).await?.is_empty());
    Ok(())
}

async fn a_clone_of_a_removed_snapshot_is_refused<H: Harness>(pool: Pool<H>) -> Result<()> {
    let parent = pool.golden("parent").await?;
    let new = pool.new_clone("child", &pool, &parent)?;
    let change = Change::RemoveSnapshot(snapshot_of(&parent, "s")?.id.clone());
    pool.catalog.change(&parent.id, parent.version, change).await?;
    refused(pool.catalog.create(new).await, ErrorKind::NotFound);
    assert_eq!(pool.catalog.list(None, 10).await?.len(), 1);
    Ok(())
}

async fn an_overlap_beyond_either_image_is_refused<H: Harness>(pool: Pool<H>) -> Result<()> {
    let parent = pool.golden("parent").await?;
    let new = pool.new_clone("child", &pool, &parent)?;
    for (size, overlap) in
        [(new.size, new.size + 1), (new.size - 1, new.size), (new.size * 2, new.size + 1)]
    {
        let parent = new.parent.clone().map(|parent| NewParent { overlap, ..parent });
        let new = NewImage { size, parent, ..new.clone() };
        refused(pool.catalog.create(new).await, ErrorKind::Invalid);
    }
    assert!(children(&pool, &parent).await?.is_empty());
    Ok(())
}

async fn a_clone_may_be_smaller_or_larger_than_its_parent<H: Harness>(pool: Pool<H>) -> Result<()> {
    let parent = pool.golden("parent").await?;
    for (name, size) in [("smaller", pool.size() - 5000), ("larger", pool.size() * 2)] {
        let new = pool.new_clone(name, &pool, &parent)?;
        let overlap = size.min(pool.size());
        let link = new.parent.clone().map(|parent| NewParent { overlap, ..parent });
        let child = pool.catalog.create(NewImage { size, parent: link, ..new }).await?;
        assert_eq!(child.size(), size);
        assert_eq!(child.parent().map(|(_, _, overlap)| overlap), Some(overlap));
        let head = pool.own(&child).await?;
        crate::model::Model::new(size).check_at(head.layer(), Extent::new(0, size)).await?;
    }
    Ok(())
}

async fn an_image_with_children_is_not_removed<H: Harness>(pool: Pool<H>) -> Result<()> {
    let parent = pool.golden("parent").await?;
    let child = pool.clone_of(&parent, "child").await?;
    refused(remove(&pool, &parent).await?, ErrorKind::HasChildren);
    assert_eq!(children(&pool, &parent).await?, [child_of(&pool, &child)]);
    remove(&pool, &child).await??;
    assert!(children(&pool, &parent).await?.is_empty());
    remove(&pool, &parent).await??;
    assert!(pool.catalog.list(None, 10).await?.is_empty());
    Ok(())
}

async fn a_snapshot_with_children_is_not_removed<H: Harness>(pool: Pool<H>) -> Result<()> {
    let parent = pool.golden("parent").await?;
    let child = pool.clone_of(&parent, "child").await?;
    let parent = pool.catalog.get(&parent.id).await?;
    let change = Change::RemoveSnapshot(snapshot_of(&parent, "s")?.id.clone());
    let removed = pool.catalog.change(&parent.id, parent.version, change.clone()).await;
    refused(removed, ErrorKind::HasChildren);
    assert_eq!(pool.catalog.get(&parent.id).await?, parent);
    remove(&pool, &child).await??;
    let parent = pool.catalog.get(&parent.id).await?;
    let parent = pool.catalog.change(&parent.id, parent.version, change).await?;
    assert!(parent.snapshots.is_empty());
    Ok(())
}

async fn children_are_listed_with_the_revision_they_hang_on<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let parent = pool.golden("parent").await?;
    let first = pool.clone_of(&parent, "first").await?;
    let head = pool.own(&parent).await?;
    let (parent, _head) = act::snapshot(&head, "t").await?;
    let mut new = pool.new_clone("second", &pool, &parent)?;
    for link in new.parent.iter_mut().map(|parent| &mut parent.link) {
        link.revision = snapshot_of(&parent, "t")?.revision.clone();
    }
    let second = pool.catalog.create(new).await?;
    let mut listed = pool.catalog.children(&parent.id).await?;
    let mut expected = vec![
        (snapshot_of(&parent, "s")?.revision.clone(), child_of(&pool, &first)),
        (snapshot_of(&parent, "t")?.revision.clone(), child_of(&pool, &second)),
    ];
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
    Ok(())
}

async fn attaching_twice_is_attaching_once<H: Harness>(pool: Pool<H>) -> Result<()> {
    let parent = pool.golden("parent").await?;
    let revision = &snapshot_of(&parent, "s")?.revision;
    let child = ChildRef { pool: pool.catalog.pool(), image: pool.catalog.unused_id() };
    pool.catalog.attach(&parent.id, revision, &child).await?;
    pool.catalog.attach(&parent.id, revision, &child).await?;
    assert_eq!(children(&pool, &parent).await?, std::slice::from_ref(&child));
    pool.catalog.detach(&parent.id, revision, &child).await?;
    assert!(children(&pool, &parent).await?.is_empty());
    Ok(())
}

async fn detaching_twice_is_detaching_once<H: Harness>(pool: Pool<H>) -> Result<()> {
    let parent = pool.golden("parent").await?;
    let revision = &snapshot_of(&parent, "s")?.revision;
    let one = ChildRef { pool: pool.catalog.pool(), image: pool.catalog.unused_id() };
    let other = ChildRef { pool: pool.catalog.pool(), image: pool.catalog.unused_id() };
    pool.catalog.attach(&parent.id, revision, &one).await?;
    pool.catalog.attach(&parent.id, revision, &other).await?;
    pool.catalog.detach(&parent.id, revision, &one).await?;
    pool.catalog.detach(&parent.id, revision, &one).await?;
    assert_eq!(children(&pool, &parent).await?, std::slice::from_ref(&other));
    pool.catalog.detach(&parent.id, revision, &other).await?;
    assert!(children(&pool, &parent).await?.is_empty());
    Ok(())
}

async fn who_is_listed_and_is_no_child_is_found_by_a_check<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let parent = pool.golden("parent").await?;
    let child = pool.clone_of(&parent, "child").await?;
    let revision = &snapshot_of(&parent, "s")?.revision;
    let nobody = ChildRef { pool: pool.catalog.pool(), image: pool.catalog.unused_id() };
    pool.catalog.attach(&parent.id, revision, &nobody).await?;
    for (repair, stands) in [(Repair::No, true), (Repair::Safe, false)] {
        let findings = pool.catalog.check(None, repair).await?;
        let [finding] = &findings[..] else { panic!("one finding, not {findings:?}") };
        assert_eq!((finding.severity, finding.stands()), (Severity::Stale, stands));
    }
    assert!(pool.catalog.check(None, Repair::No).await?.is_empty());
    assert_eq!(children(&pool, &parent).await?, [child_of(&pool, &child)]);
    Ok(())
}

async fn nothing_is_attached_where_no_snapshot_is<H: Harness>(pool: Pool<H>) -> Result<()> {
    let parent = pool.golden("parent").await?;
    let child = ChildRef { pool: pool.catalog.pool(), image: pool.catalog.unused_id() };
    let attached = pool.catalog.attach(&parent.id, &parent.head, &child).await;
    refused(attached, ErrorKind::NotFound);
    let revision = &snapshot_of(&parent, "s")?.revision;
    let nobody = pool.catalog.unused_id();
    refused(pool.catalog.attach(&nobody, revision, &child).await, ErrorKind::NotFound);
    assert!(children(&pool, &parent).await?.is_empty());
    Ok(())
}

async fn a_kept_snapshot_stays_without_children<H: Harness>(pool: Pool<H>) -> Result<()> {
    let parent = pool.golden("parent").await?;
    let child = pool.clone_of(&parent, "child").await?;
    remove(&pool, &child).await??;
    assert_eq!(pool.record("parent").await?.snapshots, parent.snapshots);
    Ok(())
}

async fn an_automatic_snapshot_goes_when_its_last_child_is_removed<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let parent = pool.golden_with("parent", Kept::Auto).await?;
    assert!(snapshot_of(&parent, "s")?.auto);
    let first = pool.clone_of(&parent, "first").await?;
    let second = pool.clone_of(&parent, "second").await?;
    remove(&pool, &first).await??;
    assert_eq!(pool.record("parent").await?.snapshots, parent.snapshots);
    remove(&pool, &second).await??;
    let after = pool.record("parent").await?;
    assert!(after.snapshots.is_empty());
    assert_ne!(after.version, parent.version);
    remove(&pool, &parent).await?.map_err(Into::into)
}

async fn an_automatic_snapshot_goes_when_its_last_child_is_detached<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let parent = pool.golden_with("parent", Kept::Auto).await?;
    let revision = &snapshot_of(&parent, "s")?.revision;
    let child = ChildRef { pool: pool.catalog.pool(), image: pool.catalog.unused_id() };
    pool.catalog.attach(&parent.id, revision, &child).await?;
    assert_eq!(pool.record("parent").await?.snapshots, parent.snapshots);
    pool.catalog.detach(&parent.id, revision, &child).await?;
    assert!(pool.record("parent").await?.snapshots.is_empty());
    pool.catalog.detach(&parent.id, revision, &child).await?;
    Ok(())
}

async fn an_automatic_snapshot_goes_when_its_last_child_is_cut_off<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let parent = pool.golden_with("parent", Kept::Auto).await?;
    let child = pool.clone_of(&parent, "child").await?;
    let head = pool.own(&child).await?;
    let child = act::cut(&head).await?;
    assert!(child.parent().is_none());
    assert!(pool.record("parent").await?.snapshots.is_empty());
    assert!(children(&pool, &parent).await?.is_empty());
    remove(&pool, &parent).await??;
    Ok(())
}

async fn an_automatic_snapshot_that_was_renamed_is_kept<H: Harness>(pool: Pool<H>) -> Result<()> {
    let parent = pool.golden_with("parent", Kept::Auto).await?;
    let child = pool.clone_of(&parent, "child").await?;
    let parent = pool.record("parent").await?;
    let rename = Change::RenameSnapshot(snapshot_of(&parent, "s")?.id.clone(), "mine".parse()?);
    pool.catalog.change(&parent.id, parent.version, rename).await?;
    remove(&pool, &child).await??;
    let parent = pool.record("parent").await?;
    assert!(!snapshot_of(&parent, "mine")?.auto);
    Ok(())
}

async fn a_clone_of_a_clone_keeps_both_in_place<H: Harness>(pool: Pool<H>) -> Result<()> {
    let grandparent = pool.golden("grandparent").await?;
    let parent = pool.clone_of(&grandparent, "parent").await?;
    let head = pool.own(&parent).await?;
    let (parent, head) = act::snapshot(&head, "s").await?;
    head.close().await?;
    // Where snapshots are native, a head may see its parent by itself.
    let is_above_its_own = matches!(parent.head_revision().below, Below::Own { .. });
    assert!(is_above_its_own || pool.can().snapshots == Snapshots::Native);
    assert!(parent.parent().is_some());
    let child = pool.clone_of(&parent, "child").await?;
    refused(remove(&pool, &parent).await?, ErrorKind::HasChildren);
    refused(remove(&pool, &grandparent).await?, ErrorKind::HasChildren);
    remove(&pool, &child).await??;
    remove(&pool, &parent).await??;
    assert!(children(&pool, &grandparent).await?.is_empty());
    remove(&pool, &grandparent).await?.map_err(Into::into)
}

async fn a_child_in_another_pool_keeps_its_parent_in_place_until_it_is_detached<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let second = pool.second().await?;
    assert_ne!(second.catalog.pool(), pool.catalog.pool());
    let parent = pool.golden_with("parent", Kept::Auto).await?;
    let revision = &snapshot_of(&parent, "s")?.revision;
    // As a caller does it: the parent's list first on attach, last on detach.
    let child = ChildRef { pool: second.catalog.pool(), image: second.catalog.unused_id() };
    pool.catalog.attach(&parent.id, revision, &child).await?;
    let new = second.new_clone("child", &pool, &parent)?;
    let created = second.catalog.create(NewImage { id: Some(child.image.clone()), ..new }).await?;
    assert_eq!(created.parent().map(|(_, link, _)| link.pool), Some(pool.catalog.pool()));
    refused(remove(&pool, &parent).await?, ErrorKind::HasChildren);
    let head = second.own(&created).await?;
    assert!(act::cut(&head).await?.parent().is_none());
    assert_eq!(children(&pool, &parent).await?, std::slice::from_ref(&child));
    pool.catalog.detach(&parent.id, revision, &child).await?;
    assert!(pool.record("parent").await?.snapshots.is_empty());
    remove(&pool, &parent).await?.map_err(Into::into)
}
