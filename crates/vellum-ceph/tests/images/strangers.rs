//! Ceph's own tools beside the engine.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use vellum_core::ImageName;
use vellum_engine::{Catalog, ImageRecord, Layering};
use vellum_image::image::Open;
use vellum_image::{
    CloneOptions, CreateOptions, FlattenOptions, Image, ImageOptions, Job, Pools, WriteOptions,
    admin,
};
use vellum_testkit::ceph::{Cluster, POOLS};

use crate::programs::{Expected, assert_reads};
use crate::{connect, connect_to};

const MIB: usize = 1 << 20;

fn spec(image: &str) -> String {
    format!("{}/{image}", POOLS[0])
}

/// Twelve mebibytes, of which the second four are zeros.
pub(crate) fn content() -> Vec<u8> {
    let byte = |index: usize| if index / (4 * MIB) == 1 { 0 } else { (index / 4096 % 251) as u8 };
    (0..12 * MIB + 1000).map(byte).collect()
}

/// Has `rbd` make an image of some bytes, with a snapshot `s`.
pub(crate) fn import(cluster: &Cluster, image: &str, bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bytes");
    std::fs::write(&file, bytes).unwrap();
    let file = file.to_string_lossy().into_owned();
    cluster.ok("rbd", &["import", "--no-progress", &file, &spec(image)]).unwrap();
    cluster.ok("rbd", &["snap", "create", "--no-progress", &spec(&format!("{image}@s"))]).unwrap();
}

fn export(cluster: &Cluster, what: &str, to: &Path) -> Vec<u8> {
    export_of(cluster, &spec(what), to)
}

pub(crate) fn export_of(cluster: &Cluster, spec: &str, to: &Path) -> Vec<u8> {
    let file = to.join("exported");
    let _ = std::fs::remove_file(&file);
    let path = file.to_string_lossy().into_owned();
    cluster.ok("rbd", &["export", "--no-progress", spec, &path]).unwrap();
    std::fs::read(file).unwrap()
}

pub(crate) async fn open<C: Catalog>(
    pools: &Pools<C>,
    catalog: &C,
    image: &str,
    what: Open,
) -> Image<C> {
    let record = catalog.find(&name(image)).await.unwrap();
    Image::open(pools, catalog, &record.id, what, ImageOptions::default()).await.unwrap()
}

fn name(image: &str) -> ImageName {
    image.parse().unwrap()
}

async fn clone<C: Catalog>(pools: &Pools<C>, catalog: &C, of: &str, image: &str) -> ImageRecord {
    let parent = catalog.find(&name(of)).await.unwrap();
    let snapshot = parent.snapshot(&"s".parse().unwrap()).unwrap().clone();
    let options = CloneOptions { layering: Some(Layering::Sparse), ..CloneOptions::default() };
    admin::clone(pools, catalog, &parent, &snapshot, catalog, name(image), options).await.unwrap()
}

/// What `rbd` reads of plain images and of all of their snapshots, before and after it flattens them; and what it says of their
/// object maps.
pub(crate) fn rbd_reads(cluster: &Cluster, namespace: &str, left: &BTreeMap<String, Expected>) {
    let dir = tempfile::tempdir().unwrap();
    let spec = |image: &str| format!("{}/{namespace}/{image}", POOLS[0]);
    // Those that hang on a sparse image are refused until they are flattened.
    let plain = || left.iter().filter(|(image, _)| all_plain(left, image));
    let check = |when: &str| {
        for (image, expected) in plain() {
            let snapshots = expected.snapshots.iter();
            let snapshots = snapshots.map(|(name, bytes)| (format!("{image}@{name}"), bytes));
            for (what, bytes) in [(image.clone(), &expected.head)].into_iter().chain(snapshots) {
                let found = export_of(cluster, &spec(&what), dir.path());
                let differs = found.iter().zip(bytes).position(|(found, byte)| found != byte);
                assert_eq!(
                    (found.len(), differs),
                    (bytes.len(), None),
                    "{namespace}/{what} {when}"
                );
                let checked = ["object-map", "check", "--no-progress", &spec(&what)];
                cluster.ok("rbd", &checked).unwrap();
                let info = cluster.ok("rbd", &["info", &spec(&what)]).unwrap();
                assert!(!info.contains("invalid"), "{namespace}/{what} {when}: {info}");
            }
        }
    };
    check("as it was left");
    for (image, _) in plain() {
        if cluster.ok("rbd", &["info", &spec(image)]).unwrap().contains("parent:") {
            cluster.ok("rbd", &["flatten", "--no-progress", &spec(image)]).unwrap();
        }
    }
    check("after `rbd flatten`");
}

