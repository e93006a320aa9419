//! Images that a server has open and that Ceph's own library and tools use as well: handed to and fro, and operated on from outside.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use vellum_testkit::ceph::{Cluster, POOLS};
use vellum_testkit::nbd::Client;
use vellum_testkit::{Librbd, Serve};

use crate::{export, home, import_by_rbd, pattern, spec};

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;
/// How often an image changes hands.
const TURNS: usize = 60;

/// A plain image whose parent `rbd` made.
fn plain_child(cluster: &Cluster, home: &vellum_testkit::Home, name: &str) -> Result<Vec<u8>> {
    let content = pattern(9 * MIB, 6);
    let parent = format!("{name}-parent");
    import_by_rbd(cluster, home, &content, &parent)?;
    home.ok(&["clone", &format!("vms/{parent}@s"), &format!("vms/{name}")])?;
    Ok(content)
}

fn remove(home: &vellum_testkit::Home, name: &str) -> Result<()> {
    home.ok(&["rm", &format!("vms/{name}")])?;
    home.ok(&["rm", &format!("vms/{name}-parent")]).map(drop)
}

pub(crate) fn to_and_fro(cluster: &Cluster) -> Result<()> {
    if let Some(why) = Librbd::unavailable() {
        anyhow::bail!("{why}");
    }
    let home = home(cluster, "")?;
    let mut known = plain_child(cluster, &home, "turns")?;
    let serve = Serve::start(&home)?;
    let mut client = Client::connect(serve.socket(), "vms/turns")?;
    let mut librbd = Librbd::start(cluster, POOLS[0], "")?;
    librbd.ask(&json!({"op": "open", "image": "turns"}))?;
    let mut random = StdRng::seed_from_u64(11);
    let began = Instant::now();
    for turn in 0..TURNS {
        let (at, byte) = (random.random_range(0..known.len() - BLOCK), turn as u8 + 1);
        known[at..][..BLOCK].fill(byte);
        if turn % 2 == 0 {
            client.write(at as u64, &[byte; BLOCK])?;
        } else {
            let ask = json!({"op": "write", "image": "turns", "offset": at, "length": BLOCK, "byte": byte});
            librbd.ask(&ask)?;
        }
        let at = random.random_range(0..known.len() - BLOCK);
        let read = client.read(at as u64, BLOCK as u32)?;
        ensure!(read == known[at..][..BLOCK], "turn {turn}");
        if turn % 10 == 9 {
            ensure!(
                librbd.read("turns", None)? == known,
                "librbd reads something else, at turn {turn}"
            );
        }
    }
    ensure!(
        began.elapsed() < Duration::from_secs(60),
        "turns take {:?}",
        began.elapsed() / TURNS as u32
    );
    // Both at once, each in a half of its own: what is acknowledged to either stays.
    let half = known.len() / 2;
    let theirs = std::thread::spawn(move || {
        for at in 0..30 {
            let offset = half + at * 3 * BLOCK;
            let ask = json!({"op": "write", "image": "turns", "offset": offset, "length": BLOCK, "byte": 200});
            librbd.ask(&ask)?;
        }
        anyhow::Ok(librbd)
    });
    for at in 0..30 {
        client.write((at * 3 * BLOCK) as u64, &[100; BLOCK])?;
    }
    let mut librbd = theirs.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
    for at in 0..30 {
        known[at * 3 * BLOCK..][..BLOCK].fill(100);
        known[half + at * 3 * BLOCK..][..BLOCK].fill(200);
    }
    for at in (0..known.len()).step_by(MIB) {
        ensure!(client.read(at as u64, MIB as u32)? == known[at..][..MIB], "at {at}");
    }
    librbd.ask(&json!({"op": "close", "image": "turns"}))?;
    drop(librbd);
    client.disconnect()?;
    ensure!(serve.terminate()?.success());
    ensure!(export(&home, "vms/turns")? == known);
    cluster.ok("rbd", &["object-map", "check", "--no-progress", &spec("turns")])?;
    home.ok(&["check"])?;
    remove(&home, "turns")
}

