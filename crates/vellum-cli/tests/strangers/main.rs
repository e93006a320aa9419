//! Vellum as a stranger meets it: the program, and clients nobody here wrote.
//!
//! A test that cannot run on a machine shows as ignored, with its reason. A missing tool is a failure that names its Debian
//! package, since `cargo xtask test` installs them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod commands;
mod containers;
mod crosswise;
mod file_systems;
mod layers;
mod live;
mod many;
mod stops;
mod tools;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use vellum_testkit::Home;

fn main() -> std::process::ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    trials.extend(layers::trials());
    trials.extend(tools::trials());
    trials.extend(file_systems::trials());
    trials.extend(live::trials());
    trials.extend(commands::trials());
    trials.extend(stops::trials());
    trials.extend(many::trials());
    trials.extend(crosswise::trials());
    trials.extend(containers::trials());
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test by its name.
fn trial(name: &str, test: fn() -> Result<()>) -> Trial {
    Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:?}"))))
}

/// A test that a machine may be unable to run, and then why.
fn trial_unless(unavailable: Option<String>, name: &str, test: fn() -> Result<()>) -> Trial {
    match unavailable {
        Some(reason) => {
            trial(name, test).with_kind(format!("skipped: {reason}")).with_ignored_flag(true)
        }
        None => trial(name, test),
    }
}

fn home() -> Result<Home> {
    Home::new(env!("CARGO_BIN_EXE_vellum"))
}

/// Bytes that tell their position and a seed, none of them zero.
fn pattern(length: usize, seed: u64) -> Vec<u8> {
    (0..length as u64)
        .map(|at| {
            ((at / 512).wrapping_mul(37).wrapping_add(at % 7).wrapping_add(seed) % 255) as u8 + 1
        })
        .collect()
}

/// A home with an image `gold` of this content, frozen as `gold@s`.
fn golden(content: &[u8]) -> Result<Home> {
    let home = home()?;
    std::fs::write(home.file("gold.raw"), content)?;
    home.ok(&["import", home.file("gold.raw").to_str().expect("UTF-8"), "gold"])?;
    home.ok(&["snap", "create", "gold@s"])?;
    Ok(home)
}

/// What an image or a snapshot reads as.
fn export(home: &Home, spec: &str) -> Result<Vec<u8>> {
    let output = home.run(&["export", spec, "-"])?;
    anyhow::ensure!(
        output.status.success(),
        "export {spec}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}
