//! [`Record`]: which images and snapshots exist, and what each sector of them may read as, by what was asked and answered.
//!
//! It is kept outside of what goes down. What was under way at an outage happened or did not; the first [`look`] afterwards
//! settles it. What may be done next is among the [`choices`].

mod choices;
mod look;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use vellum_core::Extent;
use vellum_sim::{ChangeId, History, Value};

use crate::content::{SECTOR, anatomy, is_mixture, stamp_of};
use crate::tally::Tally;

/// How much is known of an image: its end. It has nothing before.
pub const SIZE: u64 = 4 << 20;
/// So much before that a border between two sectors of its layers' maps, each of 1,984 blocks, lies in the middle of what is known.
const BEFORE_A_SECTOR: u64 = 6 << 20;
/// So much that it is a border between two pages, of eight sectors each.
const BEFORE_A_PAGE: u64 = 60 << 20;
/// The sizes of their objects: what a copy-up clone copies at once.
pub const OBJECTS: [u64; 2] = [64 << 10, 1 << 20];
const SECTORS: u64 = SIZE / SECTOR;

const _: () = {
    let sector_of_a_map = 1984 * 4096;
    let (sector, page) = (sector_of_a_map - BEFORE_A_SECTOR, 8 * sector_of_a_map - BEFORE_A_PAGE);
    assert!(SIZE / 4 < sector && sector < SIZE / 2 && page == SIZE / 2);
    // What covers whole objects of what is known covers whole objects of the image.
    assert!(BEFORE_A_SECTOR.is_multiple_of(OBJECTS[1]) && BEFORE_A_PAGE.is_multiple_of(OBJECTS[1]));
};

/// The image that all others come from, and its snapshot. Both stay.
pub const FIRST: &str = "gold";
pub const FIRST_SNAPSHOT: &str = "s";
/// An image whose chain may be so long is not sealed again.
const DEPTH_MAX: u32 = 24;

/// What went down since the last look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outage {
    /// The server died, on a machine that goes on for ever: all that was acknowledged is there.
    Death,
    /// The same, on a machine whose power may be cut later: what is there need not be synced.
    DeathBeforePower,
    /// The machine lost its power: all that was synced is there.
    Power,
}

/// What each sector of something sealed reads as: one thing for ever, which whoever looks first finds out.
#[derive(Clone, Debug)]
pub struct Frozen(Arc<Mutex<Vec<Vec<u64>>>>);

impl Frozen {
    fn new(values: Vec<Vec<u64>>) -> Self {
        Self(Arc::new(Mutex::new(values)))
    }

    fn values(&self, sector: u64) -> Vec<u64> {
        self.0.lock().expect("nobody panicked with it")[sector as usize].clone()
    }

    fn is(&self, sector: u64, value: u64) {
        self.0.lock().expect("nobody panicked with it")[sector as usize] = vec![value];
    }
}

/// A moment of an image that was sealed.
#[derive(Debug)]
struct Snapshot {
    /// When it was asked for, by the image's clock. What had ended by then is in it.
    since: u64,
    /// `None` while it is not known whether it was made.
    content: Option<Frozen>,
    /// `false` while it may be there or not.
    certain: bool,
    /// The clone that it was made for, if it has no name that we know.
    made_for: Option<String>,
}

/// What is known of an image.
#[derive(Debug)]
pub struct Known {
    history: History,
    /// Bytes in an object.
    object: u64,
    /// What shows where nothing was written; `None` while it is not known whether the image was made.
    base: Option<Frozen>,
    certain: bool,
    snapshots: BTreeMap<String, Snapshot>,
    parent: Option<Link>,
    /// A flatten was begun, once.
    flattens: bool,
    /// Discards to the parent that are under way.
    discards: u32,
    /// Clients that write to it.
    users: u32,
    /// Commands on it that are under way.
    commands: u32,
    /// How many layers its chain may have: it was sealed so often, or what it was cloned from.
    depth: u32,
}

/// Where an image comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Link {
    image: String,
    /// `None` if it was made for the clone.
    snapshot: Option<String>,
}

/// An image as the program lists it.
#[derive(Debug)]
pub struct Listed {
    pub name: String,
    /// Image and snapshot.
    pub parent: Option<(String, String)>,
    pub snapshots: Vec<String>,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub struct Record {
    /// How much lies before what is known, in each image.
    before: u64,
    images: BTreeMap<String, Known>,
    stamps: u64,
    names: u32,
    pub tally: Tally,
}

impl Record {
    /// One of images whose maps are torn between two sectors, or between two pages, by a seed.
    pub fn of(seed: u64) -> Self {
        let before = [BEFORE_A_SECTOR, BEFORE_A_PAGE][(seed % 2) as usize];
        Self { before, ..Self::default() }
    }

