//! Units become zero or inherited again, and nothing of what they held comes back.

use vellum_core::{Extent, State};
use vellum_engine::{Catalog, Durability, ErrorKind, Guarded, Head, SetTo};

use crate::Result;
use crate::act::{data, done, fill, inherit, put, set, write, write_of, zero, zeros};
use crate::harness::Harness;
use crate::model::Model;
use crate::pool::{HeadOf, Pool, UNITS};
use crate::see::{one, refused, states};

super::cases! {
    units_of_any_state_read_as_zeros_at_once,
    an_inherited_unit_becomes_a_zero_unit,
    zeroing_leaves_the_neighbours,
    zeroing_to_the_end_covers_the_short_last_unit,
    what_a_zeroed_unit_held_does_not_come_back,
    zeroing_twice_is_zeroing_once,
    a_durable_zeroing_is_a_zeroing,
    units_of_any_state_become_inherited,
    what_an_inherited_unit_held_does_not_come_back,
    an_inherited_unit_wants_to_be_filled_again,
    reclaiming_frees_what_was_set_to_inherit,
    reclaiming_spares_what_was_written_since,
    parts_of_units_are_neither_zeroed_nor_inherited,
    inheriting_is_refused_where_it_cannot_be,
}

/// Units 0 to 3 data, 4 to 7 zero, the short last one data; the rest is inherited.
async fn mixed<H: Harness>(pool: &Pool<H>) -> Result<(HeadOf<H>, Model)> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    for at in [pool.units(0, 4), pool.units(UNITS, 1)] {
        put(&head, at, 7).await?;
        model.put(at, 7);
    }
    assert_eq!(fill(&head, [zeros(pool.units(4, 4))], None).await?, Guarded::Done);
    model.put(pool.units(4, 4), 0);
    Ok((head, model))
}

async fn units_of_any_state_read_as_zeros_at_once<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (head, mut model) = mixed(&pool).await?;
    for at in [pool.units(1, 1), pool.units(5, 1), pool.units(9, 1), pool.units(3, 6)] {
        zero(&head, at).await?;
        model.put(at, 0);
        model.check(head.layer()).await?;
    }
    Ok(())
}

async fn an_inherited_unit_becomes_a_zero_unit<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let at = pool.units(3, 2);
    zero(&head, at).await?;
    assert_eq!(states(head.layer(), at).await?[..], one(at, State::Zero));
    Ok(())
}

async fn zeroing_leaves_the_neighbours<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.all(), 7).await?;
    model.put(pool.all(), 7);
    for at in [pool.units(0, 1), pool.units(5, 3), pool.units(UNITS, 1)] {
        zero(&head, at).await?;
        model.put(at, 0);
        model.check(head.layer()).await?;
    }
    Ok(())
}

async fn zeroing_to_the_end_covers_the_short_last_unit<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (head, mut model) = mixed(&pool).await?;
    zero(&head, pool.all()).await?;
    model.put(pool.all(), 0);
    model.check(head.layer()).await?;
    // Now that all is defined, a write needs nothing.
    let within = Extent::new(pool.size() - 500, 9);
    put(&head, within, 1).await?;
    model.put(within, 1);
    model.check(head.layer()).await
}

async fn what_a_zeroed_unit_held_does_not_come_back<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    for unit in [0, 3, UNITS] {
        let (unit, within) = (pool.units(unit, 1), pool.units(unit, 1).offset() + 700);
        put(&head, unit, 7).await?;
        zero(&head, unit).await?;
        put(&head, Extent::new(within, 10), 1).await?;
        model.put(unit, 0);
        model.put(Extent::new(within, 10), 1);
    }
    model.check(head.layer()).await
}

async fn zeroing_twice_is_zeroing_once<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (head, mut model) = mixed(&pool).await?;
    zero(&head, pool.units(2, 8)).await?;
    zero(&head, pool.units(2, 8)).await?;
    model.put(pool.units(2, 8), 0);
    model.check(head.layer()).await
}

async fn a_durable_zeroing_is_a_zeroing<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (head, mut model) = mixed(&pool).await?;
    let at = pool.units(2, 8);
    assert_eq!(head.set(at, SetTo::Zero, Durability::Durable).await?, Guarded::Done);
    model.put(at, 0);
    model.check(head.layer()).await
}

async fn units_of_any_state_become_inherited<H: Harness>(pool: Pool<H>) -> Result<()> {
    pool.needs_inherit()?;
    let (head, mut model) = mixed(&pool).await?;
    for at in [
        pool.units(1, 1),
        pool.units(5, 1),
        pool.units(9, 1),
        pool.units(3, 6),
        pool.units(UNITS, 1),
    ] {
        inherit(&head, at).await?;
        model.inherit(at);
        model.check(head.layer()).await?;
    }
    inherit(&head, pool.all()).await?;
    assert_eq!(states(head.layer(), pool.all()).await?[..], one(pool.all(), State::Inherited));
    Ok(())
}

