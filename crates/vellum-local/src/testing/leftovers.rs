//! What an opening finds: logs that count and logs that do not, files cut short at their birth, the work of a dead owner,
//! and damage.

use std::path::Path;

use bytes::Bytes;
use vellum_core::Buffer;
use vellum_disk::{BootId, Disk, Durability as OnDisk, File, OpenMode};
use vellum_engine::{
    Catalog, Content, Durability, ErrorKind, Fill, Guarded, Part, Repair, Severity, Write,
};

use super::damage::{ALL, is_found};
use super::pool::Pool;
use super::{BLOCK, Lab, blocks, facts, findings, look, options, seen, write, write_of};
use crate::LayerId;
use crate::format::live::{LogHeader, RECORD};
use crate::format::sector::{PAGE_UNITS, SECTOR_WORDS, WORD_UNITS};
use crate::format::{PAGE, SECTOR};
use crate::log::LOG_SIZE;
use crate::store::{Access, AfterStop, LayerFacts, StoreOptions};
use vellum_sim::{Call, SimDisk};

pub(super) const MAP: &str = "/pool/layers/00000000000000ab/map";
pub(super) const DATA: &str = "/pool/layers/00000000000000ab/data.0";
pub(super) const LOG: &str = "/pool/live/00000000000000ab.0";
const OTHER_LOG: &str = "/pool/live/00000000000000ab.1";
/// What one sector of a page speaks of.
const SECTOR_UNITS: u64 = SECTOR_WORDS as u64 * WORD_UNITS;

pub(super) async fn contents(disk: &SimDisk, path: &str) -> Vec<u8> {
    let file = disk.open(Path::new(path), OpenMode::Read).await.unwrap();
    let length = file.length().await.unwrap() as usize;
    let (bytes, result) = file.read_at(Buffer::from_vec(vec![0; length]), 0..length, 0).await;
    result.unwrap();
    bytes.to_vec()
}

pub(super) async fn replace(disk: &SimDisk, path: &str, bytes: Vec<u8>) {
    let file = disk.open(Path::new(path), OpenMode::ReadWrite).await.unwrap();
    file.set_length(bytes.len() as u64).await.unwrap();
    file.write_at(vec![Bytes::from(bytes)], 0, OnDisk::AtSync).await.unwrap();
}

/// A process that wrote `a` and synced, then wrote blocks 1 to 3 and died. What it left is to be damaged.
pub(super) async fn dead() -> Lab {
    let lab = Lab::new(2 * PAGE_UNITS * BLOCK).await.with_damage();
    let layer = lab.own().await;
    write(&layer, blocks(0, 1), b'a').await;
    layer.seal().await.unwrap();
    layer.unseal();
    for (block, byte) in [(1, b'b'), (2, b'c'), (3, b'd')] {
        write(&layer, blocks(block, 1), byte).await;
    }
    lab.after_death().await
}

/// Changes what the log of [`dead`] is bound to, as if all of it had been written so.
async fn rebind(lab: &Lab, change: impl Fn(LogHeader) -> LogHeader) {
    let bytes = contents(&lab.disk, LOG).await;
    let header = LogHeader::decode(0xab, bytes[..SECTOR].try_into().unwrap()).unwrap();
    let (records, header) = (header.records(&bytes[SECTOR..]), change(header));
    let mut bytes = header.encode();
    for (index, record) in records.iter().enumerate() {
        header.encode_record(index as u64, record, &mut bytes);
    }
    bytes.resize(LOG_SIZE as usize, 0);
    replace(&lab.disk, LOG, bytes).await;
}

