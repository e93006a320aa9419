//! [`SimDisk`]: a disk in memory that can lose power, kill its process, run full, fail and stand still.
//!
//! What a caller may rely on is what [`vellum_disk::Disk`] says and nothing more. One seed tells one story, on a runtime of one
//! thread: calls take a random number of turns, and writes land in pieces. Several processes may live at once, each with a
//! `SimDisk` of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use rand::RngExt;
use tokio::sync::watch;
use vellum_core::{Buffer, Extent};
use vellum_disk::{
    BootId, Directory, Disk, Durability, File, FileIdentity, FileSystem, LockKind, OpenMode,
    TryRead,
};

use crate::SECTOR;
use crate::medium::Medium;
use crate::sqlite::database::{Database, Holder};
use crate::sqlite::{self, Registration};
use crate::world::{Call, Entry, Fault, Lock, World};

/// A simulated disk, as one process sees it. Clones share it.
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
    process: u64,
}

pub(crate) struct Shared {
    world: Mutex<World>,
    /// Under which name SQLite knows the disk, for each process.
    pub(crate) sqlite: Mutex<BTreeMap<u64, Registration>>,
    /// Raised when something happens that a test may wait for.
    changes: watch::Sender<()>,
    held: Mutex<Vec<Held>>,
    next_description: AtomicU64,
}

/// Calls that stand still.
struct Held {
    call: Call,
    file: &'static str,
    gate: Arc<Gate>,
}

/// Keeps calls from going on until it is opened.
#[derive(Debug)]
struct Gate {
    arrived: watch::Sender<u32>,
    open: watch::Sender<bool>,
}

/// A hold on some calls; they go on when it is dropped.
#[derive(Debug)]
pub struct Hold(Arc<Gate>);

impl Hold {
    /// Waits until a call has arrived.
    pub async fn arrived(&self) {
        self.0
            .arrived
            .subscribe()
            .wait_for(|arrived| *arrived > 0)
            .await
            .expect("the gate is kept here");
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.open.send_replace(true);
    }
}

