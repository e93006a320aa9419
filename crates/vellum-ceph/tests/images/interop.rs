//! Plain images that librbd and Vellum change in turns, against plain bytes: each reads what the other has written.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use vellum_ceph::CephCatalog;
use vellum_core::{Extent, Geometry, ImageName, SnapshotName};
use vellum_engine::{Catalog, Layering, Repair};
use vellum_image::image::Open;
use vellum_image::{
    CloneOptions, CreateOptions, DiscardPolicy, FlattenOptions, Image, ImageOptions, Job, Pools,
    WriteOptions, ZeroOptions, admin,
};
use vellum_rados::librados::Pool;
use vellum_testkit::Librbd;
use vellum_testkit::ceph::{Cluster, POOLS};

use crate::programs::assert_reads;
use crate::{connect, resize};

/// Images of a real cluster.
type Engine = CephCatalog<Pool>;

/// How often an image changes hands.
const ROUNDS: u32 = 300;
/// After so many rounds everything is looked at.
const ALL: u32 = 25;
const IMAGES_MAX: usize = 7;
const SNAPSHOTS_MAX: usize = 3;
const SIZE_MAX: u64 = 400_000;

/// Who acts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Vellum,
    Librbd,
}

impl Who {
    fn other(self) -> Self {
        match self {
            Self::Vellum => Self::Librbd,
            Self::Librbd => Self::Vellum,
        }
    }
}

/// What an image holds.
#[derive(Clone, Default)]
struct Known {
    head: Vec<u8>,
    snapshots: BTreeMap<String, Vec<u8>>,
    parent: Option<(String, String)>,
}

struct Rounds {
    seed: u64,
    random: StdRng,
    librbd: Librbd,
    pools: Pools<Engine>,
    catalog: Engine,
    images: BTreeMap<String, Known>,
    numbers: u32,
    /// What was done, for whoever reads of a failure.
    log: Vec<String>,
}