#[tokio::test]
async fn a_log_counts_for_its_boot_its_map_and_its_epoch_alone() {
    type Change = fn(LogHeader) -> LogHeader;
    let cases: [(&str, Change, &[u8]); 7] = [
        ("its own", |header| header, b"abcd?"),
        (
            "another number in its header and records",
            |header| LogHeader { nonce: 9, ..header },
            b"abcd?",
        ),
        ("another boot", |header| LogHeader { boot: Some(BootId([9; 16])), ..header }, b"a????"),
        (
            "another file",
            |mut header| {
                header.map.inode += 1;
                header
            },
            b"a????",
        ),
        (
            "another device",
            |mut header| {
                header.map.device += 1;
                header
            },
            b"a????",
        ),
        (
            "an earlier epoch",
            |header| LogHeader { epoch: header.epoch.wrapping_sub(1), ..header },
            b"a????",
        ),
        // Only behind the log of the epoch itself does the next one count.
        (
            "the next epoch",
            |header| LogHeader { epoch: header.epoch.wrapping_add(1), ..header },
            b"a????",
        ),
    ];
    for (what, change, expected) in cases {
        let lab = dead().await;
        rebind(&lab, change).await;
        assert_eq!(seen(&lab.own().await, 0, 5).await, expected, "{what}");
    }
}

#[tokio::test]
async fn a_log_of_unknown_boot_is_believed_or_not_by_what_the_user_says() {
    for (after, expected) in [
        (None, None),
        (Some(AfterStop::ProcessDeath), Some(b"abcd?")),
        (Some(AfterStop::PowerCut), Some(b"a????")),
    ] {
        let lab = dead().await;
        rebind(&lab, |header| LogHeader { boot: None, ..header }).await;
        let options = StoreOptions { after, ..options() };
        let lab = Lab::with(lab.disk.clone(), lab.facts.clone(), options).await.with_damage();
        match expected {
            None => assert_eq!(lab.open(Access::Own).await.unwrap_err().kind(), ErrorKind::Busy),
            Some(expected) => assert_eq!(seen(&lab.own().await, 0, 5).await, expected),
        }
    }
}

#[tokio::test]
async fn a_damaged_log_where_the_boot_is_unknown_is_damage_or_nothing_by_what_the_user_says() {
    for (after, expected) in [
        (None, Err(ErrorKind::Busy)),
        (Some(AfterStop::ProcessDeath), Err(ErrorKind::Corrupt)),
        (Some(AfterStop::PowerCut), Ok(b"a????")),
    ] {
        let lab = dead().await;
        lab.disk.world().boot = None;
        lab.disk.damage(&format!("/pool/live/{}.0", super::ID), 60);
        let options = StoreOptions { after, ..options() };
        let lab = Lab::with(lab.disk.clone(), lab.facts.clone(), options).await.with_damage();
        match expected {
            Err(kind) => {
                for access in ALL {
                    assert_eq!(lab.open(access).await.unwrap_err().kind(), kind, "{after:?}");
                }
            }
            Ok(expected) => assert_eq!(seen(&lab.own().await, 0, 5).await, expected),
        }
    }
}

/// A log that cannot be believed is damage, whoever opens the layer, and to a check.
async fn assert_log_is_damaged(lab: Lab, what: &str) {
    for access in ALL {
        let error = lab.open(access).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}, {access:?}");
        for named in [super::ID, "image test", "live"] {
            assert!(error.to_string().contains(named), "{what}: {error}");
        }
    }
    assert!(is_found(lab.open(Access::Read).await).await, "{what}");
}

#[tokio::test]
async fn a_log_with_a_changed_byte_is_corrupt_and_never_shorter() {
    // Header, records, and the zeros behind them.
    for at in 0..SECTOR + 4 * RECORD {
        let lab = dead().await;
        lab.disk.damage(LOG, at as u64);
        assert_log_is_damaged(lab, &format!("byte {at}")).await;
    }
}

#[tokio::test]
async fn a_changed_byte_in_either_log_of_a_sync_under_way_is_corrupt() {
    for log in [LOG, OTHER_LOG] {
        for at in [0, 12, 24, 40, 56, 64, 72, 300, 508, 512, 520, 528, 532, 544] {
            let lab = died_in_sync().await;
            lab.disk.damage(log, at);
            assert_log_is_damaged(lab, &format!("byte {at} of {log}")).await;
        }
    }
    let lab = died_in_sync().await;
    assert_eq!(seen(&lab.own().await, 0, 6).await, b"abcde?");
}

