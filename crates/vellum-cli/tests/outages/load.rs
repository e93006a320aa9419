//! Clients that write, zero, give up, flush and read, many requests at once, and note every answer.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vellum_core::Extent;
use vellum_sim::ChangeId;
use vellum_testkit::nbd::{Client, Command, FUA, NO_HOLE, Reply};

use crate::content::{SECTOR, filled};
use crate::record::{Record, SIZE};

const DEPTH: usize = 16;

/// What all who act share: what they know, and whether the outage may have begun.
#[derive(Debug, Default)]
pub struct Shared {
    pub record: Mutex<Record>,
    pub over: AtomicBool,
}

impl Shared {
    /// Of a story of this seed.
    pub fn of(seed: u64) -> Self {
        Self { record: Mutex::new(Record::of(seed)), ..Self::default() }
    }

    pub fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().expect("nobody panicked with it")
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// A request that waits for its answer.
enum Asked {
    Change { what: &'static str, at: Extent, change: ChangeId, durable: bool },
    Flush { since: u64 },
    Read { at: Extent, since: u64 },
}

/// A client of one image.
pub struct Writer<'a> {
    shared: &'a Shared,
    image: String,
    client: Client,
    chance: StdRng,
    /// How often it wants to be sure: some clients hardly ever do, so that there is much to lose.
    care: f64,
    waiting: HashMap<u64, Asked>,
}

impl<'a> Writer<'a> {
    pub fn new(shared: &'a Shared, image: &str, client: Client, seed: u64) -> Self {
        let mut chance = StdRng::seed_from_u64(seed);
        let care = [0.0, 0.005, 0.05][chance.random_range(0..3)];
        Self { shared, image: image.to_owned(), client, chance, care, waiting: HashMap::new() }
    }

    /// Goes on until the server is gone. An error is anything else that goes wrong.
    pub fn run(mut self) -> Result<()> {
        loop {
            if let Err(error) = self.step() {
                if !self.shared.is_over() || error.is::<Wrong>() {
                    return Err(error);
                }
                self.shared.record().tally.interrupted += self.waiting.len() as u64;
                return Ok(());
            }
        }
    }

    /// Goes on until it is over, and hears all answers. An error is anything that goes wrong.
    pub fn run_to_the_end(mut self) -> Result<()> {
        while !self.shared.is_over() {
            self.step()?;
        }
        while !self.waiting.is_empty() {
            let reply = self.client.receive()?;
            self.hear(&reply)?;
        }
        Ok(())
    }

    /// One answer.
    fn step(&mut self) -> Result<()> {
        while self.waiting.len() < DEPTH {
            self.ask()?;
        }
        let reply = self.client.receive()?;
        self.hear(&reply).map_err(|error| error.context(Wrong))
    }

    fn ask(&mut self) -> Result<()> {
        if self.chance.random_bool(self.care) {
            return self.flush();
        }
        match self.chance.random_range(0..100) {
            0..64 => self.write(),
            64..73 => self.zeroes(),
            73..79 => self.trim(),
            _ => self.read(),
        }
    }

    fn flush(&mut self) -> Result<()> {
        let since = self.shared.record().now(&self.image);
        let cookie = self.client.send(Command::Flush, 0, 0, &[])?;
        self.waiting.insert(cookie, Asked::Flush { since });
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let at = self.some_sectors(128);
        let (since, place) = {
            let mut record = self.shared.record();
            (record.now(&self.image), record.place(at))
        };
        let cookie = self.client.send(Command::Read, place.offset(), at.length() as u32, &[])?;
        self.waiting.insert(cookie, Asked::Read { at, since });
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let at = match self.chance.random_range(0..4) {
            0 => self.some_sectors(16),
            1 => self.some_sectors(160),
            _ => Extent::new(self.chance.random_range(0..SIZE / 4096) * 4096, 4096),
        };
        let flags = if self.chance.random_bool(self.care) { FUA } else { 0 };
        let stamp = self.shared.record().stamp();
        self.change("write", Command::Write, flags, at, stamp, &filled(stamp, at))
    }

    fn zeroes(&mut self) -> Result<()> {
        let at = self.some_sectors(160);
        let flags = if self.chance.random_bool(self.care) { FUA } else { 0 };
        let flags = flags | if self.chance.random_bool(0.3) { NO_HOLE } else { 0 };
        self.change("zero", Command::WriteZeroes, flags, at, 0, &[])
    }

    /// Whole objects, which read as zeros afterwards in both modes.
    fn trim(&mut self) -> Result<()> {
        let object = self.shared.record().object(&self.image);
        let first = self.chance.random_range(0..SIZE / object);
        let count = self.chance.random_range(1..4);
        let at = Extent::new(first * object, count * object).clip(SIZE);
        self.change("discard", Command::Trim, 0, at, 0, &[])
    }

    fn change(
        &mut self,
        what: &'static str,
        command: Command,
        flags: u16,
        at: Extent,
        stamp: u64,
        payload: &[u8],
    ) -> Result<()> {
        let (change, place) = {
            let mut record = self.shared.record();
            (record.begin(&self.image, at, stamp), record.place(at))
        };
        let durable = flags & FUA != 0;
        let length = at.length() as u32;
        let cookie = self.client.send_flagged(command, flags, place.offset(), length, payload)?;
        self.waiting.insert(cookie, Asked::Change { what, at, change, durable });
        Ok(())
    }

    fn hear(&mut self, reply: &Reply) -> Result<()> {
        let asked = self.waiting.remove(&reply.cookie).expect("the client knows its cookies");
        ensure!(reply.error == 0, "{} is answered error {}", self.image, reply.error);
        let mut record = self.shared.record();
        match asked {
            Asked::Change { what, at, change, durable } => {
                record.end(&self.image, at, change, durable);
                record.tally.answered(what);
            }
            Asked::Flush { since } => {
                record.synced(&self.image, since);
                record.tally.answered("flush");
            }
            Asked::Read { at, since } => record.judge_read(&self.image, since, at, &reply.data)?,
        }
        Ok(())
    }

    fn some_sectors(&mut self, max: u64) -> Extent {
        let first = self.chance.random_range(0..SIZE / SECTOR);
        let count = self.chance.random_range(1..max);
        Extent::new(first * SECTOR, count * SECTOR).clip(SIZE)
    }
}

/// Marks an answer that must not be, outage or not.
#[derive(Debug)]
struct Wrong;

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an answer that must not be")
    }
}