    /// The size of all images.
    pub fn size(&self) -> u64 {
        self.before + SIZE
    }

    /// Where in an image that lies of which something is known.
    pub fn place(&self, at: Extent) -> Extent {
        Extent::new(self.before + at.offset(), at.length())
    }

    /// A piece of an image right before that.
    pub fn before(&self, length: u64) -> Extent {
        Extent::between(self.before.saturating_sub(length), self.before)
    }

    /// A number that no request has had yet.
    pub fn stamp(&mut self) -> u64 {
        self.stamps += 1;
        self.stamps
    }

    /// A name that nothing has had yet.
    pub fn new_name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}{}", self.names)
    }

    fn known(&mut self, image: &str) -> &mut Known {
        self.images.get_mut(image).expect("whoever uses an image keeps it")
    }

    // What a client does to an image.

    /// A client uses an image: it is not to be removed.
    pub fn attach(&mut self, image: &str) {
        self.known(image).users += 1;
    }

    /// A command that is no removal begins on an image, or has ended: it is not to be removed meanwhile.
    pub fn command(&mut self, image: &str, begins: bool) {
        let known = self.known(image);
        known.commands = if begins { known.commands + 1 } else { known.commands.saturating_sub(1) };
    }

    /// No client and no command uses anything any more.
    pub fn detach_all(&mut self) {
        for known in self.images.values_mut() {
            (known.users, known.discards, known.commands) = (0, 0, 0);
        }
    }

    /// How large the objects of an image are: what covers whole ones can be discarded in both modes.
    pub fn object(&mut self, image: &str) -> u64 {
        self.known(image).object
    }

    /// The moment now, by the clock of an image.
    pub fn now(&mut self, image: &str) -> u64 {
        self.known(image).history.tick()
    }

    /// A request that fills an extent with a stamp, or with zeros, begins.
    pub fn begin(&mut self, image: &str, at: Extent, stamp: u64) -> ChangeId {
        self.known(image).history.begin(at, Value::Holds(stamp), false)
    }

    /// It was acknowledged.
    pub fn end(&mut self, image: &str, at: Extent, change: ChangeId, durable: bool) {
        self.known(image).history.end(at, change, durable);
    }

    /// A flush that was asked for at a moment was answered.
    pub fn synced(&mut self, image: &str, since: u64) {
        self.known(image).history.synced(since);
    }

    /// What a client read which asked at a moment. The kernel keeps a read of the page cache and a write beside it apart on
    /// no boundary on ext4, so of what may be either there may be parts of both.
    pub fn judge_read(&mut self, image: &str, since: u64, at: Extent, bytes: &[u8]) -> Result<()> {
        let known = self.known(image);
        for ((sector, value), bytes) in stamps(at, bytes).zip(bytes.chunks_exact(SECTOR as usize)) {
            let values = known.values_since(sector, since);
            if value.is_none() && is_mixture(sector, bytes, &values) {
                continue;
            }
            let allowed = known.history.allowed_since(sector, since);
            known.explain(sector, value, &allowed).with_context(|| {
                let story = known.history.story(sector);
                let anatomy = anatomy(sector, bytes, &values);
                format!("a client of {image} reads: {story}; it may be of {values:?}: {anatomy}")
            })?;
        }
        self.tally.read_live += at.length() / SECTOR;
        Ok(())
    }

    // What is done to images.

    /// An empty image is asked for, or a clone of a snapshot, or of the image as it is now, which seals it.
    pub fn begin_image(&mut self, name: &str, object: u64, from: Option<(&str, Option<&str>)>) {
        let base = match from {
            None => Some(Frozen::new(vec![vec![0]; SECTORS as usize])),
            Some((image, Some(snapshot))) => self.known(image).snapshots[snapshot].content.clone(),
            Some((image, None)) => {
                self.begin_seal(image, &format!("for {name}"), Some(name));
                None
            }
        };
        let depth = match from {
            None | Some((FIRST, Some(FIRST_SNAPSHOT))) => 1,
            Some((image, _)) => self.known(image).depth + 1,
        };
        let parent = from.map(|(image, snapshot)| Link {
            image: image.to_owned(),
            snapshot: snapshot.map(str::to_owned),
        });
        let known = Known {
            history: History::new(),
            object,
            base,
            certain: false,
            snapshots: BTreeMap::new(),
            parent,
            flattens: false,
            discards: 0,
            users: 0,
            commands: 0,
            depth,
        };
        self.images.insert(name.to_owned(), known);
    }

    /// An image is asked for that holds what the first snapshot does, and has no parent.
    pub fn begin_import(&mut self, name: &str, object: u64) {
        let content = self.known(FIRST).snapshots[FIRST_SNAPSHOT].content.clone();
        self.begin_image(name, object, None);
        self.known(name).base = content;
    }

    /// It was made.
    pub fn end_image(&mut self, name: &str) {
        let known = self.known(name);
        known.certain = true;
        if let Some(Link { image, snapshot: None }) = known.parent.clone() {
            let sealed = self.end_seal(&image, &format!("for {name}"));
            self.known(name).base = Some(sealed);
        }
    }

    /// A removal begins: from now on it may be gone.
    pub fn begin_removal(&mut self, name: &str) {
        self.known(name).certain = false;
    }

    /// It is gone.
    pub fn end_removal(&mut self, name: &str) {
        self.images.remove(name);
    }

    /// A snapshot is asked for.
    pub fn begin_snapshot(&mut self, image: &str, name: &str) {
        self.begin_seal(image, name, None);
    }

    /// It was made.
    pub fn end_snapshot(&mut self, image: &str, name: &str) {
        self.end_seal(image, name);
    }

    /// The removal of a snapshot begins.
    pub fn begin_snapshot_removal(&mut self, image: &str, name: &str) {
        let snapshot = self.known(image).snapshots.get_mut(name);
        snapshot.expect("whoever uses a snapshot keeps it").certain = false;
    }

    /// It is gone.
    pub fn end_snapshot_removal(&mut self, image: &str, name: &str) {
        self.known(image).snapshots.remove(name);
    }

    /// A flatten begins.
    pub fn begin_flatten(&mut self, image: &str) {
        self.known(image).flattens = true;
    }

    /// It has cut the link.
    pub fn end_flatten(&mut self, image: &str) {
        self.known(image).parent = None;
    }

    /// A discard that shows the parent again begins.
    pub fn begin_discard_to_parent(&mut self, image: &str, at: Extent) -> ChangeId {
        let known = self.known(image);
        known.discards += 1;
        known.history.begin(at, Value::Inherited, false)
    }

    /// It was answered.
    pub fn end_discard_to_parent(&mut self, image: &str, at: Extent, change: ChangeId) {
        let known = self.known(image);
        known.discards -= 1;
        known.history.end(at, change, false);
    }

    fn begin_seal(&mut self, image: &str, name: &str, made_for: Option<&str>) {
        let known = self.known(image);
        known.depth += 1;
        let since = known.history.tick();
        let made_for = made_for.map(str::to_owned);
        let snapshot = Snapshot { since, content: None, certain: false, made_for };
        known.snapshots.insert(name.to_owned(), snapshot);
    }

    /// A snapshot was made: it holds what had ended when it was asked for, and a sync was part of it.
    fn end_seal(&mut self, image: &str, name: &str) -> Frozen {
        let known = self.known(image);
        let since = known.snapshots[name].since;
        let values = (0..SECTORS).map(|sector| known.values_since(sector, since));
        let frozen = Frozen::new(values.collect());
        known.history.synced(since);
        let snapshot = known.snapshots.get_mut(name).expect("it was begun");
        (snapshot.content, snapshot.certain) = (Some(frozen.clone()), true);
        frozen
    }
}

