//! Tests of what judges: the record finds what must not be, and the disk loses what may be lost and nothing else.

use anyhow::{Result, ensure};
use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use vellum_core::Extent;
use vellum_nbd::{Export, Exports};

use crate::content::{SECTOR, filled};
use crate::guest::disk::{Cut, VolatileDisk};
use crate::record::{Listed, OBJECTS, Outage, Record};
use crate::{Case, here};

pub fn cases() -> Vec<Case> {
    vec![
        here("what_a_client_was_told_is_held_against_what_is_there", a_lost_write),
        here("a_sector_in_the_wrong_place_is_found", a_misplaced_sector),
        here("a_read_beside_a_write_may_have_parts_of_both_and_of_nothing_else", a_torn_read),
        here("an_image_that_went_or_came_back_by_itself_is_found", a_lost_image),
        here("a_clone_and_its_snapshot_must_agree", a_clone_of_another_moment),
        here("a_disk_keeps_what_was_flushed_and_leaves_the_rest_to_chance", a_volatile_disk),
        here("a_disk_whose_power_was_cut_answers_nobody_of_before", an_old_connection),
    ]
}

const AT: Extent = Extent::new(4096, 4096);

/// A record of one image that was written to twice, the first time durably; and the two stamps.
fn written_twice() -> (Record, u64, u64) {
    let mut record = Record::default();
    record.begin_image("a", OBJECTS[0], None);
    record.end_image("a");
    let mut stamps = [0; 2];
    for (stamp, durable) in stamps.iter_mut().zip([true, false]) {
        *stamp = record.stamp();
        let change = record.begin("a", AT, *stamp);
        record.end("a", AT, change, durable);
    }
    let [first, second] = stamps;
    (record, first, second)
}

fn a_lost_write() -> Result<()> {
    for (outage, finds, allowed) in [
        (Outage::Death, 2, true),
        (Outage::Death, 1, false),
        (Outage::Death, 0, false),
        (Outage::Power, 2, true),
        (Outage::Power, 1, true),
        (Outage::Power, 0, false),
    ] {
        let (mut record, first, second) = written_twice();
        let found = filled([0, first, second][finds], AT);
        let found = if finds == 0 { vec![0; found.len()] } else { found };
        let judged = record.judge_image("a", AT, &found, outage);
        ensure!(judged.is_ok() == allowed, "{outage:?}, write {finds}: {judged:?}");
    }
    Ok(())
}

fn a_misplaced_sector() -> Result<()> {
    let (mut record, _, second) = written_twice();
    let elsewhere = filled(second, Extent::new(0, 4096));
    ensure!(record.judge_image("a", AT, &elsewhere, Outage::Death).is_err());
    let mut torn = filled(second, AT);
    torn[700] ^= 1;
    ensure!(record.judge_image("a", AT, &torn, Outage::Death).is_err());
    Ok(())
}

fn a_torn_read() -> Result<()> {
    let (mut record, first, second) = written_twice();
    let mixture = |one: u64, other: u64| {
        let (mut one, other) = (filled(one, AT), filled(other, AT));
        one[1000..1500].copy_from_slice(&other[1000..1500]);
        one
    };
    let since = record.now("a");
    let quiet = record.judge_read("a", since, AT, &mixture(first, second));
    ensure!(quiet.is_err(), "nothing was under way");
    let third = record.stamp();
    let change = record.begin("a", AT, third);
    record.judge_read("a", since, AT, &mixture(second, third))?;
    ensure!(record.judge_read("a", since, AT, &mixture(first, third)).is_err(), "an old part");
    record.end("a", AT, change, false);
    record.judge_read("a", since, AT, &mixture(third, second))?;
    let since = record.now("a");
    let late = record.judge_read("a", since, AT, &mixture(second, third));
    ensure!(late.is_err(), "asked for after the write had ended");
    Ok(())
}

fn listed(name: &str, snapshots: &[&str]) -> Listed {
    let snapshots = snapshots.iter().map(|name| (*name).to_owned()).collect();
    Listed { name: name.to_owned(), parent: None, snapshots }
}

