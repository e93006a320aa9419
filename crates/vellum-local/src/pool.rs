//! [`PoolDirectory`]: the directory of a pool. Which names it has, how it is made, where it may lie.
//!
//! ```text
//! <pool>/
//!   pool.sqlite            the catalog, with -wal and -shm beside it
//!   pool.lock              empty; its byte locks say who owns what
//!   reserve                space to give up, so that a full disk can be emptied
//!   layers/<layer id>/     the files of a layer, from its first write on
//!   live/<layer id>.0 .1   the logs of a layer that is being written
//! ```
//!
//! Nothing here looks into the catalog or into a layer.

use std::io;
use std::path::{Path, PathBuf};

use vellum_core::{Buffer, Extent};
use vellum_disk::{Disk, Durability, File, FileIdentity, FileSystem, OpenMode};
use vellum_engine::{Error, ErrorKind, ImageId, Result};

use crate::LayerId;
use crate::catalog::connection::log_of;
use crate::catalog::{Database, log};

/// How much a deletion on a full disk may fall back on, in bytes.
const RESERVE_BYTES: u64 = 16 << 20;

/// The reserve is only rebuilt while this much is left beside it, so that it never fills the disk itself.
const SPARE_BYTES: u64 = 64 << 20;

/// With less than this the disk counts as full, whatever the errors say.
const FULL_BYTES: u64 = 1 << 20;

/// How much of a file is written anew at once, in bytes.
const WRITE_ANEW_STEP: u64 = 1 << 20;

/// A new file system has this in its root directory.
const HARMLESS: &str = "lost+found";

/// The directory of a pool.
#[derive(Clone, Debug)]
pub(crate) struct PoolDirectory<D: Disk> {
    disk: D,
    path: PathBuf,
}

/// What is found where a pool is to be opened or created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// No such directory, or one with nothing in it.
    Nothing,
    /// A pool, or the beginning of one that a crash left.
    Pool {
        /// Whether it has a catalog, and no directory for live logs.
        lacks_live: bool,
    },
}

