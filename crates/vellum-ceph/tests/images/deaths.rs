//! Clients that die at each change that a sequence of steps makes: what they leave is mended, everything else reads as it did, and
//! what they were about is as before or as after.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use vellum_ceph::{CephCatalog, CloneFormat, Deferment, classes};
use vellum_core::{Extent, Geometry};
use vellum_engine::{
    Catalog, Change, ErrorKind, ImageId, Layering, Repair, Result, Severity, SnapshotId,
};
use vellum_image::image::Open;
use vellum_image::{
    CloneOptions, CreateOptions, DiscardPolicy, FlattenOptions, Image, ImageOptions, Job, Pools,
    WriteOptions, admin, check,
};
use vellum_rados::Objects;
use vellum_rados::memory::{MemoryCluster, MemoryPool};
use vellum_testkit::ceph::POOLS;

use crate::protection::clone_in;

pub(crate) type Engine = CephCatalog<MemoryPool>;
/// What there is, by image, or by image and snapshot.
pub(crate) type Contents = BTreeMap<String, Vec<u8>>;

pub(crate) const OBJECT: u64 = 64 << 10;
pub(crate) const SIZE: u64 = 4 * OBJECT;
/// What the names of images in the trash begin with.
const IN_TRASH: &str = "in the trash: ";
/// No sequence makes more changes.
pub(crate) const CHANGES_MAX: u64 = 200;

/// A client of both pools.
pub(crate) struct Client {
    pub(crate) pools: Pools<Engine>,
    pub(crate) one: Engine,
    pub(crate) other: Engine,
    pub(crate) number: u64,
    pub(crate) pool: MemoryPool,
}

impl Client {
    pub(crate) fn new(cluster: &MemoryCluster) -> Self {
        let pool = cluster.client(POOLS[0], "");
        let (number, second) = (pool.client(), pool.other(POOLS[1], ""));
        let (one, other) = (CephCatalog::new(pool.clone(), ""), CephCatalog::new(second, ""));
        let pools = Pools::default();
        pools.add(one.clone());
        pools.add(other.clone());
        Self { pools, one, other, number, pool }
    }

    /// The pool of an image, by its name.
    fn pool_of(&self, of: &str) -> &Engine {
        if of.starts_with("other") { &self.other } else { &self.one }
    }

    pub(crate) async fn open(&self, of: &str, what: Open) -> Result<Image<Engine>> {
        let catalog = self.pool_of(of);
        let id = catalog.find(&of.parse().unwrap()).await?.id;
        Image::open(&self.pools, catalog, &id, what, ImageOptions::default()).await
    }

    pub(crate) async fn own(&self, of: &str) -> Result<Image<Engine>> {
        self.open(of, Open::Own).await
    }

    pub(crate) async fn create(&self, name: &str, layering: Layering) -> Result<()> {
        let geometry = Geometry::unstriped(OBJECT).unwrap();
        let options = CreateOptions { geometry, layering, ..CreateOptions::default() };
        admin::create(&self.one, name.parse().unwrap(), SIZE, options).await.map(drop)
    }

    pub(crate) async fn clone(&self, of: &str, name: &str, layering: Layering) -> Result<()> {
        self.clone_at(of, "s", name, layering).await
    }

    async fn clone_at(&self, of: &str, at: &str, name: &str, layering: Layering) -> Result<()> {
        let (parent, to) = (self.one.find(&of.parse().unwrap()).await?, self.pool_of(name));
        let snapshot = parent.snapshot(&at.parse().unwrap()).expect("it has one").clone();
        let layering = Some(layering);
        let options = CloneOptions { layering, ..CloneOptions::default() };
        let name = name.parse().unwrap();
        admin::clone(&self.pools, &self.one, &parent, &snapshot, to, name, options).await.map(drop)
    }

    async fn discard(&self, of: &str) -> Result<()> {
        let id = self.one.find(&of.parse().unwrap()).await?.id;
        self.one.trash_move(&id, Duration::ZERO).await.map(drop)
    }

    /// The only image in the trash.
    async fn trashed(&self) -> Result<ImageId> {
        Ok(self.one.trash_list(None, 1).await?.remove(0).id)
    }

    async fn restore(&self, name: Option<&str>) -> Result<()> {
        let name = name.map(|name| name.parse().unwrap());
        self.one.trash_restore(&self.trashed().await?, name.as_ref()).await.map(drop)
    }

    /// Of the snapshot `s` of `old`.
    async fn clone_v1(&self, name: &str, layering: Layering) -> Result<()> {
        let (parent, child) = ((&self.one, "old"), (self.pool_of(name), name));
        clone_in(parent, child, layering, CloneFormat::V1).await.map(drop)
    }

