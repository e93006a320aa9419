//! Daemons of the cluster that die, sleep and come back under a load, and a client that the cluster turns away in the middle of a write.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use vellum_testkit::ceph::{Cluster, Store};
use vellum_testkit::nbd::Client;
use vellum_testkit::{Home, Serve};

use crate::{export, home, import_by_rbd, pattern, spec};

const MIB: usize = 1 << 20;
const SIZE: usize = 12 * MIB;
/// How long a daemon is away.
const AWAY: Duration = Duration::from_secs(2);
/// How long a request may take beside that, and how long everything does after it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client that writes until it is told to stop, and knows all that was acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    writing: JoinHandle<Result<(Vec<u8>, u32)>>,
}

impl Load {
    fn start(serve: &Serve, image: &str, mut known: Vec<u8>, seed: u64) -> Result<Self> {
        let mut client = Client::connect(serve.socket(), image)?;
        let stop = Arc::<AtomicBool>::default();
        let told = stop.clone();
        let writing = std::thread::spawn(move || {
            let (mut random, mut writes) = (StdRng::seed_from_u64(seed), 0);
            while !told.load(Ordering::SeqCst) {
                let length = random.random_range(1..9000);
                let (at, byte) = (random.random_range(0..SIZE - length), random.random());
                client.write(at as u64, &vec![byte; length])?;
                known[at..][..length].fill(byte);
                writes += 1;
                let at = random.random_range(0..SIZE - BLOCK);
                ensure!(client.read(at as u64, BLOCK as u32)? == known[at..][..BLOCK], "at {at}");
            }
            client.disconnect()?;
            Ok((known, writes))
        });
        Ok(Self { stop, writing })
    }

    fn end(self) -> Result<(Vec<u8>, u32)> {
        self.stop.store(true, Ordering::SeqCst);
        self.writing.join().map_err(|_| anyhow::anyhow!("the load panicked"))?
    }
}

const BLOCK: usize = 4096;

/// A sparse child and a plain one of an image that `rbd` made. What they hold.
fn children(cluster: &Cluster, home: &Home) -> Result<Vec<u8>> {
    let content = pattern(SIZE, 8);
    import_by_rbd(cluster, home, &content, "fault-parent")?;
    home.ok(&["clone", "--layering", "sparse", "vms/fault-parent@s", "vms/fault-sparse"])?;
    home.ok(&["clone", "--layering", "copy-up", "vms/fault-parent@s", "vms/fault-plain"])?;
    Ok(content)
}

pub(crate) fn daemons(_: &Cluster) -> Result<()> {
    // One of its own, whose storage outlives its daemon.
    let cluster = &Cluster::start(Store::Blue)?;
    let home = home(cluster, "")?;
    let content = children(cluster, &home)?;
    let serve = Serve::start(&home)?;
    let loads = [("vms/fault-sparse", 1), ("vms/fault-plain", 2)];
    let loads = loads.map(|(image, seed)| Load::start(&serve, image, content.clone(), seed));
    for daemon in ["osd.0", "mon.a"] {
        sleep(AWAY / 2);
        cluster.signal(daemon, Signal::STOP)?;
        sleep(AWAY);
        cluster.signal(daemon, Signal::CONT)?;
        sleep(AWAY / 2);
        cluster.signal(daemon, Signal::KILL)?;
        sleep(AWAY);
        cluster.start_again()?;
    }
    // And operations beside it, as soon as there is somebody to ask.
    let began = Instant::now();
    while let Err(error) = home.ok(&["snap", "create", "vms/fault-sparse@s"]) {
        ensure!(began.elapsed() < PATIENCE, "{error:#}");
    }
    home.ok(&["snap", "create", "vms/fault-plain@s"])?;
    sleep(AWAY);
    let mut known = Vec::new();
    for load in loads {
        let (content, writes) = load?.end()?;
        ensure!(writes > 100, "{writes} writes are no load");
        known.push(content);
    }
    ensure!(serve.terminate()?.success());
    ensure!(
        export(&home, "vms/fault-sparse")? == known[0]
            && export(&home, "vms/fault-plain")? == known[1]
    );
    let to = home.file("plain.raw").display().to_string();
    cluster.ok("rbd", &["export", "--no-progress", &spec("fault-plain"), &to])?;
    ensure!(std::fs::read(&to)? == known[1], "rbd reads something else");
    cluster.ok("rbd", &["object-map", "check", "--no-progress", &spec("fault-plain")])?;
    ensure!(home.ok(&["check"])?.contains("as it should be"));
    for image in ["vms/fault-sparse", "vms/fault-plain", "vms/fault-parent"] {
        home.ok(&["rm", image])?;
    }
    Ok(())
}

pub(crate) fn turned_away(cluster: &Cluster) -> Result<()> {
    let home = home(cluster, "")?;
    let content = children(cluster, &home)?;
    let serve = Serve::start(&home)?;
    let mut client = Client::connect(serve.socket(), "vms/fault-plain")?;
    let mut known = content;
    let lock = cluster.ok("rbd", &["lock", "ls", "--format", "json", &spec("fault-plain")])?;
    let lock: serde_json::Value = serde_json::from_str(&lock)?;
    let address = lock[0]["address"].as_str().context("somebody has the lock")?.to_owned();
    let turned = std::thread::scope(|scope| {
        let turn = scope.spawn(|| {
            sleep(Duration::from_millis(300));
            cluster.ok("ceph", &["osd", "blocklist", "add", &address])
        });
        let began = Instant::now();
        for round in 0_usize.. {
            let at = round * 40_961 % (SIZE - BLOCK);
            match client.write(at as u64, &[round as u8; BLOCK]) {
                Ok(()) => known[at..][..BLOCK].fill(round as u8),
                // It may have happened, or not.
                Err(_) => {
                    known[at..][..BLOCK].fill(0);
                    return turn.join().map(|done| done.map(|_| (round, at)));
                }
            }
            if began.elapsed() > PATIENCE {
                break;
            }
        }
        turn.join().map(|done| done.and_then(|_| anyhow::bail!("a client writes on")))
    });
    let (rounds, unsure) = turned.map_err(|_| anyhow::anyhow!("it panicked"))??;
    ensure!(rounds > 20, "{rounds} writes only");
    drop(client);
    // The next client of the same server has another way to the cluster.
    let began = Instant::now();
    let mut client = loop {
        match Client::connect(serve.socket(), "vms/fault-plain") {
            Ok(client) => break client,
            Err(error) => ensure!(began.elapsed() < PATIENCE, "{error:#}"),
        }
        sleep(Duration::from_millis(200));
    };
    client.write(unsure as u64, &[0; BLOCK])?;
    client.disconnect()?;
    ensure!(serve.terminate()?.success());
    ensure!(export(&home, "vms/fault-plain")? == known);
    cluster.ok("rbd", &["object-map", "check", "--no-progress", &spec("fault-plain")])?;
    ensure!(home.ok(&["check"])?.contains("as it should be"));
    for image in ["vms/fault-sparse", "vms/fault-plain", "vms/fault-parent"] {
        home.ok(&["rm", image])?;
    }
    Ok(())
}
