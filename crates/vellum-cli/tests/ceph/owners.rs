//! Who writes an image on Ceph: one at a time, on whatever machine, and the next one after a death.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use vellum_testkit::ceph::Cluster;
use vellum_testkit::nbd::Client;
use vellum_testkit::{Serve, tools};

use crate::{export, home};

/// How long the cluster may take to forget who was killed, and some more.
const FORGOTTEN: Duration = Duration::from_secs(120);
/// How long a command may take that waits for nobody. A watch that is left behind costs those who come next more.
const AT_ONCE: Duration = Duration::from_secs(4);

pub(crate) fn live(cluster: &Cluster) -> Result<()> {
    let home = home(cluster, "live")?;
    home.ok(&["create", "--size", "64M", "vms/a"])?;
    let serve = Serve::start(&home)?;
    let mut client = Client::connect(serve.socket(), "vms/a")?;
    client.write(0, &[1; 8192])?;
    home.ok(&["snap", "create", "vms/a@one"])?;
    client.write(4096, &[2; 8192])?;
    home.ok(&["clone", "vms/a@one", "vms/kid"])?;
    let frozen = serve.uri("vms/a@one");
    let reads = ["-r", "-f", "raw", "-c", "read -P 1 0 8k", "-c", "read -P 0 8k 4k", &frozen];
    tools::ok("qemu-io", &reads)?;
    tools::qemu_io(&serve.uri("vms/kid"), "read -P 1 0 8k")?;
    tools::qemu_io(&serve.uri("vms/kid"), "write -P 3 0 4k")?;
    ensure!(client.read(4096, 8192)? == [2; 8192]);
    // The kid is written, and then flattened, through the server that has it.
    let mut kid = Client::connect(serve.socket(), "vms/kid")?;
    kid.write(1 << 20, &[4; 4096])?;
    home.ok(&["flatten", "vms/kid"])?;
    ensure!(kid.read(4096, 4096)? == [1; 4096] && kid.read(1 << 20, 4096)? == [4; 4096]);
    drop((kid, client));
    ensure!(serve.terminate()?.success());
    ensure!(export(&home, "vms/a")?[4096..12288] == [2; 8192]);
    for image in ["vms/kid", "vms/a"] {
        home.ok(&["rm", image])?;
    }
    Ok(())
}

pub(crate) fn two_homes(cluster: &Cluster) -> Result<()> {
    let (here, there) = (home(cluster, "two")?, home(cluster, "two")?);
    here.ok(&["create", "--size", "16M", "vms/a"])?;
    let (serve, other) = (Serve::start(&here)?, Serve::start(&there)?);
    let mut client = Client::connect(serve.socket(), "vms/a")?;
    client.write(0, &[1; 4096])?;
    ensure!(Client::connect(other.socket(), "vms/a").is_err(), "an image has two writers");
    let said = there.fails(5, &["discard", "vms/a", "--offset", "0", "--length", "4K"])?;
    ensure!(said.contains("in use"), "{said}");
    // What can be asked of who has it is done there, and others are answered the same.
    there.ok(&["snap", "create", "vms/a@there"])?;
    there.fails(4, &["snap", "create", "vms/a@there"])?;
    client.write(0, &[3; 4096])?;
    ensure!(export(&there, "vms/a@there")?[..4096] == [1; 4096]);
    there.ok(&["clone", "vms/a", "vms/kid"])?;
    ensure!(export(&here, "vms/kid")?[..4096] == [3; 4096]);
    let mut kid = Client::connect(serve.socket(), "vms/kid")?;
    kid.write(0, &[4; 512])?;
    there.ok(&["flatten", "vms/kid"])?;
    ensure!(kid.read(0, 4096)? == [&[4; 512][..], &[3; 3584]].concat());
    kid.disconnect()?;
    there.ok(&["rm", "vms/kid"])?;
    let left = there.ok(&["snap", "ls", "vms/a", "--format", "json"])?;
    ensure!(!left.contains("auto-"), "a snapshot stays that goes with its last child: {left}");
    client.write(0, &[1; 4096])?;
    client.disconnect()?;
    ensure!(serve.terminate()?.success());
    let mut client = Client::connect(other.socket(), "vms/a")?;
    ensure!(client.read(0, 4096)? == [1; 4096]);
    client.write(4096, &[2; 4096])?;
    client.disconnect()?;
    ensure!(other.terminate()?.success());
    let content = export(&here, "vms/a")?;
    ensure!(content[..4096] == [1; 4096] && content[4096..8192] == [2; 4096]);
    here.ok(&["rm", "vms/a"]).map(drop)
}

