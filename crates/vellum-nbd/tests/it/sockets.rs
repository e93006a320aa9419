//! Sockets: where a server listens, and how many it lets in.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use vellum_nbd::Limits;

use crate::in_time;
use crate::memory_export::{Disk, server};
use crate::peer::{Peer, Style, command};

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_is_for_its_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd");
    let (server, _) = server(Limits::default());
    server.listen_unix(&path).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let mut peer = Peer::new(UnixStream::connect(&path).await.unwrap());
    peer.hello(3).await;
    peer.use_export(Style::Extended, "disk").await;
    peer.write(0, 0, b"abc").await;
    assert_eq!(in_time(peer.outcome(false)).await, 0);
    assert_eq!(in_time(peer.read(0, 4)).await, b"abc\0");
    drop(peer);
    assert!(in_time(server.shutdown(Duration::from_secs(10))).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_a_dead_server_left_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let (first, _) = server(Limits::default());
    first.listen_unix(&path).unwrap();
    let (second, _) = server(Limits::default());
    assert_eq!(second.listen_unix(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert_eq!(second.listen_unix(&file).unwrap_err().kind(), ErrorKind::AddrInUse);
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    Peer::new(UnixStream::connect(&path).await.unwrap()).hello(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_listens_while_its_predecessor_drains_and_keeps_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd");
    let (first, disk) = server(Limits::default());
    first.listen_unix(&path).unwrap();
    let mut peer = Peer::new(UnixStream::connect(&path).await.unwrap());
    peer.hello(3).await;
    peer.use_export(Style::Simple, "disk").await;
    disk.hold(true);
    peer.write(0, 0, b"last").await;
    in_time(disk.called(1)).await;
    let draining = tokio::spawn({
        let first = first.clone();
        async move { first.shutdown(Duration::from_secs(10)).await }
    });
    in_time(async {
        while path.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let (second, _) = server(Limits::default());
    second.listen_unix(&path).unwrap();
    disk.hold(false);
    assert!(in_time(draining).await.unwrap());
    Peer::new(UnixStream::connect(&path).await.unwrap()).hello(3).await;
    assert!(in_time(second.shutdown(Duration::from_secs(10))).await);
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_replaced_ours_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd");
    let (first, _) = server(Limits::default());
    first.listen_unix(&path).unwrap();
    std::fs::rename(&path, dir.path().join("away")).unwrap();
    let (second, _) = server(Limits::default());
    second.listen_unix(&path).unwrap();
    assert!(in_time(first.shutdown(Duration::from_secs(10))).await);
    Peer::new(UnixStream::connect(&path).await.unwrap()).hello(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_longer_than_a_socket_address_can_be_listened_on() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(150));
    std::fs::create_dir(&deep).unwrap();
    let (server, _) = server(Limits::default());
    server.listen_unix(&deep.join("nbd")).unwrap();
    let short = dir.path().join("short");
    std::os::unix::fs::symlink(&deep, &short).unwrap();
    Peer::new(UnixStream::connect(short.join("nbd")).await.unwrap()).hello(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_listens_on_a_port_of_its_own_choice() {
    let (server, _) = server(Limits::default());
    let address = server.listen_tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    assert_ne!(address.port(), 0);
    let mut peer = Peer::new(TcpStream::connect(address).await.unwrap());
    peer.hello(3).await;
    peer.use_export(Style::Structured, "disk").await;
    assert_eq!(in_time(peer.read(0, 3)).await, [0; 3]);
    let busy = server.listen_tcp(address).await.unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::AddrInUse);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_wait_until_one_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd");
    let (server, _) = server(Limits { connections_max: 2, ..Limits::default() });
    server.listen_unix(&path).unwrap();
    let mut first = Peer::new(UnixStream::connect(&path).await.unwrap());
    first.hello(3).await;
    let mut second = Peer::new(UnixStream::connect(&path).await.unwrap());
    second.hello(3).await;
    let mut third = Peer::new(UnixStream::connect(&path).await.unwrap());
    assert!(tokio::time::timeout(Duration::from_millis(200), third.hello(3)).await.is_err());
    drop(first);
    in_time(third.take(18)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_share_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd");
    let (server, _) = server(Limits::default());
    server.listen_unix(&path).unwrap();
    let mut peers = Vec::new();
    for _ in 0..4 {
        let mut peer = Peer::new(UnixStream::connect(&path).await.unwrap());
        peer.hello(3).await;
        peer.use_export(Style::Simple, "disk").await;
        peers.push(peer);
    }
    for (index, peer) in peers.iter_mut().enumerate() {
        peer.write(0, index as u64, &[b'a' + index as u8]).await;
        assert_eq!(in_time(peer.outcome(false)).await, 0);
    }
    for peer in &mut peers {
        assert_eq!(in_time(peer.read(0, 4)).await, b"abcd");
    }
}

/// Two connections at once.
fn two() -> Limits {
    Limits { connections_max: 2, ..Limits::default() }
}

/// A peer that uses the disk.
async fn user<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> Peer<S> {
    let mut peer = Peer::new(stream);
    peer.hello(3).await;
    peer.use_export(Style::Simple, "disk").await;
    peer
}

/// Lets a client send a second change while the thread of its connection sleeps over the first one, and hang up; another
/// connection writes something newer before that thread goes on. What is there in the end.
///
/// The server must take two connections and no more.
async fn after_a_hangup<S: AsyncRead + AsyncWrite + Unpin>(
    disk: &Disk,
    connect: impl AsyncFn() -> S,
    goodbye: bool,
) -> Vec<u8> {
    let (mut first, mut second) = (user(connect().await).await, user(connect().await).await);
    let sleep = disk.sleep_over_the_next();
    first.write(0, 0, b"begun").await;
    in_time(disk.called(1)).await;
    first.write(0, 4096, b"old").await;
    if goodbye {
        first.request(command::DISCONNECT, 0, 0, 0).await;
    }
    drop(first);
    // For longer than a look at the socket counts.
    std::thread::sleep(Duration::from_millis(1));
    // The client would send again what was not answered; it goes on when that is.
    for data in [b"old", b"new"] {
        second.write(0, 4096, data).await;
        assert_eq!(in_time(second.outcome(false)).await, 0);
    }
    drop(sleep);
    // There is room for another one when the first connection has ended.
    in_time(user(connect().await)).await;
    let bytes = disk.bytes.lock();
    assert_eq!(bytes[..5], *b"begun");
    bytes[4096..4099].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_begun_when_its_client_hung_up_never_is() {
    let (listening, disk) = server(two());
    let address = listening.listen_tcp(([127, 0, 0, 1], 0).into()).await.unwrap();
    let connect = async move || TcpStream::connect(address).await.unwrap();
    assert_eq!(after_a_hangup(&disk, connect, false).await, b"new");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd");
    let (listening, disk) = server(two());
    listening.listen_unix(&path).unwrap();
    let connect = async move || UnixStream::connect(&path).await.unwrap();
    assert_eq!(after_a_hangup(&disk, connect, false).await, b"new");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_asked_for_before_it_said_goodbye_is_done() {
    let (listening, disk) = server(two());
    let address = listening.listen_tcp(([127, 0, 0, 1], 0).into()).await.unwrap();
    let connect = async move || TcpStream::connect(address).await.unwrap();
    assert_eq!(after_a_hangup(&disk, connect, true).await, b"old");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_in_the_socket_when_a_client_says_goodbye_is_done_and_answered() {
    let (listening, disk) = server(two());
    let address = listening.listen_tcp(([127, 0, 0, 1], 0).into()).await.unwrap();
    let mut peer = user(TcpStream::connect(address).await.unwrap()).await;
    let sleep = disk.sleep_over_the_next();
    peer.write(0, 0, b"begun").await;
    in_time(disk.called(1)).await;
    // More than may be under way, so that some are begun before the goodbye is read, though it has come.
    const WRITES: u64 = 200;
    for number in 1..=WRITES {
        peer.write(0, number * 4096, &[number as u8; 16]).await;
    }
    peer.request(command::DISCONNECT, 0, 0, 0).await;
    peer.stream.shutdown().await.unwrap();
    std::thread::sleep(Duration::from_millis(1));
    drop(sleep);
    assert_eq!(in_time(peer.rest()).await.len() as u64, 16 * (WRITES + 1), "answers");
    let bytes = disk.bytes.lock();
    for number in 1..=WRITES {
        assert_eq!(bytes[number as usize * 4096], number as u8, "write {number}");
    }
}
