//! What a sync leaves when it is cut short at each of its calls, and what happens beside it while it stands still.

use std::collections::BTreeSet;

use vellum_core::State;
use vellum_engine::{Durability, Guarded, Layer, SetTo};

use super::{BLOCK, Lab, SimLayer, blocks, facts, seen, states, write, write_of};
use crate::format::sector::PAGE_UNITS;
use vellum_sim::Call;
use vellum_sim::SimDisk;

const SIZE: u64 = 4 * PAGE_UNITS * BLOCK;
/// In a page of the map that is no neighbour of the first.
const FAR: u64 = 2 * PAGE_UNITS + 7;

/// How a life ends.
#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    Death,
    PowerCut,
}

/// A layer whose blocks 0 and 1 are `a`, durably; then block 0 becomes `b`, blocks 2 and [`FAR`] become `c`.
async fn written(seed: u64) -> (Lab, SimLayer) {
    let lab = Lab::on(SimDisk::new(seed), facts(SIZE, BLOCK)).await;
    let layer = lab.own().await;
    write(&layer, blocks(0, 2), b'a').await;
    layer.sync().await.unwrap();
    write(&layer, blocks(0, 1), b'b').await;
    write(&layer, blocks(2, 1), b'c').await;
    write(&layer, blocks(FAR, 1), b'c').await;
    (lab, layer)
}

/// Ends a life at a call of a sync. `None` once the sync has fewer calls; otherwise what the next life finds.
async fn cut_at(call: u64, seed: u64, end: End) -> Option<(Lab, SimLayer)> {
    let (lab, layer) = written(seed).await;
    lab.disk.world().calls_left = Some(call);
    tokio::select! {
        biased;
        result = layer.sync() => {
            result.unwrap();
            return None;
        }
        () = lab.disk.ended() => {}
    }
    let lab = match end {
        End::Death => lab.after_death().await,
        End::PowerCut => lab.after_power_cut().await,
    };
    let layer = lab.own().await;
    Some((lab, layer))
}

#[tokio::test]
async fn a_process_that_dies_at_any_call_of_a_sync_leaves_all_that_was_written() {
    let mut calls = 0;
    while let Some((_lab, layer)) = cut_at(calls + 1, 1, End::Death).await {
        calls += 1;
        assert_eq!(seen(&layer, 0, 4).await, b"bac?", "at call {calls}");
        assert_eq!(seen(&layer, FAR - 1, 3).await, b"?c?", "at call {calls}");
    }
    // It begins a log, syncs data and a new page of the map, writes two pages, the ledger and the epoch, and syncs the map.
    assert_eq!(calls, 8);
}

#[tokio::test]
async fn a_power_cut_at_any_call_of_a_sync_leaves_each_block_as_it_was_or_as_it_became() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..30 {
        let mut call = 1;
        while let Some((_lab, layer)) = cut_at(call, seed, End::PowerCut).await {
            for (block, old, new) in
                [(0, b'a', b'b'), (1, b'a', b'a'), (2, b'?', b'c'), (FAR, b'?', b'c')]
            {
                let (bytes, _) = super::look(&layer, blocks(block, 1)).await.unwrap();
                let torn = block == 0 && bytes.iter().all(|byte| [old, new].contains(byte));
                let whole =
                    bytes.iter().all(|byte| *byte == bytes[0]) && [old, new].contains(&bytes[0]);
                assert!(whole || torn, "block {block}, call {call}, seed {seed}");
                outcomes.insert((block, bytes[0]));
            }
            call += 1;
        }
    }
    // Both happen, or the test would look at one of them only.
    assert!(outcomes.is_superset(&[(2, b'?'), (2, b'c'), (FAR, b'?'), (FAR, b'c')].into()));
}

#[tokio::test]
async fn what_is_written_during_a_sync_is_not_in_the_map_that_the_sync_writes() {
    for seed in 0..20 {
        let (lab, layer) = written(seed).await;
        let hold = lab.disk.hold(Call::SyncData, "data.0");
        let sync = tokio::spawn({
            let layer = layer.clone();
            async move { layer.sync().await }
        });
        hold.arrived().await;
        write(&layer, blocks(5, 1), b'x').await;
        drop(hold);
        sync.await.unwrap().unwrap();
        assert_eq!(seen(&layer, 5, 1).await, b"x");
        let lab = if seed % 2 == 0 { lab.after_death().await } else { lab.after_power_cut().await };
        let expected: &[u8] = if seed % 2 == 0 { b"bac??x" } else { b"bac???" };
        assert_eq!(seen(&lab.own().await, 0, 6).await, expected, "seed {seed}");
    }
}

