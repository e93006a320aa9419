//! The trash: what goes there, comes back and is removed, in memory and beside Ceph's own tools, which finish what Vellum began and the
//! other way round.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use vellum_ceph::{CephCatalog, Deferment, TrashState, TrashedImage, classes};
use vellum_engine::{Catalog, Change, Error, ErrorKind, ImageId, Layering, Repair, Result};
use vellum_image::image::Open;
use vellum_image::{CreateOptions, FlattenOptions, Job, Pools, admin, check};
use vellum_rados::librados::Pool;
use vellum_rados::memory::MemoryPool;
use vellum_rados::{Objects, SnapContext, WriteOp};
use vellum_rbd::method::{CLASS, Call, directory, id as id_method, trash};
use vellum_rbd::names::{DIRECTORY, TRASH, header, id_object};
use vellum_rbd::records::Trashed;
use vellum_rbd::wire::Time;
use vellum_testkit::Librbd;
use vellum_testkit::ceph::{Cluster, POOLS};

use crate::connect;
use crate::deaths::{Client, Engine, SIZE, read, write};
use crate::programs::assert_reads;
use crate::strangers::{content, export_of, import, open};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const NOT_AT_ALL: Duration = Duration::ZERO;

async fn id<O: Objects>(catalog: &CephCatalog<O>, name: &str) -> ImageId {
    catalog.find(&name.parse().unwrap()).await.unwrap().id
}

async fn trashed<O: Objects>(catalog: &CephCatalog<O>) -> Vec<TrashedImage> {
    catalog.trash_list(None, 100).await.unwrap()
}

/// What an image is kept from, and by what.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind) -> Error {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{}", error.chain());
    error
}

/// An image with a snapshot and a clone, which have the same content.
async fn family(client: &Client) -> (ImageId, Vec<u8>) {
    client.create("gold", Layering::CopyUp).await.unwrap();
    let image = client.own("gold").await.unwrap();
    write(&image, 100, SIZE / 2, 7).await.unwrap();
    image.snapshot("s".parse().unwrap(), false).await.unwrap();
    let bytes = read(&image).await;
    image.close().await.unwrap();
    client.clone("gold", "child", Layering::CopyUp).await.unwrap();
    (id(&client.one, "gold").await, bytes)
}

pub(crate) async fn an_image_goes_to_the_trash_and_comes_back() {
    let cluster = classes::cluster(&POOLS);
    let client = Client::new(&cluster);
    let (gold, bytes) = family(&client).await;
    let one = &client.one;
    let before = one.get(&gold).await.unwrap();
    let put = one.trash_move(&gold, DAY).await.unwrap();
    assert_eq!((put.name.as_str(), put.state), ("gold", TrashState::Normal));
    assert_eq!(put.until, put.since + DAY);
    assert_eq!(trashed(one).await, [put]);
    refused(one.find(&before.name).await, ErrorKind::NotFound);
    let listed = one.list(None, 10).await.unwrap();
    assert_eq!(listed.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["child"]);
    assert_eq!(one.get(&gold).await.unwrap(), before, "by its id it is as it was");
    assert!(read(&client.open("child", Open::Read).await.unwrap()).await == bytes);
    // Its name is free, and what has it now is in the way when it comes back.
    client.create("gold", Layering::CopyUp).await.unwrap();
    refused(one.trash_restore(&gold, None).await, ErrorKind::Exists);
    assert_eq!(trashed(one).await[0].state, TrashState::Normal);
    assert!(one.pending().await.unwrap().is_empty());
    let named = one.trash_restore(&gold, Some(&"silver".parse().unwrap())).await.unwrap();
    assert_eq!((named.id, named.name.as_str()), (gold, "silver"));
    assert!(read(&client.open("silver", Open::Read).await.unwrap()).await == bytes);
    assert!(trashed(one).await.is_empty());
    assert_eq!(check::check(&client.pools, one, None, Repair::No).await.unwrap(), []);
}

