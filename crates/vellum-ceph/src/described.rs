//! [`Described`]: all that a header says of an image, with what Vellum keeps there, and the record that this makes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use vellum_core::{Geometry, ImageName, SnapshotName};
use vellum_engine::{
    Below, ChildRef, Error, ErrorKind, ImageId, ImageRecord, Layering, ParentLink, Result,
    Revision, RevisionId, SnapshotId, SnapshotRecord, Version,
};
use vellum_rados::{Found, Objects, ReadOp, ReadStep, SnapId};
use vellum_rbd::lock::{ATTRIBUTE_PREFIX, IMAGE, Lock};
use vellum_rbd::names::{self, key};
use vellum_rbd::records::{Parent, Protection, Purpose, Snapshot};
use vellum_rbd::wire::Time;
use vellum_rbd::{Decode, Encode, Features, Header, Text};

use crate::error::{corrupt, failed, unexpected};
use crate::keys::{self, Elsewhere, HIDDEN_PREFIX, Hash, Key, Sparse};
use crate::states::UNITS_MAX;

/// Keys that are read at once.
const KEYS_AT_ONCE: u64 = 1000;
/// How often reading begins again because the header was changed in between.
const ATTEMPTS: usize = 20;
/// What this program understands.
pub(crate) const UNDERSTOOD: Features = Features(
    Features::LAYERING.0
        | Features::STRIPING.0
        | Features::EXCLUSIVE_LOCK.0
        | Features::OBJECT_MAP.0
        | Features::FAST_DIFF.0
        | Features::DEEP_FLATTEN.0
        | Features::DATA_POOL.0
        | Features::OPERATIONS.0,
);
/// Bytes in a block of an image that other tools made.
const BLOCK: u64 = 4096;

type Keys = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a header says, at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    pub(crate) id: ImageId,
    /// As of which version of the object.
    pub(crate) version: u64,
    pub(crate) header: Header,
    pub(crate) sparse: Option<Sparse>,
    pub(crate) elsewhere: Option<Elsewhere>,
    /// Up to how many bytes objects may be left beyond its end.
    pub(crate) trim: Option<u64>,
    /// Snapshots that go with their last child.
    pub(crate) auto: BTreeSet<u64>,
    /// Snapshots that the cluster was not told of yet that they are gone.
    pub(crate) dropped: BTreeSet<u64>,
    /// Children outside this cluster, with the snapshot that each hangs on.
    pub(crate) children_elsewhere: Vec<(u64, ChildRef)>,
    /// Who reads the head, by client and watch.
    pub(crate) readers: Vec<(u64, u64)>,
    /// Who holds the lock, and how.
    pub(crate) lock: Option<Lock>,
    /// Whether it is being removed.
    is_removed: bool,
    /// What makes it another image for those who look at its record.
    fingerprint: u64,
}

/// Where an image is: its pool, and the namespace in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Home {
    pub(crate) cluster: [u8; 16],
    pub(crate) pool: i64,
    pub(crate) namespace: String,
}

impl Described {
    /// What the header of an image says. `None` if there is no such image, or it is being removed.
    pub(crate) async fn read<O: Objects>(objects: &O, id: &ImageId) -> Result<Option<Self>> {
        Ok(Self::read_whatever(objects, id).await?.filter(|found| !found.is_removed()))
    }

    /// The same, also of an image that is being removed.
    pub(crate) async fn read_whatever<O: Objects>(
        objects: &O,
        id: &ImageId,
    ) -> Result<Option<Self>> {
        let doing = || format!("read the header of image {id}");
        for _ in 0..ATTEMPTS {
            let Some((version, keys, lock)) = read_keys(objects, id).await? else {
                return Ok(None);
            };
            let Some(keys) = keys else { continue };
            return Self::of(id.clone(), version, keys, lock).map(Some);
        }
        Err(Error::new(ErrorKind::Busy, format!("{}: it changes all the time", doing())))
    }

    /// Whether it is being removed.
    pub(crate) fn is_removed(&self) -> bool {
        self.is_removed
    }

