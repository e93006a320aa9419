//! Opening and creating a pool: what is looked at before anything is trusted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;
use vellum_disk::{Disk, File};
use vellum_engine::{Error, ErrorKind, PoolId, Result};

use crate::canary::Canary;
use crate::catalog::registry::{self, Place, PoolRow};
use crate::catalog::{DECISION_WAIT, Database, Outcome, connection};
use crate::lock::LockFile;
use crate::pool::{Found, PoolDirectory};
use crate::store::StoreOptions;

/// How long an opener waits for another one that is creating the pool.
const CREATION_WAIT: Duration = Duration::from_secs(10);
const CREATION_POLL: Duration = Duration::from_millis(20);

/// How a pool is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// What may be done with it, and whether it must exist.
    pub mode: Mode,
    /// What to do with a pool that is a copy of one that is still there.
    pub copies: Copies,
    /// How its layers are kept.
    pub store: StoreOptions,
    /// How long a change that is prepared may keep everybody else from changing the pool. After that it is undone, and who
    /// prepared it is told so when it is to be committed.
    pub decision_wait: Duration,
}

impl Default for OpenOptions {
    /// A pool that must exist and is no copy; 30 s for what is prepared.
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            copies: Copies::default(),
            store: StoreOptions::default(),
            decision_wait: DECISION_WAIT,
        }
    }
}

/// What may be done with a pool that is opened, and whether it must exist. A pool on a read-only file system opens for
/// reading whatever was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// It must exist.
    #[default]
    Existing,
    /// It is created if it does not exist; the directory above must.
    CreateIfMissing,
    /// It must exist, and is not written.
    ReadOnly,
}

/// What to do with a pool that is a copy of one that is still there. Both have the same id, so that a link to one of them
/// could mean the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Copies {
    /// It is refused, with an error that says where the original is.
    #[default]
    Refuse,
    /// It gets a new id. Links between its own images follow; children in other pools stay with the original.
    GiveNewId,
}

/// The parts of an open pool.
pub(crate) struct Opened<D: Disk> {
    pub directory: PoolDirectory<D>,
    pub id: PoolId,
    pub database: Database,
    pub locks: LockFile<D::File>,
    pub look_only: bool,
}

/// Opens the pool at `path`, or creates it.
pub(crate) async fn open<D: Disk>(
    disk: D,
    path: &Path,
    options: &OpenOptions,
) -> Result<Opened<D>> {
    let directory = PoolDirectory::new(disk.clone(), absolute(path)?);
    let file_system = directory.file_system().await?;
    let look_only = options.mode == Mode::ReadOnly || file_system.read_only;
    let create = options.mode == Mode::CreateIfMissing && !look_only;
    match (directory.look().await?, create) {
        (Found::Nothing, false) => return Err(no_pool(directory.path())),
        (_, true) => directory.make().await?,
        (Found::Pool { lacks_live: true }, false) if !look_only => directory.make_live().await?,
        (Found::Pool { .. }, false) => {}
    }
    let lock_file = directory.open_lock(look_only, file_system.read_only).await?;
    let inode = lock_file.as_ref().map(|file| file.identity());
    let locks = LockFile::new(lock_file);
    if create {
        wait_for_creators(&locks).await?;
    }
    let place = Place { path: directory.path().to_owned(), inode: inode.map_or(0, |id| id.inode) };
    let opened = open_catalog(&disk, &directory, &place, create, look_only).await;
    let opened = match opened {
        Ok((database, row)) if !look_only && !row.look_only => {
            let unsynced = options.store.makes(Canary::UnsyncedCatalog);
            let synced = if unsynced { Ok(()) } else { directory.sync_catalog(&database).await };
            synced.map(|()| (database, row))
        }
        opened => opened,
    };
    if create {
        locks.unlock_pool()?;
    }
    let (database, row) = opened?;
    let database = database.with_decision_wait(options.decision_wait);
    let look_only = look_only || row.look_only;
    let id = settle_place(&disk, &database, &row, place, look_only, options.copies).await?;
    if !look_only {
        database.accept();
    }
    Ok(Opened { directory, id, database, locks, look_only })
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|error| Error::io(format!("find the directory {}", path.display()), error))
}

