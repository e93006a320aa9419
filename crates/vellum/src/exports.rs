//! Images as NBD exports.
//!
//! An image is owned from its first connection that may write to its last, and a moment longer, so that a client that comes
//! back finds it. Connections of this process share it. Asking what there is never takes ownership.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex as SyncMutex;
use tokio::sync::Mutex;
use vellum_core::{Extent, ImageSpec};
use vellum_engine::{Error, ErrorKind, Result};
use vellum_image::image::Open;
use vellum_image::{DiscardPolicy, MappedKind, WriteOptions, ZeroOptions};
use vellum_nbd::proto::meta::{STATE_HOLE, STATE_ZERO};
use vellum_nbd::{
    Context, Errno, Export, ExportInfo, Exports, Listed, NbdError, OpenError, ReadPiece, Status,
    ZeroFlags,
};

use crate::vellum::Located;
use crate::{Catalog, Image, Vellum, control};

/// What an export is advised to be used in.
const PREFERRED_BLOCK: u32 = 4096;
/// How much one `NBD_CMD_CACHE` brings closer at most.
const CACHE_MAX: u64 = 64 << 20;
const CACHE_STEP: u64 = 1 << 20;

/// Which images a server offers.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// Those, or all of the home if there are none.
    pub specs: Vec<ImageSpec>,
    /// Whether none of them takes writes.
    pub read_only: bool,
    /// How long an image is kept after its last connection.
    pub grace: Duration,
    /// Where this process is asked about the images it holds.
    pub control: PathBuf,
}

/// The images of a home as exports. Clones share what is held.
#[derive(Clone)]
pub struct ImageExports {
    vellum: Vellum,
    options: Arc<ExportOptions>,
    /// By image id: what is held, or a place to wait while it is opened or closed.
    held: Arc<SyncMutex<HashMap<String, Arc<Slot>>>>,
}

type Slot = Mutex<Option<Arc<Held>>>;

/// An image that this process owns.
struct Held {
    image: Image,
    catalog: Catalog,
    users: AtomicUsize,
}

impl fmt::Debug for ImageExports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageExports({} held)", self.held.lock().len())
    }
}

impl ImageExports {
    /// The images of a home.
    pub fn new(vellum: Vellum, options: ExportOptions) -> Self {
        Self { vellum, options: Arc::new(options), held: Arc::default() }
    }

    /// The image with this id, if this process holds it, and what keeps it held.
    pub(crate) async fn held(&self, image: &str) -> Option<(Image, User)> {
        let slot = self.held.lock().get(image)?.clone();
        let held = slot.lock().await.clone()?;
        Some((held.image.clone(), User::new(self, image.to_owned(), held)))
    }

    /// Gives up all that is held, after the last connection. Says whether every image was synced.
    pub async fn close_all(&self) -> bool {
        let slots: Vec<_> = self.held.lock().drain().map(|(_, slot)| slot).collect();
        let mut well = true;
        for slot in slots {
            if let Some(held) = slot.lock().await.take() {
                well &= held.close().await;
            }
        }
        well
    }

    async fn own(&self, located: &Located) -> Result<User> {
        let id = located.record.id.to_string();
        let slot = self.held.lock().entry(id.clone()).or_default().clone();
        let mut here = slot.lock().await;
        if let Some(held) = &*here {
            return Ok(User::new(self, id, held.clone()));
        }
        let image = self.vellum.open_located(located, Open::Own).await?;
        if let Err(error) = control::leave_hint(&located.catalog, image.id(), &self.options.control)
        {
            tracing::warn!(image = %located.record.name, %error, "others will not find who holds the image");
        }
        let held =
            Arc::new(Held { image, catalog: located.catalog.clone(), users: AtomicUsize::new(0) });
        *here = Some(held.clone());
        // The slot may have been taken from the table while this waited for it.
        self.held.lock().insert(id.clone(), slot.clone());
        Ok(User::new(self, id, held))
    }

