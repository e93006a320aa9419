//! The kernel's own NBD client, under a file system, on the machine whose server it uses: memory runs short, then the power goes.
//!
//! The kernel has to write to the server to get memory back, and the server needs memory to take what is written.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::guest::disk::{Cut, Served, VolatileDisk};
use crate::guest::{FileSystem, Guest, Parts};
use crate::machine::{check, ok};
use crate::story;

/// So many files of 50 MiB are together more than the guest has memory.
const FILES: u32 = 6;

/// Writes more than the memory holds to a file system on a clone, in both modes, and goes on until the power is cut.
pub fn story() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("vellum-outage-").tempdir()?;
    let vellum = Path::new(env!("CARGO_BIN_EXE_vellum"));
    let parts = Parts::gather_with(dir.path(), vellum, &["nbd-client", "mkfs.ext4"])?;
    let mut chance = StdRng::seed_from_u64(story::seed()?);
    for (layering, file_system) in [("sparse", FileSystem::Xfs), ("copy-up", FileSystem::Ext4)] {
        let file = dir.path().join("disk");
        file_system.make(&file)?;
        let disk = Served::start(
            VolatileDisk::open(&file, file_system.unit())?,
            &dir.path().join(layering),
        )?;
        let guest = Guest::power_on(&parts, &disk, file_system, 100)?;
        let first = first_life(&guest, layering);
        let first = first.with_context(|| format!("the guest printed: {}", guest.printed()))?;
        std::thread::sleep(Duration::from_millis(chance.random_range(1000..8000)));
        guest.switch().off()?;
        disk.disk.cut(Cut::any(&mut chance), &mut chance)?;
        let guest = Guest::power_on(&parts, &disk, file_system, 100)?;
        let second = second_life(&guest);
        let second = second.with_context(|| format!("the guest printed: {}", guest.printed()))?;
        ensure!(
            first == second,
            "synced files on a {layering} clone are {second:?}, not {first:?}"
        );
    }
    Ok(())
}

/// Makes the clone and its file system, and files that are synced; goes on writing. The sums of the files.
fn first_life(guest: &Guest, layering: &str) -> Result<Vec<String>> {
    guest.wait_until_up()?;
    guest.serve()?;
    ok(guest, &["create", "base", "--size", "900M"])?;
    ok(guest, &["clone", "--layering", layering, "base", "work"])?;
    attach(guest)?;
    guest.shell("mkfs.ext4 -q /dev/nbd0")?;
    guest.shell("mount -t ext4 /dev/nbd0 /mnt")?;
    let mut written = Vec::new();
    for file in 0..FILES {
        written.push(sum(&guest.shell(&write(file))?));
    }
    guest.shell("sync")?;
    guest.shell("umount /mnt && nbd-client -d /dev/nbd0 && echo 3 > /proc/sys/vm/drop_caches")?;
    attach(guest)?;
    guest.shell("mount -t ext4 /dev/nbd0 /mnt")?;
    let read = sums(guest)?;
    ensure!(written == read, "it was {written:?} when written, and reads as {read:?}");
    guest.shell(&format!("({} </dev/null >/dev/null 2>&1 &)", write(FILES)))?;
    Ok(read)
}

/// What writes a file, no two of the same content, and prints its sum.
fn write(file: u32) -> String {
    format!(
        "dd if=/dev/urandom of=/tmp/mib bs=1M count=1 2>/dev/null; \
         for part in $(seq 50); do echo $part; cat /tmp/mib; done | tee /mnt/file{file} | md5sum"
    )
}

fn sums(guest: &Guest) -> Result<Vec<String>> {
    (0..FILES).map(|file| Ok(sum(&guest.shell(&format!("md5sum < /mnt/file{file}"))?))).collect()
}

/// The sums of the files after the power was cut.
fn second_life(guest: &Guest) -> Result<Vec<String>> {
    guest.wait_until_up()?;
    check(guest)?;
    guest.serve()?;
    attach(guest)?;
    guest.shell("mount -t ext4 /dev/nbd0 /mnt")?;
    let read = sums(guest)?;
    guest.shell("umount /mnt")?;
    ensure!(guest.complaint().is_none(), "the guest's kernel complains: {:?}", guest.complaint());
    Ok(read)
}

fn attach(guest: &Guest) -> Result<()> {
    guest.shell("nbd-client 127.0.0.1 10809 /dev/nbd0 -N work >/dev/null").map(|_| ())
}

fn sum(printed: &str) -> String {
    printed.split_whitespace().next().unwrap_or_default().to_owned()
}
