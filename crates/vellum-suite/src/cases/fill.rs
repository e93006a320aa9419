//! Fill: inherited units become what they are filled with, and a write lands with them, in one step.

use bytes::Bytes;
use vellum_core::{Extent, State};
use vellum_engine::{Content, Durability, ErrorKind, Guard, Guarded, Head, Part, Write};

use crate::Result;
use crate::act::{data, fill, put, write, write_of, zeros};
use crate::harness::Harness;
use crate::pool::{Pool, UNITS};
use crate::see::{one, refused, runs, states};

super::cases! {
    a_fill_defines_inherited_units_and_leaves_the_others,
    a_fill_with_zeros_makes_zero_units,
    a_fill_leaves_what_lies_between_its_parts,
    a_fill_composes_a_unit_with_the_write_into_it,
    a_fill_with_zeros_leaves_zeros_around_the_write,
    a_fill_with_different_parts_takes_both_edges_of_a_write,
    the_write_of_a_fill_reaches_units_defined_before,
    the_write_of_a_fill_may_cover_whole_units_without_a_part,
    a_fill_whose_write_needs_more_is_missing_and_changes_nothing,
    the_guard_of_the_write_of_a_fill_is_not_looked_at,
    a_fill_that_comes_too_late_changes_nothing,
    a_fill_reaches_the_short_last_unit,
    a_fill_of_nothing_is_done,
    a_fill_without_parts_is_a_write,
    a_durable_fill_is_a_fill,
    parts_that_are_not_as_they_must_be_are_refused,
}

async fn a_fill_defines_inherited_units_and_leaves_the_others<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.units(2, 1), 1).await?;
    assert_eq!(fill(&head, [zeros(pool.units(4, 1))], None).await?, Guarded::Done);
    assert_eq!(fill(&head, [data(pool.units(0, 8), 7)], None).await?, Guarded::Done);
    model.put(pool.units(0, 8), 7);
    model.put(pool.units(2, 1), 1);
    model.put(pool.units(4, 1), 0);
    let expected = runs([
        (pool.units(0, 4), State::Data),
        (pool.units(4, 1), State::Zero),
        (pool.units(5, 3), State::Data),
    ]);
    assert_eq!(states(head.layer(), pool.units(0, 8)).await?, expected);
    model.check(head.layer()).await
}

async fn a_fill_with_zeros_makes_zero_units<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (mut model, at) = (pool.model(), pool.units(1, 4));
    put(&head, pool.units(2, 1), 7).await?;
    assert_eq!(fill(&head, [zeros(at)], None).await?, Guarded::Done);
    model.put(at, 0);
    model.put(pool.units(2, 1), 7);
    let expected = runs([
        (pool.units(1, 1), State::Zero),
        (pool.units(2, 1), State::Data),
        (pool.units(3, 2), State::Zero),
    ]);
    assert_eq!(states(head.layer(), at).await?, expected);
    model.check(head.layer()).await
}

async fn a_fill_leaves_what_lies_between_its_parts<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    let parts = [data(pool.units(0, 1), 1), zeros(pool.units(2, 2)), data(pool.units(9, 2), 2)];
    assert_eq!(fill(&head, parts, None).await?, Guarded::Done);
    model.put(pool.units(0, 1), 1);
    model.put(pool.units(2, 2), 0);
    model.put(pool.units(9, 2), 2);
    model.check(head.layer()).await
}

async fn a_fill_composes_a_unit_with_the_write_into_it<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (mut model, unit) = (pool.model(), pool.units(3, 1));
    let within = Extent::new(unit.offset() + 100, 200);
    let answer = fill(&head, [data(unit, 1)], Some(write_of(within, 2))).await?;
    assert_eq!(answer, Guarded::Done);
    model.put(unit, 1);
    model.put(within, 2);
    assert_eq!(states(head.layer(), unit).await?[..], one(unit, State::Data));
    model.check(head.layer()).await
}

async fn a_fill_with_zeros_leaves_zeros_around_the_write<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (mut model, parts) = (pool.model(), pool.units(2, 4));
    let within = Extent::new(pool.units(3, 1).offset() + 100, pool.block());
    let answer = fill(&head, [zeros(parts)], Some(write_of(within, 7))).await?;
    assert_eq!(answer, Guarded::Done);
    model.put(parts, 0);
    model.put(within, 7);
    let expected = runs([
        (pool.units(2, 1), State::Zero),
        (pool.units(3, 2), State::Data),
        (pool.units(5, 1), State::Zero),
    ]);
    assert_eq!(states(head.layer(), parts).await?, expected);
    model.check(head.layer()).await
}

async fn a_fill_with_different_parts_takes_both_edges_of_a_write<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    let at = Extent::between(pool.units(2, 1).offset() + 9, pool.units(6, 1).offset() + 9);
    let parts = [data(pool.units(2, 1), 1), zeros(pool.units(6, 1))];
    assert_eq!(fill(&head, parts, Some(write_of(at, 7))).await?, Guarded::Done);
    model.put(pool.units(2, 1), 1);
    model.put(pool.units(6, 1), 0);
    model.put(at, 7);
    assert_eq!(
        states(head.layer(), pool.units(2, 5)).await?[..],
        one(pool.units(2, 5), State::Data)
    );
    model.check(head.layer()).await
}

