//! One run of fio's NBD engine, and what it says.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::workload::Workload;

/// Fixed, so that every target sees the same offsets.
const SEED: u64 = 20_110_225;

/// What one run showed.
#[derive(Clone, Copy, Serialize, Debug)]
pub struct Sample {
    /// Requests completed a second.
    pub iops: f64,
    /// Mean latency, microseconds.
    pub mean_us: f64,
    /// 99th percentile of latency, microseconds.
    pub p99_us: f64,
}

#[derive(Deserialize)]
struct Output {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    error: i64,
    read: Direction,
    write: Direction,
}

#[derive(Deserialize)]
struct Direction {
    total_ios: u64,
    iops: f64,
    clat_ns: Latency,
}

#[derive(Deserialize)]
struct Latency {
    mean: f64,
    #[serde(default)]
    percentile: std::collections::BTreeMap<String, f64>,
}

/// Runs a workload against an NBD address. The data written is random, so that no peer gains by zeros.
pub fn run(uri: &str, workload: &Workload, size: u64) -> Result<Sample> {
    let total = workload.total.min(size);
    let output = Command::new("fio")
        .args(["--name=bench", "--ioengine=nbd", "--output-format=json", "--randrepeat=1"])
        .args(["--refill_buffers=0", "--scramble_buffers=1", "--allow_mounted_write=0"])
        .arg(format!("--randseed={SEED}"))
        .arg(format!("--uri={uri}"))
        .arg(format!("--rw={}", workload.pattern))
        .arg(format!("--bs={}", workload.block))
        .arg(format!("--iodepth={}", workload.depth))
        .arg(format!("--size={size}"))
        .arg(format!("--io_size={total}"))
        .output()
        .context("run fio; apt-get install fio")?;
    ensure!(output.status.success(), "fio failed: {}", String::from_utf8_lossy(&output.stderr));
    parse(&output.stdout, workload.writes())
}

fn parse(json: &[u8], writes: bool) -> Result<Sample> {
    // fio may print notes before the JSON.
    let start = json.iter().position(|byte| *byte == b'{').context("fio printed no JSON")?;
    let output: Output = serde_json::from_slice(&json[start..]).context("fio's JSON")?;
    let job = output.jobs.first().context("fio ran no job")?;
    ensure!(job.error == 0, "fio's job failed with errno {}", job.error);
    let direction = if writes { &job.write } else { &job.read };
    ensure!(direction.total_ios > 0, "fio moved nothing");
    Ok(Sample {
        iops: direction.iops,
        mean_us: direction.clat_ns.mean / 1e3,
        p99_us: direction.clat_ns.percentile.get("99.000000").copied().unwrap_or(f64::NAN) / 1e3,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_behind_fios_notes() {
        let json = br#"note: both iodepth >= 1 and synchronous I/O engine
{"jobs":[{"error":0,"read":{"total_ios":0,"iops":0,"clat_ns":{"mean":0}},
"write":{"total_ios":7,"iops":1500.5,"clat_ns":{"mean":2000,"percentile":{"99.000000":9000}}}}]}"#;
        let sample = parse(json, true).unwrap();
        assert_eq!((sample.iops, sample.mean_us, sample.p99_us), (1500.5, 2.0, 9.0));
        assert!(parse(json, false).is_err());
    }
}
