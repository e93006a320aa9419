//! What survives: the death of a process loses nothing acknowledged, a power cut nothing that was synced.

use vellum_core::{Extent, State};
use vellum_engine::{
    Catalog, Change, Durability, ErrorKind, Guarded, Head, ImageRecord, SetTo, Write,
};

use crate::Result;
use crate::act::{self, data, done, fill, inherit, put, snapshot, write_of, zero, zeros};
use crate::harness::Harness;
use crate::model::Model;
use crate::pool::{HeadOf, Pool, UNITS, image_name, snapshot_of};
use crate::see::{read, refused, states};

super::cases! {
    what_was_synced_is_found_by_the_next_process,
    what_was_acknowledged_survives_the_death_of_its_process,
    what_was_closed_is_found_by_the_next_process,
    states_survive_the_death_of_their_process,
    changes_after_a_sync_survive_the_death_of_their_process,
    many_deaths_lose_nothing,
    the_catalog_survives_the_death_of_its_process,
    a_prepared_change_dies_with_its_process,
    a_power_cut_keeps_what_was_synced,
    a_power_cut_keeps_what_was_closed,
    a_power_cut_keeps_durable_changes,
    a_power_cut_keeps_what_a_snapshot_froze,
    a_power_cut_keeps_what_was_there_before_a_cut_link,
    a_power_cut_keeps_the_catalog,
    after_a_power_cut_each_sector_is_old_or_new,
    an_image_goes_on_after_a_power_cut,
    an_acknowledgement_is_durable_where_the_engine_says_so,
    a_sync_leaves_nothing_unsynced,
    a_sync_of_a_sealed_head_is_none,
}

/// Makes units of every state, and the model of them.
async fn mixed<H: Harness>(pool: &Pool<H>, head: &HeadOf<H>) -> Result<Model> {
    let mut model = pool.model();
    put(head, pool.units(0, 6), 7).await?;
    model.put(pool.units(0, 6), 7);
    put(head, pool.units(UNITS, 1), 8).await?;
    model.put(pool.units(UNITS, 1), 8);
    done(fill(head, [data(pool.units(8, 1), 9), zeros(pool.units(9, 2))], None).await?)?;
    model.put(pool.units(8, 1), 9);
    model.put(pool.units(9, 2), 0);
    zero(head, pool.units(2, 1)).await?;
    model.put(pool.units(2, 1), 0);
    put(head, Extent::new(300, 100), 1).await?;
    model.put(Extent::new(300, 100), 1);
    if pool.can().inherit {
        inherit(head, pool.units(4, 1)).await?;
        model.inherit(pool.units(4, 1));
    }
    Ok(model)
}

/// Checks that the image can be owned and reads as the model says.
async fn check<H: Harness>(pool: &Pool<H>, record: &ImageRecord, model: &Model) -> Result<()> {
    pool.wait_until_free(record).await?;
    model.check(pool.own(record).await?.layer()).await
}

async fn what_was_synced_is_found_by_the_next_process<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    let model = mixed(&pool, &head).await?;
    head.sync().await?;
    drop(head);
    check(&pool.reborn().await?, &record, &model).await
}

async fn what_was_acknowledged_survives_the_death_of_its_process<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    let model = mixed(&pool, &head).await?;
    drop(head);
    check(&pool.reborn().await?, &record, &model).await
}

async fn what_was_closed_is_found_by_the_next_process<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    let model = mixed(&pool, &head).await?;
    head.close().await?;
    check(&pool.reborn().await?, &record, &model).await
}

async fn states_survive_the_death_of_their_process<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    mixed(&pool, &head).await?;
    let before = states(head.layer(), pool.all()).await?;
    drop(head);
    let pool = pool.reborn().await?;
    pool.wait_until_free(&record).await?;
    assert_eq!(states(pool.own(&record).await?.layer(), pool.all()).await?, before);
    Ok(())
}

async fn changes_after_a_sync_survive_the_death_of_their_process<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    let mut model = mixed(&pool, &head).await?;
    head.sync().await?;
    for (at, byte) in [(pool.units(1, 3), 1), (pool.units(11, 1), 2)] {
        put(&head, at, byte).await?;
        model.put(at, byte);
    }
    zero(&head, pool.units(8, 1)).await?;
    model.put(pool.units(8, 1), 0);
    drop(head);
    check(&pool.reborn().await?, &record, &model).await
}

