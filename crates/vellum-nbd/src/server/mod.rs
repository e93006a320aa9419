//! [`Server`]: connections, their limits, and their end.
//!
//! A connection has a thread, with a runtime of its own: handing each request to another thread costs more than most requests
//! do, and a request that waits in the kernel holds up its own client alone. On it, one task reads and one writes. Requests
//! run side by side in tasks of their own, and are answered in whatever order they end; a read that need not wait is answered
//! where it was parsed. What was started is never cancelled because its connection died; what was not, never is once the
//! client is known to have hung up.
//!
//! Exports are listed, described and opened on the runtime that the server was made on, so that what that leaves running outlives
//! the connection.

mod handshake;
mod hangup;
mod listener;
mod polling;
mod reader;
mod room;
mod under_way;
mod writer;

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vellum_core::BufferPool;

use crate::export::Exports;
use crate::server::hangup::Hangup;
use crate::server::polling::Lookouts;
use crate::server::reader::Client;
use crate::server::room::ServerRoom;

/// What clients can drive, and how far.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once; more wait to be accepted.
    pub connections_max: usize,
    /// Requests of one connection that are under way or whose replies are not sent yet. At the limit no more are read.
    pub requests_max: usize,
    /// Bytes of one connection that are in memory at once: payload, what is brought closer, and replies that tell of blocks.
    pub connection_bytes_max: usize,
    /// The same of all connections together, with lists of exports.
    pub bytes_max: usize,
    /// How long a connection may hold room of `bytes_max` that others wait for, while it moves less than 1 MiB of the payload
    /// that it sends or of the replies that it is sent. Then it is closed. One that holds nothing, or that nobody waits for,
    /// may be silent for ever.
    pub stall_max: Duration,
    /// For how long an idle connection looks for its client's next request before it sleeps, if the last one came that soon. At
    /// most half of the CPUs look at once. Zero: never.
    pub poll_max: Duration,
    /// Options in one negotiation: some tools ask for a list and then, on the same connection, several times for each export.
    pub options_max: usize,
    /// How long a negotiation may take.
    pub handshake_max: Duration,
    /// Entries of a list of exports.
    pub listed_max: usize,
    /// Descriptors in a reply of block status, for each context.
    pub descriptors_max: usize,
}

impl Default for Limits {
    /// 1,024 connections of 128 requests; 64 MiB for one of them and 512 MiB for all, which may be kept from others for 30 s; 200 us of
    /// looking for the next request.
    fn default() -> Self {
        Self {
            connections_max: 1024,
            requests_max: 128,
            connection_bytes_max: 64 << 20,
            bytes_max: 512 << 20,
            stall_max: Duration::from_secs(30),
            poll_max: Duration::from_micros(200),
            options_max: 65_536,
            handshake_max: Duration::from_secs(30),
            listed_max: 10_000,
            descriptors_max: 4096,
        }
    }
}

/// How many lists of exports are made at once.
const LISTS_MAX: usize = 4;

/// A server of exports on any number of sockets. Clones are the same server.
pub struct Server<E: Exports>(Arc<Shared<E>>);

impl<E: Exports> Clone for Server<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: Exports> fmt::Debug for Server<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({} tasks)", self.0.tasks.len())
    }
}

struct Shared<E> {
    exports: E,
    limits: Limits,
    buffers: BufferPool,
    connections: Arc<Semaphore>,
    room: Arc<ServerRoom>,
    /// Who makes a list of exports.
    lists: Semaphore,
    lookouts: Arc<Lookouts>,
    ending: CancellationToken,
    tasks: TaskTracker,
    /// Where the server was made.
    runtime: Handle,
    /// What each connection's thread does first.
    on_thread: fn(),
}

impl<E: Exports> Server<E> {
    /// A server that does not listen yet.
    ///
    /// # Panics
    /// Outside a tokio runtime, which must last as long as the server.
    pub fn new(exports: E, limits: Limits, buffers: BufferPool) -> Self {
        let connections = Arc::new(Semaphore::new(limits.connections_max));
        let room = Arc::new(ServerRoom::new(&limits));
        let (ending, tasks) = (CancellationToken::new(), TaskTracker::new());
        let runtime = Handle::current();
        Self(Arc::new(Shared {
            exports,
            limits,
            buffers,
            connections,
            room,
            lists: Semaphore::new(LISTS_MAX),
            lookouts: Lookouts::new(),
            ending,
            tasks,
            runtime,
            on_thread: || (),
        }))
    }

    /// Has something done on the thread of each connection before anything else.
    ///
    /// # Panics
    /// If the server listens already.
    #[must_use]
    pub fn on_thread(mut self, begin: fn()) -> Self {
        let shared = Arc::get_mut(&mut self.0).expect("a server that listens is not changed");
        shared.on_thread = begin;
        self
    }

    /// What it offers.
    pub fn exports(&self) -> &E {
        &self.0.exports
    }

    /// Listens on a Unix socket of mode 0600. A socket that a dead server left is replaced; one that somebody listens on is
    /// `AddrInUse`. Its file goes when the server begins to end, so that a successor can listen while this one drains; a file
    /// that somebody else put there meanwhile stays.
    pub fn listen_unix(&self, path: &Path) -> std::io::Result<()> {
        let bound = listener::bind_unix(path)?;
        let next = async move || bound.next().await;
        self.0.tasks.spawn(listener::accept(self.clone(), next));
        Ok(())
    }

    /// Listens on TCP, and says on which address: the port may have been 0.
    pub async fn listen_tcp(&self, address: SocketAddr) -> std::io::Result<SocketAddr> {
        let listener = tokio::net::TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let next = async move || listener::next_tcp(&listener).await;
        self.0.tasks.spawn(listener::accept(self.clone(), next));
        Ok(address)
    }

    /// Serves one connection to its end, on the runtime of the caller. That the client has hung up is seen where what it sent
    /// before has been read.
    pub async fn serve(
        &self,
        reader: impl AsyncRead + Unpin + Send,
        writer: impl AsyncWrite + Unpin + Send + 'static,
    ) {
        self.serve_until(reader, writer, None).await;
    }

    /// The same, where a hangup is seen as soon as it comes.
    async fn serve_until(
        &self,
        mut reader: impl AsyncRead + Unpin + Send,
        mut writer: impl AsyncWrite + Unpin + Send + 'static,
        hangup: Option<Hangup>,
    ) {
        let negotiate = handshake::negotiate(&self.0, &mut reader, &mut writer);
        let negotiated = tokio::select! {
            () = self.0.ending.cancelled() => return,
            negotiated = tokio::time::timeout(self.0.limits.handshake_max, negotiate) => negotiated,
        };
        match negotiated {
            Ok(Ok(Some((export, agreed)))) => {
                let client = Client { agreed, hangup };
                reader::transmit(&self.0, export, client, reader, writer).await;
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a negotiation broke off"),
            Err(_) => tracing::debug!("a negotiation took too long"),
        }
    }

    /// Takes no more connections and requests, lets what is under way end and be answered, and waits for that up to a
    /// deadline. Says whether everything ended in time.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        self.0.ending.cancel();
        self.0.tasks.close();
        tokio::time::timeout(deadline, self.0.tasks.wait()).await.is_ok()
    }
}
