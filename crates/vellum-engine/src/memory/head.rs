//! [`MemoryHead`]: the one writer of an image in memory, or the one who fills a sealed revision.

use std::sync::Arc;

use parking_lot::Mutex;
use vellum_core::{Extent, SnapshotName};

use super::catalog::MemoryCatalog;
use super::content::Units;
use super::layer::{MemoryLayer, Stored, Versions};
use super::owners::{Hold, Lock};
use crate::{
    AtomicSpan, Catalog, Committed, Durability, Error, ErrorKind, Fill, Guarded, Head, HeadChange,
    ImageId, ImageRecord, Ownership, Prepared, Requests, Result, SetTo, Write, check_range,
    check_whole_units,
};

/// The one writer of an image. Clones share the ownership.
#[derive(Clone, Debug)]
pub struct MemoryHead(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    catalog: MemoryCatalog,
    image: ImageId,
    layer: MemoryLayer,
    role: Role,
    /// The ownership; none once it was given up or handed to a successor. Held by each change for as long as it lasts, so
    /// that closing and sealing wait for it.
    lock: Mutex<Option<Lock>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Owner,
    Filler,
}

impl MemoryHead {
    pub(crate) fn owner(
        catalog: MemoryCatalog,
        image: ImageId,
        stored: Arc<Stored>,
        lock: Lock,
    ) -> Self {
        Self::new(catalog, image, stored, lock, Role::Owner)
    }

    pub(crate) fn filler(
        catalog: MemoryCatalog,
        image: ImageId,
        stored: Arc<Stored>,
        lock: Lock,
    ) -> Self {
        Self::new(catalog, image, stored, lock, Role::Filler)
    }

    fn new(
        catalog: MemoryCatalog,
        image: ImageId,
        stored: Arc<Stored>,
        lock: Lock,
        role: Role,
    ) -> Self {
        let layer = MemoryLayer::new(stored, None);
        Self(Arc::new(Shared { catalog, image, layer, role, lock: Mutex::new(Some(lock)) }))
    }

    pub(super) fn catalog(&self) -> &MemoryCatalog {
        &self.0.catalog
    }

    pub(super) fn image(&self) -> &ImageId {
        &self.0.image
    }

    /// Whether it is the writer, and has neither a successor nor given the image up.
    pub(super) fn owns(&self) -> bool {
        self.0.role == Role::Owner && self.0.lock.lock().is_some()
    }

    fn units(&self) -> Units {
        self.0.layer.stored().units()
    }

    /// Runs a change of the content, with nothing else going on in this head.
    fn change<T>(&self, sealed: T, change: impl FnOnce(&mut Versions) -> Result<T>) -> Result<T> {
        let lock = self.0.lock.lock();
        let Some(lock) = &*lock else { return Ok(sealed) };
        let mut versions = self.0.layer.stored().lock();
        // Looked at while the content is held, see `MemoryStore::power_cut`.
        if lock.is_lost() {
            return Err(ownership_lost());
        }
        change(&mut versions)
    }

    fn make_durable(&self, versions: &mut Versions, asked: Durability, bytes: u64) {
        versions.unsynced_bytes += bytes;
        if asked == Durability::Durable || self.0.catalog.capabilities().ack_is_durable {
            versions.sync();
        }
    }

    fn check_space(&self, needs_space: bool) -> Result<()> {
        if needs_space && self.0.catalog.store().is_full() {
            let what = "no space is left in this pool; remove images or snapshots";
            return Err(Error::new(ErrorKind::NoSpace, what));
        }
        Ok(())
    }

    fn check_range(&self, at: Extent) -> Result<()> {
        check_range(at, self.units().size)
    }

    fn check_whole_units(&self, at: Extent) -> Result<()> {
        check_whole_units(at, self.units().size, self.units().unit)
    }

    fn check_fill(&self, fill: &Fill) -> Result<()> {
        fill.check_parts(|at| self.check_whole_units(at))?;
        match &fill.then {
            Some(write) => self.check_range(write.extent()),
            None => Ok(()),
        }
    }

    /// Refuses what this store could not do atomically, if it was told to be so.
    fn check_span(&self, extents: impl Iterator<Item = Extent>) -> Result<()> {
        if self.0.catalog.capabilities().atomic == AtomicSpan::Image {
            return Ok(());
        }
        let image = &self.0.image;
        let geometry =
            self.0.catalog.with(|state| state.images.get(image).map(|record| record.geometry))?;
        let mut objects = extents.flat_map(|at| geometry.objects(at)).map(|piece| piece.object);
        let first = objects.next();
        if objects.all(|object| Some(object) == first) {
            return Ok(());
        }
        let what = "this engine is atomic within one object only, and the request crosses a border";
        Err(Error::new(ErrorKind::Invalid, what))
    }
}

fn ownership_lost() -> Error {
    let what = "the power was cut since the image was opened; open it again";
    Error::new(ErrorKind::OwnershipLost, what)
}

impl Head for MemoryHead {
    type Layer = MemoryLayer;
    type Prepared = MemoryPrepared;

    fn layer(&self) -> &MemoryLayer {
        &self.0.layer
    }

    fn must_fill_first(&self, at: Extent) -> bool {
        self.is_absent_below(at)
    }

    async fn write(&self, write: Write) -> Result<Guarded> {
        if self.0.role == Role::Filler {
            return Ok(Guarded::Sealed);
        }
        let (at, units) = (write.extent(), self.units());
        self.check_range(at)?;
        self.check_span([at].into_iter())?;
        self.check_filled(at)?;
        self.change(Guarded::Sealed, |versions| {
            let missing = versions.now.missing(units, at, write.guard);
            if !missing.is_empty() {
                return Ok(Guarded::Missing(missing));
            }
            self.check_space(versions.now.lacks_data(units, at))?;
            versions.change().write(units, at, &write.data);
            self.make_durable(versions, write.durability, at.length());
            Ok(Guarded::Done)
        })
    }