impl SimDisk {
    /// An empty disk with the directories of a pool at `/pool`.
    pub fn new(seed: u64) -> Self {
        let mut world = World::new(seed);
        let process = world.begin_process();
        let shared = Shared {
            world: Mutex::new(world),
            sqlite: Mutex::default(),
            changes: watch::Sender::new(()),
            held: Mutex::default(),
            next_description: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), process }
    }

    /// The same with the directories of another pool.
    pub fn with_pool_at(self, path: &str) -> Self {
        self.world().has_pool_at(path);
        self
    }

    /// What it knows.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world.lock()
    }

    /// As another process sees it, which begins now, beside those that live.
    pub fn another_process(&self) -> Self {
        let process = self.world().begin_process();
        Self { shared: self.shared.clone(), process }
    }

    /// The process dies. What it had written is seen by others, and by the next one, which uses the disk that this returns.
    pub fn process_death(&self) -> Self {
        self.world().kill(self.process);
        self.another_process()
    }

    /// All processes die. What they had written is seen by the next one, which uses the disk that this returns.
    pub fn after_all_died(&self) -> Self {
        self.world().kill_all();
        self.another_process()
    }

    /// The process dies after so many more calls of its own; that call does nothing.
    pub fn dies_after(&self, calls: u64) {
        self.world().kill_after(self.process, calls);
    }

    /// The power fails, for all processes.
    pub fn power_cut(&self) -> Self {
        self.world().cut_power();
        self.another_process()
    }

    /// Waits until the process has died.
    pub async fn ended(&self) {
        let mut changes = self.shared.changes.subscribe();
        while !self.is_over() {
            changes.changed().await.expect("the disk is kept here");
        }
    }

    /// Makes calls fail.
    pub fn fail(&self, fault: Fault) {
        self.world().faults.push(fault);
    }

    /// Makes calls stand still before they do anything.
    pub fn hold(&self, call: Call, file: &'static str) -> Hold {
        let gate =
            Arc::new(Gate { arrived: watch::Sender::new(0), open: watch::Sender::new(false) });
        self.shared.held.lock().push(Held { call, file, gate: gate.clone() });
        Hold(gate)
    }

    /// The calls since the last time this was asked.
    pub fn take_trace(&self) -> Vec<(Call, String)> {
        std::mem::take(&mut self.world().trace)
    }

    /// Changes a byte, as damage would.
    pub fn damage(&self, path: &str, offset: u64) {
        let mut world = self.world();
        let Ok(Entry::File(number)) = world.find(Path::new(path)) else { panic!("no {path}") };
        let now = world.now;
        let file = world.files.get_mut(&number).expect("a name has a file");
        let mut byte = [0];
        assert_eq!(file.read(&mut byte, offset), 1);
        file.write(now, offset, &[byte[0] ^ 0x10]);
    }

    /// The disk as a process sees it.
    pub(crate) fn of(shared: Arc<Shared>, process: u64) -> Self {
        Self { shared, process }
    }

    /// Whether the process has died: no call does anything any more.
    pub fn is_over(&self) -> bool {
        !self.world().lives(self.process)
    }

    /// Fails in a process that has died.
    pub(crate) fn must_live(&self) -> io::Result<()> {
        if !self.is_over() {
            return Ok(());
        }
        self.shared.changes.send_replace(());
        Err(io::Error::other("this process has died"))
    }

    /// A call that is made at once, by who cannot wait: an error in a process that has died.
    fn begin_at_once(&self, call: Call, path: &Path) -> io::Result<()> {
        self.must_live()?;
        let result = self.world().begin(self.process, call, path);
        self.must_live()?;
        result
    }

    /// A call that only looks.
    fn look(&self, call: Call, path: &Path) -> io::Result<()> {
        self.world().look(call, path)
    }

    /// Opens a file, and says whether it was made.
    pub(crate) fn open_at_once(&self, path: &Path, create: bool) -> io::Result<(SimFile, bool)> {
        self.look(Call::Open, path)?;
        let found = self.world().find_file(path)?;
        let (number, is_new) = match found {
            Some(number) => (number, false),
            None if !create => return Err(io::ErrorKind::NotFound.into()),
            None => {
                self.begin_at_once(Call::Create, path)?;
                self.world().make_file(path)?
            }
        };
        Ok((self.file(path, number), is_new))
    }

    pub(crate) fn remove_at_once(&self, path: &Path) -> io::Result<()> {
        self.world().find(path)?;
        self.begin_at_once(Call::Remove, path)?;
        self.world().remove(path)
    }

    pub(crate) fn sync_dir_at_once(&self, path: &Path) -> io::Result<()> {
        self.begin_at_once(Call::SyncDir, path)?;
        self.world().sync_names(path);
        Ok(())
    }

    /// The length of a file; `None` if there is none of this name.
    pub(crate) fn length_of(&self, path: &Path) -> Option<u64> {
        let world = self.world();
        match world.find(path) {
            Ok(Entry::File(number)) => Some(world.files[&number].length()),
            _ => None,
        }
    }

    /// A call: waits its turns, and never returns in a process that has died.
    async fn turn(&self) {
        let turns = {
            let mut world = self.world();
            let most = world.yields_max;
            world.chance.random_range(0..=most)
        };
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        if self.must_live().is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn begin(&self, call: Call, path: &Path) -> io::Result<()> {
        let held = self.shared.held.lock().iter().find_map(|held| {
            let fits = held.call == call && path.to_string_lossy().ends_with(held.file);
            (fits && !*held.gate.open.borrow()).then(|| held.gate.clone())
        });
        if let Some(gate) = held {
            gate.arrived.send_modify(|arrived| *arrived += 1);
            let _ = gate.open.subscribe().wait_for(|open| *open).await;
        }
        self.turn().await;
        let result = self.world().begin(self.process, call, path);
        self.turn().await;
        result
    }

    fn file(&self, path: &Path, number: u64) -> SimFile {
        let id = self.shared.next_description.fetch_add(1, Ordering::Relaxed);
        let path: Arc<Path> = path.into();
        self.world().opened(self.process, number);
        let open = Description { disk: self.clone(), id, number, path: path.clone() };
        SimFile { open: Arc::new(open), number, path }
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDisk(process {})", self.process)
    }
}

fn errno(error: i32) -> io::Error {
    io::Error::from_raw_os_error(error)
}

const ENOSPC: i32 = 28;

