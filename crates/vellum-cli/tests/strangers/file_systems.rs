//! File systems on clones, through nbdfuse and a loop device.

use std::path::Path;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use vellum_testkit::block_device::{self, BlockDevice};
use vellum_testkit::{Home, Serve, tools};

use crate::{export, home, trial_unless};

pub fn trials() -> Vec<Trial> {
    let cannot = block_device::unavailable();
    vec![
        trial_unless(cannot.clone(), "ext4_lives_on_a_clone_while_a_sibling_is_in_use", || {
            lives_on_a_clone(&["mkfs.ext4", "-q"], &["e2fsck", "-f", "-n"])
        }),
        trial_unless(cannot, "xfs_lives_on_a_clone_while_a_sibling_is_in_use", || {
            lives_on_a_clone(&["mkfs.xfs", "-q"], &["xfs_repair", "-n"])
        }),
    ]
}

/// A parent with a file system is made through one export, then two clones of it are used at the same time.
fn lives_on_a_clone(mkfs: &[&str], fsck: &[&str]) -> Result<()> {
    let home = home()?;
    home.ok(&["create", "--size", "320M", "gold"])?;
    let serve = Serve::start(&home)?;
    on_device(&home, &serve, "gold", |device| {
        tools::ok(mkfs[0], &[&mkfs[1..], &[device.path()]].concat())?;
        device.with_mount(&home.file("mount-gold"), |dir| fill(dir, "gold"))
    })?;
    home.ok(&["snap", "create", "gold@s"])?;
    let before = export(&home, "gold@s")?;
    for child in ["one", "two"] {
        home.ok(&["clone", "gold@s", child])?;
    }
    std::thread::scope(|scope| -> Result<()> {
        let clones = ["one", "two"].map(|child| {
            let (home, serve) = (&home, &serve);
            scope.spawn(move || use_clone(home, serve, child, fsck))
        });
        clones
            .into_iter()
            .try_for_each(|clone| clone.join().expect("the test itself does not panic"))
    })?;
    ensure!(export(&home, "gold@s")? == before, "the parent changed");
    ensure!(serve.terminate()?.success());
    Ok(())
}

fn use_clone(home: &Home, serve: &Serve, child: &str, fsck: &[&str]) -> Result<()> {
    // Two mounts of one XFS need different ids, or the kernel refuses the second.
    let options = format!("mount-{child}");
    on_device(home, serve, child, |device| {
        if fsck[0] == "xfs_repair" {
            tools::ok("xfs_admin", &["-U", "generate", device.path()])?;
        }
        device.with_mount(&home.file(&options), |dir| {
            check(dir, "gold")?;
            std::fs::remove_dir_all(dir.join("gold"))?;
            fill(dir, child)
        })?;
        device.with_mount(&home.file(&options), |dir| check(dir, child))?;
        tools::ok(fsck[0], &[&fsck[1..], &[device.path()]].concat()).map(|_| ())
    })
}

fn on_device(
    home: &Home,
    serve: &Serve,
    image: &str,
    work: impl FnOnce(&BlockDevice) -> Result<()>,
) -> Result<()> {
    let device = BlockDevice::attach(&serve.uri(image), &home.file(&format!("fuse-{image}")))?;
    work(&device)?;
    device.detach()
}

fn fill(dir: &Path, name: &str) -> Result<()> {
    let files = dir.join(name);
    std::fs::create_dir(&files)?;
    for number in 0..200 {
        std::fs::write(files.join(number.to_string()), content(name, number))?;
    }
    tools::ok("sync", &["-f", dir.to_str().expect("UTF-8")]).map(|_| ())
}

fn check(dir: &Path, name: &str) -> Result<()> {
    for number in 0..200 {
        let read = std::fs::read(dir.join(name).join(number.to_string()))?;
        ensure!(read == content(name, number).into_bytes(), "file {number} of {name}");
    }
    Ok(())
}

fn content(name: &str, number: usize) -> String {
    format!("{name} {number}\n").repeat(50 + number * 29 % 5000)
}
