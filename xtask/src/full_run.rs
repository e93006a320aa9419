//! `cargo xtask test`: everything that must hold, on a machine with Rust and apt and nothing else.

use anyhow::Result;

use crate::cargo::{self, cargo};
use crate::packages::Wanted;
use crate::steps::Steps;
use crate::{fuzz, guest_kernel, packages};

/// How long each fuzz target runs.
const FUZZ_SECONDS: u64 = 10;

/// Runs all of it. An error if any of it failed.
pub fn run() -> Result<()> {
    let mut steps = Steps::default();
    add_packages(&mut steps, packages::FOR_TESTS);
    crate::check::add(&mut steps);
    steps.run("build", || cargo::run(&mut cargo(&["build", "--workspace", "--all-targets"])));
    steps.run("test", || cargo::test(&mut cargo(&["test", "--workspace", "--no-fail-fast"])));
    steps.run("fuzz", || fuzz::run(&fuzz::Options { target: None, seconds: FUZZ_SECONDS }));
    steps.finish()
}

/// What tests need of others, as part of something larger.
pub fn add_packages(steps: &mut Steps, wanted: &[Wanted]) {
    steps.run("packages", || {
        // Not a failure by itself: whatever needs one of them fails, or shows as ignored, and says which.
        if let Err(error) = packages::install_missing(wanted) {
            println!("some packages are missing, and tests that need them will fail: {error:#}");
        }
        if let Err(error) = guest_kernel::fetch() {
            println!("no guest can be booted, and tests with one are ignored: {error:#}");
        }
        Ok(())
    });
}
