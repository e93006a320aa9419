//! Storage that fails, and storage that is full.

use std::time::Duration;

use vellum_core::State;
use vellum_engine::{Durability, ErrorKind, Guarded, Result, SetTo, Write};

use super::leftovers::fill_of;
use super::{BLOCK, Lab, SimLayer, blocks, facts, look, options, seen, write, write_of};
use crate::format::sector::PAGE_UNITS;
use crate::format::{PAGE, SECTOR};
use crate::segment::SEGMENT;
use crate::store::{Access, StoreOptions};
use vellum_sim::SimDisk;
use vellum_sim::{Call, Fault};

pub(crate) const EIO: i32 = 5;
pub(super) const ENOSPC: i32 = 28;

async fn try_write(layer: &SimLayer, block: u64, byte: u8) -> Result<Guarded> {
    layer.write(write_of(blocks(block, 1), byte)).await
}

pub(super) fn once(call: Call, file: &'static str, error: i32) -> Fault {
    Fault { call, file, error, times: 1, skip: 0 }
}

/// What a sync consists of that can fail for good.
pub(super) const STEPS: [(Call, &str); 3] =
    [(Call::SyncData, "data.0"), (Call::Write, "map"), (Call::SyncData, "map")];

#[tokio::test]
async fn a_failed_sync_poisons_the_layer_and_is_never_repeated() {
    for (call, file) in STEPS {
        let lab = Lab::new(64 * BLOCK).await;
        let layer = lab.own().await;
        write(&layer, blocks(0, 1), b'a').await;
        layer.sync().await.unwrap();
        write(&layer, blocks(1, 1), b'b').await;
        lab.disk.fail(once(call, file, EIO));
        assert_eq!(layer.sync().await.unwrap_err().kind(), ErrorKind::Io, "{call:?} {file}");
        lab.disk.take_trace();
        for _ in 0..3 {
            assert_eq!(layer.sync().await.unwrap_err().kind(), ErrorKind::Poisoned);
            assert_eq!(try_write(&layer, 2, b'c').await.unwrap_err().kind(), ErrorKind::Poisoned);
        }
        assert_eq!(layer.close().await.unwrap_err().kind(), ErrorKind::Poisoned);
        assert_eq!(lab.disk.take_trace(), [], "nothing touches the disk any more");
        assert_eq!(seen(&layer, 0, 1).await, b"a", "reads go on");
    }
}

#[tokio::test]
async fn a_sync_opens_no_file_and_a_write_that_may_open_none_fails_alone() {
    let lab = Lab::new(2 * SEGMENT).await;
    let layer = lab.own().await;
    write(&layer, blocks(0, 1), b'a').await;
    lab.disk.world().opens_left = 0;
    layer.sync().await.unwrap();
    // The directory, then the file, of which the second is one too many.
    let second = SEGMENT / BLOCK;
    for opens in [0, 1] {
        lab.disk.world().opens_left = opens;
        let error = try_write(&layer, second, b'b').await.unwrap_err();
        assert!(error.chain().contains("os error 24"), "{}", error.chain());
        write(&layer, blocks(1, 1), b'c').await;
        layer.sync().await.unwrap();
    }
    lab.disk.world().opens_left = u64::MAX;
    write(&layer, blocks(second, 1), b'b').await;
    layer.sync().await.unwrap();
    let lab = lab.after_power_cut().await;
    let layer = lab.own().await;
    assert_eq!(seen(&layer, 0, 3).await, b"ac?");
    assert_eq!(seen(&layer, second, 2).await, b"b?");
}

#[tokio::test]
async fn a_layer_that_another_process_poisoned_while_filling_it_is_opened_anew() {
    let lab = Lab::new(64 * BLOCK).await;
    let layer = lab.own().await;
    write(&layer, blocks(0, 1), b'a').await;
    layer.close().await.unwrap();
    drop(layer);
    let other = Lab::on(lab.disk.another_process(), lab.facts.clone()).await;
    let reader = other.open(Access::Read).await.unwrap();
    let filler = lab.open(Access::Fill).await.unwrap();
    let filled = filler.fill(fill_of(blocks(1, 1), b'b')).await.unwrap();
    assert_eq!(filled, Guarded::Done);
    assert!(reader.is_current().await.unwrap());
    lab.disk.fail(once(Call::SyncData, "map", EIO));
    assert_eq!(filler.sync().await.unwrap_err().kind(), ErrorKind::Io);
    assert!(!reader.is_current().await.unwrap());
}

