//! What the medium lost of a map's states, and what a power cut kept from them: the ledger tells the two apart.

use std::collections::BTreeSet;
use std::path::Path;

use bytes::Bytes;
use vellum_core::{Buffer, Extent};
use vellum_disk::{Disk, Durability, File, OpenMode};
use vellum_engine::ErrorKind;
use vellum_sim::SimDisk;

use super::damage::{ALL, is_found};
use super::leftovers::{MAP, closed};
use super::{BLOCK, Lab, blocks, facts, look, seen, write, write_of};
use crate::format::sector::PAGE_UNITS;
use crate::format::{PAGE, SECTOR};
use crate::store::Access;

/// Zeros over some sectors of a file; a hole over a whole page.
async fn lose(lab: &Lab, path: &str, sector: u64, sectors: u64) {
    let file = lab.disk.open(Path::new(path), OpenMode::ReadWrite).await.unwrap();
    let lost = Extent::new(sector * SECTOR as u64, sectors * SECTOR as u64);
    if lost.length() == PAGE as u64 {
        file.punch(lost).await.unwrap();
    } else {
        let zeros = Bytes::from(vec![0; lost.len_usize()]);
        file.write_at(vec![zeros], lost.offset(), Durability::Durable).await.unwrap();
    }
}

#[tokio::test]
async fn states_that_read_as_zeros_are_corrupt_once_a_sync_has_put_them_on_the_medium() {
    // Any sector of the first page, and all of it, as zeros and as a hole.
    let places = (8..16).map(|sector| (sector, 1)).chain([(8, 7), (8, 8)]);
    for (sector, sectors) in places {
        let lab = closed().await;
        lose(&lab, MAP, sector, sectors).await;
        assert!(is_found(lab.open(Access::Read).await).await, "{sector}, {sectors}");
        for access in ALL {
            let layer = lab.open(access).await.unwrap();
            let error = look(&layer, blocks(0, 1)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{sector}, {sectors}, {access:?}");
            // It spoils itself alone.
            assert_eq!(seen(&layer, PAGE_UNITS, 2).await, b"b?", "{sector}, {sectors}, {access:?}");
            if access == Access::Own {
                let written = layer.write(write_of(blocks(1, 1), b'x')).await;
                assert_eq!(written.unwrap_err().kind(), ErrorKind::Corrupt);
            }
        }
    }
}

#[tokio::test]
async fn a_ledger_that_was_lost_knows_less_and_says_nothing_that_is_not_so() {
    // The whole ledger, and each of its sectors. Both pages of this map are named in the first.
    for (first, sectors) in [(24, 8)].into_iter().chain((24..32).map(|sector| (sector, 1))) {
        let lab = closed().await;
        lose(&lab, MAP, first, sectors).await;
        lose(&lab, MAP, 9, 1).await;
        let is_named = first > 24;
        for access in ALL {
            let layer = lab.open(access).await.unwrap();
            let seen_there = look(&layer, blocks(1, 1)).await;
            assert_eq!(seen_there.is_err(), is_named, "sector {first}, {access:?}");
            assert_eq!(seen(&layer, PAGE_UNITS, 2).await, b"b?", "sector {first}, {access:?}");
        }
    }
}

#[tokio::test]
async fn a_page_whose_ledger_was_lost_is_named_again_by_whoever_writes_into_it() {
    let lab = closed().await;
    lose(&lab, MAP, 24, 8).await;
    let layer = lab.own().await;
    write(&layer, blocks(1, 1), b'x').await;
    layer.close().await.unwrap();
    lose(&lab, MAP, 9, 1).await;
    let layer = lab.open(Access::Read).await.unwrap();
    assert!(look(&layer, blocks(0, 1)).await.is_err());
    assert_eq!(seen(&layer, PAGE_UNITS, 2).await, b"b?");
}

/// How many sectors of a page of the map have been written.
async fn sectors_of(lab: &Lab, page: u64) -> usize {
    let file = lab.disk.open(Path::new(MAP), OpenMode::Read).await.unwrap();
    let zeros = Buffer::from_vec(vec![0; PAGE]);
    // A file that ends before has nothing there.
    let (bytes, _) = file.read_at(zeros, 0..PAGE, page * PAGE as u64).await;
    bytes.chunks(SECTOR).filter(|sector| sector.iter().any(|byte| *byte != 0)).count()
}

#[tokio::test]
async fn what_a_power_cut_left_of_a_new_page_is_inherited_and_made_whole_by_the_next_owner() {
    // Some sectors of the page reach the medium, and the sync that would have named it never ends.
    let mut left = BTreeSet::new();
    for seed in 0..40 {
        let facts = facts(2 * PAGE_UNITS * BLOCK, BLOCK);
        let lab = Lab::on(SimDisk::new(seed), facts).await.with_damage();
        let layer = lab.own().await;
        write(&layer, blocks(0, 1), b'a').await;
        layer.sync().await.unwrap();
        write(&layer, blocks(PAGE_UNITS, 1), b'b').await;
        let lab = lab.after_power_cut().await;
        left.insert(sectors_of(&lab, 2).await);
        let layer = lab.own().await;
        assert_eq!(seen(&layer, PAGE_UNITS, 2).await, b"??", "seed {seed}");
        write(&layer, blocks(PAGE_UNITS + 1, 1), b'c').await;
        layer.sync().await.unwrap();
        let lab = lab.after_power_cut().await;
        let layer = lab.open(Access::Read).await.unwrap();
        assert_eq!(seen(&layer, PAGE_UNITS, 2).await, b"?c", "seed {seed}");
        drop(layer);
        lose(&lab, MAP, 16 + seed % 8, 1).await;
        let layer = lab.open(Access::Read).await.unwrap();
        assert!(look(&layer, blocks(PAGE_UNITS, 2)).await.is_err(), "seed {seed}");
    }
    // Of its 8 sectors, few were there and many, or the test would not have looked at what it is named for.
    assert!(left.contains(&2) && left.contains(&6), "{left:?}");
}