pub(crate) async fn what_is_in_the_trash_is_kept_until_its_time() {
    let cluster = classes::cluster(&POOLS);
    let client = Client::new(&cluster);
    let (gold, _) = family(&client).await;
    let one = &client.one;
    one.trash_move(&gold, DAY).await.unwrap();
    refused(one.trash_move(&gold, DAY).await, ErrorKind::Invalid);
    let record = one.get(&gold).await.unwrap();
    refused(one.remove(&gold, record.version).await, ErrorKind::Invalid);
    let rename = Change::Rename("other".parse().unwrap());
    refused(one.change(&gold, record.version, rename).await, ErrorKind::Invalid);
    refused(one.trash_remove(&gold, Deferment::Heeded).await, ErrorKind::Invalid);
    refused(one.trash_remove(&gold, Deferment::Ignored).await, ErrorKind::HasChildren);
    assert_eq!(trashed(one).await[0].state, TrashState::Normal, "it is there as before");
    let child = client.own("child").await.unwrap();
    child.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
    child.close().await.unwrap();
    one.trash_remove(&gold, Deferment::Ignored).await.unwrap();
    refused(one.get(&gold).await, ErrorKind::NotFound);
    refused(one.trash_remove(&gold, Deferment::Ignored).await, ErrorKind::NotFound);
    refused(one.trash_restore(&gold, None).await, ErrorKind::NotFound);
    let left = objects(&cluster.client(POOLS[0], "")).await;
    assert!(!left.iter().any(|name| name.contains(gold.as_str())), "{left:?}");
    assert!(one.pending().await.unwrap().is_empty());
}

async fn objects(pool: &MemoryPool) -> BTreeSet<String> {
    let (mut list, mut all) = (pool.list(), BTreeSet::new());
    while let Some(names) = list.next().await {
        all.extend(names.unwrap());
    }
    all
}

pub(crate) async fn an_image_in_use_stays_where_it_is() {
    let cluster = classes::cluster(&POOLS);
    let (client, other) = (Client::new(&cluster), Client::new(&cluster));
    let (gold, _) = family(&client).await;
    let image = other.own("gold").await.unwrap();
    refused(client.one.trash_move(&gold, DAY).await, ErrorKind::InUse);
    image.close().await.unwrap();
    let reader = other.open("gold", Open::Read).await.unwrap();
    refused(client.one.trash_move(&gold, DAY).await, ErrorKind::InUse);
    assert!(
        client.one.pending().await.unwrap().is_empty() && trashed(&client.one).await.is_empty()
    );
    drop(reader);
    // Who reads it through a clone is in nobody's way.
    let child = other.own("child").await.unwrap();
    client.one.trash_move(&gold, NOT_AT_ALL).await.unwrap();
    read(&child).await;
    child.close().await.unwrap();
}

/// What is done with an image of the name `vm`, as a sequence of changes.
#[derive(Clone, Copy, Debug)]
enum Step {
    Put,
    Restore,
    Remove,
}

async fn step(one: &Engine, image: &ImageId, step: Step) -> Result<()> {
    match step {
        Step::Put => one.trash_move(image, NOT_AT_ALL).await.map(drop),
        Step::Restore => one.trash_restore(image, None).await.map(drop),
        Step::Remove => one.trash_remove(image, Deferment::Heeded).await,
    }
}

pub(crate) async fn what_a_death_left_is_finished_by_doing_it_again() {
    for what in [Step::Put, Step::Restore, Step::Remove] {
        let mut changes = 0;
        loop {
            let cluster = classes::cluster(&POOLS);
            let dying = Client::new(&cluster);
            dying.create("vm", Layering::CopyUp).await.unwrap();
            let vm = id(&dying.one, "vm").await;
            if !matches!(what, Step::Put) {
                step(&dying.one, &vm, Step::Put).await.unwrap();
            }
            cluster.end_after(dying.number, changes);
            let ended = step(&dying.one, &vm, what).await;
            drop(dying);
            if ended.is_ok() {
                break;
            }
            let client = Client::new(&cluster);
            let told = format!("{what:?}, again after a death at change {changes}");
            match step(&client.one, &vm, what).await {
                Ok(()) => {}
                // It was done, but for a note.
                Err(error) => assert!(
                    [ErrorKind::NotFound, ErrorKind::Invalid].contains(&error.kind()),
                    "{told}: {}",
                    error.chain()
                ),
            }
            let (named, there) =
                (client.one.find(&"vm".parse().unwrap()).await, trashed(&client.one).await);
            match what {
                Step::Put => assert!(named.is_err() && there.len() == 1, "{told}: {there:?}"),
                Step::Restore => assert!(named.is_ok() && there.is_empty(), "{told}: {there:?}"),
                Step::Remove => assert!(named.is_err() && there.is_empty(), "{told}: {there:?}"),
            }
            assert!(there.iter().all(|image| image.state == TrashState::Normal), "{told}");
            client.one.check(None, Repair::Safe).await.unwrap();
            assert_eq!(client.one.check(None, Repair::No).await.unwrap(), [], "{told}");
            changes += 1;
        }
        assert!(changes > 3, "{what:?} is {changes} changes only");
    }
}

