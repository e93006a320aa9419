//! The pool's own row: its id, its feature bits, and where it was seen last.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, params};
use vellum_engine::{Error, ErrorKind, PoolId};

use super::failure::corrupt;
use super::record::pool_id;
use super::{Outcome, connection, record, schema};

/// Where a pool is: its directory, and the inode of its lock file, which a copy does not share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub path: PathBuf,
    pub inode: u64,
}

/// What a pool says of itself.
#[derive(Clone, Debug)]
pub(crate) struct PoolRow {
    pub id: PoolId,
    /// Where it was when it was opened for writing last.
    pub place: Place,
    /// Whether it uses a feature that this program must not write.
    pub look_only: bool,
}

/// Makes the tables of a new pool and its row. `path` and `inode` say where it is.
pub(crate) fn create(db: &Connection, id: PoolId, place: &Place) -> Outcome<()> {
    schema::create(db)?;
    db.execute(
        "INSERT INTO pool (only_row, id, incompat, ro_compat, compat, path, inode, settled, created)
         VALUES (1, ?1, 0, 0, 0, ?2, ?3, 0, ?4)",
        params![id.0, path_bytes(&place.path), inode_key(place.inode), record::now()],
    )?;
    Ok(())
}

/// Reads the row after checking the format. `Unsupported` for a pool with a feature this program does not know.
pub(crate) fn load(db: &Connection) -> Outcome<PoolRow> {
    connection::check_format(db)?;
    let row = db
        .query_row("SELECT id, path, inode, incompat, ro_compat FROM pool", [], |row| {
            Ok((
                row.get::<_, Vec<u8>>(0)?,
                row.get::<_, Vec<u8>>(1)?,
                row.get::<_, i64>(2)?,
                row.get::<_, i64>(3)?,
                row.get::<_, i64>(4)?,
            ))
        })
        .optional()?;
    let (id, path, inode, incompat, ro_compat) =
        row.ok_or_else(|| corrupt("the pool has no row of its own"))?;
    let unknown = incompat & !schema::INCOMPAT_KNOWN;
    if unknown != 0 {
        let newer = format!(
            "the pool uses features {unknown:#x} that this program does not know; use a newer one"
        );
        return Err(Error::new(ErrorKind::Unsupported, newer).into());
    }
    Ok(PoolRow {
        id: pool_id(&id)?,
        place: Place { path: OsString::from_vec(path).into(), inode: inode.cast_unsigned() },
        look_only: ro_compat & !schema::RO_COMPAT_KNOWN != 0,
    })
}

/// Remembers where the pool is now.
pub(crate) fn move_to(db: &Connection, place: &Place) -> Outcome<()> {
    db.execute(
        "UPDATE pool SET path = ?1, inode = ?2",
        params![path_bytes(&place.path), inode_key(place.inode)],
    )?;
    Ok(())
}

/// Gives the pool another id, here and in the links between its own images.
pub(crate) fn change_id(db: &Connection, id: PoolId) -> Outcome<()> {
    let old = load(db)?.id;
    db.execute("UPDATE layers SET parent_pool = ?1 WHERE parent_pool = ?2", params![id.0, old.0])?;
    db.execute("UPDATE children SET pool = ?1 WHERE pool = ?2", params![id.0, old.0])?;
    db.execute("UPDATE images SET version = version + 1", [])?;
    db.execute("UPDATE pool SET id = ?1", params![id.0])?;
    Ok(())
}

fn path_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn inode_key(inode: u64) -> i64 {
    inode.cast_signed()
}