    async fn fill(&self, fill: Fill) -> Result<Guarded> {
        if self.0.role == Role::Filler && fill.then.is_some() {
            return Ok(Guarded::Sealed);
        }
        self.check_fill(&fill)?;
        let touched = fill.parts.iter().map(|part| part.at);
        self.check_span(touched.chain(fill.then.iter().map(Write::extent)))?;
        let units = self.units();
        let fill = self.fill_absent(fill)?;
        if let Some(write) = &fill.then {
            self.check_filled(write.extent())?;
        }
        self.change(Guarded::Sealed, |versions| {
            let missing = versions.now.missing_for(units, &fill);
            if !missing.is_empty() {
                return Ok(Guarded::Missing(missing));
            }
            self.check_space(versions.now.fill_needs_space(units, &fill))?;
            versions.change().fill(units, &fill);
            let asked = fill.then.as_ref().map_or(Durability::AtSync, |write| write.durability);
            let parts: u64 = fill.parts.iter().map(|part| part.at.length()).sum();
            self.make_durable(versions, asked, parts);
            Ok(Guarded::Done)
        })
    }

    async fn set(&self, at: Extent, to: SetTo, durability: Durability) -> Result<Guarded> {
        if self.0.role == Role::Filler {
            return Ok(Guarded::Sealed);
        }
        if to == SetTo::Inherit && !self.0.catalog.capabilities().inherit {
            let what = "this engine cannot make a unit inherited again; set it to zero";
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        self.check_whole_units(at)?;
        self.check_span([at].into_iter())?;
        self.check_filled(at)?;
        self.change(Guarded::Sealed, |versions| {
            match to {
                SetTo::Zero => versions.change().set_zero(at),
                SetTo::Inherit => versions.change().set_inherit(at),
            }
            self.make_durable(versions, durability, self.units().unit);
            Ok(Guarded::Done)
        })
    }

    async fn reclaim(&self) -> Result<u64> {
        self.change(0, |versions| {
            versions.sync();
            let freed = versions.change().reclaim();
            versions.sync();
            Ok(freed)
        })
    }

    async fn sync(&self) -> Result<()> {
        self.change((), |versions| {
            versions.sync();
            Ok(())
        })
    }

    fn unsynced_bytes(&self) -> u64 {
        self.0.layer.stored().lock().unsynced_bytes
    }

    fn wants_reclaim(&self) -> bool {
        self.0.layer.stored().lock().now.wants_reclaim()
    }

    async fn prepare(&self, change: HeadChange) -> Result<MemoryPrepared> {
        if self.0.role == Role::Filler || self.0.lock.lock().is_none() {
            let what = "only the head that owns the image can change it, and this one does not";
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        if let HeadChange::Snapshot { name, .. } = &change {
            let image = &self.0.image;
            self.0.catalog.with(|state| state.images.refuse_taken_snapshot(image, name))?;
        }
        Ok(MemoryPrepared { head: self.clone(), change })
    }

    fn ownership(&self) -> Ownership {
        match &*self.0.lock.lock() {
            Some(lock) if !lock.is_lost() => Ownership::Held,
            Some(_) | None => Ownership::Lost,
        }
    }

    fn requests(&self) -> Requests {
        Requests::never()
    }

    async fn close(self) -> Result<()> {
        let result = self.sync().await;
        let lock = self.0.lock.lock().take();
        drop(lock);
        result
    }
}

/// A change of an image in memory that is ready. Nothing of it has happened yet, so there is nothing to undo.
#[derive(Debug)]
pub struct MemoryPrepared {
    head: MemoryHead,
    change: HeadChange,
}

impl Prepared for MemoryPrepared {
    type Head = MemoryHead;

    async fn commit(self) -> Result<Committed<MemoryHead>> {
        let Self { head, change } = self;
        let mut lock = head.0.lock.lock();
        match &*lock {
            Some(lock) if lock.is_lost() => return Err(ownership_lost()),
            Some(_) => {}
            None => {
                let what = "the image has another head by now; take that and try again";
                return Err(Error::new(ErrorKind::Conflict, what));
            }
        }
        let committed = match change {
            HeadChange::Snapshot { name, auto } => snapshot(&head, name, auto)?,
            HeadChange::CutParent => cut_parent(&head)?,
        };
        // Not inside the store's lock, which giving it up takes.
        let handed_over = if committed.successor.is_some() { lock.take() } else { None };
        drop(lock);
        drop(handed_over);
        Ok(committed)
    }
}

fn snapshot(head: &MemoryHead, name: SnapshotName, auto: bool) -> Result<Committed<MemoryHead>> {
    let (catalog, image) = (&head.0.catalog, &head.0.image);
    catalog.with(|state| {
        let record: ImageRecord = state.images.snapshot(image, name, auto)?;
        head.0.layer.stored().lock().sync();
        let stored = state.add_stored(&record);
        let lock = Lock::take(catalog.store(), &mut state.owners, &record.head, Hold::Alone)
            .expect("nobody knows the new revision yet");
        let successor = MemoryHead::owner(catalog.clone(), image.clone(), stored, lock);
        Ok(Committed { record, successor: Some(successor) })
    })
}

fn cut_parent(head: &MemoryHead) -> Result<Committed<MemoryHead>> {
    head.0.catalog.with(|state| {
        head.0.layer.stored().lock().sync();
        let record = state.images.cut_parent(&head.0.image)?;
        Ok(Committed { record, successor: None })
    })
}
