//! Rows of layers: how they are opened, put on top of each other, and taken out.

use rusqlite::{Connection, OptionalExtension, params};
use vellum_engine::{Below, Error, ErrorKind, ImageId, PoolId};

use super::Outcome;
use super::failure::corrupt;
use super::record::{self, ImageNo, image_bytes, layer_key, layer_of, signed};
use crate::layer_id::LayerId;

/// Chains deeper than this are refused.
pub(crate) const DEPTH_MAX: i64 = 1024;

/// What must be known of a layer to open it.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct LayerRow {
    pub id: LayerId,
    pub image: ImageId,
    pub image_name: String,
    pub size: u64,
    pub block_size: u32,
    pub below: Below,
    pub sealed: bool,
}

/// A layer of an image. `NotFound` if the image has no such layer.
pub(crate) fn get(db: &Connection, image: ImageNo, layer: LayerId) -> Outcome<LayerRow> {
    let mut statement = db.prepare_cached(
        "SELECT i.name, l.size, i.block_size, l.sealed,
                l.below, l.overlap, l.below_layer, l.parent_pool, l.parent_image, l.parent_revision
         FROM layers l JOIN images i ON i.id = l.image WHERE l.id = ?1 AND l.image = ?2",
    )?;
    let mut rows = statement.query(params![layer_key(layer), image.0])?;
    let row = rows.next()?.ok_or_else(|| no_layer(image, layer))?;
    Ok(LayerRow {
        id: layer,
        image: image.id(),
        image_name: row.get(0)?,
        size: image_bytes("layers.size", row.get(1)?)?,
        block_size: record::block_size(row.get(2)?)?,
        sealed: row.get(3)?,
        below: record::below(row, 4)?,
    })
}

fn no_layer(image: ImageNo, layer: LayerId) -> Error {
    Error::new(ErrorKind::NotFound, format!("image {} has no revision {layer}", image.id()))
}

/// The head of an image. `NotFound` if there is no such image.
pub(crate) fn head(db: &Connection, image: ImageNo) -> Outcome<LayerRow> {
    let mut statement = db.prepare_cached("SELECT head FROM images WHERE id = ?1")?;
    let key = statement.query_row([image.0], |row| row.get(0)).optional()?;
    let key = key.ok_or_else(|| record::no_image(&image.id()))?;
    get(db, image, layer_of(key)?)
}

/// The sealed layers of an image that no snapshot names.
pub(crate) fn unnamed(db: &Connection, image: ImageNo) -> Outcome<Vec<LayerId>> {
    let sql = "SELECT id FROM layers WHERE image = ?1 AND sealed = 1
               AND NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.layer = layers.id)";
    let mut statement = db.prepare_cached(sql)?;
    let rows = statement.query_and_then([image.0], |row| layer_of(row.get(0)?))?;
    rows.collect()
}

/// Which of these are layers of this pool.
pub(crate) fn known(db: &Connection, layers: &[LayerId]) -> Outcome<Vec<LayerId>> {
    let mut known = Vec::new();
    for layer in layers {
        if exists(db, *layer)? {
            known.push(*layer);
        }
    }
    Ok(known)
}

fn exists(db: &Connection, layer: LayerId) -> Outcome<bool> {
    let mut statement = db.prepare_cached("SELECT 1 FROM layers WHERE id = ?1")?;
    Ok(statement.exists([layer_key(layer)])?)
}

/// How many layers there are from this one down, itself included, as far as they are in this pool. Stops counting past
/// [`DEPTH_MAX`], which also ends a circle.
pub(crate) fn depth(db: &Connection, layer: LayerId) -> Outcome<i64> {
    let mut statement = db.prepare_cached(
        "WITH RECURSIVE chain (layer, depth) AS (
           SELECT ?1, 1
           UNION ALL
           SELECT l.below_layer, depth + 1 FROM chain JOIN layers l ON l.id = chain.layer
           WHERE l.below_layer IS NOT NULL AND depth <= ?2)
         SELECT max(depth) FROM chain",
    )?;
    Ok(statement.query_row(params![layer_key(layer), DEPTH_MAX], |row| row.get(0))?)
}

/// A layer to be added.
pub(crate) struct NewLayer<'a> {
    pub id: LayerId,
    pub image: ImageNo,
    pub size: u64,
    pub below: &'a Below,
}

