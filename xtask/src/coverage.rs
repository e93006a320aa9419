//! `cargo xtask coverage`: which lines and branches of layering, engine and protocol the tests reach.
//!
//! What it prints is read by people, line by line; there is no threshold, since a number says nothing of what is missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::cargo::{cargo, run};
use crate::packages::{self, Wanted};

/// Whose tests are run. The inputs kept for fuzzing are among them.
const RUN: &[&str] = &[
    "vellum-core",
    "vellum-disk",
    "vellum-engine",
    "vellum-image",
    "vellum-local",
    "vellum-nbd",
    "vellum-rbd",
    "vellum-rados",
    "vellum-ceph",
    "vellum-fuzz",
];

/// What is no part of the program: tests, and crates that are for tests alone.
const LEFT_OUT: &str =
    "/tests/|/tests\\.rs|/testing/|crates/vellum-(suite|sim|testkit)/|/fuzz/|/xtask/|rustc/";

/// The programs of LLVM that read what the compiler's own version writes. They come as a package; the toolchain has them only as
/// a component that not every mirror keeps.
const LLVM: &[Wanted] = &[("llvm-cov-19", "llvm-19"), ("llvm-profdata-19", "llvm-19")];

/// Runs the tests and prints a table of files, and the lines that nothing reached.
pub fn run_tests() -> Result<()> {
    packages::install_missing(&[packages::FOR_TESTS, LLVM].concat())?;
    let tool = tool()?;
    let mut test = llvm_cov(&tool, &["--no-report", "--ignore-run-fail"]);
    RUN.iter().for_each(|package| {
        test.args(["--package", package]);
    });
    run(&mut test)?;
    let report = ["report", "--show-missing-lines", "--ignore-filename-regex", LEFT_OUT];
    run(&mut llvm_cov(&tool, &report))
}

/// `cargo llvm-cov`, installed beside what is built if nobody has it.
fn tool() -> Result<PathBuf> {
    let root = Path::new("target/tools");
    let program = root.join("bin/cargo-llvm-cov");
    if !program.exists() {
        let root = root.to_string_lossy();
        run(&mut cargo(&["install", "--locked", "--root", &root, "cargo-llvm-cov@0.9.1"]))?;
    }
    if !program.exists() {
        bail!("{} was not installed", program.display());
    }
    Ok(program)
}

fn llvm_cov(tool: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(tool);
    let (what, arguments) = match arguments {
        ["report", rest @ ..] => (["llvm-cov", "report"].as_slice(), rest),
        _ => (["llvm-cov"].as_slice(), arguments),
    };
    command.args(what).arg("--branch").args(arguments);
    command.envs([("LLVM_COV", "llvm-cov-19"), ("LLVM_PROFDATA", "llvm-profdata-19")]);
    // Branches are counted by an option that the compiler of this version has, and does not call stable yet.
    command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_INCREMENTAL", "0");
    command
}
