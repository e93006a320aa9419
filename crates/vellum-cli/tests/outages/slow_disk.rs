//! A disk that is slow, or stands still, under a server: whoever writes falls asleep in the kernel, which waits for room.
//!
//! A server that is killed then has writes on their way, and the next owner of its images is there at once. And a client whose
//! writes sleep is waited for by nobody else.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vellum_core::Extent;
use vellum_testkit::nbd::{Client, Command};

use crate::content::filled;
use crate::guest::disk::{Pace, Served, VolatileDisk};
use crate::guest::{FileSystem, Guest, Parts, Server};
use crate::load::{Shared, Writer};
use crate::machine::{Answer, Machine, check, look, ok};
use crate::record::{FIRST, Outage, SIZE};
use crate::story::{self, PATIENCE, until};

/// What the kernel keeps of what is not on the disk yet: less than what is on its way.
pub const UNWRITTEN_MAX: u64 = 1 << 20;
/// How long a request takes a slow disk.
pub const SLOW: Pace = Pace::Slow(Duration::from_millis(3));
/// The images that are written to.
pub const IMAGES: [&str; 3] = [FIRST, "thin0", "classic0"];
/// How often one looks what the dead do before a disk that stands still goes on.
const LOOKS: u32 = 3;

/// A guest of a file system, and its disk.
fn boot(dir: &Path, parts: &Parts, file_system: FileSystem) -> Result<(Guest, Served)> {
    boot_serving(dir, parts, file_system, &[])
}

/// The same, where the server is started with more arguments.
pub fn boot_serving(
    dir: &Path,
    parts: &Parts,
    file_system: FileSystem,
    arguments: &[&str],
) -> Result<(Guest, Served)> {
    let name = file_system.name();
    let file = dir.join(name);
    file_system.make(&file)?;
    let disk = VolatileDisk::open(&file, file_system.unit())?;
    let disk = Served::start(disk, &dir.join(format!("{name}.sock")))?;
    let guest = Guest::power_on(parts, &disk, file_system, 10)?;
    guest.wait_until_up()?;
    guest.start_with(Server::One, arguments)?;
    Ok((guest, disk))
}

/// So many kills on each file system, of a server whose disk is slow or stands still.
pub fn killed(file_systems: &[FileSystem], rounds: u32) -> Result<()> {
    let (rounds, seed) = (story::rounds(rounds)?, story::seed()?);
    let dir = tempfile::Builder::new().prefix("vellum-outage-").tempdir()?;
    let parts = Parts::gather(dir.path(), Path::new(env!("CARGO_BIN_EXE_vellum")))?;
    for file_system in file_systems {
        let (guest, disk) = boot(dir.path(), &parts, *file_system)?;
        let mut kills = Kills {
            guest: &guest,
            disk: &disk.disk,
            shared: Shared::of(seed),
            server: Server::One,
            chance: StdRng::seed_from_u64(seed),
            slept: AtomicU64::new(0),
        };
        let told = kills.tell(rounds);
        told.with_context(|| format!("seed {seed}; the guest printed: {}", guest.printed()))?;
        eprintln!(
            "kill -9 on slow {}, seed {seed}: after {} kills threads slept on; {}",
            file_system.name(),
            kills.slept(),
            kills.shared.record().tally
        );
    }
    Ok(())
}

/// Servers of one home, each of which is killed while the next one waits for its images.
struct Kills<'a> {
    guest: &'a Guest,
    disk: &'a VolatileDisk,
    shared: Shared,
    /// The one that has the images.
    server: Server,
    chance: StdRng,
    /// After how many kills threads went on to sleep, and kept the images.
    slept: AtomicU64,
}

