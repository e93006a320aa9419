//! Block devices as sources and destinations, and a file system that is full. Needs root and a loop device; without, the tests
//! show as ignored.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use vellum_convert::{ErrorKind, Format, SinkOptions, Source, SourceOptions, create};
use vellum_core::Extent;
use vellum_testkit::loop_device::LoopDevice;
use vellum_testkit::tools;

const SIZE: usize = 4 << 20;

fn main() {
    let possible = rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists();
    let trial = |name: &str, test: fn() -> Result<()>| {
        Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:#}"))))
            .with_ignored_flag(!possible)
    };
    let trials = vec![
        trial("a_device_is_a_raw_disk", a_device_is_a_raw_disk),
        trial("a_device_is_written_in_place", a_device_is_written_in_place),
        trial("a_full_file_system_gets_no_half_disk", a_full_file_system_gets_no_half_disk),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// A loop device over a file of this content.
struct Loop {
    device: LoopDevice,
    file: tempfile::NamedTempFile,
}

impl Loop {
    fn new(content: &[u8]) -> Result<Self> {
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), content)?;
        Ok(Self { device: LoopDevice::attach(file.path())?, file })
    }

    fn content(&self) -> Result<Vec<u8>> {
        Ok(fs::read(self.file.path())?)
    }
}

fn a_device_is_a_raw_disk() -> Result<()> {
    let mut disk = vec![0; SIZE];
    disk[1 << 20..2 << 20].fill(3);
    let device = Loop::new(&disk)?;
    let source = Source::open(device.device.path(), SourceOptions::default())?;
    ensure!((source.format(), source.size()) == (Format::Raw, SIZE as u64));
    let covered: u64 =
        source.extents().map(|run| run.map(|run| run.extent.length())).sum::<Result<_, _>>()?;
    ensure!(covered == SIZE as u64);
    let mut copy = vec![0xaa; SIZE];
    source.read_at(&mut copy, 0)?;
    ensure!(copy == disk);
    Ok(())
}

fn a_device_is_written_in_place() -> Result<()> {
    let device = Loop::new(&vec![0xff; SIZE])?;
    let kind = |size, format, overwrite| {
        create(device.device.path(), size, SinkOptions { format, overwrite })
            .err()
            .map(|error| error.kind())
    };
    ensure!(kind(1000, Format::Raw, false) == Some(ErrorKind::Exists));
    ensure!(kind(1000, Format::Qcow2, true) == Some(ErrorKind::Unsupported));
    ensure!(kind(SIZE as u64 + 1, Format::Raw, true) == Some(ErrorKind::Invalid));

    // What was there shows through neither where zeros are written nor where nothing is, and stays past the end.
    let size = 3_000_001;
    let mut sink =
        create(device.device.path(), size, SinkOptions { format: Format::Raw, overwrite: true })?;
    sink.write(10_000, &[1; 5000])?;
    sink.zero(Extent::new(20_000, 1 << 20))?;
    sink.write(2_000_000, &[2; 70_000])?;
    sink.finish()?;
    let mut disk = vec![0; SIZE];
    disk[10_000..15_000].fill(1);
    disk[2_000_000..2_070_000].fill(2);
    disk[size as usize..].fill(0xff);
    tools::ok("blockdev", &["--flushbufs", device.device.path()])?;
    ensure!(device.content()? == disk);
    Ok(())
}

/// A small file system in memory, until it is dropped.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(size: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let options = format!("size={size}");
        let point = directory.path().to_string_lossy().into_owned();
        tools::ok("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", &point])?;
        Ok(Self(directory))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // As above.
        let _ = tools::run("umount", &[self.0.path()]);
    }
}

fn a_full_file_system_gets_no_half_disk() -> Result<()> {
    let small = Tmpfs::new("1m")?;
    for format in [Format::Raw, Format::Qcow2] {
        let path = small.0.path().join("disk");
        let mut sink = create(&path, SIZE as u64, SinkOptions { format, overwrite: false })?;
        let mut write = |i: u64| sink.write(i << 16, &[1; 1 << 16]);
        let error = (0..SIZE as u64 >> 16).find_map(|i| write(i).err());
        ensure!(error.as_ref().map(|error| error.kind()) == Some(ErrorKind::NoSpace), "{error:?}");
        // Whoever does not look at errors does not get a disk either.
        ensure!(sink.finish().is_err());
        ensure!(fs::read_dir(small.0.path())?.count() == 0);
    }
    Ok(())
}
