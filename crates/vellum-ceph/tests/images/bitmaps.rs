//! Allocation bitmaps: missing after a death, made anew, and wrong on purpose.

use std::collections::BTreeSet;

use vellum_engine::{Catalog, ImageRecord, Layering, Repair, Severity};
use vellum_image::image::Open;
use vellum_image::{FlattenOptions, Job};
use vellum_rados::memory::MemoryPool;
use vellum_rados::{Objects, SnapContext, WriteOp, WriteStep};

use vellum_ceph::{Compared, classes, keys};
use vellum_testkit::ceph::POOLS;

use crate::deaths::{Client, OBJECT, SIZE, read, write};

/// A child of four objects, of which the second and the last are its own, and a snapshot of it.
async fn child(client: &Client) -> ImageRecord {
    client.create("gold", Layering::Sparse).await.unwrap();
    let image = client.own("gold").await.unwrap();
    write(&image, 0, SIZE, 1).await.unwrap();
    image.snapshot("s".parse().unwrap(), false).await.unwrap();
    image.close().await.unwrap();
    client.clone("gold", "child", Layering::Sparse).await.unwrap();
    let image = client.own("child").await.unwrap();
    for object in [1, 3] {
        write(&image, object * OBJECT + 100, 5000, 2).await.unwrap();
    }
    let record = image.snapshot("s".parse().unwrap(), false).await.unwrap();
    image.close().await.unwrap();
    record
}

async fn compare(client: &Client, of: &ImageRecord) -> Compared {
    client.one.compare_bitmap(&of.id, &of.head).await.unwrap()
}

fn right(there: u64) -> Compared {
    Compared { is_complete: true, there, said: there, hidden: Vec::new() }
}

pub(crate) async fn what_a_death_leaves_incomplete_is_made_anew() {
    let cluster = classes::cluster(&POOLS);
    let client = Client::new(&cluster);
    let record = child(&client).await;
    assert_eq!(compare(&client, &record).await, right(2));
    let image = client.own("child").await.unwrap();
    write(&image, 0, 100, 3).await.unwrap();
    let incomplete = compare(&client, &record).await;
    assert_eq!((incomplete.is_complete, incomplete.there), (false, 3));
    cluster.blocklist(client.number);
    drop((image, client));
    let client = Client::new(&cluster);
    assert!(!compare(&client, &record).await.is_complete);
    let contents = client.contents().await;
    client.one.build_bitmap(&record.id, &record.head).await.unwrap();
    assert_eq!(compare(&client, &record).await, right(3));
    assert!(client.contents().await == contents);
    // And it is kept right from then on.
    let image = client.own("child").await.unwrap();
    write(&image, 2 * OBJECT, 100, 3).await.unwrap();
    image.close().await.unwrap();
    assert_eq!(compare(&client, &record).await, right(4));
    // A plain image has a map of another kind.
    client.create("plain", Layering::CopyUp).await.unwrap();
    let plain = client.one.find(&"plain".parse().unwrap()).await.unwrap();
    let error = client.one.build_bitmap(&plain.id, &plain.head).await.unwrap_err();
    assert!(error.chain().contains("rbd object-map"), "{}", error.chain());
}

/// Has a bitmap forget all objects, and be believed.
async fn forget(pool: &MemoryPool, record: &ImageRecord, snapshot: Option<u64>) {
    let pages = BTreeSet::from([b"page_0000000000000000".to_vec()]);
    let op = WriteOp::new().assert_exists().then(WriteStep::RemoveOmap(pages));
    let name = keys::bitmap(record.id.as_str(), snapshot);
    pool.write(&name, &SnapContext::default(), op).await.unwrap();
}

pub(crate) async fn a_wrong_bitmap_is_found_and_loses_nothing() {
    let cluster = classes::cluster(&POOLS);
    let client = Client::new(&cluster);
    let record = child(&client).await;
    let mut known = client.contents().await["child"].clone();
    let pool = cluster.client(POOLS[0], "");
    let frozen = record.revisions.iter().find(|revision| revision.sealed).unwrap().id.clone();
    let snapshot = u64::from_str_radix(record.snapshots[0].id.as_str(), 16).unwrap();
    forget(&pool, &record, None).await;
    forget(&pool, &record, Some(snapshot)).await;
    let hidden = compare(&client, &record).await;
    assert_eq!((hidden.there, hidden.said, hidden.hidden.len()), (2, 0, 2));
    let of_snapshot = client.one.compare_bitmap(&record.id, &frozen).await.unwrap();
    assert_eq!(of_snapshot.hidden.len(), 2);
    let found = client.one.check(Some(&record.id), Repair::No).await.unwrap();
    let damage = found.iter().filter(|it| it.severity == Severity::Damage).count();
    assert_eq!((found.len(), damage), (2, 2), "{found:?}");
    // Under the wrong bitmap some of the image is written, zeroed, and all of it flattened.
    let other = Client::new(&cluster);
    let image = other.own("child").await.unwrap();
    write(&image, OBJECT + 50, 100, 4).await.unwrap();
    known[OBJECT as usize + 50..][..100].fill(4);
    image.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
    assert!(read(&image).await == known, "the flatten lost what the bitmap hid");
    image.close().await.unwrap();
    // The one of the snapshot is still wrong; a check takes it away.
    let found = other.one.check(Some(&record.id), Repair::Safe).await.unwrap();
    assert!(found.iter().all(|it| it.repaired.is_some()) && found.len() == 1, "{found:?}");
    let fresh = Client::new(&cluster);
    let what = Open::Snapshot("s".parse().unwrap());
    let frozen_reads = read(&fresh.open("child", what).await.unwrap()).await;
    let mut before = known.clone();
    before[OBJECT as usize + 50..][..50].fill(1);
    before[OBJECT as usize + 100..][..50].fill(2);
    assert!(frozen_reads == before);
    fresh.one.build_bitmap(&record.id, &frozen).await.unwrap();
    assert_eq!(fresh.one.compare_bitmap(&record.id, &frozen).await.unwrap(), right(2));
    assert!(fresh.one.check(None, Repair::No).await.unwrap().is_empty());
}