    fn of(id: ImageId, version: u64, mut keys: Keys, lock: Option<Vec<u8>>) -> Result<Self> {
        let wrong = |key: &str| format!("key {key} of the header of image {id}");
        let fingerprint = fingerprint(&keys);
        let is_removed = keys.remove(keys::REMOVED.as_bytes()).is_some();
        let sparse = take::<Sparse>(&mut keys, keys::SPARSE)
            .map_err(|why| corrupt(wrong(keys::SPARSE), why))?;
        match &sparse {
            Some(sparse) => drop(keys.insert(key::OBJECT_PREFIX.into(), sparse.prefix.to_bytes())),
            None if keys
                .get(key::OBJECT_PREFIX.as_bytes())
                .is_some_and(|it| it == HIDDEN_PREFIX) =>
            {
                return Err(Error::corrupt(format!("{} is missing", wrong(keys::SPARSE))));
            }
            None => {}
        }
        let elsewhere =
            take(&mut keys, keys::PARENT).map_err(|why| corrupt(wrong(keys::PARENT), why))?;
        let trim = take(&mut keys, keys::TRIM).map_err(|why| corrupt(wrong(keys::TRIM), why))?;
        let lock = lock.map(|bytes| Lock::from_bytes(&bytes)).transpose();
        let lock = lock.map_err(|why| corrupt(format!("the lock of image {id}"), why))?;
        let header =
            Header::read(&keys).map_err(|why| corrupt(format!("the header of image {id}"), why))?;
        let mut described = Self {
            id,
            version,
            header,
            sparse,
            elsewhere,
            trim,
            auto: BTreeSet::new(),
            dropped: BTreeSet::new(),
            children_elsewhere: Vec::new(),
            readers: Vec::new(),
            lock: lock.filter(|lock| !lock.holders.is_empty()),
            is_removed,
            fingerprint,
        };
        for key in std::mem::take(&mut described.header.unknown) {
            match key.as_str().and_then(Key::read) {
                Some(Key::Auto(snapshot)) => drop(described.auto.insert(snapshot)),
                Some(Key::Dropped(snapshot)) => drop(described.dropped.insert(snapshot)),
                Some(Key::Child(snapshot, child)) => {
                    described.children_elsewhere.push((snapshot, child));
                }
                Some(Key::Reader(client, watch)) => described.readers.push((client, watch)),
                None => {}
            }
        }
        described.check_understood()?;
        Ok(described)
    }

    fn check_understood(&self) -> Result<()> {
        if let Some(sparse) = &self.sparse {
            let (block, geometry) = (u64::from(sparse.block_size), self.geometry()?);
            let units = geometry.object_size() / block;
            if !geometry.accepts_block_size(block) || units > UNITS_MAX {
                let what = format!("image {} cannot have blocks of {block} bytes", self.id);
                return Err(Error::corrupt(what));
            }
        }
        let features = self.header.features.not_understood(false, UNDERSTOOD);
        if features == Features(0) {
            return Ok(());
        }
        let what = format!("image {} has features that this program lacks: {features}", self.id);
        Err(Error::new(ErrorKind::Unsupported, what))
    }

    /// How the image is striped.
    pub(crate) fn geometry(&self) -> Result<Geometry> {
        let object_size = self.header.object_size();
        let (unit, count) = self.header.striping.unwrap_or((object_size, 1));
        Geometry::new(object_size, unit, count)
            .map_err(|why| corrupt(format!("the striping of image {}", self.id), why))
    }

    /// Bytes in a block.
    pub(crate) fn block_size(&self, geometry: &Geometry) -> u64 {
        match &self.sparse {
            Some(sparse) => u64::from(sparse.block_size),
            None => BLOCK.min(geometry.stripe_unit()),
        }
    }

    /// The size and the overlap of the head, or of a snapshot. `None` if there is no such snapshot.
    fn of_revision(&self, snapshot: Option<u64>) -> Option<(u64, Option<u64>)> {
        match snapshot {
            None => {
                let overlap = self.header.parent.as_ref().and_then(|parent| parent.head_overlap);
                Some((self.header.size, overlap.or(self.seen_elsewhere(None))))
            }
            Some(id) => {
                let snapshot = self.header.snapshots.get(&id)?;
                let elsewhere = self.seen_elsewhere(Some(id));
                let elsewhere = elsewhere.map(|overlap| overlap.min(snapshot.size));
                Some((snapshot.size, snapshot.parent_overlap.or(elsewhere)))
            }
        }
    }

    /// How much the head, or a snapshot, sees of a parent outside the cluster.
    fn seen_elsewhere(&self, snapshot: Option<u64>) -> Option<u64> {
        self.elsewhere.as_ref()?.seen_by(snapshot)
    }

    /// Whether nobody else sees a parent outside the cluster than this snapshot.
    pub(crate) fn is_last_to_see_elsewhere(&self, snapshot: u64) -> bool {
        let others = self.header.snapshots.keys().filter(|other| **other != snapshot);
        let mut others = others.map(|other| Some(*other)).chain([None]);
        self.seen_elsewhere(Some(snapshot)).is_some()
            && !others.any(|other| self.seen_elsewhere(other).is_some())
    }

