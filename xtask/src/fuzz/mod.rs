//! `cargo xtask fuzz`: builds the fuzz targets with coverage, on the toolchain that builds everything else, and runs them.
//!
//! `cargo fuzz` wants a nightly compiler for its sanitizer. Without one, coverage is a pass of LLVM that any compiler can be
//! told to make, and libFuzzer is C++ that the package `libfuzzer-sys` brings. What a sanitizer would find beyond that is
//! in unsafe code, of which there is little; debug assertions and checks of overflow are on.
//!
//! A canary goes first: a target whose mistake nobody finds by chance. If the fuzzer does not find it, it is blind.

mod report;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};

use crate::cargo::{cargo, output, run as run_command};
use report::Report;

/// Where everything is built: its flags are not those of other builds.
const TARGET_DIR: &str = "target/fuzz";
/// Where temporary files are made, if it is there: some targets make one for each input.
const IN_MEMORY: &str = "/dev/shm";
/// The target with a mistake on purpose.
const CANARY: &str = "canary";
const CANARY_SECONDS: u64 = 120;
/// The longest input in bytes, as the targets have it.
const INPUT_MAX: u32 = 6144;
/// The same for the canary, which says little.
const CANARY_MAX: u32 = 64;
/// The longest that one input may take, on a machine that does other things too.
const INPUT_SECONDS: u32 = 25;
/// The most memory of the process: the corpus, the fuzzer's own tables, and what a target states.
const MEMORY_MIB: u32 = 512;

/// Coverage as libFuzzer wants it: a counter for each edge, the places of the edges, and what is compared with what.
const FLAGS: [&str; 7] = [
    "--cfg",
    "fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// What to run, and for how long.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// One target; all of them if it is not given.
    pub target: Option<String>,
    /// How long each of them runs, its seeds included.
    pub seconds: u64,
}

impl Options {
    /// Reads `[TARGET] [--seconds N]`.
    pub fn parse(arguments: &[&str]) -> Result<Self> {
        let mut options = Self { target: None, seconds: 60 };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match *argument {
                "--seconds" => {
                    let number = rest.next().context("--seconds takes a number")?;
                    options.seconds =
                        number.parse().with_context(|| format!("'{number}' is no number"))?;
                }
                name if !name.starts_with('-') && options.target.is_none() => {
                    options.target = Some(name.to_owned());
                }
                other => bail!("fuzz takes [TARGET] [--seconds N], not '{other}'"),
            }
        }
        Ok(options)
    }
}

/// Builds the targets, looks whether the canary is found, and runs one or all of them. An error if one failed.
pub fn run(options: &Options) -> Result<()> {
    let mut names = names()?;
    if let Some(wanted) = &options.target {
        ensure!(names.contains(wanted), "no target {wanted}; there are {}", names.join(", "));
        names.retain(|name| name == wanted);
    }
    let programs = build()?;
    find_canary(&programs)?;
    let reports = run_all(&programs, &names, options.seconds)?;
    println!("\n{}", report::table(&reports));
    let failed: Vec<&str> = reports
        .iter()
        .filter(|report| report.failure.is_some())
        .map(|report| report.name.as_str())
        .collect();
    ensure!(failed.is_empty(), "inputs were found that fail: {}", failed.join(", "));
    Ok(())
}

/// The names of the targets: their programs, but for the canary.
fn names() -> Result<Vec<String>> {
    let directory = std::fs::read_dir("fuzz/fuzz_targets").context("list fuzz/fuzz_targets")?;
    let mut names = Vec::new();
    for entry in directory {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).context("a target's name")?;
        names.push(name.to_owned());
    }
    names.retain(|name| name != CANARY);
    names.sort_unstable();
    Ok(names)
}

/// Builds all programs and says where they are. With a target named, the flags are for it alone: what runs while things are
/// built has no fuzzer that it could be linked with.
fn build() -> Result<PathBuf> {
    let version = output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not say what it runs on")?;
    let arguments = ["build", "--package", "vellum-fuzz", "--bins", "--profile", "fuzz"];
    run_command(
        cargo(&arguments)
            .args(["--target", host, "--target-dir", TARGET_DIR])
            .env("RUSTFLAGS", FLAGS.join(" ")),
    )?;
    Ok(Path::new(TARGET_DIR).join(host).join("fuzz"))
}

