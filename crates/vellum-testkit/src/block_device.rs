//! An export as a block device: nbdfuse and a loop device, with a file system on top.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::loop_device::LoopDevice;
use crate::tools;

/// Why no block device can be made here, if so.
pub fn unavailable() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root for loop devices and mounts".to_owned());
    }
    ["/dev/fuse", "/dev/loop-control"]
        .iter()
        .find(|device| !Path::new(device).exists())
        .map(|device| format!("{device} is missing"))
}

/// A loop device over a FUSE file over an NBD export. Taken apart when it is dropped.
#[derive(Debug)]
pub struct BlockDevice {
    nbdfuse: Child,
    file: PathBuf,
    /// None once it was taken apart.
    device: Option<LoopDevice>,
}

impl BlockDevice {
    /// Makes a device of an export; `dir` is an empty directory of its own.
    pub fn attach(uri: &str, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let file = dir.join("nbd");
        let mut nbdfuse = tools::command("nbdfuse")?.arg(dir).arg(uri).spawn()?;
        let started = Instant::now();
        while !file.exists() {
            if let Some(status) = nbdfuse.try_wait()? {
                bail!("nbdfuse ended with {status}");
            }
            ensure!(
                started.elapsed() < Duration::from_secs(20),
                "nbdfuse has not mounted {}",
                dir.display()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let device = Some(LoopDevice::attach(&file)?);
        Ok(Self { nbdfuse, file, device })
    }

    /// The device's path.
    pub fn path(&self) -> &str {
        self.device.as_ref().map_or("", LoopDevice::path)
    }

    /// Mounts it, lets `work` use the directory, and unmounts it.
    pub fn with_mount(&self, point: &Path, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        std::fs::create_dir_all(point)?;
        let point_text = point.to_str().context("a temporary path is UTF-8")?;
        tools::ok("mount", &[self.path(), point_text])?;
        let worked = work(point);
        let unmounted = unmount(point_text);
        worked?;
        unmounted
    }

    /// Takes it apart, and reports what goes wrong on the way.
    pub fn detach(mut self) -> Result<()> {
        self.device.take().map_or(Ok(()), LoopDevice::detach)?;
        self.unmount_fuse()?;
        ensure!(self.nbdfuse.wait()?.success(), "nbdfuse failed");
        Ok(())
    }

    fn unmount_fuse(&self) -> Result<()> {
        let dir =
            self.file.parent().and_then(Path::to_str).context("the directory of the FUSE file")?;
        // The loop device may hold the file for a moment after it was detached.
        let started = Instant::now();
        while let Err(error) = tools::ok("fusermount3", &["-u", dir]) {
            ensure!(started.elapsed() < Duration::from_secs(20), "unmount {dir}: {error}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// Unmounts. A program that another thread is about to start has the descriptors of this process for a moment, and with them the files
/// that were open on the mount.
fn unmount(point: &str) -> Result<()> {
    let started = Instant::now();
    loop {
        match tools::ok("umount", &[point]) {
            Err(error)
                if error.to_string().contains("busy")
                    && started.elapsed() < Duration::from_secs(20) =>
            {
                std::thread::sleep(Duration::from_millis(50));
            }
            unmounted => return unmounted.map(|_| ()),
        }
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        if let Some(device) = self.device.take() {
            drop(device);
            let _ = self.unmount_fuse();
            let _ = self.nbdfuse.kill();
            let _ = self.nbdfuse.wait();
        }
    }
}
