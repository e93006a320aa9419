//! [`HeadMap`]: RBD's object map of a plain image that this client owns, kept right.
//!
//! A map says of an object that it is not there, which is a promise, or that it may be. So an object is entered before it is made or
//! changed, and taken out after it was removed; and what else says so comes after the map does. Which objects have changed since the
//! last snapshot is told by the same two bits (fast-diff).
//!
//! A map that cannot be kept is marked in the header, so that nobody believes it; `rbd object-map rebuild` makes it anew.

use std::collections::BTreeSet;
use std::ops::Range;

use futures::future::try_join_all;
use parking_lot::Mutex;
use vellum_core::ObjectNo;
use vellum_engine::{ErrorKind, ImageId, Result};
use vellum_rados::{Failure, Found, Objects, ReadOp, ReadStep, SnapContext, SnapId, WriteOp};
use vellum_rbd::features::flag;
use vellum_rbd::lock::{ATTRIBUTE_PREFIX, IMAGE, Kind, Lock, ask};
use vellum_rbd::method::{CLASS, Call, data, header as header_method};
use vellum_rbd::object_map::{Existence, ObjectMap, UPDATE_MAX};
use vellum_rbd::{Decode, Encode, Features, names};

use crate::catalog::CephCatalog;
use crate::described::Described;
use crate::error::failed;
use crate::header::write_header;
use crate::presence::Presence;

/// Objects that are entered at once.
const AT_ONCE: usize = 512;
/// Under which the map of an owned image is locked, with an empty cookie and tag, as Ceph's clients do.
const UNNAMED: &str = "";

/// The map of an owned image's head.
#[derive(Debug)]
pub(crate) struct HeadMap<O: Objects> {
    objects: O,
    id: ImageId,
    fast_diff: bool,
    known: Mutex<Known>,
    /// Held by who changes the stored map.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Known {
    map: ObjectMap,
    /// Objects that somebody waits for to be entered.
    wanted: BTreeSet<u64>,
}

impl<O: Objects> HeadMap<O> {
    /// Takes the lock of the map, and reads it. It may tell of more objects than the image has. `None` if the image has none, or one that is not to be believed.
    pub(crate) async fn open(
        catalog: &CephCatalog<O>,
        described: &Described,
    ) -> Result<Option<Self>> {
        let (objects, id) = (catalog.objects(), &described.id);
        let header = &described.header;
        if !header.features.has(Features::OBJECT_MAP)
            || header.flags & flag::OBJECT_MAP_INVALID != 0
        {
            return Ok(None);
        }
        let expected = described.geometry()?.object_count(header.size);
        match load(catalog, id, None).await? {
            // One that tells of more was left by whoever died while the image became smaller, or larger.
            Some(map) if map.objects() >= expected => {
                take_lock(objects, id).await?;
                let fast_diff = header.features.has(Features::FAST_DIFF);
                let known = Mutex::new(Known { map, wanted: BTreeSet::new() });
                let changing = tokio::sync::Mutex::default();
                Ok(Some(Self {
                    objects: objects.clone(),
                    id: id.clone(),
                    fast_diff,
                    known,
                    changing,
                }))
            }
            _ => {
                tracing::warn!(image = %id, "its object map is missing or damaged; see `rbd object-map rebuild`");
                distrust(objects, id).await?;
                Ok(None)
            }
        }
    }

    /// The objects that there may be.
    pub(crate) fn presence(&self) -> Presence {
        presence(&self.known.lock().map)
    }

    /// Enters an object that is about to be made, or changed. Many who want that at once wait for one round trip together.
    pub(crate) async fn expect(&self, object: ObjectNo) -> Result<()> {
        if self.is_entered(object) {
            return Ok(());
        }
        let _alone = self.changing.lock().await;
        while !self.is_entered(object) {
            let wanted: Vec<u64> = self.known.lock().wanted.iter().take(AT_ONCE).copied().collect();
            // Each in an operation of its own: a method sees nothing of what another one changes in the same.
            let entered = wanted.chunk_by(|one, next| one + 1 == *next).map(|run| {
                let end = run[run.len() - 1] + 1;
                self.change(data::object_map_update(run[0], end, Existence::Present as u8, None))
            });
            try_join_all(entered).await?;
            let mut known = self.known.lock();
            for object in wanted {
                known.map.set(object, Existence::Present);
                known.wanted.remove(&object);
            }
        }
        Ok(())
    }

    /// Whether an object counts as changed; noted to be wanted if not.
    fn is_entered(&self, object: ObjectNo) -> bool {
        let mut known = self.known.lock();
        let is_entered = known.map.get(object.0) == Existence::Present;
        if !is_entered {
            known.wanted.insert(object.0);
        }
        is_entered
    }

