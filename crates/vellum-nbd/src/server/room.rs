//! Room for payload: how much of it is in memory, for one connection and for the server.
//!
//! Room is taken before a payload is read, and given back when nothing needs the memory any more. Since clients decide when they
//! send a payload and when they take a reply, one that stops doing so could keep the room of all others. It may, as long as
//! nobody else wants it: a client that was stopped for a while, with its virtual machine, say, is not punished. But once others
//! wait, a connection that has moved too little for [`stall_max`](crate::Limits::stall_max) gives up. Decision 0040 has the
//! reasons.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::server::Limits;

/// Payload is counted in these units, so that 512 MiB are few enough permits.
const UNIT: usize = 4096;
/// What a connection must move within `stall_max`, or it has stalled: a client could send one byte now and then.
const PROGRESS: usize = 1 << 20;
/// How often in `stall_max` a connection that moves nothing looks whether others wait.
const LOOKS: u32 = 8;

/// How much room a length takes: what is longer than all there is takes that, alone.
fn units(length: usize, units_max: usize) -> u32 {
    length.div_ceil(UNIT).min(units_max) as u32
}

/// The room of all connections together.
#[derive(Debug)]
pub(super) struct ServerRoom {
    units: Arc<Semaphore>,
    /// All there is.
    units_max: usize,
    /// How many wait for it.
    waiting: AtomicUsize,
}

impl ServerRoom {
    pub(super) fn new(limits: &Limits) -> Self {
        let units_max = limits.bytes_max / UNIT;
        Self { units: Arc::new(Semaphore::new(units_max)), units_max, waiting: AtomicUsize::new(0) }
    }

    /// Waits for room for what is said before an export is used, which has its own deadline.
    pub(super) async fn for_answer(&self, length: usize) -> io::Result<OwnedSemaphorePermit> {
        let units = units(length, self.units_max);
        self.take(units, &AtomicUsize::new(0)).await
    }

    async fn take(&self, units: u32, own: &AtomicUsize) -> io::Result<OwnedSemaphorePermit> {
        if let Ok(taken) = self.units.clone().try_acquire_many_owned(units) {
            return Ok(taken);
        }
        let _waiting = (Counted::new(own), Counted::new(&self.waiting));
        self.units.clone().acquire_many_owned(units).await.map_err(io::Error::other)
    }
}

/// The room of one connection, which is part of the server's.
#[derive(Debug)]
pub(super) struct Room {
    own: Arc<Semaphore>,
    server: Arc<ServerRoom>,
    /// Payloads that have room in the server.
    held: Arc<AtomicUsize>,
    /// How many of those who wait for the server's room are this connection.
    waiting: AtomicUsize,
    /// The most that one payload takes; a larger one is served alone.
    units_max: usize,
    stall_max: Duration,
}

/// Room that a payload has, until it is dropped.
#[derive(Debug)]
pub(super) struct Reserved {
    _permits: [OwnedSemaphorePermit; 2],
    held: Arc<AtomicUsize>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Room {
    pub(super) fn new(server: Arc<ServerRoom>, limits: &Limits) -> Self {
        Self {
            own: Arc::new(Semaphore::new(limits.connection_bytes_max / UNIT)),
            server,
            held: Arc::default(),
            waiting: AtomicUsize::new(0),
            units_max: limits.connection_bytes_max.min(limits.bytes_max) / UNIT,
            stall_max: limits.stall_max,
        }
    }

    /// Waits for room, in the connection and then in the server.
    pub(super) async fn take(&self, length: usize) -> io::Result<Reserved> {
        let units = units(length, self.units_max);
        let own = self.own.clone().acquire_many_owned(units).await.map_err(io::Error::other)?;
        let permits = [own, self.server.take(units, &self.waiting).await?];
        self.held.fetch_add(1, Ordering::Relaxed);
        Ok(Reserved { _permits: permits, held: self.held.clone() })
    }

    /// Watches something that the client must go on with.
    pub(super) fn watch(&self) -> Watch<'_> {
        Watch { room: self, since: None, moved: 0 }
    }

    /// Whether others wait for what the connection holds.
    fn is_missed(&self) -> bool {
        let others = self.server.waiting.load(Ordering::Relaxed);
        self.held.load(Ordering::Relaxed) > 0 && others > self.waiting.load(Ordering::Relaxed)
    }
}

/// How well a client goes on with what it sends or takes.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    room: &'a Room,
    /// When it first made us wait, since it last moved enough. A client that never does needs no clock.
    since: Option<Instant>,
    moved: usize,
}

impl Watch<'_> {
    /// Waits for a step that moves some bytes. `TimedOut` if the client has stalled while the connection holds room that others
    /// wait for.
    pub(super) async fn step(
        &mut self,
        step: impl Future<Output = io::Result<usize>>,
    ) -> io::Result<usize> {
        tokio::pin!(step);
        if let Poll::Ready(moved) = futures::poll!(step.as_mut()) {
            self.check()?;
            return self.count(moved?);
        }
        self.since.get_or_insert_with(Instant::now);
        let look = (self.room.stall_max / LOOKS).max(Duration::from_millis(1));
        loop {
            self.check()?;
            if let Ok(moved) = tokio::time::timeout(look, &mut step).await {
                return self.count(moved?);
            }
        }
    }

    fn count(&mut self, moved: usize) -> io::Result<usize> {
        self.moved += moved;
        if self.moved >= PROGRESS {
            (self.since, self.moved) = (None, 0);
        }
        Ok(moved)
    }

    fn check(&self) -> io::Result<()> {
        let stall_max = self.room.stall_max;
        let stalled = self.since.is_some_and(|since| since.elapsed() >= stall_max);
        if !stalled || !self.room.is_missed() {
            return Ok(());
        }
        let what = format!(
            "the client moved too little for {stall_max:?} while others wait for the memory that it holds"
        );
        Err(io::Error::new(io::ErrorKind::TimedOut, what))
    }
}

/// Counts somebody for as long as it is there.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
