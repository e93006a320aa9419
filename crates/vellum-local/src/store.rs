//! [`LayerStore`]: the layers of a pool on disk, opened and shared.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use vellum_core::BufferPool;
use vellum_disk::{BootId, Disk};
use vellum_engine::{Error, ErrorKind, ImageId, Result, RevisionId};

use crate::LayerId;
use crate::canary::Canary;
use crate::format::PAGE;
use crate::layer::{Inner, LocalLayer};
use crate::map::pages::PageCache;
use crate::segment::SEGMENT;

/// How layers are kept.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// At most this many bytes of clean map pages are kept, for all layers of the pool together.
    pub map_cache_bytes: usize,
    /// A layer with more pages of changed states than this (4 KiB each) syncs by itself.
    pub changed_pages_max: usize,
    /// What was written is synced after this long, so that a client that never asks does not lose an hour.
    pub sync_interval: Duration,
    /// How long opening waits for writes of a killed process to land.
    pub lock_wait: Duration,
    /// What happened since the pool was last used, for where that cannot be known: in a container whose boot id is not the
    /// kernel's.
    pub after: Option<AfterStop>,
    /// Where buffers for copies come from.
    pub buffers: BufferPool,
    /// A mistake to make, for tests of tests.
    #[cfg(any(test, feature = "canaries"))]
    pub canary: Option<Canary>,
}

impl StoreOptions {
    /// Whether a mistake is to be made.
    #[cfg(any(test, feature = "canaries"))]
    pub(crate) fn makes(&self, mistake: Canary) -> bool {
        self.canary == Some(mistake)
    }

    /// Whether a mistake is to be made.
    #[cfg(not(any(test, feature = "canaries")))]
    pub(crate) fn makes(&self, _mistake: Canary) -> bool {
        false
    }
}

/// What may have happened to a writer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AfterStop {
    /// Its process died; the machine went on.
    ProcessDeath,
    /// The machine stopped: power cut, crash or reboot.
    PowerCut,
}

impl Default for StoreOptions {
    /// 64 MiB of clean pages, 16 MiB of changed ones a layer, a sync after 5 s, 10 s for writes to land.
    fn default() -> Self {
        Self {
            map_cache_bytes: 64 << 20,
            changed_pages_max: 4096,
            sync_interval: Duration::from_secs(5),
            lock_wait: Duration::from_secs(10),
            after: None,
            buffers: BufferPool::default(),
            #[cfg(any(test, feature = "canaries"))]
            canary: None,
        }
    }
}

/// What the catalog says of a layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayerFacts {
    /// Its id.
    pub id: LayerId,
    /// The image it belongs to.
    pub image: ImageId,
    /// The revision it defines.
    pub revision: RevisionId,
    /// The size of the image at this revision, in bytes.
    pub size: u64,
    /// Bytes in a block.
    pub block_size: u32,
    /// What lies below, for people and for rebuilding a lost catalog.
    pub below: String,
    /// The image's name, likewise.
    pub image_name: String,
}

impl LayerFacts {
    /// Whether the image is so large that it may have a data file of this number.
    pub(crate) fn has_segment(&self, number: u64) -> bool {
        number < self.size.div_ceil(SEGMENT)
    }
}

/// What a layer is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reading: a sealed layer, or a head that nobody owns. Writes nothing.
    Read,
    /// The one writer of a head.
    Own,
    /// Filling a sealed layer.
    Fill,
}

/// The layers of a pool on disk. Clones share it.
#[derive(Clone)]
pub struct LayerStore<D: Disk>(Arc<Shared<D>>);

pub(crate) struct Shared<D: Disk> {
    pub(crate) disk: D,
    pool: PathBuf,
    pub(crate) options: StoreOptions,
    pub(crate) cache: Arc<PageCache>,
    pub(crate) boot: Option<BootId>,
    /// The runtime that the pool was opened on, where work goes on that outlives a request: requests may come from runtimes
    /// that end with their client.
    pub(crate) runtime: Handle,
    next_key: AtomicU64,
    open: Mutex<HashMap<LayerId, Weak<Inner<D>>>>,
}

impl<D: Disk> LayerStore<D> {
    /// The layers in the directory of a pool. The runtime this is called on must last as long as they are open.
    pub async fn open(disk: D, pool: PathBuf, options: StoreOptions) -> Result<Self> {
        let boot = disk.boot_id().await.map_err(|error| Error::io("read the boot id", error))?;
        let cache = Arc::new(PageCache::new((options.map_cache_bytes / PAGE).max(64)));
        Ok(Self(Arc::new(Shared {
            disk,
            pool,
            options,
            cache,
            boot,
            runtime: Handle::current(),
            next_key: AtomicU64::new(0),
            open: Mutex::default(),
        })))
    }

    /// Whether a mistake is to be made.
    pub(crate) fn makes(&self, mistake: Canary) -> bool {
        self.0.makes(mistake)
    }

    pub(crate) fn disk(&self) -> &D {
        &self.0.disk
    }

