//! A pool in memory, with images of both kinds, in which somebody then changes keys, attributes, bytes and whole objects as an input
//! says.
//!
//! Whatever that is: everything that can be asked of it ends, a check that repairs nothing changes nothing, what is repaired is not
//! found again, and what is written into an image that can still be owned is read by the next client.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use bytes::Bytes;
use vellum_ceph::{CephCatalog, classes};
use vellum_core::{Extent, Geometry};
use vellum_engine::{Catalog, Finding, ImageRecord, Layering, Repair, Result};
use vellum_image::image::Open;
use vellum_image::{
    CloneOptions, CreateOptions, Image, ImageOptions, Pools, WriteOptions, admin, check,
};
use vellum_rados::memory::{MemoryCluster, MemoryPool};
use vellum_rados::{Found, Objects, ReadOp, ReadStep, SnapContext, SnapId, WriteOp, WriteStep};

use crate::input::Input;
use crate::run::on_runtime;

type Engine = CephCatalog<MemoryPool>;

const POOL: &str = "pool";
const OBJECT: u64 = 16 << 10;
const SIZE: u64 = 3 * OBJECT;
/// The most that is read at once: a damaged header may say that its image is huge.
const READ_MAX: u64 = 2 * SIZE;
/// The most changes that an input makes.
const CHANGES_MAX: usize = 12;
/// What may be repaired in one round, so that a second one finds nothing that was repaired before.
const ROUNDS_MAX: usize = 8;

/// All objects of a pool, with what lies in them but for their data.
type Dump = BTreeMap<String, (BTreeMap<String, Vec<u8>>, BTreeMap<Vec<u8>, Vec<u8>>)>;

/// See the module.
pub fn look_at(input: &mut Input<'_>) {
    static MADE: OnceLock<MemoryCluster> = OnceLock::new();
    let made = MADE.get_or_init(|| on_runtime(make()).expect("nothing is in the way of images"));
    on_runtime(async {
        let cluster = made.copied();
        let pool = cluster.client(POOL, "");
        for _ in 0..CHANGES_MAX {
            if input.is_empty() {
                break;
            }
            change(&pool, input).await;
        }
        look(&cluster).await;
        settle().await;
        repair(&cluster, &pool).await;
        settle().await;
        write(&cluster).await;
    });
}

/// Lets what was dropped give back what it had; others would wait for that.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// A client of the pool, and its catalog.
fn client(cluster: &MemoryCluster) -> (Pools<Engine>, Engine) {
    let catalog = CephCatalog::new(cluster.client(POOL, ""), "");
    let pools = Pools::default();
    pools.add(catalog.clone());
    (pools, catalog)
}

async fn open(
    pools: &Pools<Engine>,
    catalog: &Engine,
    of: &ImageRecord,
    what: Open,
) -> Result<Image<Engine>> {
    Image::open(pools, catalog, &of.id, what, ImageOptions::default()).await
}

/// Two parents, one of each kind, and a child of each.
async fn make() -> Result<MemoryCluster> {
    let cluster = classes::cluster(&[POOL]);
    let (pools, catalog) = client(&cluster);
    let geometry = Geometry::unstriped(OBJECT).expect("a power of two");
    for (name, layering) in [("sparse", Layering::Sparse), ("plain", Layering::CopyUp)] {
        let options = CreateOptions { geometry, layering, ..CreateOptions::default() };
        let record = admin::create(&catalog, name.parse().expect("a name"), SIZE, options).await?;
        let image = open(&pools, &catalog, &record, Open::Own).await?;
        image.write(100, Bytes::from(vec![1; 20_000]), WriteOptions::default()).await?;
        let record = image.snapshot("s".parse().expect("a name"), false).await?;
        image.close().await?;
        let child = format!("{name}-child").parse().expect("a name");
        let options = CloneOptions { layering: Some(layering), ..CloneOptions::default() };
        let snapshot = record.snapshots[0].clone();
        let record =
            admin::clone(&pools, &catalog, &record, &snapshot, &catalog, child, options).await?;
        let image = open(&pools, &catalog, &record, Open::Own).await?;
        image.write(OBJECT, Bytes::from(vec![2; 5000]), WriteOptions::default()).await?;
        image.close().await?;
    }
    settle().await;
    Ok(cluster)
}

