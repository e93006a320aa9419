//! Operations on an image that a running server holds, while fio writes and verifies.

use std::collections::HashMap;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use vellum_testkit::nbd::{Client, Command};
use vellum_testkit::{Home, Serve, tools};

use crate::{export, golden, pattern, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("snapshots_and_clones_of_an_image_in_use", snapshots_in_use),
        trial(
            "an_image_flattened_while_fio_writes_reads_right_and_its_parent_can_go",
            flatten_in_use,
        ),
        trial("a_held_image_is_in_use_for_others_and_free_after_its_last_client", ownership),
        trial("sigterm_drains_and_loses_nothing", drain),
        trial("a_pool_made_while_a_server_runs_is_served_as_one_that_was_there", new_pools),
    ]
}

const MIB: usize = 1 << 20;

/// fio writing for some seconds and verifying what it wrote as it goes.
fn fio(uri: &str, seconds: u32) -> Result<Child> {
    Ok(tools::command("fio")?
        .args([
            "--name=live",
            "--ioengine=nbd",
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=16",
            "--size=64M",
        ])
        .args([
            "--verify=crc32c",
            "--verify_backlog=256",
            "--verify_state_save=0",
            "--verify_fatal=1",
            "--randseed=3",
            "--time_based",
        ])
        .arg(format!("--runtime={seconds}"))
        .arg(format!("--uri={uri}"))
        .stdout(Stdio::null())
        .spawn()?)
}

fn snapshots_in_use() -> Result<()> {
    let home = golden(&pattern(64 * MIB, 1))?;
    home.ok(&["clone", "gold@s", "child"])?;
    let serve = Serve::start(&home)?;
    let mut load = fio(&serve.uri("child"), 6)?;
    std::thread::sleep(Duration::from_millis(500));
    for number in 0..10 {
        home.ok(&["snap", "create", &format!("child@s{number}")])?;
        home.ok(&["clone", &format!("child@s{number}"), &format!("grandchild-{number}")])?;
        std::thread::sleep(Duration::from_millis(200));
    }
    // Without a snapshot one is taken of the image in use.
    home.ok(&["clone", "child", "of-the-head"])?;
    ensure!(load.wait()?.success(), "fio found a wrong block");
    let first = export(&home, "grandchild-0")?;
    ensure!(first == export(&home, "child@s0")?, "a clone reads as its snapshot");
    ensure!(
        home.ok(&["snap", "ls", "child"])?.lines().filter(|line| line.contains(" s")).count() >= 10
    );
    ensure!(serve.terminate()?.success());
    Ok(())
}

fn flatten_in_use() -> Result<()> {
    for layering in ["sparse", "copy-up"] {
        let home = golden(&pattern(64 * MIB, 2))?;
        home.ok(&["clone", "--layering", layering, "gold@s", "child"])?;
        let serve = Serve::start(&home)?;
        let mut load = fio(&serve.uri("child"), 4)?;
        std::thread::sleep(Duration::from_millis(500));
        home.ok(&["flatten", "child"])?;
        home.ok(&["rm", "gold"])?;
        ensure!(load.wait()?.success(), "fio found a wrong block in {layering} mode");
        ensure!(!home.ok(&["info", "child"])?.contains("parent"));
        ensure!(serve.terminate()?.success());
    }
    Ok(())
}

