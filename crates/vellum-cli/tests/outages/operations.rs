//! Commands on images that clients write to, or that nobody uses, chosen by chance.

use std::time::Duration;

use anyhow::{Result, bail};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use vellum_core::Extent;

use crate::load::Shared;
use crate::machine::{Answer, Machine, SECOND_POOL};
use crate::record::{OBJECTS, SIZE};
use crate::tally::End;

const IMAGES_MAX: usize = 7;
const SNAPSHOTS_MAX: usize = 10;
const IMAGES_MIN: usize = 4;

/// Somebody who types commands.
pub struct Operator<'a> {
    machine: &'a dyn Machine,
    shared: &'a Shared,
    chance: StdRng,
    pause_max: Duration,
}

impl<'a> Operator<'a> {
    pub fn new(machine: &'a dyn Machine, shared: &'a Shared, seed: u64) -> Self {
        let chance = StdRng::seed_from_u64(seed);
        Self { machine, shared, chance, pause_max: Duration::from_millis(40) }
    }

    /// Goes on until it is over.
    pub fn run(mut self) -> Result<()> {
        while !self.shared.is_over() {
            self.one()?;
            std::thread::sleep(self.pause_max.mul_f64(self.chance.random_range(0.0..1.0)));
        }
        Ok(())
    }

    fn one(&mut self) -> Result<()> {
        match self.chance.random_range(0..24) {
            0..4 => self.snapshot(),
            4..7 => self.clone_snapshot(),
            7..9 => self.clone_image(),
            9..12 => self.flatten(),
            12..14 => self.remove_snapshot(),
            14..16 => self.remove(),
            16..18 => self.discard_to_zeros(),
            18..22 => self.import(),
            _ => self.discard_to_parent(),
        }
    }

    /// Whether it was done; if not, it may have been. Nothing but an outage, or somebody else who was first, may keep it from it.
    fn command(&mut self, what: &'static str, arguments: &[&str]) -> Result<bool> {
        self.shared.record().tally.begins(what);
        let answer = self.machine.run(arguments);
        let over = self.shared.is_over();
        let end = match answer {
            Ok(answer) if answer.is_done() => End::Done,
            Ok(answer) if is_refused(&answer) => End::Refused,
            Ok(_) | Err(_) if over => End::Interrupted,
            Ok(answer) => bail!("vellum {} {}", arguments.join(" "), answer.told()),
            Err(error) => return Err(error),
        };
        self.shared.record().tally.ends(what, end);
        Ok(end == End::Done)
    }

    /// The same, on an image that stays meanwhile.
    fn command_on(&mut self, image: &str, what: &'static str, arguments: &[&str]) -> Result<bool> {
        let done = self.command(what, arguments)?;
        self.shared.record().command(image, false);
        Ok(done)
    }

    fn snapshot(&mut self) -> Result<()> {
        let mut record = self.shared.record();
        if record.snapshots().len() >= SNAPSHOTS_MAX {
            return Ok(());
        }
        let Some(image) = record.sealable().choose(&mut self.chance).cloned() else {
            return Ok(());
        };
        let name = record.new_name("s");
        record.begin_snapshot(&image, &name);
        record.command(&image, true);
        drop(record);
        let arguments = ["snap", "create", &format!("{image}@{name}")];
        if self.command_on(&image, "snapshot", &arguments)? {
            self.shared.record().end_snapshot(&image, &name);
        }
        Ok(())
    }

    fn clone_snapshot(&mut self) -> Result<()> {
        let mut record = self.shared.record();
        let found = record.clonable().choose(&mut self.chance).cloned();
        let Some((image, snapshot)) = found.filter(|_| record.count() < IMAGES_MAX) else {
            return Ok(());
        };
        let name = record.new_name(&self.some_place());
        let object = self.some_object_size();
        record.begin_image(&name, object, Some((&image, Some(&snapshot))));
        drop(record);
        self.make_clone(&format!("{image}@{snapshot}"), &name, object)
    }

    fn clone_image(&mut self) -> Result<()> {
        let mut record = self.shared.record();
        let found = record.sealable().choose(&mut self.chance).cloned();
        let Some(image) = found.filter(|_| record.count() < IMAGES_MAX) else {
            return Ok(());
        };
        let name = record.new_name(&self.some_place());
        let object = self.some_object_size();
        record.begin_image(&name, object, Some((&image, None)));
        drop(record);
        self.make_clone(&image, &name, object)
    }

    /// What a clone's name begins with: in the home's pool or in the other one.
    fn some_place(&mut self) -> String {
        if self.chance.random_bool(0.3) { format!("{SECOND_POOL}/c") } else { "c".to_owned() }
    }

