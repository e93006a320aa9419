//! Many at once: each change takes effect whole, one after the other where they meet, and goes on without its caller.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::try_join_all;
use futures::poll;
use vellum_core::{Extent, State};
use vellum_engine::{Catalog, Guarded, Head, Prepared};

use crate::Result;
use crate::act::{self, data, done, fill, put, write, write_of, write_over_zeros, zero};
use crate::harness::Harness;
use crate::pool::{Pool, UNITS};
use crate::see::{eventually, one, read, read_beside, states};

super::cases! {
    writers_of_different_units_all_land,
    writers_of_one_unit_leave_what_one_of_them_wrote,
    writers_that_overlap_are_ordered,
    writers_within_one_unit_of_data_all_land,
    writers_into_one_inherited_unit_all_land,
    two_that_fill_a_unit_have_one_winner,
    a_write_wins_over_a_fill,
    zeroing_beside_writing_is_ordered,
    syncs_beside_writers_lose_nothing,
    a_reader_beside_a_writer_sees_old_or_new,
    a_snapshot_is_read_while_its_successor_is_written,
    a_dropped_write_leaves_its_units_usable,
    a_dropped_fill_leaves_its_units_usable,
    a_dropped_zeroing_leaves_its_units_usable,
    a_dropped_close_gives_the_image_up,
    a_dropped_commit_happens_or_not,
    a_dropped_read_disturbs_nobody,
}

/// How often a race is run.
const ROUNDS: u8 = 20;

/// The one byte that all of an extent reads as.
async fn uniform<H: Harness>(pool: &Pool<H>, head: &impl Head, at: Extent) -> Result<u8> {
    let seen = read(head.layer(), at).await?;
    let first = seen.bytes[0];
    let torn = seen.bytes.iter().position(|byte| *byte != first);
    assert_eq!(torn, None, "of {at} in an image of {} bytes", pool.size());
    Ok(first)
}

async fn writers_of_different_units_all_land<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    let tasks = (0..UNITS + 1).map(|unit| {
        let (head, at) = (head.clone(), pool.units(unit, 1));
        tokio::spawn(async move {
            for byte in 1..=ROUNDS {
                put(&head, at, byte + unit as u8).await?;
            }
            anyhow::Ok(())
        })
    });
    for outcome in try_join_all(tasks).await? {
        outcome?;
    }
    for unit in 0..UNITS + 1 {
        model.put(pool.units(unit, 1), ROUNDS + unit as u8);
    }
    model.check(head.layer()).await
}

async fn writers_of_one_unit_leave_what_one_of_them_wrote<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let at = pool.units(2, 3);
    for round in 0..ROUNDS {
        let tasks = (1..=4).map(|writer| {
            let head = head.clone();
            tokio::spawn(async move { put(&head, at, round * 4 + writer).await })
        });
        for outcome in try_join_all(tasks).await? {
            outcome?;
        }
        let winner = uniform(&pool, &head, at).await?;
        assert!((round * 4 + 1..=round * 4 + 4).contains(&winner), "{winner} in round {round}");
    }
    assert_eq!(states(head.layer(), at).await?[..], one(at, State::Data));
    Ok(())
}

async fn writers_that_overlap_are_ordered<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    put(&head, pool.all(), 200).await?;
    let (block, mid) = (pool.block(), pool.units(4, 1).offset() + 7);
    let left = Extent::between(block + 5, mid + block);
    let right = Extent::between(mid, 9 * block + 3);
    let both = left.intersect(&right);
    for round in 0..ROUNDS {
        let (a, b) = (2 * round + 1, 2 * round + 2);
        let one = tokio::spawn({
            let head = head.clone();
            async move { put(&head, left, a).await }
        });
        let two = tokio::spawn({
            let head = head.clone();
            async move { put(&head, right, b).await }
        });
        one.await??;
        two.await??;
        let last = uniform(&pool, &head, both).await?;
        assert!(last == a || last == b, "{last} in round {round}");
        assert_eq!(uniform(&pool, &head, Extent::between(left.offset(), both.offset())).await?, a);
        assert_eq!(uniform(&pool, &head, Extent::between(both.end(), right.end())).await?, b);
    }
    Ok(())
}

async fn writers_within_one_unit_of_data_all_land<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (unit, mut model) = (pool.units(3, 1), pool.model());
    put(&head, unit, 200).await?;
    model.put(unit, 200);
    let share = unit.length() / 8 - 1;
    let part = |writer: u64| Extent::new(unit.offset() + writer * share, share);
    let tasks = (0..8).map(|writer| {
        let (head, at) = (head.clone(), part(writer));
        tokio::spawn(async move {
            for byte in 1..=ROUNDS {
                put(&head, at, byte + writer as u8).await?;
            }
            anyhow::Ok(())
        })
    });
    for outcome in try_join_all(tasks).await? {
        outcome?;
    }
    for writer in 0..8 {
        model.put(part(writer), ROUNDS + writer as u8);
    }
    model.check(head.layer()).await
}