impl Kills<'_> {
    fn tell(&mut self, rounds: u32) -> Result<()> {
        story::begin(self.guest, &self.shared)?;
        self.guest.limit_unwritten(UNWRITTEN_MAX)?;
        for round in 0..rounds {
            self.round().with_context(|| format!("in round {round}"))?;
        }
        ensure!(self.slept() > 0, "no server was asleep when it was killed");
        self.guest.kill_vellum()?;
        check(self.guest)?;
        let complaint = self.guest.complaint();
        ensure!(complaint.is_none(), "the guest's kernel complains: {complaint:?}");
        Ok(())
    }

    /// A load, a kill, and the next owner.
    fn round(&mut self) -> Result<()> {
        let next = Owner { guest: self.guest, server: self.server.other() };
        self.guest.start(next.server)?;
        self.disk.set_pace(SLOW);
        let stands_still = self.chance.random_bool(0.7) || self.slept() == 0;
        self.shared.over.store(false, Ordering::SeqCst);
        let mut writers = Vec::new();
        for image in IMAGES {
            self.shared.record().attach(image);
            let client = self.guest.connect_to(self.server, image)?;
            writers.push(Writer::new(&self.shared, image, client, self.chance.random()));
        }
        let answered = self.answered() + self.chance.random_range(50..250);
        let (worked, client) = std::thread::scope(|scope| {
            let working: Vec<_> =
                writers.into_iter().map(|writer| scope.spawn(|| writer.run())).collect();
            let loaded = self.wait_for_load(answered, stands_still);
            // Also if that failed: whoever works must come to an end.
            self.shared.over.store(true, Ordering::SeqCst);
            let killed = self.guest.kill(self.server);
            // Clients of the dead hear of it when its last thread has gone.
            let client = loaded.and(killed).and_then(|()| self.succeed(&next, stands_still));
            self.disk.set_pace(SLOW);
            let worked = working.into_iter().map(|thread| thread.join().expect("no panic"));
            (worked.collect::<Result<Vec<()>>>(), client)
        });
        worked?;
        self.shared.record().detach_all();
        self.disk.set_pace(Pace::Quick);
        self.write_over(FIRST, client?)?;
        for image in &IMAGES[1..] {
            self.write_over(image, next.connect(image)?)?;
        }
        self.guest.shell("sync; echo 3 >/proc/sys/vm/drop_caches")?;
        look(&next, &mut self.shared.record(), Outage::Death)?;
        self.shared.record().tally.outages += 1;
        self.server = next.server;
        Ok(())
    }

    fn slept(&self) -> u64 {
        self.slept.load(Ordering::SeqCst)
    }

    fn answered(&self) -> u64 {
        self.shared.record().tally.requests.values().sum()
    }

    /// Waits for that many answers, and where the disk is to stand still, until the server sleeps over it.
    fn wait_for_load(&self, answered: u64, stands_still: bool) -> Result<()> {
        until("so many requests are answered", || Ok(self.answered() >= answered))?;
        if stands_still {
            self.disk.set_pace(Pace::Still);
            // What is not in memory has to be read before a part of it is written, and no signal ends that.
            self.guest.shell("echo 1 >/proc/sys/vm/drop_caches")?;
            until("the server sleeps", || Ok(self.guest.asleep(self.server)? > 0))?;
        }
        Ok(())
    }

    /// The next owner opens an image as soon as it can, which must not be before the last one is gone.
    fn succeed(&self, next: &Owner<'_>, stands_still: bool) -> Result<Client> {
        std::thread::scope(|scope| {
            let opening = scope.spawn(|| next.open(FIRST));
            let (looks, mut asleep) = (if stands_still { LOOKS } else { 0 }, 0);
            for _ in 0..looks {
                let is_open = opening.is_finished();
                asleep = self.guest.asleep(self.server)?;
                ensure!(!is_open || asleep == 0, "open, and {asleep} threads of its owner sleep");
            }
            self.slept.fetch_add(u64::from(asleep > 0), Ordering::SeqCst);
            self.disk.set_pace(SLOW);
            let client = opening.join().expect("it does not panic")?;
            let asleep = self.guest.asleep(self.server)?;
            ensure!(asleep == 0, "open, and {asleep} threads of its owner sleep");
            Ok(client)
        })
    }

    /// Looks at each piece of an image, and writes it anew.
    fn write_over(&self, image: &str, mut client: Client) -> Result<()> {
        for at in Extent::new(0, SIZE).chunks(256 << 10) {
            let mut record = self.shared.record();
            let place = record.place(at);
            let found = client.read(place.offset(), at.length() as u32)?;
            record.judge_image(image, at, &found, Outage::Death)?;
            let stamp = record.stamp();
            let change = record.begin(image, at, stamp);
            client.write(place.offset(), &filled(stamp, at))?;
            record.end(image, at, change, false);
        }
        client.disconnect()
    }
}

