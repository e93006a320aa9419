//! [`World`]: everything a simulated disk knows, and what befalls it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vellum_core::Extent;
use vellum_disk::{BootId, LockKind};

use crate::medium::Medium;

/// What a name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    Directory,
    File(u64),
}

/// Calls that change something or make it durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// A file or a directory gets a name.
    Create,
    /// It loses it.
    Remove,
    /// The names in a directory become durable.
    SyncDir,
    /// Bytes are written.
    Write,
    /// A range becomes a hole.
    Punch,
    /// A length is set.
    SetLength,
    /// The bytes of a file become durable.
    SyncData,
}

/// A failure to come.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// What fails.
    pub call: Call,
    /// The end of the file's path.
    pub file: &'static str,
    /// `errno`.
    pub error: i32,
    /// How often.
    pub times: u32,
}

#[derive(Debug)]
pub(crate) struct Lock {
    pub(crate) file: u64,
    pub(crate) description: u64,
    pub(crate) at: Extent,
    pub(crate) kind: LockKind,
}

/// The state of a simulated disk, and what is to befall it.
#[derive(Debug)]
pub struct World {
    pub(crate) chance: StdRng,
    /// Counts calls: the only clock.
    pub(crate) now: u64,
    pub(crate) names: BTreeMap<PathBuf, Entry>,
    durable_names: BTreeMap<PathBuf, Entry>,
    /// Names that changed since their directory was synced, with what each was then and since.
    changed_names: BTreeMap<PathBuf, Vec<Option<Entry>>>,
    pub(crate) files: HashMap<u64, Medium>,
    next_file: u64,
    pub(crate) locks: Vec<Lock>,
    /// Which boot of the machine this is.
    pub boot: Option<BootId>,
    /// Which life of the machine or the process this is. Calls of an earlier one never return.
    pub(crate) life: u64,
    /// After so many more calls the life ends.
    pub calls_left: Option<u64>,
    /// Sectors that are still free.
    pub free: u64,
    pub(crate) faults: Vec<Fault>,
    pub(crate) trace: Vec<(Call, String)>,
    /// Up to so many times a call lets others run before it does something.
    pub yields_max: u32,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut world = Self {
            chance: StdRng::seed_from_u64(seed),
            now: 0,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changed_names: BTreeMap::new(),
            files: HashMap::new(),
            next_file: 1,
            locks: Vec::new(),
            boot: Some(BootId([1; 16])),
            life: 0,
            calls_left: None,
            free: u64::MAX,
            faults: Vec::new(),
            trace: Vec::new(),
            yields_max: 0,
        };
        for directory in ["/pool", "/pool/layers", "/pool/live"] {
            world.durable_names.insert(directory.into(), Entry::Directory);
        }
        world.names = world.durable_names.clone();
        world
    }

    /// A call begins: it is traced, counted, and fails if it was to fail.
    pub(crate) fn begin(&mut self, call: Call, path: &Path) -> io::Result<()> {
        self.now += 1;
        let name = path.strip_prefix("/pool").unwrap_or(path).display().to_string();
        if let Some(left) = &mut self.calls_left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.end_life();
            }
        }
        let due = |fault: &&mut Fault| {
            fault.call == call && name.ends_with(fault.file) && fault.times > 0
        };
        let error = self.faults.iter_mut().find(due).map(|fault| {
            fault.times -= 1;
            fault.error
        });
        self.trace.push((call, name));
        error.map_or(Ok(()), |error| Err(io::Error::from_raw_os_error(error)))
    }

    /// The process is gone: nothing it began goes on, and its locks are free.
    pub(crate) fn end_life(&mut self) {
        self.life += 1;
        self.calls_left = None;
        self.locks.clear();
        self.faults.clear();
    }

    /// The machine loses power and starts again.
    pub(crate) fn cut_power(&mut self) {
        self.end_life();
        let boot = self.boot.map_or(0, |boot| boot.0[0]);
        self.boot = Some(BootId([boot.wrapping_add(1); 16]));
        for (path, entries) in std::mem::take(&mut self.changed_names) {
            let choice = self.chance.random_range(0..entries.len());
            match entries[choice] {
                Some(entry) => self.durable_names.insert(path, entry),
                None => self.durable_names.remove(&path),
            };
        }
        let names = &self.durable_names;
        let lost: Vec<PathBuf> = names
            .keys()
            .filter(|path| {
                path.ancestors()
                    .skip(1)
                    .any(|above| above.starts_with("/pool") && !names.contains_key(above))
            })
            .cloned()
            .collect();
        self.durable_names.retain(|path, _| !lost.contains(path));
        self.names = self.durable_names.clone();
        // In a fixed order, so that a seed tells one story.
        let mut numbers: Vec<u64> = self.files.keys().copied().collect();
        numbers.sort_unstable();
        for number in numbers {
            self.files.get_mut(&number).expect("it was listed").cut(&mut self.chance);
        }
    }

    pub(crate) fn find(&self, path: &Path) -> io::Result<Entry> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    pub(crate) fn create_file(&mut self, path: &Path) -> u64 {
        let number = self.next_file;
        self.next_file += 1;
        self.files.insert(number, Medium::default());
        self.rename(path, Some(Entry::File(number)));
        number
    }

    /// Gives a name a meaning, or none.
    pub(crate) fn rename(&mut self, path: &Path, entry: Option<Entry>) {
        let before = self.names.get(path).copied();
        match entry {
            Some(entry) => self.names.insert(path.to_owned(), entry),
            None => self.names.remove(path),
        };
        let versions = self.changed_names.entry(path.to_owned()).or_insert_with(|| vec![before]);
        versions.push(entry);
    }

    /// How many locks are held.
    pub fn locks_held(&self) -> usize {
        self.locks.len()
    }

    /// The paths in a directory.
    pub fn children(&self, directory: &Path) -> Vec<PathBuf> {
        self.names.keys().filter(|path| path.parent() == Some(directory)).cloned().collect()
    }

    /// The names in a directory are durable.
    pub(crate) fn sync_names(&mut self, directory: &Path) {
        let names = &self.names;
        let durable = &mut self.durable_names;
        self.changed_names.retain(|path, _| {
            if path.parent() != Some(directory) {
                return true;
            }
            match names.get(path) {
                Some(entry) => durable.insert(path.clone(), *entry),
                None => durable.remove(path),
            };
            false
        });
    }

    pub(crate) fn try_lock(&mut self, lock: Lock) -> bool {
        let exclusive = |kind| kind == LockKind::Exclusive;
        let conflicts = self.locks.iter().any(|held| {
            held.file == lock.file
                && held.description != lock.description
                && held.at.overlaps(&lock.at)
                && (exclusive(held.kind) || exclusive(lock.kind))
        });
        if !conflicts {
            self.locks.push(lock);
        }
        !conflicts
    }

    /// Releases what a description holds within a range.
    pub(crate) fn unlock(&mut self, description: u64, at: Extent) {
        self.locks.retain(|held| held.description != description || !at.contains(&held.at));
    }
}