fn a_lost_image() -> Result<()> {
    let (mut record, ..) = written_twice();
    ensure!(record.take_stock(&[]).is_err(), "an image is gone");
    record.begin_snapshot("a", "s");
    record.take_stock(&[listed("a", &[])])?;
    record.begin_snapshot("a", "t");
    record.take_stock(&[listed("a", &["t"])])?;
    ensure!(record.take_stock(&[listed("a", &[])]).is_err(), "a snapshot that was seen is gone");
    ensure!(record.take_stock(&[listed("a", &["s", "t"])]).is_err(), "a snapshot is back");
    record.begin_removal("a");
    record.end_removal("a");
    record.take_stock(&[])?;
    ensure!(record.take_stock(&[listed("a", &["t"])]).is_err(), "an image is back");
    Ok(())
}

fn a_clone_of_another_moment() -> Result<()> {
    let (mut record, first, second) = written_twice();
    // A write that is under way while the snapshot is made is in it or not, in all its sectors by itself.
    let third = record.stamp();
    record.begin("a", AT, third);
    record.begin_snapshot("a", "s");
    record.end_snapshot("a", "s");
    record.begin_image("b", OBJECTS[0], Some(("a", Some("s"))));
    record.end_image("b");
    ensure!(record.judge_snapshot("a", "s", AT, &filled(first, AT)).is_err(), "it was replaced");
    record.judge_snapshot("a", "s", AT, &filled(third, AT))?;
    let of_the_clone = record.judge_image("b", AT, &filled(second, AT), Outage::Death);
    ensure!(of_the_clone.is_err(), "the snapshot had the later write");
    record.judge_image("b", AT, &filled(third, AT), Outage::Death)
}

/// A disk of a few sectors, of which the first two were written, one of them flushed.
fn disk(dir: &std::path::Path, unit: u64) -> Result<VolatileDisk> {
    let path = dir.join("disk");
    std::fs::write(&path, vec![0; 16 * SECTOR as usize])?;
    let disk = VolatileDisk::open(&path, unit)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let plug = disk.open("").await?;
        plug.write(0, Bytes::from(vec![1; SECTOR as usize]), false).await?;
        plug.flush().await?;
        plug.write(0, Bytes::from(vec![2; 2 * SECTOR as usize]), false).await?;
        plug.write(SECTOR, Bytes::from(vec![3; SECTOR as usize]), false).await?;
        anyhow::Ok(())
    })?;
    Ok(disk)
}

fn a_volatile_disk() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut chance = StdRng::seed_from_u64(1);
    let mut left = std::collections::BTreeSet::new();
    for (cut, unit) in [
        (Cut::Nothing, SECTOR),
        (Cut::Everything, SECTOR),
        (Cut::Order, SECTOR),
        (Cut::Requests, SECTOR),
        (Cut::Pieces, SECTOR),
        (Cut::Pieces, 4096),
    ] {
        left.clear();
        for _ in 0..100 {
            let disk = disk(dir.path(), unit)?;
            disk.cut(cut, &mut chance)?;
            let bytes = std::fs::read(disk.path())?;
            let sectors = bytes.chunks_exact(SECTOR as usize);
            ensure!(sectors.clone().all(|sector| sector.iter().all(|byte| *byte == sector[0])));
            left.insert(sectors.map(|sector| sector[0]).take(2).collect::<Vec<_>>());
        }
        let all: &[&[u8]] = match cut {
            Cut::Nothing => &[&[1, 0]],
            Cut::Everything => &[&[2, 3]],
            Cut::Order => &[&[1, 0], &[2, 2], &[2, 3]],
            Cut::Requests => &[&[1, 0], &[1, 3], &[2, 2], &[2, 3]],
            Cut::Pieces if unit > SECTOR => &[&[1, 0], &[2, 2], &[2, 3]],
            Cut::Pieces => &[&[1, 0], &[1, 2], &[1, 3], &[2, 0], &[2, 2], &[2, 3]],
        };
        ensure!(left.iter().map(Vec::as_slice).eq(all.iter().copied()), "{cut:?}: {left:?}");
    }
    Ok(())
}

fn an_old_connection() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let disk = disk(dir.path(), SECTOR)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(async {
        let before = disk.open("").await?;
        disk.cut(Cut::Nothing, &mut StdRng::seed_from_u64(1))?;
        let late = before.write(0, Bytes::from(vec![9; SECTOR as usize]), true).await;
        ensure!(late.is_err() && before.flush().await.is_err());
        let now = disk.open("").await?.read(Extent::new(0, SECTOR)).await?;
        ensure!(now[0].data.as_ref().is_some_and(|data| data[0] == 1), "{now:?}");
        Ok(())
    })
}
