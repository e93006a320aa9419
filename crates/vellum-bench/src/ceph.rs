//! What images on Ceph cost beside those of librbd: on one cluster, which is started for it, of the same parent, with the same client.
//!
//! fio reaches librbd by its own engine, in its own process, and Vellum over NBD, by a server, as a guest would reach either. librbd's
//! cache is off: what is acknowledged is durable, as it is with Vellum. Reads are measured once more without NBD, by what `rbd bench`
//! and `vellum bench` each do in their own process. The cluster is one monitor and one storage daemon on a file.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use vellum_testkit::ceph::{Cluster, POOLS, Store};
use vellum_testkit::{Home, Serve};

use crate::fio::{self, Client, Sample};
use crate::report::Report;
use crate::target::write_random;
use crate::workload::{Amount, PLAIN, Workload};

/// Objects of the images.
const OBJECT: u64 = 4 << 20;
/// Layers above the one that holds all the data, in deep chains.
const DEEP: usize = 8;

/// Who writes, reads or flattens, and what.
const TARGETS: &[Target] = &[
    Target { name: "librbd-clone", who: Who::Librbd, shape: Shape::Clone },
    Target { name: "vellum-clone-copy-up", who: Who::Vellum("copy-up"), shape: Shape::Clone },
    Target { name: "vellum-clone-sparse", who: Who::Vellum("sparse"), shape: Shape::Clone },
    Target { name: "vellum-flat", who: Who::Vellum("sparse"), shape: Shape::Flat },
    Target { name: "librbd-depth8", who: Who::Librbd, shape: Shape::Deep },
    Target { name: "vellum-depth8-sparse", who: Who::Vellum("sparse"), shape: Shape::Deep },
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Librbd,
    /// With this layering.
    Vellum(&'static str),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    /// All its data is its own.
    Flat,
    /// Nothing is.
    Clone,
    /// Nothing is, of all but the last of a chain.
    Deep,
}

#[derive(Clone, Copy, Debug)]
struct Target {
    name: &'static str,
    who: Who,
    shape: Shape,
}

/// A workload, and of what.
struct Measured {
    workload: Workload,
    shapes: &'static [Shape],
}

const fn measured(
    name: &'static str,
    pattern: &'static str,
    depth: u32,
    amount: Amount,
    shapes: &'static [Shape],
) -> Measured {
    Measured { workload: Workload { name, pattern, depth, amount, ..PLAIN }, shapes }
}

/// The first write of each object: 4 KiB, and the next one an object further on.
const FIRST: &str = "write:4190208";
const WRITTEN: &[Shape] = &[Shape::Clone, Shape::Flat];
const MEASURED: &[Measured] = &[
    measured("ceph-first-write-4k-qd1", FIRST, 1, Amount::Bytes(u64::MAX), WRITTEN),
    measured("ceph-first-write-4k-qd16", FIRST, 16, Amount::Bytes(u64::MAX), WRITTEN),
    measured("ceph-randwrite-4k-qd16", "randwrite", 16, Amount::Seconds(10), WRITTEN),
    measured("ceph-randread-4k-qd1", "randread", 1, Amount::Seconds(10), &[Shape::Deep]),
    measured("ceph-randread-4k-qd32", "randread", 32, Amount::Seconds(10), &[Shape::Deep]),
];
/// Reads of deep chains by what each program has for it, in its own process: so many at once, so many mebibytes.
const IN_PROCESS: &[(&str, u32, u32)] =
    &[("ceph-randread-4k-qd1-in-process", 1, 24), ("ceph-randread-4k-qd32-in-process", 32, 120)];
/// Requests of this are mebibytes.
const FLATTEN: &str = "ceph-flatten-mib";

/// A cluster with a parent that `rbd` made.
struct Bench {
    /// Before the cluster, which is asked when it goes.
    home: Home,
    cluster: Cluster,
    size: u64,
}

/// Measures all of it, so many times.
pub fn measure(vellum: &Path, size: u64, rounds: usize, only: &str) -> Result<Report> {
    let bench = Bench::prepare(vellum, size)?;
    let mut report = Report::default();
    for Measured { workload, shapes } in MEASURED {
        for round in 0..rounds {
            for target in TARGETS.iter().filter(|target| shapes.contains(&target.shape)) {
                if workload.name.contains(only) {
                    let sample = bench.run(*target, workload, round)?;
                    told(workload.name, target.name, &sample);
                    report.add(workload.name, target.name, sample);
                }
            }
        }
    }
    for (name, depth, mib) in IN_PROCESS.iter().filter(|(name, ..)| name.contains(only)) {
        for round in 0..rounds {
            for target in TARGETS.iter().filter(|target| target.shape == Shape::Deep) {
                let sample = bench.read_in_process(*target, *depth, *mib, round)?;
                told(name, target.name, &sample);
                report.add(name, target.name, sample);
            }
        }
    }
    for round in 0..rounds {
        for target in TARGETS.iter().filter(|target| target.shape == Shape::Clone) {
            if FLATTEN.contains(only) {
                let sample = bench.flatten(*target, round)?;
                told(FLATTEN, target.name, &sample);
                report.add(FLATTEN, target.name, sample);
            }
        }
    }
    Ok(report)
}

fn told(workload: &str, target: &str, sample: &Sample) {
    let Sample { iops, mean_us, device_bytes, .. } = sample;
    eprintln!(
        "{workload:<26} {target:<24} {iops:>9.1} a second, {mean_us:>9.0} us, {device_bytes:>9.0} bytes each"
    );
}

fn spec(image: &str) -> String {
    format!("{}/{image}", POOLS[0])
}

impl Bench {
    fn prepare(vellum: &Path, size: u64) -> Result<Self> {
        ensure!(size.is_multiple_of(OBJECT), "the size is a multiple of 4 MiB");
        let cluster = Cluster::start(Store::Blue)?;
        let mut conf = OpenOptions::new().append(true).open(cluster.conf())?;
        writeln!(conf, "[client]\nrbd_cache = false")?;
        let home = Home::new(vellum.to_str().context("the path of vellum is UTF-8")?)?;
        let conf = cluster.conf().display().to_string();
        let pool = ["pool", "create", "ceph", "--ceph-pool", POOLS[0], "--ceph-conf", &conf];
        home.ok(&pool)?;
        let raw = home.file("gold.raw");
        write_random(&raw, size)?;
        let bench = Self { cluster, home, size };
        let raw = raw.display().to_string();
        bench.rbd(&["import", "--no-progress", &raw, &spec("gold")])?;
        bench.snapshot(Who::Librbd, "gold@s")?;
        fs::remove_file(&raw)?;
        Ok(bench)
    }

    fn rbd(&self, arguments: &[&str]) -> Result<()> {
        self.cluster.ok("rbd", arguments).map(drop)
    }

    /// A child of a snapshot of the pool.
    fn clone(&self, who: Who, parent: &str, child: &str) -> Result<()> {
        match who {
            Who::Librbd => {
                let format = ["clone", "--rbd-default-clone-format", "2"];
                self.rbd(&[&format[..], &[&spec(parent), &spec(child)]].concat())
            }
            Who::Vellum(layering) => {
                let (parent, child) = (format!("ceph/{parent}"), format!("ceph/{child}"));
                self.home.ok(&["clone", "--layering", layering, &parent, &child]).map(drop)
            }
        }
    }

    fn snapshot(&self, who: Who, snapshot: &str) -> Result<()> {
        match who {
            Who::Librbd => self.rbd(&["snap", "create", "--no-progress", &spec(snapshot)]),
            Who::Vellum(_) => {
                self.home.ok(&["snap", "create", &format!("ceph/{snapshot}")]).map(drop)
            }
        }
    }

    /// A fresh image of a shape, and all that was made for it, the last first.
    fn image(&self, target: Target, name: &str) -> Result<Vec<String>> {
        let mut made = Vec::new();
        let mut parent = "gold@s".to_owned();
        let layers = if target.shape == Shape::Deep { DEEP } else { 1 };
        for layer in 0..layers {
            let child = format!("{name}-{layer}");
            self.clone(target.who, &parent, &child)?;
            made.insert(0, child.clone());
            if layer + 1 < layers {
                parent = format!("{child}@s");
                self.snapshot(target.who, &parent)?;
            }
        }
        if target.shape == Shape::Flat {
            self.home.ok(&["flatten", &format!("ceph/{}", made[0])])?;
        }
        Ok(made)
    }

    fn remove(&self, who: Who, made: &[String]) -> Result<()> {
        for image in made {
            match who {
                Who::Librbd => {
                    let _ = self.rbd(&["snap", "purge", "--no-progress", &spec(image)]);
                    self.rbd(&["rm", "--no-progress", &spec(image)])?;
                }
                Who::Vellum(_) => drop(self.home.ok(&["rm", &format!("ceph/{image}")])?),
            }
        }
        Ok(())
    }

    fn run(&self, target: Target, workload: &Workload, round: usize) -> Result<Sample> {
        let made = self.image(target, &format!("{}-{round}", target.name))?;
        // One request for each object, where it is the first of each.
        let amount = match workload.amount {
            Amount::Bytes(_) => Amount::Bytes(self.size / OBJECT * workload.block),
            seconds => seconds,
        };
        let workload = Workload { amount, ..*workload };
        let before = self.device_bytes()?;
        let mut sample = match target.who {
            Who::Librbd => {
                let conf = self.cluster.conf();
                let client = Client::Rbd { conf: &conf, pool: POOLS[0], image: &made[0] };
                fio::run(&client, &workload, self.size)?
            }
            Who::Vellum(_) => {
                let serve = Serve::start(&self.home)?;
                let uri = serve.uri(&format!("ceph/{}", made[0]));
                let sample = fio::run(&Client::Nbd(&uri), &workload, self.size)?;
                ensure!(serve.terminate()?.success(), "vellum serve did not end well");
                sample
            }
        };
        let written = self.device_bytes()? - before;
        sample.device_bytes = written as f64 / sample.requests;
        self.remove(target.who, &made)?;
        Ok(sample)
    }

    fn read_in_process(
        &self,
        target: Target,
        depth: u32,
        mib: u32,
        round: usize,
    ) -> Result<Sample> {
        let made = self.image(target, &format!("{}-{depth}-{round}", target.name))?;
        let (depth, total) = (depth.to_string(), format!("{mib}M"));
        let what = ["bench", "--io-type", "read", "--io-size", "4K", "--io-pattern", "rand"];
        let what = [&what[..], &["--io-total", &total]].concat();
        let iops = match target.who {
            Who::Librbd => {
                let image = spec(&made[0]);
                let said = self
                    .cluster
                    .ok("rbd", &[&what[..], &["--io-threads", &depth, &image]].concat());
                let said = said?;
                let rate =
                    said.split("ops/sec:").nth(1).and_then(|rest| rest.split_whitespace().next());
                rate.context("rbd bench says how fast it was")?.parse()?
            }
            Who::Vellum(_) => {
                let image = format!("ceph/{}", made[0]);
                let more = ["--io-depth", &depth, "--format", "json", &image];
                let said = self.home.ok(&[&what[..], &more].concat())?;
                let said: serde_json::Value = serde_json::from_str(&said)?;
                said["requests_per_second"].as_f64().context("vellum bench says how fast it was")?
            }
        };
        self.remove(target.who, &made)?;
        let requests = f64::from(mib) * 256.0;
        let each = f64::from(depth.parse::<u32>()?) * 1e6 / iops;
        let (p99_us, max_us, device_bytes) = (f64::NAN, f64::NAN, f64::NAN);
        Ok(Sample { iops, mean_us: each, p99_us, max_us, requests, device_bytes })
    }

    fn flatten(&self, target: Target, round: usize) -> Result<Sample> {
        let made = self.image(target, &format!("{}-flatten-{round}", target.name))?;
        let (before, began) = (self.device_bytes()?, Instant::now());
        match target.who {
            Who::Librbd => self.rbd(&["flatten", "--no-progress", &spec(&made[0])])?,
            Who::Vellum(_) => drop(self.home.ok(&["flatten", &format!("ceph/{}", made[0])])?),
        }
        let (seconds, written) = (began.elapsed().as_secs_f64(), self.device_bytes()? - before);
        self.remove(target.who, &made)?;
        let requests = (self.size >> 20) as f64;
        let each = seconds / requests * 1e6;
        Ok(Sample {
            iops: requests / seconds,
            mean_us: each,
            p99_us: f64::NAN,
            max_us: f64::NAN,
            requests,
            device_bytes: written as f64 / requests,
        })
    }

    /// Bytes that the storage daemon has written so far.
    fn device_bytes(&self) -> Result<u64> {
        let conf = self.cluster.conf();
        let run = conf.parent().context("the configuration is in a directory")?.join("run");
        let pid = fs::read_to_string(run.join("osd.0.pid")).context("the storage daemon's pid")?;
        let io = fs::read_to_string(format!("/proc/{}/io", pid.trim()))?;
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        Ok(written.context("what the storage daemon wrote")?.parse()?)
    }
}
