//! Operations on an image that another process holds: they are done there, and nobody can tell the difference.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vellum::{ErrorKind, Serving, Vellum};
use vellum_core::Extent;
use vellum_image::image::Open;
use vellum_image::{DiscardPolicy, FlattenOptions};
use vellum_testkit::nbd::Client;

use crate::fixture::{MIB, PATIENCE, Place, content, filled, pattern, spec, until, within};

/// A server that holds the image `child`, whose parent is `gold@s`, for a client.
struct Held {
    place: Place,
    serving: Serving,
    client: Client,
    holder: Vellum,
    other: Vellum,
}

impl Held {
    async fn new() -> Self {
        Self::at(Place::new()).await
    }

    async fn at(place: Place) -> Self {
        let (holder, other) = (place.user().await, place.user().await);
        filled(&holder, "gold", &pattern(8 * MIB, 1)).await;
        holder.create_snapshot(&spec("gold@s")).await.unwrap();
        holder.clone_image(&spec("gold@s"), &spec("child"), Default::default()).await.unwrap();
        let serving = place.serve(&holder, "nbd").await;
        let client = place.client("nbd", "child").await;
        Self { place, serving, client, holder, other }
    }

    fn write(&mut self, at: u64, byte: u8) {
        self.client.write(at, &[byte; 4096]).unwrap();
    }

    async fn end(self) {
        drop(self.client);
        assert!(self.serving.shutdown(PATIENCE).await);
        assert!(self.place.hints().is_empty());
    }
}

