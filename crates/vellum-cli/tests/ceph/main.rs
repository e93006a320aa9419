//! The program on pools of a real Ceph cluster, which is started for it: alone, beside pools of the embedded engine, beside another
//! home, and beside Ceph's own tools. Without Ceph's packages the tests show as ignored, with the reason.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod commands;
mod faults;
mod kinship;
mod owners;
mod turns;

use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use vellum_testkit::Home;
use vellum_testkit::ceph::{Cluster, POOLS, Store};

/// A test on a cluster.
type OnACluster = fn(&Cluster) -> Result<()>;

fn main() -> std::process::ExitCode {
    let arguments = Arguments::from_args();
    let unavailable = Cluster::unavailable();
    let cluster = (unavailable.is_none() && !arguments.list)
        .then(|| Arc::new(Cluster::start(Store::Memory).unwrap()));
    let tests: [(&str, OnACluster); 18] = [
        ("each_command_works_on_an_image_on_ceph", commands::each_command),
        ("an_image_that_is_published_is_one_of_rbd", commands::publish),
        ("a_pool_that_cannot_be_reached_is_told_and_hides_no_other", commands::unreachable),
        ("a_pool_is_known_once_by_whatever_way_it_is_reached", commands::known_once),
        ("parents_and_children_are_in_pools_of_either_engine", kinship::across_engines),
        ("a_clone_of_a_snapshot_of_rbd_is_among_the_children_that_rbd_lists", kinship::of_rbd),
        ("an_image_that_is_served_takes_snapshots_and_is_cloned", owners::live),
        ("two_homes_do_not_write_one_image_and_hand_it_over", owners::two_homes),
        ("an_image_whose_server_was_killed_is_taken_over_with_all_it_acknowledged", owners::killed),
        ("a_server_that_slept_and_was_fenced_serves_as_another_client", owners::fenced),
        ("what_is_damaged_is_told_and_hides_nothing_else", commands::damaged),
        ("on_a_full_cluster_nothing_waits_for_space", commands::full),
        ("a_served_image_and_librbd_write_it_in_turns", turns::to_and_fro),
        ("a_served_image_does_what_rbd_asks_of_who_has_it", turns::operated_on),
        ("what_is_asked_of_a_client_of_rbd_that_keeps_an_image_is_done_there", turns::asks),
        ("what_is_acknowledged_outlives_daemons_that_die_and_sleep", faults::daemons),
        (
            "a_server_that_is_turned_away_in_a_write_loses_nothing_it_acknowledged",
            faults::turned_away,
        ),
        ("a_command_leaves_nobody_waiting_for_it", owners::nothing_is_left_behind),
    ];
    let trials = tests.map(|(name, test)| {
        let (unavailable, cluster) = (unavailable.clone(), cluster.clone());
        Trial::ignorable_test(name, move || match (unavailable, cluster) {
            (Some(why), _) => Ok(Completion::ignored_with(why)),
            (None, None) => Ok(Completion::ignored_with("nobody asked for it")),
            (None, Some(cluster)) => test(&cluster)
                .map(|()| Completion::Completed)
                .map_err(|error| Failed::from(format!("{error:?}"))),
        })
    });
    let outcome = libtest_mimic::run(&arguments, trials.into());
    drop(cluster);
    outcome.exit_code()
}

/// A home without pools on Ceph.
fn empty_home() -> Result<Home> {
    Home::new(env!("CARGO_BIN_EXE_vellum"))
}

/// A home that knows two pools of the cluster, `vms` and `more`, of which nobody else uses the namespace.
fn home(cluster: &Cluster, namespace: &str) -> Result<Home> {
    let home = empty_home()?;
    for (name, pool) in [("vms", POOLS[0]), ("more", POOLS[1])] {
        know(&home, cluster, name, pool, namespace)?;
    }
    Ok(home)
}

fn know(home: &Home, cluster: &Cluster, name: &str, pool: &str, namespace: &str) -> Result<()> {
    let conf = cluster.conf().display().to_string();
    let mut arguments = vec!["pool", "create", name, "--ceph-pool", pool, "--ceph-conf", &conf];
    if !namespace.is_empty() {
        arguments.extend(["--ceph-namespace", namespace]);
    }
    home.ok(&arguments).map(drop)
}

/// What `rbd` calls an image of the pool `vms`.
fn spec(image: &str) -> String {
    format!("{}/{image}", POOLS[0])
}

/// Has `rbd` make an image of some bytes, with a snapshot `s`.
fn import_by_rbd(cluster: &Cluster, home: &Home, bytes: &[u8], image: &str) -> Result<()> {
    let file = home.file("by-rbd.raw");
    std::fs::write(&file, bytes)?;
    let from = file.display().to_string();
    cluster.ok("rbd", &["import", "--no-progress", &from, &spec(image)])?;
    cluster.ok("rbd", &["snap", "create", "--no-progress", &spec(&format!("{image}@s"))]).map(drop)
}

/// Bytes that tell their position and a seed, none of them zero.
fn pattern(length: usize, seed: u64) -> Vec<u8> {
    (0..length as u64).map(|at| ((at / 512 * 37 + at % 7 + seed) % 255) as u8 + 1).collect()
}

/// Imports some bytes as an image.
fn import(home: &Home, bytes: &[u8], image: &str) -> Result<()> {
    let file = home.file("import.raw");
    std::fs::write(&file, bytes)?;
    home.ok(&["import", &file.display().to_string(), image]).map(drop)
}

/// What an image or a snapshot reads as.
fn export(home: &Home, spec: &str) -> Result<Vec<u8>> {
    let file = home.file("export.raw");
    let _ = std::fs::remove_file(&file);
    home.ok(&["export", spec, &file.display().to_string()])?;
    Ok(std::fs::read(file)?)
}