    /// Bytes in the image, at its head or at a snapshot.
    pub(crate) fn size(&self, snapshot: Option<u64>) -> Option<u64> {
        self.of_revision(snapshot).map(|(size, _)| size)
    }

    /// How far the head, or a snapshot, sees a parent.
    pub(crate) fn overlap(&self, snapshot: Option<u64>) -> u64 {
        self.of_revision(snapshot).and_then(|(_, overlap)| overlap).unwrap_or(0)
    }

    /// The snapshot that a revision is of, if the image has it; `Some(None)` for its head.
    pub(crate) fn snapshot_of(&self, revision: &RevisionId) -> Option<Option<u64>> {
        keys::snapshot_of(self.id.as_str(), revision)
            .filter(|snapshot| snapshot.is_none_or(|id| self.header.snapshots.contains_key(&id)))
    }

    /// The snapshot of a user that a revision is of.
    pub(crate) fn named_snapshot(&self, revision: &RevisionId) -> Option<(u64, &Snapshot)> {
        let id = self.snapshot_of(revision)??;
        let snapshot = self.header.snapshots.get(&id)?;
        (snapshot.purpose == Purpose::User).then_some((id, snapshot))
    }

    /// The snapshot of a user that has this name.
    pub(crate) fn snapshot_named(&self, name: &SnapshotName) -> Option<u64> {
        let all = self.header.snapshots.iter();
        let mut all = all.filter(|(_, snapshot)| snapshot.purpose == Purpose::User);
        all.find(|(_, snapshot)| snapshot.name == name.as_str().into()).map(|(id, _)| *id)
    }

    /// Whether something hangs on a snapshot.
    pub(crate) fn has_children(&self, snapshot: u64) -> bool {
        self.header.children.get(&snapshot).is_some_and(|children| !children.is_empty())
            || self.children_elsewhere.iter().any(|(on, _)| *on == snapshot)
    }

    /// The parent, and how far it is seen by a revision.
    fn below(&self, home: &Home, snapshot: Option<u64>) -> Below {
        let overlap = self.of_revision(snapshot).and_then(|(_, overlap)| overlap);
        match (overlap, self.parent_link(home)) {
            (Some(overlap), Some(link)) if overlap > 0 => Below::Parent { link, overlap },
            _ => Below::Nothing,
        }
    }

    /// What the image hangs on.
    pub(crate) fn parent_link(&self, home: &Home) -> Option<ParentLink> {
        if let Some(Parent { of, .. }) = &self.header.parent {
            let image = of.image.to_string();
            return Some(ParentLink {
                pool: keys::pool_id(home.cluster, of.pool, &of.namespace.0),
                revision: keys::snapshot_revision(&image, of.snapshot),
                image: ImageId::new(image),
            });
        }
        self.elsewhere.as_ref().map(|parent| ParentLink {
            pool: parent.pool,
            image: ImageId::new(parent.image.to_string()),
            revision: RevisionId::new(parent.revision.to_string()),
        })
    }

    /// The record of the image, which has this name.
    pub(crate) fn record(&self, home: &Home, name: &str) -> Result<ImageRecord> {
        let name: ImageName = name.parse().map_err(|why| {
            let what = format!("the name of image {}", self.id);
            Error::new(ErrorKind::Unsupported, what).with_source(why)
        })?;
        let geometry = self.geometry()?;
        let ids = self.header.snapshots.keys().map(|id| Some(*id));
        let revisions = ids.chain([None]).map(|snapshot| Revision {
            id: self.revision(snapshot),
            size: self.size(snapshot).unwrap_or(0),
            below: self.below(home, snapshot),
            sealed: snapshot.is_some(),
        });
        let mut version = Hash(self.fingerprint);
        version.take(name.as_str().as_bytes());
        Ok(ImageRecord {
            id: self.id.clone(),
            version: Version(version.0),
            geometry,
            layering: if self.sparse.is_some() { Layering::Sparse } else { Layering::CopyUp },
            block_size: self.block_size(&geometry) as u32,
            created: time(self.header.created),
            head: self.revision(None),
            revisions: revisions.collect(),
            snapshots: self.snapshots(),
            meta: self.meta(),
            name,
        })
    }

    fn revision(&self, snapshot: Option<u64>) -> RevisionId {
        let id = self.id.as_str();
        snapshot.map_or_else(|| keys::head_revision(id), |id_of| keys::snapshot_revision(id, id_of))
    }

