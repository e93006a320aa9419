//! Protected snapshots, and clones of RBD's first format, which need them: what may be done and what may not, and Ceph's own tools
//! beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use vellum_ceph::{CephCatalog, CloneFormat, Protection, classes};
use vellum_engine::{
    Catalog, Change, ChildRef, ErrorKind, ImageRecord, Layering, NewImage, NewParent, ParentLink,
    Repair, Result, SnapshotRecord,
};
use vellum_image::image::Open;
use vellum_image::{CloneOptions, FlattenOptions, Job, Pools, admin, check};
use vellum_rados::librados::Pool;
use vellum_rados::memory::{MemoryCluster, MemoryPool};
use vellum_rados::{Found, Objects, ReadOp, ReadStep, SnapContext, SnapId, WriteOp};
use vellum_rbd::Decode;
use vellum_rbd::method::{CLASS, layering};
use vellum_rbd::names::{CHILDREN, children_of, header, key};
use vellum_testkit::ceph::{Cluster, POOLS};

use crate::deaths::{Client, OBJECT, SIZE, read, write};
use crate::programs::assert_reads;
use crate::strangers::{content, export_of, import, open};
use crate::{connect, connect_as, connect_to};

/// A clone of the snapshot `s` in a format.
pub(crate) async fn clone_in<O: Objects>(
    (parents, parent): (&CephCatalog<O>, &str),
    (children, name): (&CephCatalog<O>, &str),
    layering: Layering,
    format: CloneFormat,
) -> Result<ImageRecord> {
    let parent = parents.find(&parent.parse().unwrap()).await?;
    let snapshot = s(&parent);
    let size = parent.revision(&snapshot.revision).unwrap().size;
    let link = ParentLink {
        pool: parents.pool(),
        image: parent.id.clone(),
        revision: snapshot.revision.clone(),
    };
    let new = NewImage {
        name: name.parse().unwrap(),
        size,
        geometry: parent.geometry,
        layering,
        block_size: 4096,
        parent: Some(NewParent { link, overlap: size }),
        id: None,
        meta: BTreeMap::new(),
    };
    children.create_clone(new, format).await
}

fn s(of: &ImageRecord) -> SnapshotRecord {
    of.snapshot(&"s".parse().unwrap()).unwrap().clone()
}

/// A plain image with a snapshot `s`.
async fn golden(client: &Client) -> ImageRecord {
    client.create("gold", Layering::CopyUp).await.unwrap();
    let image = client.own("gold").await.unwrap();
    write(&image, 100, SIZE - OBJECT, 7).await.unwrap();
    image.snapshot("s".parse().unwrap(), false).await.unwrap();
    image.close().await.unwrap();
    client.one.find(&"gold".parse().unwrap()).await.unwrap()
}

