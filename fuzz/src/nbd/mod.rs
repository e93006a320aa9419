//! What the two NBD targets share: a disk in memory that is served, and a reader of what a server says. The numbers are the
//! protocol's, written down apart from those of the server.

pub(crate) mod disk;
pub(crate) mod wire;

use std::time::Duration;

use tokio::io::AsyncReadExt;
use vellum_core::BufferPool;
use vellum_nbd::{Limits, Server};

use disk::{Behaviour, Disks};

/// A server of one disk, as an input wants it to behave. It never looks for requests longer than it must.
pub(crate) fn server(behaviour: Behaviour) -> Server<Disks> {
    let limits = Limits { poll_max: Duration::ZERO, ..Limits::default() };
    Server::new(Disks::new(behaviour), limits, BufferPool::default())
}

/// Everything that a server says to a client that says all this at once and no more, put into `heard`. Either side may be so
/// many bytes ahead of the other.
pub(crate) async fn answers_to(
    server: &Server<Disks>,
    said: &[u8],
    ahead: usize,
    mut heard: Vec<u8>,
) -> Vec<u8> {
    let (client, other) = tokio::io::duplex(ahead);
    let (reader, writer) = tokio::io::split(other);
    let (mut hears, mut says) = tokio::io::split(client);
    let saying = async {
        // A server that has had enough hangs up.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut says, said).await;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut says).await;
    };
    let hearing = async { hears.read_to_end(&mut heard).await.expect("a pipe in memory") };
    tokio::join!(server.serve(reader, writer), saying, hearing);
    heard
}
