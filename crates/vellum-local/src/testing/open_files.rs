//! Files that are closed: never while they hold what was written and not synced, as long as somebody has their layer open. The
//! kernel may forget an error of a file that nobody has open.

use std::path::PathBuf;

use vellum_engine::{Durability, Guarded, SetTo};

use super::leftovers::fill_of;
use super::{BLOCK, Lab, blocks, seen, write};
use crate::segment::SEGMENT;
use crate::store::Access;

/// The first block of the second data file.
const SECOND: u64 = SEGMENT / BLOCK;
const SIZE: u64 = 2 * SEGMENT;

/// The files of the layer that were closed with something unsynced in them. Logs are never synced.
fn closed_unsynced(lab: &Lab) -> Vec<PathBuf> {
    let closed = lab.disk.world().take_closed_unsynced();
    closed.into_iter().filter(|path| path.starts_with("/pool/layers")).collect()
}

#[tokio::test]
async fn an_owner_closes_no_file_between_a_write_and_the_sync_of_it() {
    let lab = Lab::new(SIZE).await;
    let layer = lab.own().await;
    for (round, byte) in [b'a', b'b', b'c'].into_iter().enumerate() {
        write(&layer, blocks(SECOND - 1, 2), byte).await;
        let set = layer.set(blocks(SECOND - 1, 1), SetTo::Inherit, Durability::AtSync);
        assert_eq!(set.await.unwrap(), Guarded::Done);
        assert_eq!(seen(&layer, SECOND - 1, 2).await, [b'?', byte]);
        match round {
            0 => layer.sync().await.unwrap(),
            1 => assert_ne!(layer.reclaim().await.unwrap(), 0),
            _ => layer.close().await.unwrap(),
        }
    }
    drop(layer);
    assert_eq!(closed_unsynced(&lab), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn a_filler_that_takes_over_from_one_that_did_not_sync_has_its_files_open_before_they_are_closed()
 {
    let lab = Lab::new(SIZE).await;
    let layer = lab.own().await;
    write(&layer, blocks(SECOND - 1, 2), b'a').await;
    layer.close().await.unwrap();
    drop(layer);
    let reader = lab.open(Access::Read).await.unwrap();
    for block in [2, 4, 6] {
        let filler = lab.open(Access::Fill).await.unwrap();
        let filled = filler.fill(fill_of(blocks(SECOND - block, 1), b'f')).await.unwrap();
        assert_eq!(filled, Guarded::Done);
        assert!(filler.abandon().is_none());
    }
    assert_eq!(closed_unsynced(&lab), [] as [PathBuf; 0]);
    lab.open(Access::Fill).await.unwrap().close().await.unwrap();
    drop(reader);
    assert_eq!(closed_unsynced(&lab), [] as [PathBuf; 0]);
    let lab = lab.after_power_cut().await;
    assert_eq!(seen(&lab.own().await, SECOND - 6, 8).await, b"f?f?faa?");
}

#[tokio::test]
async fn a_layer_that_is_dropped_without_a_sync_is_seen_to_close_its_files() {
    let lab = Lab::new(SIZE).await;
    let layer = lab.own().await;
    write(&layer, blocks(SECOND - 1, 2), b'a').await;
    layer.sync().await.unwrap();
    write(&layer, blocks(SECOND, 1), b'b').await;
    assert!(layer.abandon().is_none());
    drop(layer);
    // What was written goes to the next owner, as after the death of the process.
    assert_eq!(closed_unsynced(&lab), [PathBuf::from("/pool/layers/00000000000000ab/data.1")]);
    lab.own().await.close().await.unwrap();
    let lab = lab.after_power_cut().await;
    assert_eq!(seen(&lab.own().await, SECOND - 1, 3).await, b"ab?");
}
