//! `vellum bench`: how fast an image is, without a client in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;
use vellum::{Image, Vellum};
use vellum_core::{ByteSize, Extent, ImageSpec};
use vellum_image::image::Open;
use vellum_image::{MappedKind, WriteOptions};

use crate::failure::{Failure, Result};
use crate::output::Output;

/// `vellum bench ...`
#[derive(Args, Debug)]
pub struct Arguments {
    /// [pool/]image, or [pool/]image@snap to read
    spec: ImageSpec,
    /// What to do
    #[arg(long, value_enum)]
    io_type: IoType,
    /// Bytes a request
    #[arg(long, default_value = "4K")]
    io_size: ByteSize,
    /// Requests in flight
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    io_depth: u32,
    /// Where
    #[arg(long, value_enum, default_value_t)]
    io_pattern: Pattern,
    /// Bytes in all
    #[arg(long, default_value = "1G")]
    io_total: ByteSize,
    /// Stop after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    time: u64,
    /// Where random begins
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Allow a bench that writes to overwrite an image that is not empty
    #[arg(long)]
    destroy_data: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum IoType {
    /// Read
    Read,
    /// Write
    Write,
    /// Both, half and half
    Rw,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
enum Pattern {
    /// At random, aligned to the size of a request
    #[default]
    Rand,
    /// One after another
    Seq,
}

/// What is done to an image, and when to stop.
struct Plan {
    io_type: IoType,
    io_size: u64,
    slots: u64,
    requests: u64,
    until: Instant,
    pattern: Pattern,
    next: AtomicU64,
}

#[derive(Serialize)]
struct Answer {
    requests: u64,
    bytes: u64,
    seconds: f64,
    requests_per_second: f64,
    bytes_per_second: f64,
    latency_us: Latency,
}

#[derive(Serialize)]
struct Latency {
    mean: f64,
    p50: f64,
    p99: f64,
    max: f64,
}

/// Runs the bench.
pub async fn run(vellum: &Vellum, arguments: Arguments, output: &mut Output) -> Result {
    let writes = arguments.io_type != IoType::Read;
    let what = match &arguments.spec.snapshot {
        Some(_) if writes => {
            return Err(Failure::usage("a snapshot takes no writes; name the image"));
        }
        Some(snapshot) => Open::Snapshot(snapshot.clone()),
        None if writes => Open::Own,
        None => Open::Read,
    };
    let image = vellum.open_image(&arguments.spec, what).await?;
    if writes && !arguments.destroy_data && !is_empty(&image).await? {
        return Err(Failure::usage(format!(
            "{} is not empty, and a bench that writes overwrites it; add --destroy-data if that is meant",
            arguments.spec
        )));
    }
    let answer = measure(&image, &arguments).await?;
    image.close().await?;
    if output.is_json() {
        return output.json(&answer);
    }
    output.line(&format!(
        "{} requests of {} in {:.2} s: {:.0} requests/s, {:#}/s",
        answer.requests,
        arguments.io_size,
        answer.seconds,
        answer.requests_per_second,
        ByteSize(answer.bytes_per_second as u64)
    ))?;
    let latency = &answer.latency_us;
    output.line(&format!(
        "latency: mean {:.1} us, median {:.1} us, 99 % {:.1} us, highest {:.1} us",
        latency.mean, latency.p50, latency.p99, latency.max
    ))
}

async fn is_empty(image: &Image) -> Result<bool> {
    let map = image.map(Extent::new(0, image.size()), 2).await?;
    Ok(map.iter().all(|entry| entry.kind == MappedKind::Nothing))
}

async fn measure(image: &Image, arguments: &Arguments) -> Result<Answer> {
    let io_size = arguments.io_size.0;
    if io_size == 0 || io_size > 32 << 20 || io_size > image.size() {
        return Err(Failure::usage(format!(
            "--io-size must be from 1 to 32M and within the image of {} bytes",
            image.size()
        )));
    }
    let plan = Arc::new(Plan {
        io_type: arguments.io_type,
        io_size,
        slots: image.size() / io_size,
        requests: arguments.io_total.0.div_ceil(io_size),
        until: Instant::now() + Duration::from_secs(arguments.time),
        pattern: arguments.io_pattern,
        next: AtomicU64::new(0),
    });
    let started = Instant::now();
    let workers: Vec<_> = (0..arguments.io_depth)
        .map(|worker| {
            tokio::spawn(work(
                image.clone(),
                plan.clone(),
                arguments.seed.wrapping_add(worker.into()),
            ))
        })
        .collect();
    let mut latencies = Vec::new();
    for worker in workers {
        latencies.extend(worker.await.map_err(anyhow::Error::from)??);
    }
    if arguments.io_type != IoType::Read {
        image.sync().await?;
    }
    Ok(answer(latencies, started.elapsed(), io_size))
}

async fn work(image: Image, plan: Arc<Plan>, seed: u64) -> Result<Vec<f32>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut data = vec![0; plan.io_size as usize];
    random.fill(&mut data[..]);
    let data = Bytes::from(data);
    let mut latencies = Vec::new();
    loop {
        let number = plan.next.fetch_add(1, Ordering::Relaxed);
        if number >= plan.requests || Instant::now() >= plan.until {
            return Ok(latencies);
        }
        let slot = match plan.pattern {
            Pattern::Rand => random.random_range(0..plan.slots),
            Pattern::Seq => number % plan.slots,
        };
        let write = match plan.io_type {
            IoType::Read => false,
            IoType::Write => true,
            IoType::Rw => random.random(),
        };
        let at = Extent::new(slot * plan.io_size, plan.io_size);
        let begun = Instant::now();
        if write {
            image.write(at.offset(), data.clone(), WriteOptions::default()).await?;
        } else {
            read(&image, at).await?;
        }
        latencies.push(begun.elapsed().as_secs_f32() * 1e6);
    }
}

async fn read(image: &Image, at: Extent) -> Result {
    let mut buffer = image.buffers().take(at.len_usize());
    if !image.try_read(at, &mut buffer, &mut Default::default()) {
        let length = buffer.len();
        image.read(at, buffer, 0..length).await.1?;
    }
    Ok(())
}

fn answer(mut latencies: Vec<f32>, took: Duration, io_size: u64) -> Answer {
    latencies.sort_unstable_by(f32::total_cmp);
    let at = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        latencies.get(index.min(latencies.len().saturating_sub(1))).copied().unwrap_or(0.0).into()
    };
    let requests = latencies.len() as u64;
    let seconds = took.as_secs_f64();
    // Nothing adds up to -0.0 by `sum`.
    let sum = latencies.iter().fold(0.0, |sum, latency| sum + f64::from(*latency));
    Answer {
        requests,
        bytes: requests * io_size,
        seconds,
        requests_per_second: requests as f64 / seconds,
        bytes_per_second: (requests * io_size) as f64 / seconds,
        latency_us: Latency {
            mean: sum / requests.max(1) as f64,
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_took_no_time() {
        let answer = answer(Vec::new(), Duration::from_millis(1), 4096);
        let latency = answer.latency_us;
        let all = [latency.mean, latency.p50, latency.p99, latency.max];
        assert!(all.iter().all(|it| *it == 0.0 && it.is_sign_positive()), "{all:?}");
    }
}
