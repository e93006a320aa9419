//! What images take, and what happens when there is no more.

use vellum_core::{Extent, State};
use vellum_engine::{Catalog, ErrorKind, Head, NewImage};

use crate::Result;
use crate::act::{bytes, data, fill, put, snapshot, write, zero};
use crate::harness::Harness;
use crate::pool::{HeadOf, Pool, snapshot_of};
use crate::see::{one, read, refused, states};

super::cases! {
    an_empty_image_stores_next_to_nothing,
    what_is_stored_grows_with_what_is_written,
    a_snapshot_stores_what_its_revision_holds,
    a_revision_that_does_not_exist_stores_nothing_to_be_asked_for,
    a_full_pool_fails_the_write_and_harms_nothing_else,
    a_full_pool_fails_the_fill_and_harms_nothing_else,
    a_full_pool_still_takes_away,
    a_pool_that_is_full_no_longer_goes_on,
}

/// More than any engine can take where there is no space, and still within one object.
const LARGE: u64 = 1 << 20;

/// A new image with some data in its first units, on storage that is full by now.
async fn full<H: Harness>(pool: &Pool<H>) -> Result<HeadOf<H>> {
    let new = NewImage { size: 4 * LARGE, ..pool.new_image("image")? };
    let record = pool.catalog.create(new).await?;
    let head = pool.own(&record).await?;
    put(&head, pool.units(0, 4), 7).await?;
    head.sync().await?;
    pool.harness().exhaust_space().await?;
    Ok(head)
}

fn large() -> Extent {
    Extent::new(LARGE, LARGE)
}

async fn untouched<H: Harness>(pool: &Pool<H>, head: &HeadOf<H>) -> Result<()> {
    let there = pool.units(0, 4);
    assert_eq!(read(head.layer(), there).await?.bytes, bytes(there, 7));
    assert_eq!(states(head.layer(), there).await?[..], one(there, State::Data));
    Ok(())
}

async fn an_empty_image_stores_next_to_nothing<H: Harness>(pool: Pool<H>) -> Result<()> {
    let record = pool.create("image").await?;
    let stored = pool.catalog.stored_bytes(&record.id, &record.head).await?;
    assert!(stored < 64 << 10, "{stored} bytes");
    Ok(())
}

async fn what_is_stored_grows_with_what_is_written<H: Harness>(pool: Pool<H>) -> Result<()> {
    let size = 4 * LARGE;
    let record = pool.catalog.create(NewImage { size, ..pool.new_image("image")? }).await?;
    let head = pool.own(&record).await?;
    let mut before = pool.catalog.stored_bytes(&record.id, &record.head).await?;
    for number in 1..=3 {
        put(&head, Extent::new(number * LARGE, LARGE), 7).await?;
        head.sync().await?;
        let after = pool.catalog.stored_bytes(&record.id, &record.head).await?;
        assert!(after >= before + LARGE, "{before} and then {after} bytes");
        before = after;
    }
    Ok(())
}

async fn a_snapshot_stores_what_its_revision_holds<H: Harness>(pool: Pool<H>) -> Result<()> {
    pool.needs_sealed_snapshots()?;
    let (_, head) = pool.own_new().await?;
    put(&head, pool.all(), 7).await?;
    let (record, _head) = snapshot(&head, "s").await?;
    let sealed = &snapshot_of(&record, "s")?.revision;
    assert!(pool.catalog.stored_bytes(&record.id, sealed).await? >= pool.size());
    assert!(pool.catalog.stored_bytes(&record.id, &record.head).await? < 64 << 10);
    Ok(())
}

async fn a_revision_that_does_not_exist_stores_nothing_to_be_asked_for<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (one, other) = (pool.create("one").await?, pool.create("other").await?);
    let stored = pool.catalog.stored_bytes(&one.id, &other.head).await;
    refused(stored, ErrorKind::NotFound);
    Ok(())
}

async fn a_full_pool_fails_the_write_and_harms_nothing_else<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let head = full(&pool).await?;
    let failed = write(&head, large(), 1).await;
    assert_eq!(failed.err().map(|error| error.kind()), Some(ErrorKind::NoSpace));
    untouched(&pool, &head).await?;
    // Where data is already, there is space.
    put(&head, pool.units(1, 2), 7).await?;
    head.sync().await?;
    untouched(&pool, &head).await
}

async fn a_full_pool_fails_the_fill_and_harms_nothing_else<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let head = full(&pool).await?;
    let failed = fill(&head, [data(large(), 1)], None).await;
    assert_eq!(failed.err().map(|error| error.kind()), Some(ErrorKind::NoSpace));
    head.sync().await?;
    untouched(&pool, &head).await
}

async fn a_full_pool_still_takes_away<H: Harness>(pool: Pool<H>) -> Result<()> {
    let victim = pool.create("victim").await?;
    let head = full(&pool).await?;
    zero(&head, pool.units(3, 1)).await?;
    assert_eq!(read(head.layer(), pool.units(3, 1)).await?.bytes, bytes(pool.units(3, 1), 0));
    pool.catalog.remove(&victim.id, victim.version).await?;
    refused(pool.catalog.get(&victim.id).await, ErrorKind::NotFound);
    Ok(())
}

async fn a_pool_that_is_full_no_longer_goes_on<H: Harness>(pool: Pool<H>) -> Result<()> {
    let head = full(&pool).await?;
    let failed = write(&head, large(), 1).await;
    assert_eq!(failed.err().map(|error| error.kind()), Some(ErrorKind::NoSpace));
    pool.harness().free_space().await?;
    put(&head, large(), 2).await?;
    head.sync().await?;
    assert_eq!(read(head.layer(), large()).await?.bytes, bytes(large(), 2));
    untouched(&pool, &head).await
}
