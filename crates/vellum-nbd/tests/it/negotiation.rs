//! Options, as a client sends them before it uses an export.

use vellum_nbd::{Errno, Limits};

use crate::in_time;
use crate::memory_export::{SIZE, server};
use crate::peer::{Style, answer, client, connect, option, queries, text, wanted};

/// What is said of an export with simple replies: all but don't-fragment, and resize which this server does not have.
const FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10 | 1 << 11;

#[tokio::test]
async fn go_says_size_flags_and_block_sizes() {
    let (server, _) = server(Limits::default());
    let (mut peer, _) = connect(&server, 4096);
    peer.hello(3).await;
    let answers = in_time(peer.ask(option::GO, &wanted("disk", &[]))).await;
    let export = [&[0, 0][..], &SIZE.to_be_bytes(), &FLAGS.to_be_bytes()].concat();
    let sizes =
        [&[0, 3][..], &1_u32.to_be_bytes(), &4096_u32.to_be_bytes(), &(32_u32 << 20).to_be_bytes()]
            .concat();
    assert_eq!(answers, [(answer::INFO, export), (answer::INFO, sizes), (answer::ACK, vec![])]);
    assert_eq!(in_time(peer.read(0, 3)).await, [0; 3]);
}

#[tokio::test]
async fn info_says_what_was_asked_for_and_settles_nothing() {
    let (server, disk) = server(Limits::default());
    let (mut peer, _) = connect(&server, 4096);
    peer.hello(3).await;
    assert_eq!(peer.ask_one(option::STRUCTURED_REPLY, &[]).await, answer::ACK);
    for (name, asked, kinds) in [
        ("disk", &[][..], &[0, 3][..]),
        ("disk", &[1], &[0, 3, 1]),
        ("disk", &[2, 1, 3], &[0, 3, 1, 2]),
        ("sealed", &[2], &[0, 3]),
        ("disk", &[99], &[0, 3]),
    ] {
        let answers = in_time(peer.ask(option::INFO, &wanted(name, asked))).await;
        let (last, infos) = answers.split_last().unwrap();
        assert_eq!(last.0, answer::ACK);
        let found: Vec<u16> =
            infos.iter().map(|(_, data)| u16::from_be_bytes([data[0], data[1]])).collect();
        assert_eq!(found, kinds, "{name} {asked:?}");
        let flags = u16::from_be_bytes(infos[0].1[10..].try_into().unwrap());
        assert_eq!(flags & 2 != 0, name == "sealed", "read-only");
        assert_eq!(flags & 1 << 7, 1 << 7, "don't-fragment comes with structured replies");
    }
    let answers = peer.ask(option::INFO, &wanted("disk", &[1, 2])).await;
    assert_eq!(answers[2].1, b"\0\x01disk");
    assert_eq!(answers[3].1, b"\0\x02some bytes");
    assert_eq!(disk.take_calls(), []);
}

#[tokio::test]
async fn refusals_say_why_and_the_client_may_try_something_else() {
    let (server, _) = server(Limits::default());
    let (mut peer, _) = connect(&server, 4096);
    peer.hello(3).await;
    for option in [option::INFO, option::GO] {
        for (name, kind) in
            [("nothing", answer::UNKNOWN), ("taken", answer::POLICY), ("ending", answer::SHUTDOWN)]
        {
            let answers = in_time(peer.ask(option, &wanted(name, &[]))).await;
            assert_eq!((answers.len(), answers[0].0), (1, kind), "{name}");
            assert!(!answers[0].1.is_empty(), "with a line for people");
        }
    }
    peer.use_export(Style::Simple, "disk").await;
}

#[tokio::test]
async fn export_name_begins_with_zeros_for_whoever_did_not_decline_them() {
    for (flags, zeros) in [(3, 0), (1, 124), (0, 124)] {
        let (server, _) = server(Limits::default());
        let (mut peer, _) = connect(&server, 4096);
        peer.hello(flags).await;
        peer.send_option(option::EXPORT_NAME, b"disk").await;
        let begun = in_time(peer.take(10 + zeros)).await;
        assert_eq!(
            begun,
            [&SIZE.to_be_bytes()[..], &FLAGS.to_be_bytes(), &vec![0; zeros]].concat()
        );
        assert_eq!(in_time(peer.read(0, 5)).await, [0; 5]);
    }
}

#[tokio::test]
async fn export_name_of_what_cannot_be_opened_ends_the_connection() {
    for name in [&b"nothing"[..], b"taken", "\u{fc}".as_bytes(), b"dis\xff"] {
        let (server, _) = server(Limits::default());
        let (mut peer, serving) = connect(&server, 4096);
        peer.hello(3).await;
        peer.send_option(option::EXPORT_NAME, name).await;
        assert_eq!(in_time(peer.rest()).await, b"");
        in_time(serving).await.unwrap();
    }
}

