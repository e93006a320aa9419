//! The guarded write: applied whole, or not at all and with a word on what is missing.

use vellum_core::{Extent, State};
use vellum_engine::{Durability, ErrorKind, Guard, Guarded, Head, Missing, Write};

use crate::Result;
use crate::act::{bytes, fill, put, write, write_of, zeros};
use crate::harness::Harness;
use crate::pool::{Pool, UNITS};
use crate::see::{one, refused, states};

super::cases! {
    whole_units_need_nothing_and_become_data,
    a_part_of_an_inherited_unit_is_missing,
    a_part_in_the_middle_of_an_inherited_unit_is_missing,
    both_edges_are_missing_and_what_lies_between_is_not,
    edges_in_neighbouring_units_are_missing_as_one,
    only_the_edge_that_is_inherited_is_missing,
    a_guard_of_all_wants_every_unit_defined,
    a_guard_of_all_is_met_by_data_and_by_zeros,
    a_write_to_the_end_of_the_image_covers_its_short_last_unit,
    a_part_of_the_short_last_unit_is_missing_up_to_the_end,
    a_part_of_a_unit_of_data_leaves_the_rest,
    a_part_of_a_zero_unit_leaves_zeros_around_it,
    a_write_across_all_three_states_needs_its_edges_only,
    writes_at_all_alignments_change_what_they_cover,
    a_write_beyond_the_end_or_of_nothing_is_refused,
    a_durable_write_is_a_write,
}

fn missing(answer: Guarded) -> Result<Missing> {
    match answer {
        Guarded::Missing(missing) => Ok(missing),
        other => anyhow::bail!("the answer is {other:?} and not Missing"),
    }
}

fn guarded(at: Extent, guard: Guard) -> Write {
    Write { guard, ..write_of(at, 9) }
}

async fn whole_units_need_nothing_and_become_data<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (mut model, at) = (pool.model(), pool.units(2, 3));
    assert_eq!(write(&head, at, 7).await?, Guarded::Done);
    model.put(at, 7);
    assert_eq!(states(head.layer(), at).await?[..], one(at, State::Data));
    model.check(head.layer()).await
}

async fn a_part_of_an_inherited_unit_is_missing<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (block, unit) = (pool.block(), pool.units(2, 1));
    for (offset, length) in [(0, block - 1), (1, block - 1), (0, 1), (block - 1, 1)] {
        let at = Extent::new(unit.offset() + offset, length);
        assert_eq!(missing(write(&head, at, 7).await?)?[..], [unit], "for {at}");
    }
    pool.model().check(head.layer()).await
}

async fn a_part_in_the_middle_of_an_inherited_unit_is_missing<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let unit = pool.units(5, 1);
    let at = Extent::new(unit.offset() + 100, 200);
    assert_eq!(missing(write(&head, at, 7).await?)?[..], [unit]);
    pool.model().check(head.layer()).await
}

async fn both_edges_are_missing_and_what_lies_between_is_not<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let at = Extent::between(pool.units(2, 1).end() - 1, pool.units(6, 1).offset() + 1);
    let edges = [pool.units(2, 1), pool.units(6, 1)];
    assert_eq!(missing(write(&head, at, 7).await?)?[..], edges);
    pool.model().check(head.layer()).await
}

async fn edges_in_neighbouring_units_are_missing_as_one<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let border = pool.units(3, 1).offset();
    let at = Extent::between(border - 1, border + 1);
    assert_eq!(missing(write(&head, at, 7).await?)?[..], [pool.units(2, 2)]);
    pool.model().check(head.layer()).await
}

async fn only_the_edge_that_is_inherited_is_missing<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.units(2, 1), 1).await?;
    model.put(pool.units(2, 1), 1);
    let at = Extent::between(pool.units(2, 1).offset() + 9, pool.units(5, 1).offset() + 9);
    assert_eq!(missing(write(&head, at, 7).await?)?[..], [pool.units(5, 1)]);
    model.check(head.layer()).await
}

async fn a_guard_of_all_wants_every_unit_defined<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.units(3, 1), 1).await?;
    model.put(pool.units(3, 1), 1);
    let answer = head.write(guarded(pool.units(1, 5), Guard::All)).await?;
    assert_eq!(missing(answer)?[..], [pool.units(1, 2), pool.units(4, 2)]);
    let within = Extent::new(pool.units(7, 1).offset() + 1, 2);
    assert_eq!(missing(head.write(guarded(within, Guard::All)).await?)?[..], [pool.units(7, 1)]);
    model.check(head.layer()).await
}