impl<D: Disk> PoolDirectory<D> {
    /// The pool at an absolute path.
    pub(crate) fn new(disk: D, path: PathBuf) -> Self {
        Self { disk, path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn catalog(&self) -> PathBuf {
        self.path.join("pool.sqlite")
    }

    fn lock(&self) -> PathBuf {
        self.path.join("pool.lock")
    }

    fn layers(&self) -> PathBuf {
        self.path.join("layers")
    }

    fn reserve(&self) -> PathBuf {
        self.path.join("reserve")
    }

    pub(crate) fn live(&self) -> PathBuf {
        self.path.join("live")
    }

    pub(crate) fn layer(&self, layer: LayerId) -> PathBuf {
        self.layers().join(layer.to_string())
    }

    /// Looks what is there. `Invalid` for a directory that holds something else, `Corrupt` for a pool without its catalog, or
    /// without the directory of its layers: all of them would look like layers that were never written.
    pub(crate) async fn look(&self) -> Result<Found> {
        let entries = match self.disk.list_dir(&self.path).await {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(self.failed("look into", error)),
        };
        let has = |path: &Path| entries.iter().any(|entry| entry == path);
        if has(&self.catalog()) {
            // Whoever creates a pool makes it before the catalog, but perhaps after this was listed.
            if !has(&self.layers()) && !self.has_layers_directory().await? {
                return Err(self.no_layers());
            }
            return Ok(Found::Pool { lacks_live: !has(&self.live()) });
        }
        if self.has_layers().await? {
            return Err(self.no_catalog("missing"));
        }
        let ours = [self.lock(), self.layers(), self.live(), self.reserve()];
        let stranger = entries
            .iter()
            .find(|entry| !ours.contains(entry) && entry.file_name() != Some(HARMLESS.as_ref()));
        match stranger {
            None if has(&self.lock()) => Ok(Found::Pool { lacks_live: false }),
            None => Ok(Found::Nothing),
            Some(stranger) => Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "{} is not a pool and not empty (it holds {}); choose another directory",
                    self.path.display(),
                    stranger.file_name().unwrap_or_default().display()
                ),
            )),
        }
    }

    /// Whether a layer has files here.
    pub(crate) async fn has_layers(&self) -> Result<bool> {
        Ok(self.list(&self.layers()).await?.is_some_and(|entries| !entries.is_empty()))
    }

    async fn has_layers_directory(&self) -> Result<bool> {
        Ok(self.list(&self.layers()).await?.is_some())
    }

    /// What is in a directory of the pool; `None` if it is not there.
    async fn list(&self, directory: &Path) -> Result<Option<Vec<PathBuf>>> {
        match self.disk.list_dir(directory).await {
            Ok(entries) => Ok(Some(entries)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("look into", error)),
        }
    }

    /// That there are layers, and nothing says what they are. A catalog made anew would call them a leak.
    pub(crate) fn no_catalog(&self, how: &str) -> Error {
        Error::corrupt(format!(
            "{} holds layers, and the catalog that says what they are is {how}; restore pool.sqlite from a backup",
            self.path.display()
        ))
    }

    /// That the directory of the layers is gone, and what images hold with it.
    fn no_layers(&self) -> Error {
        Error::corrupt(format!(
            "{} has a catalog and no directory `layers`, where what its images hold would be; bring it back from a backup, or make \
             an empty one if no image ever held anything",
            self.path.display()
        ))
    }

    /// Makes what is missing of the directory, without the catalog, durably. Idempotent; the directory above must exist.
    pub(crate) async fn make(&self) -> Result<()> {
        let failed = |error| self.failed("create", error);
        if self.make_dir(&self.path).await? {
            let above = self.path.parent().unwrap_or(&self.path);
            self.disk.sync_dir(above).await.map_err(failed)?;
        }
        // It is older than the catalog: one that is missing later was removed, and somebody may be holding locks on it.
        if !self.has_catalog().await? {
            self.disk.open(&self.lock(), OpenMode::ReadWriteOrCreate).await.map_err(failed)?;
        }
        self.make_dir(&self.layers()).await?;
        self.make_dir(&self.live()).await?;
        self.disk.sync_dir(&self.path).await.map_err(failed)
    }

    /// Makes the directory of the live logs if it is missing: a pool that was brought back from a backup needs nothing in it.
    pub(crate) async fn make_live(&self) -> Result<()> {
        self.make_dir(&self.live()).await.map(|_| ())
    }

    async fn make_dir(&self, path: &Path) -> Result<bool> {
        match self.disk.create_dir(path).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(self.failed("create", error)),
        }
    }

    /// What the pool lies on, or would. `Unsupported` where locks or caches reach past this machine's kernel.
    pub(crate) async fn file_system(&self) -> Result<FileSystem> {
        let mut file_system = self.disk.file_system(&self.path).await;
        if let (Err(error), Some(above)) = (&file_system, self.path.parent())
            && error.kind() == io::ErrorKind::NotFound
        {
            // A pool that is still to be made will be where its parent directory is.
            file_system = self.disk.file_system(above).await;
        }
        let file_system =
            file_system.map_err(|error| self.failed("look at the file system of", error))?;
        if file_system.local {
            return Ok(file_system);
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} is on {}, where another machine could change it unseen; put the pool on a local file system",
                self.path.display(),
                file_system.name
            ),
        ))
    }

    /// Opens the lock file. `None` if there is none, where nobody can write anyway.
    pub(crate) async fn open_lock(
        &self,
        look_only: bool,
        nobody_writes: bool,
    ) -> Result<Option<D::File>> {
        let mode = if look_only { OpenMode::Read } else { OpenMode::ReadWrite };
        match self.disk.open(&self.lock(), mode).await {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed("open pool.lock of", error))
            }
            Err(_) if nobody_writes => Ok(None),
            Err(_) => Err(self.no_lock()),
        }
    }

    /// That nobody can tell who uses the images.
    fn no_lock(&self) -> Error {
        Error::corrupt(format!(
            "{} has no `pool.lock`, whose locks say who uses its images; end all programs that use the pool, and make an empty one",
            self.path.display()
        ))
    }

    /// Which file the lock file in a directory is, if there is one.
    pub(crate) async fn lock_identity(disk: &D, directory: &Path) -> Option<FileIdentity> {
        let file = disk.open(&directory.join("pool.lock"), OpenMode::Read).await.ok()?;
        Some(file.identity())
    }

    /// Makes the file of the catalog, empty, owned by whom the directory belongs to. SQLite makes the files beside it for
    /// the same owner. It is never opened but through SQLite afterwards: closing it would drop SQLite's locks.
    pub(crate) async fn make_catalog_file(&self) -> Result<()> {
        let failed = |error| self.failed("create the catalog of", error);
        match self.disk.open(&self.catalog(), OpenMode::Create).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
        self.disk.sync_dir(&self.path).await.map_err(failed)
    }

    /// Makes durable what an open catalog shows. Its log may end with a change whose writer died before it could sync it: whoever
    /// opens the catalog next sees it, and a power cut takes it back. Until it is durable nothing may be built on it, and no file
    /// removed because of it. Locks of SQLite are not on the log, so that it may be opened and closed.
    pub(crate) async fn sync_catalog(&self, database: &Database) -> Result<()> {
        let failed = |error| self.failed("sync the catalog of", error);
        match self.disk.open(&log_of(&self.catalog()), OpenMode::ReadWrite).await {
            Ok(log) if log.sync_data().await.is_err() => {
                // What was missing counts as written now, and the next sync would say that all is well. So it is written
                // anew, while nobody else writes.
                let (_, _alone) = database.prepare("write the log anew", |_| Ok(())).await?;
                write_anew(&log).await.map_err(failed)?;
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        self.disk.sync_dir(&self.path).await.map_err(failed)
    }

    /// Whether the catalog's log goes on behind what everybody sees, which are so many frames. Then somebody is writing, or died
    /// in a commit.
    pub(crate) async fn log_goes_on(&self, frames: u64) -> Result<bool> {
        let failed = |error| self.failed("look at the log of the catalog of", error);
        let file = match self.disk.open(&log_of(&self.catalog()), OpenMode::Read).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file.map_err(failed)?,
        };
        let Some(header) = read_if_long(&file, 0).await.map_err(failed)? else { return Ok(false) };
        let frame = read_if_long(&file, log::end(&header, frames)).await.map_err(failed)?;
        Ok(frame.is_some_and(|frame| log::goes_on(&header, &frame)))
    }

    /// Whether there is a catalog, be it an empty file.
    pub(crate) async fn has_catalog(&self) -> Result<bool> {
        let entries = self.disk.list_dir(&self.path).await;
        let entries = entries.map_err(|error| self.failed("look into", error))?;
        Ok(entries.contains(&self.catalog()))
    }

    /// Whether a layer has files.
    pub(crate) async fn has_files(&self, layer: LayerId) -> Result<bool> {
        Ok(self.files_of(layer).await?.is_some())
    }

    /// The files of a layer; `None` if it has no directory.
    async fn files_of(&self, layer: LayerId) -> Result<Option<Vec<PathBuf>>> {
        match self.disk.list_dir(&self.layer(layer)).await {
            Ok(files) => Ok(Some(files)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("look at a layer of", error)),
        }
    }

    /// How many bytes of storage the files of a layer occupy, data and map. Its logs are not counted: they come and go.
    pub(crate) async fn stored_bytes(&self, layer: LayerId) -> Result<u64> {
        let mut sum = 0;
        for path in self.files_of(layer).await?.unwrap_or_default() {
            let bytes = match self.disk.open(&path, OpenMode::Read).await {
                Ok(file) => file.allocated().await,
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
                Err(error) => Err(error),
            };
            sum += bytes.map_err(|error| self.failed("measure a layer of", error))?;
        }
        Ok(sum)
    }

    /// Whether the disk is so full that a deletion may need the reserve.
    pub(crate) async fn is_full(&self) -> bool {
        let file_system = self.disk.file_system(&self.path).await;
        file_system.is_ok_and(|file_system| file_system.available < FULL_BYTES)
    }

    /// Gives the reserve up. Says whether there was one.
    pub(crate) async fn give_up_reserve(&self) -> bool {
        let given = self.disk.remove_file(&self.reserve()).await.is_ok();
        if given {
            tracing::warn!(pool = %self.path.display(), "the disk is full: gave up the reserve to delete something");
        }
        given
    }

    /// Makes the reserve if it is missing, or not whole, and there is room for it. Best effort: a pool without one works as well, until
    /// its disk is full.
    pub(crate) async fn build_reserve(&self) {
        let roomy = self.disk.file_system(&self.path).await;
        if !roomy.is_ok_and(|found| found.available >= RESERVE_BYTES + SPARE_BYTES) {
            return;
        }
        let Ok(file) = self.disk.open(&self.reserve(), OpenMode::ReadWriteOrCreate).await else {
            return;
        };
        // An earlier attempt may have been cut short.
        if file.allocated().await.is_ok_and(|bytes| bytes >= RESERVE_BYTES) {
            return;
        }
        if let Err(error) = file.allocate(Extent::new(0, RESERVE_BYTES)).await {
            tracing::debug!(pool = %self.path.display(), %error, "no reserve for a full disk");
            let _ = self.disk.remove_file(&self.reserve()).await;
        }
    }

    /// The layers that have a directory or a log, known to the catalog or not.
    pub(crate) async fn layers_on_disk(&self) -> Result<Vec<LayerId>> {
        let mut found = Vec::new();
        for directory in [self.layers(), self.live()] {
            let entries = self.list(&directory).await?.unwrap_or_default();
            found.extend(entries.iter().filter_map(|path| layer_of_path(path)));
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// What lies among the files of layers and is none, by its path within the pool; and of which images somebody has said where
    /// their holder is reached.
    pub(crate) async fn others(&self) -> Result<Others> {
        let mut others = Others::default();
        for directory in [self.layers(), self.live()] {
            for path in self.list(&directory).await?.unwrap_or_default() {
                if layer_of_path(&path).is_some() {
                    continue;
                }
                match hinted(&path) {
                    Some(image) if directory == self.live() => others.hints.push((path, image)),
                    _ => {
                        let named = path.strip_prefix(&self.path).unwrap_or(&path);
                        others.strangers.push(named.display().to_string());
                    }
                }
            }
        }
        others.strangers.sort_unstable();
        Ok(others)
    }

    /// Removes a hint where a holder is reached; that it is not there is fine.
    pub(crate) async fn remove_hint(&self, path: &Path) -> Result<()> {
        match self.disk.remove_file(path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed("remove a hint from", error))
            }
            _ => Ok(()),
        }
    }

    /// Makes durable that files of layers are gone.
    pub(crate) async fn sync_removals(&self) -> Result<()> {
        for directory in [self.layers(), self.live()] {
            let synced = self.disk.sync_dir(&directory).await;
            synced.map_err(|error| self.failed("sync the directories of", error))?;
        }
        Ok(())
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        Error::io(format!("{what} the pool {}", self.path.display()), error)
    }
}