    /// Enters an object in the maps of snapshots that do not have it, the oldest first, since it is about to be made for all of them.
    pub(crate) async fn expect_in(&self, object: ObjectNo, snapshots: &[u64]) -> Result<()> {
        for (nth, snapshot) in snapshots.iter().rev().enumerate() {
            let to = match self.fast_diff && nth > 0 {
                true => Existence::Clean,
                false => Existence::Present,
            };
            let call = data::object_map_update(object.0, object.0 + 1, to as u8, None);
            let op = WriteOp::new().assert_exists().call(CLASS, call.method, call.input);
            match self.write(Some(*snapshot), op).await {
                // It was removed meanwhile, or has no map.
                Ok(()) | Err(Failure::NOT_FOUND) => {}
                Err(failure) => return Err(self.failed(failure)),
            }
        }
        Ok(())
    }

    /// Notes that an object is about to be removed.
    pub(crate) async fn begin_removal(&self, object: ObjectNo) -> Result<()> {
        self.set(object, Existence::Pending, None).await
    }

    /// Notes that it is gone.
    pub(crate) async fn end_removal(&self, object: ObjectNo) -> Result<()> {
        self.set(object, Existence::Absent, Some(Existence::Pending)).await
    }

    /// Notes that those of some objects that there may be are about to be removed.
    pub(crate) async fn begin_removals(&self, objects: Range<u64>) -> Result<()> {
        self.set_all(objects, Existence::Pending, Existence::Present).await
    }

    /// Notes that they are gone.
    pub(crate) async fn end_removals(&self, objects: Range<u64>) -> Result<()> {
        self.set_all(objects, Existence::Absent, Existence::Pending).await
    }

    async fn set_all(&self, objects: Range<u64>, to: Existence, from: Existence) -> Result<()> {
        let _alone = self.changing.lock().await;
        let end = objects.end.min(self.known.lock().map.objects());
        for start in (objects.start..end).step_by(UPDATE_MAX as usize) {
            let part = start..end.min(start + UPDATE_MAX);
            let (to_bits, from_bits) = (to as u8, Some(from as u8));
            self.change(data::object_map_update(part.start, part.end, to_bits, from_bits)).await?;
            let mut known = self.known.lock();
            for object in part {
                let now = known.map.get(object);
                // What has not changed is there as well.
                if now == from || (from, now) == (Existence::Present, Existence::Clean) {
                    known.map.set(object, to);
                }
            }
        }
        Ok(())
    }

    /// How many objects it tells of.
    pub(crate) fn objects(&self) -> u64 {
        self.known.lock().map.objects()
    }

    /// Has it tell of so many objects. Those that are left out are not there.
    pub(crate) async fn resize(&self, objects: u64) -> Result<()> {
        let _alone = self.changing.lock().await;
        self.change(data::object_map_resize(objects, Existence::Absent as u8)).await?;
        self.known.lock().map.resize(objects);
        Ok(())
    }

    async fn set(&self, object: ObjectNo, to: Existence, from: Option<Existence>) -> Result<()> {
        let _alone = self.changing.lock().await;
        let from = from.map(|from| from as u8);
        let call = data::object_map_update(object.0, object.0 + 1, to as u8, from);
        self.change(call).await?;
        self.known.lock().map.set(object.0, to);
        Ok(())
    }

    /// Gives a snapshot that was just taken its map. Nothing is written meanwhile.
    pub(crate) async fn snapshot(&self, snapshot: u64) -> Result<()> {
        let _alone = self.changing.lock().await;
        let bytes = self.known.lock().map.to_bytes();
        let op = WriteOp::new().then(vellum_rados::WriteStep::WriteFull(bytes.into()));
        self.write(Some(snapshot), op).await.map_err(|failure| self.failed(failure))?;
        if self.fast_diff {
            self.change(data::object_map_snap_add()).await?;
            self.known.lock().map.begin_after_snapshot();
        }
        Ok(())
    }

    /// Gives the lock of the map back.
    pub(crate) async fn close(&self) {
        let op = WriteOp::new().assert_exists();
        let op = op.call("lock", "unlock", ask::unlock(IMAGE, UNNAMED));
        // Whoever owns the image next takes it anyway.
        let _ = self.write(None, op).await;
    }

    /// Has the head's map changed, if this client still has it.
    async fn change(&self, call: Call) -> Result<()> {
        let held = ask::assert_locked(IMAGE, Kind::Exclusive, UNNAMED, UNNAMED);
        let op = WriteOp::new().assert_exists().call("lock", "assert_locked", held);
        let op = op.call(CLASS, call.method, call.input);
        self.write(None, op).await.map_err(|failure| self.failed(failure))
    }

    async fn write(&self, snapshot: Option<u64>, op: WriteOp) -> vellum_rados::Result<()> {
        let name = names::object_map(self.id.as_str(), snapshot);
        self.objects.write(&name, &SnapContext::default(), op).await
    }

    fn failed(&self, failure: Failure) -> vellum_engine::Error {
        failed(failure, format!("keep the object map of image {}", self.id))
    }
}

/// Which objects there may be, by a map.
pub(crate) fn presence(map: &ObjectMap) -> Presence {
    let mut presence = Presence::default();
    for object in (0..map.objects()).filter(|object| map.get(*object) != Existence::Absent) {
        presence.insert(object);
    }
    presence
}

