//! How the database is opened, and what is refused.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, FileControl, MAIN_DB, OpenFlags};
use vellum_engine::{Error, ErrorKind, Result};

use super::{Outcome, schema};

/// The race that could reset the write-ahead log under another process was ended with this version.
const SQLITE_OLDEST: i32 = 3_051_003;

/// How long a transaction waits for another process before it fails with `Busy`.
pub(super) const BUSY_WAIT: Duration = Duration::from_secs(5);

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// All changes go through it.
    Write,
    /// Looks only, beside a writer.
    Read,
    /// Looks only, where nothing can be written: on a read-only file system, or with no right to write.
    ReadOnly,
}

/// Opens an existing database file and checks that it is a catalog of a version that can be used for this purpose.
pub(crate) fn open(path: &Path, vfs: Option<&str>, purpose: Purpose) -> Result<Connection> {
    refuse_old_sqlite(rusqlite::version_number())?;
    let doing = format!("open {}", path.display());
    let db = match purpose {
        _ if let Some(vfs) = vfs => {
            let flags = flags(OpenFlags::SQLITE_OPEN_READ_WRITE);
            Connection::open_with_flags_and_vfs(path, flags, vfs).map_err(super::Failure::from)
        }
        Purpose::Write | Purpose::Read => {
            Connection::open_with_flags(path, flags(OpenFlags::SQLITE_OPEN_READ_WRITE))
                .map_err(super::Failure::from)
        }
        Purpose::ReadOnly => open_read_only(path),
    };
    let db = db.map_err(|failure| failure.into_error(&doing))?;
    // Where calls must not wait, their caller does (see [`alone`](super::alone)).
    let wait = if vfs.is_some() { Duration::ZERO } else { BUSY_WAIT };
    prepare(&db, purpose, wait).map_err(|failure| failure.into_error(&doing))?;
    Ok(db)
}

fn flags(access: OpenFlags) -> OpenFlags {
    access | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_EXRESCODE
}

/// Where nothing can be written SQLite cannot make the index of the write-ahead log. It can use one that is there, and a
/// catalog leaves both behind (see [`prepare`]). Where there is neither, nobody is writing, and the file can be taken as it is.
fn open_read_only(path: &Path) -> Outcome<Connection> {
    let log_length = std::fs::metadata(log_of(path)).map_or(0, |log| log.len());
    let index_can_be = beside(path, "-shm").exists() || can_write_beside(path);
    let option = match (index_can_be, log_length) {
        (true, _) => "mode=ro",
        (false, 0) => "immutable=1",
        (false, _) => return Err(log_without_index(path).into()),
    };
    let uri = format!("file:{}?{option}", percent_encoded(path));
    let access = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    Ok(Connection::open_with_flags(uri, flags(access))?)
}

fn log_without_index(path: &Path) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "{} has changes in its log and can only be opened where it can be written; open the pool there once",
            path.display()
        ),
    )
}

/// The write-ahead log of a database.
pub(crate) fn log_of(path: &Path) -> PathBuf {
    beside(path, "-wal")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn can_write_beside(path: &Path) -> bool {
    let directory = path.parent().unwrap_or(path);
    rustix::fs::access(directory, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Everything but the unreserved characters and `/` as `%XX`, so that `?` and `#` in a path stay part of it.
fn percent_encoded(path: &Path) -> String {
    path.as_os_str().as_bytes().iter().fold(String::new(), |mut out, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' => {
                out.push(*byte as char);
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
        out
    })
}

fn refuse_old_sqlite(version: i32) -> Result<()> {
    if version >= SQLITE_OLDEST {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "this program was built with SQLite {version}, which can damage a catalog that several processes use; \
             build it with {SQLITE_OLDEST} or newer"
        ),
    ))
}

fn prepare(db: &Connection, purpose: Purpose, wait: Duration) -> Outcome<()> {
    db.busy_timeout(wait)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    // Plans depend on statements alone; otherwise each statement is planned again once its values are bound.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    db.pragma_update(None, "trusted_schema", false)?;
    db.pragma_update(None, "cell_size_check", true)?;
    db.pragma_update(None, "foreign_keys", true)?;
    db.pragma_update(None, "temp_store", "memory")?;
    db.set_prepared_statement_cache_capacity(64);
    match purpose {
        Purpose::Write => {
            write_ahead(db)?;
            db.pragma_update(None, "synchronous", "full")?;
            // The log keeps its blocks when the last user leaves: on a full disk a deletion could not get new ones, and
            // on a read-only file system the log could not be made.
            db.file_control(Some(MAIN_DB), FileControl::PersistWal(&mut 1))?;
        }
        Purpose::Read => {
            db.file_control(Some(MAIN_DB), FileControl::PersistWal(&mut 1))?;
            db.pragma_update(None, "query_only", true)?;
        }
        Purpose::ReadOnly => db.pragma_update(None, "query_only", true)?,
    }
    Ok(())
}

/// Has the catalog use a write-ahead log, or fails. With a journal in its place, whose removal is what commits, a power cut could
/// bring that back and undo a commit.
fn write_ahead(db: &Connection) -> Outcome<()> {
    let mut change = db.prepare("PRAGMA journal_mode = wal")?;
    let mut answer = change.query([])?;
    // SQLite answers before it changes the file, and says only at the end of its answer that it could not.
    let mut mode = String::new();
    while let Some(row) = answer.next()? {
        mode = row.get(0)?;
    }
    if mode == "wal" {
        return Ok(());
    }
    let what = format!("the catalog has no write-ahead log, but is in mode '{mode}'; try again");
    Err(Error::new(ErrorKind::Io, what).into())
}

/// Whether the file is an empty database, as a crash during the creation of a pool leaves it.
pub(crate) fn is_blank(db: &Connection) -> Outcome<bool> {
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(tables == 0 && pragma(db, "application_id")? == 0)
}

/// Refuses a file that is not a catalog, or one of a format this program does not know.
pub(crate) fn check_format(db: &Connection) -> Outcome<()> {
    let (application, version) = (pragma(db, "application_id")?, pragma(db, "user_version")?);
    if application != schema::APPLICATION_ID {
        return Err(super::failure::corrupt(format!(
            "pool.sqlite is not a catalog: its application id is {application:#x}, expected {:#x}",
            schema::APPLICATION_ID
        )));
    }
    if version != schema::FORMAT_VERSION {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the pool has format version {version}, this program knows {}; use a newer one",
                schema::FORMAT_VERSION
            ),
        )
        .into());
    }
    Ok(())
}

fn pragma(db: &Connection, name: &str) -> Outcome<i32> {
    Ok(db.pragma_query_value(None, name, |row| row.get(0))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_sqlite_with_the_log_reset_race_is_refused() {
        assert_eq!(refuse_old_sqlite(3_051_002).unwrap_err().kind(), ErrorKind::Unsupported);
        refuse_old_sqlite(rusqlite::version_number()).unwrap();
    }

    #[test]
    fn a_path_with_marks_of_a_uri_stays_a_path() {
        assert_eq!(percent_encoded(Path::new("/a b/c?d#e%/f")), "/a%20b/c%3Fd%23e%25/f");
    }
}
