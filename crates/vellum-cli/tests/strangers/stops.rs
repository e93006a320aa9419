//! Commands that are told to stop in the middle: they end soon, and what was half done is gone.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vellum_testkit::nbd::Client;
use vellum_testkit::{Home, Serve, process};

use crate::{export, golden, home, pattern, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("an_import_that_is_stopped_leaves_no_image", import),
        trial("an_import_that_is_stopped_while_it_waits_for_its_input_ends", import_of_nothing),
        trial("an_import_whose_name_was_taken_meanwhile_leaves_no_image", import_too_late),
        trial("an_export_to_a_file_that_is_stopped_leaves_nothing", export_to_file),
        trial("an_export_that_nobody_reads_can_be_stopped_and_leaves_no_snapshot", export_to_pipe),
        trial("an_export_to_a_pipe_that_nobody_opens_can_be_stopped", export_to_fifo),
        trial("a_flatten_that_is_stopped_leaves_the_image_free", flatten),
    ]
}

const MIB: usize = 1 << 20;
/// Some machines are fast: a command must be in the middle when it is stopped.
const SIZES: [usize; 4] = [32 * MIB, 128 * MIB, 512 * MIB, 2048 * MIB];

/// Starts a command whose messages are kept.
fn start(home: &Home, arguments: &[&str]) -> Result<Child> {
    let mut command = home.command(arguments);
    Ok(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// Stops it, and looks whether it says so.
fn stop(child: &mut Child) -> Result<Option<i32>> {
    process::terminate(child)?;
    let code = process::end(child)?;
    let mut said = String::new();
    child.stderr.take().context("a pipe")?.read_to_string(&mut said)?;
    ensure!(code != Some(1) || said.contains("stopped"), "{said}");
    Ok(code)
}

/// A file in which every other block is data, which takes the longest to import.
fn comb(home: &Home, size: usize) -> Result<String> {
    let path = home.file("comb.raw");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
    let tooth = [pattern(4096, 1), vec![0; 4096]].concat();
    for _ in 0..size / tooth.len() {
        file.write_all(&tooth)?;
    }
    file.flush()?;
    Ok(path.to_str().context("UTF-8")?.to_owned())
}

/// Waits until something is so; `false` if the command ended before.
fn is_so(child: &mut Child, mut look: impl FnMut() -> Result<bool>) -> Result<bool> {
    while child.try_wait()?.is_none() {
        if look()? {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(false)
}

fn import() -> Result<()> {
    for size in SIZES {
        let home = home()?;
        let raw = comb(&home, size)?;
        let mut child = start(&home, &["import", &raw, "image"])?;
        let began = is_so(&mut child, || Ok(home.ok(&["ls"])?.contains("image.importing-")))?;
        if began && stop(&mut child)? == Some(1) {
            ensure!(home.ok(&["ls"])?.is_empty(), "{}", home.ok(&["ls"])?);
            let left: Vec<_> =
                std::fs::read_dir(home.home().join("pools/default/layers"))?.collect();
            ensure!(left.is_empty(), "{left:?}");
            return Ok(());
        }
    }
    anyhow::bail!("every import was complete before it could be stopped")
}

fn import_of_nothing() -> Result<()> {
    let home = home()?;
    let mut child = start(&home, &["import", "-", "image"])?;
    child.stdin.as_mut().context("a pipe")?.write_all(&pattern(MIB, 1))?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(stop(&mut child)? == Some(1));
    ensure!(home.ok(&["ls"])?.is_empty());
    Ok(())
}

fn import_too_late() -> Result<()> {
    let home = home()?;
    let mut child = start(&home, &["import", "-", "image"])?;
    let mut pipe = child.stdin.take().context("a pipe")?;
    pipe.write_all(&pattern(MIB, 1))?;
    std::thread::sleep(Duration::from_millis(300));
    home.ok(&["create", "--size", "1M", "image"])?;
    drop(pipe);
    ensure!(process::end(&mut child)? == Some(4), "the name is taken");
    ensure!(home.ok(&["ls"])?.lines().count() == 2, "{}", home.ok(&["ls"])?);
    // And one that is taken from the beginning is refused before anything is read.
    home.fails(4, &["import", "/nowhere/at/all", "image"])?;
    Ok(())
}

fn export_to_file() -> Result<()> {
    for size in SIZES {
        let home = home()?;
        let raw = comb(&home, size)?;
        home.ok(&["import", &raw, "image"])?;
        let out = home.dir().join("out");
        std::fs::create_dir(&out)?;
        let mut child =
            start(&home, &["export", "image", out.join("a.raw").to_str().context("UTF-8")?])?;
        let began = is_so(&mut child, || Ok(std::fs::read_dir(&out)?.next().is_some()))?;
        if began && stop(&mut child)? == Some(1) {
            let left: Vec<_> = std::fs::read_dir(&out)?.collect();
            ensure!(left.is_empty(), "{left:?}");
            return Ok(());
        }
    }
    anyhow::bail!("every export was complete before it could be stopped")
}

fn export_to_pipe() -> Result<()> {
    let home = golden(&pattern(8 * MIB, 1))?;
    let serve = Serve::start(&home)?;
    let _client = Client::connect(serve.socket(), "gold")?;
    let mut child = start(&home, &["export", "gold", "-"])?;
    let snapshots = || -> Result<usize> { Ok(home.ok(&["snap", "ls", "gold"])?.lines().count()) };
    ensure!(is_so(&mut child, || Ok(snapshots()? == 3))?, "a snapshot is taken for it");
    std::thread::sleep(Duration::from_millis(300));
    let asked = Instant::now();
    ensure!(stop(&mut child)? == Some(1));
    ensure!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    ensure!(snapshots()? == 2);
    Ok(())
}

fn export_to_fifo() -> Result<()> {
    let home = golden(&pattern(8 * MIB, 1))?;
    let fifo = home.file("fifo");
    ensure!(Command::new("mkfifo").arg(&fifo).status()?.success());
    let mut child = start(&home, &["export", "gold", fifo.to_str().context("UTF-8")?])?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(child.try_wait()?.is_none(), "it waits for a reader");
    let asked = Instant::now();
    ensure!(stop(&mut child)? == Some(1));
    ensure!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    Ok(())
}

fn flatten() -> Result<()> {
    let home = golden(&pattern(8 * MIB, 1))?;
    home.ok(&["clone", "gold@s", "child"])?;
    let mut child = start(&home, &["flatten", "child", "--rate", "1"])?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(stop(&mut child)? == Some(1));
    ensure!(home.ok(&["info", "child"])?.contains("parent"));
    home.ok(&["flatten", "child"])?;
    home.ok(&["rm", "gold"])?;
    ensure!(export(&home, "child")? == pattern(8 * MIB, 1));
    Ok(())
}
