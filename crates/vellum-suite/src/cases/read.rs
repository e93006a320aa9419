//! A layer says what it defines, and reads as that.

use vellum_core::{Buffer, Extent, Runs, State};
use vellum_engine::{Guarded, Head, Known, Layer};

use crate::Result;
use crate::act::{fill, inherit, put, zeros};
use crate::harness::Harness;
use crate::model::Model;
use crate::pool::{HeadOf, Pool, UNITS};
use crate::see::{end_of, one, read, runs, states, states_by};

super::cases! {
    a_layer_says_its_revision_its_size_and_its_unit,
    a_new_image_inherits_everything,
    each_state_reads_as_it_says,
    reads_at_all_alignments_read_the_same,
    states_are_clipped_to_what_was_asked,
    states_come_a_few_runs_at_a_time,
    states_in_memory_are_a_part_of_those_that_are_loaded,
    neighbours_of_one_state_are_one_run,
    the_last_unit_may_be_short,
    a_buffer_comes_back_as_long_as_it_was,
    a_clone_of_a_layer_shows_every_later_change,
}

/// Units 0 to 2 data, 4 and 5 zero, 8 and the short last one data; the rest is inherited.
async fn mixed<H: Harness>(pool: &Pool<H>) -> Result<(HeadOf<H>, Model)> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    for (at, byte) in [
        (pool.units(0, 3), 1),
        (pool.units(1, 1), 2),
        (pool.units(8, 1), 3),
        (pool.units(UNITS, 1), 4),
    ] {
        put(&head, at, byte).await?;
        model.put(at, byte);
    }
    let zero = pool.units(4, 2);
    assert_eq!(fill(&head, [zeros(zero)], None).await?, Guarded::Done);
    model.put(zero, 0);
    Ok((head, model))
}

async fn a_layer_says_its_revision_its_size_and_its_unit<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    let layer = head.layer();
    assert_eq!((layer.revision(), layer.size()), (&record.head, pool.size()));
    assert_eq!(layer.unit(), pool.block(), "the unit of sparse layering is the block");
    Ok(())
}

async fn a_new_image_inherits_everything<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    assert_eq!(states(head.layer(), pool.all()).await?[..], one(pool.all(), State::Inherited));
    pool.model().check(head.layer()).await
}

async fn each_state_reads_as_it_says<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (head, model) = mixed(&pool).await?;
    let expected = runs([
        (pool.units(0, 3), State::Data),
        (pool.units(3, 1), State::Inherited),
        (pool.units(4, 2), State::Zero),
        (pool.units(6, 2), State::Inherited),
        (pool.units(8, 1), State::Data),
        (pool.units(9, UNITS - 9), State::Inherited),
        (pool.units(UNITS, 1), State::Data),
    ]);
    assert_eq!(states(head.layer(), pool.all()).await?, expected);
    model.check(head.layer()).await
}

async fn reads_at_all_alignments_read_the_same<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (head, model) = mixed(&pool).await?;
    let block = pool.block();
    for unit in [0, 1, 2, 3, 4, 6, 8, UNITS - 1, UNITS] {
        for offset in [0, 1, 511, 512, block - 1].map(|within| unit * block + within) {
            for length in [1, 2, 511, 512, 513, block - 1, block, block + 1, 3 * block + 7] {
                let at = Extent::new(offset, length).clip(pool.size());
                if !at.is_empty() {
                    model.check_at(head.layer(), at).await?;
                }
            }
        }
    }
    Ok(())
}

async fn states_are_clipped_to_what_was_asked<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (head, _) = mixed(&pool).await?;
    let block = pool.block();
    let at = Extent::between(3 * block - 1, 4 * block + 1);
    let expected = runs([
        (Extent::new(3 * block - 1, 1), State::Data),
        (pool.units(3, 1), State::Inherited),
        (Extent::new(4 * block, 1), State::Zero),
    ]);
    assert_eq!(states(head.layer(), at).await?, expected);
    let within = Extent::new(block + 5, 9);
    assert_eq!(states(head.layer(), within).await?[..], one(within, State::Data));
    Ok(())
}

async fn states_come_a_few_runs_at_a_time<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (head, _) = mixed(&pool).await?;
    let all = states(head.layer(), pool.all()).await?;
    for runs_max in 1..=8 {
        assert_eq!(
            states_by(head.layer(), pool.all(), runs_max).await?,
            all,
            "{runs_max} at a time"
        );
    }
    Ok(())
}

async fn states_in_memory_are_a_part_of_those_that_are_loaded<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (head, _) = mixed(&pool).await?;
    let all = states(head.layer(), pool.all()).await?;
    let mut some = runs([(pool.units(7, 2), State::Zero)]);
    for runs_max in 1..=8 {
        let known = head.layer().states(pool.all(), runs_max, &mut some);
        assert!(some.len() <= runs_max);
        let end = end_of(&some, pool.all());
        if known == Known::All {
            assert!(end == pool.size() || some.len() == runs_max, "{some:?} are not all");
        }
        for (some, all) in some.iter().zip(&all) {
            assert_eq!((some.state, some.extent.offset()), (all.state, all.extent.offset()));
            assert!(some.extent.end() == all.extent.end() || some.extent.end() == end);
        }
    }
    Ok(())
}

async fn neighbours_of_one_state_are_one_run<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    for unit in [2, 0, 3, 1] {
        put(&head, pool.units(unit, 1), 7).await?;
    }
    let at = pool.units(0, 4);
    assert_eq!(states(head.layer(), at).await?[..], one(at, State::Data));
    Ok(())
}

async fn the_last_unit_may_be_short<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (mut model, last) = (pool.model(), pool.units(UNITS, 1));
    assert!(last.length() < pool.block());
    put(&head, last, 7).await?;
    model.put(last, 7);
    assert_eq!(states(head.layer(), last).await?[..], one(last, State::Data));
    model.check(head.layer()).await?;
    model.check_at(head.layer(), Extent::new(pool.size() - 1, 1)).await
}

async fn a_buffer_comes_back_as_long_as_it_was<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (head, _) = mixed(&pool).await?;
    let at = pool.units(0, 6);
    let buffer = Buffer::from_vec(vec![9; at.len_usize() + 100]);
    let (buffer, result) = head.layer().read(at, buffer, 40..40 + at.len_usize()).await;
    assert_eq!((buffer.len(), result?.len()), (at.len_usize() + 100, 3));
    assert!(buffer[..40].iter().chain(&buffer[40 + at.len_usize()..]).all(|byte| *byte == 9));
    Ok(())
}

async fn a_clone_of_a_layer_shows_every_later_change<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (layer, mut model) = (head.layer().clone(), pool.model());
    for (unit, byte) in [(0, 1), (1, 2), (0, 3)] {
        put(&head, pool.units(unit, 1), byte).await?;
        model.put(pool.units(unit, 1), byte);
        model.check(&layer).await?;
        model.check(head.layer()).await?;
    }
    if pool.can().inherit {
        inherit(&head, pool.units(0, 1)).await?;
        let mut after = Runs::new();
        after.push(pool.units(0, 1), State::Inherited);
        assert_eq!(read(&layer, pool.units(0, 1)).await?.runs, after);
    }
    Ok(())
}