fn spec(image: &str) -> String {
    format!("{}/{image}", POOLS[0])
}

fn rbd(cluster: &Cluster, arguments: &[&str]) -> std::result::Result<String, String> {
    cluster.ok("rbd", arguments).map_err(|error| format!("{error:#}"))
}

/// What `rbd` has in the trash: lines of an id and a name.
fn rbd_trash(cluster: &Cluster) -> String {
    rbd(cluster, &["trash", "ls", "--all", POOLS[0]]).unwrap()
}

fn reads(cluster: &Cluster, image: &str, bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    assert!(export_of(cluster, &spec(image), dir.path()) == bytes, "{image} reads something else");
}

pub(crate) async fn rbd_and_vellum_have_one_trash(cluster: Arc<Cluster>) {
    let (pools, one) = connect(&cluster, "").await;
    let bytes = content();
    for image in ["bin-a", "bin-b", "bin-c", "bin-d"] {
        import(&cluster, image, &bytes);
        rbd(&cluster, &["snap", "purge", "--no-progress", &spec(image)]).unwrap();
    }
    let ours = id(&one, "bin-a").await;
    one.trash_move(&ours, NOT_AT_ALL).await.unwrap();
    assert!(rbd_trash(&cluster).contains(&format!("{ours} bin-a")));
    rbd(&cluster, &["trash", "restore", &spec(ours.as_str())]).unwrap();
    reads(&cluster, "bin-a", &bytes);
    let theirs = id(&one, "bin-b").await;
    rbd(&cluster, &["trash", "mv", &spec("bin-b"), "--expires-at", "tomorrow"]).unwrap();
    let found = one.trash_list(None, 100).await.unwrap();
    let found = found.into_iter().find(|image| image.id == theirs).unwrap();
    assert_eq!((found.name.as_str(), found.state), ("bin-b", TrashState::Normal));
    refused(one.trash_remove(&theirs, Deferment::Heeded).await, ErrorKind::Invalid);
    one.trash_restore(&theirs, Some(&"bin-e".parse().unwrap())).await.unwrap();
    reads(&cluster, "bin-e", &bytes);
    assert!(!rbd_trash(&cluster).contains(theirs.as_str()));
    // Each keeps to what the other was told, and removes what the other has put there.
    let ours = id(&one, "bin-c").await;
    one.trash_move(&ours, DAY).await.unwrap();
    let remove = ["trash", "rm", "--no-progress", &spec(ours.as_str())];
    assert!(rbd(&cluster, &remove).is_err());
    rbd(&cluster, &[&remove[..], &["--force"]].concat()).unwrap();
    refused(one.get(&ours).await, ErrorKind::NotFound);
    let theirs = id(&one, "bin-d").await;
    rbd(&cluster, &["trash", "mv", &spec("bin-d")]).unwrap();
    one.trash_remove(&theirs, Deferment::Heeded).await.unwrap();
    assert!(!rbd_trash(&cluster).contains(theirs.as_str()));
    let left = cluster.ok("rados", &["--pool", POOLS[0], "ls"]).unwrap();
    for gone in [&ours, &theirs] {
        assert!(!left.contains(gone.as_str()), "{left}");
    }
    let found = one.check(None, Repair::No).await.unwrap();
    assert!(found.iter().all(|finding| !finding.what.contains("trash")), "{found:?}");
    drop(pools);
}

