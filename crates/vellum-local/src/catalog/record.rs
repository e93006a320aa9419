//! Rows to records and back: the numbers of the tables and the ids of the contract.

use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension, Row};
use vellum_core::geometry::IMAGE_SIZE_MAX;
use vellum_core::{Geometry, ImageName, SnapshotName};
use vellum_disk::Disk;
use vellum_engine::{
    Below, Error, ErrorKind, ImageId, ImageRecord, Layering, ParentLink, PoolId, Result, Revision,
    RevisionId, SnapshotId, SnapshotRecord, Version,
};

use super::failure::corrupt;
use super::{Failure, Outcome};
use crate::engine::BLOCK_SIZES;
use crate::layer_id::{LayerId, number_from_hex, random_number};

/// The key of an image's row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct ImageNo(pub i64);

impl ImageNo {
    /// A random one.
    pub(crate) fn random(disk: &impl Disk) -> Self {
        Self(random_number(disk) as i64)
    }

    /// What is locked while an image with this number is about to be created. No layer has the same number, but by an accident
    /// that does not happen.
    pub(crate) fn lock(self) -> LayerId {
        LayerId::new(self.0 as u64).expect("numbers of images are those of layers")
    }

    /// The id the contract knows it by: 16 hex digits.
    pub(crate) fn id(self) -> ImageId {
        ImageId::new(format!("{:016x}", self.0))
    }

    /// The row of an image. `NotFound` if the text is no id of this engine.
    pub(crate) fn of(id: &ImageId) -> Result<Self> {
        number_from_hex(id.as_str())
            .and_then(|number| i64::try_from(number).ok())
            .filter(|number| *number > 0)
            .map(Self)
            .ok_or_else(|| no_image(id))
    }
}

/// The error for an image that is not there.
pub(crate) fn no_image(id: &ImageId) -> Error {
    Error::new(ErrorKind::NotFound, format!("this pool has no image with id {id}"))
}

/// The key of a layer's row.
pub(crate) fn layer_key(layer: LayerId) -> i64 {
    layer.number() as i64
}

/// The layer of a key.
pub(crate) fn layer_of(key: i64) -> Outcome<LayerId> {
    u64::try_from(key)
        .ok()
        .and_then(LayerId::new)
        .ok_or_else(|| corrupt(format!("{key} is no layer id")))
}

/// A number of bytes of an image, as SQLite stores it: no more than an image can have.
pub(crate) fn image_bytes(column: &str, value: i64) -> Outcome<u64> {
    unsigned(column, value)
        .ok()
        .filter(|bytes| *bytes <= IMAGE_SIZE_MAX)
        .ok_or_else(|| corrupt(format!("{column} is {value}, expected 0 to {IMAGE_SIZE_MAX}")))
}

/// A number that is stored as SQLite's signed one.
fn unsigned(column: &str, value: i64) -> Outcome<u64> {
    u64::try_from(value).map_err(|_| corrupt(format!("{column} is {value}, expected 0 or more")))
}

/// A number as SQLite stores it. Sizes are bounded far below where this could fail.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).expect("sizes are bounded by the largest image")
}

/// Now, as it is stored: nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn time(stored: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(stored.max(0).unsigned_abs())
}

/// The id of a pool as it is stored.
pub(crate) fn pool_id(bytes: &[u8]) -> Outcome<PoolId> {
    bytes.try_into().map(PoolId).map_err(|_| corrupt("a pool id does not have 16 bytes"))
}

/// The text of a layering, as it is stored.
pub(crate) fn layering_text(layering: Layering) -> &'static str {
    match layering {
        Layering::Sparse => "sparse",
        Layering::CopyUp => "copy-up",
    }
}

/// The record of an image. `NotFound` if there is none.
pub(crate) fn load(db: &Connection, image: ImageNo) -> Outcome<ImageRecord> {
    let mut statement = db.prepare_cached(
        "SELECT name, version, object_size, stripe_unit, stripe_count, layering, block_size, created, head
         FROM images WHERE id = ?1",
    )?;
    let found = statement.query_row([image.0], ImageRow::read).optional()?;
    let row = found.ok_or_else(|| no_image(&image.id()))?;
    let record = ImageRecord {
        id: image.id(),
        name: name(&row.name)?,
        version: Version(unsigned("images.version", row.version)?),
        geometry: geometry(&row)?,
        layering: layering(&row.layering)?,
        block_size: block_size(row.block_size)?,
        created: time(row.created),
        head: layer_of(row.head)?.revision(),
        revisions: revisions(db, image)?,
        snapshots: snapshots(db, image)?,
        meta: meta(db, image)?,
    };
    if !record.geometry.accepts_block_size(record.block_size.into()) {
        return Err(corrupt(format!(
            "image {} has blocks of {} bytes, which do not divide its stripe unit",
            record.name, record.block_size
        )));
    }
    if record.revision(&record.head).is_none_or(|head| head.sealed) {
        return Err(corrupt(format!("image {} has no head that can be written", record.name)));
    }
    Ok(record)
}

