//! The kernel's NBD client with two connections to a server, one of which is cut: what was not answered is sent again over the
//! other.
//!
//! The server may still have the first copy, and must not carry it out once its client has gone on to write something else.

use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vellum_core::Extent;
use vellum_sim::{ChangeId, History, Value};
use vellum_testkit::nbd::{Client, Command};

use crate::content::{SECTOR, filled, stamp_of};
use crate::guest::disk::{Pace, Served, VolatileDisk};
use crate::guest::{FileSystem, Guest, Parts, Server};
use crate::load::{self, Shared};
use crate::machine::{check, look, ok};
use crate::record::Outage;
use crate::story::{self, until};

const IMAGE: &str = "work";
/// How many seconds without an answer the kernel takes for the end of a connection, whose requests it then sends again. After
/// twice that no connection is left, so all that happens meanwhile must fit, on a slow computer too.
const SILENCE: u32 = 25;
/// A part of a block that the server has to read first. It lies in a file of its own: a layer's files have 1 TiB.
const COLD: Extent = Extent::new(1 << 40, SECTOR);
/// How many blocks are written behind that one.
const BLOCKS: u64 = 8;

/// Blocks that the server has in memory, or never wrote.
fn blocks() -> impl Iterator<Item = Extent> {
    (0..BLOCKS).map(|number| Extent::new(number * 8192, 4096))
}

/// Cuts a connection whose server sleeps over one request and has not begun the next ones.
pub fn cut() -> Result<()> {
    in_a_guest(tell)
}

/// So many times, cuts a connection in the middle of a load.
pub fn cut_under_load(rounds: u32) -> Result<()> {
    in_a_guest(|guest, disk| tell_of_load(guest, disk, story::rounds(rounds)?))
}

/// Does something in a guest whose kernel has an NBD client.
fn in_a_guest(tell: impl FnOnce(&Guest, &VolatileDisk) -> Result<()>) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("vellum-outage-").tempdir()?;
    let vellum = Path::new(env!("CARGO_BIN_EXE_vellum"));
    let parts = Parts::gather_with(dir.path(), vellum, &["nbd-client", "qemu-nbd"])?;
    let file = dir.path().join("disk");
    FileSystem::Ext4.make(&file)?;
    let disk = VolatileDisk::open(&file, FileSystem::Ext4.unit())?;
    let disk = Served::start(disk, &dir.path().join("disk.sock"))?;
    let guest = Guest::power_on(&parts, &disk, FileSystem::Ext4, 10)?;
    let told = guest.wait_until_up().and_then(|()| tell(&guest, &disk.disk));
    disk.disk.set_pace(Pace::Quick);
    told.with_context(|| format!("the guest printed: {}", guest.printed()))
}

fn tell(guest: &Guest, disk: &VolatileDisk) -> Result<()> {
    guest.serve()?;
    ok(guest, &["create", IMAGE, "--size", "2T"])?;
    attach(guest, IMAGE)?;
    let mut writer = Writer::new(guest.connect_to(Server::Other, "")?);
    // All of the cold block, so that the server has it on its disk and not in memory.
    let warm = writer.ask(COLD.align_out(4096))?;
    writer.hear(vec![warm])?;
    guest.shell("sync; echo 3 >/proc/sys/vm/drop_caches")?;
    let first = writer.ask_all()?;
    writer.hear(first)?;

    disk.set_pace(Pace::NoReads);
    let cold = writer.ask(COLD)?;
    // Of both, since a thread may also sleep for a moment, over something else.
    until("the server sleeps over a read", || {
        Ok(disk.held() > 0 && guest.asleep(Server::One)? > 0)
    })?;
    let second = writer.ask_all()?;
    let seen = Cell::new(0);
    until("some of them wait in the server's socket, and no more come", || {
        let now = unread(guest)?;
        Ok(now >= 4096 && seen.replace(now) == now)
    })?;
    cut_first(guest)?;
    writer.hear(second)?;
    let third = writer.ask_all()?;
    writer.hear(third)?;
    ensure!(guest.asleep(Server::One)? > 0, "the server does not sleep any more");
    disk.set_pace(Pace::Quick);
    writer.hear(vec![cold])?;

    detach(guest)?;
    writer.judge(guest.connect_to(Server::One, IMAGE)?)
}

fn tell_of_load(guest: &Guest, disk: &VolatileDisk, rounds: u32) -> Result<()> {
    let seed = story::seed()?;
    let shared = Shared::of(seed);
    guest.serve()?;
    story::begin(guest, &shared)?;
    for round in 0..rounds {
        for (image, seed) in [("thin0", seed), ("classic0", !seed)] {
            cut_a_load(guest, disk, &shared, (image, seed ^ u64::from(round)))
                .with_context(|| format!("{image} in round {round} of seed {seed}"))?;
        }
    }
    eprintln!("cuts of a connection, seed {seed}: {}", shared.record().tally);
    Ok(())
}