fn ownership() -> Result<()> {
    let home = golden(&pattern(4 * MIB, 3))?;
    let serve = Serve::start(&home)?;
    let client = Client::connect(serve.socket(), "gold")?;
    let said = home.fails(5, &["rm", "gold"])?;
    ensure!(said.contains("gold"), "{said}");
    client.disconnect()?;
    // The server keeps the image for a moment, in case the client comes back.
    for _ in 0..100 {
        if home.run(&["rm", "gold"])?.status.success() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    anyhow::bail!("the image is still held ten seconds after its last client left")
}

const BLOCK: usize = 4096;
const BLOCKS: u64 = 1024;

/// A client that writes block after block, the same again with higher stamps, until its server hangs up. For each block it keeps
/// the last stamp that was acknowledged.
fn write_until_hung_up(mut client: Client, acknowledged: &AtomicU64) -> HashMap<u64, u64> {
    let (mut asked, mut answered) = (HashMap::new(), HashMap::new());
    let mut hear = |client: &mut Client, asked: &mut HashMap<u64, u64>| {
        let Ok(reply) = client.receive() else { return false };
        let stamp = asked.remove(&reply.cookie).expect("it was asked for");
        if reply.error == 0 {
            let last: &mut u64 = answered.entry(stamp % BLOCKS).or_default();
            *last = stamp.max(*last);
            acknowledged.fetch_add(1, Ordering::SeqCst);
        }
        true
    };
    for stamp in BLOCKS.. {
        let block = stamp.to_be_bytes().repeat(BLOCK / 8);
        let offset = stamp % BLOCKS * BLOCK as u64;
        match client.send(Command::Write, offset, BLOCK as u32, &block) {
            Ok(cookie) => drop(asked.insert(cookie, stamp)),
            Err(_) => break,
        }
        if client.in_flight() >= 32 && !hear(&mut client, &mut asked) {
            break;
        }
    }
    while hear(&mut client, &mut asked) {}
    answered
}

fn drain() -> Result<()> {
    let below = pattern(BLOCKS as usize * BLOCK, 4);
    let home = golden(&below)?;
    let serve = Serve::start(&home)?;
    let client = Client::connect(serve.socket(), "gold")?;
    let acknowledged = AtomicU64::new(0);
    let answered = std::thread::scope(|scope| {
        let client = scope.spawn(|| write_until_hung_up(client, &acknowledged));
        while acknowledged.load(Ordering::SeqCst) < 300 && !client.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
        ensure!(!client.is_finished(), "the server hung up too early");
        ensure!(serve.terminate()?.success(), "a drain is a clean end");
        Ok(client.join().expect("the client does not panic"))
    })?;
    let left = export(&home, "gold")?;
    for (number, (block, below)) in left.chunks(BLOCK).zip(below.chunks(BLOCK)).enumerate() {
        let number = number as u64;
        let stamp = u64::from_be_bytes(block[..8].try_into()?);
        let is_written =
            stamp % BLOCKS == number && *block == stamp.to_be_bytes().repeat(BLOCK / 8);
        ensure!(is_written || block == below, "block {number} is of no write");
        if let Some(answered) = answered.get(&number) {
            ensure!(
                is_written && stamp >= *answered,
                "block {number}: {answered} was acknowledged"
            );
        }
    }
    Ok(())
}

/// The default pool comes to be with its first image, and another one by its command, after the server began.
fn new_pools() -> Result<()> {
    let home = Home::new(env!("CARGO_BIN_EXE_vellum"))?;
    let serve = Serve::start(&home)?;
    home.ok(&["create", "a", "--size", "1M"])?;
    home.ok(&["pool", "create", "q", "--path", &home.file("q").display().to_string()])?;
    home.ok(&["create", "q/b", "--size", "1M"])?;
    for image in ["a", "q/b"] {
        for _ in 0..3 {
            // What it asks of an export before it opens it is what a pool may be opened for.
            tools::ok("nbdinfo", &["--list", &serve.uri("")])?;
            let commands = ["-c", "write -P 7 0 4096", "-c", "flush"];
            tools::ok("qemu-io", &[&["-f", "raw"][..], &commands, &[&serve.uri(image)]].concat())?;
        }
        home.ok(&["snap", "create", &format!("{image}@s")])?;
    }
    ensure!(serve.terminate()?.success(), "nothing waits for what never comes");
    ensure!(export(&home, "q/b")?[..4096] == [7; 4096]);
    Ok(())
}