#[tokio::test]
async fn after_a_failed_sync_the_next_owner_keeps_the_last_good_one_and_goes_on() {
    for (call, file) in STEPS {
        for seed in 0..10 {
            let lab = Lab::on(SimDisk::new(seed), facts(64 * BLOCK, BLOCK)).await;
            let layer = lab.own().await;
            write(&layer, blocks(0, 1), b'a').await;
            layer.sync().await.unwrap();
            write(&layer, blocks(1, 1), b'b').await;
            lab.disk.fail(once(call, file, EIO));
            layer.sync().await.unwrap_err();
            let lab = lab.after_death().await;
            let layer = lab.own().await;
            assert_eq!(seen(&layer, 0, 1).await, b"a", "{call:?} {file}, seed {seed}");
            write(&layer, blocks(2, 1), b'c').await;
            layer.sync().await.unwrap();
            let lab = lab.after_power_cut().await;
            let layer = lab.own().await;
            assert_eq!(seen(&layer, 0, 1).await, b"a", "{call:?} {file}, seed {seed}");
            assert_eq!(seen(&layer, 2, 1).await, b"c", "{call:?} {file}, seed {seed}");
        }
    }
}

#[tokio::test]
async fn a_sync_that_fails_tells_all_who_wait_for_it() {
    let lab = Lab::new(64 * BLOCK).await;
    let layer = lab.own().await;
    write(&layer, blocks(0, 1), b'a').await;
    lab.disk.fail(once(Call::SyncData, "data.0", EIO));
    let syncs = futures::future::join_all((0..4).map(|_| layer.sync())).await;
    assert!(syncs.iter().all(Result::is_err), "{syncs:?}");
}

#[tokio::test]
async fn a_full_disk_fails_the_write_that_needs_a_page_of_the_map_and_not_the_sync() {
    let lab = Lab::new(2 * PAGE_UNITS * BLOCK).await;
    let layer = lab.own().await;
    write(&layer, blocks(0, 1), b'a').await;
    lab.disk.fail(once(Call::Write, "map", ENOSPC));
    let error = try_write(&layer, PAGE_UNITS, b'b').await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    layer.sync().await.unwrap();
    write(&layer, blocks(PAGE_UNITS, 1), b'b').await;
    let lab = lab.after_death().await;
    assert_eq!(seen(&lab.own().await, PAGE_UNITS - 1, 3).await, b"?b?");
}

#[tokio::test]
async fn no_failure_to_create_a_file_spoils_the_layer() {
    let calls = [
        (Call::Create, "ab"),
        (Call::Create, "map"),
        (Call::SetLength, "map"),
        (Call::Write, "map"),
        (Call::SyncDir, "layers"),
        (Call::Create, "data.0"),
        (Call::SetLength, "data.0"),
        (Call::Write, "data.0"),
        (Call::Create, "ab.0"),
        (Call::SetLength, "ab.0"),
        (Call::Create, "ab.1"),
        (Call::SetLength, "ab.1"),
        (Call::Write, "ab.1"),
    ];
    let errors = [(ENOSPC, ErrorKind::NoSpace), (EIO, ErrorKind::Io)];
    for ((call, file), (error, kind)) in
        calls.into_iter().flat_map(|call| errors.map(|error| (call, error)))
    {
        let lab = Lab::new(64 * BLOCK).await;
        let layer = lab.own().await;
        lab.disk.fail(once(call, file, error));
        let failed = try_write(&layer, 0, b'a').await.unwrap_err();
        assert_eq!(failed.kind(), kind, "{call:?} {file}");
        write(&layer, blocks(0, 1), b'b').await;
        layer.sync().await.unwrap();
        let lab = lab.after_power_cut().await;
        assert_eq!(seen(&lab.own().await, 0, 2).await, b"b?", "{call:?} {file}, {kind:?}");
    }
}