#[tokio::test]
async fn a_log_cut_short_beside_another_one_of_this_boot_is_corrupt() {
    for log in [LOG, OTHER_LOG] {
        for length in [1, 39, 511, 512, 530, 544, LOG_SIZE - 1] {
            let lab = died_in_sync().await;
            let file = lab.disk.open(Path::new(log), OpenMode::ReadWrite).await.unwrap();
            file.set_length(length).await.unwrap();
            assert_log_is_damaged(lab, &format!("{length} bytes of {log}")).await;
        }
    }
}

#[tokio::test]
async fn a_damaged_log_of_another_boot_says_nothing() {
    for at in [0, 24, 40, 512, 528] {
        let lab = died_in_sync().await;
        let disk = lab.disk.process_death();
        disk.world().boot = Some(BootId([9; 16]));
        disk.damage(LOG, at);
        disk.damage(OTHER_LOG, at);
        let lab = Lab::on(disk, lab.facts.clone()).await.with_damage();
        assert_eq!(seen(&lab.own().await, 0, 6).await, b"a?????", "byte {at}");
    }
}

/// A process that wrote `a` and synced, wrote blocks 1 and 2, and died in the sync of them, while blocks 3 and 4 were written.
async fn died_in_sync() -> Lab {
    let lab = Lab::new(64 * BLOCK).await.with_damage();
    let layer = lab.own().await;
    write(&layer, blocks(0, 1), b'a').await;
    layer.seal().await.unwrap();
    layer.unseal();
    write(&layer, blocks(1, 1), b'b').await;
    write(&layer, blocks(2, 1), b'c').await;
    let hold = lab.disk.hold(Call::SyncData, "data.0");
    let writing = async {
        hold.arrived().await;
        write(&layer, blocks(3, 1), b'd').await;
        write(&layer, blocks(4, 1), b'e').await;
    };
    tokio::select! {
        _ = layer.sync() => panic!("it stands still"),
        () = writing => {}
    }
    lab.after_death().await
}

#[tokio::test]
async fn a_log_of_this_boot_that_is_none_of_the_past_and_does_not_count_is_told_and_nothing_is_freed()
 {
    type Change = fn(LogHeader) -> LogHeader;
    let cases: [(&str, Change, Change); 2] = [
        (
            "the pool was copied",
            |mut header| {
                header.map.inode += 1;
                header
            },
            |mut header| {
                header.map.inode -= 1;
                header
            },
        ),
        (
            "a later state of the map",
            |header| LogHeader { epoch: header.epoch.wrapping_add(1), ..header },
            |header| LogHeader { epoch: header.epoch.wrapping_sub(1), ..header },
        ),
    ];
    for (what, change, back) in cases {
        let lab = dead().await;
        rebind(&lab, change).await;
        for (access, repair) in [(Access::Read, Repair::No), (Access::Own, Repair::Safe)] {
            let layer = lab.open(access).await.unwrap();
            let found = findings(&layer, repair).await.unwrap();
            assert!(found.iter().all(|found| found.repaired.is_none()), "{found:?}");
            let told = found
                .iter()
                .any(|found| found.severity == Severity::Unknown && found.what.contains(what));
            assert!(told, "{what}: {found:?}");
        }
        // What was written is still there.
        rebind(&lab, back).await;
        let lab = Lab::on(lab.disk.process_death(), lab.facts.clone()).await.with_damage();
        assert_eq!(seen(&lab.own().await, 0, 5).await, b"abcd?", "{what}");
    }
}

#[tokio::test]
async fn logs_of_the_past_are_no_ground_for_doubt() {
    // Whoever took over what a dead owner wrote, and wrote nothing, leaves its logs where they are.
    let lab = dead().await;
    lab.own().await.close().await.unwrap();
    let lab = lab.after_death().await;
    assert!(lab.disk.open(Path::new(LOG), OpenMode::Read).await.is_ok());
    for change in [0, 1] {
        rebind(&lab, |mut header| {
            header.map.inode += change;
            header
        })
        .await;
        let layer = lab.open(Access::Read).await.unwrap();
        assert_eq!(seen(&layer, 0, 5).await, b"abcd?");
        super::assert_in_order(&layer).await;
    }
}

