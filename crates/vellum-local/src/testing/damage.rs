//! Files cut at any length, and files of other layers and of earlier moments in the place of a layer's own. Bytes that changed
//! are looked at in [leftovers](super::leftovers) and beside the formats.
//!
//! Data files have no header: one of another layer that is as long is not found out, here or by a check. What is shown is that
//! one that lacks something is.

use std::path::Path;

use vellum_disk::{BootId, Disk, File, OpenMode};
use vellum_engine::{ErrorKind, Repair, Severity};

use super::leftovers::{DATA, LOG, MAP, closed, contents, dead, replace};
use super::{BLOCK, Lab, SimLayer, blocks, findings, look, seen, write};
use crate::LayerId;
use crate::format::live::RECORD;
use crate::format::sector::PAGE_UNITS;
use crate::format::{PAGE, SECTOR};
use crate::log::LOG_SIZE;
use crate::store::{Access, LayerFacts};

pub(super) const ALL: [Access; 3] = [Access::Read, Access::Own, Access::Fill];

/// Lengths on both sides of everything that a length is compared with.
fn lengths_up_to(whole: u64) -> Vec<u64> {
    let pages = (0..4).map(|page| page * PAGE as u64);
    let places = [SECTOR as u64, 2 * SECTOR as u64, whole].into_iter().chain(pages);
    let around = places.flat_map(|place| [place.saturating_sub(1), place, place + 1]);
    let mut lengths: Vec<u64> = around.chain((0..whole.min(1 << 14)).step_by(97)).collect();
    lengths.sort_unstable();
    lengths.dedup();
    lengths
}

async fn set_length(lab: &Lab, path: &str, length: u64) {
    let file = lab.disk.open(Path::new(path), OpenMode::ReadWrite).await.unwrap();
    file.set_length(length).await.unwrap();
}

/// Another layer on the same disk, which is opened by the same store.
fn other(lab: &Lab) -> LayerFacts {
    LayerFacts { id: LayerId::from_hex("00000000000000cd").unwrap(), ..lab.facts.clone() }
}

/// Whether a check finds damage, or cannot even open the layer for it.
pub(super) async fn is_found(layer: Result<SimLayer, vellum_engine::Error>) -> bool {
    match layer {
        Ok(layer) => {
            let findings = findings(&layer, Repair::No).await.unwrap();
            findings.iter().any(|found| found.severity == Severity::Damage)
        }
        Err(error) => error.kind() == ErrorKind::Corrupt,
    }
}

#[tokio::test]
async fn a_map_of_any_other_length_is_corrupt_or_has_all_that_it_had() {
    // The header, two pages of states, and one of the ledger.
    let whole = 4 * PAGE as u64;
    for length in lengths_up_to(whole) {
        let lab = closed().await;
        set_length(&lab, MAP, length).await;
        for access in ALL {
            let opened = lab.open(access).await;
            if length < whole {
                let error = opened.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{access:?}, {length} bytes");
            } else {
                let layer = opened.unwrap();
                assert_eq!(seen(&layer, 0, 2).await, b"a?", "{length} bytes");
                assert_eq!(seen(&layer, PAGE_UNITS, 2).await, b"b?", "{length} bytes");
            }
        }
    }
}

#[tokio::test]
async fn a_data_file_of_any_other_length_reads_what_it_has_and_is_corrupt_for_the_rest() {
    let needed = [BLOCK, (PAGE_UNITS + 1) * BLOCK];
    let mut lengths = lengths_up_to(needed[1]);
    lengths.extend([needed[1] - BLOCK, needed[1] - 512, 2 * needed[1]]);
    for length in lengths {
        let lab = closed().await;
        set_length(&lab, DATA, length).await;
        let reader = lab.open(Access::Read).await.unwrap();
        for (end, block, expected) in [(needed[0], 0, b"a?"), (needed[1], PAGE_UNITS, b"b?")] {
            let read = look(&reader, blocks(block, 1)).await;
            if length >= end {
                assert_eq!(seen(&reader, block, 2).await, expected, "{length} bytes");
            } else {
                assert_eq!(read.unwrap_err().kind(), ErrorKind::Corrupt, "{length} bytes");
            }
        }
        let lacks = length < needed[1];
        assert_eq!(is_found(Ok(reader)).await, lacks, "a check, {length} bytes");
        for access in [Access::Own, Access::Fill] {
            let lab = Lab::on(lab.disk.process_death(), lab.facts.clone()).await.with_damage();
            let opened = lab.open(access).await;
            if lacks {
                let error = opened.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{access:?}, {length} bytes");
            } else {
                assert_eq!(seen(&opened.unwrap(), PAGE_UNITS, 2).await, b"b?", "{length} bytes");
            }
        }
    }
}

