//! `cargo xtask check`: everything that is checked without running a test.

use anyhow::Result;

use crate::cargo::{self, cargo};
use crate::steps::Steps;
use crate::{direction, tidy};

/// Runs all checks. An error if any of them failed.
pub fn run() -> Result<()> {
    let mut steps = Steps::default();
    add(&mut steps);
    steps.finish()
}

/// Runs them as part of something larger, the fastest first.
pub fn add(steps: &mut Steps) {
    steps.run("format", || cargo::run(&mut cargo(&["fmt", "--all", "--check"])));
    steps.run("tidy", tidy::run);
    steps.run("direction", direction::run);
    steps.run("clippy", || {
        cargo::run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    });
    steps.run("rustdoc", || {
        // Programs apart from libraries: the library `vellum` and the program `vellum` would write the same pages.
        doc("--bins")?;
        doc("--lib")
    });
}

fn doc(targets: &str) -> Result<()> {
    let arguments = ["doc", "--workspace", "--no-deps", "--document-private-items", targets];
    cargo::run(cargo(&arguments).env("RUSTDOCFLAGS", "-D warnings"))
}