    /// The snapshots that users know, the oldest first.
    fn snapshots(&self) -> Vec<SnapshotRecord> {
        let all = self.header.snapshots.iter();
        all.filter(|(_, snapshot)| snapshot.purpose == Purpose::User)
            .filter_map(|(id, snapshot)| {
                Some(SnapshotRecord {
                    id: snapshot_id(*id),
                    name: snapshot.name.as_str()?.parse().ok()?,
                    revision: self.revision(Some(*id)),
                    auto: self.auto.contains(id),
                    created: time(snapshot.time),
                })
            })
            .collect()
    }

    fn meta(&self) -> BTreeMap<String, String> {
        let all = self.header.metadata.iter();
        all.map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }
}

/// The id that the record of a snapshot has, from its number.
pub(crate) fn snapshot_id(number: u64) -> SnapshotId {
    SnapshotId::new(format!("{number:x}"))
}

/// The number of a snapshot from the id that its record has.
pub(crate) fn snapshot_number(id: &SnapshotId) -> Option<u64> {
    u64::from_str_radix(id.as_str(), 16).ok()
}

/// A time of Ceph's, as the standard library has it.
pub(crate) fn time(time: Time) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(time.seconds.into(), time.nanoseconds.min(999_999_999))
}

fn take<T: Decode>(keys: &mut Keys, key: &str) -> vellum_rbd::wire::Result<Option<T>> {
    keys.remove(key.as_bytes()).map(|value| T::from_bytes(&value)).transpose()
}

/// The same for the same record, and another one for another, but for chance: of all keys but those that change without it.
fn fingerprint(keys: &Keys) -> u64 {
    let mut hash = Hash::default();
    let passing = |name: &[u8]| {
        let text = String::from_utf8_lossy(name);
        [key::ACCESSED, key::MODIFIED, key::FLAGS, keys::TRIM].contains(&&*text)
            || text.starts_with("snap_children_")
            || matches!(Key::read(&text), Some(Key::Reader(..) | Key::Dropped(_) | Key::Child(..)))
    };
    for (name, value) in keys.iter().filter(|(name, _)| !passing(name)) {
        hash.take(name);
        hash.take(&record_part(name, value));
    }
    hash.0
}

/// What of a value makes a record another one: not how many children a snapshot has, nor what was noted for them, nor whether it is
/// protected.
fn record_part(name: &[u8], value: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(name);
    if key::snapshot_id(&text).is_some()
        && let Ok(snapshot) = Snapshot::from_bytes(value)
    {
        let protection = Protection::default();
        return Snapshot { children: 0, flags: 0, protection, ..snapshot }.to_bytes();
    }
    // A parent of children has this bit, and the feature with it.
    if text == key::OPERATIONS || text == key::FEATURES {
        return Vec::new();
    }
    value.to_vec()
}

/// All keys of a header and its lock, at one moment, and as of which version; no keys if it changed in between. `None` if there is
/// no header.
async fn read_keys<O: Objects>(
    objects: &O,
    id: &ImageId,
) -> Result<Option<(u64, Option<Keys>, Option<Vec<u8>>)>> {
    let (name, mut all, mut after) = (names::header(id.as_str()), Keys::new(), String::new());
    let mut first: Option<(u64, Option<Vec<u8>>)> = None;
    loop {
        let keys = ReadStep::Omap { after, prefix: String::new(), max: KEYS_AT_ONCE };
        let op = ReadOp::new().then(ReadStep::Xattrs).then(keys);
        let done = objects.read(&name, SnapId::HEAD, op).await;
        let found = match done.result {
            Ok((_, found)) => found,
            Err(vellum_rados::Failure::NOT_FOUND) if first.is_none() => return Ok(None),
            Err(failure) => return Err(failed(failure, format!("read the header of image {id}"))),
        };
        let Ok([Found::Xattrs(mut xattrs), Found::Omap { values, more }]) =
            <[Found; 2]>::try_from(found)
        else {
            return Err(unexpected());
        };
        let lock = xattrs.remove(&format!("{ATTRIBUTE_PREFIX}{IMAGE}"));
        let (version, lock) = first.get_or_insert((done.version, lock)).clone();
        if version != done.version {
            return Ok(Some((version, None, lock)));
        }
        let last = values.last_key_value().map(|(key, _)| String::from_utf8_lossy(key).into());
        all.extend(values);
        match last {
            Some(last) if more => after = last,
            _ => return Ok(Some((version, Some(all), lock))),
        }
    }
}

/// Text as the header has it.
pub(crate) fn text(text: impl AsRef<str>) -> Text {
    text.as_ref().into()
}
