//! What a server offers, and who owns an image while it is served.

use std::time::Duration;

use vellum::exports::{ExportOptions, ImageExports};
use vellum::{ErrorKind, PoolConfig, ServeOptions, Vellum};
use vellum_core::Extent;
use vellum_image::image::Open;
use vellum_nbd::proto::meta::{STATE_HOLE, STATE_ZERO};
use vellum_nbd::{Context, Errno, Export, Exports, OpenError, Status, ZeroFlags};
use vellum_testkit::nbd::Command;

use crate::fixture::{MIB, PATIENCE, Place, content, filled, pattern, spec, until, within};

fn offer(vellum: &Vellum, specs: &[&str]) -> ImageExports {
    let options = ExportOptions {
        specs: specs.iter().map(|text| spec(text)).collect(),
        read_only: false,
        grace: Duration::ZERO,
        control: "/nowhere".into(),
    };
    ImageExports::new(vellum.clone(), options)
}

async fn names(exports: &ImageExports) -> Vec<String> {
    exports.list().await.unwrap().into_iter().map(|listed| listed.name).collect()
}

#[tokio::test]
async fn images_and_snapshots_of_every_pool_are_offered() {
    let place = Place::new();
    let vellum = place.user().await;
    vellum
        .create_pool(&"far".parse().unwrap(), PoolConfig::Directory(place.file("far")))
        .await
        .unwrap();
    for image in ["a", "far/b"] {
        filled(&vellum, image, &pattern(MIB, 1)).await;
    }
    vellum.create_snapshot(&spec("a@s")).await.unwrap();
    let exports = offer(&vellum, &[]);
    assert_eq!(names(&exports).await, ["a", "a@s", "far/b"]);
    for (name, read_only) in [("a", false), ("default/a", false), ("a@s", true), ("far/b", false)] {
        let info = exports.info(name).await.unwrap();
        assert_eq!((info.size, info.read_only), (MIB, read_only), "{name}");
    }
    for name in ["b", "a@t", "far/a", "nowhere/a", "", "a/b/c", "a@s@t", "../a"] {
        assert!(matches!(exports.info(name).await, Err(OpenError::Unknown(_))), "{name}");
        assert!(
            matches!(exports.open(name).await.map(|_| ()), Err(OpenError::Unknown(_))),
            "{name}"
        );
    }
}

#[tokio::test]
async fn only_what_was_named_is_offered() {
    let place = Place::new();
    let vellum = place.user().await;
    for image in ["a", "b", "c"] {
        filled(&vellum, image, &pattern(MIB, 1)).await;
    }
    vellum.create_snapshot(&spec("b@s")).await.unwrap();
    vellum.create_snapshot(&spec("c@s")).await.unwrap();
    let exports = offer(&vellum, &["default/a", "c@s"]);
    assert_eq!(names(&exports).await, ["a", "c@s"]);
    for name in ["b", "b@s", "c"] {
        assert!(
            matches!(exports.open(name).await.map(|_| ()), Err(OpenError::Unknown(_))),
            "{name}"
        );
    }
    exports.open("a").await.unwrap();
}

#[tokio::test]
async fn asking_what_there_is_takes_no_ownership() {
    let place = Place::new();
    let vellum = place.user().await;
    filled(&vellum, "a", &pattern(MIB, 1)).await;
    let held = place.user().await.open_image(&spec("a"), Open::Own).await.unwrap();
    let exports = offer(&vellum, &[]);
    assert_eq!(names(&exports).await, ["a"]);
    exports.info("a").await.unwrap();
    held.close().await.unwrap();
    place.user().await.open_image(&spec("a"), Open::Own).await.unwrap();
}