/// Whether an image, and all that it hangs on, are plain ones.
fn all_plain(left: &BTreeMap<String, Expected>, image: &str) -> bool {
    let expected = &left[image];
    let parent = expected.parent.as_ref();
    expected.is_plain && parent.is_none_or(|(parent, _)| all_plain(left, parent))
}

pub(crate) async fn a_clone_of_an_image_of_rbd_reads_it_and_is_its_child(cluster: Arc<Cluster>) {
    let (pools, catalog) = connect(&cluster, "").await;
    let parent = content();
    import(&cluster, "golden", &parent);
    clone(&pools, &catalog, "golden", "vm").await;
    let image = open(&pools, &catalog, "vm", Open::Own).await;
    assert_reads(&image, &parent, "the clone").await;
    assert_eq!(cluster.ok("rbd", &["children", &spec("golden@s")]).unwrap().trim(), spec("vm"));
    let mut expected = parent.clone();
    for offset in [100, 5 * MIB, 9 * MIB + 4095] {
        let data = Bytes::from(vec![0xab; 700]);
        image.write(offset as u64, data, WriteOptions::default()).await.unwrap();
        expected[offset..offset + 700].fill(0xab);
    }
    assert_reads(&image, &expected, "the clone that was written").await;
    let dir = tempfile::tempdir().unwrap();
    assert!(export(&cluster, "golden@s", dir.path()) == parent, "the parent is what it was");
    // Its snapshot goes to the trash while a child hangs on it, and the child goes on.
    cluster.ok("rbd", &["snap", "rm", "--no-progress", &spec("golden@s")]).unwrap();
    assert_reads(&image, &expected, "the clone of what is in the trash").await;
    assert!(cluster.ok("rbd", &["rm", "--no-progress", &spec("golden")]).is_err());
    image.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
    assert_reads(&image, &expected, "the clone that was flattened").await;
    image.close().await.unwrap();
    let image = open(&pools, &catalog, "vm", Open::Own).await;
    assert_reads(&image, &expected, "the clone that was opened again").await;
    image.close().await.unwrap();
}

pub(crate) async fn rbd_lists_a_sparse_image_and_leaves_it_alone(cluster: Arc<Cluster>) {
    let (pools, catalog) = connect(&cluster, "").await;
    let options = CreateOptions { layering: Layering::Sparse, ..CreateOptions::default() };
    admin::create(&catalog, name("alone"), 12 << 20, options).await.unwrap();
    let image = open(&pools, &catalog, "alone", Open::Own).await;
    let mut expected = vec![0; 12 << 20];
    let data = Bytes::from(vec![7; MIB]);
    image.write(MIB as u64, data, WriteOptions::default()).await.unwrap();
    expected[MIB..2 * MIB].fill(7);
    image.close().await.unwrap();
    let listed = cluster.ok("rbd", &["ls", POOLS[0]]).unwrap();
    assert!(listed.lines().any(|line| line == "alone"), "{listed}");
    let image = spec("alone");
    let other = spec("other");
    for refused in [
        &["info", &image][..],
        &["export", &image, "-"],
        &["flatten", "--no-progress", &image],
        &["resize", "--no-progress", "--size", "1G", &image],
        &["snap", "create", "--no-progress", &spec("alone@t")],
        &["trash", "mv", &image],
        &["mv", &image, &other],
        &["rm", "--no-progress", &image],
    ] {
        assert!(cluster.ok("rbd", refused).is_err(), "{refused:?}");
    }
    let image = open(&pools, &catalog, "alone", Open::Own).await;
    assert!(image.record().snapshots.is_empty());
    assert_reads(&image, &expected, "the image").await;
    image.close().await.unwrap();
}

