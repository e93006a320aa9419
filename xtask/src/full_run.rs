//! `cargo xtask test`: everything that must hold, on a machine with Rust and apt and nothing else.

use anyhow::Result;

use crate::cargo::{self, cargo};
use crate::steps::Steps;
use crate::{fuzz, packages};

/// How long each fuzz target runs.
const FUZZ_SECONDS: u64 = 10;

/// Runs all of it. An error if any of it failed.
pub fn run() -> Result<()> {
    let mut steps = Steps::default();
    steps.run("packages", || {
        // Not a failure by itself: whatever needs one of them fails and says which.
        if let Err(error) = packages::install_missing(packages::FOR_TESTS) {
            println!("some packages are missing, and tests that need them will fail: {error:#}");
        }
        Ok(())
    });
    crate::check::add(&mut steps);
    steps.run("build", || cargo::run(&mut cargo(&["build", "--workspace", "--all-targets"])));
    steps.run("test", || cargo::run(&mut cargo(&["test", "--workspace", "--no-fail-fast"])));
    steps.run("fuzz", || fuzz::run(&fuzz::Options { target: None, seconds: FUZZ_SECONDS }));
    steps.finish()
}