pub(crate) async fn a_clone_reads_a_parent_that_is_in_the_trash(cluster: Arc<Cluster>) {
    let (pools, one) = connect(&cluster, "").await;
    let bytes = content();
    for (parent, layering) in [("binned", Layering::Sparse), ("binned-too", Layering::CopyUp)] {
        import(&cluster, parent, &bytes);
        let child = format!("of-{parent}");
        clone(&pools, &one, parent, &child, layering).await;
        let gone = id(&one, parent).await;
        match layering {
            Layering::Sparse => drop(rbd(&cluster, &["trash", "mv", &spec(parent)]).unwrap()),
            Layering::CopyUp => drop(one.trash_move(&gone, NOT_AT_ALL).await.unwrap()),
        }
        let image = open(&pools, &one, &child, Open::Own).await;
        assert_reads(&image, &bytes, "the clone of what is in the trash").await;
        image.close().await.unwrap();
        let record = one.find(&child.parse().unwrap()).await.unwrap();
        let found = check::check(&pools, &one, Some(&record.id), Repair::No).await.unwrap();
        assert_eq!(found, []);
        refused(one.trash_remove(&gone, Deferment::Ignored).await, ErrorKind::HasChildren);
        if layering == Layering::CopyUp {
            reads(&cluster, &child, &bytes);
        }
        admin::remove(&pools, &one, &record.id).await.unwrap();
        one.trash_remove(&gone, Deferment::Ignored).await.unwrap();
    }
}

async fn clone(
    pools: &Pools<CephCatalog<Pool>>,
    one: &CephCatalog<Pool>,
    parent: &str,
    child: &str,
    layering: Layering,
) {
    let parent = one.find(&parent.parse().unwrap()).await.unwrap();
    let snapshot = parent.snapshot(&"s".parse().unwrap()).unwrap().clone();
    let options = vellum_image::CloneOptions { layering: Some(layering), ..Default::default() };
    let name = child.parse().unwrap();
    admin::clone(pools, one, &parent, &snapshot, one, name, options).await.unwrap();
}

pub(crate) async fn a_sparse_image_in_the_trash_is_not_removed_by_rbd(cluster: Arc<Cluster>) {
    let (pools, one) = connect(&cluster, "").await;
    let options = CreateOptions { layering: Layering::Sparse, ..CreateOptions::default() };
    let name = "bin-sparse".parse().unwrap();
    let image = admin::create(&one, name, 1 << 20, options).await.unwrap().id;
    one.trash_move(&image, NOT_AT_ALL).await.unwrap();
    assert!(rbd(&cluster, &["trash", "rm", "--no-progress", &spec(image.as_str())]).is_err());
    rbd(&cluster, &["trash", "restore", &spec(image.as_str())]).unwrap();
    let opened = open(&pools, &one, "bin-sparse", Open::Own).await;
    assert_reads(&opened, &vec![0; 1 << 20], "the image").await;
    opened.close().await.unwrap();
    one.trash_move(&image, NOT_AT_ALL).await.unwrap();
    one.trash_remove(&image, Deferment::Heeded).await.unwrap();
}

pub(crate) async fn what_is_open_with_librbd_is_neither_moved_nor_removed(cluster: Arc<Cluster>) {
    let (pools, one) = connect(&cluster, "").await;
    import(&cluster, "opened", &content());
    let image = id(&one, "opened").await;
    let mut librbd = Librbd::start(&cluster, POOLS[0], "").unwrap();
    let mut ask = |op: &str| {
        let request = serde_json::json!({
            "op": op, "image": "opened", "offset": 0, "length": 4096, "byte": 7,
        });
        librbd.ask(&request).unwrap();
    };
    ask("open");
    ask("write");
    refused(one.trash_move(&image, DAY).await, ErrorKind::InUse);
    refused(admin::remove(&pools, &one, &image).await, ErrorKind::InUse);
    ask("write");
    ask("close");
    admin::remove(&pools, &one, &image).await.unwrap();
}

/// What of a move to the trash, or back, was done when somebody died.
struct Halves {
    pool: Pool,
    one: CephCatalog<Pool>,
    cluster: Arc<Cluster>,
    image: ImageId,
}

impl Halves {
    async fn new(cluster: Arc<Cluster>) -> Self {
        let (_, one) = connect(&cluster, "").await;
        rbd(&cluster, &["create", "--size", "1M", &spec("half")]).unwrap();
        let options = vellum_rados::librados::Options {
            conf: Some(cluster.conf()),
            ..vellum_rados::librados::Options::default()
        };
        let client = vellum_rados::librados::Cluster::connect(options).await.unwrap();
        let pool = client.pool(POOLS[0], "").await.unwrap();
        let image = id(&one, "half").await;
        Self { pool, one, cluster, image }
    }

    async fn write(&self, object: &str, op: WriteOp) {
        self.pool.write(object, &SnapContext::default(), op).await.unwrap();
    }

    async fn call(&self, object: &str, call: Call) {
        self.write(object, WriteOp::new().call(CLASS, call.method, call.input)).await;
    }