async fn many_deaths_lose_nothing<H: Harness>(mut pool: Pool<H>) -> Result<()> {
    pool.needs_persistent()?;
    let record = pool.create("image").await?;
    let mut model = pool.model();
    for round in 0..UNITS {
        pool.wait_until_free(&record).await?;
        let head = pool.own(&record).await?;
        model.check(head.layer()).await?;
        let (at, byte) = (pool.units(round * 5 % UNITS, 2), round as u8 + 1);
        put(&head, at, byte).await?;
        model.put(at, byte);
        if round % 3 == 0 {
            head.sync().await?;
        }
        drop(head);
        pool = pool.reborn().await?;
    }
    check(&pool, &record, &model).await
}

async fn the_catalog_survives_the_death_of_its_process<H: Harness>(pool: Pool<H>) -> Result<()> {
    let parent = pool.golden("parent").await?;
    let child = pool.clone_of(&parent, "child").await?;
    let gone = pool.create("gone").await?;
    pool.catalog.remove(&gone.id, gone.version).await?;
    let meta = Change::Meta("key".into(), Some("value".into()));
    let child = pool.catalog.change(&child.id, child.version, meta).await?;
    let (all, children) =
        (pool.catalog.list(None, 10).await?, pool.catalog.children(&parent.id).await?);
    let pool = pool.reborn().await?;
    assert_eq!(pool.catalog.list(None, 10).await?, all);
    assert_eq!(pool.catalog.children(&parent.id).await?, children);
    assert_eq!(pool.record("child").await?, child);
    Ok(())
}

async fn a_prepared_change_dies_with_its_process<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    let model = mixed(&pool, &head).await?;
    let prepared = head.prepare(act::snapshot_named("s", act::Kept::Kept)?).await?;
    drop((prepared, head));
    let pool = pool.reborn().await?;
    assert_eq!(pool.record("image").await?, record);
    check(&pool, &record, &model).await
}

async fn a_power_cut_keeps_what_was_synced<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    let model = mixed(&pool, &head).await?;
    head.sync().await?;
    let pool = pool.cut_power().await?;
    drop(head);
    check(&pool, &record, &model).await
}

async fn a_power_cut_keeps_what_was_closed<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    let model = mixed(&pool, &head).await?;
    head.close().await?;
    check(&pool.cut_power().await?, &record, &model).await
}

async fn a_power_cut_keeps_durable_changes<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    let mut model = pool.model();
    let durable = |write: Write| Write { durability: Durability::Durable, ..write };
    // New data, data over data, a part of a unit, a fill, zeros.
    done(head.write(durable(write_of(pool.units(0, 4), 1))).await?)?;
    done(head.write(durable(write_of(pool.units(1, 1), 2))).await?)?;
    done(head.write(durable(write_of(Extent::new(9, 9), 3))).await?)?;
    let then = durable(write_of(Extent::new(pool.units(6, 1).offset() + 9, 9), 5));
    let filled = fill(&head, [data(pool.units(6, 1), 4)], Some(then.clone())).await?;
    done(filled)?;
    done(head.set(pool.units(3, 1), SetTo::Zero, Durability::Durable).await?)?;
    done(head.set(pool.units(9, 2), SetTo::Zero, Durability::Durable).await?)?;
    for (at, byte) in [
        (pool.units(0, 4), 1),
        (pool.units(1, 1), 2),
        (Extent::new(9, 9), 3),
        (pool.units(6, 1), 4),
        (then.extent(), 5),
        (pool.units(3, 1), 0),
        (pool.units(9, 2), 0),
    ] {
        model.put(at, byte);
    }
    let pool = pool.cut_power().await?;
    drop(head);
    check(&pool, &record, &model).await
}

async fn a_power_cut_keeps_what_a_snapshot_froze<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let model = mixed(&pool, &head).await?;
    let (record, successor) = snapshot(&head, "s").await?;
    let pool = pool.cut_power().await?;
    drop((head, successor));
    assert_eq!(pool.record("image").await?, record);
    model.check(&pool.snapshot_layer(&record).await?).await
}

