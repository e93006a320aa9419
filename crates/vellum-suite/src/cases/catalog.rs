//! Images come, are found, and go.

use anyhow::Context;
use vellum_core::{Extent, Geometry, State};
use vellum_engine::{Below, Catalog, ErrorKind, Head, Layer, Layering, NewImage};

use crate::Result;
use crate::act::{put, write};
use crate::harness::Harness;
use crate::pool::{Pool, image_name};
use crate::see::{eventually, one, refused, states};

super::cases! {
    a_new_image_is_found_by_its_name_and_by_its_id,
    a_record_says_what_the_image_was_created_with,
    what_does_not_exist_is_not_found,
    a_taken_name_is_refused_and_changes_nothing,
    a_taken_id_is_refused_and_changes_nothing,
    an_image_gets_the_id_it_was_promised,
    unused_ids_are_never_handed_out_twice,
    an_id_that_is_kept_is_not_gone,
    ids_are_not_used_again_after_a_removal,
    images_are_listed_by_name_in_pages,
    a_removed_image_is_gone_and_its_name_is_free,
    sizes_beyond_the_limit_are_refused,
    block_sizes_outside_the_limits_are_refused,
    the_largest_image_costs_no_more_than_a_small_one,
    the_largest_image_is_owned_again_whatever_lies_between_its_data,
    another_process_sees_what_one_has_changed,
    two_that_create_one_name_have_one_winner,
    what_is_pending_can_be_finished,
}

async fn a_new_image_is_found_by_its_name_and_by_its_id<H: Harness>(pool: Pool<H>) -> Result<()> {
    let created = pool.create("image").await?;
    assert_eq!(pool.record("image").await?, created);
    assert_eq!(pool.catalog.get(&created.id).await?, created);
    assert_eq!(pool.catalog.list(None, 10).await?, [created]);
    Ok(())
}

async fn a_record_says_what_the_image_was_created_with<H: Harness>(pool: Pool<H>) -> Result<()> {
    let geometry = Geometry::new(64 << 10, 8 << 10, 3)?;
    let meta = [("key".to_owned(), "value".to_owned()), (String::from("other"), String::new())];
    let new = NewImage { geometry, layering: Layering::CopyUp, ..pool.new_image("image")? };
    let new = NewImage { meta: meta.into(), ..new };
    let record = pool.catalog.create(new.clone()).await?;
    assert_eq!((record.name.clone(), record.size()), (new.name, new.size));
    assert_eq!((record.geometry, record.layering), (geometry, Layering::CopyUp));
    assert_eq!((record.block_size, record.meta.clone()), (new.block_size, new.meta));
    assert!(record.snapshots.is_empty() && record.parent().is_none());
    assert_eq!(record.revisions.len(), 1);
    assert_eq!(record.head_revision().below, Below::Nothing);
    assert!(!record.head_revision().sealed);
    Ok(())
}

async fn what_does_not_exist_is_not_found<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (nobody, nothing) = (image_name("nobody")?, pool.catalog.unused_id());
    let record = pool.create("image").await?;
    refused(pool.catalog.find(&nobody).await, ErrorKind::NotFound);
    refused(pool.catalog.get(&nothing).await, ErrorKind::NotFound);
    refused(pool.catalog.own(&nothing).await, ErrorKind::NotFound);
    refused(pool.catalog.read_head(&nothing).await, ErrorKind::NotFound);
    refused(pool.catalog.children(&nothing).await, ErrorKind::NotFound);
    refused(pool.catalog.remove(&nothing, record.version).await, ErrorKind::NotFound);
    refused(pool.catalog.layer(&nothing, &record.head).await, ErrorKind::NotFound);
    refused(pool.catalog.filler(&nothing, &record.head).await, ErrorKind::NotFound);
    refused(pool.catalog.stored_bytes(&nothing, &record.head).await, ErrorKind::NotFound);
    Ok(())
}

async fn a_taken_name_is_refused_and_changes_nothing<H: Harness>(pool: Pool<H>) -> Result<()> {
    let first = pool.create("image").await?;
    refused(pool.catalog.create(pool.new_image("image")?).await, ErrorKind::Exists);
    assert_eq!(pool.catalog.list(None, 10).await?, [first]);
    Ok(())
}

async fn a_taken_id_is_refused_and_changes_nothing<H: Harness>(pool: Pool<H>) -> Result<()> {
    let first = pool.create("image").await?;
    let new = NewImage { id: Some(first.id.clone()), ..pool.new_image("other")? };
    refused(pool.catalog.create(new).await, ErrorKind::Exists);
    assert_eq!(pool.catalog.list(None, 10).await?, [first]);
    Ok(())
}