async fn keys(pool: &MemoryPool, object: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let step = ReadStep::Omap { after: String::new(), prefix: String::new(), max: 1000 };
    let done = pool.read(object, SnapId::HEAD, ReadOp::new().then(step)).await;
    let Ok((_, mut found)) = done.result else { return BTreeMap::new() };
    match found.pop() {
        Some(Found::Omap { values, more: false }) => values,
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn what_is_protected_stays() {
    let cluster = classes::cluster(&POOLS);
    let client = Client::new(&cluster);
    let gold = golden(&client).await;
    let snapshot = s(&gold);
    let (one, id) = (&client.one, &gold.id);
    assert_eq!(one.protection(id, &snapshot.id).await.unwrap(), Protection::Unprotected);
    for _ in 0..2 {
        let record = one.protect(id, &snapshot.id).await.unwrap();
        assert_eq!(record, gold, "whether a snapshot is protected is not in the record");
        assert_eq!(one.protection(id, &snapshot.id).await.unwrap(), Protection::Protected);
    }
    let remove = Change::RemoveSnapshot(snapshot.id.clone());
    for error in [
        one.change(id, gold.version, remove.clone()).await.unwrap_err(),
        one.remove(id, gold.version).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains("snapshot s of image gold is protected"), "{error}");
    }
    let other = vellum_engine::SnapshotId::new("ff");
    assert_eq!(one.protect(id, &other).await.unwrap_err().kind(), ErrorKind::NotFound);
    for _ in 0..2 {
        one.unprotect(id, &snapshot.id).await.unwrap();
        assert_eq!(one.protection(id, &snapshot.id).await.unwrap(), Protection::Unprotected);
    }
    one.change(id, gold.version, remove).await.unwrap();
}

pub(crate) async fn a_snapshot_is_protected_for_as_long_as_it_has_clones_of_the_first_format() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        let cluster = classes::cluster(&POOLS);
        let client = Client::new(&cluster);
        let gold = golden(&client).await;
        let (one, snapshot) = (&client.one, s(&gold));
        let clone = async |children, name| {
            clone_in((one, "gold"), (children, name), layering, CloneFormat::V1).await
        };
        let error = clone(one, "child").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(one.pending().await.unwrap().is_empty());
        one.protect(&gold.id, &snapshot.id).await.unwrap();
        let pools = POOLS.map(|pool| cluster.client(pool, ""));
        let before = keys(&pools[0], &header(gold.id.as_str())).await;
        let children = [clone(one, "child").await, clone(&client.other, "other-child").await];
        let children = children.map(Result::unwrap);
        assert!(keys(&pools[0], &header(gold.id.as_str())).await == before, "nobody wrote to it");
        for (pool, child) in pools.iter().zip(&children) {
            let listed = keys(pool, CHILDREN).await;
            let key = children_of(pools[0].pool() as u64, gold.id.as_str(), 1);
            assert_eq!(listed.keys().collect::<Vec<_>>(), [&key]);
            let ids = BTreeSet::<vellum_rbd::Text>::from_bytes(&listed[&key]).unwrap();
            assert_eq!(ids, [child.id.as_str().into()].into());
            let child = keys(pool, &header(child.id.as_str())).await;
            assert!(child.contains_key(key::PARENT.as_bytes()));
            assert!(!child.contains_key(key::OPERATIONS.as_bytes()));
        }
        let as_child = |catalog: &crate::deaths::Engine, child: &ImageRecord| {
            let child = ChildRef { pool: catalog.pool(), image: child.id.clone() };
            (snapshot.revision.clone(), child)
        };
        let expected = [as_child(one, &children[0]), as_child(&client.other, &children[1])];
        assert_eq!(one.children(&gold.id).await.unwrap(), expected);
        assert_eq!(check::check(&client.pools, one, None, Repair::No).await.unwrap(), []);
        let error = one.unprotect(&gold.id, &snapshot.id).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HasChildren, "{error}");
        assert_eq!(one.protection(&gold.id, &snapshot.id).await.unwrap(), Protection::Protected);
        let error = one.remove(&gold.id, gold.version).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HasChildren, "{error}");
        // One is flattened, the other removed.
        let child = client.own("child").await.unwrap();
        assert!(read(&child).await == read(&client.open("gold", Open::Read).await.unwrap()).await);
        child.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
        child.close().await.unwrap();
        assert_eq!(one.children(&gold.id).await.unwrap(), expected[1..]);
        admin::remove(&client.pools, &client.other, &children[1].id).await.unwrap();
        assert_eq!(one.children(&gold.id).await.unwrap(), []);
        one.unprotect(&gold.id, &snapshot.id).await.unwrap();
        admin::remove(&client.pools, one, &gold.id).await.unwrap();
    }
}

/// A client that may only look at the first pool.
fn looking_on(cluster: &MemoryCluster) -> Client {
    let client = Client::new(cluster);
    cluster.set_read_only(client.number, POOLS[0]);
    client
}

