//! Requests and replies, in each of the three styles.

use vellum_core::Extent;
use vellum_nbd::{Context, Errno, Limits, ZeroFlags};

use crate::in_time;
use crate::memory_export::{Call, SIZE, server};
use crate::peer::{Chunk, Style, chunk, client, command, flag};

const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];

#[tokio::test]
async fn what_is_written_is_read_back_in_every_style() {
    for style in STYLES {
        let (server, disk) = server(Limits::default());
        let mut peer = client(&server, style, "disk").await;
        peer.write(0, 4000, &[b'x'; 200]).await;
        assert_eq!(in_time(peer.outcome(false)).await, 0);
        let mut expected = vec![0; 3 * 4096];
        expected[4000..4200].fill(b'x');
        assert_eq!(in_time(peer.read(0, 3 * 4096)).await, expected, "{style:?}");
        assert_eq!(in_time(peer.read(4100, 2)).await, b"xx", "{style:?}");
        assert_eq!(disk.take_calls()[0], Call::Write(Extent::new(4000, 200), false));
    }
}

#[tokio::test]
async fn every_command_reaches_the_export_with_its_flags() {
    let at = Extent::new(8192, 4096);
    let flags = |no_hole, fast, fua| ZeroFlags { no_hole, fast, fua };
    for style in STYLES {
        let (server, disk) = server(Limits::default());
        let mut peer = client(&server, style, "disk").await;
        for (command, asked, expected) in [
            (command::FLUSH, 0, Call::Flush),
            (command::TRIM, 0, Call::Trim(at, false)),
            (command::TRIM, flag::FUA, Call::Trim(at, true)),
            (command::WRITE_ZEROES, 0, Call::Zeroes(at, flags(false, false, false))),
            (
                command::WRITE_ZEROES,
                flag::NO_HOLE | flag::FUA,
                Call::Zeroes(at, flags(true, false, true)),
            ),
            (command::WRITE_ZEROES, flag::FAST_ZERO, Call::Zeroes(at, flags(false, true, false))),
            (command::CACHE, 0, Call::Cache(at)),
        ] {
            let (offset, length) = if command == command::FLUSH { (0, 0) } else { (8192, 4096) };
            peer.request(command, asked, offset, length).await;
            assert_eq!(in_time(peer.outcome(false)).await, 0, "{expected:?}");
            assert_eq!(disk.take_calls(), [expected]);
        }
        peer.write(flag::FUA, 0, b"abc").await;
        assert_eq!(in_time(peer.outcome(false)).await, 0);
        assert_eq!(disk.take_calls(), [Call::Write(Extent::new(0, 3), true)]);
    }
}

#[tokio::test]
async fn holes_are_sent_as_holes_and_with_dont_fragment_as_one_piece() {
    for style in [Style::Structured, Style::Extended] {
        let (server, disk) = server(Limits::default());
        disk.bytes.lock()[4096..8192].fill(b'x');
        let mut peer = client(&server, style, "disk").await;
        peer.request(command::READ, 0, 0, 12_288).await;
        let chunks = in_time(peer.chunks()).await;
        let hole = |at: u64| Chunk {
            kind: chunk::HOLE,
            payload: [&at.to_be_bytes()[..], &4096_u32.to_be_bytes()].concat(),
        };
        let data = Chunk {
            kind: chunk::DATA,
            payload: [&4096_u64.to_be_bytes()[..], &[b'x'; 4096]].concat(),
        };
        assert_eq!(chunks, [hole(0), data, hole(8192)]);
        peer.request(command::READ, flag::DF, 0, 12_288).await;
        let chunks = in_time(peer.chunks()).await;
        assert_eq!(
            (chunks.len(), chunks[0].kind, chunks[0].payload.len()),
            (1, chunk::DATA, 12_296)
        );
    }
}

#[tokio::test]
async fn holes_of_any_length_are_sent_as_zeros_where_no_holes_can_be_said() {
    let (server, disk) = server(Limits::default());
    disk.bytes.lock()[300_000..300_010].fill(b'x');
    let expected = disk.bytes.lock()[1000..700_000].to_vec();
    let mut simple = client(&server, Style::Simple, "disk").await;
    assert!(in_time(simple.read(1000, 699_000)).await == expected);
    let mut structured = client(&server, Style::Structured, "disk").await;
    structured.request(command::READ, flag::DF, 1000, 699_000).await;
    let chunks = in_time(structured.chunks()).await;
    assert!(chunks.len() == 1 && chunks[0].payload[8..] == expected);
}

#[tokio::test]
async fn block_status_has_a_chunk_for_each_context() {
    let (server, disk) = server(Limits::default());
    disk.bytes.lock()[4096..8192].fill(b'x');
    for style in [Style::Structured, Style::Extended] {
        let mut peer = client(&server, style, "disk").await;
        peer.request(command::BLOCK_STATUS, 0, 0, 16_384).await;
        let found = in_time(peer.chunks()).await;
        let kind = if style == Style::Extended { chunk::STATUS_EXTENDED } else { chunk::STATUS };
        let expected =
            [(1_u32, [(4096, 3), (4096, 0), (8192, 3)]), (2, [(4096, 0), (4096, 1), (8192, 0)])];
        let expected = expected
            .map(|(id, descriptors)| Chunk { kind, payload: status(style, id, &descriptors) });
        assert_eq!(found, expected);
    }
}

