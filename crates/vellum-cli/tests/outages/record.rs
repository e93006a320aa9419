//! [`Record`]: which images and snapshots exist, and what each sector of them may read as, by what was asked and answered.
//!
//! It is kept outside of what goes down. What was under way at an outage happened or did not; the first look afterwards settles it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail, ensure};
use vellum_core::Extent;
use vellum_sim::{ChangeId, History, Value};

use crate::content::{SECTOR, stamp_of};
use crate::tally::Tally;

/// The size of all images.
pub const SIZE: u64 = 4 << 20;
/// The sizes of their objects: what a copy-up clone copies at once.
pub const OBJECTS: [u64; 2] = [64 << 10, 1 << 20];
const SECTORS: u64 = SIZE / SECTOR;
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
    images: BTreeMap<String, Known>,
    stamps: u64,
    names: u32,
    pub tally: Tally,
}

/// What snapshots made for a clone are called.
const AUTOMATIC: &str = "auto-";

impl Record {
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

    /// What a client read which asked at a moment.
    pub fn judge_read(&mut self, image: &str, since: u64, at: Extent, bytes: &[u8]) -> Result<()> {
        let known = self.known(image);
        for (sector, value) in stamps(at, bytes) {
            let allowed = known.history.allowed_since(sector, since);
            known.explain(sector, value, &allowed).with_context(|| {
                format!("a client of {image} reads: {}", known.history.story(sector))
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

    // What may be chosen.

    /// Images that surely exist.
    pub fn images(&self) -> Vec<String> {
        self.names_of(|_, known| known.certain)
    }

    /// Images that can be sealed once more.
    pub fn sealable(&self) -> Vec<String> {
        self.names_of(|_, known| known.certain && known.depth < DEPTH_MAX)
    }

    /// How many images there may be.
    pub fn count(&self) -> usize {
        self.images.len()
    }

    /// Images that nobody uses and nothing was cloned from. The first one stays.
    pub fn removable(&self) -> Vec<String> {
        self.names_of(|name, known| {
            let idle = known.users == 0 && known.commands == 0;
            known.certain && idle && name != FIRST && !self.has_child(name, None)
        })
    }

    /// Images with a parent.
    pub fn clones(&self) -> Vec<String> {
        self.names_of(|_, known| known.certain && known.parent.is_some() && known.discards == 0)
    }

    /// Clones whose content can be given back to the parent.
    pub fn unflattened(&self) -> Vec<String> {
        self.names_of(|_, known| known.certain && known.parent.is_some() && !known.flattens)
    }

    /// Snapshots with a name, of images that surely exist.
    pub fn snapshots(&self) -> Vec<(String, String)> {
        let images = self.images.iter().filter(|(_, known)| known.certain);
        let all = images.flat_map(|(image, known)| {
            let named = known
                .snapshots
                .iter()
                .filter(|(_, snapshot)| snapshot.certain && snapshot.made_for.is_none());
            named.map(move |(name, _)| (image.clone(), name.clone()))
        });
        all.collect()
    }

    /// Those that a clone can be made of.
    pub fn clonable(&self) -> Vec<(String, String)> {
        let mut found = self.snapshots();
        found.retain(|(image, name)| {
            self.images[image].depth < DEPTH_MAX || (image == FIRST && name == FIRST_SNAPSHOT)
        });
        found
    }

    /// Those without clones. The first one stays.
    pub fn removable_snapshots(&self) -> Vec<(String, String)> {
        let mut found = self.snapshots();
        found.retain(|(image, name)| {
            !self.has_child(image, Some(name)) && (image != FIRST || name != FIRST_SNAPSHOT)
        });
        found
    }

    fn names_of(&self, wanted: impl Fn(&str, &Known) -> bool) -> Vec<String> {
        let found = self.images.iter().filter(|(name, known)| wanted(name, known));
        found.map(|(name, _)| name.clone()).collect()
    }

    fn has_child(&self, image: &str, snapshot: Option<&str>) -> bool {
        self.images.values().filter_map(|known| known.parent.as_ref()).any(|link| {
            link.image == image && (snapshot.is_none() || link.snapshot.as_deref() == snapshot)
        })
    }

    // What a look finds after an outage.

    /// Holds what the program lists against what is known. What was under way is settled by it.
    pub fn take_stock(&mut self, listed: &[Listed]) -> Result<()> {
        let missing: Vec<String> =
            self.names_of(|name, _| !listed.iter().any(|seen| seen.name == name));
        for name in missing {
            ensure!(!self.known(&name).certain, "image {name} is gone");
            self.images.remove(&name);
            self.tally.undone += 1;
        }
        for seen in listed {
            let known = self.images.get_mut(&seen.name);
            let known = known.with_context(|| format!("image {} is back", seen.name))?;
            known.certain = true;
            known.stock_snapshots(seen, &mut self.tally)?;
            known.stock_parent(seen)?;
        }
        self.settle_seals();
        Ok(())
    }

    /// What was sealed, as it turned out, holds what had ended when that began.
    fn settle_seals(&mut self) {
        for image in self.names_of(|_, _| true) {
            for (name, made_for) in self.known(&image).unsettled() {
                let clone = made_for.filter(|clone| self.images.contains_key(clone));
                match clone {
                    Some(clone) => {
                        let sealed = self.end_seal(&image, &name);
                        self.known(&clone).base = Some(sealed);
                    }
                    None if self.known(&image).snapshots[&name].made_for.is_some() => {
                        self.known(&image).snapshots.remove(&name);
                    }
                    None => drop(self.end_seal(&image, &name)),
                }
            }
        }
    }

    /// Everything there is to be read: images and their snapshots with a name, snapshots first.
    pub fn readable(&self) -> Vec<(String, Option<String>)> {
        let snapshots = self.snapshots().into_iter().map(|(image, name)| (image, Some(name)));
        let heads = self.images.keys().map(|image| (image.clone(), None));
        snapshots.chain(heads).collect()
    }

    /// What a snapshot reads as, after whatever outage.
    pub fn judge_snapshot(
        &mut self,
        image: &str,
        name: &str,
        at: Extent,
        bytes: &[u8],
    ) -> Result<()> {
        let frozen = self.known(image).snapshots[name].content.clone();
        let frozen = frozen.context("a snapshot that is read is settled")?;
        for (sector, value) in stamps(at, bytes) {
            let allowed = frozen.values(sector);
            match value {
                Some(value) if allowed.contains(&value) => frozen.is(sector, value),
                _ => bail!(
                    "{image}@{name}: sector {sector} reads {value:?}, and may read {allowed:?}"
                ),
            }
        }
        self.tally.judged += at.length() / SECTOR;
        Ok(())
    }

    /// What an image reads as after an outage. What was found is what is there from now on.
    pub fn judge_image(
        &mut self,
        image: &str,
        at: Extent,
        bytes: &[u8],
        outage: Outage,
    ) -> Result<()> {
        let known = self.images.get_mut(image).expect("it was listed");
        for (sector, value) in stamps(at, bytes) {
            let now = known.history.allowed_now(sector);
            let allowed = match outage {
                Outage::Death | Outage::DeathBeforePower => now.clone(),
                Outage::Power => known.history.allowed_after_power_cut(sector),
            };
            let value = known.explain(sector, value, &allowed).with_context(|| {
                format!("{image} after {outage:?}: {}", known.history.story(sector))
            })?;
            self.tally.lost += u64::from(known.explain(sector, Some(value), &now).is_err());
            match outage {
                Outage::DeathBeforePower => known.history.see(sector, Value::Holds(value)),
                Outage::Death | Outage::Power => {
                    known.history.settle(sector, Value::Holds(value));
                }
            }
        }
        self.tally.judged += at.length() / SECTOR;
        Ok(())
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

    fn stock_snapshots(&mut self, seen: &Listed, tally: &mut Tally) -> Result<()> {
        let image = &seen.name;
        for name in seen.snapshots.iter().filter(|name| !name.starts_with(AUTOMATIC)) {
            let snapshot = self.snapshots.get_mut(name);
            let snapshot = snapshot.with_context(|| format!("snapshot {image}@{name} is back"))?;
            snapshot.certain = true;
        }
        let missing = self.snapshots.iter().filter(|(name, snapshot)| {
            snapshot.made_for.is_none() && !seen.snapshots.contains(name)
        });
        for name in missing.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            ensure!(!self.snapshots[&name].certain, "snapshot {image}@{name} is gone");
            self.snapshots.remove(&name);
            tally.undone += 1;
        }
        Ok(())
    }

    fn stock_parent(&mut self, seen: &Listed) -> Result<()> {
        let image = &seen.name;
        match (&self.parent, &seen.parent) {
            (None, None) => {}
            (None, Some(parent)) => bail!("{image} hangs on {parent:?} again"),
            (Some(link), None) => {
                ensure!(self.flattens, "{image} has lost its parent {link:?}");
                self.parent = None;
            }
            (Some(link), Some((of, snapshot))) => {
                let same = link
                    .snapshot
                    .as_ref()
                    .map_or_else(|| snapshot.starts_with(AUTOMATIC), |known| known == snapshot);
                ensure!(
                    link.image == *of && same,
                    "{image} hangs on {of}@{snapshot}, not {link:?}"
                );
            }
        }
        Ok(())
    }

    /// What may have been sealed, and which clone it was for.
    fn unsettled(&self) -> Vec<(String, Option<String>)> {
        let open = self.snapshots.iter().filter(|(_, snapshot)| snapshot.content.is_none());
        open.map(|(name, snapshot)| (name.clone(), snapshot.made_for.clone())).collect()
    }
}

/// The sectors of what was read, each with its stamp; `None` is what nobody wrote.
fn stamps(at: Extent, bytes: &[u8]) -> impl Iterator<Item = (u64, Option<u64>)> {
    let first = at.offset() / SECTOR;
    let sectors = bytes.chunks_exact(SECTOR as usize);
    (first..).zip(sectors).map(|(number, sector)| (number, stamp_of(number, sector)))
}
