//! What a client can drive has an end; and the end of the server.

use std::time::Duration;

use vellum_nbd::Limits;

use crate::in_time;
use crate::memory_export::{Call, server};
use crate::peer::{Style, client, command, connect, option, wanted};

const SOON: Duration = Duration::from_millis(200);

#[tokio::test]
async fn a_client_that_takes_no_replies_holds_a_bounded_number_of_requests() {
    let (server, disk) = server(Limits { requests_max: 16, ..Limits::default() });
    let (mut peer, _) = connect(&server, 2048);
    peer.hello(3).await;
    peer.use_export(Style::Simple, "disk").await;
    // Replies of 16 KiB do not fit into what the peer reads ahead.
    let flood = async {
        for _ in 0..1000 {
            peer.request(command::READ, 0, 0, 16 << 10).await;
        }
    };
    assert!(tokio::time::timeout(SOON, flood).await.is_err(), "it is not read any more");
    let calls = disk.take_calls().len();
    assert!((1..=17).contains(&calls), "{calls} requests were begun");
}

#[tokio::test]
async fn payload_waits_for_room_in_the_connection_and_in_the_server() {
    for (connection_bytes_max, bytes_max) in [(64 << 10, 1 << 20), (1 << 20, 64 << 10)] {
        let limits = Limits { connection_bytes_max, bytes_max, ..Limits::default() };
        let (server, disk) = server(limits);
        let mut peer = client(&server, Style::Simple, "disk").await;
        disk.hold(true);
        let flood = async {
            for _ in 0..100 {
                peer.write(0, 0, &[b'x'; 16 << 10]).await;
            }
        };
        assert!(tokio::time::timeout(SOON, flood).await.is_err());
        assert_eq!(disk.take_calls().len(), 4, "as many as have room at once");
        disk.hold(false);
    }
}

#[tokio::test]
async fn payload_takes_the_room_of_the_memory_that_it_is_put_in() {
    let limits = Limits { bytes_max: 64 << 10, ..Limits::default() };
    for (length, at_once) in [(32 << 10, 2), ((32 << 10) + 1, 1), (512, 16)] {
        let (server, disk) = server(limits.clone());
        let mut peer = client(&server, Style::Simple, "disk").await;
        disk.hold(true);
        let flood = async {
            for _ in 0..100 {
                peer.write(0, 0, &vec![b'x'; length]).await;
            }
        };
        assert!(tokio::time::timeout(SOON, flood).await.is_err() || length == 512);
        tokio::time::sleep(SOON).await;
        assert_eq!(disk.take_calls().len(), at_once, "of {length} bytes");
        disk.hold(false);
    }
}

/// Room in the server for one payload of 64 KiB at a time.
fn crowded() -> Limits {
    Limits { bytes_max: 64 << 10, stall_max: STALL, ..Limits::default() }
}

const STALL: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_no_payload_is_closed_once_others_have_waited_for_its_room() {
    let (server, _) = server(crowded());
    let mut silent = client(&server, Style::Simple, "disk").await;
    silent.request(command::WRITE, 0, 0, 64 << 10).await;
    silent.send(&[b'x'; 1000]).await;
    let mut other = client(&server, Style::Simple, "disk").await;
    let began = tokio::time::Instant::now();
    assert_eq!(other.read(0, 4096).await, [0; 4096]);
    assert!(began.elapsed() <= STALL * 2, "{:?}", began.elapsed());
    assert_eq!(silent.rest().await, b"");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_a_byte_now_and_then_is_closed_like_a_silent_one() {
    let (server, _) = server(crowded());
    let mut slow = client(&server, Style::Simple, "disk").await;
    slow.request(command::WRITE, 0, 0, 64 << 10).await;
    let trickle = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        while slow.stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(STALL / 100).await;
        }
    });
    let mut other = client(&server, Style::Simple, "disk").await;
    let began = tokio::time::Instant::now();
    assert_eq!(other.read(0, 4096).await, [0; 4096]);
    assert!(began.elapsed() <= STALL * 2, "{:?}", began.elapsed());
    trickle.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_no_replies_is_closed_once_others_have_waited_for_its_room() {
    let (server, _) = server(crowded());
    let (mut deaf, _) = connect(&server, 2048);
    deaf.hello(3).await;
    deaf.use_export(Style::Simple, "disk").await;
    deaf.request(command::READ, 0, 0, 64 << 10).await;
    let mut other = client(&server, Style::Simple, "disk").await;
    let began = tokio::time::Instant::now();
    assert_eq!(other.read(0, 4096).await, [0; 4096]);
    assert!(began.elapsed() <= STALL * 2, "{:?}", began.elapsed());
    assert!(deaf.rest().await.len() < 64 << 10);
}