fn status(style: Style, id: u32, descriptors: &[(u64, u64)]) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    if style == Style::Extended {
        out.extend((descriptors.len() as u32).to_be_bytes());
        out.extend(
            descriptors
                .iter()
                .flat_map(|(length, flags)| [length.to_be_bytes(), flags.to_be_bytes()].concat()),
        );
    } else {
        let narrow = |number: u64| u32::try_from(number).unwrap().to_be_bytes();
        out.extend(
            descriptors
                .iter()
                .flat_map(|(length, flags)| [narrow(*length), narrow(*flags)].concat()),
        );
    }
    out
}

#[tokio::test]
async fn block_status_of_one_asks_for_one_and_otherwise_for_what_the_limit_allows() {
    let (server, disk) = server(Limits { descriptors_max: 7, ..Limits::default() });
    let mut peer = client(&server, Style::Extended, "disk").await;
    for (flags, max) in [(0, 7), (flag::REQ_ONE, 1)] {
        peer.request(command::BLOCK_STATUS, flags, 0, SIZE).await;
        assert_eq!(in_time(peer.outcome(true)).await, 0);
        let at = Extent::new(0, SIZE);
        assert_eq!(
            disk.take_calls(),
            [Call::Status(at, Context::Allocation, max), Call::Status(at, Context::Depth, max)]
        );
    }
}

#[tokio::test]
async fn an_error_has_its_number_and_with_chunks_a_line_for_people() {
    for style in STYLES {
        let (server, disk) = server(Limits::default());
        let mut peer = client(&server, style, "disk").await;
        for errno in
            [Errno::Io, Errno::NoSpace, Errno::NotSupported, Errno::Permission, Errno::Shutdown]
        {
            disk.fail(Some(errno));
            for command in [command::READ, command::TRIM, command::WRITE_ZEROES, command::CACHE] {
                peer.request(command, 0, 0, 4096).await;
                assert_eq!(in_time(peer.outcome(command == command::READ)).await, errno as u32);
            }
            peer.write(0, 0, b"x").await;
            assert_eq!(in_time(peer.outcome(false)).await, errno as u32);
        }
        if style == Style::Extended {
            peer.request(command::READ, 0, 0, 4096).await;
            let chunks = in_time(peer.chunks()).await;
            assert_eq!(
                chunks,
                [Chunk { kind: chunk::ERROR, payload: b"\0\0\0\x6c\0\x0eas it was told".to_vec() }]
            );
            disk.fail(None);
            peer.request(command::FLUSH, 0, 0, 0).await;
            assert_eq!(
                in_time(peer.chunks()).await,
                [Chunk { kind: chunk::NONE, payload: vec![] }]
            );
        }
    }
}

#[tokio::test]
async fn requests_complete_in_whatever_order_they_end() {
    let (server, disk) = server(Limits::default());
    let mut peer = client(&server, Style::Simple, "disk").await;
    disk.hold(true);
    let slow = peer.write(0, 0, b"slow").await;
    let fast = peer.request(command::FLUSH, 0, 0, 0).await;
    assert_eq!(in_time(peer.simple()).await, (fast, 0));
    disk.hold(false);
    assert_eq!(in_time(peer.simple()).await, (slow, 0));
}

#[tokio::test]
async fn a_mutation_goes_on_when_its_connection_dies() {
    let (server, disk) = server(Limits::default());
    let mut peer = client(&server, Style::Simple, "disk").await;
    disk.hold(true);
    peer.write(0, 0, b"gone").await;
    in_time(disk.called(1)).await;
    drop(peer);
    disk.hold(false);
    in_time(async {
        while disk.bytes.lock()[..4] != *b"gone" {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn disconnect_is_obeyed_once_everything_before_it_was_answered() {
    let (server, disk) = server(Limits::default());
    let mut peer = client(&server, Style::Simple, "disk").await;
    disk.hold(true);
    let cookie = peer.write(0, 0, b"last").await;
    peer.request(command::DISCONNECT, 0, 0, 0).await;
    in_time(disk.called(1)).await;
    disk.hold(false);
    assert_eq!(in_time(peer.simple()).await, (cookie, 0));
    assert_eq!(in_time(peer.rest()).await, b"");
}

#[tokio::test]
async fn a_request_may_arrive_byte_by_byte() {
    let (server, _) = server(Limits::default());
    let mut peer = client(&server, Style::Simple, "disk").await;
    let request = b"\x25\x60\x95\x13\0\0\0\x01ABCDEFGH\0\0\0\0\0\0\0\x05\0\0\0\x03xyz";
    for byte in request {
        peer.send(&[*byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(in_time(peer.simple()).await, (u64::from_be_bytes(*b"ABCDEFGH"), 0));
    assert_eq!(in_time(peer.read(4, 5)).await, b"\0xyz\0");
}