    /// Where work goes on that outlives a request.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    /// Opens a layer. One that is frozen is shared by all that read it in this process, and by who fills it; one that is owned
    /// is always opened anew, as the last owner left it. So is a frozen one that another process has filled meanwhile: a link
    /// may have been cut since, and what the old handle still inherits would read as zeros.
    pub async fn layer(&self, facts: LayerFacts, access: Access) -> Result<LocalLayer<D>> {
        let mut stale = None;
        if let Some(layer) = self.registered(facts.id).filter(|_| access != Access::Own) {
            if layer.is_current().await? {
                return admit(layer, access).await;
            }
            stale = Some(layer);
        }
        let key = self.0.next_key.fetch_add(1, Ordering::Relaxed);
        let opened = LocalLayer::open(self.0.clone(), key, facts, access).await?;
        match self.register(&opened, access, stale.as_ref()) {
            None => Ok(opened),
            Some(other) => {
                opened.give_up_files()?;
                admit(other, access).await
            }
        }
    }

    fn registered(&self, id: LayerId) -> Option<LocalLayer<D>> {
        let layer = self.0.open.lock().get(&id).and_then(Weak::upgrade);
        layer.filter(|layer| layer.is_frozen()).map(LocalLayer)
    }

    /// Enters an open layer for others to share; or finds that somebody else has entered another one meanwhile, which is to be
    /// taken instead, since two would not see what is filled through the other.
    fn register(
        &self,
        opened: &LocalLayer<D>,
        access: Access,
        stale: Option<&LocalLayer<D>>,
    ) -> Option<LocalLayer<D>> {
        let mut open = self.0.open.lock();
        open.retain(|_, layer| layer.strong_count() > 0);
        let id = opened.0.facts.id;
        let other = open.get(&id).and_then(Weak::upgrade).filter(|other| {
            let known_stale = stale.is_some_and(|stale| Arc::ptr_eq(&stale.0, other));
            access != Access::Own && other.is_frozen() && !known_stale
        });
        if other.is_none() {
            open.insert(id, Arc::downgrade(&opened.0));
        }
        other.map(LocalLayer)
    }

    /// Removes the files of a layer: their names, since whoever has them open goes on reading. Idempotent.
    pub async fn remove_files(&self, id: LayerId) -> Result<()> {
        let (dir, disk) = (self.0.layer_dir(id), &self.0.disk);
        // The map before the data: a reader that misses a file of data knows by it that the layer is gone, and nothing lost.
        self.0.remove_logs(id).await?;
        let map = dir.join("map");
        ignore_missing(disk.remove_file(&map).await, &map)?;
        match disk.list_dir(&dir).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io(format!("list {}", dir.display()), error)),
            Ok(files) => {
                for path in files {
                    ignore_missing(disk.remove_file(&path).await, &path)?;
                }
            }
        }
        ignore_missing(disk.remove_dir(&dir).await, &dir)
    }
}

async fn admit<D: Disk>(layer: LocalLayer<D>, access: Access) -> Result<LocalLayer<D>> {
    if access == Access::Fill {
        layer.allow_fills().await?;
    }
    Ok(layer)
}

impl<D: Disk> Shared<D> {
    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.pool.join("layers")
    }

    pub(crate) fn layer_dir(&self, id: LayerId) -> PathBuf {
        self.layers_dir().join(id.to_string())
    }

    pub(crate) fn log_path(&self, id: LayerId, which: usize) -> PathBuf {
        self.pool.join("live").join(format!("{id}.{which}"))
    }

    /// Removes both logs of a layer. One that cannot be removed does not keep the other.
    pub(crate) async fn remove_logs(&self, id: LayerId) -> Result<()> {
        let mut removed = Ok(());
        for path in [self.log_path(id, 0), self.log_path(id, 1)] {
            removed = removed.and(ignore_missing(self.disk.remove_file(&path).await, &path));
        }
        removed
    }

    /// Whether a mistake is to be made.
    pub(crate) fn makes(&self, mistake: Canary) -> bool {
        self.options.makes(mistake)
    }

    /// Whether a log of this boot is of now. `Busy` asks what happened where that cannot be known.
    pub(crate) fn is_this_boot(&self, boot: Option<BootId>) -> Result<bool> {
        if self.makes(Canary::LogOfAnotherBoot) {
            return Ok(true);
        }
        match (boot, self.boot, self.options.after) {
            (Some(then), Some(now), _) => Ok(then == now),
            (.., Some(AfterStop::ProcessDeath)) => Ok(true),
            (.., Some(AfterStop::PowerCut)) => Ok(false),
            (.., None) => Err(Error::new(
                ErrorKind::Busy,
                "a writer of this layer stopped without closing it, and the boot id of the kernel cannot be read here: was the \
                 machine restarted since, or did only the process end? Set VELLUM_AFTER to power-cut or to process-death",
            )),
        }
    }
}

impl<D: Disk> fmt::Debug for LayerStore<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LayerStore({})", self.0.pool.display())
    }
}

impl<D: Disk> fmt::Debug for Shared<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shared({})", self.pool.display())
    }
}

fn ignore_missing(result: std::io::Result<()>, path: &Path) -> Result<()> {
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}
