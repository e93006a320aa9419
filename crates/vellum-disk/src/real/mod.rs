//! [`RealDisk`]: the file systems of this machine.

mod file;

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{OFlags, StatVfsMountFlags, fchown, fstatfs, statfs, statvfs};
use rustix::process::{Gid, Uid};

use crate::pool::Pool;
use crate::{BootId, Directory, Disk, FileSystem, OpenMode, own_thread};
pub use file::RealFile;

/// How a [`RealDisk`] works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// At most this many threads do what may wait.
    pub threads_max: usize,
    /// At most this many threads besides do what waits for the medium: syncs, and writes that are durable by themselves.
    /// However slow it is, reads and opens do not queue behind them.
    pub sync_threads_max: usize,
}

impl Default for Options {
    /// Sixteen threads and eight: enough to keep a fast device busy, few enough not to matter.
    fn default() -> Self {
        Self { threads_max: 16, sync_threads_max: 8 }
    }
}

/// The file systems of this machine. Clones share the threads.
#[derive(Clone, Debug)]
pub struct RealDisk(Threads);

/// Threads that may wait.
#[derive(Clone, Debug)]
struct Threads {
    pool: Pool,
    /// For the medium.
    syncs: Pool,
}

impl Threads {
    /// Runs what takes a moment and waits at most for other work on names and lengths: here, if this thread may wait.
    async fn run_briefly<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        if own_thread::may_wait() { job() } else { self.pool.run(job).await }
    }
}

impl RealDisk {
    /// A disk with threads of its own.
    pub fn new(options: Options) -> Self {
        Self(Threads {
            pool: Pool::new(options.threads_max),
            syncs: Pool::new(options.sync_threads_max),
        })
    }
}

impl Default for RealDisk {
    fn default() -> Self {
        Self::new(Options::default())
    }
}

/// An open directory of this machine.
#[derive(Debug)]
pub struct RealDirectory {
    open: Arc<fs::File>,
    threads: Threads,
}

impl Directory for RealDirectory {
    async fn sync(&self) -> io::Result<()> {
        let open = self.open.clone();
        self.threads.syncs.run(move || open.sync_all()).await
    }
}

impl Disk for RealDisk {
    type File = RealFile;
    type Directory = RealDirectory;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<RealFile> {
        let (threads, path) = (self.0.clone(), path.to_owned());
        self.0.run_briefly(move || open(threads, &path, mode)).await
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        self.0
            .run_briefly(move || {
                fs::DirBuilder::new().mode(0o755).create(&path)?;
                take_owner_of_parent(&fs::File::open(&path)?, &path)
            })
            .await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        self.0.pool.run(move || fs::remove_file(path)).await
    }

    async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        self.0.pool.run(move || fs::remove_dir(path)).await
    }

    async fn list_dir(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let path = path.to_owned();
        self.0.pool.run(move || fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect()).await
    }

    async fn open_dir(&self, path: &Path) -> io::Result<RealDirectory> {
        let (threads, path) = (self.0.clone(), path.to_owned());
        let open = self.0.run_briefly(move || open_dir(&path)).await?;
        Ok(RealDirectory { open: Arc::new(open), threads })
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let path = path.to_owned();
        self.0.syncs.run(move || fs::File::open(path)?.sync_all()).await
    }

    async fn file_system(&self, path: &Path) -> io::Result<FileSystem> {
        let path = path.to_owned();
        self.0.pool.run(move || file_system(&path)).await
    }

    async fn boot_id(&self) -> io::Result<Option<BootId>> {
        self.0.pool.run(boot_id).await
    }
}

fn open(threads: Threads, path: &Path, mode: OpenMode) -> io::Result<RealFile> {
    let mut options = OpenOptions::new();
    // A pipe in the place of a file must not be waited for.
    options.read(true).mode(0o644).custom_flags(OFlags::NONBLOCK.bits() as i32);
    match mode {
        OpenMode::Read => {}
        OpenMode::ReadWrite => {
            options.write(true);
        }
        OpenMode::Create => {
            options.write(true).create_new(true);
        }
        OpenMode::ReadWriteOrCreate => {
            options.write(true).create(true);
        }
    }
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    if matches!(mode, OpenMode::Create | OpenMode::ReadWriteOrCreate) {
        take_owner_of_parent(&file, path)?;
    }
    RealFile::new(file, threads)
}

