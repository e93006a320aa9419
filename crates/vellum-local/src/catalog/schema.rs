//! The tables, their version, and the feature bits. `docs/format.md` explains each column.

use rusqlite::Connection;

use super::Outcome;

/// Says that the file is a catalog of ours: `VLUM`.
pub(crate) const APPLICATION_ID: i32 = 0x564c_554d;

/// The version of the tables.
pub(crate) const FORMAT_VERSION: i32 = 1;

/// Features without whose knowledge a pool must not be opened at all.
pub(crate) const INCOMPAT_KNOWN: i64 = 0;

/// Features without whose knowledge a pool must not be written.
pub(crate) const RO_COMPAT_KNOWN: i64 = 0;

/// Layers refer to images and images to their head, so those references are looked at when a transaction ends.
const TABLES: &str = "
CREATE TABLE pool (
  only_row   INTEGER PRIMARY KEY CHECK (only_row = 1),
  id         BLOB NOT NULL CHECK (length(id) = 16),
  incompat   INTEGER NOT NULL,
  ro_compat  INTEGER NOT NULL,
  compat     INTEGER NOT NULL,
  path       BLOB NOT NULL,
  inode      INTEGER NOT NULL,
  settled    INTEGER NOT NULL,
  created    INTEGER NOT NULL
) STRICT;

CREATE TABLE images (
  id           INTEGER PRIMARY KEY CHECK (id > 0),
  name         TEXT NOT NULL UNIQUE,
  version      INTEGER NOT NULL CHECK (version > 0),
  object_size  INTEGER NOT NULL,
  stripe_unit  INTEGER NOT NULL,
  stripe_count INTEGER NOT NULL,
  layering     TEXT NOT NULL CHECK (layering IN ('sparse', 'copy-up')),
  block_size   INTEGER NOT NULL,
  created      INTEGER NOT NULL,
  head         INTEGER NOT NULL UNIQUE REFERENCES layers (id) DEFERRABLE INITIALLY DEFERRED
) STRICT;

CREATE TABLE meta (
  image INTEGER NOT NULL REFERENCES images (id),
  key   TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (image, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE layers (
  id              INTEGER PRIMARY KEY CHECK (id > 0),
  image           INTEGER NOT NULL REFERENCES images (id) DEFERRABLE INITIALLY DEFERRED,
  size            INTEGER NOT NULL CHECK (size >= 0),
  sealed          INTEGER NOT NULL CHECK (sealed IN (0, 1)),
  created         INTEGER NOT NULL,
  below           TEXT NOT NULL CHECK (below IN ('nothing', 'own', 'parent')),
  overlap         INTEGER NOT NULL CHECK (overlap >= 0),
  below_layer     INTEGER REFERENCES layers (id) DEFERRABLE INITIALLY DEFERRED,
  parent_pool     BLOB,
  parent_image    TEXT,
  parent_revision TEXT,
  CHECK ((below = 'parent') = (parent_revision IS NOT NULL)),
  CHECK (below <> 'own' OR below_layer IS NOT NULL),
  CHECK (below <> 'nothing' OR below_layer IS NULL)
) STRICT;
CREATE INDEX layers_by_image ON layers (image);
CREATE INDEX layers_by_below ON layers (below_layer) WHERE below_layer IS NOT NULL;

CREATE TABLE snapshots (
  id      INTEGER PRIMARY KEY AUTOINCREMENT,
  image   INTEGER NOT NULL REFERENCES images (id),
  name    TEXT NOT NULL,
  layer   INTEGER NOT NULL REFERENCES layers (id),
  auto    INTEGER NOT NULL CHECK (auto IN (0, 1)),
  created INTEGER NOT NULL,
  UNIQUE (image, name)
) STRICT;
CREATE INDEX snapshots_by_layer ON snapshots (layer);

CREATE TABLE children (
  layer INTEGER NOT NULL REFERENCES layers (id),
  pool  BLOB NOT NULL CHECK (length(pool) = 16),
  image TEXT NOT NULL,
  PRIMARY KEY (layer, pool, image)
) STRICT, WITHOUT ROWID;

CREATE TABLE removed (
  layer INTEGER PRIMARY KEY
) STRICT;
";

/// Makes the tables and marks the file as ours, within the caller's transaction.
pub(crate) fn create(db: &Connection) -> Outcome<()> {
    db.execute_batch(TABLES)?;
    db.pragma_update(None, "application_id", APPLICATION_ID)?;
    db.pragma_update(None, "user_version", FORMAT_VERSION)?;
    Ok(())
}