pub(crate) async fn rounds(cluster: Arc<Cluster>) {
    let seed = std::env::var("VELLUM_SEED").map_or(1, |seed| seed.parse().unwrap());
    let rounds = std::env::var("VELLUM_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let namespace = "interop";
    let named = format!("{}/{namespace}", POOLS[0]);
    cluster.ok("rbd", &["namespace", "create", &named]).unwrap();
    let (pools, catalog) = connect(&cluster, namespace).await;
    let librbd = Librbd::start(&cluster, POOLS[0], namespace).unwrap();
    let random = StdRng::seed_from_u64(seed);
    let (images, log) = (BTreeMap::new(), Vec::new());
    let mut all = Rounds { seed, random, librbd, pools, catalog, images, numbers: 0, log };
    for round in 1..=rounds {
        all.round().await;
        if round % ALL == 0 {
            all.look_at_all(&cluster, namespace).await;
        }
    }
    let findings = all.catalog.check(None, Repair::No).await.unwrap();
    assert!(findings.is_empty(), "{findings:?}");
}

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

impl Rounds {
    fn number(&mut self) -> u32 {
        self.numbers += 1;
        self.numbers
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    fn who(&mut self) -> Who {
        if self.chance(50) { Who::Vellum } else { Who::Librbd }
    }

    fn note(&mut self, what: String) {
        self.log.push(what);
    }

    /// The last that was done with an image.
    fn story(&self, image: &str) -> String {
        let about = self.log.iter().filter(|line| line.contains(image)).rev().take(12);
        let about: Vec<&str> = about.map(String::as_str).collect();
        format!("seed {}; {} last: {about:#?}", self.seed, image)
    }

    fn ask(&mut self, request: serde_json::Value) {
        if let Err(error) = self.librbd.ask(&request) {
            panic!("{error:#}; {:#?}", self.log.iter().rev().take(12).collect::<Vec<_>>());
        }
    }

    async fn image(&self, of: &str, what: Open) -> Image<Engine> {
        let record = self.catalog.find(&name(of)).await.unwrap();
        let (pools, options) = (&self.pools, ImageOptions::default());
        let opened = Image::open(pools, &self.catalog, &record.id, what, options).await;
        opened.unwrap_or_else(|error| panic!("{}: {}", error.chain(), self.story(of)))
    }

    async fn round(&mut self) {
        if self.images.len() < 2 || (self.images.len() < IMAGES_MAX && self.chance(5)) {
            return self.create().await;
        }
        let nth = self.random.random_range(0..self.images.len());
        let of = self.images.keys().nth(nth).unwrap().clone();
        if self.images.len() < IMAGES_MAX && self.chance(15) {
            return self.clone_of(&of).await;
        }
        if self.images.len() > 4 && self.chance(4) && !self.has_children(&of, None) {
            return self.remove(&of).await;
        }
        let who = self.who();
        for _ in 0..self.random.random_range(1..5) {
            self.act(who, &of).await;
        }
        self.look(who.other(), &of).await;
        if self.chance(30) {
            self.look(who, &of).await;
        }
    }

    async fn create(&mut self) {
        let (new, who) = (format!("image{}", self.number()), self.who());
        let size = self.random.random_range(1..SIZE_MAX);
        let geometry = match self.chance(40) {
            true => Geometry::new(32 << 10, 8 << 10, 3).unwrap(),
            false => Geometry::unstriped(64 << 10).unwrap(),
        };
        self.note(format!("{who:?} creates {new} of {size} bytes, {geometry:?}"));
        match who {
            Who::Vellum => {
                let options = CreateOptions {
                    geometry,
                    layering: Layering::CopyUp,
                    block_size: 4096,
                    meta: BTreeMap::new(),
                };
                admin::create(&self.catalog, name(&new), size, options).await.unwrap();
            }
            Who::Librbd => self.ask(json!({
                "op": "create", "image": new, "size": size,
                "order": geometry.object_size().trailing_zeros(),
                "stripe_unit": geometry.stripe_unit(), "stripe_count": geometry.stripe_count(),
            })),
        }
        let head = vec![0; size as usize];
        self.images.insert(new, Known { head, ..Known::default() });
    }

    async fn clone_of(&mut self, of: &str) {
        let Some((snapshot, bytes)) = self.some_snapshot(of) else { return };
        let (new, who) = (format!("clone{}", self.number()), self.who());
        self.note(format!("{who:?} clones {of}@{snapshot} as {new}"));
        match who {
            Who::Vellum => {
                let parent = self.catalog.find(&name(of)).await.unwrap();
                let named: SnapshotName = snapshot.parse().unwrap();
                let frozen = parent.snapshot(&named).unwrap().clone();
                let geometry = self.chance(50).then(|| Geometry::unstriped(16 << 10).unwrap());
                let layering = Some(Layering::CopyUp);
                let options = CloneOptions { geometry, layering, ..CloneOptions::default() };
                let (pools, catalog) = (&self.pools, &self.catalog);
                admin::clone(pools, catalog, &parent, &frozen, catalog, name(&new), options)
                    .await
                    .unwrap();
            }
            Who::Librbd => {
                self.ask(json!({"op": "clone", "image": new, "parent": of, "snapshot": snapshot}));
            }
        }
        let parent = Some((of.to_owned(), snapshot));
        self.images.insert(new, Known { head: bytes, snapshots: BTreeMap::new(), parent });
    }

    fn some_snapshot(&mut self, of: &str) -> Option<(String, Vec<u8>)> {
        let count = self.images[of].snapshots.len();
        let nth = (count > 0).then(|| self.random.random_range(0..count))?;
        let (name, bytes) = self.images[of].snapshots.iter().nth(nth)?;
        Some((name.clone(), bytes.clone()))
    }

    fn has_children(&self, of: &str, snapshot: Option<&str>) -> bool {
        let mut parents = self.images.values().filter_map(|image| image.parent.as_ref());
        parents.any(|(parent, on)| parent == of && snapshot.is_none_or(|snapshot| snapshot == on))
    }

    async fn remove(&mut self, of: &str) {
        self.note(format!("Vellum removes {of}"));
        let record = self.catalog.find(&name(of)).await.unwrap();
        let removed = admin::remove(&self.pools, &self.catalog, &record.id).await;
        removed.unwrap_or_else(|error| panic!("{}: {}", error.chain(), self.story(of)));
        self.images.remove(of);
    }

    async fn act(&mut self, who: Who, of: &str) {
        match self.random.random_range(0..100) {
            0..55 => self.write(who, of).await,
            55..72 => self.zero(who, of).await,
            72..80 => self.discard(who, of).await,
            80..88 => self.snapshot(who, of).await,
            88..92 => self.remove_snapshot(who, of).await,
            92..94 => self.flatten(who, of).await,
            _ => self.resize(who, of).await,
        }
    }

    fn somewhere(&mut self, of: &str) -> Option<Extent> {
        let size = self.images[of].head.len() as u64;
        let offset = (size > 0).then(|| self.random.random_range(0..size))?;
        let length = match self.random.random_range(0..3) {
            0 => self.random.random_range(1..=600),
            1 => 4096,
            _ => self.random.random_range(1..=100_000),
        };
        let at = Extent::new(offset, length);
        let at = if self.chance(40) { at.align_out(16 << 10) } else { at };
        Some(at.clip(size))
    }

    fn fill(&mut self, of: &str, at: Extent, byte: u8) {
        self.images.get_mut(of).unwrap().head[at.offset() as usize..at.end() as usize].fill(byte);
    }

    async fn write(&mut self, who: Who, of: &str) {
        let Some(at) = self.somewhere(of) else { return };
        let byte = self.random.random_range(1..=255);
        self.note(format!("{who:?} writes {byte} to {of} at {at}"));
        match who {
            Who::Vellum => {
                let image = self.image(of, Open::Own).await;
                let data = Bytes::from(vec![byte; at.len_usize()]);
                image.write(at.offset(), data, WriteOptions::default()).await.unwrap();
                image.close().await.unwrap();
            }
            Who::Librbd => self.ask(json!({
                "op": "write", "image": of, "offset": at.offset(), "length": at.length(), "byte": byte,
            })),
        }
        self.fill(of, at, byte);
    }

    async fn zero(&mut self, who: Who, of: &str) {
        let Some(at) = self.somewhere(of) else { return };
        self.note(format!("{who:?} zeroes {of} at {at}"));
        match who {
            Who::Vellum => {
                let image = self.image(of, Open::Own).await;
                image.write_zeroes(at, ZeroOptions::default()).await.unwrap();
                image.close().await.unwrap();
            }
            Who::Librbd => self.ask(
                json!({"op": "zero", "image": of, "offset": at.offset(), "length": at.length()}),
            ),
        }
        self.fill(of, at, 0);
    }

    /// Vellum may leave objects that are discarded in part as they are, so it discards all of an image.
    async fn discard(&mut self, who: Who, of: &str) {
        let Some(at) = self.somewhere(of) else { return };
        let all = Extent::new(0, self.images[of].head.len() as u64);
        // librbd leaves alone what is no multiple of 4 KiB.
        let at = if who == Who::Vellum { all } else { at.align_in(4096) };
        if at.is_empty() {
            return;
        }
        self.note(format!("{who:?} discards {of} at {at}"));
        match who {
            Who::Vellum => {
                let image = self.image(of, Open::Own).await;
                image.discard(at, DiscardPolicy::Zero, false).await.unwrap();
                image.close().await.unwrap();
            }
            Who::Librbd => self.ask(
                json!({"op": "discard", "image": of, "offset": at.offset(), "length": at.length()}),
            ),
        }
        self.fill(of, at, 0);
    }

    async fn snapshot(&mut self, who: Who, of: &str) {
        if self.images[of].snapshots.len() >= SNAPSHOTS_MAX {
            return;
        }
        let new = format!("s{}", self.number());
        self.note(format!("{who:?} takes {of}@{new}"));
        match who {
            Who::Vellum => {
                let image = self.image(of, Open::Own).await;
                image.snapshot(new.parse().unwrap(), false).await.unwrap();
                image.close().await.unwrap();
            }
            Who::Librbd => self.ask(json!({"op": "snap_create", "image": of, "name": new})),
        }
        let known = self.images.get_mut(of).unwrap();
        known.snapshots.insert(new, known.head.clone());
    }

    async fn remove_snapshot(&mut self, who: Who, of: &str) {
        let Some((snapshot, _)) = self.some_snapshot(of) else { return };
        if self.has_children(of, Some(&snapshot)) {
            return;
        }
        self.note(format!("{who:?} removes {of}@{snapshot}"));
        match who {
            Who::Vellum => {
                let image = self.image(of, Open::Own).await;
                image.remove_snapshot(&snapshot.parse().unwrap()).await.unwrap();
                image.close().await.unwrap();
            }
            Who::Librbd => self.ask(json!({"op": "snap_remove", "image": of, "name": snapshot})),
        }
        self.images.get_mut(of).unwrap().snapshots.remove(&snapshot);
    }

    async fn flatten(&mut self, who: Who, of: &str) {
        if self.images[of].parent.is_none() {
            return;
        }
        self.note(format!("{who:?} flattens {of}"));
        match who {
            Who::Vellum => {
                let image = self.image(of, Open::Own).await;
                image.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
                image.close().await.unwrap();
            }
            Who::Librbd => self.ask(json!({"op": "flatten", "image": of})),
        }
        self.images.get_mut(of).unwrap().parent = None;
    }

    async fn resize(&mut self, who: Who, of: &str) {
        let size = self.random.random_range(1..SIZE_MAX);
        self.note(format!("{who:?} gives {of} {size} bytes"));
        match who {
            Who::Vellum => {
                let resized = resize::resize(&self.pools, &self.catalog, of, size).await;
                resized.unwrap_or_else(|error| panic!("{}: {}", error.chain(), self.story(of)));
            }
            Who::Librbd => self.ask(json!({"op": "resize", "image": of, "size": size})),
        }
        self.images.get_mut(of).unwrap().head.resize(size as usize, 0);
    }

    /// Has somebody read the head, and one of the snapshots.
    async fn look(&mut self, who: Who, of: &str) {
        self.look_at(who, of, None).await;
        if let Some((snapshot, _)) = self.some_snapshot(of) {
            self.look_at(who, of, Some(&snapshot)).await;
        }
    }

    async fn look_at(&mut self, who: Who, of: &str, snapshot: Option<&str>) {
        let known = &self.images[of];
        let expected = snapshot.map_or(&known.head, |snapshot| &known.snapshots[snapshot]).clone();
        let what = format!("{who:?} reads {of}@{snapshot:?}; {}", self.story(of));
        match who {
            Who::Vellum => {
                let open = match snapshot {
                    Some(snapshot) => Open::Snapshot(snapshot.parse().unwrap()),
                    None => Open::Own,
                };
                let image = self.image(of, open).await;
                assert_reads(&image, &expected, &what).await;
                image.close().await.unwrap();
            }
            Who::Librbd => {
                let found = self.librbd.read(of, snapshot).unwrap();
                let differs = found.iter().zip(&expected).position(|(found, byte)| found != byte);
                assert_eq!((found.len(), differs), (expected.len(), None), "{what}");
            }
        }
    }

    /// Both read everything, and `rbd` finds the object maps to be right.
    async fn look_at_all(&mut self, cluster: &Cluster, namespace: &str) {
        for (of, known) in self.images.clone() {
            let snapshots = known.snapshots.keys().map(|snapshot| Some(snapshot.as_str()));
            for snapshot in snapshots.chain([None]) {
                for who in [Who::Vellum, Who::Librbd] {
                    self.look_at(who, &of, snapshot).await;
                }
                let named = snapshot.map_or(of.clone(), |snapshot| format!("{of}@{snapshot}"));
                let spec = format!("{}/{namespace}/{named}", POOLS[0]);
                check_object_map(cluster, &spec, &self.story(&of));
            }
        }
    }
}

/// Has `rbd` compare a map with the objects. One that counts as changed and is not is none of ours alone: whoever discards behind the
/// end of an object enters it, and the cluster changes nothing.
pub(crate) fn check_object_map(cluster: &Cluster, spec: &str, told: &str) {
    let is_invalid = || cluster.ok("rbd", &["info", spec]).unwrap().contains("invalid");
    assert!(!is_invalid(), "{spec}: {told}");
    let mut check = cluster.command("rbd");
    check.args(["object-map", "check", "--no-progress", spec, "--log-to-stderr", "true"]);
    let said = String::from_utf8_lossy(&check.output().unwrap().stderr).into_owned();
    let errors = said.lines().filter(|line| line.contains("object map error"));
    let errors: Vec<_> =
        errors.filter(|line| !line.ends_with("marked as 1, but should be 3")).collect();
    assert!(errors.is_empty(), "{spec}: {errors:#?}; {told}");
    if is_invalid() {
        cluster.ok("rbd", &["object-map", "rebuild", "--no-progress", spec]).unwrap();
    }
}