async fn names(pool: &MemoryPool) -> Vec<String> {
    let (mut names, mut list) = (Vec::new(), pool.list());
    while let Some(page) = list.next().await {
        names.extend(page.expect("a pool in memory can be listed"));
    }
    names.sort();
    names
}

/// What a step finds at an object; nothing if it is not there.
async fn found(pool: &MemoryPool, object: &str, step: ReadStep) -> Option<Found> {
    let done = pool.read(object, SnapId::HEAD, ReadOp::new().then(step)).await;
    done.result.ok()?.1.pop()
}

async fn attributes(pool: &MemoryPool, object: &str) -> BTreeMap<String, Vec<u8>> {
    match found(pool, object, ReadStep::Xattrs).await {
        Some(Found::Xattrs(attributes)) => attributes,
        _ => BTreeMap::new(),
    }
}

async fn keys(pool: &MemoryPool, object: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let (after, prefix) = (String::new(), String::new());
    match found(pool, object, ReadStep::Omap { after, prefix, max: 10_000 }).await {
        Some(Found::Omap { values, .. }) => values,
        _ => BTreeMap::new(),
    }
}

/// One thing that the input wants to be otherwise.
async fn change(pool: &MemoryPool, input: &mut Input<'_>) {
    let names = names(pool).await;
    if names.is_empty() {
        return;
    }
    let object = names[usize::from(input.u8()) % names.len()].clone();
    let op = match input.u8() % 8 {
        0 => WriteOp::new().remove(),
        1 => {
            let (offset, length) = (u64::from(input.u16()), usize::from(input.u8()));
            WriteOp::new().write(offset, input.bytes(length).to_vec())
        }
        2 => WriteOp::new().then(WriteStep::Truncate(u64::from(input.u16()))),
        3 => {
            let key = input.bytes(24).to_vec();
            let length = usize::from(input.u8());
            WriteOp::new().set_omap(key, input.bytes(length).to_vec())
        }
        4 => {
            let all = attributes(pool, &object).await;
            let Some((name, value)) = pick(input, &all) else { return };
            WriteOp::new().set_xattr(name, changed(input, value))
        }
        _ => {
            let all = keys(pool, &object).await;
            let Some((key, value)) = pick(input, &all) else { return };
            if input.u8().is_multiple_of(8) {
                WriteOp::new().then(WriteStep::RemoveOmap(BTreeSet::from([key])))
            } else {
                WriteOp::new().set_omap(key, changed(input, value))
            }
        }
    };
    // The cluster refuses what makes no sense.
    let _ = pool.write(&object, &SnapContext::default(), op).await;
}

fn pick<K: Clone>(input: &mut Input<'_>, all: &BTreeMap<K, Vec<u8>>) -> Option<(K, Vec<u8>)> {
    let index = usize::from(input.u8()).checked_rem(all.len())?;
    all.iter().nth(index).map(|(key, value)| (key.clone(), value.clone()))
}

/// A value with some bytes replaced, cut, or other bytes in its place.
fn changed(input: &mut Input<'_>, mut value: Vec<u8>) -> Vec<u8> {
    let (how, at, length) = (input.u8(), usize::from(input.u16()), usize::from(input.u8()));
    let at = at % (value.len() + 1);
    match how % 4 {
        0 => value.truncate(at),
        1 => return input.bytes(length).to_vec(),
        2 => value.extend_from_slice(input.bytes(length)),
        _ => {
            for (byte, new) in value[at..].iter_mut().zip(input.bytes(length % 9 + 1)) {
                *byte = *new;
            }
        }
    }
    value
}