    fn some_object_size(&mut self) -> u64 {
        OBJECTS[usize::from(self.chance.random_bool(0.3))]
    }

    fn make_clone(&mut self, from: &str, name: &str, object: u64) -> Result<()> {
        let layering = if self.chance.random_bool(0.5) { "sparse" } else { "copy-up" };
        let object = object.to_string();
        let shape = ["--layering", layering, "--object-size", &object];
        if self.command("clone", &[&["clone"], &shape[..], &[from, name]].concat())? {
            self.shared.record().end_image(name);
        }
        Ok(())
    }

    /// An image of the file that was made of the first snapshot: it is there as a whole or not at all.
    fn import(&mut self) -> Result<()> {
        let mut record = self.shared.record();
        if record.count() >= IMAGES_MAX {
            return Ok(());
        }
        let name = record.new_name("i");
        let object = self.some_object_size();
        record.begin_import(&name, object);
        drop(record);
        let (file, object) = (self.machine.file(), object.to_string());
        if self.command("import", &["import", "--object-size", &object, &file, &name])? {
            self.shared.record().end_image(&name);
        }
        Ok(())
    }

    fn flatten(&mut self) -> Result<()> {
        let mut record = self.shared.record();
        let Some(image) = record.clones().choose(&mut self.chance).cloned() else {
            return Ok(());
        };
        record.begin_flatten(&image);
        record.command(&image, true);
        drop(record);
        // Half of them slowly, so that an outage finds them in the middle.
        let slow: &[&str] = if self.chance.random_bool(0.5) { &["--rate", "4M"] } else { &[] };
        if self.command_on(&image, "flatten", &[&["flatten", &image], slow].concat())? {
            self.shared.record().end_flatten(&image);
        }
        Ok(())
    }

    fn remove_snapshot(&mut self) -> Result<()> {
        let mut record = self.shared.record();
        let Some((image, name)) = record.removable_snapshots().choose(&mut self.chance).cloned()
        else {
            return Ok(());
        };
        record.begin_snapshot_removal(&image, &name);
        record.command(&image, true);
        drop(record);
        let arguments = ["snap", "rm", &format!("{image}@{name}")];
        if self.command_on(&image, "snapshot removal", &arguments)? {
            self.shared.record().end_snapshot_removal(&image, &name);
        }
        Ok(())
    }

    fn remove(&mut self) -> Result<()> {
        let mut record = self.shared.record();
        // The oldest one, as its chain is the longest.
        let oldest = record.removable().into_iter().min_by_key(|name| number(name));
        let Some(image) = oldest.filter(|_| record.count() > IMAGES_MIN) else {
            return Ok(());
        };
        record.begin_removal(&image);
        drop(record);
        if self.command("removal", &["rm", &image])? {
            self.shared.record().end_removal(&image);
        }
        Ok(())
    }

    fn discard_to_zeros(&mut self) -> Result<()> {
        let mut record = self.shared.record();
        let Some(image) = record.images().choose(&mut self.chance).cloned() else {
            return Ok(());
        };
        let at = self.some_objects(record.object(&image));
        let change = record.begin(&image, at, 0);
        record.command(&image, true);
        drop(record);
        if self.discard(&image, at, "zero")? {
            self.shared.record().end(&image, at, change, false);
        }
        Ok(())
    }

    fn discard_to_parent(&mut self) -> Result<()> {
        let mut record = self.shared.record();
        let Some(image) = record.unflattened().choose(&mut self.chance).cloned() else {
            return Ok(());
        };
        let at = self.some_objects(record.object(&image));
        let change = record.begin_discard_to_parent(&image, at);
        record.command(&image, true);
        drop(record);
        if self.discard(&image, at, "parent")? {
            self.shared.record().end_discard_to_parent(&image, at, change);
        }
        Ok(())
    }

    fn discard(&mut self, image: &str, at: Extent, to: &str) -> Result<bool> {
        let place = self.shared.record().place(at);
        let (offset, length) = (place.offset().to_string(), place.length().to_string());
        let arguments = ["discard", image, "--offset", &offset, "--length", &length, "--to", to];
        self.command_on(image, "discard", &arguments)
    }

    fn some_objects(&mut self, object: u64) -> Extent {
        let first = self.chance.random_range(0..SIZE / object);
        let count = self.chance.random_range(1..8);
        Extent::new(first * object, count * object).clip(SIZE)
    }
}

/// Whether somebody else was first: it is in use or has children by now, or what excludes this is under way.
fn is_refused(answer: &Answer) -> bool {
    answer.code == Some(5) || answer.err.contains("is under way on this image")
}

fn number(name: &str) -> u32 {
    name.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(u32::MAX)
}