#[tokio::test]
async fn an_image_that_another_process_holds_is_refused_and_not_unknown() {
    let place = Place::new();
    let vellum = place.user().await;
    filled(&vellum, "a", &pattern(MIB, 1)).await;
    let _held = place.user().await.open_image(&spec("a"), Open::Own).await.unwrap();
    match within(offer(&vellum, &[]).open("a")).await {
        Err(OpenError::Refused(why)) => {
            assert!(why.contains("in use") && why.contains('a'), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_image_is_owned_from_its_first_connection_to_its_last() {
    let place = Place::new();
    let vellum = place.user().await;
    filled(&vellum, "a", &pattern(MIB, 1)).await;
    let serving = place.serve(&vellum, "nbd").await;
    let other = place.user().await;
    drop(other.open_image(&spec("a"), Open::Own).await.unwrap());
    let first = place.client("nbd", "a").await;
    let second = place.client("nbd", "a").await;
    assert_eq!(other.open_image(&spec("a"), Open::Own).await.unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(place.hints().len(), 1);
    first.disconnect().unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(other.open_image(&spec("a"), Open::Own).await.unwrap_err().kind(), ErrorKind::InUse);
    drop(second); // hangs up without a word
    until("the image is free", async || other.open_image(&spec("a"), Open::Own).await.is_ok())
        .await;
    assert!(place.hints().is_empty());
    assert!(serving.shutdown(PATIENCE).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_client_that_comes_back_at_once_finds_the_image_where_it_was() {
    let place = Place::new();
    let vellum = place.user().await;
    filled(&vellum, "a", &pattern(MIB, 1)).await;
    let serving = place.serve(&vellum, "nbd").await;
    let other = place.user().await;
    for round in 0..20 {
        let mut client = place.client("nbd", "a").await;
        client.write(round * 512, &[round as u8; 512]).unwrap();
        client.disconnect().unwrap();
        // Still held: nobody had to open it anew.
        assert_eq!(place.hints().len(), 1);
    }
    assert!(serving.shutdown(PATIENCE).await);
    let found = content(&other, "a").await;
    assert!((0..20).all(|round| found[round * 512..][..512] == [round as u8; 512]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_snapshot_can_be_read_by_two_servers_and_written_by_none() {
    let place = Place::new();
    let (first, second) = (place.user().await, place.user().await);
    filled(&first, "a", &pattern(MIB, 1)).await;
    first.create_snapshot(&spec("a@s")).await.unwrap();
    let servings = [place.serve(&first, "one").await, place.serve(&second, "two").await];
    for socket in ["one", "two"] {
        let mut client = place.client(socket, "a@s").await;
        assert!(client.read(0, MIB as u32).unwrap() == pattern(MIB, 1));
        client.send(Command::Write, 0, 512, &[0; 512]).unwrap();
        assert_eq!(client.receive().unwrap().error, 1, "not permitted");
        assert!(client.read(0, MIB as u32).unwrap() == pattern(MIB, 1));
    }
    for serving in servings {
        assert!(serving.shutdown(PATIENCE).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_read_only_server_takes_no_writes_and_no_ownership() {
    let place = Place::new();
    let (first, second) = (place.user().await, place.user().await);
    filled(&first, "a", &pattern(MIB, 1)).await;
    for (vellum, socket) in [(&first, "one"), (&second, "two")] {
        let options = ServeOptions {
            socket: Some(place.file(socket)),
            read_only: true,
            ..Default::default()
        };
        vellum.serve(options).await.unwrap();
    }
    let mut clients = [place.client("one", "a").await, place.client("two", "a").await];
    for client in &mut clients {
        assert!(client.read(0, MIB as u32).unwrap() == pattern(MIB, 1));
        client.send(Command::Trim, 0, 4096, &[]).unwrap();
        assert_eq!(client.receive().unwrap().error, 1, "not permitted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_image_made_later_appears_by_itself() {
    let place = Place::new();
    let vellum = place.user().await;
    let serving = place.serve(&vellum, "nbd").await;
    assert!(place.try_client("nbd", "later").await.is_err());
    let other = place.user().await;
    filled(&other, "later", &pattern(MIB, 4)).await;
    other
        .create_pool(&"far".parse().unwrap(), PoolConfig::Directory(place.file("far")))
        .await
        .unwrap();
    filled(&other, "far/later", &pattern(MIB, 5)).await;
    for (name, seed) in [("later", 4), ("far/later", 5)] {
        let mut client = place.client("nbd", name).await;
        assert!(client.read(0, MIB as u32).unwrap() == pattern(MIB, seed), "{name}");
    }
    assert!(serving.shutdown(PATIENCE).await);
}

#[tokio::test]
async fn beyond_loopback_is_refused_unless_it_is_meant() {
    let place = Place::new();
    let vellum = place.user().await;
    let anywhere = Some("0.0.0.0:0".parse().unwrap());
    let options = ServeOptions { listen: anywhere, ..Default::default() };
    assert_eq!(vellum.serve(options.clone()).await.unwrap_err().kind(), ErrorKind::Invalid);
    let serving = vellum.serve(ServeOptions { insecure: true, ..options }).await.unwrap();
    assert_ne!(serving.listening.unwrap().port(), 0);
    assert!(serving.shutdown(PATIENCE).await);
}

#[tokio::test]
async fn a_spec_that_names_nothing_is_an_error_at_once() {
    let place = Place::new();
    let options = ServeOptions { specs: vec![spec("typo")], ..Default::default() };
    assert_eq!(place.user().await.serve(options).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_left_behind_by_a_server_that_ended() {
    let place = Place::new();
    let vellum = place.user().await;
    filled(&vellum, "a", &pattern(MIB, 1)).await;
    let serving = place.serve(&vellum, "nbd").await;
    let _client = place.client("nbd", "a").await;
    assert!(serving.shutdown(PATIENCE).await);
    assert!(!place.file("nbd").exists());
    assert!(place.hints().is_empty());
    let sockets = std::fs::read_dir(place.home().join("run")).unwrap().count();
    assert_eq!(sockets, 0);
    place.user().await.open_image(&spec("a"), Open::Own).await.unwrap();
}

#[tokio::test]
async fn block_status_tells_holes_and_which_layer_holds_what() {
    let place = Place::new();
    let vellum = place.user().await;
    filled(&vellum, "gold", &pattern(MIB, 1)).await;
    vellum.create_snapshot(&spec("gold@s")).await.unwrap();
    vellum.clone_image(&spec("gold@s"), &spec("child"), Default::default()).await.unwrap();
    let exports = offer(&vellum, &[]);
    let child = exports.open("child").await.unwrap();
    child.write(4096, vec![3; 4096].into(), false).await.unwrap();
    child.trim(Extent::new(65536, 65536), false).await.unwrap();
    let all = Extent::new(0, MIB);
    let status = async |context, max| {
        let status = child.block_status(all, context, max).await.unwrap();
        status.into_iter().map(|Status { length, flags }| (length, flags)).collect::<Vec<_>>()
    };
    let hole = STATE_HOLE | STATE_ZERO;
    assert_eq!(
        status(Context::Allocation, 100).await,
        [(65536, 0), (65536, hole), (MIB - 131072, 0)]
    );
    let depths = [(4096, 2), (4096, 1), (65536 - 8192, 2), (65536, 1), (MIB - 131072, 2)];
    assert_eq!(status(Context::Depth, 100).await, depths);
    assert_eq!(status(Context::Depth, 2).await, depths[..2]);
}

#[tokio::test]
async fn large_holes_are_sent_as_holes_and_small_ones_at_once() {
    let place = Place::new();
    let vellum = place.user().await;
    vellum.create(&spec("a"), MIB, Default::default()).await.unwrap();
    let export = offer(&vellum, &[]).open("a").await.unwrap();
    export.write(0, vec![1; 4096].into(), false).await.unwrap();
    let mut buffer = vec![9; MIB as usize];
    assert!(export.try_read(Extent::new(0, 8192), &mut buffer[..8192]));
    assert!(buffer[..4096] == [1; 4096] && buffer[4096..8192] == [0; 4096]);
    assert!(!export.try_read(Extent::new(0, MIB), &mut buffer));
    let pieces = export.read(Extent::new(0, MIB)).await.unwrap();
    let shape: Vec<_> =
        pieces.iter().map(|piece| (piece.at.length(), piece.data.is_some())).collect();
    assert_eq!(shape, [(4096, true), (MIB - 4096, false)]);
}

#[tokio::test]
async fn requests_do_what_their_flags_say() {
    let place = Place::new();
    let vellum = place.user().await;
    filled(&vellum, "gold", &pattern(MIB, 1)).await;
    vellum.create_snapshot(&spec("gold@s")).await.unwrap();
    vellum.clone_image(&spec("gold@s"), &spec("child"), Default::default()).await.unwrap();
    let export = offer(&vellum, &[]).open("child").await.unwrap();
    let fast = ZeroFlags { fast: true, ..Default::default() };
    export.write_zeroes(Extent::new(8192, 4096), fast).await.unwrap();
    let slow = export.write_zeroes(Extent::new(100, 100), fast).await.unwrap_err();
    assert_eq!(slow.errno, Errno::NotSupported);
    let allocated = ZeroFlags { no_hole: true, ..Default::default() };
    export.write_zeroes(Extent::new(16384, 8192), allocated).await.unwrap();
    export.write(40960, vec![5; 10].into(), true).await.unwrap();
    export.cache(Extent::new(0, MIB)).await.unwrap();
    export.flush().await.unwrap();
    let mut expect = pattern(MIB, 1);
    expect[8192..12288].fill(0);
    expect[16384..24576].fill(0);
    expect[40960..40970].fill(5);
    drop(export);
    assert!(content(&vellum, "child").await == expect);
    let usage = vellum.usage(&vellum.locate(&spec("child")).await.unwrap()).await.unwrap();
    assert_eq!((usage[0].data_bytes, usage[0].zero_bytes), (12288, 4096));
}