/// Asks whatever can be asked without a change.
async fn look(cluster: &MemoryCluster) {
    let (pools, catalog) = client(cluster);
    let _ = catalog.pending().await;
    for name in ["sparse", "plain", "sparse-child", "plain-child"] {
        let Ok(record) = catalog.find(&name.parse().expect("a name")).await else { continue };
        let _ = catalog.children(&record.id).await;
        for revision in &record.revisions {
            let _ = catalog.stored_bytes(&record.id, &revision.id).await;
        }
        let frozen = record.snapshots.iter().map(|it| Open::Snapshot(it.name.clone()));
        for what in frozen.take(4).chain([Open::Read]) {
            let Ok(image) = open(&pools, &catalog, &record, what).await else { continue };
            let once = read(&image).await;
            let twice = read(&image).await;
            assert_eq!(once.is_ok(), twice.is_ok(), "what can be read once can be read again");
            assert!(once.ok() == twice.ok(), "an image that nobody writes reads the same");
            let _ = image.close().await;
        }
    }
    if let Ok(records) = catalog.list(None, 100).await {
        assert!(records.is_sorted_by(|one, next| one.name < next.name));
    }
}

async fn read(image: &Image<Engine>) -> Result<Vec<u8>> {
    let length = image.size().min(READ_MAX);
    let mut bytes = Vec::new();
    for piece in image.read_pieces(Extent::new(0, length)).await? {
        match piece.data {
            Some(data) => bytes.extend_from_slice(&data),
            None => bytes.resize(bytes.len() + piece.at.len_usize(), 0),
        }
    }
    assert_eq!(bytes.len() as u64, length, "a read is as long as was asked for");
    Ok(bytes)
}

async fn dump(pool: &MemoryPool) -> Dump {
    let mut dump = Dump::new();
    for name in names(pool).await {
        let (attributes, keys) = (attributes(pool, &name).await, keys(pool, &name).await);
        dump.insert(name, (attributes, keys));
    }
    dump
}

/// A check that only looks, and then as many that repair as it takes.
async fn repair(cluster: &MemoryCluster, pool: &MemoryPool) {
    let before = dump(pool).await;
    let (pools, catalog) = client(cluster);
    let _ = check::check(&pools, &catalog, None, Repair::No).await;
    assert!(dump(pool).await == before, "a check that repairs nothing has changed something");
    let mut repaired = 0;
    for _ in 0..ROUNDS_MAX {
        let found = check::check(&pools, &catalog, None, Repair::Safe).await.unwrap_or_default();
        repaired = found.iter().filter(|finding| is_repaired(finding)).count();
        if repaired == 0 {
            break;
        }
    }
    assert_eq!(repaired, 0, "a check repairs the same again and again");
}

fn is_repaired(finding: &Finding) -> bool {
    finding.repaired.is_some()
}

/// Writes into each image that can be owned; the next client reads that.
async fn write(cluster: &MemoryCluster) {
    for name in ["sparse", "plain", "sparse-child", "plain-child"] {
        let (pools, catalog) = client(cluster);
        let Ok(record) = catalog.find(&name.parse().expect("a name")).await else { continue };
        let Ok(image) = open(&pools, &catalog, &record, Open::Own).await else { continue };
        let at = image.size().min(SIZE).saturating_sub(6000);
        let data = vec![9; (image.size() - at).min(6000) as usize];
        let written = image.write(at, Bytes::from(data.clone()), WriteOptions::default()).await;
        let is_written = written.is_ok() && image.sync().await.is_ok();
        let _ = image.close().await;
        if !is_written {
            continue;
        }
        let (pools, catalog) = client(cluster);
        let Ok(record) = catalog.find(&name.parse().expect("a name")).await else { continue };
        let Ok(image) = open(&pools, &catalog, &record, Open::Read).await else { continue };
        let pieces = image.read_pieces(Extent::new(at, data.len() as u64)).await;
        let pieces = pieces.expect("what was written can be read");
        let read: Vec<u8> = pieces
            .into_iter()
            .flat_map(|piece| piece.data.expect("it is no hole").to_vec())
            .collect();
        assert!(read == data, "{name}: another client reads something else than was written");
        let _ = image.close().await;
    }
}