async fn a_guard_of_all_is_met_by_data_and_by_zeros<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.units(1, 2), 1).await?;
    assert_eq!(fill(&head, [zeros(pool.units(3, 2))], None).await?, Guarded::Done);
    assert_eq!(head.write(guarded(pool.units(1, 4), Guard::All)).await?, Guarded::Done);
    model.put(pool.units(1, 4), 9);
    model.check(head.layer()).await
}

async fn a_write_to_the_end_of_the_image_covers_its_short_last_unit<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (mut model, at) = (pool.model(), pool.units(UNITS - 1, 2));
    assert_eq!((write(&head, at, 7).await?, at.end()), (Guarded::Done, pool.size()));
    model.put(at, 7);
    model.check(head.layer()).await
}

async fn a_part_of_the_short_last_unit_is_missing_up_to_the_end<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let last = pool.units(UNITS, 1);
    for at in [
        Extent::between(last.offset(), last.end() - 1),
        Extent::between(last.offset() + 1, last.end()),
    ] {
        assert_eq!(missing(write(&head, at, 7).await?)?[..], [last]);
    }
    pool.model().check(head.layer()).await
}

async fn a_part_of_a_unit_of_data_leaves_the_rest<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (mut model, at) = (pool.model(), Extent::new(pool.units(1, 1).offset() + 100, 1000));
    put(&head, pool.units(0, 3), 1).await?;
    model.put(pool.units(0, 3), 1);
    put(&head, at, 2).await?;
    model.put(at, 2);
    model.check(head.layer()).await
}

async fn a_part_of_a_zero_unit_leaves_zeros_around_it<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    for unit in [1, 2, UNITS] {
        let (unit, within) = (pool.units(unit, 1), pool.units(unit, 1).offset() + 100);
        assert_eq!(fill(&head, [zeros(unit)], None).await?, Guarded::Done);
        put(&head, Extent::new(within, 300), 7).await?;
        model.put(unit, 0);
        model.put(Extent::new(within, 300), 7);
        assert_eq!(states(head.layer(), unit).await?[..], one(unit, State::Data));
    }
    model.check(head.layer()).await
}

async fn a_write_across_all_three_states_needs_its_edges_only<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.units(1, 1), 1).await?;
    assert_eq!(fill(&head, [zeros(pool.units(4, 1))], None).await?, Guarded::Done);
    let at = Extent::between(pool.units(1, 1).offset() + 50, pool.units(4, 1).end() - 50);
    put(&head, at, 7).await?;
    model.put(pool.units(1, 1), 1);
    model.put(pool.units(4, 1), 0);
    model.put(at, 7);
    assert_eq!(
        states(head.layer(), pool.units(1, 4)).await?[..],
        one(pool.units(1, 4), State::Data)
    );
    model.check(head.layer()).await
}

async fn writes_at_all_alignments_change_what_they_cover<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (mut model, block) = (pool.model(), pool.block());
    put(&head, pool.all(), 200).await?;
    model.put(pool.all(), 200);
    let mut byte = 0;
    for offset in [0, 1, 511, 512, 513, block - 1, block, block + 1, 3 * block - 7] {
        for length in [1, 511, 512, 513, block - 1, block, block + 1, 2 * block + 3] {
            byte = byte % 199 + 1;
            let at = Extent::new(offset, length);
            put(&head, at, byte).await?;
            model.put(at, byte);
            model.check_at(head.layer(), pool.units(0, 8)).await?;
        }
    }
    model.check(head.layer()).await
}

async fn a_write_beyond_the_end_or_of_nothing_is_refused<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (size, block) = (pool.size(), pool.block());
    for (offset, length) in
        [(size, 1), (size - 1, 2), (UNITS * block, block), (0, 0), (size, 0), (1 << 60, 1)]
    {
        let at = Extent::new(offset, length);
        refused(write(&head, at, 7).await, ErrorKind::Invalid);
    }
    pool.model().check(head.layer()).await
}

async fn a_durable_write_is_a_write<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    // The first makes data of units, the second finds it.
    for byte in [1, 2] {
        let at = pool.units(1, 3);
        let data = bytes(at, byte);
        let (guard, durability) = (Guard::Edges, Durability::Durable);
        let write = Write { offset: at.offset(), data, guard, durability };
        assert_eq!(head.write(write).await?, Guarded::Done);
        model.put(at, byte);
        model.check(head.layer()).await?;
    }
    let at = Extent::new(pool.units(8, 1).offset() + 1, 1);
    let durable = Write { durability: Durability::Durable, ..write_of(at, 7) };
    assert_eq!(missing(head.write(durable).await?)?[..], [pool.units(8, 1)]);
    model.check(head.layer()).await
}
