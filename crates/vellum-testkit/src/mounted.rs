//! File systems for tests to put a pool on: small, empty, and gone with the test. One on a loop device can be taken back to an
//! earlier moment, as a volume is that is rolled back in place, and be made to stop as one does whose device fails it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::loop_device::LoopDevice;
use crate::tools;

/// How long a file system may take to give back the space of a removed file.
const GIVEN_BACK_MAX: Duration = Duration::from_secs(10);

/// How often a device is copied until it stands still meanwhile.
const KEEP_ATTEMPTS: usize = 100;

/// Which file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// In memory.
    Tmpfs,
    /// On a loop device.
    Ext4,
    /// On a loop device; with reverse mapping and reflinks, as mkfs.xfs makes it unasked.
    Xfs,
    /// On a loop device.
    Btrfs,
}

impl Kind {
    /// What mount(8) calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tmpfs => "tmpfs",
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
            Kind::Btrfs => "btrfs",
        }
    }

    /// Why none can be mounted here, if so.
    pub fn unavailable(self) -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("mounting needs root".to_owned());
        }
        if self == Kind::Tmpfs {
            return None;
        }
        if !Path::new("/dev/loop-control").exists() {
            return Some("/dev/loop-control is missing".to_owned());
        }
        if !self.is_in_the_kernel() {
            // It may be a module that nobody has asked for yet; whether that helped is looked at.
            let _ = std::process::Command::new("modprobe").arg(self.name()).output();
        }
        (!self.is_in_the_kernel()).then(|| format!("this kernel has no {}", self.name()))
    }

    fn is_in_the_kernel(self) -> bool {
        let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        known.lines().any(|line| line.split_whitespace().last() == Some(self.name()))
    }

    fn mkfs(self) -> Option<(&'static str, &'static [&'static str])> {
        match self {
            Kind::Tmpfs => None,
            Kind::Ext4 => Some(("mkfs.ext4", &["-q", "-F"])),
            Kind::Xfs => Some(("mkfs.xfs", &["-q"])),
            Kind::Btrfs => Some(("mkfs.btrfs", &["-q"])),
        }
    }
}

/// A mounted file system, until it is dropped.
#[derive(Debug)]
pub struct Mounted {
    kind: Kind,
    /// The loop device that it is on, if it is on one. It stays the same when the file system is mounted again.
    device: Option<LoopDevice>,
    directory: tempfile::TempDir,
}

