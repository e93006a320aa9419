//! [`Tally`]: what a story did and what was looked at, for the figures.

use std::collections::BTreeMap;
use std::fmt;

/// Counts.
#[derive(Debug, Default)]
pub struct Tally {
    pub outages: u64,
    /// Requests that were acknowledged, by what they are.
    pub requests: BTreeMap<&'static str, u64>,
    /// Commands, by what they are: done, and those that an outage or a refusal kept from it.
    pub commands: BTreeMap<&'static str, (u64, u64)>,
    /// Requests that were under way at an outage.
    pub interrupted: u64,
    /// Images and snapshots that were asked for, or removed, by a command without an answer, and are not there.
    pub undone: u64,
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

    pub fn command(&mut self, what: &'static str, done: bool) {
        let (yes, no) = self.commands.entry(what).or_default();
        *(if done { yes } else { no }) += 1;
    }

    /// How many commands have ended, one way or the other.
    pub fn commands_ended(&self) -> u64 {
        self.commands.values().map(|(yes, no)| yes + no).sum()
    }

    pub fn add(&mut self, other: &Self) {
        self.outages += other.outages;
        for (what, count) in &other.requests {
            *self.requests.entry(what).or_default() += count;
        }
        for (what, (yes, no)) in &other.commands {
            let sum = self.commands.entry(what).or_default();
            (sum.0, sum.1) = (sum.0 + yes, sum.1 + no);
        }
        self.interrupted += other.interrupted;
        self.undone += other.undone;
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
        write!(f, "; {} requests and", self.interrupted)?;
        write!(f, " these commands were interrupted or refused, of all:")?;
        for (what, (yes, no)) in &self.commands {
            write!(f, " {what} {no}/{}", yes + no)?;
        }
        write!(
            f,
            "; {} of what they make or remove was undone, {} lists were mended; \
             sectors judged: {} under load, {} after outages, {} of them older than acknowledged",
            self.undone, self.mended, self.read_live, self.judged, self.lost
        )
    }
}