    /// Closes an image that has had no user for a while.
    async fn release(self, id: String) {
        tokio::time::sleep(self.options.grace).await;
        let Some(slot) = self.held.lock().get(&id).cloned() else { return };
        let mut here = slot.lock().await;
        if here.as_ref().is_some_and(|held| held.users.load(Ordering::SeqCst) == 0)
            && let Some(held) = here.take()
        {
            held.close().await;
        }
        drop(here);
        let mut table = self.held.lock();
        if Arc::strong_count(&slot) == 2 && slot.try_lock().is_ok_and(|here| here.is_none()) {
            table.remove(&id);
        }
    }

    fn allows(&self, spec: &ImageSpec) -> bool {
        let same = |allowed: &ImageSpec| {
            allowed.pool.as_ref().map(AsRef::as_ref).unwrap_or(crate::home::DEFAULT_POOL)
                == spec.pool.as_ref().map(AsRef::as_ref).unwrap_or(crate::home::DEFAULT_POOL)
                && allowed.image == spec.image
                && (allowed.snapshot.is_none() || allowed.snapshot == spec.snapshot)
        };
        self.options.specs.is_empty() || self.options.specs.iter().any(same)
    }

    async fn locate(&self, name: &str) -> Result<Located, OpenError> {
        let unknown = |why: String| OpenError::Unknown(why);
        let spec: ImageSpec =
            name.parse().map_err(|error| unknown(format!("export '{name}': {error}")))?;
        if !self.allows(&spec) {
            return Err(unknown(format!("export '{name}' is not offered here")));
        }
        self.vellum.locate(&spec).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound => unknown(error.chain()),
            _ => OpenError::Refused(error.chain()),
        })
    }

    fn describe(&self, located: &Located) -> ExportInfo {
        let record = &located.record;
        let snapshot =
            located.snapshot.as_ref().and_then(|snapshot| record.revision(&snapshot.revision));
        ExportInfo {
            size: snapshot.map_or_else(|| record.size(), |revision| revision.size),
            read_only: self.options.read_only || located.snapshot.is_some(),
            description: String::new(),
            preferred_block: PREFERRED_BLOCK,
        }
    }
}

impl Held {
    async fn close(&self) -> bool {
        control::remove_hint(&self.catalog, self.image.id());
        let closed = self.image.clone().close().await;
        if let Err(error) = &closed {
            tracing::error!(image = %self.image.record().name, error = %error.chain(), "an image could not be synced when it was closed");
        }
        closed.is_ok()
    }
}

/// Keeps an image held.
pub(crate) struct User {
    exports: ImageExports,
    id: String,
    held: Arc<Held>,
}

impl User {
    fn new(exports: &ImageExports, id: String, held: Arc<Held>) -> Self {
        held.users.fetch_add(1, Ordering::SeqCst);
        Self { exports: exports.clone(), id, held }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if self.held.users.fetch_sub(1, Ordering::SeqCst) == 1
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(self.exports.clone().release(std::mem::take(&mut self.id)));
        }
    }
}

impl Exports for ImageExports {
    type Export = ImageExport;

    async fn list(&self) -> Result<Vec<Listed>, OpenError> {
        let images =
            self.vellum.images(None).await.map_err(|error| OpenError::Refused(error.chain()))?;
        let mut listed = Vec::new();
        for mut located in images {
            let snapshots = std::mem::take(&mut located.record.snapshots);
            let specs =
                std::iter::once(None).chain(snapshots.into_iter().map(Some)).map(|snapshot| {
                    located.snapshot = snapshot;
                    located.spec()
                });
            let offered = specs.filter(|spec| self.allows(spec));
            listed.extend(
                offered.map(|spec| Listed { name: spec.to_string(), description: String::new() }),
            );
        }
        Ok(listed)
    }

    async fn info(&self, name: &str) -> Result<ExportInfo, OpenError> {
        Ok(self.describe(&self.locate(name).await?))
    }

    async fn open(&self, name: &str) -> Result<Arc<ImageExport>, OpenError> {
        let located = self.locate(name).await?;
        let info = self.describe(&located);
        let refused = |error: Error| OpenError::Refused(error.chain());
        let what = match &located.snapshot {
            Some(snapshot) => Open::Snapshot(snapshot.name.clone()),
            None if self.options.read_only => Open::Read,
            None => {
                let user = self.own(&located).await.map_err(refused)?;
                let image = user.held.image.clone();
                return Ok(Arc::new(ImageExport { image, info, _user: Some(user) }));
            }
        };
        let image = self.vellum.open_located(&located, what).await.map_err(refused)?;
        Ok(Arc::new(ImageExport { image, info, _user: None }))
    }
}

