//! What is known of images, from outside: names, snapshots, parents, and what each sector may read as.

use std::collections::BTreeSet;

use vellum_core::Extent;
use vellum_engine::{ImageRecord, Version};
use vellum_sim::{History, Value};

pub const SECTOR: u64 = 512;
/// How much is known of an image: all of a small one, or the end of a larger one, which has nothing before. Not a multiple of any
/// unit, so that the last one is short.
pub const SIZE: u64 = 24 * 4096 + 3 * SECTOR;
pub const SECTORS: u64 = SIZE / SECTOR;

/// So much before what is known of an image that a border between two sectors of its layers' maps, each of them about 1,984 units,
/// lies in the middle of that. With blocks of 512 bytes it is one between two pages, of eight sectors each.
pub const BEFORE_A_SECTOR: u64 = 1984 * 4096 - 12 * 4096;
/// So much that it is a border between two pages, whatever the blocks.
pub const BEFORE_A_PAGE: u64 = 8 * 1984 * 4096 - 12 * 4096;

/// What each sector of a snapshot may read as; it is one thing for ever, which the first look finds out.
#[derive(Clone, Debug)]
pub struct Frozen(Vec<BTreeSet<Value>>);

impl Frozen {
    /// Zeros, as a new image has.
    pub fn zeros() -> Self {
        Self(vec![BTreeSet::from([Value::Holds(0)]); SECTORS as usize])
    }

    /// What a history allows to whoever reads since a moment.
    pub fn of(history: &History, since: u64) -> Self {
        Self(
            (0..SECTORS)
                .map(|sector| history.allowed_since(sector, since).into_iter().collect())
                .collect(),
        )
    }

    /// Looks at it; what was found is what it is.
    pub fn find(&mut self, name: &str, found: &[Value]) {
        for (sector, value) in found.iter().enumerate() {
            let allowed = &mut self.0[sector];
            assert!(
                allowed.contains(value),
                "sector {sector} of {name} reads as {value:?}, and may read as {allowed:?}"
            );
            *allowed = BTreeSet::from([*value]);
        }
    }

    /// What a sector reads as, once it was looked at.
    pub fn value(&self, sector: u64) -> Value {
        let mut values = self.0[sector as usize].iter();
        match (values.next(), values.next()) {
            (Some(value), None) => *value,
            _ => panic!("sector {sector} was not looked at"),
        }
    }

    /// A history that begins with it.
    pub fn history(&self) -> History {
        let mut history = History::new();
        for sector in 0..SECTORS {
            history.settle(sector, self.value(sector));
        }
        history
    }
}

/// A snapshot.
#[derive(Clone, Debug)]
pub struct KnownSnapshot {
    pub name: String,
    pub content: Frozen,
}

/// An image.
#[derive(Debug)]
pub struct Known {
    /// What it was called at first, by which it is known here for as long as it lives.
    pub name: String,
    /// What it is called, since a version of its record.
    pub called: (String, Version),
    /// Which pool it is in.
    pub pool: usize,
    pub history: History,
    pub snapshots: Vec<KnownSnapshot>,
    /// What a discard of its parent's content shows; `None` without a parent.
    pub parent: Option<Frozen>,
    /// A flatten is under way.
    pub flattens: bool,
}

impl Known {
    /// A new one.
    pub fn new(name: String, pool: usize, content: &Frozen, parent: Option<Frozen>) -> Self {
        let history = content.history();
        let called = (name.clone(), Version(0));
        Self { name, called, pool, history, snapshots: Vec::new(), parent, flattens: false }
    }

    /// This is its record, or was once.
    pub fn is_called(&mut self, record: &ImageRecord) {
        if self.called.1 < record.version {
            self.called = (record.name.to_string(), record.version);
        }
    }

    /// A snapshot that was begun at a moment exists. Whatever had ended by then is durable.
    pub fn has_snapshot(&mut self, name: String, since: u64) {
        let content = Frozen::of(&self.history, since);
        self.snapshots.push(KnownSnapshot { name, content });
        self.history.synced(since);
    }

    /// Looks at all of it, after whoever wrote it has ended: what was found is what is there. After a power cut, or a failure of
    /// the storage, what was not durable may be lost.
    pub fn sees(&mut self, found: &[Value], may_be_lost: bool) {
        self.history.tick();
        for (sector, value) in (0..).zip(found) {
            let allowed = if may_be_lost {
                self.history.allowed_after_power_cut(sector)
            } else {
                self.history.allowed_now(sector)
            };
            assert!(
                allowed.contains(value),
                "sector {sector} of {} reads as {value:?} (unsynced may be lost: {may_be_lost}), and may read as {allowed:?}; {}",
                self.name,
                self.history.story(sector)
            );
            if may_be_lost {
                self.history.settle(sector, *value);
            } else {
                self.history.see(sector, *value);
            }
        }
    }

    /// A snapshot of this name.
    pub fn snapshot(&mut self, name: &str) -> Option<&mut KnownSnapshot> {
        self.snapshots.iter_mut().find(|snapshot| snapshot.name == name)
    }
}

/// A change of a catalog: until it has ended it happened or it did not.
#[derive(Clone, Debug)]
pub enum Change {
    Create { pool: usize },
    Clone { pool: usize, content: Frozen },
    Remove,
    Snapshot { name: String, since: u64 },
    RemoveSnapshot { name: String },
    Flatten,
    Rename { to: String },
}

/// The sectors of an extent.
pub fn sectors(at: Extent) -> std::ops::Range<u64> {
    at.offset() / SECTOR..at.end() / SECTOR
}
