//! Other people's programs.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

/// Programs the tests need, and the Debian package each comes in.
const PACKAGES: &[(&str, &str)] = &[
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdfuse", "nbdfuse"),
    ("fio", "fio"),
    ("mkfs.ext4", "e2fsprogs"),
    ("filefrag", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("xfs_io", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("blockdev", "util-linux"),
    ("fsfreeze", "util-linux"),
    ("cp", "coreutils"),
    ("cmp", "diffutils"),
    ("losetup", "mount"),
    ("mount", "mount"),
    ("umount", "mount"),
    ("fusermount3", "fuse3"),
];

/// Where a program is; also in `/sbin`, which is not on everybody's path.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(extra)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// A command for a program that must be there.
pub fn command(program: &str) -> Result<Command> {
    let package =
        PACKAGES.iter().find(|(name, _)| *name == program).map_or("?", |(_, package)| package);
    let path = find(program)
        .with_context(|| format!("{program} is missing: apt-get install {package}"))?;
    Ok(Command::new(path))
}

/// Runs a program to its end, whatever that is.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Result<Output> {
    command(program)?.args(arguments).output().with_context(|| format!("run {program}"))
}

/// Runs a program that must succeed, and returns what it printed.
pub fn ok<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Result<String> {
    output(command(program)?.args(arguments))
}

/// What a command prints that must succeed.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {printed}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(printed)
}

/// Runs a qemu-io command on an export; a pattern that does not verify is an error.
pub fn qemu_io(uri: &str, script: &str) -> Result<String> {
    let printed = ok("qemu-io", &["-f", "raw", "-c", script, uri])?;
    ensure!(!printed.contains("failed"), "qemu-io -c '{script}' {uri}: {printed}");
    Ok(printed)
}