pub(crate) async fn what_rbd_wrote_is_read_through_all_of_its_snapshots(cluster: Arc<Cluster>) {
    let (pools, catalog) = connect(&cluster, "").await;
    import(&cluster, "plain", &content());
    let bench = ["bench", "--io-type", "write", "--io-pattern", "rand", "--io-size", "8K"];
    let some = ["--io-total", "1M", "--io-threads", "1"];
    let dir = tempfile::tempdir().unwrap();
    for snapshot in ["t", "u"] {
        cluster.ok("rbd", &[&bench[..], &some, &[&spec("plain")]].concat()).unwrap();
        let named = spec(&format!("plain@{snapshot}"));
        cluster.ok("rbd", &["snap", "create", "--no-progress", &named]).unwrap();
    }
    cluster.ok("rbd", &[&bench[..], &some, &[&spec("plain")]].concat()).unwrap();
    for snapshot in ["s", "t", "u"] {
        let exported = export(&cluster, &format!("plain@{snapshot}"), dir.path());
        let what = Open::Snapshot(snapshot.parse().unwrap());
        let image = open(&pools, &catalog, "plain", what).await;
        assert_reads(&image, &exported, snapshot).await;
    }
    let exported = export(&cluster, "plain", dir.path());
    let image = open(&pools, &catalog, "plain", Open::Read).await;
    assert_reads(&image, &exported, "the head").await;
}

pub(crate) async fn a_pool_that_was_removed_is_an_error_and_never_zeros(cluster: Arc<Cluster>) {
    let pool = "doomed";
    cluster.ok("ceph", &["osd", "pool", "create", pool, "8"]).unwrap();
    cluster.ok("ceph", &["osd", "pool", "application", "enable", pool, "rbd"]).unwrap();
    let (pools, catalog) = connect_to(&cluster, pool, "").await;
    let (_, child_catalog) = connect(&cluster, "children").await;
    pools.add(child_catalog.clone());
    let options = CreateOptions { layering: Layering::Sparse, ..CreateOptions::default() };
    admin::create(&catalog, name("golden"), 4 << 20, options).await.unwrap();
    let golden = open(&pools, &catalog, "golden", Open::Own).await;
    let data = Bytes::from(vec![7; 64 << 10]);
    golden.write(0, data.clone(), WriteOptions::default()).await.unwrap();
    golden.snapshot("s".parse().unwrap(), false).await.unwrap();
    let parent = catalog.find(&name("golden")).await.unwrap();
    let (snapshot, options) = (parent.snapshots[0].clone(), CloneOptions::default());
    let child = name("vm");
    admin::clone(&pools, &catalog, &parent, &snapshot, &child_catalog, child, options)
        .await
        .unwrap();
    let child = open(&pools, &child_catalog, "vm", Open::Own).await;
    assert_reads_part(&child, Some(&data[..4096])).await;
    cluster
        .ok("ceph", &["osd", "pool", "delete", pool, pool, "--yes-i-really-really-mean-it"])
        .unwrap();
    for image in [&golden, &child] {
        assert_reads_part(image, None).await;
        let write = image.write(100, Bytes::from_static(b"x"), WriteOptions::default());
        write.await.unwrap_err();
        // Nothing is cut off from what it could not copy.
        image.flatten(FlattenOptions::default(), &Job::default()).await.unwrap_err();
    }
}

/// What a block in the middle of what was written reads as; `None` for an error.
async fn assert_reads_part<C: Catalog>(image: &Image<C>, expected: Option<&[u8]>) {
    let at = vellum_core::Extent::new(8192, 4096);
    let buffer = vellum_core::Buffer::from_vec(vec![0xee; 4096]);
    let (buffer, read) = image.read(at, buffer, 0..4096).await;
    match expected {
        Some(expected) => assert!(read.is_ok() && buffer[..] == *expected, "{read:?}"),
        None => assert!(read.is_err(), "it reads as {}", buffer[0]),
    }
}
