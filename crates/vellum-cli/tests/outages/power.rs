//! Power cuts of a machine that serves images under load, on real file systems and a disk that loses what was not flushed.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use crate::guest::disk::{Cut, Served, VolatileDisk};
use crate::guest::{FileSystem, Guest, Parts};
use crate::load::Shared;
use crate::machine::{check, look};
use crate::record::Outage;
use crate::story::{self, Aim};
use crate::tally::Tally;

/// A machine that is switched on again and again, and what is known of it outside.
struct Machine {
    file_system: FileSystem,
    disk: Served,
    shared: Shared,
    chance: StdRng,
    begun: bool,
    /// Of sectors that were written and not flushed at a cut, how many there were, and how many were lost.
    unflushed: (usize, usize),
}

impl Machine {
    fn new(dir: &Path, file_system: FileSystem, seed: u64) -> Result<Self> {
        let file = dir.join(format!("{}.raw", file_system.name()));
        file_system.make(&file)?;
        let socket = dir.join(format!("{}.sock", file_system.name()));
        let disk = Served::start(VolatileDisk::open(&file, file_system.unit())?, &socket)?;
        let chance = StdRng::seed_from_u64(seed);
        let shared = Shared::of(seed);
        Ok(Self { file_system, disk, shared, chance, begun: false, unflushed: (0, 0) })
    }

    fn power_on(&mut self, parts: &Parts) -> Result<Guest> {
        // Soon, so that the disk has seen much that nobody synced; or so late that only what is synced gets there.
        let writeback = if self.chance.random_bool(0.7) { 10 } else { 3000 };
        Guest::power_on(parts, &self.disk, self.file_system, writeback)
    }

    fn cut(&mut self, guest: &Guest) -> Result<()> {
        guest.switch().off()?;
        let cut = Cut::any(&mut self.chance);
        let (unflushed, lost) = self.disk.disk.cut(cut, &mut self.chance)?;
        self.unflushed = (self.unflushed.0 + unflushed, self.unflushed.1 + lost);
        Ok(())
    }

    /// From a boot to the next cut.
    fn round(&mut self, parts: &Parts) -> Result<()> {
        if self.begun && self.chance.random_bool(0.2) {
            // A cut while what the last one left is put in order.
            let guest = self.power_on(parts)?;
            std::thread::sleep(Duration::from_millis(self.chance.random_range(2000..9000)));
            self.cut(&guest)?;
            self.shared.record().tally.outages += 1;
        }
        let guest = self.power_on(parts)?;
        let result = self.use_until_cut(&guest);
        let complaint = guest.complaint();
        result.with_context(|| format!("the guest printed: {}", guest.printed()))?;
        ensure!(complaint.is_none(), "the guest's kernel complains: {complaint:?}");
        Ok(())
    }

    fn use_until_cut(&mut self, guest: &Guest) -> Result<()> {
        guest.wait_until_up()?;
        if self.begun {
            self.look(guest)?;
        } else {
            guest.serve()?;
            story::begin(guest, &self.shared)?;
            self.begun = true;
        }
        let mut chance = StdRng::seed_from_u64(self.chance.random());
        if chance.random_bool(0.4) {
            self.kill_and_look(guest, &mut chance)?;
        }
        let qemu = guest.switch();
        story::live(guest, &self.shared, &mut chance, |chance, begins| {
            wait_a_while(&self.shared, chance);
            begins();
            qemu.off()
        })?;
        self.cut(guest)
    }

    /// A server that is killed first leaves logs of this boot, and a next one that believes them.
    fn kill_and_look(&self, guest: &Guest, chance: &mut StdRng) -> Result<()> {
        story::live(guest, &self.shared, chance, |chance, begins| {
            wait_a_while(&self.shared, chance);
            begins();
            guest.kill_vellum()
        })?;
        self.shared.record().tally.mended += check(guest).context("after a kill")?;
        guest.serve()?;
        look(guest, &mut self.shared.record(), Outage::DeathBeforePower)
    }

    /// What must hold after a power cut: nothing has to be repaired, and everything reads as was promised.
    fn look(&mut self, guest: &Guest) -> Result<()> {
        self.shared.record().tally.mended += check(guest).context("right after the mount")?;
        guest.serve()?;
        look(guest, &mut self.shared.record(), Outage::Power)
    }