async fn what_an_inherited_unit_held_does_not_come_back<H: Harness>(pool: Pool<H>) -> Result<()> {
    pool.needs_inherit()?;
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.units(0, 6), 7).await?;
    inherit(&head, pool.units(0, 6)).await?;
    // Filled with zeros and written to, filled with data, zeroed and written to, written whole.
    let into = |unit: u64| Extent::new(pool.units(unit, 1).offset() + 700, 10);
    done(fill(&head, [zeros(pool.units(0, 1))], Some(write_of(into(0), 1))).await?)?;
    done(fill(&head, [data(pool.units(1, 1), 2)], None).await?)?;
    zero(&head, pool.units(2, 1)).await?;
    put(&head, into(2), 3).await?;
    put(&head, pool.units(3, 1), 4).await?;
    for (at, byte) in [
        (pool.units(0, 1), 0),
        (into(0), 1),
        (pool.units(1, 1), 2),
        (pool.units(2, 1), 0),
        (into(2), 3),
        (pool.units(3, 1), 4),
    ] {
        model.put(at, byte);
    }
    model.check(head.layer()).await
}

async fn an_inherited_unit_wants_to_be_filled_again<H: Harness>(pool: Pool<H>) -> Result<()> {
    pool.needs_inherit()?;
    let (_, head) = pool.own_new().await?;
    let (mut model, unit) = (pool.model(), pool.units(2, 1));
    put(&head, unit, 7).await?;
    inherit(&head, unit).await?;
    let within = Extent::new(unit.offset() + 5, 5);
    let answer = write(&head, within, 1).await?;
    assert!(matches!(answer, Guarded::Missing(missing) if missing[..] == [unit]));
    done(fill(&head, [data(unit, 2)], Some(write_of(within, 1))).await?)?;
    model.put(unit, 2);
    model.put(within, 1);
    model.check(head.layer()).await
}

async fn reclaiming_frees_what_was_set_to_inherit<H: Harness>(pool: Pool<H>) -> Result<()> {
    pool.needs_inherit()?;
    let (record, head) = pool.own_new().await?;
    let mut model = pool.model();
    assert!(!head.wants_reclaim());
    assert_eq!(head.reclaim().await?, 0);
    put(&head, pool.all(), 7).await?;
    model.put(pool.all(), 7);
    let before = pool.catalog.stored_bytes(&record.id, &record.head).await?;
    inherit(&head, pool.units(2, 6)).await?;
    model.inherit(pool.units(2, 6));
    if head.wants_reclaim() {
        assert!(head.reclaim().await? > 0);
    } else {
        let after = pool.catalog.stored_bytes(&record.id, &record.head).await?;
        assert!(after + 6 * pool.block() <= before, "{before} and then {after} bytes");
    }
    assert!(!head.wants_reclaim());
    model.check(head.layer()).await
}

async fn reclaiming_spares_what_was_written_since<H: Harness>(pool: Pool<H>) -> Result<()> {
    pool.needs_inherit()?;
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.units(0, 8), 7).await?;
    inherit(&head, pool.units(0, 8)).await?;
    put(&head, pool.units(2, 1), 1).await?;
    done(fill(&head, [data(pool.units(4, 1), 2), zeros(pool.units(5, 1))], None).await?)?;
    head.reclaim().await?;
    model.put(pool.units(2, 1), 1);
    model.put(pool.units(4, 1), 2);
    model.put(pool.units(5, 1), 0);
    model.check(head.layer()).await
}

async fn parts_of_units_are_neither_zeroed_nor_inherited<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (head, model) = mixed(&pool).await?;
    let (size, block) = (pool.size(), pool.block());
    let to = if pool.can().inherit { vec![SetTo::Zero, SetTo::Inherit] } else { vec![SetTo::Zero] };
    for to in to {
        for at in [
            Extent::new(1, block),
            Extent::new(0, block - 1),
            Extent::between(UNITS * block, size - 1),
            Extent::new(UNITS * block, block),
            Extent::new(size, 1),
            Extent::new(block, 0),
        ] {
            refused(set(&head, at, to).await, ErrorKind::Invalid);
        }
    }
    model.check(head.layer()).await
}

async fn inheriting_is_refused_where_it_cannot_be<H: Harness>(pool: Pool<H>) -> Result<()> {
    if pool.can().inherit {
        return Err(crate::Skip::because("the engine can make a unit inherited again"));
    }
    let (head, model) = mixed(&pool).await?;
    refused(set(&head, pool.units(0, 1), SetTo::Inherit).await, ErrorKind::Unsupported);
    model.check(head.layer()).await
}