#[tokio::test]
async fn a_disk_that_runs_full_loses_nothing_it_acknowledged() {
    for seed in 0..10 {
        let lab = Lab::on(SimDisk::new(seed), facts(4 * PAGE_UNITS * BLOCK, BLOCK)).await;
        lab.disk.world().free = 300 + seed;
        let layer = lab.own().await;
        let mut done = Vec::new();
        let mut refused = 0;
        for block in (0..4 * PAGE_UNITS).step_by(97) {
            match try_write(&layer, block, b'a').await {
                Ok(_) => done.push(block),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NoSpace);
                    refused += 1;
                }
            }
            if block % 4 == 0 {
                layer.sync().await.unwrap();
            }
        }
        assert!(!done.is_empty() && refused > 0, "{} done, {refused} refused", done.len());
        let died = lab.after_death().await;
        let layer = died.own().await;
        for block in &done {
            assert_eq!(seen(&layer, *block, 1).await, b"a", "seed {seed}");
        }
        let cut = died.after_power_cut().await;
        let layer = cut.own().await;
        for block in done {
            assert_eq!(seen(&layer, block, 1).await, b"a", "the new owner had synced, seed {seed}");
        }
        cut.disk.world().free = 1 << (20 - SECTOR.trailing_zeros());
        write(&layer, blocks(1, 1), b'z').await;
    }
}

async fn write_durably(layer: &SimLayer, block: u64, byte: u8) -> Result<Guarded> {
    let write = write_of(blocks(block, 1), byte);
    layer.write(Write { durability: Durability::Durable, ..write }).await
}