async fn writers_into_one_inherited_unit_all_land<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    for unit in 0..UNITS {
        let unit = pool.units(unit, 1);
        let share = unit.length() / 8 - 1;
        let part = |writer: u64| Extent::new(unit.offset() + writer * share, share);
        let tasks = (0..8).map(|writer| {
            let (head, at) = (head.clone(), part(writer));
            tokio::spawn(async move { write_over_zeros(&head, at, writer as u8 + 1).await })
        });
        for outcome in try_join_all(tasks).await? {
            outcome?;
        }
        model.put(unit, 0);
        (0..8).for_each(|writer| model.put(part(writer), writer as u8 + 1));
    }
    model.check(head.layer()).await
}

async fn two_that_fill_a_unit_have_one_winner<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    for unit in 0..UNITS {
        let at = pool.units(unit, 1);
        let filler = |byte: u8| {
            let head = head.clone();
            let then = write_of(Extent::new(at.offset() + u64::from(byte) * 10, 5), byte + 10);
            tokio::spawn(async move { fill(&head, [data(at, byte)], Some(then)).await })
        };
        let (one, two) = (filler(1), filler(2));
        assert_eq!((one.await??, two.await??), (Guarded::Done, Guarded::Done));
        let bytes = read(head.layer(), at).await?.bytes;
        let winner = bytes[0];
        assert!(winner == 1 || winner == 2, "{winner}");
        for (index, byte) in bytes.into_iter().enumerate() {
            let expected = match index {
                10..15 => 11,
                20..25 => 12,
                _ => winner,
            };
            assert_eq!(byte, expected, "at {index}");
        }
    }
    Ok(())
}

async fn a_write_wins_over_a_fill<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    for unit in 0..UNITS {
        let at = pool.units(unit, 1);
        let filler = tokio::spawn({
            let head = head.clone();
            async move { fill(&head, [data(at, 1)], None).await }
        });
        put(&head, at, 2).await?;
        done(filler.await??)?;
        model.put(at, 2);
    }
    model.check(head.layer()).await
}

async fn zeroing_beside_writing_is_ordered<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let at = pool.units(2, 1);
    for round in 1..=ROUNDS {
        let zeroing = tokio::spawn({
            let head = head.clone();
            async move { zero(&head, at).await }
        });
        put(&head, at, round).await?;
        zeroing.await??;
        let last = uniform(&pool, &head, at).await?;
        assert!(last == 0 || last == round, "{last} in round {round}");
        // Whoever was last, what comes now is in place.
        put(&head, at, round + 100).await?;
        assert_eq!(uniform(&pool, &head, at).await?, round + 100);
    }
    Ok(())
}

async fn syncs_beside_writers_lose_nothing<H: Harness>(pool: Pool<H>) -> Result<()> {
    pool.needs_persistent()?;
    let (record, head) = pool.own_new().await?;
    let mut model = pool.model();
    let writers = (0..UNITS).map(|unit| {
        let (head, at) = (head.clone(), pool.units(unit, 1));
        tokio::spawn(async move {
            for byte in 1..=ROUNDS {
                put(&head, at, byte).await?;
                if byte % 5 == unit as u8 % 5 {
                    head.sync().await?;
                }
            }
            anyhow::Ok(())
        })
    });
    for outcome in try_join_all(writers).await? {
        outcome?;
    }
    model.put(pool.units(0, UNITS), ROUNDS);
    model.check(head.layer()).await?;
    drop(head);
    let pool = pool.reborn().await?;
    pool.wait_until_free(&record).await?;
    model.check(pool.own(&record).await?.layer()).await
}

async fn a_reader_beside_a_writer_sees_old_or_new<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (at, ended) = (pool.units(1, 3), Arc::new(AtomicBool::new(false)));
    put(&head, at, 1).await?;
    let reader = tokio::spawn({
        let (layer, ended) = (head.layer().clone(), ended.clone());
        async move {
            let mut newest = 1;
            while !ended.load(Ordering::SeqCst) {
                let seen = read_beside(&layer, at).await?;
                assert!(seen.runs.all(State::Data), "{:?}", seen.runs);
                let (min, max) = seen
                    .bytes
                    .iter()
                    .fold((u8::MAX, 0), |(min, max), byte| (min.min(*byte), max.max(*byte)));
                // One write may be under way; what was there before this read began is there.
                assert!(max - min <= 2 || min >= newest, "{min} to {max}, and {newest} before");
                assert!(min >= newest.saturating_sub(1) && max <= 100, "{min} after {newest}");
                newest = newest.max(min);
            }
            anyhow::Ok(())
        }
    });
    for byte in 2..=100 {
        put(&head, at, byte).await?;
        tokio::task::yield_now().await;
    }
    ended.store(true, Ordering::SeqCst);
    reader.await?
}

