//! [`LocalLayer`]: an open layer. What it defines, and for its one owner, how that changes.
//!
//! The verbs are a file each: opening and recovery in [`recovery`](crate::recovery), mutations in
//! [`mutation`](crate::mutation), sync in [`sync`](crate::sync).
//!
//! Flags of an open layer:
//!
//! ```text
//!   opened for reading ----------------------------> frozen, until somebody fills it
//!   owned --- seal ---> sealed and frozen --- unseal ---> owned
//!   owned --- close --> closed: mutations answer Sealed
//!   owned --- drop ---> abandoned: as closed, but nothing is synced any more
//!   a failed sync -----> poisoned: mutations and syncs fail, reads go on
//! ```

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use vellum_core::{Buffer, Extent, Runs, State};
use vellum_disk::{Disk, OpenMode};
use vellum_engine::{Error, ErrorKind, Known, Layer, Ranges, Result, RevisionId, TryRead};

use crate::format::header::{self, Epoch};
use crate::format::{PAGE, sector};
use crate::map::Units;
use crate::map::page::Page;
use crate::map::page_set::PageSet;
use crate::map::pages::{Found, Pages};
use crate::map_file;
use crate::place::cannot_open;
use crate::segment::Segments;
use crate::store::{LayerFacts, Shared};
use crate::sync::{Live, Syncing};

/// An open layer. Clones share it.
pub struct LocalLayer<D: Disk>(pub(crate) Arc<Inner<D>>);

impl<D: Disk> Clone for LocalLayer<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: Disk> fmt::Debug for LocalLayer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalLayer({} of {})", self.0.facts.id, self.0.facts.image_name)
    }
}

pub(crate) struct Inner<D: Disk> {
    pub(crate) shared: Arc<Shared<D>>,
    pub(crate) facts: LayerFacts,
    pub(crate) units: Units,
    pub(crate) pages: Pages,
    pub(crate) segments: Segments<D>,
    pub(crate) ranges: Ranges,
    /// The map file; none before the first write.
    pub(crate) map: OnceLock<D::File>,
    /// The same file, opened for writing by a filler where readers had opened it before.
    pub(crate) map_to_fill: OnceLock<D::File>,
    /// Held while the files of a layer are created, and while pages are made whole: the pages of the ledger that exist.
    pub(crate) creating: tokio::sync::Mutex<PageSet>,
    /// As of the last sync.
    pub(crate) epoch: Mutex<Epoch>,
    pub(crate) live: Live<D::File>,
    pub(crate) syncing: Syncing,
    /// Mutations share it; sealing and closing wait for it alone.
    pub(crate) mutations: tokio::sync::RwLock<()>,
    pub(crate) role: Role,
    pub(crate) poison: OnceLock<Error>,
    /// Why something that was acknowledged may be missing, though nothing is damaged. Then nothing is freed that may be it.
    pub(crate) doubt: OnceLock<String>,
    /// What a failed sync leaves behind is taken away, as far as it can be.
    pub(crate) poison_is_marked: tokio::sync::watch::Sender<bool>,
    /// Units that were set to inherited, whose space is still to be freed.
    pub(crate) freeable: Mutex<Vec<Extent>>,
    pub(crate) unsynced_bytes: AtomicU64,
    /// Whether a sync that nobody asked for is on its way: by the clock, and for want of room.
    pub(crate) sync_on_its_way: [AtomicBool; 2],
}

/// Who may change a layer.
#[derive(Debug)]
pub(crate) struct Role {
    /// Its owner may, unless this is set.
    pub(crate) sealed: AtomicBool,
    /// A filler may.
    pub(crate) fillable: AtomicBool,
    /// What it reads as does not change any more.
    pub(crate) frozen: AtomicBool,
    /// A log of a dead process was replayed in memory and is not yet in the map.
    pub(crate) recovered: AtomicBool,
}

impl<D: Disk> Inner<D> {
    /// Whether what the layer reads as does not change any more.
    pub(crate) fn is_frozen(&self) -> bool {
        self.role.frozen.load(Ordering::Acquire)
    }