impl Disk for SimDisk {
    type File = SimFile;
    type Directory = SimDirectory;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<SimFile> {
        self.turn().await;
        self.look(Call::Open, path)?;
        self.world().may_open()?;
        let found = self.world().find_file(path)?;
        let number = match (found, mode) {
            (Some(_), OpenMode::Create) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(number), _) => number,
            (None, OpenMode::Read | OpenMode::ReadWrite) => {
                return Err(io::ErrorKind::NotFound.into());
            }
            (None, OpenMode::Create | OpenMode::ReadWriteOrCreate) => {
                self.begin(Call::Create, path).await?;
                self.world().make_file(path)?.0
            }
        };
        Ok(self.file(path, number))
    }

    async fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.begin(Call::Create, path).await?;
        self.world().make_dir(path)
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.begin(Call::Remove, path).await?;
        self.world().remove(path)
    }

    async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.begin(Call::Remove, path).await?;
        self.world().remove(path)
    }

    async fn list_dir(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.turn().await;
        self.look(Call::List, path)?;
        let world = self.world();
        world.find(path)?;
        Ok(world.children(path))
    }

    async fn open_dir(&self, path: &Path) -> io::Result<SimDirectory> {
        self.turn().await;
        self.look(Call::Open, path)?;
        self.world().may_open()?;
        match self.world().find(path)? {
            Entry::Directory => Ok(SimDirectory { disk: self.clone(), path: path.into() }),
            Entry::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.world().may_open()?;
        self.begin(Call::SyncDir, path).await?;
        self.world().sync_names(path);
        Ok(())
    }

    async fn file_system(&self, _path: &Path) -> io::Result<FileSystem> {
        let available = self.world().free.saturating_mul(SECTOR as u64);
        Ok(FileSystem { name: "simulated".into(), local: true, read_only: false, available })
    }

    async fn boot_id(&self) -> io::Result<Option<BootId>> {
        Ok(self.world().boot)
    }

    fn fill_with_chance(&self, bytes: &mut [u8]) {
        self.world().chance.fill(bytes);
    }

    fn sqlite_vfs(&self) -> Option<String> {
        Some(sqlite::registered(&self.shared, self.process))
    }
}

/// An open simulated directory.
#[derive(Debug)]
pub struct SimDirectory {
    disk: SimDisk,
    path: Arc<Path>,
}

impl Directory for SimDirectory {
    async fn sync(&self) -> io::Result<()> {
        self.disk.begin(Call::SyncDir, &self.path).await?;
        self.disk.world().sync_names(&self.path);
        Ok(())
    }
}

/// An open simulated file.
#[derive(Clone, Debug)]
pub struct SimFile {
    open: Arc<Description>,
    number: u64,
    path: Arc<Path>,
}

#[derive(Debug)]
struct Description {
    disk: SimDisk,
    id: u64,
    number: u64,
    path: Arc<Path>,
}

impl Drop for Description {
    fn drop(&mut self) {
        let mut world = self.disk.world();
        world.close(self.id);
        world.closed(self.disk.process, self.number, &self.path);
    }
}

impl SimFile {
    fn with<T>(&self, act: impl FnOnce(&mut World, &mut Medium) -> T) -> T {
        let mut world = self.open.disk.world();
        let mut medium = world.files.remove(&self.number).expect("open files stay");
        let result = act(&mut world, &mut medium);
        world.files.insert(self.number, medium);
        result
    }

    async fn begin(&self, call: Call) -> io::Result<()> {
        self.open.disk.begin(call, &self.path).await
    }

    fn look(&self, call: Call) -> io::Result<()> {
        self.open.disk.look(call, &self.path)
    }

    pub(crate) fn disk(&self) -> &SimDisk {
        &self.open.disk
    }

    /// What SQLite's connections to this file hold and share, and the description and the process that ask.
    pub(crate) fn with_database<T>(&self, act: impl FnOnce(&mut Database, Holder) -> T) -> T {
        let holder = Holder { description: self.open.id, process: self.open.disk.process };
        act(self.open.disk.world().databases.entry(self.number).or_default(), holder)
    }

    /// Answers how much there was to read.
    pub(crate) fn read_at_once(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.open.disk.must_live()?;
        self.look(Call::Read)?;
        Ok(self.with(|_, medium| medium.read(buffer, offset)))
    }

    pub(crate) fn write_at_once(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.open.disk.begin_at_once(Call::Write, &self.path)?;
        self.put(offset, bytes)
    }

    pub(crate) fn set_length_at_once(&self, length: u64) -> io::Result<()> {
        self.open.disk.begin_at_once(Call::SetLength, &self.path)?;
        self.with(|world, medium| {
            world.now += 1;
            medium.set_length(world.now, length);
        });
        Ok(())
    }

    pub(crate) fn sync_at_once(&self) -> io::Result<()> {
        let began = self.open.disk.world().now;
        let result = self.open.disk.begin_at_once(Call::SyncData, &self.path);
        if !self.open.disk.is_over() {
            self.settle(&result, began);
        }
        result
    }

    pub(crate) fn length_at_once(&self) -> io::Result<u64> {
        self.look(Call::Length)?;
        Ok(self.with(|_, medium| medium.length()))
    }

    /// What a sync that began at a moment leaves.
    fn settle(&self, result: &io::Result<()>, began: u64) {
        self.with(|world, medium| match result {
            Ok(()) => medium.sync(began),
            Err(_) => medium.forget(&mut world.chance),
        });
    }

