//! [`Tally`]: what a story did and what was looked at, for the figures.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, ensure};

/// What clients ask for that an outage could lose.
pub const REQUESTS: [&str; 4] = ["write", "zero", "discard", "flush"];
/// What commands do.
pub const COMMANDS: [&str; 7] =
    ["snapshot", "clone", "flatten", "snapshot removal", "removal", "discard", "import"];
/// Commands that an outage has to find in the middle of their work.
pub const TARGETS: [&str; 2] = ["snapshot", "flatten"];

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Done,
    /// It said that somebody else was first, or is in the way.
    Refused,
    /// An outage ended it, or took its answer away.
    Interrupted,
}

/// How commands of one kind ended.
#[derive(Clone, Copy, Default, Debug)]
pub struct Ended {
    pub done: u64,
    pub refused: u64,
    pub interrupted: u64,
}

impl Ended {
    fn all(&self) -> u64 {
        self.done + self.refused + self.interrupted
    }

    fn add(&mut self, other: &Self) {
        self.done += other.done;
        self.refused += other.refused;
        self.interrupted += other.interrupted;
    }
}

/// Counts.
#[derive(Debug, Default)]
pub struct Tally {
    pub outages: u64,
    /// Requests that were acknowledged, by what they are.
    pub requests: BTreeMap<&'static str, u64>,
    /// Commands that have ended, by what they are, one of [`COMMANDS`].
    commands: BTreeMap<&'static str, Ended>,
    /// Commands that are under way, likewise.
    under_way: BTreeMap<&'static str, u64>,
    /// Requests that were under way at an outage.
    pub interrupted: u64,
    /// Images and snapshots that were asked for, or removed, by a command without an answer, and are not there.
    pub undone: u64,
    /// Images without their names that imports left which an outage ended.
    pub half_imported: u64,
    /// Lists of children that an outage between two pools left behind or ahead.
    pub mended: u64,
    /// Sectors that were read and judged while the load ran.
    pub read_live: u64,
    /// Sectors that were read and judged after an outage.
    pub judged: u64,
    /// Of these, those that had gone back to an older content, as a power cut may let them.
    pub lost: u64,
}

impl Tally {
    pub fn answered(&mut self, what: &'static str) {
        *self.requests.entry(what).or_default() += 1;
    }

    /// A command begins.
    pub fn begins(&mut self, what: &'static str) {
        assert!(COMMANDS.contains(&what), "{what} is not among what commands do");
        *self.under_way.entry(what).or_default() += 1;
    }

    /// It has ended.
    pub fn ends(&mut self, what: &'static str, end: End) {
        *self.under_way.get_mut(what).expect("it has begun") -= 1;
        let ended = self.commands.entry(what).or_default();
        match end {
            End::Done => ended.done += 1,
            End::Refused => ended.refused += 1,
            End::Interrupted => ended.interrupted += 1,
        }
    }

    /// Whether a command of this kind is under way.
    pub fn is_under_way(&self, what: &str) -> bool {
        self.under_way.get(what).is_some_and(|count| *count > 0)
    }

    /// How commands of this kind have ended.
    pub fn ended(&self, what: &str) -> Ended {
        self.commands.get(what).copied().unwrap_or_default()
    }

    /// How many commands have ended, one way or the other.
    pub fn commands_ended(&self) -> u64 {
        self.commands.values().map(Ended::all).sum()
    }

    /// A story in which something was never done, never interrupted or never looked at shows nothing of it.
    pub fn was_a_load(&self) -> Result<()> {
        for what in REQUESTS {
            ensure!(self.requests.contains_key(what), "no {what} was ever acknowledged");
        }
        for what in COMMANDS {
            ensure!(self.ended(what).done > 0, "no {what} was ever done");
        }
        for what in TARGETS {
            ensure!(self.ended(what).interrupted > 0, "no outage met a {what}");
        }
        ensure!(self.interrupted > 0, "no request was under way at an outage");
        ensure!(self.read_live > 0 && self.judged > 0, "nothing was read and judged");
        Ok(())
    }

    pub fn add(&mut self, other: &Self) {
        self.outages += other.outages;
        for (what, count) in &other.requests {
            *self.requests.entry(what).or_default() += count;
        }
        for (what, ended) in &other.commands {
            self.commands.entry(what).or_default().add(ended);
        }
        self.interrupted += other.interrupted;
        self.undone += other.undone;
        self.half_imported += other.half_imported;
        self.mended += other.mended;
        self.read_live += other.read_live;
        self.judged += other.judged;
        self.lost += other.lost;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} outages; acknowledged:", self.outages)?;
        for (what, count) in &self.requests {
            write!(f, " {what} {count}")?;
        }
        write!(f, "; {} requests were interrupted", self.interrupted)?;
        write!(f, "; commands done, refused and interrupted:")?;
        for (what, Ended { done, refused, interrupted }) in &self.commands {
            write!(f, " {what} {done}+{refused}+{interrupted}")?;
        }
        write!(
            f,
            "; {} of what they make or remove was undone, {} lists were mended; \
             {} imports broke off; \
             sectors judged: {} under load, {} after outages, {} of them older than acknowledged",
            self.undone, self.mended, self.half_imported, self.read_live, self.judged, self.lost
        )
    }
}