    /// The snapshot `s` of an image.
    async fn s(&self, of: &str) -> Result<(ImageId, SnapshotId)> {
        let record = self.one.find(&of.parse().unwrap()).await?;
        let snapshot = record.snapshot(&"s".parse().unwrap()).expect("it has one").id.clone();
        Ok((record.id, snapshot))
    }

    async fn protect(&self, of: &str) -> Result<()> {
        let (image, snapshot) = self.s(of).await?;
        self.one.protect(&image, &snapshot).await.map(drop)
    }

    async fn unprotect(&self, of: &str) -> Result<()> {
        let (image, snapshot) = self.s(of).await?;
        self.one.unprotect(&image, &snapshot).await.map(drop)
    }

    async fn change(&self, of: &str, change: Change) -> Result<()> {
        let record = self.one.find(&of.parse().unwrap()).await?;
        self.one.change(&record.id, record.version, change).await.map(drop)
    }

    /// All that can be read, by its name.
    pub(crate) async fn contents(&self) -> Contents {
        let mut contents = Contents::new();
        for catalog in [&self.one, &self.other] {
            for record in catalog.list(None, 100).await.unwrap() {
                let name = record.name.as_str();
                let head = self.open(name, Open::Read).await.unwrap();
                contents.insert(name.to_owned(), read(&head).await);
                for snapshot in &record.snapshots {
                    let what = Open::Snapshot(snapshot.name.clone());
                    let frozen = self.open(name, what).await.unwrap();
                    contents.insert(format!("{name}@{}", snapshot.name), read(&frozen).await);
                }
            }
            for found in catalog.trash_list(None, 100).await.unwrap() {
                let options = ImageOptions::default();
                let opened = Image::open(&self.pools, catalog, &found.id, Open::Read, options);
                let bytes = read(&opened.await.unwrap()).await;
                contents.insert(format!("{IN_TRASH}{}", found.name), bytes);
            }
        }
        contents
    }
}

pub(crate) async fn read(image: &Image<Engine>) -> Vec<u8> {
    let pieces = image.read_pieces(Extent::new(0, image.size())).await.unwrap();
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece.data {
            Some(data) => bytes.extend_from_slice(&data),
            None => bytes.resize(bytes.len() + piece.at.len_usize(), 0),
        }
    }
    bytes
}

pub(crate) async fn write(image: &Image<Engine>, offset: u64, length: u64, byte: u8) -> Result<()> {
    let data = Bytes::from(vec![byte; length as usize]);
    image.write(offset, data, WriteOptions::default()).await
}

/// Parents of both kinds, children of both, one of which has snapshots, clones of the first format, and one image without anybody.
pub(crate) async fn scene() -> MemoryCluster {
    let cluster = classes::cluster(&POOLS);
    let client = Client::new(&cluster);
    for (parent, layering) in [("gold", Layering::Sparse), ("plain", Layering::CopyUp)] {
        client.create(parent, layering).await.unwrap();
        let image = client.own(parent).await.unwrap();
        write(&image, 100, SIZE - OBJECT, layering as u8 + 1).await.unwrap();
        image.snapshot("s".parse().unwrap(), false).await.unwrap();
        image.close().await.unwrap();
        let child = format!("{parent}-child");
        client.clone(parent, &child, layering).await.unwrap();
        let image = client.own(&child).await.unwrap();
        write(&image, 5000, 9000, 7).await.unwrap();
        image.snapshot("s".parse().unwrap(), false).await.unwrap();
        write(&image, OBJECT + 5000, 9000, 8).await.unwrap();
        image.close().await.unwrap();
    }
    client.clone("gold", "other-child", Layering::Sparse).await.unwrap();
    // A snapshot that goes with its last child.
    let image = client.own("gold").await.unwrap();
    image.snapshot("auto".parse().unwrap(), true).await.unwrap();
    image.close().await.unwrap();
    client.clone_at("gold", "auto", "last", Layering::Sparse).await.unwrap();
    // Snapshots that are protected, with clones of the first format and without.
    for parent in ["old", "kept"] {
        client.create(parent, Layering::CopyUp).await.unwrap();
        let image = client.own(parent).await.unwrap();
        write(&image, 100, 2 * OBJECT, 5).await.unwrap();
        image.snapshot("s".parse().unwrap(), false).await.unwrap();
        image.close().await.unwrap();
        client.protect(parent).await.unwrap();
    }
    client.clone_v1("old-child", Layering::CopyUp).await.unwrap();
    client.clone_v1("other-old", Layering::Sparse).await.unwrap();
    client.create("binned", Layering::CopyUp).await.unwrap();
    let image = client.own("binned").await.unwrap();
    write(&image, 100, OBJECT, 6).await.unwrap();
    image.close().await.unwrap();
    client.discard("binned").await.unwrap();
    client.create("flat", Layering::Sparse).await.unwrap();
    let image = client.own("flat").await.unwrap();
    write(&image, 5000, 9000, 9).await.unwrap();
    image.close().await.unwrap();
    cluster
}