async fn a_power_cut_keeps_what_was_there_before_a_cut_link<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let parent = pool.golden("parent").await?;
    let child = pool.clone_of(&parent, "child").await?;
    let head = pool.own(&child).await?;
    let mut model = pool.model();
    // As a flatten does: what was copied up must not be lost once the link is gone.
    done(fill(&head, [data(pool.all(), 7)], None).await?)?;
    model.put(pool.all(), 7);
    let cut = act::cut(&head).await?;
    let pool = pool.cut_power().await?;
    drop(head);
    assert_eq!(pool.record("child").await?, cut);
    check(&pool, &cut, &model).await
}

async fn a_power_cut_keeps_the_catalog<H: Harness>(pool: Pool<H>) -> Result<()> {
    let parent = pool.golden("parent").await?;
    let child = pool.clone_of(&parent, "child").await?;
    let gone = pool.create("gone").await?;
    pool.catalog.remove(&gone.id, gone.version).await?;
    let rename = Change::Rename(image_name("renamed")?);
    pool.catalog.change(&child.id, child.version, rename).await?;
    let (all, children) =
        (pool.catalog.list(None, 10).await?, pool.catalog.children(&parent.id).await?);
    let pool = pool.cut_power().await?;
    assert_eq!(pool.catalog.list(None, 10).await?, all);
    assert_eq!(pool.catalog.children(&parent.id).await?, children);
    refused(pool.catalog.get(&gone.id).await, ErrorKind::NotFound);
    assert_eq!(children[0].0, snapshot_of(&parent, "s")?.revision);
    Ok(())
}

async fn after_a_power_cut_each_sector_is_old_or_new<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    put(&head, pool.units(0, 8), 1).await?;
    head.sync().await?;
    // Over data, and where nothing was.
    put(&head, pool.units(4, 8), 2).await?;
    let pool = pool.cut_power().await?;
    drop(head);
    pool.wait_until_free(&record).await?;
    let seen = read(pool.own(&record).await?.layer(), pool.all()).await?;
    for run in &seen.runs {
        let defined = run.state != State::Inherited;
        for sector in run.extent.chunks(512).filter(|_| defined) {
            let bytes = &seen.bytes[pool.all().range_of(&sector)];
            let (old, new) = (bytes.iter().all(|b| *b == 1), bytes.iter().all(|b| *b == 2));
            assert!(new || old && sector.end() <= pool.units(8, 1).offset(), "garbage at {sector}");
            assert!(old || sector.offset() >= pool.units(4, 1).offset(), "changed at {sector}");
        }
    }
    assert!(states(pool.own(&record).await?.layer(), pool.units(0, 8)).await?.all(State::Data));
    Ok(())
}

async fn an_image_goes_on_after_a_power_cut<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.units(0, 2), 1).await?;
    head.sync().await?;
    model.put(pool.units(0, 2), 1);
    let pool = pool.cut_power().await?;
    drop(head);
    pool.wait_until_free(&record).await?;
    let head = pool.own(&record).await?;
    put(&head, pool.units(4, 2), 2).await?;
    head.sync().await?;
    model.put(pool.units(4, 2), 2);
    let (after, _successor) = snapshot(&head, "s").await?;
    let pool = pool.cut_power().await?;
    model.check(&pool.snapshot_layer(&after).await?).await
}

async fn an_acknowledgement_is_durable_where_the_engine_says_so<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    if !pool.can().ack_is_durable {
        return Err(crate::Skip::because("an acknowledgement of the engine is not durable"));
    }
    let (record, head) = pool.own_new().await?;
    let model = mixed(&pool, &head).await?;
    let pool = pool.cut_power().await?;
    drop(head);
    check(&pool, &record, &model).await
}

async fn a_sync_leaves_nothing_unsynced<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    head.sync().await?;
    assert_eq!(head.unsynced_bytes(), 0);
    put(&head, pool.all(), 7).await?;
    if !pool.can().ack_is_durable {
        assert!(head.unsynced_bytes() > 0);
    }
    head.sync().await?;
    assert_eq!(head.unsynced_bytes(), 0);
    Ok(())
}

async fn a_sync_of_a_sealed_head_is_none<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    put(&head, pool.all(), 7).await?;
    let (_, successor) = snapshot(&head, "s").await?;
    head.sync().await?;
    let clone = successor.clone();
    successor.close().await?;
    clone.sync().await?;
    assert_eq!(act::write(&clone, pool.all(), 1).await?, Guarded::Sealed);
    Ok(())
}