#[tokio::test]
async fn a_log_of_any_other_length_is_corrupt_as_soon_as_it_names_its_boot() {
    let ends = 24 + size_of::<BootId>();
    let lengths = (0..=SECTOR + 4 * RECORD).chain([PAGE, LOG_SIZE as usize - 1, LOG_SIZE as usize]);
    for length in lengths {
        let lab = dead().await;
        set_length(&lab, LOG, length as u64).await;
        for access in ALL {
            let lab = Lab::on(lab.disk.process_death(), lab.facts.clone()).await.with_damage();
            let opened = lab.open(access).await;
            if (ends..LOG_SIZE as usize).contains(&length) {
                let error = opened.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{access:?}, {length} bytes");
            } else {
                let expected = if length < ends { b"a????" } else { b"abcd?" };
                assert_eq!(seen(&opened.unwrap(), 0, 5).await, expected, "{length} bytes");
            }
        }
    }
}

#[tokio::test]
async fn the_log_of_another_layer_says_nothing() {
    let lab = dead().await;
    let layer = lab.store.layer(other(&lab), Access::Own).await.unwrap();
    write(&layer, blocks(4, 1), b'z').await;
    let stranger = contents(&lab.disk, "/pool/live/00000000000000cd.0").await;
    assert!(stranger.len() > SECTOR, "it has a record");
    replace(&lab.disk, LOG, stranger).await;
    let lab = lab.after_death().await;
    assert_eq!(seen(&lab.own().await, 0, 6).await, b"a?????");
}

#[tokio::test]
async fn a_log_of_an_earlier_moment_says_nothing_and_one_of_a_later_is_not_put_behind_an_older_map()
{
    // What lay there between the first and the second sync, and after the second.
    let lab = Lab::new(64 * BLOCK).await.with_damage();
    let layer = lab.own().await;
    write(&layer, blocks(0, 1), b'a').await;
    layer.seal().await.unwrap();
    layer.unseal();
    write(&layer, blocks(1, 1), b'b').await;
    let (old_map, old_log) = (contents(&lab.disk, MAP).await, contents(&lab.disk, LOG).await);
    layer.seal().await.unwrap();
    layer.unseal();
    write(&layer, blocks(2, 1), b'c').await;
    let (new_map, new_log) = (contents(&lab.disk, MAP).await, contents(&lab.disk, LOG).await);
    let mut disk = lab.disk.process_death();
    for (map, log, expected) in [
        (&new_map, &new_log, b"abc?"),
        (&new_map, &old_log, b"ab??"),
        (&old_map, &old_log, b"ab??"),
        (&old_map, &new_log, b"a???"),
    ] {
        replace(&disk, MAP, map.clone()).await;
        replace(&disk, LOG, log.clone()).await;
        let lab = Lab::on(disk.process_death(), lab.facts.clone()).await.with_damage();
        assert_eq!(seen(&lab.open(Access::Read).await.unwrap(), 0, 4).await, expected);
        disk = lab.disk.process_death();
    }
}

#[tokio::test]
async fn the_files_of_another_layer_are_corrupt_where_that_can_be_known() {
    // The map says whose it is; data of a layer that is shorter lacks what this one has.
    for (file, theirs) in [(MAP, "map"), (DATA, "data.0")] {
        let lab = closed().await;
        let shorter = LayerFacts { size: 64 * BLOCK, ..other(&lab) };
        let layer = lab.store.layer(shorter, Access::Own).await.unwrap();
        write(&layer, blocks(0, 1), b'z').await;
        layer.close().await.unwrap();
        drop(layer);
        let bytes = contents(&lab.disk, &format!("/pool/layers/00000000000000cd/{theirs}")).await;
        replace(&lab.disk, file, bytes).await;
        let lab = lab.after_death().await;
        for access in [Access::Own, Access::Fill] {
            let error = lab.open(access).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{file}, {access:?}");
        }
        assert!(is_found(lab.open(Access::Read).await).await, "{file}");
    }
}

#[tokio::test]
async fn a_log_that_speaks_of_a_page_that_the_map_lost_is_corrupt_and_nobody_makes_it_anew() {
    let lab = Lab::new(2 * PAGE_UNITS * BLOCK).await.with_damage();
    let layer = lab.own().await;
    write(&layer, blocks(0, 1), b'a').await;
    write(&layer, blocks(PAGE_UNITS, 1), b'b').await;
    layer.seal().await.unwrap();
    layer.unseal();
    write(&layer, blocks(PAGE_UNITS + 1, 1), b'c').await;
    let mut lab = lab.after_death().await;
    // The ledger too, which would have told by itself.
    set_length(&lab, MAP, 2 * PAGE as u64).await;
    set_length(&lab, MAP, 4 * PAGE as u64).await;
    for access in ALL {
        lab.disk.take_trace();
        assert_eq!(lab.open(access).await.unwrap_err().kind(), ErrorKind::Corrupt, "{access:?}");
        assert_eq!(lab.disk.take_trace(), [], "{access:?}");
        lab = lab.after_death().await;
    }
}