async fn a_snapshot_is_read_while_its_successor_is_written<H: Harness>(
    pool: Pool<H>,
) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.units(0, 8), 7).await?;
    model.put(pool.units(0, 8), 7);
    let (record, successor) = act::snapshot(&head, "s").await?;
    let layer = pool.snapshot_layer(&record).await?;
    let writer = tokio::spawn({
        let (successor, at) = (successor.clone(), pool.all());
        async move {
            for byte in 1..=ROUNDS {
                put(&successor, at, byte).await?;
            }
            successor.sync().await?;
            anyhow::Ok(())
        }
    });
    while !writer.is_finished() {
        model.check(&layer).await?;
    }
    writer.await??;
    model.check(&layer).await
}

/// Polls a call once and drops it.
async fn abandon(call: impl Future) {
    let mut call = Box::pin(call);
    let _ = poll!(&mut call);
}

async fn a_dropped_write_leaves_its_units_usable<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let (at, mut model) = (pool.units(2, 3), pool.model());
    put(&head, at, 1).await?;
    for round in 0..ROUNDS {
        abandon(write(&head, at, 2)).await;
        let seen = read_beside(head.layer(), at).await?;
        assert!(seen.bytes.iter().all(|byte| [1, 2].contains(byte)), "in round {round}");
        // What comes later to the same units comes later.
        put(&head, at, 1).await?;
        model.put(at, 1);
        model.check(head.layer()).await?;
    }
    head.sync().await?;
    model.check(head.layer()).await
}

async fn a_dropped_fill_leaves_its_units_usable<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    for unit in 0..UNITS {
        let at = pool.units(unit, 1);
        abandon(fill(&head, [data(at, 1)], Some(write_of(at, 2)))).await;
        put(&head, at, 3).await?;
        model.put(at, 3);
        model.check(head.layer()).await?;
    }
    head.sync().await?;
    model.check(head.layer()).await
}

async fn a_dropped_zeroing_leaves_its_units_usable<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (_, head) = pool.own_new().await?;
    let mut model = pool.model();
    for unit in 0..UNITS {
        let at = pool.units(unit, 1);
        abandon(zero(&head, at)).await;
        put(&head, at, 3).await?;
        model.put(at, 3);
        model.check(head.layer()).await?;
    }
    head.sync().await?;
    model.check(head.layer()).await
}

async fn a_dropped_close_gives_the_image_up<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.all(), 7).await?;
    model.put(pool.all(), 7);
    let clone = head.clone();
    abandon(head.close()).await;
    pool.wait_until_free(&record).await?;
    assert_eq!(write(&clone, pool.all(), 8).await?, Guarded::Sealed);
    model.check(pool.own(&record).await?.layer()).await
}

async fn a_dropped_commit_happens_or_not<H: Harness>(pool: Pool<H>) -> Result<()> {
    pool.needs_sealed_snapshots()?;
    let (before, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.units(0, 2), 7).await?;
    model.put(pool.units(0, 2), 7);
    let prepared = head.prepare(act::snapshot_named("s", act::Kept::Kept)?).await?;
    abandon(prepared.commit()).await;
    drop(head);
    pool.wait_until_free(&before).await?;
    let after = pool.record("image").await?;
    if after.snapshots.is_empty() {
        assert_eq!(after, before);
        return model.check(pool.own(&after).await?.layer()).await;
    }
    model.check(&pool.snapshot_layer(&after).await?).await?;
    pool.model().check(pool.own(&after).await?.layer()).await
}

async fn a_dropped_read_disturbs_nobody<H: Harness>(pool: Pool<H>) -> Result<()> {
    let (record, head) = pool.own_new().await?;
    let mut model = pool.model();
    put(&head, pool.all(), 7).await?;
    model.put(pool.all(), 7);
    for _ in 0..ROUNDS {
        abandon(read_beside(head.layer(), pool.all())).await;
        put(&head, pool.units(0, 1), 7).await?;
    }
    model.check(head.layer()).await?;
    drop(head);
    pool.wait_until_free(&record).await?;
    eventually("the image can be removed", async || {
        Ok(pool.catalog.remove(&record.id, record.version).await.is_ok())
    })
    .await
}