fn with(mut content: Vec<u8>, at: u64, byte: u8) -> Vec<u8> {
    content[at as usize..][..4096].fill(byte);
    content
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_snapshot_holds_what_was_acknowledged_and_nothing_later() {
    let mut held = Held::new().await;
    held.write(MIB, 2);
    for (user, name) in [(held.other.clone(), "child@other"), (held.holder.clone(), "child@same")] {
        within(user.create_snapshot(&spec(name))).await.unwrap();
        assert_eq!(
            within(user.create_snapshot(&spec(name))).await.unwrap_err().kind(),
            ErrorKind::Exists
        );
    }
    held.write(MIB, 3);
    let expect = with(pattern(8 * MIB, 1), MIB, 2);
    assert!(content(&held.other, "child@other").await == expect);
    assert!(content(&held.other, "child@same").await == expect);
    assert!(held.client.read(MIB, 4096).unwrap() == [3; 4096]);
    held.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_image_in_use_is_cloned_read_and_discarded() {
    let mut held = Held::new().await;
    held.write(MIB, 2);
    let other = held.other.clone();
    within(other.clone_image(&spec("child"), &spec("grandchild"), Default::default()))
        .await
        .unwrap();
    assert!(content(&other, "grandchild").await == with(pattern(8 * MIB, 1), MIB, 2));
    assert!(content(&other, "child").await == with(pattern(8 * MIB, 1), MIB, 2));
    within(other.discard(&spec("child"), Extent::new(MIB, MIB), DiscardPolicy::Zero))
        .await
        .unwrap();
    assert!(held.client.read(MIB, MIB as u32).unwrap() == vec![0; MIB as usize]);
    let beyond = Extent::new(8 * MIB, 512);
    let error =
        within(other.discard(&spec("child"), beyond, DiscardPolicy::Zero)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    // What was read was read from a snapshot taken for it alone, and is gone.
    let snapshots = other.locate(&spec("child")).await.unwrap().record.snapshots;
    assert_eq!(snapshots.len(), 1);
    held.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn map_and_usage_of_an_image_in_use_are_those_of_its_holder() {
    let mut held = Held::new().await;
    held.write(MIB, 2);
    held.write(3 * MIB, 2);
    let located = held.other.locate(&spec("child")).await.unwrap();
    let map = within(held.other.map(&located)).await.unwrap();
    let of_child: Vec<Extent> =
        map.iter().filter(|entry| entry.depth == 1).map(|entry| entry.at).collect();
    assert_eq!(of_child, [Extent::new(MIB, 4096), Extent::new(3 * MIB, 4096)]);
    assert_eq!(map.last().unwrap().at.end(), 8 * MIB);
    let usage = within(held.other.usage(&located)).await.unwrap();
    assert_eq!(usage.iter().map(|usage| usage.data_bytes).collect::<Vec<_>>(), [8192]);
    held.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_image_in_use_is_flattened_and_its_parent_can_go() {
    let mut held = Held::new().await;
    held.write(MIB, 2);
    let told = std::sync::atomic::AtomicU64::new(0);
    let tell = |done: u64, total: u64| {
        assert!(done <= total);
        told.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    };
    within(held.other.flatten(&spec("child"), Default::default(), tell)).await.unwrap();
    assert!(told.into_inner() > 0);
    within(held.other.remove(&spec("gold"))).await.unwrap();
    held.write(2 * MIB, 3);
    let expect = with(with(pattern(8 * MIB, 1), MIB, 2), 2 * MIB, 3);
    assert!(held.client.read(0, 8 * MIB as u32).unwrap() == expect);
    held.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn flattens_that_take_long_keep_nobody_else_waiting() {
    const FLATTENS_MAX: usize = 64;
    let held = Held::new().await;
    let slowly = FlattenOptions { bytes_per_second: Some(1), ..Default::default() };
    let (mut clients, mut flattens) = (Vec::new(), Vec::new());
    for number in 0..FLATTENS_MAX {
        let name = spec(&format!("slow-{number}"));
        held.other.clone_image(&spec("gold@s"), &name, Default::default()).await.unwrap();
        clients.push(held.place.client("nbd", &name.to_string()).await);
        let other = held.other.clone();
        let told = std::sync::Arc::new(tokio::sync::Notify::new());
        let tell = told.clone();
        flattens.push(tokio::spawn(async move {
            other.flatten(&name, slowly, move |_, _| tell.notify_one()).await
        }));
        within(told.notified()).await;
    }
    within(held.other.create_snapshot(&spec("child@s"))).await.unwrap();
    let child = spec("child");
    let flatten = held.other.flatten(&child, slowly, |_, _| {});
    assert_eq!(within(flatten).await.unwrap_err().kind(), ErrorKind::Busy);
    flattens.iter().for_each(|flatten| flatten.abort());
    until("they end when those who asked for them have gone", async || {
        within(held.other.flatten(&spec("child"), Default::default(), |_, _| {})).await.is_ok()
    })
    .await;
    drop(clients);
    held.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flatten_that_is_asked_to_stop_does_wherever_the_image_is_open() {
    let held = Held::new().await;
    held.other.clone_image(&spec("gold@s"), &spec("free"), Default::default()).await.unwrap();
    let slowly = FlattenOptions { bytes_per_second: Some(1), ..Default::default() };
    for image in ["child", "free"].map(spec) {
        let stop = tokio::time::sleep(Duration::from_millis(300));
        let flatten = held.other.flatten_until(&image, slowly, |_, _| {}, stop);
        assert_eq!(within(flatten).await.unwrap_err().kind(), ErrorKind::Stopped, "{image}");
        // It is free for the next operation, and what was copied stays.
        until("it can be changed", async || {
            within(held.other.flatten(&image, Default::default(), |_, _| {})).await.is_ok()
        })
        .await;
    }
    held.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn snapshots_removed_by_others_leave_the_holder_as_able_as_before() {
    let mut held = Held::new().await;
    for round in 0..3 {
        within(held.other.create_snapshot(&spec("child@a"))).await.unwrap();
        held.write(round * MIB, 9);
        within(held.other.create_snapshot(&spec("child@b"))).await.unwrap();
        within(held.other.remove_snapshot(&spec("child@a"))).await.unwrap();
        within(held.other.remove_snapshot(&spec("child@b"))).await.unwrap();
    }
    within(held.other.flatten(&spec("child"), Default::default(), |_, _| {})).await.unwrap();
    within(held.other.remove(&spec("gold"))).await.unwrap();
    let expect = (0..3).fold(pattern(8 * MIB, 1), |content, round| with(content, round * MIB, 9));
    assert!(held.client.read(0, 8 * MIB as u32).unwrap() == expect);
    drop(held.client);
    assert!(held.serving.shutdown(PATIENCE).await);
    assert!(content(&held.other, "child").await == expect);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_image_in_use_is_renamed_under_its_client_and_not_removed() {
    let mut held = Held::new().await;
    let error = within(held.other.remove(&spec("child"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    within(held.other.rename(&spec("child"), &"renamed".parse().unwrap())).await.unwrap();
    held.write(0, 4);
    within(held.other.create_snapshot(&spec("renamed@s"))).await.unwrap();
    let place = held.place;
    drop(held.client);
    until("the image can go", async || {
        held.other.remove_snapshot(&spec("renamed@s")).await.is_ok()
    })
    .await;
    until("the image can go", async || held.other.remove(&spec("renamed")).await.is_ok()).await;
    assert!(place.hints().is_empty());
    assert!(held.serving.shutdown(PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_operation_does_not_mind_that_the_last_client_just_left() {
    let held = Held::new().await;
    for round in 0..30 {
        let client = held.place.client("nbd", "gold").await;
        client.disconnect().unwrap();
        // Anywhere from at once to after the image was given up.
        tokio::time::sleep(Duration::from_millis(round * 45)).await;
        within(held.other.create_snapshot(&spec(&format!("gold@r{round}")))).await.unwrap();
    }
    held.end().await;
}

#[tokio::test]
async fn a_holder_that_cannot_be_asked_makes_the_image_in_use() {
    let place = Place::new();
    let (holder, other) = (place.user().await, place.user().await);
    filled(&holder, "a", &pattern(MIB, 1)).await;
    let image = holder.open_image(&spec("a"), Open::Own).await.unwrap();
    let hint = place.home().join("pools/default/live").join(format!("{}.holder", image.id()));
    let hints: [&[u8]; 5] = [
        b"",
        b"not json",
        br#"{"socket":"/nowhere/at/all","pid":4711}"#,
        br#"{"socket":"","pid":1}"#,
        &[b'['; 1 << 20],
    ];
    for bytes in hints {
        std::fs::write(&hint, bytes).unwrap();
        let error = within(other.create_snapshot(&spec("a@s"))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse, "{error:?}");
    }
    image.close().await.unwrap();
    // A hint that leads nowhere harms nobody once the image is free.
    within(other.create_snapshot(&spec("a@s"))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_control_socket_survives_whatever_is_said_to_it() {
    let held = Held::new().await;
    let run = std::fs::read_dir(held.place.home().join("run")).unwrap();
    let sockets: Vec<_> = run.map(|entry| entry.unwrap().path()).collect();
    let [socket] = &sockets[..] else { panic!("{sockets:?}") };
    let long = vec![b'x'; 8 << 20];
    let said: [&[u8]; 7] = [
        b"\n",
        b"{}\n",
        br#"{"version":1,"pool":"p","image":"i","request":{"do":"fly"}}
"#,
        br#"{"version":1,"pool":"p","image":"../../i","request":{"do":"map","offset":0}}
"#,
        b"\xff\xfe\x00\n",
        b"no end of line",
        &long,
    ];
    let mut silent = Vec::new();
    for text in said {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let _ = stream.write_all(text);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        assert!(
            ended.is_ok() || ended.unwrap_err().kind() != std::io::ErrorKind::WouldBlock,
            "it hangs"
        );
        silent.push(UnixStream::connect(socket).unwrap());
    }
    within(held.other.create_snapshot(&spec("child@s"))).await.unwrap();
    drop(silent);
    held.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_request_of_another_version_is_refused_in_words() {
    let held = Held::new().await;
    let run = std::fs::read_dir(held.place.home().join("run")).unwrap();
    let socket = run.map(|entry| entry.unwrap().path()).next().unwrap();
    let mut stream = UnixStream::connect(socket).unwrap();
    let asked = br#"{"version":99,"pool":"p","image":"i","request":{"do":"status"}}"#;
    stream.write_all(&[&asked[..], b"\n"].concat()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("Unsupported") && answer.contains("version"), "{answer}");
    held.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn others_see_how_many_clients_use_an_image() {
    let held = Held::new().await;
    let located = held.other.locate(&spec("child")).await.unwrap();
    assert_eq!(held.other.holder(&located).await.unwrap().clients, 1);
    let second = held.place.client("nbd", "child").await;
    assert_eq!(held.other.holder(&located).await.unwrap().clients, 2);
    let error = within(held.other.open_image(&spec("child"), Open::Own)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse);
    assert!(error.chain().contains("2 clients") && error.chain().contains("child"), "{error:?}");
    within(held.other.sync(&spec("child"))).await.unwrap();
    drop(second);
    let gold = held.other.locate(&spec("gold")).await.unwrap();
    assert!(held.other.holder(&gold).await.is_none());
    held.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_old_name_works_until_the_last_client_has_left() {
    let mut held = Held::new().await;
    held.write(MIB, 7);
    held.other.rename(&spec("child"), &"renamed".parse().unwrap()).await.unwrap();
    for name in ["child", "renamed"] {
        let mut again = held.place.client("nbd", name).await;
        assert!(again.read(MIB, 4096).unwrap() == [7; 4096], "{name}");
    }
    drop(held.client);
    until("the old name is gone", async || held.place.try_client("nbd", "child").await.is_err())
        .await;
    held.place.client("nbd", "renamed").await;
    assert!(held.serving.shutdown(PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_servers_of_one_home_are_both_asked() {
    let held = Held::new().await;
    filled(&held.other, "mine", &pattern(MIB, 6)).await;
    let second = held.place.user().await;
    let serving = held.place.serve(&second, "two").await;
    let client = held.place.client("two", "mine").await;
    let third = held.place.user().await;
    for image in ["child", "mine"] {
        within(third.create_snapshot(&spec(&format!("{image}@s")))).await.unwrap();
    }
    drop(client);
    assert!(serving.shutdown(PATIENCE).await);
    within(third.create_snapshot(&spec("child@t"))).await.unwrap();
    held.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_home_with_a_long_path_is_served_and_asked_like_any_other() {
    let place = Place::new();
    let deep = place.file(&"long-name-".repeat(12));
    let vellum = async || {
        let home = Some(deep.join("home"));
        Vellum::open(vellum::HomeOptions { home }).await.unwrap()
    };
    let (holder, other) = (vellum().await, vellum().await);
    filled(&holder, "a", &pattern(MIB, 1)).await;
    let serving = place.serve(&holder, "nbd").await;
    let _client = place.client("nbd", "a").await;
    within(other.create_snapshot(&spec("a@s"))).await.unwrap();
    assert!(serving.shutdown(PATIENCE).await);
}
