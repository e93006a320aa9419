//! Snapshots: names for sealed layers.

use rusqlite::{Connection, OptionalExtension, params};
use vellum_core::SnapshotName;
use vellum_engine::{Error, ErrorKind, SnapshotId};

use super::Outcome;
use super::record::{self, ImageNo, layer_key};
use crate::layer_id::LayerId;

/// A snapshot to be.
#[derive(Clone, Debug)]
pub(crate) struct NewSnapshot {
    pub name: SnapshotName,
    pub auto: bool,
}

/// Fails with `Exists` if an image has a snapshot of this name.
pub(crate) fn refuse_taken_name(
    db: &Connection,
    image: ImageNo,
    name: &SnapshotName,
) -> Outcome<()> {
    let mut statement =
        db.prepare_cached("SELECT 1 FROM snapshots WHERE image = ?1 AND name = ?2")?;
    if statement.exists(params![image.0, name.as_str()])? {
        let taken = format!("the image has a snapshot {name} already; choose another name");
        return Err(Error::new(ErrorKind::Exists, taken).into());
    }
    Ok(())
}

/// Gives a layer a name.
pub(crate) fn add(
    db: &Connection,
    image: ImageNo,
    layer: LayerId,
    new: &NewSnapshot,
) -> Outcome<()> {
    refuse_taken_name(db, image, &new.name)?;
    db.prepare_cached(
        "INSERT INTO snapshots (image, name, layer, auto, created) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        image.0,
        new.name.as_str(),
        layer_key(layer),
        new.auto,
        record::now()
    ])?;
    Ok(())
}

/// Takes a name away. `HasChildren` if children hang on its layer. The layer stays.
pub(crate) fn remove(db: &Connection, image: ImageNo, snapshot: &SnapshotId) -> Outcome<()> {
    let (key, layer, name) = find(db, image, snapshot)?;
    let children: i64 = db
        .prepare_cached("SELECT count(*) FROM children WHERE layer = ?1")?
        .query_row([layer], |row| row.get(0))?;
    if children > 0 {
        let parent =
            format!("snapshot {name} has children ({children}); flatten or remove them first");
        return Err(Error::new(ErrorKind::HasChildren, parent).into());
    }
    db.prepare_cached("DELETE FROM snapshots WHERE id = ?1")?.execute([key])?;
    Ok(())
}

/// Gives a snapshot another name, and keeps it even if an operation made it for itself.
pub(crate) fn rename(
    db: &Connection,
    image: ImageNo,
    snapshot: &SnapshotId,
    name: &SnapshotName,
) -> Outcome<()> {
    let (key, _, old) = find(db, image, snapshot)?;
    if old != name.as_str() {
        refuse_taken_name(db, image, name)?;
    }
    db.prepare_cached("UPDATE snapshots SET name = ?2, auto = 0 WHERE id = ?1")?
        .execute(params![key, name.as_str()])?;
    Ok(())
}

fn find(db: &Connection, image: ImageNo, snapshot: &SnapshotId) -> Outcome<(i64, i64, String)> {
    let mut statement =
        db.prepare_cached("SELECT id, layer, name FROM snapshots WHERE id = ?1 AND image = ?2")?;
    let found = statement
        .query_row(params![record::snapshot_key(snapshot), image.0], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    found.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("the image has no snapshot with id {snapshot}"))
            .into()
    })
}

/// Takes the names of automatic snapshots of a layer away. Says whether there were any.
pub(crate) fn remove_auto(db: &Connection, layer: LayerId) -> Outcome<bool> {
    let gone = db
        .prepare_cached("DELETE FROM snapshots WHERE layer = ?1 AND auto = 1")?
        .execute([layer_key(layer)])?;
    Ok(gone > 0)
}
