//! Children: which images hang on which sealed layer.

use rusqlite::{Connection, OptionalExtension, params};
use vellum_engine::{ChildRef, Error, ErrorKind, ImageId, ParentLink, PoolId, Result, RevisionId};

use super::record::{self, ImageNo, image_bytes, layer_key, layer_of};
use super::{Failure, Outcome, layers, snapshots};
use crate::layer_id::LayerId;

/// A layer of this pool that children hang on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ParentInPool {
    pub image: ImageNo,
    pub layer: LayerId,
}

impl ParentInPool {
    /// The place that a link into this pool means. `NotFound` if it cannot mean any.
    pub(crate) fn of(link: &ParentLink) -> Result<Self> {
        Self::at(&link.image, &link.revision)
    }

    /// The place of a revision. `NotFound` if these are no ids of this engine.
    pub(crate) fn at(image: &ImageId, revision: &RevisionId) -> Result<Self> {
        Ok(Self { image: ImageNo::of(image)?, layer: LayerId::of_revision(revision)? })
    }

    /// The size of the layer. `NotFound` if there is no such layer, or no snapshot names it.
    pub(crate) fn named_size(&self, db: &Connection) -> Outcome<u64> {
        let mut statement = db.prepare_cached(
            "SELECT l.size FROM layers l WHERE l.id = ?1 AND l.image = ?2 AND l.sealed = 1
             AND EXISTS (SELECT 1 FROM snapshots s WHERE s.layer = l.id)",
        )?;
        let size = statement
            .query_row(params![layer_key(self.layer), self.image.0], |row| row.get(0))
            .optional()?;
        let size = size.ok_or_else(|| {
            let gone =
                format!("image {} has no snapshot of revision {}", self.image.id(), self.layer);
            Error::new(ErrorKind::NotFound, gone)
        })?;
        image_bytes("layers.size", size)
    }
}

/// Enters a child in the list of a layer. Idempotent. `NotFound` if no snapshot names the layer.
pub(crate) fn list(db: &Connection, parent: &ParentInPool, child: &ChildRef) -> Outcome<()> {
    parent.named_size(db)?;
    db.prepare_cached("INSERT OR IGNORE INTO children (layer, pool, image) VALUES (?1, ?2, ?3)")?
        .execute(params![layer_key(parent.layer), child.pool.0, child.image.as_str()])?;
    Ok(())
}

/// Enters a child that lives in the same pool.
pub(crate) fn list_in_pool(
    db: &Connection,
    pool: PoolId,
    parent: &ParentInPool,
    child: ImageNo,
) -> Outcome<()> {
    list(db, parent, &ChildRef { pool, image: child.id() })
}

/// Takes a child from the list of a layer, and with the last one the automatic snapshots of the layer. Of the layers that have
/// no name then, those in `empty` are taken out. Idempotent.
pub(crate) fn unlist(
    db: &Connection,
    child_pool: PoolId,
    parent: &ParentInPool,
    child: &ImageId,
    empty: &[LayerId],
) -> Outcome<()> {
    let key = layer_key(parent.layer);
    let taken = db
        .prepare_cached("DELETE FROM children WHERE layer = ?1 AND pool = ?2 AND image = ?3")?
        .execute(params![key, child_pool.0, child.as_str()])?;
    let others = db.prepare_cached("SELECT 1 FROM children WHERE layer = ?1")?.exists([key])?;
    if taken == 0 || others || !snapshots::remove_auto(db, parent.layer)? {
        return Ok(());
    }
    layers::take_out_empty(db, parent.image, empty)?;
    layers::record_change(db, parent.image)
}

/// The children listed for an image. `NotFound` if there is no such image.
pub(crate) fn of_image(db: &Connection, image: ImageNo) -> Outcome<Vec<(RevisionId, ChildRef)>> {
    if !db.prepare_cached("SELECT 1 FROM images WHERE id = ?1")?.exists([image.0])? {
        return Err(record::no_image(&image.id()).into());
    }
    let mut statement = db.prepare_cached(
        "SELECT c.layer, c.pool, c.image FROM children c JOIN layers l ON l.id = c.layer
         WHERE l.image = ?1 ORDER BY c.layer, c.pool, c.image",
    )?;
    let rows = statement.query_and_then([image.0], |row| {
        let child = ChildRef {
            pool: record::pool_id(&row.get::<_, Vec<u8>>(1)?)?,
            image: ImageId::new(row.get::<_, String>(2)?),
        };
        Ok::<_, Failure>((layer_of(row.get(0)?)?.revision(), child))
    })?;
    rows.collect()
}
