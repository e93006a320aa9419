//! Processes of a test: asked to end, and waited for with an end to patience; and the test's own, until it has closed its files.

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How long a process may take to end.
const END_MAX: Duration = Duration::from_secs(60);

/// Sends SIGTERM.
pub fn terminate(child: &Child) -> Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a process id")?;
    Ok(kill_process(pid, Signal::TERM)?)
}

/// Waits for the end, and says with which exit code, if it was not killed.
pub fn end(child: &mut Child) -> Result<Option<i32>> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if began.elapsed() > END_MAX {
            let _ = child.kill();
            bail!("the process has not ended after {END_MAX:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until this process has no file open in a directory, for what closes its files on threads of its own.
pub fn closed(directory: &Path) -> Result<()> {
    let began = Instant::now();
    while let Some(open) = one_open_in(directory)? {
        ensure!(began.elapsed() <= END_MAX, "{open:?} has not been closed after {END_MAX:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn one_open_in(directory: &Path) -> Result<Option<std::path::PathBuf>> {
    let descriptors = std::fs::read_dir("/proc/self/fd")?;
    // One that was closed meanwhile has no target.
    let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    Ok(targets.into_iter().find(|target| target.starts_with(directory)))
}
