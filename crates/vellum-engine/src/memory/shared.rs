//! Objects that the revisions of an image share, for a store whose snapshots are native.

use vellum_core::{Extent, ObjectNo, State as UnitState};

use super::State;
use super::head::MemoryHead;
use super::layer::Stored;
use crate::{Catalog, Error, ErrorKind, Fill, ImageId, ImageRecord, Part, Result, Snapshots};

impl State {
    /// The revision under which these objects must be filled before the head may touch them, and which they are: those that
    /// are absent from all revisions of an image, where older ones see the parent through that.
    fn absent(&self, image: &ImageId, at: Extent) -> Result<Vec<ObjectNo>> {
        let record = self.images.get(image)?;
        let Some((_, _, overlap)) = record.parent() else { return Ok(Vec::new()) };
        if record.revisions.len() == 1 {
            return Ok(Vec::new());
        }
        let (geometry, size) = (record.geometry, record.size());
        let mut objects: Vec<ObjectNo> = geometry.objects(at).map(|piece| piece.object).collect();
        objects.dedup();
        objects.retain(|object| {
            let mut parts = geometry.object_image_extents(*object, size);
            parts.any(|part| part.offset() < overlap) && !self.defines(record, *object)
        });
        Ok(objects)
    }

    /// Whether a revision of the image defines something of an object.
    fn defines(&self, record: &ImageRecord, object: ObjectNo) -> bool {
        let parts: Vec<Extent> =
            record.geometry.object_image_extents(object, record.size()).collect();
        record.revisions.iter().any(|revision| {
            let content = self.stored[&revision.id].lock().now.clone();
            parts.iter().any(|part| !content.all_states(*part).all(UnitState::Inherited))
        })
    }
}

impl MemoryHead {
    /// Whether it writes an image whose revisions share objects.
    fn shares_objects(&self) -> bool {
        self.owns() && self.catalog().capabilities().snapshots == Snapshots::Native
    }

    /// Whether older revisions see the parent through the absence of an object that `at` touches.
    pub(super) fn is_absent_below(&self, at: Extent) -> bool {
        self.shares_objects()
            && self
                .catalog()
                .with(|state| state.absent(self.image(), at))
                .is_ok_and(|absent| !absent.is_empty())
    }

    /// Refuses what must not be touched yet.
    pub(super) fn check_filled(&self, at: Extent) -> Result<()> {
        if !self.is_absent_below(at) {
            return Ok(());
        }
        let what =
            format!("{at} lies in an object that older revisions share, and must be filled first");
        Err(Error::new(ErrorKind::Invalid, what))
    }

    /// Fills what is absent under the oldest revision, durably, and answers what is left to fill in the head.
    pub(super) fn fill_absent(&self, fill: Fill) -> Result<Fill> {
        if !self.shares_objects() {
            return Ok(fill);
        }
        self.catalog().with(|state| {
            let mut left = Vec::new();
            let mut below = Vec::new();
            for part in fill.parts {
                let absent = state.absent(self.image(), part.at)?;
                if absent.is_empty() { left.push(part) } else { below.push(part) }
            }
            if !below.is_empty() {
                let record = state.images.get(self.image())?;
                let (oldest, _, _) = record.parent().expect("an object is absent below a parent");
                define(&state.stored[&oldest.id], below);
            }
            Ok(Fill { parts: left, then: fill.then })
        })
    }
}

fn define(stored: &Stored, parts: Vec<Part>) {
    let mut versions = stored.lock();
    versions.change().fill(stored.units(), &Fill { parts, then: None });
    versions.sync();
}