async fn an_image_gets_the_id_it_was_promised<H: Harness>(pool: Pool<H>) -> Result<()> {
    let id = pool.catalog.unused_id();
    refused(pool.catalog.get(&id).await, ErrorKind::NotFound);
    let new = NewImage { id: Some(id.clone()), ..pool.new_image("image")? };
    assert_eq!(pool.catalog.create(new).await?.id, id);
    assert_eq!(pool.catalog.get(&id).await?.name, image_name("image")?);
    Ok(())
}

async fn unused_ids_are_never_handed_out_twice<H: Harness>(pool: Pool<H>) -> Result<()> {
    let mut ids: Vec<_> = (0..100).map(|_| pool.catalog.unused_id()).collect();
    ids.push(pool.create("image").await?.id);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 101);
    Ok(())
}

async fn an_id_that_is_kept_is_not_gone<H: Harness>(pool: Pool<H>) -> Result<()> {
    let other = pool.another().await?;
    let id = pool.catalog.unused_id();
    let kept = pool.catalog.reserve(&id).await?;
    for catalog in [&pool.catalog, &other.catalog] {
        assert!(!catalog.is_gone(&id).await?);
        refused(catalog.reserve(&id).await, ErrorKind::InUse);
    }
    drop(kept);
    assert!(other.catalog.is_gone(&id).await?);
    let kept = pool.catalog.reserve(&id).await?;
    let new = NewImage { id: Some(id.clone()), ..pool.new_image("image")? };
    let created = pool.catalog.create(new).await?;
    drop(kept);
    assert!(!other.catalog.is_gone(&id).await?);
    pool.catalog.remove(&id, created.version).await?;
    assert!(other.catalog.is_gone(&id).await?);
    Ok(())
}

async fn ids_are_not_used_again_after_a_removal<H: Harness>(pool: Pool<H>) -> Result<()> {
    let first = pool.create("image").await?;
    pool.catalog.remove(&first.id, first.version).await?;
    let second = pool.create("image").await?;
    assert_ne!(second.id, first.id);
    assert_ne!(second.head, first.head);
    refused(pool.catalog.get(&first.id).await, ErrorKind::NotFound);
    Ok(())
}

async fn images_are_listed_by_name_in_pages<H: Harness>(pool: Pool<H>) -> Result<()> {
    for name in ["delta", "alpha", "echo", "charlie", "bravo"] {
        pool.create(name).await?;
    }
    let page = async |after: Option<&str>, max| -> Result<Vec<String>> {
        let after = after.map(image_name).transpose()?;
        let records = pool.catalog.list(after.as_ref(), max).await?;
        Ok(records.iter().map(|record| record.name.to_string()).collect())
    };
    assert_eq!(page(None, 2).await?, ["alpha", "bravo"]);
    assert_eq!(page(Some("bravo"), 2).await?, ["charlie", "delta"]);
    assert_eq!(page(Some("delta"), 2).await?, ["echo"]);
    assert_eq!(page(Some("bz"), 1).await?, ["charlie"]);
    assert!(page(Some("echo"), 2).await?.is_empty() && page(None, 0).await?.is_empty());
    assert_eq!(page(None, usize::MAX).await?.len(), 5);
    Ok(())
}

async fn a_removed_image_is_gone_and_its_name_is_free<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    put(&head, pool.all(), 1).await?;
    head.close().await?;
    pool.catalog.remove(&record.id, record.version).await?;
    refused(pool.catalog.get(&record.id).await, ErrorKind::NotFound);
    refused(pool.catalog.own(&record.id).await, ErrorKind::NotFound);
    assert!(pool.catalog.list(None, 10).await?.is_empty());
    let (_, head) = pool.own_new().await?;
    pool.model().check(head.layer()).await
}

async fn sizes_beyond_the_limit_are_refused<H: Harness>(pool: Pool<H>) -> Result<()> {
    let size = pool.can().size_max;
    let too_large = NewImage { size: size + 1, ..pool.new_image("image")? };
    refused(pool.catalog.create(too_large).await, ErrorKind::Invalid);
    assert!(pool.catalog.list(None, 10).await?.is_empty());
    let largest = NewImage { size, ..pool.new_image("image")? };
    assert_eq!(pool.catalog.create(largest).await?.size(), size);
    Ok(())
}

