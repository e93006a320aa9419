//! The only file system of a guest but the disk under test: busybox, `vellum` with its libraries, the modules of the kernel.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use vellum_testkit::tools;

use super::kernel::Kernel;

/// Drivers of the guest's disk and network, a file system, and the kernel's NBD client.
const MODULES: [&str; 5] = ["virtio_pci", "virtio_blk", "virtio_net", "xfs", "nbd"];

/// What the guest does: it mounts the disk, and gives a shell to whoever connects.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do
    insmod /modules/$module || echo "guest: module $module fails"
done
echo $GUEST_WRITEBACK > /proc/sys/vm/dirty_writeback_centisecs
echo $GUEST_WRITEBACK > /proc/sys/vm/dirty_expire_centisecs
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
if mount -t $GUEST_FILE_SYSTEM /dev/vda /disk; then
    nc -ll -p 7000 -e /bin/sh &
    echo "guest: ready"
else
    echo "guest: the disk cannot be mounted"
fi
while true; do sleep 1000; done
"#;

/// Writes the archive that a kernel is started with.
pub fn build(dir: &Path, kernel: &Kernel, vellum: &Path, programs: &[&str]) -> Result<PathBuf> {
    let root = dir.join("root");
    for name in ["bin", "modules", "proc", "sys", "dev", "tmp", "disk", "mnt"] {
        std::fs::create_dir_all(root.join(name))?;
    }
    let busybox = tools::find("busybox").context("busybox was found before")?;
    std::fs::copy(&busybox, root.join("bin/busybox"))?;
    for name in programs {
        let program = tools::find(name).with_context(|| format!("{name} is missing"))?;
        std::fs::copy(&program, root.join("bin").join(name))?;
        copy_libraries(&program, &root)?;
    }
    std::fs::copy(vellum, root.join("bin/vellum"))?;
    // What helps a debugger is most of it.
    tools::ok("strip", &[root.join("bin/vellum")])?;
    for program in [busybox.as_path(), vellum] {
        copy_libraries(program, &root)?;
    }
    copy_modules(kernel, &root.join("modules"))?;
    std::fs::write(root.join("init"), INIT)?;
    std::fs::set_permissions(root.join("init"), PermissionsExt::from_mode(0o755))?;
    let archive = dir.join("initramfs");
    let pack = "cd \"$1\" && find . | busybox cpio -o -H newc > \"$2\"";
    let (from, to) = (root.as_os_str(), archive.as_os_str());
    tools::ok("sh", &["-c".as_ref(), pack.as_ref(), "sh".as_ref(), from, to])?;
    Ok(archive)
}

/// Copies what the loader would look for, to the same places.
fn copy_libraries(program: &Path, root: &Path) -> Result<()> {
    let listed = tools::run("ldd", &[program])?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let paths = listed.split_whitespace().filter(|word| word.starts_with('/'));
    for path in paths {
        let to = root.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().context("a file lies in a directory")?)?;
        std::fs::copy(path, to)?;
    }
    Ok(())
}

/// Copies modules and what they need, and writes down the order to load them in.
fn copy_modules(kernel: &Kernel, to: &Path) -> Result<()> {
    let read = |name: &str| {
        let path = kernel.modules.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let (depends, built_in) = (read("modules.dep")?, read("modules.builtin")?);
    let depends: HashMap<&str, (&str, &str)> = depends
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (name_of(path), (path, needs)))
        .collect();
    let mut order: Vec<String> = Vec::new();
    for module in MODULES {
        let Some((path, needs)) = depends.get(module) else {
            let is_in = built_in.lines().any(|path| name_of(path) == module);
            ensure!(is_in, "{} has no module {module}", kernel.modules.display());
            continue;
        };
        // What is named last is needed first.
        for path in needs.split_whitespace().rev().chain([*path]) {
            let file = format!("{}.ko", name_of(path));
            if !order.contains(&file) {
                copy_module(&kernel.modules.join(path), &to.join(&file))?;
                order.push(file);
            }
        }
    }
    std::fs::write(to.join("order"), order.join("\n") + "\n")?;
    Ok(())
}

fn copy_module(from: &Path, to: &Path) -> Result<()> {
    if from.extension().is_some_and(|extension| extension == "xz") {
        let output =
            tools::run("xz", &["--decompress".as_ref(), "--stdout".as_ref(), from.as_os_str()])?;
        ensure!(output.status.success(), "xz cannot read {}", from.display());
        std::fs::write(to, output.stdout)?;
    } else {
        std::fs::copy(from, to)?;
    }
    Ok(())
}

fn name_of(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file)
}