pub(crate) async fn a_parent_that_cannot_be_written_has_clones_of_the_first_format() {
    let cluster = classes::cluster(&POOLS);
    let owner = Client::new(&cluster);
    let gold = golden(&owner).await;
    let expected = read(&owner.open("gold", Open::Read).await.unwrap()).await;
    let client = looking_on(&cluster);
    let error = client.clone("gold", "other-child", Layering::Sparse).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    for way in ["let this user write to its pool", "protect its snapshot s"] {
        assert!(error.to_string().contains(way), "{error}");
    }
    owner.one.protect(&gold.id, &s(&gold).id).await.unwrap();
    client.clone("gold", "other-child", Layering::Sparse).await.unwrap();
    assert_eq!(owner.one.children(&gold.id).await.unwrap().len(), 1);
    let image = client.own("other-child").await.unwrap();
    assert!(read(&image).await == expected, "the clone reads its parent");
    write(&image, 0, 100, 9).await.unwrap();
    image.close().await.unwrap();
    let error = owner.one.unprotect(&gold.id, &s(&gold).id).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HasChildren, "{error}");
    assert_eq!(check::check(&client.pools, &client.other, None, Repair::No).await.unwrap(), []);
    let id = client.other.find(&"other-child".parse().unwrap()).await.unwrap().id;
    admin::remove(&client.pools, &client.other, &id).await.unwrap();
    owner.one.unprotect(&gold.id, &s(&gold).id).await.unwrap();
}

pub(crate) async fn whoever_may_only_look_is_told_that_a_snapshot_is_gone() {
    let cluster = classes::cluster(&POOLS);
    let owner = Client::new(&cluster);
    let gold = golden(&owner).await;
    let client = looking_on(&cluster);
    let frozen = client.open("gold", Open::Snapshot("s".parse().unwrap())).await.unwrap();
    read(&frozen).await;
    owner.one.change(&gold.id, gold.version, Change::RemoveSnapshot(s(&gold).id)).await.unwrap();
    let at = vellum_core::Extent::new(0, SIZE);
    let error = frozen.read_pieces(at).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

pub(crate) async fn a_list_of_clones_is_mended() {
    let cluster = classes::cluster(&POOLS);
    let client = Client::new(&cluster);
    let gold = golden(&client).await;
    let (one, snapshot) = (&client.one, s(&gold));
    one.protect(&gold.id, &snapshot.id).await.unwrap();
    let child =
        clone_in((one, "gold"), (one, "child"), Layering::CopyUp, CloneFormat::V1).await.unwrap();
    // One that is not there, and the other one missing.
    let pool = cluster.client(POOLS[0], "");
    let of = |id: &str| (pool.pool(), gold.id.as_str().into(), 1, id.into());
    let (a, b, c, d) = of("abc");
    let add = layering::add_child(a, b, c, d);
    let (a, b, c, d) = of(child.id.as_str());
    let remove = layering::remove_child(a, b, c, d);
    for call in [add, remove] {
        let op = WriteOp::new().call(CLASS, call.method, call.input);
        pool.write(CHILDREN, &SnapContext::default(), op).await.unwrap();
    }
    let found = check::check(&client.pools, one, None, Repair::Safe).await.unwrap();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|finding| finding.repaired.is_some()), "{found:?}");
    assert_eq!(check::check(&client.pools, one, None, Repair::No).await.unwrap(), []);
    let expected = ChildRef { pool: one.pool(), image: child.id };
    assert_eq!(one.children(&gold.id).await.unwrap(), [(snapshot.revision, expected)]);
}

fn spec(image: &str) -> String {
    format!("{}/{image}", POOLS[0])
}

fn protected_by_rbd(cluster: &Cluster, image: &str) -> bool {
    let listed = cluster.ok("rbd", &["snap", "ls", "--format", "json", &spec(image)]).unwrap();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    listed[0]["protected"] == "true"
}

