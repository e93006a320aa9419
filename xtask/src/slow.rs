//! `cargo xtask slow`: what takes too long for `cargo xtask test`, by the same code with more rounds.

use anyhow::Result;

use crate::cargo::{self, cargo};
use crate::steps::Steps;
use crate::{full_run, packages};

/// Runs all of it, about half an hour. An error if any of it failed.
pub fn run() -> Result<()> {
    let mut steps = Steps::default();
    full_run::add_packages(&mut steps, packages::FOR_TESTS);
    steps.run("outages", || {
        // One at a time: each of them is a load, and keeps a machine busy.
        cargo::test(&mut cargo(&[
            "test",
            "-p",
            "vellum-cli",
            "--test",
            "outages",
            "--",
            "--ignored",
            "--test-threads=1",
        ]))
    });
    steps.finish()
}
