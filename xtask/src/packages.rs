//! Debian packages: the programs of other people that tests and the demonstration run.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo::run;

/// A program, or the absolute path of a file, and the package that brings it; several, as `one|other`, where releases of
/// Debian differ: the first that apt knows is taken.
pub type Wanted = (&'static str, &'static str);

/// What the tests run. A package is asked for only where its program is not found: a newer one may have come another way.
pub const FOR_TESTS: &[Wanted] = &[
    ("qemu-img", "qemu-utils"),
    ("nbdkit", "nbdkit"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdfuse", "nbdfuse|libnbd-bin"),
    ("/usr/lib/python3/dist-packages/nbd.py", "python3-libnbd"),
    ("fio", "fio"),
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("fusermount3", "fuse3"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("c++", "g++"),
    ("nbd-client", "nbd-client"),
    ("ceph-mon", "ceph-mon"),
    ("ceph-osd", "ceph-osd"),
];

/// Installs, in one go, the packages whose program is not found. An error names what is missing; whether one can do without is
/// for the caller to say.
pub fn install_missing(wanted: &[Wanted]) -> Result<()> {
    // A package may push out another one whose version does not go with it; the second time brings that back.
    for _ in 0..2 {
        let packages = missing(wanted, is_there);
        if packages.is_empty() {
            return Ok(());
        }
        install(&packages)?;
    }
    let still = missing(wanted, is_there);
    ensure!(still.is_empty(), "installed, but without the expected program: {}", still.join(" "));
    Ok(())
}

fn install(packages: &[&'static str]) -> Result<()> {
    let list = chosen(packages).join(" ");
    ensure!(is_root()?, "as root, run: apt-get install {list}");
    println!("installing {list}");
    apt_get(&["update"]).with_context(|| format!("to install {list}"))?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(chosen(packages)); // again: apt knows more by now
    apt_get(&arguments)
}

fn missing(wanted: &[Wanted], is_there: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut packages: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| !is_there(program))
        .map(|(_, package)| *package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn chosen(packages: &[&'static str]) -> Vec<&'static str> {
    packages.iter().map(|package| choose(package, is_known)).collect()
}

/// The first of the alternatives that is known, or else the last, for apt to complain about.
fn choose(package: &str, is_known: impl Fn(&str) -> bool) -> &str {
    let mut alternatives = package.split('|');
    let last = alternatives.next_back().unwrap_or(package);
    alternatives.find(|name| is_known(name)).unwrap_or(last)
}

fn is_known(package: &str) -> bool {
    let shown = Command::new("apt-cache").args(["show", package]).output();
    shown.is_ok_and(|output| output.status.success() && !output.stdout.is_empty())
}

fn is_there(program: &str) -> bool {
    if program.starts_with('/') {
        return Path::new(program).exists();
    }
    // Programs that make file systems lie in sbin, which is not in everybody's PATH.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(OsStr::new);
    std::env::split_paths(&path)
        .chain(sbin.iter().map(Into::into))
        .any(|directory| directory.join(program).is_file())
}

fn is_root() -> Result<bool> {
    let output = Command::new("id").arg("--user").output().context("run id")?;
    Ok(output.stdout.trim_ascii() == b"0")
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    run(Command::new("apt-get")
        .arg("--quiet")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_found_is_asked_for_and_only_once() {
        let wanted = [("a", "both"), ("b", "both"), ("c", "other"), ("d", "there")];
        assert_eq!(missing(&wanted, |program| program == "d"), ["both", "other"]);
        assert!(missing(&wanted, |_| true).is_empty());
    }

    #[test]
    fn the_first_alternative_that_apt_knows_is_taken() {
        assert_eq!(choose("new|old", |name| name == "new"), "new");
        assert_eq!(choose("new|old", |name| name == "old"), "old");
        assert_eq!(choose("one", |_| false), "one");
    }

    #[test]
    fn a_program_is_looked_for_in_the_path_and_a_file_where_it_is() {
        assert!(is_there("sh") && is_there("/bin/sh"));
        assert!(!is_there("no-such-program-anywhere") && !is_there("/no/such/file"));
    }
}
