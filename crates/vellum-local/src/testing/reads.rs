//! Reads that fail: of names, lengths, holes and bytes, one after the other, while a layer or a pool is opened, read and checked.

use std::collections::BTreeSet;

use vellum_engine::{Catalog, ErrorKind, Repair, Severity};
use vellum_sim::{Call, Calls};

use super::damage::ALL;
use super::failures::{EIO, once};
use super::leftovers::{MAP, closed, dead};
use super::pool::Pool;
use super::{Lab, SimLayer, blocks, findings, look, seen, write, write_of};
use crate::check::Report;
use crate::format::PAGE;
use crate::format::sector::PAGE_UNITS;
use crate::store::Access;

/// What a layer of [`dead`] or [`closed`] holds at the beginning of each of its two pages.
async fn beginnings(layer: &SimLayer) -> Vec<u8> {
    [seen(layer, 0, 5).await, seen(layer, PAGE_UNITS, 2).await].concat()
}

async fn state(was_closed: bool) -> (Lab, &'static [u8]) {
    if was_closed { (closed().await, b"a????b?") } else { (dead().await, b"abcd???") }
}

#[tokio::test]
async fn a_read_that_fails_anywhere_in_an_opening_is_an_error_and_changes_nothing() {
    let mut failed = BTreeSet::new();
    for (was_closed, access) in [false, true].into_iter().flat_map(|it| ALL.map(|all| (it, all))) {
        for number in 1.. {
            let (lab, expected) = state(was_closed).await;
            lab.disk.world().fail_one(Calls::Looks, number, EIO);
            let opened = lab.open(access).await;
            let Some((call, file)) = lab.disk.world().last_failure().cloned() else {
                assert!(number > 5, "an opening reads more than that");
                break;
            };
            let what = format!("{access:?}, closed: {was_closed}, read {number}: {call:?} {file}");
            let error = opened.err().unwrap_or_else(|| panic!("{what}: it is open"));
            assert_eq!(error.kind(), ErrorKind::Io, "{what}: {}", error.chain());
            assert_eq!(beginnings(&lab.open(access).await.unwrap()).await, expected, "{what}");
            let lab = lab.after_death().await;
            assert_eq!(beginnings(&lab.own().await).await, expected, "{what}, then a death");
            let lab = lab.after_power_cut().await;
            assert_eq!(beginnings(&lab.own().await).await, expected, "{what}, then a power cut");
            failed.insert(format!("{call:?}"));
        }
    }
    let every = [Call::Open, Call::Read, Call::List, Call::Length, Call::NextData];
    assert_eq!(failed, every.map(|call| format!("{call:?}")).into());
}

#[tokio::test]
async fn a_read_that_fails_in_a_request_is_an_error_and_the_next_one_finds_all() {
    for file in ["map", "data.0"] {
        let (lab, _) = state(true).await;
        let layer = lab.own().await;
        lab.disk.fail(once(Call::Read, file, EIO));
        let failed = look(&layer, blocks(0, 1)).await.unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Io, "{file}");
        assert_eq!(beginnings(&layer).await, b"a????b?", "{file}");
        write(&layer, blocks(1, 1), b'c').await;
        layer.sync().await.unwrap();
    }
    // A write that needs to know a state changes nothing without it.
    let (lab, _) = state(true).await;
    let layer = lab.own().await;
    lab.disk.fail(once(Call::Read, "map", EIO));
    let error = layer.write(write_of(blocks(1, 1), b'c')).await.unwrap_err();
    let undone = vellum_engine::Happened::NotDone;
    assert_eq!((error.kind(), error.happened()), (ErrorKind::Io, undone));
    assert_eq!(beginnings(&layer).await, b"a????b?");
    write(&layer, blocks(1, 1), b'c').await;
    layer.sync().await.unwrap();
    let lab = lab.after_power_cut().await;
    assert_eq!(beginnings(&lab.own().await).await, b"ac???b?");
}

#[tokio::test]
async fn a_page_that_cannot_be_read_hides_no_damage_of_another_from_a_check() {
    let (lab, _) = state(true).await;
    lab.disk.damage(MAP, 2 * PAGE as u64 + 20);
    let layer = lab.open(Access::Read).await.unwrap();
    lab.disk.fail(once(Call::Read, "map", EIO));
    let mut report = Report::default();
    layer.check(Repair::No, &mut report).await;
    let told: Vec<_> = report.found().iter().map(|found| found.severity).collect();
    assert_eq!(told, [Severity::Unknown, Severity::Damage], "{report:?}");
    assert_eq!(report.into_result().unwrap_err().kind(), ErrorKind::Io);
    let damage = findings(&layer, Repair::No).await.unwrap();
    assert!(damage.len() == 1 && damage[0].severity == Severity::Damage, "{damage:?}");
}

#[tokio::test]
async fn a_read_that_fails_anywhere_in_a_check_is_told_and_frees_nothing() {
    for number in 1.. {
        let (lab, expected) = state(true).await;
        let layer = lab.own().await;
        lab.disk.world().fail_one(Calls::Looks, number, EIO);
        let mut report = Report::default();
        layer.check(Repair::WithUnknownFiles, &mut report).await;
        let Some(failed) = lab.disk.world().last_failure().cloned() else {
            assert_eq!(report.into_result().unwrap(), []);
            assert!(number > 4, "a check reads more than that");
            return;
        };
        let told: Vec<_> = report.found().iter().map(|found| found.severity).collect();
        assert_eq!(told, [Severity::Unknown], "{failed:?}: {report:?}");
        assert_eq!(report.into_result().unwrap_err().kind(), ErrorKind::Io, "{failed:?}");
        let lab = lab.after_death().await;
        assert_eq!(beginnings(&lab.own().await).await, expected, "{failed:?}");
    }
}

#[tokio::test]
async fn a_read_that_fails_anywhere_in_the_opening_of_a_pool_takes_nothing_away() {
    let mut failed = 0;
    for number in 1.. {
        let pool = Pool::new(1).await;
        let record = pool.image("a").await;
        let disk = pool.disk.process_death();
        disk.world().fail_one(Calls::Looks, number, EIO);
        let opened = Pool::on(disk.clone()).await;
        let Some(what) = disk.world().last_failure().cloned() else { break };
        disk.world().fail_no_more();
        // What a pool can do without, such as the reserve, may fail.
        if let Err(error) = opened {
            assert_eq!(error.kind(), ErrorKind::Io, "read {number}, {what:?}: {}", error.chain());
            failed += 1;
        }
        let pool = Pool::on(disk.process_death()).await.unwrap();
        let listed = pool.catalog.list(None, 9).await.unwrap();
        assert_eq!(listed, [pool.catalog.get(&record.id).await.unwrap()], "{what:?}");
        assert_eq!(pool.catalog.check(None, Repair::Safe).await.unwrap(), [], "{what:?}");
        let head = pool.catalog.own(&record.id).await.unwrap();
        assert_eq!(Pool::first_byte(&head).await, b'a', "{what:?}");
    }
    assert!(failed > 5, "{failed} reads");
}