/// A sequence of steps.
type Steps = for<'a> fn(&'a Client) -> LocalBoxFuture<'a, Result<()>>;

macro_rules! steps {
    ($client:ident => $steps:expr) => {
        |$client| Box::pin(async move { $steps })
    };
}

const SEQUENCES: &[(&str, Steps)] = &[
    ("create", steps!(client => client.create("new", Layering::Sparse).await)),
    ("create a plain one", steps!(client => client.create("new", Layering::CopyUp).await)),
    ("clone", steps!(client => client.clone("gold", "new", Layering::Sparse).await)),
    ("clone a plain one", steps!(client => client.clone("plain", "new", Layering::CopyUp).await)),
    (
        "clone into another pool",
        steps!(client => client.clone("gold", "other-new", Layering::Sparse).await),
    ),
    ("move to the trash", steps!(client => client.discard("flat").await)),
    ("move of a parent to the trash", steps!(client => client.discard("plain").await)),
    ("return from the trash", steps!(client => client.restore(None).await)),
    ("return under another name", steps!(client => client.restore(Some("new")).await)),
    (
        "return under a name that is taken",
        steps!(client => refused(client.restore(Some("flat")).await, ErrorKind::Exists)),
    ),
    (
        "removal from the trash",
        steps!(client => {
            let id = client.trashed().await?;
            client.one.trash_remove(&id, Deferment::Heeded).await
        }),
    ),
    ("protection", steps!(client => client.protect("gold").await)),
    ("end of protection", steps!(client => client.unprotect("kept").await)),
    (
        "end of protection that is refused",
        steps!(client => refused(client.unprotect("old").await, ErrorKind::HasChildren)),
    ),
    ("clone of the first format", steps!(client => client.clone_v1("new", Layering::CopyUp).await)),
    (
        "clone of the first format into another pool",
        steps!(client => client.clone_v1("other-new", Layering::Sparse).await),
    ),
    (
        "flatten of a clone of the first format",
        steps!(client => flatten(client, "old-child").await),
    ),
    ("removal of a clone of the first format", steps!(client => remove(client, "old-child").await)),
    (
        "removal of a clone of the first format in another pool",
        steps!(client => remove(client, "other-old").await),
    ),
    ("snapshot", steps!(client => snapshot(client, "gold-child").await)),
    ("snapshot of a plain one", steps!(client => snapshot(client, "plain-child").await)),
    ("removal of a snapshot", steps!(client => remove_snapshot(client, "gold-child").await)),
    (
        "removal of a snapshot of a plain one",
        steps!(client => remove_snapshot(client, "plain-child").await),
    ),
    ("flatten", steps!(client => flatten(client, "gold-child").await)),
    ("flatten of a plain one", steps!(client => flatten(client, "plain-child").await)),
    ("flatten of one in another pool", steps!(client => flatten(client, "other-child").await)),
    ("flatten of a last child", steps!(client => flatten(client, "last").await)),
    ("removal of one in another pool", steps!(client => remove(client, "other-child").await)),
    ("removal of a last child", steps!(client => remove(client, "last").await)),
    ("removal", steps!(client => remove(client, "gold-child").await)),
    ("removal of a plain one", steps!(client => remove(client, "plain-child").await)),
    (
        "another name",
        steps!(client => client.change("flat", Change::Rename("new".parse().unwrap())).await),
    ),
    (
        "metadata",
        steps!(client => client.change("flat", Change::Meta("key".into(), Some("value".into()))).await),
    ),
    (
        "publication",
        steps!(client => {
            let id = client.one.find(&"flat".parse().unwrap()).await?.id;
            client.one.publish(&id).await.map(drop)
        }),
    ),
    ("discard", steps!(client => discard(client, "gold-child", DiscardPolicy::Inherit).await)),
    (
        "discard of a plain one",
        steps!(client => discard(client, "plain-child", DiscardPolicy::Zero).await),
    ),
];

/// Whether something was refused.
fn refused(result: Result<()>, kind: ErrorKind) -> Result<()> {
    match result {
        Err(error) if error.kind() == kind => Ok(()),
        other => other,
    }
}