    /// Fails after a failed sync; not before what would be believed of the layer was taken away.
    pub(crate) async fn check_poison(&self) -> Result<()> {
        let Some(cause) = self.poison.get() else { return Ok(()) };
        self.poison_is_marked.subscribe().wait_for(|marked| *marked).await.expect("it lives here");
        let what = format!(
            "layer {} takes no writes since a sync of it failed; close the image and open it again",
            self.facts.id
        );
        Err(Error::new(ErrorKind::Poisoned, what).with_source(cause.clone()))
    }

    /// The map, to be written by an owner or a filler.
    pub(crate) fn map_to_write(&self) -> Option<&D::File> {
        self.map_to_fill.get().or_else(|| self.map.get())
    }

    pub(crate) fn map_name(&self) -> String {
        self.shared.layer_dir(self.facts.id).join("map").display().to_string()
    }

    /// A page from memory or from disk; `None` if it does not exist.
    pub(crate) async fn page(&self, page: u64) -> Result<Option<Arc<Page>>> {
        loop {
            let (ticket, is_whole) = match self.pages.find(page) {
                Found::Absent => return Ok(None),
                Found::Here(content) => return Ok(Some(content)),
                Found::OnDisk { ticket, is_whole } => (ticket, is_whole),
            };
            let content = self.read_page(page, is_whole).await?;
            if let Some(content) = self.pages.loaded(page, ticket, content) {
                return Ok(Some(content));
            }
        }
    }

    /// The first page of the map, checked.
    pub(crate) async fn first_page(&self, map: &D::File) -> Result<Box<[u8; PAGE]>> {
        let what = self.map_name();
        map_file::read_checked(map, 0, &what, |page| {
            header::decode(&what, self.facts.id.number(), page).map(|_| Box::new(*page))
        })
        .await
    }

    async fn read_page(&self, page: u64, is_whole: bool) -> Result<Page> {
        let (what, layer) = (self.map_name(), self.facts.id.number());
        let map = self.map.get().ok_or_else(|| Error::corrupt(format!("{what} is missing")))?;
        map_file::read_checked(map, sector::page_at(page), &what, |bytes| {
            sector::decode(&what, layer, page, bytes, is_whole).map(|words| Page::new(&words))
        })
        .await
    }

    /// The states of all of `at`.
    pub(crate) async fn states_of(&self, at: Extent) -> Result<Runs> {
        let mut runs = Runs::new();
        let mut rest = at;
        while !rest.is_empty() {
            let end = self.pages.states(rest, usize::MAX, &mut runs);
            rest = rest.split(end).1;
            if !rest.is_empty() {
                Box::pin(self.page(rest.offset() / self.units.page_size())).await?;
            }
        }
        Ok(runs)
    }
}

impl<D: Disk> Layer for LocalLayer<D> {
    fn revision(&self) -> &RevisionId {
        &self.0.facts.revision
    }

    fn size(&self) -> u64 {
        self.0.facts.size
    }

    fn unit(&self) -> u64 {
        self.0.units.block
    }

    fn states(&self, at: Extent, runs_max: usize, out: &mut Runs) -> Known {
        out.clear();
        let end = self.0.pages.states(at, runs_max, out);
        if end == at.end() || out.len() >= runs_max { Known::All } else { Known::Part }
    }

    async fn load_states(&self, at: Extent, runs_max: usize, out: &mut Runs) -> Result<()> {
        out.clear();
        let mut rest = at;
        while !rest.is_empty() && out.len() < runs_max {
            let end = self.0.pages.states(rest, runs_max, out);
            rest = rest.split(end).1;
            if !rest.is_empty() && out.len() < runs_max {
                self.0.page(rest.offset() / self.0.units.page_size()).await?;
            }
        }
        Ok(())
    }

    fn try_read(&self, at: Extent, buffer: &mut [u8], out: &mut Runs) -> TryRead {
        out.clear();
        if self.0.pages.states(at, usize::MAX, out) != at.end() {
            return TryRead::WouldWait;
        }
        let done = out.iter().all(|run| {
            let part = &mut buffer[at.range_of(&run.extent)];
            match run.state {
                State::Inherited => true,
                State::Zero => {
                    part.fill(0);
                    true
                }
                State::Data => self.0.segments.try_read(run.extent, part),
            }
        });
        if done { TryRead::Done } else { TryRead::WouldWait }
    }

