//! Images: create, look up, rename, remove.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};
use vellum_core::ImageName;
use vellum_engine::{
    Below, Error, ErrorKind, ImageRecord, NewImage, NewParent, ParentLink, PoolId, Version,
};

use super::Outcome;
use super::children::{self, ParentInPool};
use super::failure::corrupt;
use super::layers::{self, DEPTH_MAX, NewLayer};
use super::record::{self, ImageNo, layer_key, layering_text, signed};
use crate::layer_id::LayerId;

/// How much an image may carry for its user.
const META_KEYS_MAX: usize = 1024;
const META_KEY_LENGTH_MAX: usize = 256;
const META_VALUE_LENGTH_MAX: usize = 64 << 10;

/// The keys of an image to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewKeys {
    pub image: ImageNo,
    pub head: LayerId,
}

/// Creates an image with an empty head. A parent in this pool gets it as a child in the same step.
pub(crate) fn create(
    db: &Connection,
    pool: PoolId,
    keys: NewKeys,
    new: &NewImage,
) -> Outcome<ImageRecord> {
    refuse_taken_name(db, &new.name)?;
    if db.prepare_cached("SELECT 1 FROM images WHERE id = ?1")?.exists([keys.image.0])? {
        let taken = format!("an image with id {} is there already", keys.image.id());
        return Err(Error::new(ErrorKind::Exists, taken).into());
    }
    let below = match &new.parent {
        None => Below::Nothing,
        Some(parent) => below_of(db, pool, new, parent)?,
    };
    insert(db, keys, new)?;
    let layer = NewLayer { id: keys.head, image: keys.image, size: new.size, below: &below };
    layers::add(db, pool, &layer)?;
    if let Some(parent) = new.parent.as_ref().filter(|parent| parent.link.pool == pool) {
        children::list_in_pool(db, pool, &ParentInPool::of(&parent.link)?, keys.image)?;
    }
    for (key, value) in &new.meta {
        put_meta(db, keys.image, key, Some(value))?;
    }
    record::load(db, keys.image)
}

fn insert(db: &Connection, keys: NewKeys, new: &NewImage) -> Outcome<()> {
    db.prepare_cached(
        "INSERT INTO images (id, name, version, object_size, stripe_unit, stripe_count, layering,
                             block_size, created, head)
         VALUES (?1, ?2, 1, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        keys.image.0,
        new.name.as_str(),
        signed(new.geometry.object_size()),
        signed(new.geometry.stripe_unit()),
        signed(new.geometry.stripe_count()),
        layering_text(new.layering),
        new.block_size,
        record::now(),
        layer_key(keys.head),
    ])?;
    Ok(())
}

/// What the head of a clone lies on. A parent in this pool must be a sealed layer that a snapshot names, and the chain
/// below must not become too deep; of a parent elsewhere only the overlap can be looked at.
fn below_of(db: &Connection, pool: PoolId, new: &NewImage, parent: &NewParent) -> Outcome<Below> {
    let mut overlap_max = new.size;
    if parent.link.pool == pool {
        let place = ParentInPool::of(&parent.link)?;
        overlap_max = overlap_max.min(place.named_size(db)?);
        if layers::depth(db, place.layer)? >= DEPTH_MAX {
            let deep = format!(
                "the chain below {} would be deeper than {DEPTH_MAX} layers; flatten its parent first",
                new.name
            );
            return Err(Error::new(ErrorKind::Invalid, deep).into());
        }
    }
    if parent.overlap > overlap_max {
        let wide = format!(
            "{} cannot show {} bytes of its parent: the smaller of the two has {overlap_max}",
            new.name, parent.overlap
        );
        return Err(Error::new(ErrorKind::Invalid, wide).into());
    }
    Ok(Below::Parent { link: parent.link.clone(), overlap: parent.overlap })
}

/// The image of this name. `NotFound` if there is none.
pub(crate) fn find(db: &Connection, name: &ImageName) -> Outcome<ImageRecord> {
    let image = number_of(db, name)?
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("this pool has no image {name}")))?;
    record::load(db, image)
}

