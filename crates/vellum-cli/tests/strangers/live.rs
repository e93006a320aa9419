//! Operations on an image that a running server holds, while fio writes and verifies.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use vellum_testkit::nbd::Client;
use vellum_testkit::{Serve, tools};

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

fn drain() -> Result<()> {
    let home = golden(&pattern(4 * MIB, 4))?;
    let serve = Serve::start(&home)?;
    let mut client = Client::connect(serve.socket(), "gold")?;
    client.write(4096, &[9; 8192])?;
    ensure!(serve.terminate()?.success(), "a drain is a clean end");
    ensure!(export(&home, "gold")?[4096..12288] == [9; 8192]);
    Ok(())
}
