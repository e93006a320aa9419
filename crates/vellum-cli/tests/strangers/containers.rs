//! A container that lays a boot id of its own over the kernel's: whether the machine was restarted cannot be known there.

use std::path::Path;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use vellum_testkit::mounted::Kind;
use vellum_testkit::nbd::Client;
use vellum_testkit::{Serve, tools};

use crate::{golden, pattern, trial_unless};

pub fn trials() -> Vec<Trial> {
    let name = "a_boot_id_that_was_laid_over_the_kernels_is_not_believed";
    vec![trial_unless(unavailable(), name, boot_id)]
}

fn unavailable() -> Option<String> {
    Kind::Tmpfs
        .unavailable()
        .or_else(|| tools::find("unshare").is_none().then(|| "unshare is missing".to_owned()))
}

/// What stands before the program, for a namespace in which this file is the boot id.
fn container(boot_id: &Path) -> [&str; 7] {
    let script = "mount --bind \"$1\" /proc/sys/kernel/random/boot_id && shift && exec \"$@\"";
    let boot_id = boot_id.to_str().expect("a temporary path is UTF-8");
    ["unshare", "--mount", "sh", "-c", script, "sh", boot_id]
}

fn boot_id() -> Result<()> {
    let home = golden(&pattern(1 << 20, 1))?;
    let file = home.file("boot-id");
    std::fs::write(&file, "01234567-89ab-cdef-0123-456789abcdef\n")?;
    let under = container(&file);
    home.ok(&["clone", "gold@s", "child"])?;
    let serve = Serve::start_under(&home, &under, &[])?;
    let mut client = Client::connect(serve.socket(), "child")?;
    client.write(0, &pattern(4096, 2))?;
    serve.kill()?;
    // Neither inside nor outside can it be told, and both say what to set.
    let check = |command: &mut std::process::Command| -> Result<String> {
        let output = command.output()?;
        ensure!(!output.status.success(), "it is opened");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let export = ["export", "child", "-"];
    let outside = check(&mut home.command(&export))?;
    let inside = check(&mut home.command_under(&under, &export))?;
    for said in [outside, inside] {
        ensure!(said.contains("VELLUM_AFTER"), "it says {said}");
    }
    let output = home.command(&export).env("VELLUM_AFTER", "process-death").output()?;
    ensure!(output.status.success() && output.stdout[..4096] == pattern(4096, 2));
    // Somebody who may write settles it.
    let settled = home
        .command(&["discard", "child", "--offset", "4K", "--length", "4K"])
        .env("VELLUM_AFTER", "process-death")
        .output()?;
    ensure!(settled.status.success(), "{}", String::from_utf8_lossy(&settled.stderr));
    ensure!(home.run(&export)?.stdout[..4096] == pattern(4096, 2), "and then nobody asks any more");
    Ok(())
}