fn number_of(db: &Connection, name: &ImageName) -> Outcome<Option<ImageNo>> {
    let mut statement = db.prepare_cached("SELECT id FROM images WHERE name = ?1")?;
    Ok(statement.query_row([name.as_str()], |row| row.get(0).map(ImageNo)).optional()?)
}

/// Up to `max` images in the order of their names, beginning after `after`.
pub(crate) fn list(
    db: &Connection,
    after: Option<&ImageName>,
    max: usize,
) -> Outcome<Vec<ImageRecord>> {
    // No name is empty, so all names come after the empty one.
    let after = after.map_or("", ImageName::as_str);
    let max = i64::try_from(max).unwrap_or(i64::MAX);
    let mut statement =
        db.prepare_cached("SELECT id FROM images WHERE name > ?1 ORDER BY name LIMIT ?2")?;
    let numbers: Vec<i64> =
        statement.query_map(params![after, max], |row| row.get(0))?.collect::<Result<_, _>>()?;
    numbers.into_iter().map(|number| record::load(db, ImageNo(number))).collect()
}

/// The record of an image if it is still at this version; else `Conflict`.
pub(crate) fn at_version(db: &Connection, image: ImageNo, at: Version) -> Outcome<ImageRecord> {
    let record = record::load(db, image)?;
    if record.version == at {
        return Ok(record);
    }
    let changed = format!(
        "image {} was changed meanwhile (version {}, expected {}); look at it again",
        record.name, record.version.0, at.0
    );
    Err(Error::new(ErrorKind::Conflict, changed).into())
}

/// Gives an image another name.
pub(crate) fn rename(db: &Connection, image: ImageNo, name: &ImageName) -> Outcome<()> {
    if number_of(db, name)? != Some(image) {
        refuse_taken_name(db, name)?;
    }
    let mut statement = db.prepare_cached("UPDATE images SET name = ?2 WHERE id = ?1")?;
    statement.execute(params![image.0, name.as_str()])?;
    Ok(())
}

fn refuse_taken_name(db: &Connection, name: &ImageName) -> Outcome<()> {
    match number_of(db, name)? {
        None => Ok(()),
        Some(_) => {
            let taken = format!("an image {name} is there already; choose another name");
            Err(Error::new(ErrorKind::Exists, taken).into())
        }
    }
}

/// Sets or removes a key of an image.
pub(crate) fn put_meta(
    db: &Connection,
    image: ImageNo,
    key: &str,
    value: Option<&str>,
) -> Outcome<()> {
    let Some(value) = value else {
        db.prepare_cached("DELETE FROM meta WHERE image = ?1 AND key = ?2")?
            .execute(params![image.0, key])?;
        return Ok(());
    };
    db.prepare_cached(
        "INSERT INTO meta (image, key, value) VALUES (?1, ?2, ?3)
         ON CONFLICT (image, key) DO UPDATE SET value = excluded.value",
    )?
    .execute(params![image.0, key, value])?;
    let keys: i64 = db
        .prepare_cached("SELECT count(*) FROM meta WHERE image = ?1")?
        .query_row([image.0], |row| row.get(0))?;
    check_meta(keys as usize, key, value)
}

fn check_meta(keys: usize, key: &str, value: &str) -> Outcome<()> {
    if keys <= META_KEYS_MAX
        && (1..=META_KEY_LENGTH_MAX).contains(&key.len())
        && value.len() <= META_VALUE_LENGTH_MAX
    {
        return Ok(());
    }
    let what = format!(
        "an image carries up to {META_KEYS_MAX} keys of 1 to {META_KEY_LENGTH_MAX} bytes, \
         each with a value of up to {META_VALUE_LENGTH_MAX} bytes"
    );
    Err(Error::new(ErrorKind::Invalid, what).into())
}

