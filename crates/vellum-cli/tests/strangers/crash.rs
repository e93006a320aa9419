//! `kill -9` in the middle of writing: nothing acknowledged is lost, by the client's own record.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use vellum_testkit::nbd::{Client, Command};
use vellum_testkit::{Home, Serve};

use crate::{golden, pattern, trial};

pub fn trials() -> Vec<Trial> {
    vec![trial("kill_9_in_fifty_rounds_loses_no_acknowledged_write", fifty_rounds)]
}

const ROUNDS: u32 = 50;
const SIZE: usize = 16 << 20;
const SLOT: usize = 2048;
const SLOTS: u64 = (SIZE / SLOT) as u64;
const DEPTH: usize = 32;

/// What may stand in each slot: the last acknowledged write, or any that was under way when the server died.
struct Record {
    /// The stamp acknowledged last; 0 for the parent's content.
    acknowledged: Vec<u64>,
    unanswered: HashMap<u64, Vec<u64>>,
    stamp: u64,
    random: u64,
}

impl Record {
    fn new() -> Self {
        Self {
            acknowledged: vec![0; SLOTS as usize],
            unanswered: HashMap::new(),
            stamp: 0,
            random: 88_172_645_463_325_252,
        }
    }

    /// xorshift64, so that the test needs nothing and repeats itself.
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

fn fifty_rounds() -> Result<()> {
    let golden_bytes = pattern(SIZE, 1);
    let home = golden(&golden_bytes)?;
    for (image, layering) in [("thin", "sparse"), ("classic", "copy-up")] {
        home.ok(&["clone", "--layering", layering, "gold@s", image])?;
        let mut record = Record::new();
        for round in 0..ROUNDS / 2 {
            one_round(&home, image, &mut record, round)?;
            verify(&home, image, &mut record, &golden_bytes, round)?;
        }
    }
    Ok(())
}

/// Writes until the server is killed, with a snapshot in the middle of every third round.
fn one_round(home: &Home, image: &str, record: &mut Record, round: u32) -> Result<()> {
    let serve = Serve::start(home)?;
    let mut client = Client::connect(serve.socket(), image)?;
    let lives = Duration::from_millis(30 + record.random() % 250);
    let mut in_flight: HashMap<u64, (u64, u64)> = HashMap::new();
    let mut busy: HashMap<u64, ()> = HashMap::new();
    let started = Instant::now();
    let killer = std::thread::scope(|scope| -> Result<()> {
        let snapshot = (round % 3 == 1).then(|| {
            let name = format!("{image}@round-{round}");
            scope.spawn(move || home.run(&["snap", "create", &name]))
        });
        while started.elapsed() < lives {
            while in_flight.len() < DEPTH {
                let slot = record.random() % SLOTS;
                if busy.insert(slot, ()).is_some() {
                    continue;
                }
                record.stamp += 1;
                let cookie = client.send(
                    Command::Write,
                    slot * SLOT as u64,
                    SLOT as u32,
                    &stamped(record.stamp),
                )?;
                in_flight.insert(cookie, (slot, record.stamp));
            }
            let reply = client.receive()?;
            ensure!(reply.error == 0, "a write fails with {}", reply.error);
            let (slot, stamp) = in_flight.remove(&reply.cookie).expect("it was asked");
            busy.remove(&slot);
            record.acknowledged[slot as usize] = stamp;
        }
        serve.kill()?;
        if let Some(snapshot) = snapshot {
            let _ = snapshot.join();
        }
        Ok(())
    });
    killer?;
    for (slot, stamp) in in_flight.into_values() {
        record.unanswered.entry(slot).or_default().push(stamp);
    }
    Ok(())
}

fn verify(home: &Home, image: &str, record: &mut Record, golden: &[u8], round: u32) -> Result<()> {
    let serve = Serve::start(home)?;
    let mut client = Client::connect(serve.socket(), image)?;
    for slot in 0..SLOTS {
        let found = client.read(slot * SLOT as u64, SLOT as u32)?;
        let acknowledged = record.acknowledged[slot as usize];
        let may_be: Vec<u64> = [acknowledged]
            .into_iter()
            .chain(record.unanswered.get(&slot).into_iter().flatten().copied())
            .collect();
        let content = |stamp: u64| match stamp {
            0 => golden[slot as usize * SLOT..][..SLOT].to_vec(),
            stamp => stamped(stamp),
        };
        // Sector by sector, since a write that was not acknowledged may have landed in part.
        for sector in 0..SLOT / 512 {
            let range = sector * 512..(sector + 1) * 512;
            ensure!(
                may_be.iter().any(|stamp| content(*stamp)[range.clone()] == found[range.clone()]),
                "round {round} of {image}: slot {slot} sector {sector} holds none of the stamps {may_be:?}"
            );
        }
        if let Some(stamp) = may_be.iter().find(|stamp| content(**stamp) == found) {
            record.acknowledged[slot as usize] = *stamp;
            record.unanswered.remove(&slot);
        } else {
            // Torn by the kill: write it anew, so that the record is certain again.
            record.stamp += 1;
            client.write(slot * SLOT as u64, &stamped(record.stamp))?;
            record.acknowledged[slot as usize] = record.stamp;
            record.unanswered.remove(&slot);
        }
    }
    client.disconnect()?;
    ensure!(serve.terminate()?.success());
    Ok(())
}

fn stamped(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(SLOT / 8)
}