#[tokio::test]
async fn whoever_only_reads_sees_what_a_dead_owner_wrote_and_writes_nothing() {
    let lab = dead().await;
    lab.disk.take_trace();
    let layer = lab.open(Access::Read).await.unwrap();
    assert_eq!(seen(&layer, 0, 5).await, b"abcd?");
    assert_eq!(lab.disk.take_trace(), []);
    let sealed = layer.write(write_of(blocks(0, 1), b'x')).await.unwrap();
    assert_eq!(sealed, Guarded::Sealed);
}

#[tokio::test]
async fn the_first_sync_of_a_new_owner_covers_the_data_of_a_dead_one() {
    for seed in 0..20 {
        let lab = Lab::on(SimDisk::new(seed), facts(64 * BLOCK, BLOCK)).await;
        let layer = lab.own().await;
        write(&layer, blocks(0, 1), b'a').await;
        layer.sync().await.unwrap();
        // Data over data leaves no trace in the log.
        write(&layer, blocks(0, 1), b'b').await;
        let lab = lab.after_death().await;
        lab.own().await.sync().await.unwrap();
        let lab = lab.after_power_cut().await;
        let (bytes, _) = look(&lab.own().await, blocks(0, 1)).await.unwrap();
        assert!(bytes.iter().all(|byte| *byte == b'b'), "seed {seed}");
    }
}

#[tokio::test]
async fn a_durable_write_over_one_that_was_not_survives_with_the_state_it_needs() {
    for seed in 0..20 {
        let lab = Lab::on(SimDisk::new(seed), facts(64 * BLOCK, BLOCK)).await;
        let layer = lab.own().await;
        write(&layer, blocks(0, 1), b'a').await;
        let durable = Write { durability: Durability::Durable, ..write_of(blocks(0, 1), b'b') };
        assert_eq!(layer.write(durable).await.unwrap(), Guarded::Done);
        let lab = lab.after_power_cut().await;
        assert_eq!(seen(&lab.own().await, 0, 2).await, b"b?", "seed {seed}");
    }
}