async fn snapshot(client: &Client, of: &str) -> Result<()> {
    let image = client.own(of).await?;
    image.snapshot("new".parse().unwrap(), false).await?;
    image.close().await
}

async fn remove_snapshot(client: &Client, of: &str) -> Result<()> {
    let record = client.one.find(&of.parse().unwrap()).await?;
    let name = "s".parse().unwrap();
    let change =
        |snapshot: &vellum_engine::SnapshotRecord| Change::RemoveSnapshot(snapshot.id.clone());
    admin::change_snapshot(&client.pools, &client.one, &record.id, &name, change).await.map(drop)
}

async fn flatten(client: &Client, of: &str) -> Result<()> {
    let image = client.own(of).await?;
    image.flatten(FlattenOptions::default(), &Job::default()).await?;
    image.close().await
}

async fn remove(client: &Client, of: &str) -> Result<()> {
    let catalog = client.pool_of(of);
    let id = catalog.find(&of.parse().unwrap()).await?.id;
    admin::remove(&client.pools, catalog, &id).await
}

/// Of one object.
async fn discard(client: &Client, of: &str, policy: DiscardPolicy) -> Result<()> {
    let image = client.own(of).await?;
    image.discard(Extent::new(3 * OBJECT, OBJECT), policy, true).await?;
    image.close().await
}

/// How many changes a sequence makes where nobody dies, and what is there before and after.
async fn whole(steps: Steps) -> (u64, Contents, Contents) {
    let cluster = scene().await;
    let before = Client::new(&cluster).contents().await;
    let client = Client::new(&cluster);
    cluster.end_after(client.number, CHANGES_MAX);
    steps(&client).await.unwrap();
    let made = CHANGES_MAX - cluster.changes_left(client.number).expect("nobody makes so many");
    drop(client);
    (made, before, Client::new(&cluster).contents().await)
}

/// Checks both pools. What is found may be repaired.
pub(crate) async fn findings(client: &Client, repair: Repair) -> Vec<String> {
    let mut all = Vec::new();
    for catalog in [&client.one, &client.other] {
        let found = check::check(&client.pools, catalog, None, repair).await.unwrap();
        let bad = |severity| repair == Repair::No || severity == Severity::Damage;
        all.extend(found.iter().filter(|it| bad(it.severity)).map(|it| format!("{it:?}")));
    }
    all
}

/// What is there after a death at this change is what was there before or after it all, and can be written and removed.
async fn judge(cluster: &MemoryCluster, told: &str, before: &Contents, after: &Contents) {
    let client = Client::new(cluster);
    assert_eq!(findings(&client, Repair::Safe).await, [""; 0], "{told}");
    assert_eq!(findings(&client, Repair::No).await, [""; 0], "{told}, after it was repaired");
    let now = client.contents().await;
    for (name, bytes) in &now {
        let known = [before, after].iter().any(|then| then.get(name) == Some(bytes));
        assert!(known, "{told}: {name} reads something else");
    }
    for name in before.keys().filter(|name| after.contains_key(*name)) {
        assert!(now.contains_key(name), "{told}: {name} is gone");
    }
    // A snapshot may outlive the last child that it was to go with.
    let names =
        |of: &Contents| of.keys().filter(|name| !name.contains('@')).cloned().collect::<Vec<_>>();
    let known = [names(before), names(after)];
    assert!(known.contains(&names(&now)), "{told}: {:?} is neither of {known:?}", names(&now));
    for name in now.keys().filter(|name| !name.contains('@') && !name.starts_with(IN_TRASH)) {
        let image =
            client.own(name).await.unwrap_or_else(|error| panic!("{told}: {name}: {error}"));
        write(&image, 1, 5000, 3).await.unwrap();
        let mut bytes = now[name].clone();
        bytes[1..5001].fill(3);
        assert!(read(&image).await == bytes, "{told}: {name} cannot be written");
        image.close().await.unwrap();
    }
    assert_eq!(findings(&client, Repair::No).await, [""; 0], "{told}, in the end");
}

pub(crate) async fn a_death_at_any_change_leaves_what_can_be_mended() {
    let mut deaths = 0;
    for (name, steps) in SEQUENCES {
        let (changes, before, after) = whole(*steps).await;
        assert!(changes > 0, "{name} changes nothing");
        for change in 0..changes {
            let cluster = scene().await;
            let client = Client::new(&cluster);
            cluster.end_after(client.number, change);
            // Whatever it says, it is dead.
            let _ = steps(&client).await;
            let told = format!("{name}, dead after {change} of {changes} changes");
            drop(client);
            judge(&cluster, &told, &before, &after).await;
            deaths += 1;
        }
    }
    assert!(deaths > 150, "{deaths} deaths only");
}