/// An image, or a snapshot, that a connection uses.
pub struct ImageExport {
    image: Image,
    info: ExportInfo,
    _user: Option<User>,
}

impl fmt::Debug for ImageExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageExport({:?})", self.image)
    }
}

impl Export for ImageExport {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    fn try_read(&self, at: Extent, buffer: &mut [u8]) -> bool {
        let mut holes = Default::default();
        // Large holes are worth being sent as holes, by the way that can.
        self.image.try_read(at, buffer, &mut holes)
            && holes.iter().all(|hole| hole.length() < u64::from(PREFERRED_BLOCK))
    }

    async fn read(&self, at: Extent) -> Result<Vec<ReadPiece>, NbdError> {
        let pieces = self.image.read_pieces(at).await.map_err(nbd_error)?;
        Ok(pieces.into_iter().map(|piece| ReadPiece { at: piece.at, data: piece.data }).collect())
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), NbdError> {
        self.image.write(offset, data, WriteOptions { durable: fua }).await.map_err(nbd_error)
    }

    async fn flush(&self) -> Result<(), NbdError> {
        self.image.sync().await.map_err(nbd_error)
    }

    async fn trim(&self, at: Extent, fua: bool) -> Result<(), NbdError> {
        self.image.discard(at, DiscardPolicy::Zero, fua).await.map_err(nbd_error)
    }

    async fn write_zeroes(&self, at: Extent, flags: ZeroFlags) -> Result<(), NbdError> {
        let options = ZeroOptions { no_hole: flags.no_hole, fast: flags.fast, durable: flags.fua };
        self.image.write_zeroes(at, options).await.map_err(nbd_error)
    }

    async fn cache(&self, at: Extent) -> Result<(), NbdError> {
        for step in at.clip(at.offset() + CACHE_MAX).chunks(CACHE_STEP) {
            self.image.read_pieces(step).await.map_err(nbd_error)?;
        }
        Ok(())
    }

    async fn block_status(
        &self,
        at: Extent,
        context: Context,
        max: usize,
    ) -> Result<Vec<Status>, NbdError> {
        let map = self.image.map(at, max).await.map_err(nbd_error)?;
        let mut status: Vec<Status> = Vec::with_capacity(map.len());
        for entry in map {
            let flags = match (context, entry.kind) {
                (Context::Depth, _) => entry.depth as u64,
                (Context::Allocation, MappedKind::Data) => 0,
                (Context::Allocation, MappedKind::Zero | MappedKind::Nothing) => {
                    STATE_HOLE | STATE_ZERO
                }
            };
            match status.last_mut() {
                Some(last) if last.flags == flags => last.length += entry.at.length(),
                _ => status.push(Status { length: entry.at.length(), flags }),
            }
        }
        Ok(status)
    }
}

/// What a client is told of an error: the only place where kinds become numbers.
fn nbd_error(error: Error) -> NbdError {
    let errno = match error.kind() {
        ErrorKind::NoSpace => Errno::NoSpace,
        ErrorKind::ReadOnly => Errno::Permission,
        ErrorKind::Invalid => Errno::Invalid,
        ErrorKind::Unsupported => Errno::NotSupported,
        ErrorKind::OwnershipLost | ErrorKind::Stopped => Errno::Shutdown,
        _ => Errno::Io,
    };
    if errno == Errno::Io {
        tracing::error!(error = %error.chain(), "a request failed");
    }
    NbdError::new(errno, error.chain())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_become_the_numbers_that_clients_act_on() {
        for (kind, errno) in [
            (ErrorKind::NoSpace, Errno::NoSpace),
            (ErrorKind::ReadOnly, Errno::Permission),
            (ErrorKind::Invalid, Errno::Invalid),
            (ErrorKind::Unsupported, Errno::NotSupported),
            (ErrorKind::OwnershipLost, Errno::Shutdown),
            (ErrorKind::Poisoned, Errno::Io),
            (ErrorKind::Corrupt, Errno::Io),
        ] {
            assert_eq!(nbd_error(Error::new(kind, "x")).errno, errno, "{kind:?}");
        }
    }
}