impl Mounted {
    /// Makes and mounts one of this many bytes. Fails where [`Kind::unavailable`] says why.
    pub fn new(kind: Kind, size: u64) -> Result<Self> {
        let mut this = Self { kind, device: None, directory: tempfile::tempdir()? };
        std::fs::create_dir(this.path())?;
        let path = this.path();
        let point = path.to_str().context("a temporary path is UTF-8")?;
        match kind.mkfs() {
            None => {
                let size = format!("size={size}");
                tools::ok("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", point])?;
            }
            Some((mkfs, arguments)) => {
                let disk = this.disk();
                std::fs::File::create(&disk)?.set_len(size)?;
                let disk = disk.to_str().context("a temporary path is UTF-8")?;
                tools::ok(mkfs, &[arguments, &[disk]].concat())?;
                this.device = Some(LoopDevice::attach(&this.disk())?);
                this.mount()?;
            }
        }
        Ok(this)
    }

    fn device(&self) -> Result<&str> {
        self.device.as_ref().map(LoopDevice::path).context("it is on no device")
    }

    /// What the loop device reads and writes.
    fn disk(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    /// What [`keep`](Self::keep) kept.
    fn kept(&self) -> PathBuf {
        self.directory.path().join("kept")
    }

    fn mount(&self) -> Result<()> {
        let path = self.path();
        let point = path.to_str().context("a temporary path is UTF-8")?;
        tools::ok("mount", &["-t", self.kind.name(), self.device()?, point]).map(|_| ())
    }

    fn unmount(&self) -> Result<()> {
        tools::ok("umount", &[self.path()]).map(|_| ())
    }

    /// Keeps what is on the device at one moment, as a snapshot of a volume does; what the file system has not written yet is
    /// not in it.
    pub fn keep(&self) -> Result<()> {
        let (disk, kept) = (self.disk(), self.kept());
        for _ in 0..KEEP_ATTEMPTS {
            copy(&disk, &kept)?;
            // What reads the same again did not change in between, so all of it was there at the moment between.
            if is_same(&disk, &kept)? {
                return Ok(());
            }
        }
        bail!("{} never stood still while it was copied", disk.display())
    }

    /// The same, while the file system is frozen: then all of it is on the device.
    pub fn keep_frozen(&self) -> Result<()> {
        tools::ok("fsfreeze", &[Path::new("--freeze"), &self.path()])?;
        let kept = self.keep();
        tools::ok("fsfreeze", &[Path::new("--unfreeze"), &self.path()])?;
        kept
    }

    /// Takes the device back to what was kept, and mounts it again. Nobody may have a file open there.
    pub fn go_back(&self) -> Result<()> {
        self.unmount()?;
        copy(&self.kept(), &self.disk())?;
        // Whoever looked at the device meanwhile may have left what it was in the cache.
        tools::ok("blockdev", &["--flushbufs", self.device()?])?;
        self.mount()
    }

    /// Lets the file system shut itself down, as it does when its device fails it: what it has not written by then is lost. Then
    /// mounts it again. `leave` makes everybody close what they have open there.
    pub fn shut_down(&self, leave: impl FnOnce() -> Result<()>) -> Result<()> {
        let point = self.path();
        let point = point.to_str().context("a temporary path is UTF-8")?;
        tools::ok("xfs_io", &["-x", "-c", "shutdown", point])?;
        leave()?;
        self.unmount()?;
        self.mount()
    }

    /// Its root.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    /// Mounts it again with an option, such as `ro`.
    pub fn remount(&self, option: &str) -> Result<()> {
        let point = self.path();
        let point = point.to_str().context("a temporary path is UTF-8")?;
        tools::ok("mount", &["-o", &format!("remount,{option}"), point]).map(|_| ())
    }

    /// Takes away what [`fill`](Self::fill) wrote, and waits until its space can be used: file systems give it back a little
    /// later.
    pub fn empty(&self) -> Result<()> {
        let filler = self.filler();
        let most = filler.metadata()?.len() / 2;
        std::fs::remove_file(&filler)?;
        let began = Instant::now();
        loop {
            let found = rustix::fs::statvfs(self.path())?;
            if found.f_bavail * found.f_frsize >= most {
                return Ok(());
            }
            ensure!(began.elapsed() < GIVEN_BACK_MAX, "what was removed still takes space");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }

    /// Writes a file until nothing more fits.
    pub fn fill(&self) -> Result<()> {
        use std::io::{ErrorKind, Write};
        let mut filler = std::fs::File::create(self.filler())?;
        let bytes = vec![1; 1 << 20];
        let mut step = bytes.len();
        while step >= 512 {
            match filler.write(&bytes[..step]) {
                Ok(0) => step /= 2,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => step /= 2,
                Err(error) => return Err(error.into()),
            }
        }
        // What a file system promised to delayed allocations is not free, and may become so until they are made.
        filler.sync_all()?;
        ensure!(filler.metadata()?.len() > 0, "nothing fitted");
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open keeps it until then, and the device with it.
        let _ = tools::run("umount", &[Path::new("-l"), &self.path()]);
    }
}

/// Copies what one file holds into another, which stays the same file.
fn copy(from: &Path, to: &Path) -> Result<()> {
    tools::ok("cp", &[Path::new("--sparse=always"), from, to]).map(|_| ())
}

fn is_same(one: &Path, other: &Path) -> Result<bool> {
    let compared = tools::run("cmp", &[Path::new("--silent"), one, other])?;
    match compared.status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => bail!("cmp: {}", String::from_utf8_lossy(&compared.stderr)),
    }
}
