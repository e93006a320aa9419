//! What is done to an open image, by whoever has it open.

use std::time::Duration;

use vellum_core::Extent;
use vellum_engine::{Error, ErrorKind, Result};
use vellum_image::{DiscardPolicy, FlattenOptions, Job, MappedKind};

use crate::Image;
use crate::control::protocol::{Answer, Entry, Request, snapshot_name};

/// Entries of a map in one answer: some hundred kilobytes.
const ENTRIES_MAX: usize = 10_000;
/// How often a flatten tells how far it has come.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// How long a flatten that was asked to stop may take to reach a convenient point.
const STOP_GRACE: Duration = Duration::from_secs(1);
/// More copies at once than this only take memory.
const COPIES_MAX: usize = 64;

/// Carries out a request. Everything but a flatten runs to its end or fails; a flatten ends with `Stopped` soon after `stop`
/// does, or may be dropped, and what it copied stays.
pub(crate) async fn carry_out(
    image: &Image,
    request: &Request,
    progress: impl Fn(u64, u64),
    stop: impl Future<Output = ()>,
) -> Result<Answer> {
    match request {
        Request::Snapshot { name, auto } => {
            image.snapshot(snapshot_name(name)?, *auto).await?;
        }
        Request::Flatten { copies, bytes_per_second } => {
            let copies = (*copies).clamp(1, COPIES_MAX);
            flatten(
                image,
                FlattenOptions { copies, bytes_per_second: *bytes_per_second },
                progress,
                stop,
            )
            .await?;
        }
        Request::Discard { offset, length, to_parent } => {
            let at = Extent::checked(*offset, *length)
                .ok_or_else(|| Error::new(ErrorKind::Invalid, "the end of the extent overflows"))?;
            let policy = if *to_parent { DiscardPolicy::Inherit } else { DiscardPolicy::Zero };
            image.discard(at, policy, true).await?;
        }
        Request::Sync => image.sync().await?,
        Request::Map { offset } => {
            let map = image.map(Extent::between(*offset, image.size()), ENTRIES_MAX).await?;
            return Ok(Answer::Map { entries: map.iter().map(Entry::from).collect() });
        }
        Request::Usage => return usage(image).await,
        Request::Status => return Ok(Answer::Status { clients: 0 }),
    }
    Ok(Answer::Done)
}

/// Flattens, and tells how far it has come a few times a second, and at the end.
async fn flatten(
    image: &Image,
    options: FlattenOptions,
    progress: impl Fn(u64, u64),
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let job = Job::default();
    let tell = || {
        let now = job.progress();
        progress(now.done, now.total);
    };
    let flatten = image.flatten(options, &job);
    // Asks it to stop, and then has no more patience with it than this: one that keeps within a limit may sleep for hours.
    let stopped = async {
        stop.await;
        job.stop();
        tokio::time::sleep(STOP_GRACE).await;
    };
    tokio::pin!(flatten, stopped);
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    loop {
        tokio::select! {
            result = &mut flatten => {
                tell();
                return result.map(|_| ());
            }
            () = &mut stopped => return Err(crate::control::stopped()),
            _ = ticks.tick() => tell(),
        }
    }
}

/// What the top layer of an image holds, in steps of bounded size.
async fn usage(image: &Image) -> Result<Answer> {
    let (mut data_bytes, mut zero_bytes) = (0, 0);
    let mut rest = Extent::new(0, image.size());
    while !rest.is_empty() {
        let map = image.map(rest, ENTRIES_MAX).await?;
        for entry in map.iter().filter(|entry| entry.depth == 1) {
            match entry.kind {
                MappedKind::Data => data_bytes += entry.at.length(),
                MappedKind::Zero => zero_bytes += entry.at.length(),
                MappedKind::Nothing => {}
            }
        }
        let end = map.last().map(|entry| entry.at.end()).filter(|end| *end > rest.offset());
        rest = rest
            .split(
                end.ok_or_else(|| Error::new(ErrorKind::Io, "a map ends before the image does"))?,
            )
            .1;
    }
    Ok(Answer::Usage { data_bytes, zero_bytes })
}