    /// Writes what there is room for.
    fn put(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(|world, medium| {
            let growth = medium.growth(offset, bytes.len());
            if growth > world.free {
                return Err(errno(ENOSPC));
            }
            if world.free != u64::MAX {
                world.free -= growth;
            }
            world.now += 1;
            medium.write(world.now, offset, bytes);
            Ok(())
        })
    }
}

impl File for SimFile {
    fn try_read_at(&self, buffer: &mut [u8], offset: u64) -> TryRead {
        self.with(|world, medium| {
            let cached = world.yields_max == 0 || world.chance.random_bool(0.7);
            if cached && medium.read(buffer, offset) == buffer.len() {
                TryRead::Done
            } else {
                TryRead::WouldWait
            }
        })
    }

    async fn read_at(
        &self,
        mut buffer: Buffer,
        range: Range<usize>,
        offset: u64,
    ) -> (Buffer, io::Result<()>) {
        self.open.disk.turn().await;
        if let Err(error) = self.look(Call::Read) {
            return (buffer, Err(error));
        }
        let wanted = range.len();
        let read = self.with(|_, medium| medium.read(&mut buffer[range], offset));
        let result = if read == wanted { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        (buffer, result)
    }

    async fn write_at(
        &self,
        parts: Vec<Bytes>,
        offset: u64,
        durability: Durability,
    ) -> io::Result<()> {
        let bytes = parts.concat();
        self.begin(Call::Write).await?;
        let at = Extent::new(offset, bytes.len() as u64);
        let steps =
            if self.open.disk.world().yields_max == 0 { 1 << 30 } else { SECTOR as u64 * 8 };
        for piece in at.chunks(steps) {
            self.put(piece.offset(), &bytes[at.range_of(&piece)])?;
            self.open.disk.turn().await;
        }
        if durability == Durability::Durable {
            let result = self.begin(Call::SyncData).await;
            self.with(|world, medium| match &result {
                Ok(()) => {
                    // Its own pages have landed, whatever became of others meanwhile.
                    world.now += 1;
                    medium.write(world.now, offset, &bytes);
                    medium.sync_range(world.now, at);
                }
                Err(_) => medium.forget(&mut world.chance),
            });
            return result;
        }
        Ok(())
    }

    async fn punch(&self, extent: Extent) -> io::Result<()> {
        self.begin(Call::Punch).await?;
        self.with(|world, medium| {
            let before = medium.sectors();
            world.now += 1;
            medium.punch(world.now, extent);
            if world.free != u64::MAX {
                world.free += before - medium.sectors();
            }
        });
        Ok(())
    }

    async fn allocate(&self, _extent: Extent) -> io::Result<()> {
        Ok(())
    }

    async fn copy_from(&self, source: &Self, from: Extent, to: u64) -> io::Result<()> {
        let length = from.len_usize();
        let buffer = Buffer::from_vec(vec![0; length]);
        let (buffer, result) = source.read_at(buffer, 0..length, from.offset()).await;
        result?;
        self.write_at(vec![buffer.freeze()], to, Durability::AtSync).await
    }

    async fn sync_data(&self) -> io::Result<()> {
        let began = self.open.disk.world().now;
        let result = self.begin(Call::SyncData).await;
        self.settle(&result, began);
        result
    }

    async fn length(&self) -> io::Result<u64> {
        self.open.disk.turn().await;
        self.look(Call::Length)?;
        Ok(self.with(|_, medium| medium.length()))
    }

    async fn set_length(&self, length: u64) -> io::Result<()> {
        self.begin(Call::SetLength).await?;
        self.with(|world, medium| {
            world.now += 1;
            medium.set_length(world.now, length);
        });
        Ok(())
    }

    async fn allocated(&self) -> io::Result<u64> {
        self.look(Call::Length)?;
        Ok(self.with(|_, medium| medium.sectors()) * SECTOR as u64)
    }

    async fn next_data(&self, offset: u64) -> io::Result<Option<Extent>> {
        self.open.disk.turn().await;
        self.look(Call::NextData)?;
        Ok(self.with(|_, medium| medium.next_data(offset)))
    }

    async fn drop_cache(&self) {
        self.with(|_, medium| medium.drop_cache());
    }

    async fn hint_extent_size(&self, _bytes: u32) {}

    fn identity(&self) -> FileIdentity {
        FileIdentity { device: 1, inode: self.number }
    }

    fn try_lock(&self, range: Extent, kind: LockKind) -> io::Result<bool> {
        self.open.disk.must_live()?;
        let (description, process) = (self.open.id, self.open.disk.process);
        let lock = Lock { file: self.number, description, process, at: range, kind };
        Ok(self.open.disk.world().try_lock(lock))
    }

    fn unlock(&self, range: Extent) -> io::Result<()> {
        self.open.disk.world().unlock(self.open.id, range);
        Ok(())
    }
}
