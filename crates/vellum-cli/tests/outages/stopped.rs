//! A server that is told to stop while its disk stands still: it gives up at its deadline and says so, whatever its disk does.
//!
//! What was acknowledged is there when the disk goes on; a write that never got to its end is not waited for.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::guest::disk::{Pace, VolatileDisk};
use crate::guest::{FileSystem, Guest, Parts, Server};
use crate::load::{Shared, Writer};
use crate::machine::{Machine, check, look};
use crate::record::Outage;
use crate::slow_disk::{IMAGES, SLOW, UNWRITTEN_MAX, boot_serving};
use crate::story::{self, until};

/// How long the server is given, as it is told.
const DRAIN: [&str; 2] = ["--drain-timeout", "3"];
/// How long that may take on a busy computer, and the server's last words.
const SOON: Duration = Duration::from_secs(15);
const GIVES_UP: &str = "not everything ended and was synced within 3 s";
/// Answers before the disk stands still.
const ENOUGH: u64 = 100;

/// Stops a server of a file system, under load, while its disk stands still.
pub fn story(file_system: FileSystem) -> Result<()> {
    let seed = story::seed()?;
    let dir = tempfile::Builder::new().prefix("vellum-outage-").tempdir()?;
    let parts = Parts::gather(dir.path(), Path::new(env!("CARGO_BIN_EXE_vellum")))?;
    let (guest, disk) = boot_serving(dir.path(), &parts, file_system, &DRAIN)?;
    let told = tell(&guest, &disk.disk, seed);
    disk.disk.set_pace(Pace::Quick);
    told.with_context(|| format!("seed {seed}; the guest printed: {}", guest.printed()))
}

fn tell(guest: &Guest, disk: &VolatileDisk, seed: u64) -> Result<()> {
    let (shared, mut chance) = (Shared::of(seed), StdRng::seed_from_u64(seed));
    story::begin(guest, &shared)?;
    guest.limit_unwritten(UNWRITTEN_MAX)?;
    disk.set_pace(SLOW);
    shared.over.store(false, Ordering::SeqCst);
    let mut writers = Vec::new();
    for image in IMAGES {
        shared.record().attach(image);
        writers.push(Writer::new(&shared, image, guest.connect(image)?, chance.random()));
    }
    let (worked, stopped) = std::thread::scope(|scope| {
        let working: Vec<_> =
            writers.into_iter().map(|writer| scope.spawn(|| writer.run())).collect();
        let stopped = stop(guest, disk, &shared);
        // Also if that failed: whoever works must come to an end.
        shared.over.store(true, Ordering::SeqCst);
        disk.set_pace(Pace::Quick);
        let ended = stopped.and_then(|()| {
            until("the server is gone", || Ok(guest.exit_code().is_some()))?;
            ensure!(guest.exit_code() == Some(1), "it ends with {:?}", guest.exit_code());
            Ok(())
        });
        let worked = working.into_iter().map(|thread| thread.join().expect("no panic"));
        (worked.collect::<Result<Vec<()>>>(), ended)
    });
    stopped.and(worked.map(|_| ()))?;
    shared.record().detach_all();
    shared.record().tally.outages += 1;
    check(guest)?;
    guest.serve()?;
    look(guest, &mut shared.record(), Outage::Death)?;
    ensure!(guest.complaint().is_none(), "the kernel complains: {:?}", guest.complaint());
    eprintln!("a stop on a disk that stands still, seed {seed}: {}", shared.record().tally);
    Ok(())
}

/// Waits until the server sleeps over its disk, and tells it to stop, which must not wait for the disk.
fn stop(guest: &Guest, disk: &VolatileDisk, shared: &Shared) -> Result<()> {
    let answered = || shared.record().tally.requests.values().sum::<u64>();
    until("so many requests are answered", || Ok(answered() >= ENOUGH))?;
    disk.set_pace(Pace::Still);
    // What is not in memory has to be read before a part of it is written, and no signal ends that.
    guest.shell("echo 1 >/proc/sys/vm/drop_caches")?;
    until("the server sleeps", || Ok(guest.asleep(Server::One)? > 0))?;
    shared.over.store(true, Ordering::SeqCst);
    let asked = Instant::now();
    guest.terminate(Server::One)?;
    while !guest.printed().contains(GIVES_UP) {
        if asked.elapsed() > SOON {
            let sleep =
                "for task in /proc/$(pidof vellum)/task/*; do cat $task/comm $task/stack; done";
            bail!("it has not given up after {SOON:?}; its threads sleep: {}", guest.shell(sleep)?);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    eprintln!("it gave up after {:?}", asked.elapsed());
    ensure!(disk.held() > 0, "the disk did not stand still");
    Ok(())
}