    async fn read(
        &self,
        at: Extent,
        mut buffer: Buffer,
        into: Range<usize>,
    ) -> (Buffer, Result<Runs>) {
        let runs = match self.0.states_of(at).await {
            Ok(runs) => runs,
            Err(error) => return (buffer, Err(error)),
        };
        for run in &runs {
            let range = at.range_of(&run.extent);
            let range = into.start + range.start..into.start + range.end;
            match run.state {
                State::Inherited => {}
                State::Zero => buffer[range].fill(0),
                State::Data => {
                    let result;
                    (buffer, result) = self.0.segments.read(run.extent, buffer, range).await;
                    if let Err(error) = result {
                        return (buffer, Err(error));
                    }
                }
            }
        }
        (buffer, Ok(runs))
    }
}

impl<D: Disk> LocalLayer<D> {
    /// About how many bytes the next sync has to make durable.
    pub(crate) fn unsynced_bytes(&self) -> u64 {
        self.0.unsynced_bytes.load(Ordering::Relaxed) + self.0.pages.changes() as u64 * PAGE as u64
    }

    /// Whether [`reclaim`](Self::reclaim) has something to free.
    pub(crate) fn wants_reclaim(&self) -> bool {
        !self.0.freeable.lock().is_empty()
    }

    /// Waits for mutations under way, syncs, and takes no more of them. The layer stays readable.
    pub(crate) async fn seal(&self) -> Result<()> {
        self.0.role.sealed.store(true, Ordering::Release);
        let result = self.finish().await;
        if result.is_ok() {
            self.0.role.frozen.store(true, Ordering::Release);
        }
        result
    }

    /// Takes mutations again, after a seal that led to nothing.
    pub(crate) fn unseal(&self) {
        self.0.role.frozen.store(false, Ordering::Release);
        self.0.role.sealed.store(false, Ordering::Release);
    }

    /// Syncs, and gives up what an owner or a filler holds. What is acknowledged is durable, or the error says since when not.
    pub(crate) async fn close(&self) -> Result<()> {
        self.0.role.fillable.store(false, Ordering::Release);
        self.0.role.sealed.store(true, Ordering::Release);
        self.finish().await
    }

    async fn finish(&self) -> Result<()> {
        drop(self.0.mutations.write().await);
        let result = self.sync().await;
        if result.is_ok() {
            self.0.drop_logs().await;
        }
        // Nothing is on its way any more, whether the sync succeeded or not. The descriptions stay open for reading.
        result.and(self.give_up_files())
    }

    /// Gives up what an owner or a filler holds without a sync, as the death of its process would: the next one finds the live
    /// log. No mutation may be under way. A sync may be; the answer ends with it, and only then may
    /// [`give_up_files`](Self::give_up_files) be called, which was done already if there is none.
    pub(crate) fn abandon(&self) -> Option<oneshot::Receiver<Result<()>>> {
        self.0.role.fillable.store(false, Ordering::Release);
        self.0.role.sealed.store(true, Ordering::Release);
        let running = self.0.syncing.stop();
        if running.is_none()
            && let Err(error) = self.give_up_files()
        {
            tracing::warn!(layer = %self.0.facts.id, error = %error.chain(), "data files stay locked");
        }
        running
    }

    /// Lets others write the data files.
    pub(crate) fn give_up_files(&self) -> Result<()> {
        self.0.segments.release()
    }

    /// Whether a frozen layer still is what is on disk, and not what it was before another process filled it.
    pub(crate) async fn is_current(&self) -> Result<bool> {
        let inner = &self.0;
        if inner.role.fillable.load(Ordering::Acquire) || inner.syncing.is_running() {
            return Ok(true);
        }
        let Some(map) = inner.map.get() else {
            let path = inner.shared.layer_dir(inner.facts.id).join("map");
            return match inner.shared.disk.open(&path, OpenMode::Read).await {
                Ok(_) => Ok(false),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
                Err(error) => Err(cannot_open(format!("open {}", path.display()), error)),
            };
        };
        let page = inner.first_page(map).await?;
        let (_, found) = header::decode(&inner.map_name(), inner.facts.id.number(), &page)?;
        // A filler whose sync failed has written pages, and put the epoch back with its mark.
        let known = *inner.epoch.lock();
        Ok((found.epoch, found.poisoned) == (known.epoch, known.poisoned))
    }
}