#[tokio::test(start_paused = true)]
async fn what_tells_of_blocks_or_is_brought_closer_takes_room_as_payload_does() {
    for command in [command::BLOCK_STATUS, command::CACHE] {
        let (server, _) = server(crowded());
        // An answer has more than the bytes that are taken ahead.
        let (mut deaf, _) = connect(&server, 8);
        deaf.hello(3).await;
        deaf.use_export(Style::Structured, "disk").await;
        deaf.request(command, 0, 0, 4096).await;
        let mut other = client(&server, Style::Simple, "disk").await;
        let began = tokio::time::Instant::now();
        assert_eq!(other.read(0, 4096).await, [0; 4096]);
        let waited = began.elapsed();
        assert!(waited > Duration::ZERO && waited <= STALL * 2, "{command}: {waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_nobody_takes_has_room_until_its_negotiation_is_over() {
    let limits = Limits { handshake_max: STALL, ..crowded() };
    let (server, _) = server(limits);
    let (mut deaf, _) = connect(&server, 64);
    deaf.hello(3).await;
    deaf.send_option(option::LIST, &[]).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let mut other = client(&server, Style::Simple, "disk").await;
    let began = tokio::time::Instant::now();
    // All there is, of which the list has a part.
    other.request(command::READ, 0, 0, 64 << 10).await;
    other.simple().await;
    other.take(64 << 10).await;
    let waited = began.elapsed();
    assert!(waited > Duration::ZERO && waited <= STALL * 2, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_for_an_hour_goes_on_if_nobody_waits_for_it() {
    let (server, _) = server(crowded());
    let mut paused = client(&server, Style::Simple, "disk").await;
    let mut idle = client(&server, Style::Simple, "disk").await;
    paused.request(command::WRITE, 0, 0, 64 << 10).await;
    paused.send(&[b'x'; 1000]).await;
    tokio::time::sleep(STALL * 120).await;
    paused.send(&vec![b'x'; (64 << 10) - 1000]).await;
    assert_eq!(paused.outcome(false).await, 0);
    paused.request(command::READ, 0, 0, 64 << 10).await;
    tokio::time::sleep(STALL * 120).await;
    paused.simple().await;
    assert_eq!(paused.take(64 << 10).await, vec![b'x'; 64 << 10]);
    assert_eq!(idle.read(0, 4).await, b"xxxx", "one that holds nothing is never closed");
}

#[tokio::test]
async fn a_write_gives_its_room_back_whether_its_reply_is_taken_or_not() {
    let (server, disk) = server(crowded());
    let (mut deaf, _) = connect(&server, 16);
    deaf.hello(3).await;
    deaf.use_export(Style::Simple, "disk").await;
    for _ in 0..4 {
        in_time(deaf.write(0, 0, &[b'x'; 64 << 10])).await;
    }
    in_time(disk.called(4)).await;
    let mut other = client(&server, Style::Simple, "disk").await;
    assert_eq!(in_time(other.read(0, 4096)).await, [b'x'; 4096]);
}

#[tokio::test]
async fn a_payload_larger_than_the_limit_is_served_alone() {
    let limits = Limits { connection_bytes_max: 8192, bytes_max: 8192, ..Limits::default() };
    let (server, _) = server(limits);
    let mut peer = client(&server, Style::Simple, "disk").await;
    for _ in 0..3 {
        peer.write(0, 0, &[b'x'; 100_000]).await;
        assert_eq!(in_time(peer.outcome(false)).await, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_storage_stands_still_waits_for_it_however_long_and_others_are_served() {
    let (server, disk) = server(Limits::default());
    let mut peer = client(&server, Style::Simple, "disk").await;
    let mut other = client(&server, Style::Simple, "disk").await;
    disk.hold(true);
    let stuck = peer.write(0, 0, b"here").await;
    disk.called(1).await;
    for _ in 0..24 {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let flushed = peer.request(command::FLUSH, 0, 0, 0).await;
        assert_eq!(peer.simple().await, (flushed, 0), "what does not wait for it is answered");
        other.request(command::FLUSH, 0, 0, 0).await;
        assert_eq!(other.outcome(false).await, 0);
    }
    disk.hold(false);
    assert_eq!(peer.simple().await, (stuck, 0));
    assert_eq!(other.read(0, 4).await, b"here");
}

#[tokio::test]
async fn shutdown_answers_what_is_under_way_and_then_hangs_up() {
    let (server, disk) = server(Limits::default());
    let mut peer = client(&server, Style::Simple, "disk").await;
    disk.hold(true);
    let cookie = peer.write(0, 0, b"last").await;
    in_time(disk.called(1)).await;
    let shutdown = tokio::spawn({
        let server = server.clone();
        async move { server.shutdown(Duration::from_secs(10)).await }
    });
    tokio::time::sleep(SOON / 10).await;
    peer.request(command::FLUSH, 0, 0, 0).await;
    disk.hold(false);
    assert_eq!(in_time(peer.simple()).await, (cookie, 0));
    assert_eq!(in_time(peer.rest()).await, b"");
    assert!(in_time(shutdown).await.unwrap());
    assert!(!disk.take_calls().contains(&Call::Flush), "no new requests are taken");
}

#[tokio::test]
async fn shutdown_gives_up_at_its_deadline() {
    let (server, disk) = server(Limits::default());
    let mut peer = client(&server, Style::Simple, "disk").await;
    disk.hold(true);
    peer.write(0, 0, b"stuck").await;
    in_time(disk.called(1)).await;
    assert!(!in_time(server.shutdown(SOON)).await);
    disk.hold(false);
    assert!(
        in_time(server.shutdown(Duration::from_secs(5))).await,
        "it ends once nothing is stuck"
    );
}

#[tokio::test]
async fn shutdown_ends_negotiations_and_idle_connections() {
    let (server, _) = server(Limits::default());
    let (mut negotiating, _) = connect(&server, 4096);
    negotiating.hello(3).await;
    negotiating.ask(option::INFO, &wanted("disk", &[])).await;
    let mut idle = client(&server, Style::Extended, "disk").await;
    assert!(in_time(server.shutdown(Duration::from_secs(5))).await);
    assert_eq!(in_time(negotiating.rest()).await, b"");
    assert_eq!(in_time(idle.rest()).await, b"");
}