/// The bytes at an offset; `None` if the file is shorter.
async fn read_if_long<const LENGTH: usize>(
    file: &impl File,
    offset: u64,
) -> io::Result<Option<[u8; LENGTH]>> {
    let buffer = Buffer::from_vec(vec![0; LENGTH]);
    match file.read_at(buffer, 0..LENGTH, offset).await {
        (_, Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        (buffer, read) => read.map(|()| buffer[..].first_chunk().copied()),
    }
}

/// Writes what a file reads as once more, and syncs it.
async fn write_anew(file: &impl File) -> io::Result<()> {
    let all = Extent::new(0, file.length().await?);
    for piece in all.chunks(WRITE_ANEW_STEP) {
        let length = piece.len_usize();
        let buffer = Buffer::from_vec(vec![0; length]);
        let (buffer, read) = file.read_at(buffer, 0..length, piece.offset()).await;
        read?;
        file.write_at(vec![buffer.freeze()], piece.offset(), Durability::AtSync).await?;
    }
    file.sync_data().await
}

/// The layer a directory in `layers/` or a log in `live/` belongs to; `None` for files of others.
/// What lies among the files of layers and is none.
#[derive(Debug, Default)]
pub(crate) struct Others {
    /// What nobody knows, by its path within the pool.
    pub(crate) strangers: Vec<String>,
    /// Hints where the holder of an image is reached.
    pub(crate) hints: Vec<(PathBuf, ImageId)>,
}

/// The image of a hint, or of one that was not finished.
fn hinted(path: &Path) -> Option<ImageId> {
    let name = path.file_name()?.to_str()?;
    let id = name.strip_suffix(".holder").or_else(|| name.strip_suffix(".holder-new"))?;
    LayerId::from_hex(id).map(|_| ImageId::new(id))
}

fn layer_of_path(path: &Path) -> Option<LayerId> {
    let name = path.file_name()?.to_str()?;
    let id = name.strip_suffix(".0").or_else(|| name.strip_suffix(".1")).unwrap_or(name);
    LayerId::from_hex(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_a_layer_has_count_as_its_files() {
        let id = LayerId::new(0xab).unwrap();
        for ours in
            ["/p/layers/00000000000000ab", "/p/live/00000000000000ab.0", "00000000000000ab.1"]
        {
            assert_eq!(layer_of_path(Path::new(ours)), Some(id), "{ours}");
        }
        for other in
            ["/p/live/00000000000000ab.holder", "/p/layers/ab", "/p/live/00000000000000ab.2", "/"]
        {
            assert_eq!(layer_of_path(Path::new(other)), None, "{other}");
        }
    }
}