/// A program of libFuzzer with what every run is told. Relative paths are of the root of the repository.
fn program(path: PathBuf, seconds: u64, input_max: u32, artifacts: &str) -> Command {
    let mut program = Command::new(path);
    program.args([
        format!("-max_total_time={seconds}"),
        format!("-max_len={input_max}"),
        format!("-timeout={INPUT_SECONDS}"),
        format!("-rss_limit_mb={MEMORY_MIB}"),
        format!("-artifact_prefix={artifacts}/"),
        "-print_final_stats=1".to_owned(),
    ]);
    if Path::new(IN_MEMORY).is_dir() {
        program.env("TMPDIR", IN_MEMORY);
    }
    program
}

fn find_canary(programs: &Path) -> Result<()> {
    let artifacts = format!("{TARGET_DIR}/canary");
    std::fs::create_dir_all(&artifacts).with_context(|| format!("create {artifacts}"))?;
    let mut canary = program(programs.join(CANARY), CANARY_SECONDS, CANARY_MAX, &artifacts);
    let found = canary.output().context("run the canary")?;
    let said = String::from_utf8_lossy(&found.stderr);
    let report = Report::read(CANARY, &said, None);
    ensure!(
        !found.status.success() && said.contains("the canary was found"),
        "the canary was not found within {CANARY_SECONDS} s: the fuzzer is blind\n{}",
        report::tail(&said)
    );
    println!("the canary was found after {} inputs", report.inputs);
    Ok(())
}

/// Runs targets, as many at once as there are processors.
fn run_all(programs: &Path, names: &[String], seconds: u64) -> Result<Vec<Report>> {
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    let waiting = Mutex::new(names.iter());
    let work = || {
        let mut reports = Vec::new();
        while let Some(name) = waiting.lock().expect("nobody panics with it").next() {
            reports.push(run_one(programs, name, seconds)?);
        }
        Ok(reports)
    };
    let mut reports = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        let done = workers.into_iter().map(|worker| worker.join().expect("it does not panic"));
        done.collect::<Result<Vec<Vec<Report>>>>()
    })?
    .concat();
    reports.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(reports)
}

/// Runs a target: from what earlier runs found, which is not kept in the repository, and its seeds, which are.
fn run_one(programs: &Path, name: &str, seconds: u64) -> Result<Report> {
    let [corpus, artifacts, seeds] =
        ["corpus", "artifacts", "seeds"].map(|directory| format!("fuzz/{directory}/{name}"));
    for directory in [&corpus, &artifacts] {
        std::fs::create_dir_all(directory).with_context(|| format!("create {directory}"))?;
    }
    let done = program(programs.join(name), seconds, INPUT_MAX, &artifacts)
        .args([&corpus, &seeds])
        .output()
        .with_context(|| format!("run {name}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    let failure = (!done.status.success()).then(|| done.status.to_string());
    let report = Report::read(name, &said, failure);
    if report.failure.is_some() {
        println!(
            "\n{name}:\n{}\nto run an input again: cargo run --package vellum-fuzz --bin {name} -- FILE",
            report::tail(&said)
        );
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_and_seconds_are_read_in_any_order() {
        let parsed = |arguments: &[&str]| Options::parse(arguments).unwrap();
        assert_eq!(parsed(&[]), Options { target: None, seconds: 60 });
        let layer = Options { target: Some("layer".to_owned()), seconds: 5 };
        assert_eq!(parsed(&["layer", "--seconds", "5"]), layer);
        assert_eq!(parsed(&["--seconds", "5", "layer"]), layer);
        for bad in [&["--seconds"][..], &["--seconds", "x"], &["one", "two"], &["--jobs"]] {
            assert!(Options::parse(bad).is_err(), "{bad:?}");
        }
    }
}
