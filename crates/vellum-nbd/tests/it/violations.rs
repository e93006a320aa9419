//! What a client must not do: it is told so and the connection goes on, or it is cut off, and nothing else happens.

use std::time::Duration;

use vellum_nbd::Limits;

use crate::in_time;
use crate::memory_export::{SIZE, server};
use crate::peer::{Style, client, command, connect, flag, option, wanted};

const INVALID: u32 = 22;
const NO_SPACE: u32 = 28;
const PERMISSION: u32 = 1;
const OVERFLOW: u32 = 75;
const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

#[tokio::test]
async fn what_is_no_negotiation_ends_the_connection() {
    let go = [&b"IHAVEOPT\0\0\0\x07"[..], &wanted("disk", &[])].concat();
    for (what, flags, said) in [
        ("flags that were not offered", 0x10, &b""[..]),
        ("all flags", u32::MAX, b""),
        ("no option", 3, b"IHAVEOPX\0\0\0\x07\0\0\0\0"),
        ("a request too early", 3, b"\x25\x60\x95\x13\0\0\0\0ABCDEFGH\0\0\0\0\0\0\0\0\0\0\0\x01"),
        ("a long option", 3, b"IHAVEOPT\0\0\0\x07\0\x04\0\x01"),
        ("the longest option", 3, b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff"),
        ("an option for a client that is not fixed", 0, &go),
    ] {
        let (server, disk) = server(Limits::default());
        let (mut peer, serving) = connect(&server, 4096);
        peer.hello(flags).await;
        peer.send(said).await;
        assert_eq!(in_time(peer.rest()).await, b"", "{what}");
        in_time(serving).await.unwrap();
        assert_eq!(disk.take_calls(), []);
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_anywhere_leaves_nothing_behind() {
    let hello =
        [&3_u32.to_be_bytes()[..], b"IHAVEOPT\0\0\0\x07\0\0\0\x0a", &wanted("disk", &[])].concat();
    let write = b"\x25\x60\x95\x13\0\0\0\x01ABCDEFGH\0\0\0\0\0\0\0\0\0\0\0\x10sixteen bytes...";
    let all = [&hello[..], write].concat();
    for length in 0..all.len() {
        let (server, disk) = server(Limits::default());
        let (mut peer, serving) = connect(&server, 4096);
        peer.send(&all[..length]).await;
        drop(peer);
        in_time(serving).await.unwrap();
        assert_eq!(disk.take_calls(), [], "after {length} bytes");
        assert!(in_time(server.shutdown(Duration::from_secs(5))).await);
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_in_the_middle_of_a_write_has_written_nothing() {
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        for length in [0, 1, 4095] {
            let (server, disk) = server(Limits::default());
            let (mut peer, serving) = connect(&server, 1 << 16);
            peer.hello(3).await;
            peer.use_export(style, "disk").await;
            let says = if style == Style::Extended { flag::PAYLOAD_LEN } else { 0 };
            peer.request(command::WRITE, says, 0, 4096).await;
            peer.send(&vec![7; length]).await;
            drop(peer);
            in_time(serving).await.unwrap();
            assert_eq!(disk.take_calls(), [], "after {length} bytes, {style:?}");
            assert!(in_time(server.shutdown(Duration::from_secs(5))).await);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_negotiation_has_so_much_time_and_so_many_options() {
    let (server, _) = server(Limits { options_max: 10, ..Limits::default() });
    let (mut peer, serving) = connect(&server, 4096);
    peer.hello(3).await;
    tokio::time::sleep(Limits::default().handshake_max + Duration::from_secs(1)).await;
    serving.await.unwrap();
    assert_eq!(peer.rest().await, b"");
    let (mut peer, serving) = connect(&server, 4096);
    peer.hello(3).await;
    for _ in 0..10 {
        peer.ask(option::STRUCTURED_REPLY, &[]).await;
    }
    serving.await.unwrap();
    assert_eq!(peer.rest().await, b"");
}

#[tokio::test]
async fn what_is_no_request_ends_the_connection() {
    for style in STYLES {
        let (server, disk) = server(Limits::default());
        let mut peer = client(&server, style, "disk").await;
        peer.send(&[0xee; 64]).await;
        assert_eq!(in_time(peer.rest()).await, b"");
        assert_eq!(disk.take_calls(), []);
    }
}

#[tokio::test]
async fn a_request_in_another_style_than_was_settled_ends_the_connection() {
    // Both are reads of four bytes.
    let compact = b"\x25\x60\x95\x13\0\0\0\0ABCDEFGH\0\0\0\0\0\0\0\0\0\0\0\x04";
    let extended = b"\x21\xe4\x1c\x71\0\0\0\0ABCDEFGH\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x04";
    for style in STYLES {
        let (server, disk) = server(Limits::default());
        let mut peer = client(&server, style, "disk").await;
        let other = if style == Style::Extended { &compact[..] } else { extended };
        // Whoever waits for the longer header gets enough bytes to see the magic number.
        peer.send(&[other, &[0; 8]].concat()).await;
        assert_eq!(in_time(peer.rest()).await, b"", "{style:?}");
        assert_eq!(disk.take_calls(), []);
    }
}

#[tokio::test]
async fn a_length_of_a_payload_that_was_not_settled_is_refused_and_the_payload_of_a_write_skipped()
{
    for style in [Style::Simple, Style::Structured] {
        let (server, disk) = server(Limits::default());
        let mut peer = client(&server, style, "disk").await;
        peer.write(flag::PAYLOAD_LEN, 0, &[0x25; 1000]).await;
        assert_eq!(in_time(peer.outcome(false)).await, INVALID, "{style:?}");
        peer.request(command::READ, flag::PAYLOAD_LEN, 0, 1000).await;
        assert_eq!(in_time(peer.outcome(true)).await, INVALID, "{style:?}");
        assert_eq!(disk.take_calls(), []);
        assert_eq!(in_time(peer.read(0, 4)).await, [0; 4]);
    }
}

#[tokio::test]
async fn a_write_that_does_not_say_that_it_has_a_payload_has_one_all_the_same() {
    let (server, _) = server(Limits::default());
    let mut peer = client(&server, Style::Extended, "disk").await;
    peer.request(command::WRITE, 0, 0, 4).await;
    peer.send(b"four").await;
    assert_eq!(in_time(peer.outcome(false)).await, 0);
    assert_eq!(in_time(peer.read(0, 4)).await, b"four");
}

#[tokio::test]
async fn requests_that_share_a_cookie_are_both_answered() {
    let (server, disk) = server(Limits::default());
    let mut peer = client(&server, Style::Simple, "disk").await;
    disk.hold(true);
    let flush = b"\x25\x60\x95\x13\0\0\0\x03ABCDEFGH\0\0\0\0\0\0\0\0\0\0\0\0";
    let write = b"\x25\x60\x95\x13\0\0\0\x01ABCDEFGH\0\0\0\0\0\0\0\0\0\0\0\x04four";
    peer.send(&[&write[..], flush, flush].concat()).await;
    in_time(disk.called(1)).await;
    disk.hold(false);
    let cookie = u64::from_be_bytes(*b"ABCDEFGH");
    for _ in 0..3 {
        assert_eq!(in_time(peer.simple()).await, (cookie, 0));
    }
    assert_eq!(in_time(peer.read(0, 4)).await, b"four");
}

#[tokio::test]
async fn what_follows_a_goodbye_is_not_looked_at() {
    for style in STYLES {
        let (server, disk) = server(Limits::default());
        let mut peer = client(&server, style, "disk").await;
        peer.request(command::DISCONNECT, 0, 7, 7).await;
        peer.write(0, 0, b"late").await;
        assert_eq!(in_time(peer.rest()).await, b"", "{style:?}");
        assert_eq!(disk.take_calls(), []);
    }
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_and_the_next_is_served() {
    let end = SIZE;
    let cases = [
        ("an unknown command", 99, 0, 0, 1, INVALID),
        ("a read with flags of zeroes", command::READ, flag::NO_HOLE, 0, 1, INVALID),
        ("a trim with don't-fragment", command::TRIM, flag::DF, 0, 1, INVALID),
        ("flags that nothing has", command::CACHE, 0x8000, 0, 1, INVALID),
        ("a read of nothing", command::READ, 0, 0, 0, INVALID),
        ("a trim of nothing", command::TRIM, 0, 0, 0, INVALID),
        ("a flush of something", command::FLUSH, 0, 0, 1, INVALID),
        ("a flush somewhere", command::FLUSH, 0, 1, 0, INVALID),
        ("a read beyond the end", command::READ, 0, end - 1, 2, INVALID),
        ("a read far beyond it", command::READ, 0, u64::MAX, 1, INVALID),
        ("a read that wraps around", command::READ, 0, u64::MAX - 1, 1000, INVALID),
        ("a cache beyond the end", command::CACHE, 0, end, 1, INVALID),
        ("a trim beyond the end", command::TRIM, 0, end - 1, 2, NO_SPACE),
        ("zeroes that wrap around", command::WRITE_ZEROES, 0, u64::MAX, 2, NO_SPACE),
        ("a read of more than 32 MiB", command::READ, 0, 0, (32 << 20) + 1, INVALID),
        ("a read of nearly 4 GiB", command::READ, 0, 0, u32::MAX as u64, INVALID),
    ];
    for style in STYLES {
        let (server, disk) = server(Limits::default());
        let mut peer = client(&server, style, "disk").await;
        for (what, command, flags, offset, length, errno) in cases {
            peer.request(command, flags, offset, length).await;
            let outcome = in_time(peer.outcome(command == command::READ)).await;
            assert_eq!(outcome, errno, "{what}, {style:?}");
        }
        assert_eq!(disk.take_calls(), []);
        assert_eq!(in_time(peer.read(0, 4)).await, [0; 4]);
    }
}

#[tokio::test]
async fn a_read_too_long_for_one_piece_says_so() {
    let (server, _) = server(Limits::default());
    let mut peer = client(&server, Style::Structured, "disk").await;
    peer.request(command::READ, flag::DF, 0, (32 << 20) + 1).await;
    assert_eq!(in_time(peer.outcome(true)).await, OVERFLOW);
}

#[tokio::test]
async fn block_status_needs_a_context() {
    let (server, _) = server(Limits::default());
    let mut peer = client(&server, Style::Simple, "disk").await;
    peer.request(command::BLOCK_STATUS, 0, 0, 4096).await;
    assert_eq!(in_time(peer.outcome(false)).await, INVALID);
}

#[tokio::test]
async fn the_payload_of_a_refused_write_is_skipped() {
    for style in STYLES {
        for (export, offset, length, errno) in [
            ("disk", SIZE - 1, 5000, NO_SPACE),
            ("disk", u64::MAX, 5000, NO_SPACE),
            ("disk", 0, (32 << 20) + 5, INVALID),
            ("disk", 0, 0, INVALID),
            ("sealed", 0, 5000, PERMISSION),
        ] {
            let (server, disk) = server(Limits::default());
            let mut peer = client(&server, style, export).await;
            // What looks like a request in a payload is none.
            let payload = b"\x25\x60\x95\x13\0\0\0\x03ABCDEFGH".repeat(length / 16 + 1);
            peer.write(0, offset, &payload[..length]).await;
            assert_eq!(in_time(peer.outcome(false)).await, errno, "{style:?} {offset} {length}");
            assert_eq!(in_time(peer.read(0, 4)).await, [0; 4]);
            assert_eq!(disk.take_calls(), []);
        }
    }
}

#[tokio::test]
async fn a_read_only_export_takes_nothing() {
    for style in STYLES {
        let (server, disk) = server(Limits::default());
        let mut peer = client(&server, style, "sealed").await;
        for command in [command::TRIM, command::WRITE_ZEROES] {
            peer.request(command, 0, 0, 4096).await;
            assert_eq!(in_time(peer.outcome(false)).await, PERMISSION);
        }
        assert_eq!(disk.take_calls(), []);
    }
}

#[tokio::test]
async fn a_payload_where_none_belongs_is_skipped() {
    let (server, disk) = server(Limits::default());
    let mut peer = client(&server, Style::Extended, "disk").await;
    for command in [command::READ, command::TRIM, command::BLOCK_STATUS, command::FLUSH] {
        peer.request(command, flag::PAYLOAD_LEN, 0, 1000).await;
        peer.send(&[0x21; 1000]).await;
        assert_eq!(in_time(peer.outcome(true)).await, INVALID, "command {command}");
    }
    assert_eq!(disk.take_calls(), []);
    assert_eq!(in_time(peer.read(0, 4)).await, [0; 4]);
}
