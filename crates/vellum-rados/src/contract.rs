//! [`Objects`]: what the engine asks of a pool.

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use vellum_core::Buffer;

use crate::failure::Result;
use crate::{Failure, Found, ReadOp, WriteOp};

/// A snapshot of objects: [`SnapId::HEAD`], or a number that the pool gave out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SnapId(pub u64);

impl SnapId {
    /// The objects as they are.
    pub const HEAD: Self = Self(u64::MAX - 1);
}

/// Which snapshots must keep what a write is about to change.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SnapContext {
    /// The newest snapshot that ever was.
    pub newest: u64,
    /// Those that are there, the newest first.
    pub snapshots: Vec<u64>,
}

/// The objects of one pool, in one namespace. Clones share the connection.
///
/// An operation reaches one object, and is atomic: readers see all of its steps or none, and so do crashes. It is durable when it
/// was acknowledged. Operations of one client on one object take effect in the order in which they were first polled.
///
/// **Cancel-safety.** An operation runs to its end once it was polled, and keeps what it needs until then; dropping its future
/// drops the answer.
pub trait Objects: Clone + Send + Sync + std::fmt::Debug + 'static {
    /// A watch on an object.
    type Watch: Watch;

    /// The cluster, which no other has the number of.
    fn cluster(&self) -> [u8; 16];

    /// The number of the pool, which no other pool of the cluster has or had.
    fn pool(&self) -> i64;

    /// The number of this client at the cluster.
    fn client(&self) -> u64;

    /// The same connection at another pool, by its number, and at a namespace in it. Whether there is such a pool may show only
    /// when it is used.
    fn at(&self, pool: i64, namespace: &str) -> Result<Self>;

    /// All pools of the cluster, each by its number and its name, as of a moment after this was called. This client may not be
    /// allowed to use all of them.
    fn pools(&self) -> impl Future<Output = Result<Vec<(i64, String)>>> + Send;

    /// Has the cluster refuse all that a client sends, for an hour or more, and waits until that is so: afterwards whatever it
    /// had sent has landed or never will. The client is known by its number, and by the address that the locks that it holds
    /// have of it.
    fn fence(&self, client: u64, address: &str) -> impl Future<Output = Result<()>> + Send;

    /// Changes an object under a snapshot context. Fails with `NO_SPACE` where the cluster is full, rather than wait. An operation
    /// of no steps does nothing.
    fn write(
        &self,
        object: &str,
        context: &SnapContext,
        op: WriteOp,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Looks at an object as it is, or as a snapshot kept it. The buffer comes back whatever happened.
    fn read(&self, object: &str, at: SnapId, op: ReadOp) -> impl Future<Output = ReadDone> + Send;

    /// The names of all objects, in no order that means anything. What is made or removed meanwhile may be among them or not.
    fn list(&self) -> List;

    /// A number for a new snapshot, larger than all before.
    fn create_snapshot(&self) -> impl Future<Output = Result<u64>> + Send;

    /// Lets go of what a snapshot alone keeps, in the time that the cluster takes for it.
    fn remove_snapshot(&self, snapshot: u64) -> impl Future<Output = Result<()>> + Send;

    /// Begins to hear what is said about an object.
    fn watch(&self, object: &str) -> impl Future<Output = Result<Self::Watch>> + Send;

    /// Says something to all who watch an object, this client too if it does, and waits for their answers. Returns them as the
    /// cluster puts them together, also where not all answered in time.
    fn notify(
        &self,
        object: &str,
        says: Vec<u8>,
        wait: Duration,
    ) -> impl Future<Output = Result<Vec<u8>>> + Send;
}

/// What was read.
#[derive(Debug)]
pub struct ReadDone {
    /// The buffer that was given along, if there was one.
    pub buffer: Option<Buffer>,
    /// The version that the object was at, which grows with each change of it; nothing to rely on if nothing was read.
    pub version: u64,
    /// How many bytes of it were filled, and what each step found; or why nothing was.
    pub result: Result<(usize, Vec<Found>)>,
}

/// Names of objects, in pieces. Dropping it ends the work for it.
#[derive(Debug)]
pub struct List(pub(crate) mpsc::Receiver<Result<Vec<String>>>);

impl List {
    /// The next names; `None` at the end. After an error there are no more.
    pub async fn next(&mut self) -> Option<Result<Vec<String>>> {
        self.0.recv().await
    }
}

/// What somebody hears about an object.
pub trait Watch: Send + Sync + std::fmt::Debug + 'static {
    /// The number of the watch, by which the cluster and other clients know it.
    fn id(&self) -> u64;

    /// The next thing that is said. `None` once the watch is closed.
    fn next(&mut self) -> impl Future<Output = Option<Event>> + Send;

    /// Answers what was said. Whoever said it waits for that.
    fn answer(&self, said: u64, answer: Vec<u8>) -> impl Future<Output = Result<()>> + Send;

    /// Ends the watch.
    fn close(self) -> impl Future<Output = Result<()>> + Send;
}

/// Something that a watch hears.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Somebody says something.
    Said {
        /// The number of what is said, for the answer.
        said: u64,
        /// The number of the client that says it.
        client: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// The cluster forgot the watch, or this client lost the way to it: what was said since then was not heard. The watch must
    /// be closed, and another one begun.
    Lost(Failure),
}