/// The map of a snapshot, if it has one that is to be believed.
pub(crate) async fn of_snapshot<O: Objects>(
    catalog: &CephCatalog<O>,
    described: &Described,
    snapshot: u64,
) -> Result<Option<Presence>> {
    let header = &described.header;
    let flags = header.snapshots.get(&snapshot).map_or(u64::MAX, |snapshot| snapshot.flags);
    if !header.features.has(Features::OBJECT_MAP) || flags & flag::OBJECT_MAP_INVALID != 0 {
        return Ok(None);
    }
    let map = load(catalog, &described.id, Some(snapshot)).await?;
    let size = described.size(Some(snapshot)).unwrap_or(0);
    let expected = described.geometry()?.object_count(size);
    Ok(map.filter(|map| map.objects() == expected).map(|map| presence(&map)))
}

/// A map as it is stored; `None` if there is none, or it is damaged.
async fn load<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    snapshot: Option<u64>,
) -> Result<Option<ObjectMap>> {
    let doing = || format!("read an object map of image {id}");
    let name = names::object_map(id.as_str(), snapshot);
    match catalog.ask(&name, data::object_map_load(), doing).await {
        Err(error) if [ErrorKind::Corrupt, ErrorKind::Io].contains(&error.kind()) => Ok(None),
        found => found,
    }
}

/// What becomes of the maps when a snapshot was removed: what had changed since the one before counts as changed in the next one.
pub(crate) async fn snapshot_removed<O: Objects>(
    catalog: &CephCatalog<O>,
    described: &Described,
    snapshot: u64,
) -> Result<()> {
    let header = &described.header;
    if !header.features.has(Features::FAST_DIFF) {
        return Ok(());
    }
    let id = &described.id;
    let Some(map) = load(catalog, id, Some(snapshot)).await? else { return Ok(()) };
    let next = header.snapshots.range(snapshot + 1..).next().map(|(next, _)| *next);
    let call = data::object_map_snap_remove(map);
    let op = WriteOp::new().assert_exists().call(CLASS, call.method, call.input);
    let name = names::object_map(id.as_str(), next);
    match catalog.objects().write(&name, &SnapContext::default(), op).await {
        Ok(()) | Err(Failure::NOT_FOUND) => Ok(()),
        Err(failure) => {
            tracing::warn!(image = %id, "its object map does not tell any more what has changed: {failure}");
            set_flags(catalog.objects(), id, flag::FAST_DIFF_INVALID).await
        }
    }
}

/// Marks the map of the head as one that is not to be believed.
async fn distrust<O: Objects>(objects: &O, id: &ImageId) -> Result<()> {
    set_flags(objects, id, flag::OBJECT_MAP_INVALID | flag::FAST_DIFF_INVALID).await
}

async fn set_flags<O: Objects>(objects: &O, id: &ImageId, flags: u64) -> Result<()> {
    let call = header_method::set_flags(flags, flags, names::HEAD);
    let op = WriteOp::new().assert_exists().call(CLASS, call.method, call.input);
    let done = write_header(objects, id, op).await;
    done.map_err(|failure| failed(failure, format!("mark the object map of image {id}")))
}

/// Takes the lock of the map. Who owns the image has a right to it, whoever held it before.
async fn take_lock<O: Objects>(objects: &O, id: &ImageId) -> Result<()> {
    let name = names::object_map(id.as_str(), None);
    let doing = || format!("lock the object map of image {id}");
    let write = async |op: WriteOp| objects.write(&name, &SnapContext::default(), op).await;
    loop {
        let asked = ask::lock(IMAGE, Kind::Exclusive, UNNAMED, UNNAMED);
        let op = WriteOp::new().assert_exists().call("lock", "lock", asked);
        match write(op).await {
            // It has it already.
            Ok(()) | Err(Failure::EXISTS) => return Ok(()),
            Err(Failure::BUSY) => {}
            Err(failure) => return Err(failed(failure, doing())),
        }
        let op = ReadOp::new().then(ReadStep::Xattrs);
        let found = objects.read(&name, SnapId::HEAD, op).await.result;
        let (_, found) = found.map_err(|failure| failed(failure, doing()))?;
        let Some(Found::Xattrs(xattrs)) = found.into_iter().next() else { continue };
        let lock = xattrs.get(&format!("{ATTRIBUTE_PREFIX}{IMAGE}"));
        let Some(Ok(lock)) = lock.map(|bytes| Lock::from_bytes(bytes)) else { continue };
        for holder in lock.holders.keys() {
            let asked = ask::break_lock(IMAGE, holder.entity, &holder.cookie);
            match write(WriteOp::new().assert_exists().call("lock", "break_lock", asked)).await {
                Ok(()) | Err(Failure::NOT_FOUND) => {}
                Err(failure) => return Err(failed(failure, doing())),
            }
        }
    }
}