#[tokio::test]
async fn files_that_a_dead_process_made_stay_once_its_successor_has_synced() {
    for seed in 0..10 {
        for call in 1.. {
            let lab = Lab::on(SimDisk::new(seed), facts(64 * BLOCK, BLOCK)).await;
            let layer = lab.own().await;
            lab.disk.world().calls_left = Some(call);
            let died = tokio::select! {
                biased;
                result = layer.write(write_of(blocks(0, 1), b'a')) => {
                    assert_eq!(result.unwrap(), Guarded::Done);
                    false
                }
                () = lab.disk.ended() => true,
            };
            let lab = lab.after_death().await;
            let layer = lab.own().await;
            write(&layer, blocks(1, 1), b'b').await;
            layer.sync().await.unwrap();
            let lab = lab.after_power_cut().await;
            assert_eq!(seen(&lab.own().await, 1, 2).await, b"b?", "call {call}, seed {seed}");
            if !died {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_layer_cut_short_at_its_birth_holds_nothing_and_can_be_written() {
    for seed in 0..20 {
        for call in 1.. {
            let lab = Lab::on(SimDisk::new(seed), facts(64 * BLOCK, BLOCK)).await;
            let layer = lab.own().await;
            lab.disk.world().calls_left = Some(call);
            let cut = tokio::select! {
                biased;
                result = layer.write(write_of(blocks(0, 1), b'a')) => {
                    assert_eq!(result.unwrap(), Guarded::Done);
                    false
                }
                () = lab.disk.ended() => true,
            };
            let lab = lab.after_power_cut().await;
            let layer = lab.own().await;
            assert_eq!(seen(&layer, 0, 2).await, b"??", "call {call}, seed {seed}");
            write(&layer, blocks(0, 1), b'b').await;
            layer.sync().await.unwrap();
            let lab = lab.after_power_cut().await;
            assert_eq!(seen(&lab.own().await, 0, 2).await, b"b?", "call {call}, seed {seed}");
            if !cut {
                break;
            }
        }
    }
}

/// A layer that was closed in good order, with data in both pages. What it left is to be damaged.
pub(super) async fn closed() -> Lab {
    let lab = Lab::new(2 * PAGE_UNITS * BLOCK).await.with_damage();
    let layer = lab.own().await;
    write(&layer, blocks(0, 1), b'a').await;
    write(&layer, blocks(PAGE_UNITS, 1), b'b').await;
    layer.close().await.unwrap();
    lab.after_death().await
}

#[tokio::test]
async fn a_changed_byte_in_the_header_of_a_map_is_corrupt() {
    for at in 0..2 * SECTOR as u64 {
        let lab = closed().await;
        lab.disk.damage(MAP, at);
        for access in [Access::Read, Access::Own, Access::Fill] {
            assert_eq!(lab.open(access).await.unwrap_err().kind(), ErrorKind::Corrupt, "byte {at}");
        }
    }
}

#[tokio::test]
async fn a_changed_byte_in_a_page_of_a_map_is_corrupt_and_spoils_that_page_alone() {
    for at in (0..PAGE as u64).step_by(61) {
        let lab = closed().await;
        lab.disk.damage(MAP, PAGE as u64 + at);
        let layer = lab.own().await;
        let damaged = blocks(at / SECTOR as u64 * SECTOR_UNITS, 1);
        assert_eq!(
            look(&layer, damaged).await.unwrap_err().kind(),
            ErrorKind::Corrupt,
            "byte {at}"
        );
        let refused = layer.write(write_of(damaged, b'x')).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "byte {at}");
        assert_eq!(seen(&layer, PAGE_UNITS, 2).await, b"b?");
    }
}

#[tokio::test]
async fn a_changed_byte_in_the_ledger_of_a_map_is_corrupt() {
    for at in (0..PAGE as u64).step_by(61) {
        let lab = closed().await;
        // Behind the header and two pages of states.
        lab.disk.damage(MAP, 3 * PAGE as u64 + at);
        for access in [Access::Read, Access::Own, Access::Fill] {
            assert_eq!(lab.open(access).await.unwrap_err().kind(), ErrorKind::Corrupt, "byte {at}");
        }
    }
    let pool = Pool::new(1).await;
    let record = pool.image("a").await;
    pool.disk.damage(&Pool::file_of(&record, "map"), 2 * PAGE as u64 + 61);
    for repair in [Repair::No, Repair::WithUnknownFiles] {
        let found = pool.catalog.check(None, repair).await.unwrap();
        assert!(found.len() == 1 && found[0].severity == Severity::Damage, "{found:?}");
        assert!(found[0].what.contains("map") && found[0].stands(), "{found:?}");
    }
}

#[tokio::test]
async fn files_that_are_too_short_are_corrupt_and_never_zeros() {
    for (path, length) in [(MAP, 2 * PAGE as u64), (MAP, PAGE as u64), (DATA, 0), (DATA, BLOCK)] {
        let lab = closed().await;
        let file = lab.disk.open(Path::new(path), OpenMode::ReadWrite).await.unwrap();
        file.set_length(length).await.unwrap();
        let owned = lab.open(Access::Own).await;
        assert_eq!(owned.unwrap_err().kind(), ErrorKind::Corrupt, "{path} of {length} bytes");
        if let Ok(layer) = lab.open(Access::Read).await {
            let error = look(&layer, blocks(PAGE_UNITS, 1)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{path} of {length} bytes");
        }
    }
}

#[tokio::test]
async fn a_missing_data_file_is_corrupt() {
    let lab = closed().await;
    lab.disk.remove_file(Path::new(DATA)).await.unwrap();
    let layer = lab.open(Access::Read).await.unwrap();
    assert_eq!(look(&layer, blocks(0, 1)).await.unwrap_err().kind(), ErrorKind::Corrupt);
    // Or the first write would make an empty one, and what was lost would be zeros for good.
    for access in [Access::Own, Access::Fill] {
        let lab = Lab::on(lab.disk.process_death(), lab.facts.clone()).await.with_damage();
        assert_eq!(lab.open(access).await.unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

#[tokio::test]
async fn a_map_that_is_missing_or_empty_beside_data_is_corrupt() {
    for length in [None, Some(0), Some(PAGE as u64 - 1), Some(PAGE as u64)] {
        let lab = closed().await;
        match length {
            None => lab.disk.remove_file(Path::new(MAP)).await.unwrap(),
            Some(length) => replace(&lab.disk, MAP, vec![0; length as usize]).await,
        }
        for access in [Access::Read, Access::Own, Access::Fill] {
            let opened = lab.open(access).await;
            assert_eq!(opened.unwrap_err().kind(), ErrorKind::Corrupt, "{length:?}");
        }
    }
}

/// The directory of the layer goes, and the logs stay.
async fn lose_files(lab: &Lab) {
    for file in [MAP, DATA] {
        lab.disk.remove_file(Path::new(file)).await.unwrap();
    }
    lab.disk.remove_dir(Path::new(MAP).parent().unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_layer_that_its_log_knows_to_be_written_and_that_has_no_files_is_corrupt() {
    for access in [Access::Read, Access::Own, Access::Fill] {
        let lab = dead().await;
        lose_files(&lab).await;
        let error = lab.open(access).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        for named in [super::ID, "image test", MAP] {
            assert!(error.to_string().contains(named), "{error}");
        }
    }
}

#[tokio::test]
async fn a_log_of_another_boot_or_without_records_says_nothing_of_files_that_are_missing() {
    let lab = dead().await;
    rebind(&lab, |header| LogHeader { boot: Some(BootId([9; 16])), ..header }).await;
    lose_files(&lab).await;
    assert_eq!(seen(&lab.own().await, 0, 4).await, b"????");
    let lab = dead().await;
    let mut log = contents(&lab.disk, LOG).await;
    log[SECTOR..].fill(0);
    replace(&lab.disk, LOG, log).await;
    lose_files(&lab).await;
    assert_eq!(seen(&lab.own().await, 0, 4).await, b"????");
}

#[tokio::test]
async fn a_log_without_records_does_not_ask_what_happened() {
    let lab = Lab::new(64 * BLOCK).await;
    let layer = lab.own().await;
    write(&layer, blocks(0, 1), b'a').await;
    layer.sync().await.unwrap();
    // One log has records of before the sync, the other one none.
    drop(layer);
    let boot_is_known = lab.disk.world().boot.take();
    assert!(boot_is_known.is_some());
    let lab = lab.after_death().await;
    assert_eq!(seen(&lab.own().await, 0, 2).await, b"a?");
}

#[tokio::test]
async fn whoever_reads_what_a_dead_filler_left_sees_what_the_next_one_fills() {
    let lab = Lab::new(64 * BLOCK).await;
    let owner = lab.own().await;
    write(&owner, blocks(0, 1), b'a').await;
    owner.close().await.unwrap();
    drop(owner);
    let filler = lab.open(Access::Fill).await.unwrap();
    assert_eq!(filler.fill(fill_of(blocks(1, 1), b'b')).await.unwrap(), Guarded::Done);
    let lab = lab.after_death().await;
    let reader = lab.open(Access::Read).await.unwrap();
    assert_eq!(seen(&reader, 0, 4).await, b"ab??");
    let filler = lab.open(Access::Fill).await.unwrap();
    assert_eq!(filler.fill(fill_of(blocks(2, 1), b'c')).await.unwrap(), Guarded::Done);
    assert_eq!(seen(&reader, 0, 4).await, b"abc?");
    filler.close().await.unwrap();
    let lab = lab.after_power_cut().await;
    assert_eq!(seen(&lab.open(Access::Read).await.unwrap(), 0, 4).await, b"abc?");
}

pub(super) fn fill_of(at: vellum_core::Extent, byte: u8) -> Fill {
    let content = Content::Data(Bytes::from(vec![byte; at.len_usize()]));
    Fill { parts: vec![Part { at, content }], then: None }
}

#[tokio::test]
async fn the_map_of_another_layer_is_corrupt() {
    let lab = closed().await;
    let other =
        LayerFacts { id: LayerId::from_hex("00000000000000cd").unwrap(), ..lab.facts.clone() };
    let layer = lab.store.layer(other.clone(), Access::Own).await.unwrap();
    write(&layer, blocks(0, 1), b'z').await;
    layer.close().await.unwrap();
    drop(layer);
    let bytes = contents(&lab.disk, MAP).await;
    replace(&lab.disk, "/pool/layers/00000000000000cd/map", bytes).await;
    let error = lab.store.layer(other, Access::Own).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}