fn open_dir(path: &Path) -> io::Result<fs::File> {
    let flags = (OFlags::DIRECTORY | OFlags::CLOEXEC).bits() as i32;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// What the superuser makes in somebody's pool belongs to that somebody.
fn take_owner_of_parent(file: &fs::File, path: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let Some(parent) = path.parent() else { return Ok(()) };
    let (parent, own) = (fs::metadata(parent)?, file.metadata()?);
    if (parent.uid(), parent.gid()) != (own.uid(), own.gid()) {
        fchown(file, Some(Uid::from_raw(parent.uid())), Some(Gid::from_raw(parent.gid())))?;
    }
    Ok(())
}

/// File systems by the magic numbers of linux/magic.h, and whether locks and caches on them are this kernel's alone.
const FILE_SYSTEMS: &[(u64, &str, bool)] = &[
    (0xef53, "ext4", true),
    (0x5846_5342, "xfs", true),
    (0x9123_683e, "btrfs", true),
    (0x0102_1994, "tmpfs", true),
    (0x794c_7630, "overlayfs", true),
    (0x2fc1_2fc1, "zfs", true),
    (0xf2f5_2010, "f2fs", true),
    (0xca45_1a4e, "bcachefs", true),
    (0x7371_7368, "squashfs", true),
    (0xe0f5_e1e2, "erofs", true),
    (0x9660, "iso9660", true),
    (0x8584_58f6, "ramfs", true),
    (0x6969, "nfs", false),
    (0xff53_4d42, "smb", false),
    (0xfe53_4d42, "smb", false),
    (0x517b, "smb", false),
    (0x0102_1997, "9p", false),
    (0x00c3_6400, "ceph", false),
    (0x6573_5546, "fuse", false),
];

fn file_system(path: &Path) -> io::Result<FileSystem> {
    let magic = (statfs(path)?.f_type as u64) & 0xffff_ffff;
    let volume = statvfs(path)?;
    let known = FILE_SYSTEMS.iter().find(|(number, ..)| *number == magic);
    let (name, local) = match known {
        Some((_, name, local)) => ((*name).to_owned(), *local),
        // What is not known to be remote is taken for local: new local file systems are more common than new remote ones.
        None => (format!("{magic:#x}"), true),
    };
    Ok(FileSystem {
        name,
        local,
        read_only: volume.f_flag.contains(StatVfsMountFlags::RDONLY),
        available: volume.f_bavail.saturating_mul(volume.f_frsize),
    })
}

const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// Containers lay a file of their own over the boot id; then it is not procfs that answers.
fn boot_id() -> io::Result<Option<BootId>> {
    let file = match fs::File::open("/proc/sys/kernel/random/boot_id") {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if fstatfs(&file)?.f_type as u64 != PROC_SUPER_MAGIC {
        return Ok(None);
    }
    let text = io::read_to_string(file)?;
    Ok(parse_boot_id(&text))
}

fn parse_boot_id(text: &str) -> Option<BootId> {
    let digits: Vec<u8> = text
        .trim()
        .chars()
        .filter(|c| *c != '-')
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    Some(BootId(bytes.try_into().ok()?)).filter(|_| digits.len() == 32)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{Durability, File};

    #[test]
    fn a_boot_id_is_thirty_two_digits() {
        let id = parse_boot_id("01234567-89ab-cdef-0123-456789abcdef\n").unwrap();
        assert_eq!(id.0[..4], [0x01, 0x23, 0x45, 0x67]);
        for bad in [
            "",
            "0123",
            "g1234567-89ab-cdef-0123-456789abcdef",
            "01234567-89ab-cdef-0123-456789abcdef00",
        ] {
            assert_eq!(parse_boot_id(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_full_file_system_says_so_with_its_number() {
        // /dev/full answers every write with ENOSPC. It is no file, so it is not opened as one.
        let full = OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        let full = RealFile::new(full, RealDisk::default().0).unwrap();
        let write = full.write_at(vec![Bytes::from_static(b"x")], 0, Durability::AtSync).await;
        assert_eq!(write.unwrap_err().raw_os_error(), Some(28));
    }

    #[tokio::test]
    async fn what_is_no_regular_file_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let device = dir.path().join("device");
        std::os::unix::fs::symlink("/dev/zero", &device).unwrap();
        let disk = RealDisk::default();
        for path in [&pipe, &device, &dir.path().to_owned()] {
            for mode in [OpenMode::Read, OpenMode::ReadWrite, OpenMode::ReadWriteOrCreate] {
                assert!(disk.open(path, mode).await.is_err(), "{path:?} {mode:?}");
            }
        }
    }

    #[tokio::test]
    async fn the_boot_id_of_this_machine_does_not_change() {
        let disk = RealDisk::default();
        assert_eq!(disk.boot_id().await.unwrap(), disk.boot_id().await.unwrap());
    }
}
