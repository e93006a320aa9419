//! [`VolatileDisk`]: a disk with a cache that a power cut empties, served over NBD to the machine that uses it.
//!
//! What was written and not flushed is kept apart from the file behind it. A power cut leaves of that what chance says, in no
//! order, down to the pieces that it never tears. A flush makes durable what was answered before it was asked for.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use vellum_core::{BufferPool, Extent};
use vellum_nbd::{
    Context, Errno, Export, ExportInfo, Exports, Limits, Listed, NbdError, OpenError, ReadPiece,
    Server, Status, ZeroFlags,
};

use crate::content::SECTOR;

type Sector = [u8; SECTOR as usize];
type Versions = BTreeMap<u64, Vec<(u64, Box<Sector>)>>;

/// What a power cut leaves of what was not flushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// Each piece that is never torn, by itself, what was flushed or any version it had since.
    Pieces,
    /// Each request by itself, whole or not at all.
    Requests,
    /// All requests up to one of them.
    Order,
    /// Nothing.
    Nothing,
    /// Everything.
    Everything,
}

impl Cut {
    pub fn any(chance: &mut StdRng) -> Self {
        match chance.random_range(0..10) {
            0..4 => Self::Pieces,
            4..7 => Self::Requests,
            7 => Self::Order,
            8 => Self::Nothing,
            _ => Self::Everything,
        }
    }
}

/// How long requests take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    /// No longer than they must.
    Quick,
    /// So long, each of them, one after the other.
    Slow(Duration),
    /// Until the disk has another pace.
    Still,
    /// The same for reads alone.
    NoReads,
}

/// The disk. Clones are the same.
#[derive(Clone)]
pub struct VolatileDisk {
    state: Arc<Mutex<State>>,
    pace: watch::Sender<Pace>,
    /// Of a slow disk, the request that is its turn.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// How many requests wait for it.
    held: Arc<AtomicUsize>,
}

/// Counts a request for as long as it waits, or until its connection is gone.
struct Held<'a>(&'a AtomicUsize);

impl<'a> Held<'a> {
    fn add(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct State {
    path: PathBuf,
    file: File,
    size: u64,
    /// Bytes that are never torn: a sector, or more.
    unit: u64,
    /// Versions that were not flushed, oldest first, each with the number of its request.
    versions: Versions,
    requests: u64,
    /// Connections of a machine that was cut off have an older one, and reach nothing any more.
    life: u64,
    /// Flushes are answered and do nothing: for a test of the test.
    lies: bool,
}

impl fmt::Debug for VolatileDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        write!(f, "VolatileDisk({} bytes, life {})", state.size, state.life)
    }
}

