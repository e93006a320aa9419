//! What both kinds of outages share: how a story begins, and the load between a look and the next outage.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use vellum_core::Extent;

use crate::content::filled;
use crate::load::{Shared, Writer};
use crate::machine::{Machine, SECOND_POOL, ok};
use crate::operations::Operator;
use crate::record::{FIRST, FIRST_SNAPSHOT, OBJECTS, SIZE};
use crate::tally::TARGETS;

/// How long something may take that has to happen.
pub const PATIENCE: Duration = Duration::from_secs(120);

const WRITERS: usize = 3;
const OPERATORS: u64 = 3;

/// Rounds, as the environment asks for them, or so many.
pub fn rounds(usual: u32) -> Result<u32> {
    number("VELLUM_ROUNDS", usual)
}

/// The seed of the first round's dice, and of where in images the load lies.
pub fn seed() -> Result<u64> {
    seed_or(1)
}

/// The same, of a test that usually has another one.
pub fn seed_or(usual: u64) -> Result<u64> {
    number("VELLUM_SEED", usual)
}

fn number<T: std::str::FromStr>(name: &str, usual: T) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
        Err(_) => Ok(usual),
    }
}

/// Makes the first image, full of data, a clone of it in each mode, and a file of it. A server must run.
pub fn begin(machine: &dyn Machine, shared: &Shared) -> Result<()> {
    let (size, object) = (shared.record().size().to_string(), OBJECTS[0].to_string());
    ok(machine, &["pool", "create", SECOND_POOL, "--path", &machine.second_pool()])?;
    shared.record().begin_image(FIRST, OBJECTS[0], None);
    ok(machine, &["create", FIRST, "--size", &size, "--object-size", &object])?;
    shared.record().end_image(FIRST);
    fill(machine, shared)?;
    shared.record().begin_snapshot(FIRST, FIRST_SNAPSHOT);
    ok(machine, &["snap", "create", &format!("{FIRST}@{FIRST_SNAPSHOT}")])?;
    shared.record().end_snapshot(FIRST, FIRST_SNAPSHOT);
    for (name, layering) in [("thin0", "sparse"), ("classic0", "copy-up")] {
        let from = Some((FIRST, Some(FIRST_SNAPSHOT)));
        shared.record().begin_image(name, OBJECTS[0], from);
        let from = format!("{FIRST}@{FIRST_SNAPSHOT}");
        ok(machine, &["clone", "--layering", layering, &from, name])?;
        shared.record().end_image(name);
    }
    // What imports read. An outage comes later, and takes nothing of it away.
    let file = machine.file();
    ok(machine, &["export", &format!("{FIRST}@{FIRST_SNAPSHOT}"), &file])?;
    Ok(())
}

/// Fills the first image, and makes that durable.
pub fn fill(machine: &dyn Machine, shared: &Shared) -> Result<()> {
    let mut client = machine.connect(FIRST)?;
    for at in Extent::new(0, SIZE).chunks(OBJECTS[0]) {
        let mut record = shared.record();
        let stamp = record.stamp();
        let change = record.begin(FIRST, at, stamp);
        client.write(record.place(at).offset(), &filled(stamp, at))?;
        record.end(FIRST, at, change, false);
    }
    let since = shared.record().now(FIRST);
    client.flush()?;
    shared.record().synced(FIRST, since);
    client.disconnect()
}

/// Lets clients and commands work until `outage` returns, which is told before it acts: it must take the server away from all.
pub fn live(
    machine: &dyn Machine,
    shared: &Shared,
    chance: &mut StdRng,
    outage: impl FnOnce(&mut StdRng, &dyn Fn()) -> Result<()>,
) -> Result<()> {
    shared.over.store(false, Ordering::SeqCst);
    let images = shared.record().images();
    let images: Vec<String> = images.sample(chance, WRITERS).cloned().collect();
    let mut writers = Vec::new();
    for image in &images {
        shared.record().attach(image);
        let client = machine.connect(image)?;
        writers.push(Writer::new(shared, image, client, chance.random()));
    }
    let operators: Vec<Operator<'_>> =
        (0..OPERATORS).map(|_| Operator::new(machine, shared, chance.random())).collect();
    let results = std::thread::scope(|scope| {
        let mut working = Vec::new();
        working.extend(writers.into_iter().map(|writer| scope.spawn(|| writer.run())));
        working.extend(operators.into_iter().map(|operator| scope.spawn(|| operator.run())));
        let down = outage(chance, &|| shared.over.store(true, Ordering::SeqCst));
        // Also if the outage failed: whoever works must come to an end.
        shared.over.store(true, Ordering::SeqCst);
        let worked = working.into_iter().map(|thread| thread.join().expect("it does not panic"));
        worked.chain([down]).collect::<Vec<_>>()
    });
    results.into_iter().collect::<Result<Vec<()>>>()?;
    let mut record = shared.record();
    record.detach_all();
    record.tally.outages += 1;
    Ok(())
}

/// How an outage finds a command in the middle of its work.
pub struct Aim {
    /// How long it waits for one at most.
    pub waits: Duration,
    /// How often it looks for one.
    pub looks: Duration,
    /// After how many milliseconds it comes then.
    pub then_ms: Range<u64>,
}

/// Half of the time, waits until what outages have interrupted least of all [`TARGETS`] is under way.
pub fn aim(shared: &Shared, chance: &mut StdRng, aim: Aim) {
    let least = |shared: &Shared| {
        let tally = &shared.record().tally;
        TARGETS.into_iter().min_by_key(|what| tally.ended(what).interrupted)
    };
    let Some(what) = least(shared).filter(|_| chance.random_bool(0.5)) else { return };
    let began = Instant::now();
    while !shared.record().tally.is_under_way(what) {
        if began.elapsed() > aim.waits {
            return;
        }
        std::thread::sleep(aim.looks);
    }
    std::thread::sleep(Duration::from_millis(chance.random_range(aim.then_ms)));
}

/// Waits for what has to happen.
pub fn until(what: &str, happened: impl Fn() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !happened()? {
        ensure!(began.elapsed() < PATIENCE, "it never happens that {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
