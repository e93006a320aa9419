//! [`World`]: everything a simulated disk knows, and what befalls it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vellum_core::Extent;
use vellum_disk::{BootId, LockKind};

use crate::medium::Medium;
use crate::sqlite::database::Database;

/// What a name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    Directory,
    File(u64),
}

/// What a disk is asked to do. The first calls change something or make it durable: a life may end at each of them. Those from
/// [`Open`](Self::Open) on only look; they may fail, and are neither counted nor traced.
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
    /// A file is opened, or looked for.
    Open,
    /// Bytes are read that do not lie in the cache for sure.
    Read,
    /// The names in a directory are read.
    List,
    /// A length is asked for, or how much is allocated.
    Length,
    /// The next run of bytes that is no hole is looked for.
    NextData,
}

impl Call {
    /// Whether it only looks, and changes nothing.
    pub fn only_looks(self) -> bool {
        matches!(self, Self::Open | Self::Read | Self::List | Self::Length | Self::NextData)
    }
}

/// Calls of which one is to fail by its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Calls {
    /// Those that only look.
    Looks,
    /// All others.
    Changes,
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
    /// After how many calls of this kind.
    pub skip: u32,
}

#[derive(Debug)]
pub(crate) struct Lock {
    pub(crate) file: u64,
    pub(crate) description: u64,
    pub(crate) process: u64,
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
    /// How many descriptions of a file a process has open.
    open: BTreeMap<(u64, u64), u64>,
    closed_unsynced: Vec<PathBuf>,
    /// Those of SQLite, by the file's number.
    pub(crate) databases: BTreeMap<u64, Database>,
    /// Which boot of the machine this is.
    pub boot: Option<BootId>,
    /// Those that live. Calls of others never return.
    processes: BTreeSet<u64>,
    next_process: u64,
    /// After so many more calls of its own a process dies.
    dying: BTreeMap<u64, u64>,
    /// After so many more calls, of whoever, all that live die.
    pub calls_left: Option<u64>,
    /// Sectors that are still free.
    pub free: u64,
    /// So many more files and directories may be opened.
    pub opens_left: u64,
    pub(crate) faults: Vec<Fault>,
    /// Which calls, how many more until one of them fails, and with what.
    failing: Option<(Calls, u64, i32)>,
    failures: u64,
    last_failure: Option<(Call, String)>,
    /// When a call was last made to fail.
    failed_at: u64,
    deaths_alone: u64,
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
            open: BTreeMap::new(),
            closed_unsynced: Vec::new(),
            databases: BTreeMap::new(),
            boot: Some(BootId([1; 16])),
            processes: BTreeSet::new(),
            next_process: 0,
            dying: BTreeMap::new(),
            calls_left: None,
            free: u64::MAX,
            opens_left: u64::MAX,
            faults: Vec::new(),
            failing: None,
            failures: 0,
            last_failure: None,
            failed_at: 0,
            deaths_alone: 0,
            trace: Vec::new(),
            yields_max: 0,
        };
        world.has_pool_at("/pool");
        world
    }

    /// There is the directory of a pool here, with nothing in it but directories, durably.
    pub(crate) fn has_pool_at(&mut self, path: &str) {
        for directory in [path, &format!("{path}/layers"), &format!("{path}/live")] {
            self.durable_names.insert(directory.into(), Entry::Directory);
            self.names.insert(directory.into(), Entry::Directory);
        }
    }

    /// Another process begins.
    pub(crate) fn begin_process(&mut self) -> u64 {
        self.next_process += 1;
        self.processes.insert(self.next_process);
        self.next_process
    }

    pub(crate) fn lives(&self, process: u64) -> bool {
        self.processes.contains(&process)
    }

    /// Lets a process die after so many more calls of its own.
    pub(crate) fn kill_after(&mut self, process: u64, calls: u64) {
        self.dying.insert(process, calls);
    }

    /// A call of a process begins: it is traced, counted, and fails if it was to fail.
    pub(crate) fn begin(&mut self, process: u64, call: Call, path: &Path) -> io::Result<()> {
        self.now += 1;
        let name = path.strip_prefix("/pool").unwrap_or(path).display().to_string();
        if is_the_last(self.calls_left.as_mut()) {
            self.kill_all();
        }
        if is_the_last(self.dying.get_mut(&process)) {
            self.kill(process);
        }
        self.trace.push((call, name.clone()));
        self.fails(call, name)
    }

    /// A call that only looks: it may fail, and moves nothing else.
    pub(crate) fn look(&mut self, call: Call, path: &Path) -> io::Result<()> {
        self.fails(call, path.strip_prefix("/pool").unwrap_or(path).display().to_string())
    }

    /// An error if this call is to fail.
    fn fails(&mut self, call: Call, name: String) -> io::Result<()> {
        let Some(error) = self.fault(call, &name) else { return Ok(()) };
        self.failed_at = self.now;
        self.failures += 1;
        self.last_failure = Some((call, name));
        Err(io::Error::from_raw_os_error(error))
    }

    /// What this call is to fail with; a fault is used up by it.
    fn fault(&mut self, call: Call, name: &str) -> Option<i32> {
        for fault in &mut self.faults {
            if fault.call != call || !name.ends_with(fault.file) || fault.times == 0 {
                continue;
            }
            if fault.skip == 0 {
                fault.times -= 1;
                return Some(fault.error);
            }
            fault.skip -= 1;
        }
        let (calls, left, error) = self.failing.as_mut()?;
        if (*calls == Calls::Looks) != call.only_looks() {
            return None;
        }
        *left -= 1;
        let error = *error;
        (*left == 0).then(|| {
            self.failing = None;
            error
        })
    }

    /// Makes one of these calls fail: the one with this number, from 1 on, of those to come.
    pub fn fail_one(&mut self, calls: Calls, number: u64, error: i32) {
        assert!(number > 0, "the first call has number 1");
        self.failing = Some((calls, number, error));
    }

    /// Lets nothing fail any more that was to fail.
    pub fn fail_no_more(&mut self) {
        self.faults.clear();
        self.failing = None;
    }

    /// A process is gone: nothing it began goes on, and its locks are free.
    pub(crate) fn kill(&mut self, process: u64) {
        let died = self.processes.remove(&process);
        self.deaths_alone += u64::from(died && !self.processes.is_empty());
        self.dying.remove(&process);
        self.locks.retain(|lock| lock.process != process);
        self.databases.values_mut().for_each(|database| database.leave(process));
        if self.processes.is_empty() {
            self.calls_left = None;
            self.fail_no_more();
        }
    }

    /// All are.
    pub(crate) fn kill_all(&mut self) {
        let alone = self.deaths_alone;
        for process in self.processes.clone() {
            self.kill(process);
        }
        self.deaths_alone = alone;
    }

    /// How many calls there were.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// After how many calls one was last made to fail; 0 if none was.
    pub fn failed_at(&self) -> u64 {
        self.failed_at
    }

    /// How many calls were made to fail.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// The call that was last made to fail, and on which file.
    pub fn last_failure(&self) -> Option<&(Call, String)> {
        self.last_failure.as_ref()
    }

    /// How many processes have died while others lived, since this was asked last.
    pub fn take_deaths_alone(&mut self) -> u64 {
        std::mem::take(&mut self.deaths_alone)
    }

    /// The machine loses power and starts again.
    pub(crate) fn cut_power(&mut self) {
        self.kill_all();
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
                    .any(|above| above.parent().is_some() && !names.contains_key(above))
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

    /// The file of this name; `None` if there is none.
    pub(crate) fn find_file(&self, path: &Path) -> io::Result<Option<u64>> {
        match self.names.get(path) {
            Some(Entry::File(number)) => Ok(Some(*number)),
            Some(Entry::Directory) => Err(io::ErrorKind::IsADirectory.into()),
            None => Ok(None),
        }
    }

    /// The file of this name, which is made if there is none; and whether it was.
    pub(crate) fn make_file(&mut self, path: &Path) -> io::Result<(u64, bool)> {
        self.find(path.parent().expect("files lie in directories"))?;
        if let Some(number) = self.find_file(path)? {
            return Ok((number, false));
        }
        let number = self.next_file;
        self.next_file += 1;
        self.files.insert(number, Medium::default());
        self.rename(path, Some(Entry::File(number)));
        Ok((number, true))
    }

    pub(crate) fn make_dir(&mut self, path: &Path) -> io::Result<()> {
        if self.find(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.find(path.parent().expect("it lies in a directory"))?;
        self.rename(path, Some(Entry::Directory));
        Ok(())
    }

    /// Takes a name away, of a file or of a directory with nothing in it.
    pub(crate) fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.find(path)?;
        if !self.children(path).is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        self.rename(path, None);
        Ok(())
    }

    /// Gives a name a meaning, or none.
    fn rename(&mut self, path: &Path, entry: Option<Entry>) {
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

    /// A description is closed.
    pub(crate) fn close(&mut self, description: u64) {
        self.unlock(description, Extent::new(0, u64::MAX));
        self.databases.values_mut().for_each(|database| database.close(description));
    }

    /// Fails where the process has as many files open as it may.
    pub(crate) fn may_open(&mut self) -> io::Result<()> {
        const EMFILE: i32 = 24;
        match self.opens_left {
            0 => return Err(io::Error::from_raw_os_error(EMFILE)),
            u64::MAX => {}
            _ => self.opens_left -= 1,
        }
        Ok(())
    }

    /// A process has one more description of a file open.
    pub(crate) fn opened(&mut self, process: u64, file: u64) {
        *self.open.entry((process, file)).or_default() += 1;
    }

    /// It has one less. The last one that a living process closes should leave nothing unsynced.
    pub(crate) fn closed(&mut self, process: u64, file: u64, path: &Path) {
        let open = self.open.get_mut(&(process, file)).expect("it was opened");
        *open -= 1;
        if *open == 0 && self.lives(process) && self.files[&file].is_unsynced() {
            self.closed_unsynced.push(path.to_owned());
        }
    }

    /// The files of which a living process closed its last description while something was written and not synced, since this
    /// was asked last.
    pub fn take_closed_unsynced(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.closed_unsynced)
    }

    /// Releases what a description holds within a range.
    pub(crate) fn unlock(&mut self, description: u64, at: Extent) {
        self.locks.retain(|held| held.description != description || !at.contains(&held.at));
    }
}

