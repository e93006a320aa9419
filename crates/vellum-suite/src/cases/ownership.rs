//! One writer at most, or any number of readers of its head.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vellum_engine::{Catalog, ErrorKind, Guarded, Head, ImageRecord, Ownership, SetTo};

use crate::Result;
use crate::act::{self, put, set, write, zeros};
use crate::harness::Harness;
use crate::pool::Pool;
use crate::see::refused;

super::cases! {
    an_owned_image_is_in_use_for_everybody_else,
    an_owned_image_is_in_use_for_another_process,
    ownership_ends_with_the_last_clone_of_the_head,
    ownership_ends_with_a_close_for_all_clones,
    ownership_ends_with_the_death_of_a_process,
    what_was_read_before_a_close_can_be_read_after_it,
    readers_of_a_head_share_it_and_keep_writers_out,
    readers_of_a_head_keep_writers_in_another_process_out,
    a_head_is_read_as_its_last_writer_left_it,
    a_layer_of_a_head_does_not_own_the_image,
    images_are_owned_one_beside_the_other,
    a_head_is_no_sealed_revision,
    many_that_want_an_image_get_it_one_after_the_other,
}

async fn in_use<H: Harness>(pool: &Pool<H>, record: &ImageRecord) {
    refused(pool.catalog.own(&record.id).await, ErrorKind::InUse);
    refused(pool.catalog.read_head(&record.id).await, ErrorKind::InUse);
    refused(pool.catalog.remove(&record.id, record.version).await, ErrorKind::InUse);
}

async fn an_owned_image_is_in_use_for_everybody_else<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    in_use(&pool, &record).await;
    assert_eq!(head.ownership(), Ownership::Held);
    put(&head, pool.units(0, 1), 7).await
}

async fn an_owned_image_is_in_use_for_another_process<H: Harness>(pool: Pool<H>) -> Result<()> {
    let other = pool.another().await?;
    let (record, head) = pool.own_new().await?;
    in_use(&other, &record).await;
    put(&head, pool.units(0, 1), 7).await?;
    head.close().await?;
    put(&other.own(&record).await?, pool.units(0, 1), 8).await
}

async fn ownership_ends_with_the_last_clone_of_the_head<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    let clone = head.clone();
    drop(head);
    in_use(&pool, &record).await;
    put(&clone, pool.units(0, 1), 7).await?;
    drop(clone);
    pool.wait_until_free(&record).await
}

async fn ownership_ends_with_a_close_for_all_clones<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    let clone = head.clone();
    head.close().await?;
    assert_eq!(clone.ownership(), Ownership::Lost);
    let at = pool.units(0, 1);
    let fill = act::fill(&clone, [zeros(at)], None).await?;
    for answer in [write(&clone, at, 7).await?, set(&clone, at, SetTo::Zero).await?, fill] {
        assert_eq!(answer, Guarded::Sealed);
    }
    refused(clone.prepare(act::snapshot_named("s", act::Kept::Kept)?).await, ErrorKind::Invalid);
    let head = pool.own(&record).await?;
    pool.model().check(head.layer()).await
}

async fn ownership_ends_with_the_death_of_a_process<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    put(&head, pool.units(0, 1), 7).await?;
    drop(head);
    let pool = pool.reborn().await?;
    pool.wait_until_free(&record).await
}

async fn what_was_read_before_a_close_can_be_read_after_it<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (clone, mut model) = (head.clone(), pool.model());
    put(&head, pool.units(3, 2), 7).await?;
    model.put(pool.units(3, 2), 7);
    head.close().await?;
    model.check(clone.layer()).await
}

async fn readers_of_a_head_share_it_and_keep_writers_out<H: Harness>(pool: Pool<H>) -> Result<()> {
    let record = pool.create("image").await?;
    let first = pool.catalog.read_head(&record.id).await?;
    let second = pool.catalog.read_head(&record.id).await?;
    let clone = first.clone();
    for reader in [first, second, clone] {
        refused(pool.catalog.own(&record.id).await, ErrorKind::InUse);
        refused(pool.catalog.remove(&record.id, record.version).await, ErrorKind::InUse);
        drop(reader);
    }
    pool.wait_until_free(&record).await?;
    pool.catalog.remove(&record.id, record.version).await?;
    Ok(())
}

async fn readers_of_a_head_keep_writers_in_another_process_out<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let other = pool.another().await?;
    let record = pool.create("image").await?;
    let reader = pool.catalog.read_head(&record.id).await?;
    refused(other.catalog.own(&record.id).await, ErrorKind::InUse);
    drop(other.catalog.read_head(&record.id).await?);
    refused(other.catalog.own(&record.id).await, ErrorKind::InUse);
    drop(reader);
    other.wait_until_free(&record).await
}

async fn a_head_is_read_as_its_last_writer_left_it<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.units(1, 1), 7).await?;
    model.put(pool.units(1, 1), 7);
    drop(head);
    pool.wait_until_free(&record).await?;
    model.check(&pool.catalog.read_head(&record.id).await?).await?;
    let head = pool.own(&record).await?;
    put(&head, pool.units(2, 1), 8).await?;
    model.put(pool.units(2, 1), 8);
    head.close().await?;
    model.check(&pool.catalog.read_head(&record.id).await?).await
}

async fn a_layer_of_a_head_does_not_own_the_image<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    put(&head, pool.units(0, 1), 7).await?;
    let layer = head.layer().clone();
    drop(head);
    pool.wait_until_free(&record).await?;
    let mut model = pool.model();
    model.put(pool.units(0, 1), 7);
    model.check(&layer).await
}

async fn images_are_owned_one_beside_the_other<H: Harness>(pool: Pool<H>) -> Result<()> {
    let mut heads = Vec::new();
    for byte in 1..=5 {
        let record = pool.create(&format!("image{byte}")).await?;
        heads.push((pool.own(&record).await?, byte));
    }
    for (head, byte) in &heads {
        put(head, pool.all(), *byte).await?;
    }
    for (head, byte) in &heads {
        let mut model = pool.model();
        model.put(pool.all(), *byte);
        model.check(head.layer()).await?;
    }
    Ok(())
}

async fn a_head_is_no_sealed_revision<H: Harness>(pool: Pool<H>) -> Result<()> {
    let record = pool.golden("image").await?;
    refused(pool.catalog.layer(&record.id, &record.head).await, ErrorKind::Invalid);
    refused(pool.catalog.filler(&record.id, &record.head).await, ErrorKind::Invalid);
    pool.wait_until_free(&record).await
}

async fn many_that_want_an_image_get_it_one_after_the_other<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let record = pool.create("image").await?;
    let owners = Arc::new(AtomicU64::new(0));
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let (catalog, record, owners) = (pool.catalog.clone(), record.clone(), owners.clone());
            tokio::spawn(async move {
                for _ in 0..5 {
                    let head = loop {
                        match catalog.own(&record.id).await {
                            Err(error) if error.kind() == ErrorKind::InUse => {
                                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                            }
                            head => break head?,
                        }
                    };
                    assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0, "two own the image");
                    tokio::task::yield_now().await;
                    owners.fetch_sub(1, Ordering::SeqCst);
                    drop(head);
                }
                Ok::<_, vellum_engine::Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}
