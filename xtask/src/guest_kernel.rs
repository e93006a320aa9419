//! The kernel of the guests that tests boot: Debian's package, taken apart beside what is built, and installed nowhere.
//!
//! The small one for clouds: it has all drivers of a virtual machine, and is a third to download.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cargo::{output, run};

const PACKAGE: &str = "linux-image-cloud-amd64";

/// Fetches it, if it is not there. Needs no right to install anything.
pub fn fetch() -> Result<()> {
    let place = target()?.join("guest-kernel");
    if !cfg!(target_arch = "x86_64") || place.exists() {
        return Ok(());
    }
    let part = place.with_extension("part");
    if part.exists() {
        std::fs::remove_dir_all(&part)?;
    }
    std::fs::create_dir_all(&part)?;
    let depends = output(Command::new("apt-cache").args(["depends", PACKAGE]))?;
    let package = newest(&depends).with_context(|| format!("apt knows no {PACKAGE}"))?;
    println!("fetching {package}");
    run(Command::new("apt-get").args(["--quiet", "download", package]).current_dir(&part))?;
    unpack(&part)?;
    std::fs::rename(&part, &place)?;
    Ok(())
}

fn unpack(directory: &Path) -> Result<()> {
    let archive = only(directory)?;
    run(Command::new("dpkg").arg("--extract").arg(&archive).arg(directory))?;
    std::fs::remove_file(archive)?;
    let modules = only(&directory.join("lib/modules"))?;
    let version = modules.file_name().context("a directory has a name")?;
    // Debian does that when a kernel is installed. It is in sbin, which is not in everybody's PATH.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    run(Command::new("depmod").arg("--basedir").arg(directory).arg(version).env("PATH", path))
}

/// What a package that stands for the newest of its kind leads to.
fn newest(depends: &str) -> Option<&str> {
    depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).map(str::trim)
}

fn only(directory: &Path) -> Result<PathBuf> {
    let mut entries = std::fs::read_dir(directory)?;
    let first = entries.next().with_context(|| format!("{} is empty", directory.display()))?;
    Ok(first?.path())
}

/// Where everything is built: this program lies in a profile's directory there.
fn target() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find out where this program lies")?;
    let target = own.ancestors().nth(2).map(Path::to_owned);
    target.context("this program lies two levels below what is built")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_that_another_leads_to_is_its_first_dependency() {
        let printed =
            "linux-image-cloud-amd64\n  Depends: linux-image-1-cloud-amd64\n  Recommends: x\n";
        assert_eq!(newest(printed), Some("linux-image-1-cloud-amd64"));
        assert_eq!(newest("nothing\n"), None);
    }
}