/// Cuts a connection under a load that goes on over the other one, and looks at everything afterwards.
fn cut_a_load(
    guest: &Guest,
    disk: &VolatileDisk,
    shared: &Shared,
    (image, seed): (&str, u64),
) -> Result<()> {
    let answered = || shared.record().tally.requests.values().sum::<u64>();
    attach(guest, image)?;
    guest.shell("sync; echo 3 >/proc/sys/vm/drop_caches")?;
    disk.set_pace(Pace::Slow(Duration::from_millis(2)));
    shared.over.store(false, Ordering::SeqCst);
    let client = guest.connect_to(Server::Other, "")?;
    let writer = load::Writer::new(shared, image, client, seed);
    let (before, enough) = (answered() + 50 + seed % 100, 300);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| writer.run_to_the_end());
        let cut = until("the load has begun", || Ok(answered() >= before))
            .and_then(|()| cut_first(guest))
            .and_then(|()| until("it goes on", || Ok(answered() >= before + enough)));
        // Also if that failed: the load must come to an end.
        shared.over.store(true, Ordering::SeqCst);
        writing.join().expect("it does not panic").and(cut)
    })?;
    disk.set_pace(Pace::Quick);
    shared.record().tally.outages += 1;
    detach(guest)?;
    look(guest, &mut shared.record(), Outage::Death)
}

/// Connects the kernel to the image, twice, each time through a process that can be killed, and offers its device.
///
/// On one processor all requests go over the first connection.
fn attach(guest: &Guest, image: &str) -> Result<()> {
    guest.shell("(nc -ll -p 10900 -e nc 127.0.0.1 10809 </dev/null >/dev/null 2>&1 &)")?;
    guest.shell(&format!(
        "nbd-client -C 2 127.0.0.1 10900 /dev/nbd0 -N {image} -t {SILENCE} >/dev/null"
    ))?;
    guest.shell(&format!(
        "taskset 1 qemu-nbd --fork -t -f raw --cache=none --discard=unmap --aio=threads -p {} /dev/nbd0",
        Server::Other.port()
    ))?;
    Ok(())
}

/// Ends all connections, and the server once it has carried out what it has begun; starts a new one.
fn detach(guest: &Guest) -> Result<()> {
    guest.shell("killall qemu-nbd; nbd-client -d /dev/nbd0")?;
    guest.shell("killall vellum; while pidof vellum >/dev/null; do usleep 10000; done")?;
    check(guest)?;
    guest.serve()
}

/// Ends the process that is the first connection.
fn cut_first(guest: &Guest) -> Result<()> {
    let first = "awk '$2 == \"nc\" && $3 == \"127.0.0.1\" { print $1; exit }'";
    guest.shell(&format!("kill -9 $(ps -o pid,args | {first})")).map(|_| ())
}

/// Bytes that the server has been sent and has not read.
fn unread(guest: &Guest) -> Result<u64> {
    let sum = "awk '$4 ~ /:10809$/ { sum += $2 } END { print sum + 0 }'";
    let said = guest.shell(&format!("netstat -tn | {sum}"))?;
    said.trim().parse().context("a number of bytes")
}

/// A client that remembers what it wrote.
struct Writer {
    client: Client,
    history: History,
    stamps: u64,
}

/// A write that waits for its answer.
type Asked = (u64, Extent, ChangeId);

impl Writer {
    fn new(client: Client) -> Self {
        Self { client, history: History::new(), stamps: 0 }
    }

    fn ask(&mut self, at: Extent) -> Result<Asked> {
        self.stamps += 1;
        let change = self.history.begin(at, Value::Holds(self.stamps), false);
        let (bytes, length) = (filled(self.stamps, at), at.length() as u32);
        Ok((self.client.send(Command::Write, at.offset(), length, &bytes)?, at, change))
    }

    fn ask_all(&mut self) -> Result<Vec<Asked>> {
        blocks().map(|at| self.ask(at)).collect()
    }

    /// Waits until all of them are answered, and nothing else is.
    fn hear(&mut self, mut asked: Vec<Asked>) -> Result<()> {
        while !asked.is_empty() {
            let reply = self.client.receive()?;
            let place = asked.iter().position(|(cookie, ..)| *cookie == reply.cookie);
            let (_, at, change) = asked.swap_remove(place.context("an answer comes too early")?);
            ensure!(reply.error == 0, "a write to {at:?} is answered error {}", reply.error);
            self.history.end(at, change, false);
        }
        Ok(())
    }

    /// Looks whether everything that was written reads as what was answered last.
    fn judge(&self, mut client: Client) -> Result<()> {
        for at in blocks().chain([COLD.align_out(4096)]) {
            let read = client.read(at.offset(), at.length() as u32)?;
            for (number, bytes) in (at.offset() / SECTOR..).zip(read.chunks(SECTOR as usize)) {
                let stamp = stamp_of(number, bytes).map(Value::Holds);
                let allowed = self.history.allowed_now(number);
                ensure!(
                    stamp.is_some_and(|stamp| allowed.contains(&stamp)),
                    "sector {number} reads {stamp:?}: {}",
                    self.history.story(number)
                );
            }
        }
        Ok(())
    }
}