#[tokio::test]
async fn a_page_that_is_made_whole_before_a_sync_is_not_made_so_again_beside_it() {
    let (lab, layer) = written(1).await;
    layer.sync().await.unwrap();
    let begin = |block: u64, byte: u8| {
        let layer = layer.clone();
        tokio::spawn(async move { write(&layer, blocks(block, 1), byte).await })
    };
    // One has made its page whole, and is writing its data.
    let data = lab.disk.hold(Call::Write, "data.0");
    let first = begin(PAGE_UNITS + 1, b'x');
    data.arrived().await;
    // A sync that has something else to publish takes the page to name it.
    let map = lab.disk.hold(Call::SyncData, "map");
    assert_eq!(
        layer.set(blocks(1, 1), SetTo::Inherit, Durability::AtSync).await.unwrap(),
        Guarded::Done
    );
    let sync = tokio::spawn({
        let layer = layer.clone();
        async move { layer.sync().await }
    });
    map.arrived().await;
    lab.disk.take_trace();
    let second = begin(PAGE_UNITS + 2, b'y');
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let calls = lab.disk.take_trace();
    assert!(!calls.iter().any(|(call, file)| *call == Call::Write && file.ends_with("map")));
    drop((data, map));
    first.await.unwrap();
    second.await.unwrap();
    sync.await.unwrap().unwrap();
    layer.sync().await.unwrap();
    let lab = lab.after_power_cut().await;
    assert_eq!(seen(&lab.own().await, PAGE_UNITS, 4).await, b"?xy?");
}

#[tokio::test]
async fn whoever_asks_for_a_sync_while_one_runs_waits_for_the_next_and_shares_it() {
    let (lab, layer) = written(1).await;
    let sync = |layer: &SimLayer| {
        let layer = layer.clone();
        tokio::spawn(async move { layer.sync().await })
    };
    let hold = lab.disk.hold(Call::SyncData, "data.0");
    let first = sync(&layer);
    hold.arrived().await;
    lab.disk.take_trace();
    write(&layer, blocks(5, 1), b'x').await;
    let others = [sync(&layer), sync(&layer), sync(&layer)];
    tokio::task::yield_now().await;
    assert!(others.iter().all(|other| !other.is_finished()));
    drop(hold);
    first.await.unwrap().unwrap();
    for other in others {
        other.await.unwrap().unwrap();
    }
    let trace = lab.disk.take_trace();
    let map_syncs =
        trace.iter().filter(|(call, file)| *call == Call::SyncData && file.ends_with("map"));
    assert_eq!(map_syncs.count(), 2, "one that ran, one for all who came meanwhile");
    let lab = lab.after_power_cut().await;
    assert_eq!(seen(&lab.own().await, 0, 6).await, b"bac??x");
}

#[tokio::test]
async fn a_sync_with_nothing_to_do_makes_no_call() {
    let (lab, layer) = written(1).await;
    layer.sync().await.unwrap();
    lab.disk.take_trace();
    layer.sync().await.unwrap();
    assert_eq!(lab.disk.take_trace(), []);
}

#[tokio::test]
async fn a_sealed_layer_is_durable_and_takes_nothing_until_it_is_unsealed() {
    let (lab, layer) = written(1).await;
    layer.seal().await.unwrap();
    assert_eq!(layer.write(write_of(blocks(9, 1), b'x')).await.unwrap(), Guarded::Sealed);
    let lab = lab.after_power_cut().await;
    let layer = lab.own().await;
    assert_eq!(seen(&layer, 0, 4).await, b"bac?");
    layer.seal().await.unwrap();
    layer.unseal();
    write(&layer, blocks(9, 1), b'x').await;
    let lab = lab.after_death().await;
    assert_eq!(seen(&lab.own().await, 8, 2).await, b"?x");
}

#[tokio::test]
async fn a_closed_layer_leaves_no_log_behind() {
    let (lab, layer) = written(1).await;
    assert_eq!(lab.disk.world().children("/pool/live".as_ref()).len(), 2);
    layer.close().await.unwrap();
    assert_eq!(lab.disk.world().children("/pool/live".as_ref()).len(), 0);
    let lab = lab.after_power_cut().await;
    assert_eq!(seen(&lab.own().await, 0, 4).await, b"bac?");
}

#[tokio::test]
async fn an_abandoned_layer_is_taken_over_only_when_its_sync_has_ended() {
    let (lab, layer) = written(1).await;
    let hold = lab.disk.hold(Call::SyncData, "data.0");
    let sync = tokio::spawn({
        let layer = layer.clone();
        async move { layer.sync().await }
    });
    hold.arrived().await;
    let ended = layer.abandon().expect("a sync is under way");
    assert_eq!(layer.write(write_of(blocks(9, 1), b'x')).await.unwrap(), Guarded::Sealed);
    let give_up = tokio::spawn(async move {
        ended.await.unwrap().unwrap();
        layer.give_up_files().unwrap();
    });
    let next = tokio::spawn({
        let lab = Lab::on(lab.disk.clone(), lab.facts.clone()).await;
        async move { seen(&lab.own().await, 0, 4).await }
    });
    tokio::task::yield_now().await;
    assert!(!next.is_finished(), "the data files are still locked");
    drop(hold);
    give_up.await.unwrap();
    sync.await.unwrap().unwrap();
    assert_eq!(next.await.unwrap(), b"bac?");
}

#[tokio::test]
async fn a_layer_dropped_without_a_sync_leaves_what_the_death_of_its_process_would() {
    let (lab, layer) = written(1).await;
    assert!(layer.abandon().is_none());
    drop(layer);
    let next = lab.own().await;
    assert_eq!(seen(&next, 0, 4).await, b"bac?");
    assert_eq!(
        states(&next, 0, 4).await,
        [State::Data, State::Data, State::Data, State::Inherited]
    );
    assert_eq!(next.size(), SIZE);
}