impl Known {
    /// Which of what is allowed explains a value; what lies below is found out by the way.
    fn explain(&self, sector: u64, value: Option<u64>, allowed: &[Value]) -> Result<u64> {
        let below = || self.base.as_ref().map_or_else(Vec::new, |base| base.values(sector));
        let Some(value) = value else {
            bail!("sector {sector} holds what was never written to it")
        };
        if allowed.contains(&Value::Holds(value)) {
            return Ok(value);
        }
        if allowed.contains(&Value::Inherited) && below().contains(&value) {
            if let Some(base) = &self.base {
                base.is(sector, value);
            }
            return Ok(value);
        }
        bail!("sector {sector} reads {value}, and may read {allowed:?} over {:?}", below())
    }

    /// All that a sector may ever have been, as far as that is remembered.
    fn all_values(&self, sector: u64) -> Vec<u64> {
        self.values_since(sector, 0)
    }

    fn values_since(&self, sector: u64, since: u64) -> Vec<u64> {
        let allowed = self.history.allowed_since(sector, since).into_iter();
        let mut values: Vec<u64> = allowed
            .flat_map(|value| match value {
                Value::Holds(value) => vec![value],
                Value::Inherited => {
                    self.base.as_ref().map_or_else(Vec::new, |base| base.values(sector))
                }
            })
            .collect();
        values.sort_unstable();
        values.dedup();
        values
    }
}

/// The sectors of what was read, each with its stamp; `None` is what nobody wrote.
fn stamps(at: Extent, bytes: &[u8]) -> impl Iterator<Item = (u64, Option<u64>)> {
    let first = at.offset() / SECTOR;
    let sectors = bytes.chunks_exact(SECTOR as usize);
    (first..).zip(sectors).map(|(number, sector)| (number, stamp_of(number, sector)))
}