impl VolatileDisk {
    /// A disk with the content of a file, which keeps what is durable.
    ///
    /// Of so many bytes, `unit`, a request changes all or nothing, as far as they are part of it.
    pub fn open(path: &Path, unit: u64) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let size = file.metadata()?.len();
        let state = State {
            path: path.to_owned(),
            file,
            size,
            unit,
            versions: BTreeMap::new(),
            requests: 0,
            life: 0,
            lies: false,
        };
        let pace = watch::Sender::new(Pace::Quick);
        Ok(Self {
            state: Arc::new(Mutex::new(state)),
            pace,
            turn: Arc::default(),
            held: Arc::default(),
        })
    }

    /// From now on requests take so long, those that wait included.
    pub fn set_pace(&self, pace: Pace) {
        self.pace.send_replace(pace);
    }

    /// How many requests wait for a disk that is slow or stands still.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    fn is_quick(&self) -> bool {
        *self.pace.borrow() == Pace::Quick
    }

    /// Waits as long as a request takes.
    async fn wait(&self, reads: bool) {
        let mut paces = self.pace.subscribe();
        let is_quick = |pace: Pace| pace == Pace::Quick || (pace == Pace::NoReads && !reads);
        if is_quick(*paces.borrow()) {
            return;
        }
        let _held = Held::add(&self.held);
        let _turn = self.turn.lock().await;
        let moves = |pace: &Pace| is_quick(*pace) || matches!(pace, Pace::Slow(_));
        let pace = paces.wait_for(moves).await.map_or(Pace::Quick, |pace| *pace);
        if let Pace::Slow(time) = pace {
            tokio::time::sleep(time).await;
        }
    }

    /// From now on flushes are answered, and nothing is durable any more.
    pub fn lie(&self) {
        self.state.lock().lies = true;
    }

    /// The file that keeps what is durable.
    pub fn path(&self) -> PathBuf {
        self.state.lock().path.clone()
    }

    /// Takes the power away. Says how many sectors were not flushed, and how many of them went back to an older content.
    pub fn cut(&self, cut: Cut, chance: &mut StdRng) -> Result<(usize, usize)> {
        let mut state = self.state.lock();
        state.life += 1;
        let versions = std::mem::take(&mut state.versions);
        let mut requests: Vec<u64> =
            versions.values().flatten().map(|(request, _)| *request).collect();
        requests.sort_unstable();
        requests.dedup();
        let kept: HashSet<u64> = match cut {
            Cut::Nothing => HashSet::new(),
            Cut::Order => {
                requests.truncate(chance.random_range(0..=requests.len()));
                requests.into_iter().collect()
            }
            Cut::Requests => {
                let share = chance.random_range(0.0..1.0);
                requests.into_iter().filter(|_| chance.random_bool(share)).collect()
            }
            Cut::Pieces | Cut::Everything => requests.into_iter().collect(),
        };
        let limits = match cut {
            Cut::Pieces => state.limits(&versions, chance),
            _ => BTreeMap::new(),
        };
        let (pending, mut lost) = (versions.len(), 0);
        for (number, versions) in versions {
            let limit = limits.get(&state.piece_of(number)).copied().unwrap_or(u64::MAX);
            let is_kept = |request: u64| request <= limit && kept.contains(&request);
            let version = versions.iter().rfind(|(request, _)| is_kept(*request));
            let newest = versions.last().map(|(request, _)| *request);
            lost += usize::from(version.map(|(request, _)| *request) != newest);
            if let Some((_, bytes)) = version {
                state.file.write_all_at(&bytes[..], number * SECTOR)?;
            }
        }
        Ok((pending, lost))
    }
}

impl State {
    fn piece_of(&self, number: u64) -> u64 {
        number * SECTOR / self.unit
    }

    /// For each piece, the last request whose part of it is kept; 0 for none.
    fn limits(&self, versions: &Versions, chance: &mut StdRng) -> BTreeMap<u64, u64> {
        let mut requests: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for (number, versions) in versions {
            let of_the_piece = requests.entry(self.piece_of(*number)).or_default();
            of_the_piece.extend(versions.iter().map(|(request, _)| *request));
        }
        let limits = requests.into_iter().map(|(piece, requests)| {
            let kept = chance.random_range(0..=requests.len());
            (piece, requests.into_iter().take(kept).next_back().unwrap_or(0))
        });
        limits.collect()
    }

    fn read(&self, at: Extent) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; at.len_usize()];
        let whole = at.align_out(SECTOR);
        self.file.read_exact_at(&mut bytes, at.offset())?;
        for (number, versions) in self.versions.range(whole.offset() / SECTOR..whole.end() / SECTOR)
        {
            let (_, last) = versions.last().expect("a sector without versions is not listed");
            let sector = Extent::new(number * SECTOR, SECTOR);
            let common = sector.intersect(&at);
            bytes[at.range_of(&common)].copy_from_slice(&last[sector.range_of(&common)]);
        }
        Ok(bytes)
    }

    /// Whole sectors: the kernel of a guest asks for nothing else.
    fn write(&mut self, at: Extent, bytes: impl Fn(u64) -> Box<Sector>) -> Result<(), NbdError> {
        if !at.offset().is_multiple_of(SECTOR) || !at.length().is_multiple_of(SECTOR) {
            return Err(NbdError::new(Errno::Invalid, "a part of a sector"));
        }
        self.requests += 1;
        let request = self.requests;
        for number in at.offset() / SECTOR..at.end() / SECTOR {
            let sector = bytes(number * SECTOR - at.offset());
            self.versions.entry(number).or_default().push((request, sector));
        }
        Ok(())
    }

    /// Makes an extent durable.
    fn flush(&mut self, at: Extent) -> std::io::Result<()> {
        if self.lies {
            return Ok(());
        }
        let numbers: Vec<u64> = self
            .versions
            .range(at.offset() / SECTOR..at.end() / SECTOR)
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            let versions = self.versions.remove(&number).expect("it was just there");
            let (_, last) = versions.last().expect("a sector without versions is not listed");
            self.file.write_all_at(&last[..], number * SECTOR)?;
        }
        Ok(())
    }
}