#[tokio::test]
async fn the_list_has_names_and_descriptions_and_may_be_cut_short() {
    for (listed_max, expected) in [(10_000, 3), (2, 2)] {
        let (server, _) = server(Limits { listed_max, ..Limits::default() });
        let (mut peer, _) = connect(&server, 4096);
        peer.hello(3).await;
        let answers = in_time(peer.ask(option::LIST, &[])).await;
        assert_eq!(answers.len(), expected + 1);
        assert_eq!(answers[0], (answer::SERVER, [text("disk"), b"some bytes".to_vec()].concat()));
        assert_eq!(answers[1], (answer::SERVER, text("sealed")));
        assert_eq!(peer.ask_one(option::LIST, b"x").await, answer::INVALID);
    }
}

#[tokio::test]
async fn a_list_that_cannot_be_had_is_refused_and_the_next_option_is_answered() {
    let (server, disk) = server(Limits::default());
    let (mut peer, _) = connect(&server, 4096);
    peer.hello(3).await;
    disk.fail(Some(Errno::Io));
    assert_eq!(peer.ask_one(option::LIST, &[]).await, answer::POLICY);
    disk.fail(None);
    assert_eq!(in_time(peer.ask(option::LIST, &[])).await.len(), 4);
}

#[tokio::test]
async fn abort_is_acknowledged_and_ends_the_connection() {
    let (server, _) = server(Limits::default());
    let (mut peer, serving) = connect(&server, 4096);
    peer.hello(3).await;
    assert_eq!(peer.ask_one(option::ABORT, &[]).await, answer::ACK);
    assert_eq!(in_time(peer.rest()).await, b"");
    in_time(serving).await.unwrap();
}

#[tokio::test]
async fn options_that_are_not_there_are_refused_one_by_one() {
    let (server, _) = server(Limits::default());
    let (mut peer, _) = connect(&server, 4096);
    peer.hello(3).await;
    for (option, data, kind) in [
        (option::STARTTLS, &b""[..], answer::UNSUPPORTED),
        (4, b"", answer::UNSUPPORTED),
        (12, b"", answer::UNSUPPORTED),
        (u32::MAX, &[0; 5000], answer::UNSUPPORTED),
        (option::STRUCTURED_REPLY, b"x", answer::INVALID),
        (option::EXTENDED_HEADERS, b"x", answer::INVALID),
        (option::GO, b"", answer::INVALID),
        (option::GO, b"\0\0\0\x05disk", answer::INVALID),
        (option::INFO, b"\0\0\0\x04disk\0\x01", answer::INVALID),
        (option::LIST_META_CONTEXT, b"\0\0\0\0\0\0\0\0", answer::INVALID),
    ] {
        assert_eq!(in_time(peer.ask_one(option, data)).await, kind, "{option} {data:?}");
    }
    peer.use_export(Style::Structured, "disk").await;
}

/// A string of the protocol, of bytes that need be no text.
fn bytes(of: &[u8]) -> Vec<u8> {
    [&(of.len() as u32).to_be_bytes(), of].concat()
}

#[tokio::test]
async fn names_that_are_no_text_and_queries_beyond_their_number_are_refused() {
    let (server, _) = server(Limits::default());
    let (mut peer, _) = connect(&server, 4096);
    peer.hello(3).await;
    peer.ask(option::STRUCTURED_REPLY, &[]).await;
    let long = "x".repeat(4097);
    let no_text = b"dis\xff";
    for option in [option::GO, option::INFO] {
        for name in [&no_text[..], long.as_bytes()] {
            let data = [bytes(name), vec![0, 0]].concat();
            assert_eq!(in_time(peer.ask_one(option, &data)).await, answer::INVALID, "{name:?}");
        }
    }
    for option in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        let one_query = |name: &[u8], query: &[u8]| {
            [bytes(name), 1_u32.to_be_bytes().to_vec(), bytes(query)].concat()
        };
        for (data, kind) in [
            (one_query(no_text, b"base:"), answer::INVALID),
            (one_query(b"disk", no_text), answer::INVALID),
            (one_query(b"disk", long.as_bytes()), answer::INVALID),
            (queries("disk", &["base:"; 65]), answer::TOO_BIG),
            // As many as are said need not be there.
            ([bytes(b"disk"), u32::MAX.to_be_bytes().to_vec()].concat(), answer::TOO_BIG),
        ] {
            assert_eq!(in_time(peer.ask_one(option, &data)).await, kind, "{option}");
        }
        let answers = in_time(peer.ask(option, &queries("disk", &["base:allocation"; 64]))).await;
        assert_eq!(answers.len(), 2, "64 of one context, and it is granted once");
    }
    peer.use_export(Style::Structured, "disk").await;
}