struct ImageRow {
    name: String,
    version: i64,
    geometry: [i64; 3],
    layering: String,
    block_size: i64,
    created: i64,
    head: i64,
}

impl ImageRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            name: row.get(0)?,
            version: row.get(1)?,
            geometry: [row.get(2)?, row.get(3)?, row.get(4)?],
            layering: row.get(5)?,
            block_size: row.get(6)?,
            created: row.get(7)?,
            head: row.get(8)?,
        })
    }
}

fn name(text: &str) -> Outcome<ImageName> {
    text.parse().map_err(|_| corrupt(format!("{text:?} is no name of an image")))
}

fn geometry(row: &ImageRow) -> Outcome<Geometry> {
    let [object_size, stripe_unit, stripe_count] =
        row.geometry.map(|n| u64::try_from(n).unwrap_or(0));
    Geometry::new(object_size, stripe_unit, stripe_count)
        .map_err(|error| corrupt(format!("image {}: {error}", row.name)))
}

fn layering(text: &str) -> Outcome<Layering> {
    match text {
        "sparse" => Ok(Layering::Sparse),
        "copy-up" => Ok(Layering::CopyUp),
        _ => Err(corrupt(format!("{text:?} is no layering"))),
    }
}

/// A block size as it is stored: a power of two, of those that an image can have.
pub(crate) fn block_size(stored: i64) -> Outcome<u32> {
    u32::try_from(stored)
        .ok()
        .filter(|size| size.is_power_of_two() && BLOCK_SIZES.contains(size))
        .ok_or_else(|| corrupt(format!("{stored} is no block size")))
}

fn revisions(db: &Connection, image: ImageNo) -> Outcome<Vec<Revision>> {
    let mut statement = db.prepare_cached(
        "SELECT id, size, sealed, below, overlap, below_layer, parent_pool, parent_image, parent_revision
         FROM layers WHERE image = ?1",
    )?;
    let rows = statement.query_and_then([image.0], |row| {
        Ok::<_, Failure>(Revision {
            id: layer_of(row.get(0)?)?.revision(),
            size: image_bytes("layers.size", row.get(1)?)?,
            sealed: row.get(2)?,
            below: below(row, 3)?,
        })
    })?;
    rows.collect()
}

/// What lies below a layer, from six columns beginning with `first`: `below`, `overlap`, `below_layer`, `parent_pool`,
/// `parent_image`, `parent_revision`.
pub(crate) fn below(row: &Row<'_>, first: usize) -> Outcome<Below> {
    let kind: String = row.get(first)?;
    let overlap = image_bytes("layers.overlap", row.get(first + 1)?)?;
    match kind.as_str() {
        "nothing" => Ok(Below::Nothing),
        "own" => {
            let revision = layer_of(row.get(first + 2)?)?.revision();
            Ok(Below::Own { revision, overlap })
        }
        "parent" => Ok(Below::Parent {
            link: ParentLink {
                pool: pool_id(&row.get::<_, Vec<u8>>(first + 3)?)?,
                image: ImageId::new(row.get::<_, String>(first + 4)?),
                revision: RevisionId::new(row.get::<_, String>(first + 5)?),
            },
            overlap,
        }),
        _ => Err(corrupt(format!("{kind:?} is nothing that lies below a layer"))),
    }
}

fn snapshots(db: &Connection, image: ImageNo) -> Outcome<Vec<SnapshotRecord>> {
    let mut statement = db.prepare_cached(
        "SELECT id, name, layer, auto, created FROM snapshots WHERE image = ?1 ORDER BY id",
    )?;
    let rows = statement.query_and_then([image.0], |row| {
        let text: String = row.get(1)?;
        Ok::<_, Failure>(SnapshotRecord {
            id: snapshot_id(row.get(0)?),
            name: SnapshotName::new(&text)
                .map_err(|_| corrupt(format!("{text:?} is no name of a snapshot")))?,
            revision: layer_of(row.get(2)?)?.revision(),
            auto: row.get(3)?,
            created: time(row.get(4)?),
        })
    })?;
    rows.collect()
}

/// The id of a snapshot's row.
pub(crate) fn snapshot_id(key: i64) -> SnapshotId {
    SnapshotId::new(key.to_string())
}

/// The row of a snapshot; `None` if the text is no id of this engine.
pub(crate) fn snapshot_key(id: &SnapshotId) -> Option<i64> {
    id.as_str().parse().ok()
}

fn meta(db: &Connection, image: ImageNo) -> Outcome<std::collections::BTreeMap<String, String>> {
    let mut statement = db.prepare_cached("SELECT key, value FROM meta WHERE image = ?1")?;
    let rows =
        statement.query_and_then([image.0], |row| Ok::<_, Failure>((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}