/// Removes an image with its snapshots and layers, and takes it from the list of a parent in this pool. Of its layers,
/// those in `with_files` are remembered until their files are gone; of the parent's, those in `empty` go if they lose their
/// name by it. `HasChildren` if something hangs on the image.
pub(crate) fn remove(
    db: &Connection,
    pool: PoolId,
    image: ImageNo,
    with_files: &[LayerId],
    empty: &[LayerId],
) -> Outcome<()> {
    let record = record::load(db, image)?;
    let children = children::of_image(db, image)?.len();
    if children > 0 {
        return Err(has_children(&record, children).into());
    }
    for table in [
        "DELETE FROM meta WHERE image = ?1",
        "DELETE FROM snapshots WHERE image = ?1",
        "DELETE FROM layers WHERE image = ?1",
        "DELETE FROM images WHERE id = ?1",
    ] {
        db.prepare_cached(table)?.execute([image.0])?;
    }
    leave_parents(db, pool, &record, empty)?;
    layers::remember_removed(db, with_files)
}

/// The error for an image that children hang on.
pub(crate) fn has_children(record: &ImageRecord, children: usize) -> Error {
    Error::new(
        ErrorKind::HasChildren,
        format!("image {} has children ({children}); flatten or remove them first", record.name),
    )
}

/// Cuts the link to the parent image, and takes the image from the list of a parent in this pool; of its layers, those in
/// `empty` go if they lose their name by it.
pub(crate) fn cut_parent(
    db: &Connection,
    pool: PoolId,
    image: ImageNo,
    empty: &[LayerId],
) -> Outcome<()> {
    let record = record::load(db, image)?;
    db.prepare_cached(
        "UPDATE layers SET below = 'nothing', overlap = 0, below_layer = NULL,
                parent_pool = NULL, parent_image = NULL, parent_revision = NULL
         WHERE image = ?1 AND below = 'parent'",
    )?
    .execute([image.0])?;
    leave_parents(db, pool, &record, empty)?;
    layers::record_change(db, image)
}

fn leave_parents(
    db: &Connection,
    pool: PoolId,
    record: &ImageRecord,
    empty: &[LayerId],
) -> Outcome<()> {
    for link in parents_in_pool(record, pool) {
        children::unlist(db, pool, &ParentInPool::of(&link)?, &record.id, empty)?;
    }
    Ok(())
}

/// The links of an image to parents in this pool: one, whatever number of its layers carry it.
pub(crate) fn parents_in_pool(record: &ImageRecord, pool: PoolId) -> Vec<ParentLink> {
    let links = record.revisions.iter().filter_map(|revision| match &revision.below {
        Below::Parent { link, .. } if link.pool == pool => {
            Some((link.revision.clone(), link.clone()))
        }
        Below::Parent { .. } | Below::Own { .. } | Below::Nothing => None,
    });
    links.collect::<BTreeMap<_, _>>().into_values().collect()
}

/// Puts a new layer above the head of an image and makes it the head.
pub(crate) fn put_on_top(
    db: &Connection,
    pool: PoolId,
    image: ImageNo,
    successor: LayerId,
) -> Outcome<()> {
    let head = layers::head(db, image)?;
    if layers::depth(db, head.id)? >= DEPTH_MAX {
        let deep = format!(
            "the chain of image {} has {DEPTH_MAX} layers already; flatten it, or remove snapshots that nothing was \
             written after",
            head.image_name
        );
        return Err(Error::new(ErrorKind::Invalid, deep).into());
    }
    let below = Below::Own { revision: head.id.revision(), overlap: head.size };
    layers::add(db, pool, &NewLayer { id: successor, image, size: head.size, below: &below })?;
    db.prepare_cached("UPDATE layers SET sealed = 1 WHERE id = ?1")?
        .execute([layer_key(head.id)])?;
    let changed = db
        .prepare_cached("UPDATE images SET head = ?2 WHERE id = ?1")?
        .execute(params![image.0, layer_key(successor)])?;
    if changed != 1 {
        return Err(corrupt(format!("image {} went away inside a transaction", head.image_name)));
    }
    Ok(())
}