#[tokio::test]
async fn contexts_are_listed_and_set_by_name() {
    let (server, _) = server(Limits::default());
    let (mut peer, _) = connect(&server, 4096);
    peer.hello(3).await;
    peer.ask(option::STRUCTURED_REPLY, &[]).await;
    let listed =
        |id: u32, name: &str| (answer::META_CONTEXT, [&id.to_be_bytes(), name.as_bytes()].concat());
    let ack = (answer::ACK, vec![]);
    let (base, depth) = ("base:allocation", "qemu:allocation-depth");
    for (option, asked, expected) in [
        (option::LIST_META_CONTEXT, &[][..], vec![listed(0, base), listed(0, depth)]),
        (option::LIST_META_CONTEXT, &["qemu:"], vec![listed(0, depth)]),
        (option::LIST_META_CONTEXT, &["other:thing"], vec![]),
        (option::SET_META_CONTEXT, &[], vec![]),
        (option::SET_META_CONTEXT, &["base:"], vec![]),
        (option::SET_META_CONTEXT, &[depth, "other:thing"], vec![listed(2, depth)]),
        (option::SET_META_CONTEXT, &[base, depth], vec![listed(1, base), listed(2, depth)]),
    ] {
        let answers = in_time(peer.ask(option, &queries("disk", asked))).await;
        assert_eq!(answers, [expected, vec![ack.clone()]].concat(), "{asked:?}");
    }
    assert_eq!(
        peer.ask_one(option::SET_META_CONTEXT, &queries("nothing", &[base])).await,
        answer::UNKNOWN
    );
}

#[tokio::test]
async fn contexts_before_structured_replies_are_refused_and_settle_nothing() {
    let (server, _) = server(Limits::default());
    let (mut peer, _) = connect(&server, 4096);
    peer.hello(3).await;
    let base = queries("disk", &["base:allocation"]);
    for option in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        assert_eq!(peer.ask_one(option, &base).await, answer::INVALID);
    }
    peer.ask(option::STRUCTURED_REPLY, &[]).await;
    peer.use_structured("disk").await;
    peer.request(crate::peer::command::BLOCK_STATUS, 0, 0, 4096).await;
    assert_eq!(in_time(peer.outcome(true)).await, 22);
}

#[tokio::test]
async fn a_style_may_be_asked_for_again_and_none_takes_the_better_one_back() {
    let (server, _) = server(Limits::default());
    let (mut peer, _) = connect(&server, 4096);
    peer.hello(3).await;
    for (option, expected) in [
        (option::STRUCTURED_REPLY, answer::ACK),
        (option::STRUCTURED_REPLY, answer::ACK),
        (option::EXTENDED_HEADERS, answer::ACK),
        (option::EXTENDED_HEADERS, answer::ACK),
        (option::STRUCTURED_REPLY, answer::INVALID),
    ] {
        assert_eq!(peer.ask_one(option, &[]).await, expected, "{option}");
    }
    peer.use_export(Style::Extended, "disk").await;
    assert_eq!(in_time(peer.read(0, 3)).await, [0; 3]);
}

#[tokio::test]
async fn contexts_count_for_the_export_they_were_set_for_and_until_they_are_set_again() {
    let base = "base:allocation";
    for (asked, granted) in [
        (vec![("disk", base)], true),
        (vec![("sealed", base)], false),
        (vec![("disk", base), ("disk", "other:thing")], false),
        (vec![("disk", base), ("nothing", base)], false),
        (vec![("disk", base), ("taken", base)], false),
    ] {
        let (server, _) = server(Limits::default());
        let (mut peer, _) = connect(&server, 4096);
        peer.hello(3).await;
        for (name, query) in &asked {
            peer.ask(option::STRUCTURED_REPLY, &[]).await;
            peer.ask(option::SET_META_CONTEXT, &queries(name, &[query])).await;
        }
        peer.use_structured("disk").await;
        peer.request(crate::peer::command::BLOCK_STATUS, 0, 0, 4096).await;
        let outcome = in_time(peer.outcome(true)).await;
        assert_eq!(outcome, if granted { 0 } else { 22 }, "{asked:?}");
    }
}

#[tokio::test]
async fn an_export_may_have_an_empty_name() {
    let (server, _) = server(Limits::default());
    let mut peer = client(&server, Style::Extended, "").await;
    assert_eq!(in_time(peer.read(0, 3)).await, [0; 3]);
}