/// A guest, as whoever uses one of its servers sees it.
struct Owner<'a> {
    guest: &'a Guest,
    server: Server,
}

impl Owner<'_> {
    /// Opens an image that may still be somebody else's.
    fn open(&self, image: &str) -> Result<Client> {
        let began = Instant::now();
        loop {
            match self.connect(image) {
                Err(error) if began.elapsed() > PATIENCE => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
                opened => return opened,
            }
        }
    }
}

impl Machine for Owner<'_> {
    fn run(&self, arguments: &[&str]) -> Result<Answer> {
        self.guest.run(arguments)
    }

    fn second_pool(&self) -> String {
        self.guest.second_pool()
    }

    fn file(&self) -> String {
        self.guest.file()
    }

    fn connect(&self, export: &str) -> Result<Client> {
        self.guest.connect_to(self.server, export)
    }
}

/// What is read beside a flood.
const CALM: Extent = Extent::new(0, 1 << 20);
/// Writes of 64 KiB that are more than the kernel keeps.
const FLOOD: u64 = 64;
/// Reads that are answered while the flood is not.
const READS: u64 = 500;

/// One client writes more than the kernel takes, of a disk that stands still; another one reads another image.
pub fn flooded(file_system: FileSystem) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("vellum-outage-").tempdir()?;
    let parts = Parts::gather(dir.path(), Path::new(env!("CARGO_BIN_EXE_vellum")))?;
    let (guest, disk) = boot(dir.path(), &parts, file_system)?;
    let told = flood(&guest, &disk.disk);
    disk.disk.set_pace(Pace::Quick);
    told.with_context(|| format!("the guest printed: {}", guest.printed()))
}

fn flood(guest: &Guest, disk: &VolatileDisk) -> Result<()> {
    for image in ["calm", "flooded"] {
        ok(guest, &["create", image, "--size", "16M"])?;
    }
    let (mut calm, mut flooded) = (guest.connect("calm")?, guest.connect("flooded")?);
    let content = filled(1, CALM);
    calm.write(CALM.offset(), &content)?;
    guest.shell("sync")?;
    ensure!(calm.read(CALM.offset(), CALM.length() as u32)? == content);
    guest.limit_unwritten(UNWRITTEN_MAX)?;
    disk.set_pace(Pace::Still);
    let answered = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let flooding = scope.spawn(|| pour(&mut flooded, &answered));
        let read = read_beside(guest, &mut calm, &content, &answered);
        // Also if that failed: the flood must come to an end.
        disk.set_pace(Pace::Quick);
        flooding.join().expect("it does not panic")?;
        read
    })?;
    ensure!(answered.into_inner() == FLOOD, "a part of the flood was lost");
    Ok(())
}

/// Sends the whole flood, and counts its answers.
fn pour(client: &mut Client, answered: &AtomicU64) -> Result<()> {
    for at in Extent::new(0, FLOOD * (64 << 10)).chunks(64 << 10) {
        client.send(Command::Write, at.offset(), at.length() as u32, &filled(2, at))?;
    }
    while client.in_flight() > 0 {
        let reply = client.receive()?;
        ensure!(reply.error == 0, "a write of the flood is answered error {}", reply.error);
        answered.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

/// Reads while the flood sleeps.
fn read_beside(
    guest: &Guest,
    client: &mut Client,
    content: &[u8],
    answered: &AtomicU64,
) -> Result<()> {
    until("the flood sleeps", || Ok(guest.asleep(Server::One)? > 0))?;
    for number in 0..READS {
        let at = Extent::new(number * 4096 % CALM.length(), 4096);
        let read = client.read(at.offset(), at.length() as u32)?;
        ensure!(read == content[CALM.range_of(&at)], "read {number} is wrong");
    }
    ensure!(guest.asleep(Server::One)? > 0, "the flood does not sleep any more");
    let answered = answered.load(Ordering::SeqCst);
    if answered == FLOOD {
        bail!("all of the flood was answered, of a disk that stands still");
    }
    Ok(())
}