pub(crate) fn killed(cluster: &Cluster) -> Result<()> {
    let home = home(cluster, "killed")?;
    home.ok(&["create", "--size", "16M", "vms/a"])?;
    let serve = Serve::start(&home)?;
    let mut client = Client::connect(serve.socket(), "vms/a")?;
    for block in 0..64_u64 {
        client.write(block * 65536, &[block as u8 + 1; 4096])?;
    }
    serve.kill()?;
    let began = Instant::now();
    let content = loop {
        match export(&home, "vms/a") {
            Ok(content) => break content,
            Err(error) if began.elapsed() > FORGOTTEN => return Err(error),
            Err(error) => ensure!(format!("{error:#}").contains("in use"), "{error:#}"),
        }
    };
    for block in 0..64_usize {
        ensure!(content[block * 65536..][..4096] == [block as u8 + 1; 4096], "block {block}");
    }
    // The bitmap that it did not write is made anew.
    let said = home.ok(&["bitmap", "check", "vms/a"])?;
    ensure!(said.contains("no bitmap that is complete"), "{said}");
    home.ok(&["bitmap", "build", "vms/a"])?;
    let said = home.ok(&["bitmap", "check", "vms/a"])?;
    ensure!(said.contains("has 1 objects, and its bitmap says so of 1"), "{said}");
    // And is written again.
    home.ok(&["discard", "vms/a", "--offset", "0", "--length", "64K", "--to", "zero"])?;
    ensure!(export(&home, "vms/a")?[..65536].iter().all(|byte| *byte == 0));
    home.ok(&["rm", "vms/a"]).map(drop)
}

pub(crate) fn fenced(cluster: &Cluster) -> Result<()> {
    let (here, there) = (home(cluster, "fenced")?, home(cluster, "fenced")?);
    for image in ["vms/a", "vms/other"] {
        here.ok(&["create", "--size", "16M", image])?;
    }
    let serve = Serve::start(&here)?;
    let mut client = Client::connect(serve.socket(), "vms/a")?;
    client.write(0, &[1; 4096])?;
    let pid = i32::try_from(serve.id()).ok().and_then(Pid::from_raw).context("a process id")?;
    kill_process(pid, Signal::STOP)?;
    let began = Instant::now();
    while let Err(error) = there.ok(&["discard", "vms/a", "--offset", "4K", "--length", "4K"]) {
        ensure!(began.elapsed() < FORGOTTEN, "{error:#}");
    }
    kill_process(pid, Signal::CONT)?;
    // What it had under way does not land any more, and what it does anew is done by another client.
    ensure!(client.write(0, &[9; 4096]).is_err(), "a server writes that was fenced");
    drop(client);
    for image in ["vms/other", "vms/a"] {
        let began = Instant::now();
        let mut client = loop {
            match Client::connect(serve.socket(), image) {
                Ok(client) => break client,
                Err(error) if began.elapsed() > FORGOTTEN => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        };
        client.write(8192, &[2; 4096])?;
        client.disconnect()?;
    }
    serve.terminate()?;
    let content = export(&there, "vms/a")?;
    ensure!(content[..4096] == [1; 4096] && content[8192..12288] == [2; 4096]);
    for image in ["vms/a", "vms/other"] {
        there.ok(&["rm", image])?;
    }
    Ok(())
}

pub(crate) fn nothing_is_left_behind(cluster: &Cluster) -> Result<()> {
    let home = home(cluster, "quick")?;
    let mut slowest = (Duration::ZERO, String::new());
    let commands: [&[&str]; 7] = [
        &["create", "--size", "16M", "vms/a"],
        &["snap", "create", "vms/a@s"],
        &["clone", "vms/a@s", "more/b"],
        &["discard", "more/b", "--offset", "0", "--length", "1M", "--to", "zero"],
        &["flatten", "more/b"],
        &["rm", "more/b"],
        &["rm", "vms/a"],
    ];
    for command in commands {
        let began = Instant::now();
        home.ok(command)?;
        slowest = slowest.max((began.elapsed(), command.join(" ")));
    }
    ensure!(slowest.0 < AT_ONCE, "somebody was waited for: {slowest:?}");
    Ok(())
}
