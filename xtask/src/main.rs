//! Everything this repository automates: `cargo xtask COMMAND`.
//!
//! [`check`], [`full_run`] and [`slow`] are lists of [`steps`]; what a step does is a module each: [`packages`],
//! [`guest_kernel`], [`coverage`], [`tidy`] with [`promises`], [`direction`], [`fuzz`].
//! There is no check that only runs elsewhere: `.ci/run` is `cargo xtask test`.

mod cargo;
mod check;
mod coverage;
mod demo;
mod dependencies;
mod direction;
mod failures;
mod full_run;
mod fuzz;
mod guest_kernel;
mod packages;
mod promises;
mod slow;
mod steps;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo      build vellum and show its main job on a real file system image
  test      install the Debian packages that tests need, run every check, build everything, run every test,
            and fuzz each target for some seconds
  slow      the tests that take too long for that: hundreds of kills, tens of power cuts, half an hour
  check     format, tidy, direction of dependencies, clippy, documentation
  fuzz      [TARGET] [--seconds N]: build the fuzz targets with coverage and run one or all of them, for 60 s each
  coverage  run the tests of layering, engine and protocol, and say which lines and branches they did not reach
  tidy      only what this repository asks of its files, in a second or two";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match command(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Its message only: a backtrace leads into this program, not to what failed.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command(arguments: &[String]) -> Result<()> {
    std::env::set_current_dir(root()?).context("enter the root of the repository")?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["demo"] => demo::run(),
        ["test"] => full_run::run(),
        ["slow"] => slow::run(),
        ["check"] => check::run(),
        ["coverage"] => coverage::run_tests(),
        ["fuzz", ref rest @ ..] => fuzz::run(&fuzz::Options::parse(rest)?),
        ["tidy"] => tidy::run(),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("no such command: '{}'\n\n{USAGE}", arguments.join(" ")),
    }
}

fn root() -> Result<PathBuf> {
    let own = std::env::var_os("CARGO_MANIFEST_DIR").context("run it as `cargo xtask`")?;
    let root = PathBuf::from(own).parent().map(PathBuf::from);
    root.context("the root of the repository lies above xtask")
}