/// Whether each pool lists clones of the first format of an image.
fn listed(cluster: &Cluster, of: &ImageRecord) -> [bool; 2] {
    POOLS.map(|pool| {
        let keys = cluster.ok("rados", &["--pool", pool, "listomapkeys", CHILDREN]);
        keys.unwrap_or_default().contains(of.id.as_str())
    })
}

pub(crate) async fn rbd_and_vellum_protect_the_same(cluster: Arc<Cluster>) {
    let (pools, one) = connect(&cluster, "").await;
    import(&cluster, "guarded", &content());
    let record = one.find(&"guarded".parse().unwrap()).await.unwrap();
    let (id, snapshot) = (&record.id, s(&record).id);
    one.protect(id, &snapshot).await.unwrap();
    assert!(protected_by_rbd(&cluster, "guarded"));
    assert!(cluster.ok("rbd", &["snap", "rm", "--no-progress", &spec("guarded@s")]).is_err());
    cluster.ok("rbd", &["snap", "unprotect", &spec("guarded@s")]).unwrap();
    assert_eq!(one.protection(id, &snapshot).await.unwrap(), Protection::Unprotected);
    cluster.ok("rbd", &["snap", "protect", &spec("guarded@s")]).unwrap();
    let remove = |snapshot: &SnapshotRecord| Change::RemoveSnapshot(snapshot.id.clone());
    let name = "s".parse().unwrap();
    let removed = admin::change_snapshot(&pools, &one, id, &name, remove).await;
    assert_eq!(removed.unwrap_err().kind(), ErrorKind::Invalid);
    // A child of the second format does not keep a snapshot protected, here as there.
    let second = Layering::CopyUp;
    clone_in((&one, "guarded"), (&one, "named"), second, CloneFormat::V2).await.unwrap();
    one.unprotect(id, &snapshot).await.unwrap();
    assert!(!protected_by_rbd(&cluster, "guarded"));
    cluster.ok("rbd", &["snap", "protect", &spec("guarded@s")]).unwrap();
    cluster.ok("rbd", &["snap", "unprotect", &spec("guarded@s")]).unwrap();
}

pub(crate) async fn clones_of_the_first_format_that_rbd_made_are_known(cluster: Arc<Cluster>) {
    let (pools, one) = connect(&cluster, "").await;
    let (_, other) = connect_to(&cluster, POOLS[1], "").await;
    pools.add(other.clone());
    let bytes = content();
    import(&cluster, "first", &bytes);
    let record = one.find(&"first".parse().unwrap()).await.unwrap();
    let snapshot = s(&record);
    cluster.ok("rbd", &["snap", "protect", &spec("first@s")]).unwrap();
    for child in [spec("first-child"), format!("{}/first-other", POOLS[1])] {
        let clone = ["clone", "--rbd-default-clone-format", "1", &spec("first@s"), &child];
        cluster.ok("rbd", &clone).unwrap();
    }
    assert_eq!(listed(&cluster, &record), [true, true]);
    assert_eq!(one.children(&record.id).await.unwrap().len(), 2);
    assert_eq!(check::check(&pools, &one, Some(&record.id), Repair::No).await.unwrap(), []);
    let error = one.unprotect(&record.id, &snapshot.id).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HasChildren, "{error}");
    let child = open(&pools, &one, "first-child", Open::Own).await;
    assert_reads(&child, &bytes, "the clone").await;
    child.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
    child.close().await.unwrap();
    assert_eq!(listed(&cluster, &record), [false, true]);
    let id = other.find(&"first-other".parse().unwrap()).await.unwrap().id;
    admin::remove(&pools, &other, &id).await.unwrap();
    assert_eq!(listed(&cluster, &record), [false, false]);
    cluster.ok("rbd", &["snap", "unprotect", &spec("first@s")]).unwrap();
}