/// Adds a layer that can be written. A parent in this pool becomes a reference that keeps its layer in place.
pub(crate) fn add(db: &Connection, pool: PoolId, new: &NewLayer<'_>) -> Outcome<()> {
    if exists(db, new.id)? || was_removed(db, new.id)? {
        return Err(corrupt(format!(
            "layer id {} is not new: the source of random numbers is broken",
            new.id
        )));
    }
    let (kind, overlap, link) = match new.below {
        Below::Nothing => ("nothing", 0, None),
        Below::Own { overlap, .. } => ("own", *overlap, None),
        Below::Parent { link, overlap } => ("parent", *overlap, Some(link)),
    };
    let below_layer = match new.below {
        Below::Nothing => None,
        Below::Own { revision, .. } => Some(LayerId::of_revision(revision)?),
        Below::Parent { link, .. } if link.pool == pool => {
            Some(LayerId::of_revision(&link.revision)?)
        }
        Below::Parent { .. } => None,
    };
    let mut statement = db.prepare_cached(
        "INSERT INTO layers (id, image, size, sealed, created, below, overlap, below_layer,
                             parent_pool, parent_image, parent_revision)
         VALUES (?1, ?2, ?3, 0, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?;
    statement.execute(params![
        layer_key(new.id),
        new.image.0,
        signed(new.size),
        record::now(),
        kind,
        signed(overlap),
        below_layer.map(layer_key),
        link.map(|link| link.pool.0),
        link.map(|link| link.image.as_str()),
        link.map(|link| link.revision.as_str()),
    ])?;
    Ok(())
}

/// Takes layers of an image out that define nothing: what lies above one inherits from what lies below it instead, up to the
/// smaller overlap. Passes over those that are not sealed, have a name, or have children. The caller keeps everybody from
/// writing into them meanwhile, and notes that the record changed.
pub(crate) fn take_out_empty(db: &Connection, image: ImageNo, empty: &[LayerId]) -> Outcome<()> {
    for layer in empty {
        if can_go(db, image, *layer)? {
            take_out(db, *layer)?;
        }
    }
    Ok(())
}

fn take_out(db: &Connection, layer: LayerId) -> Outcome<()> {
    let key = layer_key(layer);
    db.prepare_cached(
        "UPDATE layers SET
           (below, overlap, below_layer, parent_pool, parent_image, parent_revision) =
           (SELECT b.below, min(b.overlap, layers.overlap), b.below_layer, b.parent_pool, b.parent_image,
                   b.parent_revision
            FROM layers b WHERE b.id = ?1)
         WHERE below_layer = ?1 AND below = 'own'",
    )?
    .execute([key])?;
    db.prepare_cached("DELETE FROM layers WHERE id = ?1")?.execute([key])?;
    Ok(())
}

fn can_go(db: &Connection, image: ImageNo, layer: LayerId) -> Outcome<bool> {
    let mut statement = db.prepare_cached(
        "SELECT 1 FROM layers l WHERE l.id = ?1 AND l.image = ?2 AND l.sealed = 1
         AND NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.layer = l.id)
         AND NOT EXISTS (SELECT 1 FROM children c WHERE c.layer = l.id)
         AND NOT EXISTS (SELECT 1 FROM layers a WHERE a.below_layer = l.id AND a.below = 'parent')",
    )?;
    Ok(statement.exists(params![layer_key(layer), image.0])?)
}

/// The record of an image has changed.
pub(crate) fn record_change(db: &Connection, image: ImageNo) -> Outcome<()> {
    db.prepare_cached("UPDATE images SET version = version + 1 WHERE id = ?1")?
        .execute([image.0])?;
    Ok(())
}

/// Remembers that the files of these layers are garbage, until they are gone.
pub(crate) fn remember_removed(db: &Connection, layers: &[LayerId]) -> Outcome<()> {
    let mut statement = db.prepare_cached("INSERT OR IGNORE INTO removed (layer) VALUES (?1)")?;
    for layer in layers {
        statement.execute([layer_key(*layer)])?;
    }
    Ok(())
}

/// The files of these layers are gone.
pub(crate) fn forget_removed(db: &Connection, layers: &[LayerId]) -> Outcome<()> {
    let mut statement = db.prepare_cached("DELETE FROM removed WHERE layer = ?1")?;
    for layer in layers {
        statement.execute([layer_key(*layer)])?;
    }
    Ok(())
}

/// Up to `max` layers whose files are garbage.
pub(crate) fn removed(db: &Connection, max: usize) -> Outcome<Vec<LayerId>> {
    let mut statement = db.prepare_cached("SELECT layer FROM removed ORDER BY layer LIMIT ?1")?;
    let max = i64::try_from(max).unwrap_or(i64::MAX);
    let rows = statement.query_and_then([max], |row| layer_of(row.get(0)?))?;
    rows.collect()
}

fn was_removed(db: &Connection, layer: LayerId) -> Outcome<bool> {
    Ok(db.prepare_cached("SELECT 1 FROM removed WHERE layer = ?1")?.exists([layer_key(layer)])?)
}