pub(crate) fn asks(cluster: &Cluster) -> Result<()> {
    let home = home(cluster, "")?;
    let mut known = plain_child(cluster, &home, "kept")?;
    let mut librbd = Librbd::start(cluster, POOLS[0], "")?;
    let mut ask = |op: &str| {
        librbd.ask(&json!({"op": op, "image": "kept", "offset": BLOCK, "length": BLOCK, "byte": 7}))
    };
    ask("open")?;
    ask("keep")?;
    home.ok(&["snap", "create", "vms/kept@one"])?;
    home.fails(4, &["snap", "create", "vms/kept@one"])?;
    let before = known.clone();
    ask("write")?;
    known[BLOCK..][..BLOCK].fill(7);
    home.ok(&["flatten", "vms/kept"])?;
    ensure!(!home.ok(&["info", "vms/kept"])?.contains("parent"));
    ask("close")?;
    ensure!(export(&home, "vms/kept")? == known && export(&home, "vms/kept@one")? == before);
    home.ok(&["check"])?;
    remove(&home, "kept")
}

pub(crate) fn operated_on(cluster: &Cluster) -> Result<()> {
    let home = home(cluster, "")?;
    let mut known = plain_child(cluster, &home, "served")?;
    let serve = Serve::start(&home)?;
    let mut client = Client::connect(serve.socket(), "vms/served")?;
    let mut write = |client: &mut Client, byte: u8| {
        let at = usize::from(byte) * 64 * BLOCK;
        known[at..][..BLOCK].fill(byte);
        client.write(at as u64, &[byte; BLOCK]).map(|()| known.clone())
    };
    let rbd = |arguments: &[&str]| cluster.ok("rbd", &[arguments, &["--no-progress"]].concat());
    let quiet = |arguments: &[&str]| cluster.ok("rbd", arguments);
    let first = write(&mut client, 1)?;
    rbd(&["snap", "create", &spec("served@one")])?;
    let second = write(&mut client, 2)?;
    ensure!(rbd(&["snap", "create", &spec("served@one")]).is_err(), "a snapshot is made twice");
    quiet(&["snap", "rename", &spec("served@one"), &spec("served@first")])?;
    ensure!(export(&home, "vms/served@first")? == first);
    rbd(&["snap", "create", &spec("served@two")])?;
    write(&mut client, 3)?;
    quiet(&["image-meta", "set", &spec("served"), "colour", "red"])?;
    ensure!(home.ok(&["info", "vms/served"])?.contains("red"));
    quiet(&["image-meta", "remove", &spec("served"), "colour"])?;
    rbd(&["snap", "rm", &spec("served@first")])?;
    write(&mut client, 4)?;
    rbd(&["flatten", &spec("served")])?;
    let info = home.ok(&["info", "vms/served"])?;
    ensure!(!info.contains("parent"), "it still has a parent: {info}");
    write(&mut client, 5)?;
    quiet(&["rename", &spec("served"), &spec("renamed")])?;
    let last = write(&mut client, 6)?;
    // What is not done for others they do themselves, since they are given the image for it.
    quiet(&["snap", "protect", &spec("renamed@two")])?;
    quiet(&["snap", "unprotect", &spec("renamed@two")])?;
    rbd(&["sparsify", &spec("renamed")])?;
    rbd(&["resize", "--size", "10M", &spec("renamed")])?;
    // Whoever has clients takes it back by itself, so that nobody else begins to use it.
    let began = Instant::now();
    while quiet(&["lock", "ls", &spec("renamed")])?.trim().is_empty() {
        ensure!(began.elapsed() < Duration::from_secs(10), "the server leaves its image to others");
    }
    // A client that comes now sees all of it.
    let mut later = Client::connect(serve.socket(), "vms/renamed")?;
    ensure!(later.size() == 10 << 20 && later.read((10 << 20) - 4096, 4096)? == [0; 4096]);
    later.disconnect()?;
    for at in (0..last.len()).step_by(MIB) {
        ensure!(client.read(at as u64, MIB as u32)? == last[at..][..MIB], "at {at}");
    }
    client.disconnect()?;
    ensure!(serve.terminate()?.success());
    ensure!(
        export(&home, "vms/renamed@two")? == second
            && export(&home, "vms/renamed")?[..9 * MIB] == last
    );
    quiet(&["object-map", "check", &spec("renamed"), "--no-progress"])?;
    home.ok(&["check"])?;
    home.ok(&["rename", "vms/renamed", "served"]).context("its name is free")?;
    remove(&home, "served")
}
