//! Runs of fio, and what they say.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::workload::{ALTERNATION, Amount, WRITES, Workload};

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
    /// The longest latency, microseconds.
    pub max_us: f64,
    /// How many there were.
    pub requests: f64,
    /// What the device wrote for each, in bytes, where that was looked at.
    pub device_bytes: f64,
}

/// By what fio reaches an image.
#[derive(Clone, Copy, Debug)]
pub enum Client<'a> {
    /// NBD, at this address.
    Nbd(&'a str),
    /// librbd, in its own process.
    Rbd {
        /// The cluster's configuration.
        conf: &'a Path,
        /// The pool.
        pool: &'a str,
        /// The image.
        image: &'a str,
    },
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
    max: f64,
    #[serde(default)]
    percentile: std::collections::BTreeMap<String, f64>,
}

/// Runs a workload against an image. The data written is random, so that no peer gains by zeros.
pub fn run(client: &Client<'_>, workload: &Workload, size: u64) -> Result<Sample> {
    let mut fio = command(client, size, workload.pattern, workload.block, workload.depth);
    fio.arg("--output-format=json");
    match workload.amount {
        Amount::Bytes(bytes) => fio.arg(format!("--io_size={}", bytes.min(size))),
        Amount::Seconds(seconds) => fio.arg("--time_based").arg(format!("--runtime={seconds}")),
    };
    parse(&ended_well(&mut fio)?, workload.writes())
}

/// Writes every other piece of an image.
pub fn alternate(uri: &str, size: u64) -> Result<()> {
    let mut fio = command(&Client::Nbd(uri), size, "write", ALTERNATION, 4);
    fio.arg("--zonemode=strided");
    fio.arg(format!("--zonesize={ALTERNATION}")).arg(format!("--zoneskip={ALTERNATION}"));
    fio.arg(format!("--io_size={}", size / 2));
    ended_well(&mut fio).map(|_| ())
}

/// A client that writes steadily, until it is dropped.
#[derive(Debug)]
pub struct Writer(Child);

impl Writer {
    /// Starts it.
    pub fn start(uri: &str, size: u64) -> Result<Self> {
        let mut fio = command(&Client::Nbd(uri), size, "randwrite", 4096, 1);
        // A thread, since a process of its own would outlive the one that is killed.
        fio.args(["--thread", "--time_based", "--runtime=1d"]).arg(format!("--rate_iops={WRITES}"));
        let child = fio.stdout(Stdio::null()).spawn().context("run fio; apt-get install fio")?;
        Ok(Self(child))
    }

    /// Fails if it does not write any more.
    pub fn still_writes(&mut self) -> Result<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the client that was to write meanwhile ended with {status}"),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(client: &Client<'_>, size: u64, pattern: &str, block: u64, depth: u32) -> Command {
    let mut fio = Command::new("fio");
    fio.args(["--name=bench", "--randrepeat=1"])
        .args(["--refill_buffers=0", "--scramble_buffers=1", "--allow_mounted_write=0"])
        .arg(format!("--randseed={SEED}"))
        .arg(format!("--rw={pattern}"))
        .arg(format!("--bs={block}"))
        .arg(format!("--iodepth={depth}"))
        .arg(format!("--size={size}"));
    match client {
        Client::Nbd(uri) => fio.arg("--ioengine=nbd").arg(format!("--uri={uri}")),
        Client::Rbd { conf, pool, image } => fio
            .env("CEPH_CONF", conf)
            .args(["--ioengine=rbd", "--clientname=admin"])
            .arg(format!("--pool={pool}"))
            .arg(format!("--rbdname={image}")),
    };
    fio
}

fn ended_well(fio: &mut Command) -> Result<Vec<u8>> {
    let output = fio.output().context("run fio; apt-get install fio")?;
    ensure!(output.status.success(), "fio failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
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
        max_us: direction.clat_ns.max / 1e3,
        requests: direction.total_ios as f64,
        device_bytes: f64::NAN,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_behind_fios_notes() {
        let json = br#"note: both iodepth >= 1 and synchronous I/O engine
{"jobs":[{"error":0,"read":{"total_ios":0,"iops":0,"clat_ns":{"mean":0,"max":0}},
"write":{"total_ios":7,"iops":1500.5,"clat_ns":{"mean":2000,"max":12000,"percentile":{"99.000000":9000}}}}]}"#;
        let sample = parse(json, true).unwrap();
        let Sample { iops, mean_us, p99_us, max_us, requests, .. } = sample;
        assert_eq!((iops, mean_us, p99_us, max_us, requests), (1500.5, 2.0, 9.0, 12.0, 7.0));
        assert!(parse(json, false).is_err());
    }
}