async fn the_write_of_a_fill_reaches_units_defined_before<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (mut model, unit) = (pool.model(), pool.units(3, 1));
    put(&head, unit, 1).await?;
    let within = Extent::new(unit.offset() + 100, 200);
    let answer = fill(&head, [data(unit, 9)], Some(write_of(within, 2))).await?;
    assert_eq!(answer, Guarded::Done);
    model.put(unit, 1);
    model.put(within, 2);
    model.check(head.layer()).await
}

async fn the_write_of_a_fill_may_cover_whole_units_without_a_part<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    let at = Extent::between(pool.units(2, 1).offset() + 1, pool.units(6, 1).end());
    let answer = fill(&head, [data(pool.units(2, 1), 1)], Some(write_of(at, 7))).await?;
    assert_eq!(answer, Guarded::Done);
    model.put(pool.units(2, 1), 1);
    model.put(at, 7);
    model.check(head.layer()).await
}

async fn a_fill_whose_write_needs_more_is_missing_and_changes_nothing<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let at = Extent::between(pool.units(2, 1).offset() + 9, pool.units(6, 1).offset() + 9);
    for (parts, missing) in [
        (vec![data(pool.units(2, 1), 1)], pool.units(6, 1)),
        (vec![zeros(pool.units(6, 1))], pool.units(2, 1)),
        (vec![data(pool.units(3, 2), 1), data(pool.units(6, 1), 1)], pool.units(2, 1)),
    ] {
        match fill(&head, parts, Some(write_of(at, 7))).await? {
            Guarded::Missing(found) => assert_eq!(found[..], [missing]),
            other => panic!("the answer is {other:?} and not Missing"),
        }
    }
    pool.model().check(head.layer()).await
}

async fn the_guard_of_the_write_of_a_fill_is_not_looked_at<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (mut model, at) = (pool.model(), pool.units(2, 3));
    let then = Write { guard: Guard::All, ..write_of(at, 7) };
    assert_eq!(fill(&head, [zeros(pool.units(2, 1))], Some(then)).await?, Guarded::Done);
    model.put(at, 7);
    model.check(head.layer()).await
}

async fn a_fill_that_comes_too_late_changes_nothing<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (mut model, at) = (pool.model(), pool.units(2, 2));
    put(&head, at, 1).await?;
    model.put(at, 1);
    assert_eq!(fill(&head, [data(at, 7)], None).await?, Guarded::Done);
    assert_eq!(fill(&head, [zeros(at)], None).await?, Guarded::Done);
    model.check(head.layer()).await
}

async fn a_fill_reaches_the_short_last_unit<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (mut model, at) = (pool.model(), pool.units(UNITS - 1, 2));
    let within = Extent::between(pool.size() - 10, pool.size() - 5);
    assert_eq!(fill(&head, [data(at, 1)], Some(write_of(within, 2))).await?, Guarded::Done);
    model.put(at, 1);
    model.put(within, 2);
    model.check(head.layer()).await
}

async fn a_fill_of_nothing_is_done<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    assert_eq!(fill(&head, [], None).await?, Guarded::Done);
    pool.model().check(head.layer()).await
}

async fn a_fill_without_parts_is_a_write<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    let within = Extent::new(5, 6);
    let answer = fill(&head, [], Some(write_of(within, 7))).await?;
    assert!(matches!(answer, Guarded::Missing(missing) if missing[..] == [pool.units(0, 1)]));
    assert_eq!(fill(&head, [], Some(write_of(pool.units(0, 2), 7))).await?, Guarded::Done);
    model.put(pool.units(0, 2), 7);
    model.check(head.layer()).await
}

async fn a_durable_fill_is_a_fill<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (mut model, unit) = (pool.model(), pool.units(3, 1));
    let within = Extent::new(unit.offset() + 100, 200);
    let then = Write { durability: Durability::Durable, ..write_of(within, 2) };
    assert_eq!(fill(&head, [data(unit, 1)], Some(then)).await?, Guarded::Done);
    model.put(unit, 1);
    model.put(within, 2);
    model.check(head.layer()).await
}

async fn parts_that_are_not_as_they_must_be_are_refused<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let unit = pool.units(1, 1);
    let short = |length: u64| Content::Data(Bytes::from(vec![1; length as usize]));
    for parts in [
        // Neither aligned nor up to the end of the image.
        vec![data(Extent::new(unit.offset() + 1, pool.block()), 1)],
        vec![zeros(Extent::new(unit.offset(), pool.block() - 1))],
        vec![zeros(Extent::between(pool.units(UNITS, 1).offset(), pool.size() - 1))],
        // Beyond the end.
        vec![zeros(Extent::new(pool.units(UNITS, 1).offset(), pool.block()))],
        // Out of order, overlapping, twice.
        vec![data(pool.units(3, 1), 1), data(pool.units(1, 1), 1)],
        vec![data(pool.units(1, 2), 1), zeros(pool.units(2, 2))],
        vec![data(unit, 1), data(unit, 1)],
        // Too few bytes, too many.
        vec![Part { at: unit, content: short(pool.block() - 1) }],
        vec![Part { at: unit, content: short(pool.block() + 1) }],
    ] {
        refused(fill(&head, parts, None).await, ErrorKind::Invalid);
    }
    let beyond = write_of(Extent::new(pool.size(), 1), 1);
    refused(fill(&head, [data(unit, 1)], Some(beyond)).await, ErrorKind::Invalid);
    assert!(matches!(write(&head, Extent::new(0, 1), 1).await?, Guarded::Missing(_)));
    pool.model().check(head.layer()).await
}