    fn id(&self) -> vellum_rbd::Text {
        self.image.as_str().into()
    }

    /// So many of the steps into the trash.
    async fn put(&self, steps: usize) {
        let time = Time { seconds: 1 << 30, nanoseconds: 0 };
        let trashed =
            Trashed { source: 0, name: "half".into(), since: time, until: time, state: 1 };
        self.call(TRASH, trash::trash_add(self.id(), trashed)).await;
        if steps > 1 {
            self.write(&id_object("half"), WriteOp::new().remove()).await;
        }
        if steps > 2 {
            self.call(DIRECTORY, directory::dir_remove_image("half".into(), self.id())).await;
        }
        if steps > 3 {
            self.call(TRASH, trash::trash_state_set(self.id(), 0, 1)).await;
        }
    }

    /// So many of the steps back from it.
    async fn restore(&self, steps: usize) {
        self.call(TRASH, trash::trash_state_set(self.id(), 3, 0)).await;
        if steps > 1 {
            let set = id_method::set_id(self.id());
            let op = WriteOp::new().create(true).call(CLASS, set.method, set.input);
            self.write(&id_object("half"), op).await;
        }
        if steps > 2 {
            self.call(DIRECTORY, directory::dir_add_image("half".into(), self.id())).await;
        }
    }

    fn rbd(&self, arguments: &[&str]) -> std::result::Result<String, String> {
        rbd(&self.cluster, arguments)
    }

    fn by_id(&self) -> String {
        spec(self.image.as_str())
    }

    /// It is there as if nothing had been, and nowhere else.
    async fn is_back(&self, told: &str) {
        let is_there = self.rbd(&["info", &spec("half")]);
        assert!(is_there.is_ok(), "{told}: {is_there:?}");
        assert!(!rbd_trash(&self.cluster).contains(self.image.as_str()), "{told}");
        assert_eq!(id(&self.one, "half").await, self.image, "{told}");
        let found = self.one.check(Some(&self.image), Repair::No).await.unwrap();
        assert_eq!(found, [], "{told}");
    }
}

pub(crate) async fn each_finishes_what_the_other_began(cluster: Arc<Cluster>) {
    let half = Halves::new(cluster).await;
    for steps in 1..=3 {
        let told = format!("after {steps} steps");
        // Into the trash: by whoever moves it there again, by its name, or brings it back once that is gone.
        half.put(steps).await;
        half.one
            .trash_move(&half.image, NOT_AT_ALL)
            .await
            .map(drop)
            .or_else(|error| {
                if steps == 3 && error.kind() == ErrorKind::Invalid { Ok(()) } else { Err(error) }
            })
            .unwrap();
        half.one.trash_restore(&half.image, None).await.unwrap();
        half.is_back(&told).await;
        half.put(steps).await;
        if steps == 1 {
            half.rbd(&["trash", "mv", &spec("half")]).unwrap();
        } else {
            half.one.check(None, Repair::Safe).await.unwrap();
            if steps == 2 {
                half.one.trash_move(&half.image, NOT_AT_ALL).await.unwrap();
            }
        }
        half.rbd(&["trash", "restore", &half.by_id()]).unwrap();
        half.is_back(&told).await;
        // And back.
        half.put(4).await;
        half.restore(steps).await;
        half.rbd(&["trash", "restore", &half.by_id()]).unwrap();
        half.is_back(&told).await;
        half.put(4).await;
        half.restore(steps).await;
        half.one.trash_restore(&half.image, None).await.unwrap();
        half.is_back(&told).await;
    }
    // A removal, which `rbd` goes on with.
    half.put(4).await;
    half.call(TRASH, trash::trash_state_set(half.id(), 2, 0)).await;
    refused(half.one.trash_restore(&half.image, None).await, ErrorKind::InUse);
    let found = half.one.check(None, Repair::Safe).await.unwrap();
    assert!(found.iter().any(|it| it.what.contains("rbd trash rm") && it.stands()), "{found:?}");
    let gone = WriteOp::new().set_omap(vellum_ceph::keys::REMOVED, "");
    half.write(&header(half.image.as_str()), gone).await;
    half.rbd(&["trash", "rm", "--no-progress", &half.by_id()]).unwrap();
    assert!(!rbd_trash(&half.cluster).contains(half.image.as_str()));
}
