//! A live log that fills up: a sync does without it, and makes room.

use std::sync::atomic::Ordering;

use vellum_core::{Extent, State};
use vellum_engine::Guarded;
use vellum_sim::{Call, SimDisk};

use super::{Lab, SimLayer, facts, look, write_of};
use crate::log::RECORDS_MAX;

/// The smallest there is, so that many take little room.
const UNIT: u64 = 512;
/// As many as fill a log, and a few more.
const UNITS: u64 = RECORDS_MAX + 3;
/// How much is read at once.
const STEP: u64 = 1 << 20;

/// Every other unit, so that each needs a record of its own.
fn unit(number: u64) -> Extent {
    Extent::new(2 * number * UNIT, UNIT)
}

/// Asserts that every unit that was written is there, and no other.
async fn assert_all_there(layer: &SimLayer) {
    let all = Extent::new(0, 2 * UNITS * UNIT);
    for piece in all.chunks(STEP) {
        let (bytes, runs) = look(layer, piece).await.unwrap();
        for unit in piece.chunks(UNIT) {
            let was_written = (unit.offset() / UNIT).is_multiple_of(2);
            let byte = if was_written { b'a' } else { b'?' };
            let here = unit.offset() - piece.offset();
            let bytes = &bytes[here as usize..][..UNIT as usize];
            assert!(bytes.iter().all(|found| *found == byte), "{unit}");
        }
        let written: u64 = runs.in_state(State::Data).map(|run| run.length()).sum();
        assert_eq!(written, piece.length() / 2);
    }
}

#[tokio::test]
async fn a_log_that_is_full_makes_one_sync_and_what_does_not_fit_is_there() {
    // A sync comes before the log is full, unless it is kept from coming.
    for is_filled in [false, true] {
        let lab = Lab::on(SimDisk::new(1), facts(2 * UNITS * UNIT, UNIT)).await;
        let layer = lab.own().await;
        layer.0.sync_on_its_way[1].store(is_filled, Ordering::Release);
        for number in 0..UNITS {
            let done = layer.write(write_of(unit(number), b'a')).await.unwrap();
            assert_eq!(done, Guarded::Done, "unit {number}");
        }
        let trace = lab.disk.take_trace();
        let synced =
            |call: &&(Call, String)| call.0 == Call::SyncData && call.1.ends_with("data.0");
        let syncs = trace.iter().filter(synced).count();
        // Whoever writes while the one that came early begins may ask for one more.
        let most = if is_filled { 1 } else { 2 };
        assert!((1..=most).contains(&syncs), "{syncs} syncs, it was to be filled: {is_filled}");
        assert_all_there(&layer).await;
        let lab = lab.after_death().await;
        assert_all_there(&lab.own().await).await;
        // Whoever came next has made it durable.
        let lab = lab.after_power_cut().await;
        assert_all_there(&lab.own().await).await;
    }
}