    /// A last look, and a clean end, after which the file system must be sound too.
    fn end(&mut self, parts: &Parts) -> Result<Tally> {
        let guest = self.power_on(parts)?;
        let ended =
            guest.wait_until_up().and_then(|()| self.look(&guest)).and_then(|()| guest.unmount());
        ended.with_context(|| format!("the guest printed: {}", guest.printed()))?;
        guest.switch().off()?;
        self.disk.disk.cut(Cut::Everything, &mut self.chance)?;
        self.file_system.check(&self.disk.disk.path())?;
        Ok(std::mem::take(&mut self.shared.record().tally))
    }
}

/// Waits until some commands have ended, and a moment more: how fast a guest is depends on what else this computer does.
fn wait_a_while(shared: &Shared, chance: &mut StdRng) {
    let ended = || shared.record().tally.commands_ended();
    let (began, wanted) = (Instant::now(), ended() + chance.random_range(0..8));
    while ended() < wanted && began.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(chance.random_range(200..2500)));
    story::aim(shared, chance, AIM);
}

const AIM: Aim =
    Aim { waits: Duration::from_secs(20), looks: Duration::from_millis(10), then_ms: 0..600 };

/// So many rounds, in turn on ext4 and on XFS.
pub fn story(rounds: u32) -> Result<()> {
    let (rounds, seed) = (story::rounds(rounds)?, story::seed()?);
    let dir = tempfile::Builder::new().prefix("vellum-outage-").tempdir()?;
    let told = tell(dir.path(), rounds, seed);
    if told.is_err() {
        keep(dir);
    }
    told
}

/// A disk that answers flushes and keeps nothing must be found out: that a story can fail at all.
pub fn lying_disk() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("vellum-outage-").tempdir()?;
    let parts = Parts::gather(dir.path(), Path::new(env!("CARGO_BIN_EXE_vellum")))?;
    let mut machine = Machine::new(dir.path(), FileSystem::Ext4, 1)?;
    let guest = machine.power_on(&parts)?;
    guest.wait_until_up()?;
    guest.serve()?;
    story::begin(&guest, &machine.shared)?;
    machine.disk.disk.lie();
    story::fill(&guest, &machine.shared)?;
    guest.switch().off()?;
    machine.disk.disk.cut(Cut::Nothing, &mut machine.chance)?;
    let guest = machine.power_on(&parts)?;
    guest.wait_until_up()?;
    let found = machine.look(&guest).err().context("nobody noticed that a flush was a lie")?;
    let found = format!("{found:#}");
    ensure!(found.contains("gold after Power"), "something else was noticed: {found}");
    Ok(())
}

/// Leaves the disks for whoever looks into it.
fn keep(dir: TempDir) {
    eprintln!("the disks are kept in {}", dir.keep().display());
}

fn tell(dir: &Path, rounds: u32, seed: u64) -> Result<()> {
    let parts = Parts::gather(dir, Path::new(env!("CARGO_BIN_EXE_vellum")))?;
    let mut machines = [FileSystem::Ext4, FileSystem::Xfs].map(|file_system| {
        Machine::new(dir, file_system, seed.wrapping_mul(2) ^ file_system as u64)
    });
    let began = Instant::now();
    for round in 0..rounds {
        let machine =
            machines[round as usize % 2].as_mut().map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let name = machine.file_system.name();
        machine.round(&parts).with_context(|| format!("round {round} on {name}, seed {seed}"))?;
        eprintln!("power cut {} on {name} after {:?}", round + 1, began.elapsed());
    }
    let mut tally = Tally::default();
    for machine in &mut machines {
        let machine = machine.as_mut().map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let name = machine.file_system.name();
        let (unflushed, lost) = machine.unflushed;
        eprintln!(
            "{name}: {unflushed} sectors were not flushed at a cut, {lost} of them went back"
        );
        if machine.begun {
            let told =
                machine.end(&parts).with_context(|| format!("{name} at the end, seed {seed}"))?;
            tally.add(&told);
            if rounds >= ENOUGH {
                was_a_load(&told, lost).with_context(|| format!("{name}, seed {seed}"))?;
            }
        }
    }
    eprintln!("power cuts, seed {seed}: {tally}");
    ensure!(tally.requests.contains_key("write") && tally.judged > 0, "nothing was lost or kept");
    Ok(())
}

/// How many rounds must have met everything there is.
const ENOUGH: u32 = 30;

/// A story in which something was never asked for, or nothing could be lost, shows nothing.
fn was_a_load(told: &Tally, lost: usize) -> Result<()> {
    told.was_a_load()?;
    ensure!(lost > 0 && told.lost > 0, "all that was not flushed was there after each cut");
    Ok(())
}