fn no_pool(path: &Path) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("there is no pool at {}; create one, or look at the path", path.display()),
    )
}

async fn wait_for_creators<F: File>(locks: &LockFile<F>) -> Result<()> {
    let deadline = tokio::time::Instant::now() + CREATION_WAIT;
    while !locks.try_lock_pool()? {
        if tokio::time::Instant::now() > deadline {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "another process has been creating the pool for {} s",
                    CREATION_WAIT.as_secs()
                ),
            ));
        }
        tokio::time::sleep(CREATION_POLL).await;
    }
    Ok(())
}

async fn open_catalog<D: Disk>(
    disk: &D,
    directory: &PoolDirectory<D>,
    place: &Place,
    create: bool,
    look_only: bool,
) -> Result<(Database, PoolRow)> {
    let path = directory.catalog();
    let vfs = disk.sqlite_vfs();
    if look_only {
        return Database::open_read_only(&path, vfs, |db| registry::load(db)).await;
    }
    if create {
        directory.make_catalog_file().await?;
    } else if !directory.has_catalog().await? {
        return Err(no_pool(directory.path()));
    }
    let (database, found) = Database::open(&path, vfs.clone(), |db| load(db)).await?;
    let row = match found {
        Some(row) => row,
        None if directory.has_layers().await? => return Err(directory.no_catalog("empty")),
        None if !create => return Err(no_pool(directory.path())),
        None => {
            let (place, id) = (place.clone(), random_pool_id(disk));
            let create = move |db: &Connection| {
                registry::create(db, id, &place)?;
                registry::load(db)
            };
            database.write("create the catalog", create).await?
        }
    };
    if row.look_only {
        drop(database);
        return Database::open_read_only(&path, vfs, |db| registry::load(db)).await;
    }
    Ok((database, row))
}

/// The pool; `None` for a catalog that is blank.
fn load(db: &Connection) -> Outcome<Option<PoolRow>> {
    if connection::is_blank(db)? { Ok(None) } else { registry::load(db).map(Some) }
}

fn random_pool_id(disk: &impl Disk) -> PoolId {
    let mut bytes = [0; 16];
    disk.fill_with_chance(&mut bytes);
    PoolId(bytes)
}

/// Finds out whether the pool is where it was, was moved, or is a copy; remembers where it is, and answers its id.
async fn settle_place<D: Disk>(
    disk: &D,
    database: &Database,
    row: &PoolRow,
    here: Place,
    look_only: bool,
    copies: Copies,
) -> Result<PoolId> {
    let copied = is_copy(disk, &row.place, &here).await;
    if copied && (copies == Copies::Refuse || look_only) {
        return Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "the pool at {} is a copy of the one at {}, and both have id {}; remove it, or give it an id of its own with \
                 `vellum pool new-id NAME --path DIR`",
                here.path.display(),
                row.place.path.display(),
                row.id
            ),
        ));
    }
    if row.place == here || look_only {
        return Ok(row.id);
    }
    let id = if copied { random_pool_id(disk) } else { row.id };
    database
        .write("remember where the pool is", move |db| {
            let now = registry::load(db)?;
            if now.place == here {
                // Somebody else opened it at the same time, and its images may have been linked by that id already.
                return Ok(now.id);
            }
            if copied {
                registry::change_id(db, id)?;
            }
            registry::move_to(db, &here)?;
            Ok(id)
        })
        .await
}

/// Whether the pool that was at `recorded` is still there, and is not the one `here` under another path.
async fn is_copy<D: Disk>(disk: &D, recorded: &Place, here: &Place) -> bool {
    if recorded.path == here.path {
        return false;
    }
    let original = PoolDirectory::lock_identity(disk, &recorded.path).await;
    let this = PoolDirectory::lock_identity(disk, &here.path).await;
    original.is_some_and(|file| file.inode == recorded.inode) && original != this
}