/// The disk, as a connection of one life of the machine sees it.
pub struct Plug {
    disk: VolatileDisk,
    life: u64,
}

impl Plug {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> Result<T, NbdError>) -> Result<T, NbdError> {
        let mut state = self.disk.state.lock();
        if state.life != self.life {
            return Err(NbdError::new(Errno::Shutdown, "the power was cut"));
        }
        work(&mut state)
    }

    fn change(
        &self,
        at: Extent,
        fua: bool,
        bytes: impl Fn(u64) -> Box<Sector>,
    ) -> Result<(), NbdError> {
        self.with(|state| {
            state.write(at, bytes)?;
            if fua { state.flush(at).map_err(failed) } else { Ok(()) }
        })
    }
}

fn failed(error: std::io::Error) -> NbdError {
    NbdError::new(Errno::Io, error.to_string())
}

impl Exports for VolatileDisk {
    type Export = Plug;

    async fn list(&self) -> Result<Vec<Listed>, OpenError> {
        Ok(Vec::new())
    }

    async fn info(&self, name: &str) -> Result<ExportInfo, OpenError> {
        Ok(self.open(name).await?.info())
    }

    async fn open(&self, _: &str) -> Result<Arc<Plug>, OpenError> {
        let life = self.state.lock().life;
        Ok(Arc::new(Plug { disk: self.clone(), life }))
    }
}

impl Export for Plug {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            size: self.disk.state.lock().size,
            read_only: false,
            description: String::new(),
            preferred_block: 4096,
        }
    }

    fn try_read(&self, at: Extent, buffer: &mut [u8]) -> bool {
        if !self.disk.is_quick() {
            return false;
        }
        let read = self.with(|state| state.read(at).map_err(failed));
        read.map(|bytes| buffer.copy_from_slice(&bytes)).is_ok()
    }

    async fn read(&self, at: Extent) -> Result<Vec<ReadPiece>, NbdError> {
        self.disk.wait(true).await;
        let bytes = self.with(|state| state.read(at).map_err(failed))?;
        Ok(vec![ReadPiece { at, data: Some(Bytes::from(bytes)) }])
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), NbdError> {
        let sector = |at: u64| {
            let mut sector = Box::new([0; SECTOR as usize]);
            sector.copy_from_slice(&data[at as usize..(at + SECTOR) as usize]);
            sector
        };
        self.disk.wait(false).await;
        self.change(Extent::new(offset, data.len() as u64), fua, sector)
    }

    async fn flush(&self) -> Result<(), NbdError> {
        self.disk.wait(false).await;
        self.with(|state| state.flush(Extent::new(0, state.size)).map_err(failed))
    }

    async fn trim(&self, at: Extent, fua: bool) -> Result<(), NbdError> {
        self.disk.wait(false).await;
        self.change(at, fua, |_| Box::new([0; SECTOR as usize]))
    }

    async fn write_zeroes(&self, at: Extent, flags: ZeroFlags) -> Result<(), NbdError> {
        self.disk.wait(false).await;
        self.change(at, flags.fua, |_| Box::new([0; SECTOR as usize]))
    }

    async fn cache(&self, _: Extent) -> Result<(), NbdError> {
        Ok(())
    }

    async fn block_status(
        &self,
        at: Extent,
        _: Context,
        _: usize,
    ) -> Result<Vec<Status>, NbdError> {
        Ok(vec![Status { length: at.length(), flags: 0 }])
    }
}

/// A disk that is served on a socket, for as long as this is kept.
#[derive(Debug)]
pub struct Served {
    pub disk: VolatileDisk,
    pub socket: PathBuf,
    runtime: Option<Runtime>,
}

impl Served {
    pub fn start(disk: VolatileDisk, socket: &Path) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let limits = Limits { poll_max: Duration::ZERO, ..Limits::default() };
        runtime.block_on(async {
            Server::new(disk.clone(), limits, BufferPool::default()).listen_unix(socket)
        })?;
        Ok(Self { disk, socket: socket.to_owned(), runtime: Some(runtime) })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