/// Counts a call, and says whether it is the one that does not happen any more.
fn is_the_last(left: Option<&mut u64>) -> bool {
    left.is_some_and(|left| {
        *left = left.saturating_sub(1);
        *left == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_only_look_fail_by_kind_or_by_number_and_move_nothing_else() {
        let mut world = World::new(1);
        let process = world.begin_process();
        let (map, log) = (Path::new("/pool/map"), Path::new("/pool/log"));
        world.faults.push(Fault { call: Call::Read, file: "map", error: 5, times: 1, skip: 1 });
        let read = [map, log, map, map].map(|path| world.look(Call::Read, path).is_ok());
        assert_eq!(read, [true, true, false, true]);

        world.fail_one(Calls::Looks, 2, 5);
        world.look(Call::Open, log).unwrap();
        world.begin(process, Call::Write, log).unwrap();
        assert_eq!(world.look(Call::List, log).unwrap_err().raw_os_error(), Some(5));
        assert_eq!(world.last_failure(), Some(&(Call::List, "log".to_owned())));
        assert_eq!((world.now(), world.trace.len(), world.failures()), (1, 1, 2));

        world.fail_one(Calls::Changes, 1, 28);
        world.look(Call::Length, log).unwrap();
        let failed = world.begin(process, Call::SyncData, log).unwrap_err();
        assert_eq!(failed.raw_os_error(), Some(28));
        world.begin(process, Call::SyncData, log).unwrap();
    }
}