pub(crate) async fn clones_of_the_first_format_are_known_to_rbd(cluster: Arc<Cluster>) {
    let (pools, one) = connect(&cluster, "").await;
    let (_, other) = connect_to(&cluster, POOLS[1], "").await;
    pools.add(other.clone());
    let bytes = content();
    import(&cluster, "mine", &bytes);
    let record = one.find(&"mine".parse().unwrap()).await.unwrap();
    let snapshot = s(&record);
    one.protect(&record.id, &snapshot.id).await.unwrap();
    let clone = async |children: &CephCatalog<Pool>, name: &str, layering| {
        clone_in((&one, "mine"), (children, name), layering, CloneFormat::V1).await.unwrap()
    };
    clone(&one, "mine-child", Layering::CopyUp).await;
    clone(&other, "mine-other", Layering::CopyUp).await;
    let children = cluster.ok("rbd", &["children", &spec("mine@s")]).unwrap();
    let other_child = format!("{}/mine-other", POOLS[1]);
    for child in [&spec("mine-child"), &other_child] {
        assert!(children.lines().any(|line| line == *child), "{children}");
    }
    let sparse = clone(&one, "mine-sparse", Layering::Sparse).await;
    // It opens each clone of the first format, which it cannot if that is sparse; what follows goes by the lists alone.
    assert!(cluster.ok("rbd", &["children", &spec("mine@s")]).is_err());
    let unprotect = || cluster.ok("rbd", &["snap", "unprotect", &spec("mine@s")]);
    assert!(unprotect().is_err());
    let dir = tempfile::tempdir().unwrap();
    assert!(export_of(&cluster, &spec("mine-child"), dir.path()) == bytes);
    cluster.ok("rbd", &["flatten", "--no-progress", &spec("mine-child")]).unwrap();
    assert!(export_of(&cluster, &spec("mine-child"), dir.path()) == bytes);
    cluster.ok("rbd", &["rm", "--no-progress", &other_child]).unwrap();
    assert_eq!(one.children(&record.id).await.unwrap().len(), 1);
    assert!(unprotect().is_err());
    admin::remove(&pools, &one, &sparse.id).await.unwrap();
    unprotect().unwrap();
}

pub(crate) async fn a_user_who_may_only_read_the_parent_has_clones(cluster: Arc<Cluster>) {
    let (_, one) = connect(&cluster, "").await;
    let bytes = content();
    import(&cluster, "read-only", &bytes);
    let osd = format!("profile rbd-read-only pool={}, profile rbd pool={}", POOLS[0], POOLS[1]);
    cluster.add_user("reader", &["mon", "profile rbd", "osd", &osd]).unwrap();
    let (pools, parents) = connect_as(&cluster, "reader", POOLS[0], "").await;
    let children = children_of_reader(&cluster, &pools).await;
    let parent = parents.find(&"read-only".parse().unwrap()).await.unwrap();
    let clone = async || {
        let options = CloneOptions { layering: Some(Layering::CopyUp), ..CloneOptions::default() };
        let name = "of-reader".parse().unwrap();
        admin::clone(&pools, &parents, &parent, &s(&parent), &children, name, options).await
    };
    let error = clone().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    one.protect(&parent.id, &s(&parent).id).await.unwrap();
    clone().await.unwrap();
    let image = open(&pools, &children, "of-reader", Open::Own).await;
    assert_reads(&image, &bytes, "the clone").await;
    image.close().await.unwrap();
    let listed = cluster.ok("rbd", &["children", &spec("read-only@s")]).unwrap();
    assert_eq!(listed.trim(), format!("{}/of-reader", POOLS[1]));
    let image = open(&pools, &children, "of-reader", Open::Own).await;
    image.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
    image.close().await.unwrap();
    one.unprotect(&parent.id, &s(&parent).id).await.unwrap();
}

/// The other pool, for the same user.
async fn children_of_reader(
    cluster: &Cluster,
    pools: &Pools<CephCatalog<Pool>>,
) -> CephCatalog<Pool> {
    let (_, children) = connect_as(cluster, "reader", POOLS[1], "").await;
    pools.add(children.clone());
    children
}