async fn block_sizes_outside_the_limits_are_refused<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (min, max) = (pool.can().block_size_min, pool.can().block_size_max);
    for block_size in [0, min / 2, min + 1, max + 1, max.saturating_mul(2)] {
        let new = NewImage { block_size, ..pool.new_image("image")? };
        refused(pool.catalog.create(new).await, ErrorKind::Invalid);
    }
    let stripes_shorter_than_blocks = NewImage {
        geometry: Geometry::new(4 << 20, pool.block() / 2, 2)?,
        ..pool.new_image("image")?
    };
    refused(pool.catalog.create(stripes_shorter_than_blocks).await, ErrorKind::Invalid);
    for (name, block_size) in [("smallest", min), ("largest", max)] {
        let new = NewImage { block_size, ..pool.new_image(name)? };
        assert_eq!(pool.catalog.create(new).await?.block_size, block_size);
    }
    Ok(())
}

async fn the_largest_image_costs_no_more_than_a_small_one<H: Harness>(pool: Pool<H>) -> Result<()> {
    let size = pool.can().size_max;
    let record = pool.catalog.create(NewImage { size, ..pool.new_image("image")? }).await?;
    let head = pool.own(&record).await?;
    let (all, last) = (Extent::new(0, size), Extent::between(size - pool.block(), size));
    assert_eq!(states(head.layer(), all).await?[..], one(all, State::Inherited));
    put(&head, last, 7).await?;
    assert_eq!(states(head.layer(), last).await?[..], one(last, State::Data));
    assert_eq!(crate::see::read(head.layer(), last).await?.bytes, crate::act::bytes(last, 7));
    head.sync().await?;
    // Proportional to the image, even one bit a unit would be gibibytes.
    assert!(pool.catalog.stored_bytes(&record.id, &record.head).await? < 16 << 20);
    Ok(())
}

async fn the_largest_image_is_owned_again_whatever_lies_between_its_data<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let size = pool.can().size_max;
    let record = pool.catalog.create(NewImage { size, ..pool.new_image("image")? }).await?;
    let mut head = pool.own(&record).await?;
    // Ever closer together, from both ends; where it is time that a step between them takes, all of them take too long.
    let last = (size - 1) / 4096;
    let places = (1..12).flat_map(|part| [last / part, last - last / part]);
    for (number, place) in (1..).zip(places) {
        let at = Extent::new(place * 4096 / pool.block() * pool.block(), pool.block()).clip(size);
        if at.is_empty() {
            continue;
        }
        put(&head, at, number).await?;
        head.close().await?;
        head = pool.own(&record).await?;
        assert_eq!(crate::see::read(head.layer(), at).await?.bytes, crate::act::bytes(at, number));
    }
    Ok(())
}

async fn another_process_sees_what_one_has_changed<H: Harness>(pool: Pool<H>) -> Result<()> {
    let other = pool.another().await?;
    assert_eq!(other.catalog.pool(), pool.catalog.pool());
    let (record, head) = pool.own_new().await?;
    assert_eq!(other.record("image").await?, record);
    let _ = write(&head, pool.units(0, 1), 7).await?;
    head.close().await?;
    let seen = other.own(&record).await?;
    let mut model = other.model();
    model.put(other.units(0, 1), 7);
    model.check(seen.layer()).await
}

async fn two_that_create_one_name_have_one_winner<H: Harness>(pool: Pool<H>) -> Result<()> {
    for round in 0..10 {
        let new = pool.new_image(&format!("image{round}"))?;
        let create = || {
            let (catalog, new) = (pool.catalog.clone(), new.clone());
            tokio::spawn(async move { catalog.create(new).await })
        };
        let (first, second) = (create(), create());
        let (winner, loser) = match (first.await?, second.await?) {
            (Ok(record), lost) | (lost, Ok(record)) => (record, lost),
            (Err(error), Err(_)) => return Err(error.into()),
        };
        refused(loser, ErrorKind::Exists);
        assert_eq!(pool.catalog.get(&winner.id).await?, winner);
    }
    Ok(())
}

async fn what_is_pending_can_be_finished<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    put(&head, pool.all(), 1).await?;
    drop(head);
    pool.wait_until_free(&record).await?;
    pool.catalog.remove(&record.id, record.version).await?;
    pool.create("other").await?;
    eventually("nothing is pending", async || {
        for pending in pool.catalog.pending().await? {
            pool.catalog.resume(&pending).await.with_context(|| pending.what.clone())?;
        }
        Ok(pool.catalog.pending().await?.is_empty())
    })
    .await?;
    assert_eq!(pool.record("other").await?.size(), pool.size());
    let layer = pool.catalog.read_head(&pool.record("other").await?.id).await?;
    assert_eq!(layer.size(), pool.size());
    Ok(())
}
