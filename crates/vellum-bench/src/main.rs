//! `vellum-bench`: the workloads that measure Vellum, against the peers a user would pick instead, in the same run.
//!
//! Every figure is a ratio of medians taken side by side, since machines differ and drift; absolute figures are printed only to
//! be able to doubt the ratios. What something costs that goes on beside it is a ratio to the same thing without that, taken just
//! before. The client is fio with its NBD engine, for everybody over a Unix socket, with fixed
//! seeds. On Ceph, in [`ceph`], the peer is librbd. On files, peers are `qemu-nbd` on qcow2 (64 KiB clusters, and sub-clusters: `extended_l2=on,cluster_size=128k`) and
//! `nbdkit file`. This crate measures processes from outside; it links nothing of Vellum but what starts
//! a cluster and a server for tests.

mod cache;
mod ceph;
mod fio;
mod report;
mod server;
mod target;
mod workload;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;

use crate::fio::Sample;
use crate::report::Report;
use crate::target::{Bench, Target};
use crate::workload::Workload;

/// Measure Vellum and its peers in one run.
#[derive(Parser, Debug)]
struct Arguments {
    /// The `vellum` to measure, built with --release
    #[arg(long, default_value = "target/release/vellum")]
    vellum: PathBuf,
    /// A directory for images, on the file system to measure (some 20 GiB for the default size)
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Size of the fully written parent, in MiB
    #[arg(long, default_value_t = 4096)]
    size_mib: u64,
    /// How often each cell is measured; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only the workloads whose name contains this
    #[arg(long)]
    workload: Option<String>,
    /// Only the targets whose name contains this
    #[arg(long)]
    target: Option<String>,
    /// Measure images on Ceph instead, beside librbd, on a cluster that is started for it
    #[arg(long)]
    ceph: bool,
    /// Write all samples as JSON to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let vellum = arguments.vellum.canonicalize().with_context(|| {
        format!("{} is missing; cargo build --release -p vellum-cli", arguments.vellum.display())
    })?;
    let report = if arguments.ceph {
        let only = arguments.workload.as_deref().unwrap_or_default();
        ceph::measure(&vellum, arguments.size_mib << 20, arguments.rounds, only)?
    } else {
        on_files(&vellum, &arguments)?
    };
    print!("{}", report.to_markdown());
    if let Some(path) = arguments.json {
        std::fs::write(&path, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// The embedded engine, beside servers of files.
fn on_files(vellum: &std::path::Path, arguments: &Arguments) -> Result<Report> {
    let parent = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&parent).with_context(|| format!("create {}", parent.display()))?;
    let dir = tempfile::Builder::new().prefix("vellum-bench-").tempdir_in(&parent)?;
    let bench = Bench::prepare(dir.path(), vellum, arguments.size_mib << 20)?;
    let mut report = Report::default();
    measure(&bench, arguments, &mut report)?;
    Ok(report)
}

/// Rounds outside, targets inside: what drifts, drifts for all of them.
fn measure(bench: &Bench, arguments: &Arguments, report: &mut Report) -> Result<()> {
    let wanted = |name: &str, filter: &Option<String>| {
        filter.as_deref().is_none_or(|part| name.contains(part))
    };
    let targets = || target::ALL.iter().filter(|target| wanted(target.name(), &arguments.target));
    for workload in
        workload::ALL.iter().filter(|workload| wanted(workload.name, &arguments.workload))
    {
        for round in 0..arguments.rounds {
            for target in targets() {
                report.add(workload.name, target.name(), sample(bench, target, workload, round)?);
            }
        }
    }
    for pair in
        workload::PAIRS.iter().filter(|pair| wanted(pair.disturbed.name, &arguments.workload))
    {
        for round in 0..arguments.rounds {
            for target in targets().filter(|target| pair.targets.contains(&target.name())) {
                for workload in [&pair.alone, &pair.disturbed] {
                    let sample = sample(bench, target, workload, round)?;
                    report.add(workload.name, target.name(), sample);
                }
            }
        }
    }
    Ok(())
}

fn sample(bench: &Bench, target: &Target, workload: &Workload, round: usize) -> Result<Sample> {
    let (name, of) = (target.name(), workload.name);
    let sample =
        bench.measure(*target, workload, round).with_context(|| format!("{of} on {name}"))?;
    let Sample { iops, max_us, .. } = sample;
    eprintln!("{of:<26} {name:<24} {iops:>9.0} requests/s, the slowest {max_us:>9.0} us");
    Ok(sample)
}