#[tokio::test]
async fn a_durable_write_that_fails_on_the_medium_poisons_as_a_failed_sync_does() {
    let lab = Lab::new(64 * BLOCK).await;
    let layer = lab.own().await;
    write(&layer, blocks(0, 2), b'a').await;
    layer.sync().await.unwrap();
    // Acknowledged and not synced: the error of the next write to the medium may be this one's.
    write(&layer, blocks(0, 1), b'b').await;
    lab.disk.fail(once(Call::SyncData, "data.0", EIO));
    assert_eq!(write_durably(&layer, 1, b'c').await.unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(layer.sync().await.unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(try_write(&layer, 2, b'd').await.unwrap_err().kind(), ErrorKind::Poisoned);
}

#[tokio::test]
async fn a_durable_write_that_finds_the_disk_full_harms_nothing_else() {
    let lab = Lab::new(64 * BLOCK).await;
    let layer = lab.own().await;
    write(&layer, blocks(0, 2), b'a').await;
    layer.sync().await.unwrap();
    lab.disk.fail(once(Call::Write, "data.0", ENOSPC));
    assert_eq!(write_durably(&layer, 1, b'c').await.unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(write_durably(&layer, 1, b'd').await.unwrap(), Guarded::Done);
    let lab = lab.after_power_cut().await;
    assert_eq!(seen(&lab.own().await, 0, 3).await, b"ad?");
}

#[tokio::test]
async fn what_a_failed_sync_left_in_the_cache_of_the_map_is_not_believed() {
    for seed in 0..40 {
        let lab = Lab::on(SimDisk::new(seed), facts(64 * BLOCK, BLOCK)).await;
        let layer = lab.own().await;
        write(&layer, blocks(0, 1), b'a').await;
        layer.sync().await.unwrap();
        write(&layer, blocks(1, 1), b'b').await;
        // The page that says so is in the cache, clean, and perhaps not on the medium.
        lab.disk.fail(once(Call::SyncData, "map", EIO));
        layer.sync().await.unwrap_err();
        let lab = lab.after_death().await;
        let layer = lab.own().await;
        write(&layer, blocks(1, 1), b'c').await;
        layer.sync().await.unwrap();
        let lab = lab.after_power_cut().await;
        assert_eq!(seen(&lab.own().await, 0, 3).await, b"ac?", "seed {seed}");
    }
}

#[tokio::test]
async fn a_write_for_whose_log_there_is_no_room_changes_nothing() {
    for file in ["ab.0", "ab.1"] {
        let lab = Lab::new(64 * BLOCK).await;
        let layer = lab.own().await;
        lab.disk.fail(once(Call::Create, file, ENOSPC));
        let error = try_write(&layer, 0, b'a').await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_eq!(seen(&layer, 0, 1).await, b"?", "{file}");
    }
}

#[tokio::test]
async fn pages_that_changed_and_are_not_synced_have_a_maximum() {
    let most = 3;
    let size = 40 * PAGE_UNITS * BLOCK;
    let options = StoreOptions { changed_pages_max: most, ..options() };
    let lab = Lab::with(SimDisk::new(1), facts(size, BLOCK), options).await;
    let layer = lab.own().await;
    for page in 0..40 {
        write(&layer, blocks(page * PAGE_UNITS, 1), b'a').await;
        assert!(layer.0.pages.changes() <= 2 * most, "{} pages", layer.0.pages.changes());
    }
}

#[tokio::test]
async fn pages_that_were_only_looked_at_have_a_maximum() {
    let (pages, most) = (300, 64);
    let options = StoreOptions { map_cache_bytes: most * PAGE, ..options() };
    let facts = facts(pages * PAGE_UNITS * BLOCK, BLOCK);
    let lab = Lab::with(SimDisk::new(1), facts, options).await;
    let layer = lab.own().await;
    for page in 0..pages {
        write(&layer, blocks(page * PAGE_UNITS, 1), b'a').await;
    }
    layer.sync().await.unwrap();
    for page in 0..pages {
        assert_eq!(seen(&layer, page * PAGE_UNITS, 2).await, b"a?");
        let cached = layer.0.shared.cache.len();
        assert!(cached <= most, "{cached} pages");
    }
    assert!(layer.0.shared.cache.len() > most / 2, "it is a cache");
}

#[tokio::test(start_paused = true)]
async fn states_that_change_without_data_are_synced_after_a_while() {
    let options = StoreOptions { sync_interval: Duration::from_secs(5), ..options() };
    let lab = Lab::with(SimDisk::new(1), facts(64 * BLOCK, BLOCK), options).await;
    let layer = lab.own().await;
    let set = layer.set(blocks(0, 1), SetTo::Zero, Durability::AtSync).await.unwrap();
    assert_eq!(set, Guarded::Done);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let lab = lab.after_power_cut().await;
    assert_eq!(seen(&lab.own().await, 0, 2).await, b"\0?");
}

#[tokio::test]
async fn a_filler_that_could_not_be_let_in_leaves_no_lock_behind() {
    let lab = Lab::new(64 * BLOCK).await;
    let layer = lab.own().await;
    write(&layer, blocks(0, 1), b'a').await;
    layer.close().await.unwrap();
    let lab = lab.after_death().await;
    let _reader = lab.open(Access::Read).await.unwrap();
    lab.disk.fail(once(Call::SyncDir, "layers", EIO));
    lab.open(Access::Fill).await.unwrap_err();
    assert_eq!(lab.disk.world().locks_held(), 0);
    let filler = lab.open(Access::Fill).await.unwrap();
    assert_ne!(lab.disk.world().locks_held(), 0);
    filler.close().await.unwrap();
    assert_eq!(lab.disk.world().locks_held(), 0);
}

#[tokio::test]
async fn a_closed_layer_frees_no_space_any_more() {
    let lab = Lab::new(64 * BLOCK).await;
    let layer = lab.own().await;
    write(&layer, blocks(0, 1), b'a').await;
    let set = layer.set(blocks(0, 1), SetTo::Inherit, Durability::AtSync).await.unwrap();
    assert_eq!(set, Guarded::Done);
    layer.close().await.unwrap();
    lab.disk.take_trace();
    assert_eq!(layer.reclaim().await.unwrap(), 0);
    assert_eq!(lab.disk.take_trace(), [], "its files may be another owner's by now");
}

#[tokio::test]
async fn many_zeros_over_data_show_in_the_map_and_few_do_not() {
    let lab = Lab::new(2000 * BLOCK).await;
    let layer = lab.own().await;
    write(&layer, blocks(0, 1000), b'a').await;
    for (at, shown) in [(blocks(10, 255), State::Data), (blocks(500, 256), State::Zero)] {
        let set = layer.set(at, SetTo::Zero, Durability::AtSync).await.unwrap();
        assert_eq!(set, Guarded::Done);
        let (bytes, runs) = look(&layer, at).await.unwrap();
        assert!(runs.all(shown) && bytes.iter().all(|byte| *byte == 0), "{shown:?}");
    }
    let lab = lab.after_death().await;
    let layer = lab.own().await;
    assert_eq!(seen(&layer, 499, 258).await, [&b"a"[..], &[0; 256], b"a"].concat());
}

#[tokio::test]
async fn zeros_that_cannot_be_shown_for_want_of_space_are_zeros_all_the_same() {
    let lab = Lab::new(2000 * BLOCK).await;
    let layer = lab.own().await;
    write(&layer, blocks(0, 1000), b'a').await;
    layer.close().await.unwrap();
    let lab = lab.after_death().await;
    let layer = lab.own().await;
    lab.disk.fail(once(Call::Create, "ab.0", ENOSPC));
    let set = layer.set(blocks(0, 1000), SetTo::Zero, Durability::AtSync).await.unwrap();
    assert_eq!(set, Guarded::Done);
    assert_eq!(seen(&layer, 0, 1001).await, [&[0; 1000][..], b"?"].concat());
}

#[tokio::test]
async fn nobody_hears_of_a_failed_sync_before_its_logs_are_gone() {
    let lab = Lab::new(64 * BLOCK).await;
    let layer = lab.own().await;
    write(&layer, blocks(0, 1), b'a').await;
    let removal = lab.disk.hold(Call::Remove, "ab.0");
    lab.disk.fail(once(Call::SyncData, "data.0", EIO));
    let sync = tokio::spawn({
        let layer = layer.clone();
        async move { layer.sync().await }
    });
    removal.arrived().await;
    let mut write = Box::pin(try_write(&layer, 1, b'b'));
    for _ in 0..100 {
        assert!(futures::poll!(&mut write).is_pending());
        tokio::task::yield_now().await;
    }
    drop(removal);
    assert_eq!(write.await.unwrap_err().kind(), ErrorKind::Poisoned);
    assert_eq!(sync.await.unwrap().unwrap_err().kind(), ErrorKind::Io);
    let logs = lab.disk.world().children("/pool/live".as_ref());
    assert_eq!(logs, [] as [std::path::PathBuf; 0]);
}

#[tokio::test]
async fn a_map_whose_creation_could_not_be_synced_is_made_whole_by_the_next_owner() {
    for seed in 0..30 {
        let lab = Lab::on(SimDisk::new(seed), facts(64 * BLOCK, BLOCK)).await;
        let layer = lab.own().await;
        lab.disk.fail(once(Call::SyncData, "map", EIO));
        assert_eq!(try_write(&layer, 0, b'a').await.unwrap_err().kind(), ErrorKind::Io);
        let lab = lab.after_death().await;
        let layer = lab.own().await;
        write(&layer, blocks(0, 1), b'b').await;
        layer.sync().await.unwrap();
        let lab = lab.after_power_cut().await;
        assert_eq!(seen(&lab.own().await, 0, 1).await, b"b", "seed {seed}");
    }
}

#[tokio::test]
async fn logs_that_a_failed_sync_could_not_remove_are_never_believed() {
    let lab = Lab::new(64 * BLOCK).await;
    let layer = lab.own().await;
    write(&layer, blocks(0, 1), b'a').await;
    layer.sync().await.unwrap();
    write(&layer, blocks(1, 1), b'b').await;
    for (call, file) in [(Call::SyncData, "data.0"), (Call::Remove, "ab.0"), (Call::Remove, "ab.1")]
    {
        lab.disk.fail(once(call, file, EIO));
    }
    // What is written while it stands still goes to the log of the epoch that the sync does not live to write.
    let hold = lab.disk.hold(Call::SyncData, "data.0");
    let writing = async {
        hold.arrived().await;
        write(&layer, blocks(2, 1), b'c').await;
        drop(hold);
    };
    let (synced, ()) = tokio::join!(layer.sync(), writing);
    synced.unwrap_err();
    // The next owner clears the mark with an epoch of its own, and changes nothing.
    let lab = lab.after_death().await;
    assert_eq!(seen(&lab.own().await, 0, 4).await, b"a???");
    let lab = lab.after_death().await;
    assert_eq!(seen(&lab.own().await, 0, 4).await, b"a???");
}
