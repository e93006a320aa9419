//! `kill -9` of a server under load, and of the commands that run beside it: nothing acknowledged is lost.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vellum_testkit::nbd::Client;
use vellum_testkit::{Home, Serve};

use crate::load::Shared;
use crate::machine::{Answer, Machine, check, look};
use crate::record::Outage;
use crate::story::{self, Aim};

/// A home on this machine, its server, and the commands that run.
struct Processes {
    home: Home,
    serve: Mutex<Option<Serve>>,
    running: Mutex<HashMap<u64, Child>>,
    commands: AtomicU64,
}

impl Machine for Processes {
    fn run(&self, arguments: &[&str]) -> Result<Answer> {
        let (out, err) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let mut command = self.home.command(arguments);
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?);
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        self.running.lock().unwrap().insert(number, command.spawn()?);
        loop {
            let mut running = self.running.lock().unwrap();
            let child = running.get_mut(&number).context("only this takes it out")?;
            if let Some(status) = child.try_wait()? {
                running.remove(&number);
                return Ok(Answer { code: status.code(), out: text(out)?, err: text(err)? });
            }
            drop(running);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn second_pool(&self) -> String {
        self.home.file("other").display().to_string()
    }

    fn file(&self) -> String {
        self.home.file("gold.raw").display().to_string()
    }

    fn connect(&self, export: &str) -> Result<Client> {
        let serve = self.serve.lock().unwrap();
        Client::connect(serve.as_ref().context("a server runs")?.socket(), export)
    }
}

fn text(mut file: File) -> Result<String> {
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

impl Processes {
    fn new() -> Result<Self> {
        let home = Home::new(env!("CARGO_BIN_EXE_vellum"))?;
        Ok(Self {
            home,
            serve: Mutex::default(),
            running: Mutex::default(),
            commands: AtomicU64::new(0),
        })
    }

    fn serve(&self) -> Result<()> {
        *self.serve.lock().unwrap() = Some(Serve::start(&self.home)?);
        Ok(())
    }

    /// Kills the server, and with it perhaps all commands.
    fn kill(&self, commands: bool) -> Result<()> {
        if commands {
            for child in self.running.lock().unwrap().values_mut() {
                child.kill()?;
            }
        }
        self.serve.lock().unwrap().take().context("a server runs")?.kill()
    }
}

/// How many rounds must have met everything there is.
const ENOUGH: u32 = 50;
const AIM: Aim =
    Aim { waits: Duration::from_millis(500), looks: Duration::from_millis(1), then_ms: 0..25 };

/// So many rounds of a seed, unless the environment asks for others: a look, a load, a kill.
pub fn story(rounds: u32, seed: u64) -> Result<()> {
    let (rounds, seed) = (story::rounds(rounds)?, story::seed_or(seed)?);
    let mut chance = StdRng::seed_from_u64(seed);
    let machine = Processes::new()?;
    let shared = Shared::of(seed);
    machine.serve()?;
    story::begin(&machine, &shared)?;
    machine.kill(false)?;
    for round in 0..=rounds {
        one_look(&machine, &shared)
            .with_context(|| format!("after {round} rounds of seed {seed}"))?;
        if round > 0 && round % 50 == 0 {
            eprintln!("{round} rounds of kill -9");
        }
        if round < rounds {
            machine.serve()?;
            story::live(&machine, &shared, &mut chance, |chance, begins| {
                std::thread::sleep(Duration::from_millis(chance.random_range(20..280)));
                story::aim(&shared, chance, AIM);
                begins();
                machine.kill(chance.random_bool(0.5))
            })
            .with_context(|| format!("in round {round} of seed {seed}"))?;
        }
    }
    let record = shared.record();
    eprintln!("kill -9, seed {seed}: {}", record.tally);
    if rounds >= ENOUGH {
        record.tally.was_a_load().with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}

/// Looks at everything through a server of its own, which is killed too, with nothing to do.
fn one_look(machine: &Processes, shared: &Shared) -> Result<()> {
    shared.record().tally.mended += check(machine)?;
    machine.serve()?;
    look(machine, &mut shared.record(), Outage::Death)?;
    machine.kill(false)
}
