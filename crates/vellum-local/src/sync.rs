//! Sync: making what was acknowledged survive a power cut.
//!
//! One at a time for a layer; whoever comes while one runs waits for the next, which serves all who wait. In exactly this order:
//!
//! 1. *Freeze*: begin the other live log (its header says epoch + 1), let new changes go there, take the set of changed pages and
//!    **copy** them, take the set of files written.
//! 2. `fsync` the layer's directory if a file was begun since the last sync, and `fdatasync` those files; and the map, if pages of
//!    it were made whole since then.
//! 3. Write the copies to the map, name those pages in its ledger, then write the epoch.
//! 4. `fdatasync` the map. The old log no longer counts.
//!
//! The copy comes before the first `fdatasync`: a page that was copied after it could say data of a block whose data that
//! `fdatasync` did not cover. A page is whole on the medium before states are put into it and before the ledger names it, so that a
//! sector that is missing later is known to be lost. What a crash leaves, by the last step that was begun:
//!
//! | begun | power cut leaves | death of the process leaves |
//! |---|---|---|
//! | 1 | the map of the last sync | that map and the old log; the new one behind it |
//! | 2 | the same; more data than the map says is harmless | the same |
//! | 3 | sectors of the map, old or new, both true: the data of the new ones is durable | until the epoch is written the old log and the new one, which set the same states again; then the new one |
//! | 4 | the same, or all of it | the new log |
//!
//! A failed `fdatasync` is never repeated: the kernel has forgotten which pages are missing. It *poisons* the layer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use vellum_disk::{Disk, Durability, File, OpenMode};
use vellum_engine::{Error, Result};

use crate::canary::Canary;
use crate::format::header::{self, Epoch};
use crate::format::live::LogHeader;
use crate::format::{SECTOR, sector};
use crate::layer::{Inner, LocalLayer};
use crate::log::{LOG_SIZE, Log};
use crate::place::cannot_open;
use crate::recovery::now;

/// What failed in a sync, and how.
type Failed = (&'static str, std::io::Error);

/// Neighbouring pages that are written at once.
const PAGES_AT_ONCE: usize = 256;

/// Who waits for a sync.
#[derive(Debug, Default)]
pub(crate) struct Syncing(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    running: bool,
    /// Set when the one who wrote is gone without closing: another one may be writing the same files.
    stopped: bool,
    waiting: Vec<oneshot::Sender<Result<()>>>,
}

impl Syncing {
    /// Lets no more syncs begin. Answers when the one under way has ended.
    pub(crate) fn stop(&self) -> Option<oneshot::Receiver<Result<()>>> {
        let mut queue = self.0.lock();
        queue.stopped = true;
        queue.running.then(|| {
            let (send, ended) = oneshot::channel();
            queue.waiting.push(send);
            ended
        })
    }

    /// Lets syncs begin again.
    pub(crate) fn go_on(&self) {
        self.0.lock().stopped = false;
    }

    fn end_if_idle(&self) -> bool {
        let mut queue = self.0.lock();
        queue.running = !queue.waiting.is_empty();
        !queue.running
    }

    pub(crate) fn is_running(&self) -> bool {
        self.0.lock().running
    }
}

/// The two live logs, one of which takes records.
#[derive(Debug)]
pub(crate) struct Live<F: File> {
    current: Mutex<Option<Log<F>>>,
    files: tokio::sync::Mutex<Files<F>>,
}

#[derive(Debug)]
struct Files<F: File> {
    /// Both files, once they were made.
    both: Option<[F; 2]>,
    /// Which of them takes records.
    which: usize,
}

impl<F: File> Default for Live<F> {
    fn default() -> Self {
        Self {
            current: Mutex::default(),
            files: tokio::sync::Mutex::new(Files { both: None, which: 0 }),
        }
    }
}

impl<F: File> Live<F> {
    /// The log that takes records, if one was begun.
    pub(crate) fn current(&self) -> Option<Log<F>> {
        self.current.lock().clone()
    }
}

impl<D: Disk> LocalLayer<D> {
    /// Makes durable what was acknowledged before the call.
    pub(crate) async fn sync(&self) -> Result<()> {
        // In this order: a sync that fails while it is looked for has taken what there was to do, and poisons before it ends.
        let wanted = self.0.wants_sync();
        self.0.check_poison().await?;
        if !wanted {
            return Ok(());
        }
        if self.0.shared.makes(Canary::OvertakingSync) {
            return self.0.sync_once().await;
        }
        let (send, done) = oneshot::channel();
        let drive = {
            let mut queue = self.0.syncing.0.lock();
            if queue.stopped {
                return Ok(());
            }
            queue.waiting.push(send);
            !std::mem::replace(&mut queue.running, true)
        };
        if drive {
            // Also where a runtime has ended, and drops this without a step.
            let driving = Driving { layer: self.0.clone(), ended: false };
            self.0.shared.runtime.spawn(drive_syncs(driving));
        }
        done.await.unwrap_or_else(|_| {
            Err(Error::new(
                vellum_engine::ErrorKind::Io,
                "the program is ending, and the sync with it",
            )
            .maybe_done())
        })
    }
}

/// Whoever runs syncs. Dropped in the middle, by a thread that panics or a runtime that ends, it lets nobody wait for ever: those
/// who wait hear of it, and the next one who asks finds none running.
struct Driving<D: Disk> {
    layer: Arc<Inner<D>>,
    ended: bool,
}

impl<D: Disk> Drop for Driving<D> {
    fn drop(&mut self) {
        if !self.ended {
            let mut queue = self.layer.syncing.0.lock();
            queue.running = false;
            queue.waiting.clear();
        }
    }
}

/// Runs syncs for as long as somebody waits for one.
async fn drive_syncs<D: Disk>(mut driving: Driving<D>) {
    let layer = driving.layer.clone();
    loop {
        let waiting = std::mem::take(&mut layer.syncing.0.lock().waiting);
        let result = match layer.check_poison().await {
            Ok(()) => layer.sync_once().await,
            poisoned => poisoned,
        };
        // Before anybody is told, so that whoever was told the last one finds none running.
        let ended = layer.syncing.end_if_idle();
        for waiter in waiting {
            let _ = waiter.send(result.clone());
        }
        if ended {
            // Somebody else may run them by now.
            driving.ended = true;
            return;
        }
    }
}

impl<D: Disk> Inner<D> {
    fn wants_sync(&self) -> bool {
        let marked = self.epoch.lock().poisoned.is_some() && self.map.get().is_some();
        marked
            || self.segments.is_unsynced()
            || self.pages.has_changes()
            || self.syncing.0.lock().running
    }

    async fn sync_once(&self) -> Result<()> {
        let epoch = *self.epoch.lock();
        let publishes = self.pages.has_changes() || epoch.poisoned.is_some();
        let next = Epoch { epoch: epoch.epoch.wrapping_add(1), last_sync: now(), poisoned: None };
        let no_log_begins = if publishes { self.switch_logs(next.epoch).await? } else { None };
        let late = self.shared.makes(Canary::PagesAfterData);
        let mut pages = if publishes && !late { self.pages.take_changed() } else { Vec::new() };
        let fresh = if publishes { self.pages.take_fresh() } else { BTreeSet::new() };
        self.unsynced_bytes.store(0, Ordering::Relaxed);
        let (data, map) = futures::join!(self.sync_data(), self.sync_fresh(&fresh));
        if let Err((doing, error)) = data.and(map) {
            return Err(self.poison(doing, error).await);
        }
        // A write through to the medium may have failed meanwhile, and have taken the error that this sync would have had.
        self.check_poison().await?;
        if publishes && late {
            pages = self.pages.take_changed();
        }
        let entered = self.pages.enter(&fresh);
        if publishes && let Err((doing, error)) = self.publish(&pages, &entered, &next).await {
            return Err(self.poison(doing, error).await);
        }
        drop(no_log_begins);
        Ok(())
    }

    /// Makes durable the names of the data files, and what was written to them.
    async fn sync_data(&self) -> Result<(), Failed> {
        let names = self.segments.sync_names().await;
        names.map_err(|error| ("sync the names of the data files", error))?;
        for file in self.segments.take_unsynced() {
            if let Err(error) = file.sync_data().await {
                if self.shared.makes(Canary::SyncAgain) && file.sync_data().await.is_ok() {
                    continue;
                }
                return Err(("sync data", error));
            }
        }
        Ok(())
    }

    /// Makes durable that these pages are whole.
    async fn sync_fresh(&self, fresh: &BTreeSet<u64>) -> Result<(), Failed> {
        match self.map_to_write() {
            Some(map) if !fresh.is_empty() => {
                map.sync_data().await.map_err(|error| ("sync new pages of the map", error))
            }
            _ => Ok(()),
        }
    }

    /// Writes copies of pages, those of the ledger, and the epoch to the map, durably.
    async fn publish(
        &self,
        pages: &[(u64, [u64; sector::PAGE_WORDS])],
        entered: &[(u64, [u64; sector::PAGE_WORDS])],
        next: &Epoch,
    ) -> Result<(), Failed> {
        let Some(map) = self.map_to_write() else { return Ok(()) };
        let layer = self.facts.id.number();
        for run in pages.chunk_by(|(page, _), (next, _)| page + 1 == *next) {
            for run in run.chunks(PAGES_AT_ONCE) {
                let encode = |(page, words): &(u64, _)| {
                    Bytes::from(sector::encode(layer, *page, next.epoch, words))
                };
                let (pages, at) = (run.iter().map(encode).collect(), sector::page_at(run[0].0));
                map.write_at(pages, at, Durability::AtSync)
                    .await
                    .map_err(|error| ("write the map", error))?;
            }
        }
        for (number, words) in entered {
            let written = self.write_ledger(map, *number, next.epoch, words).await;
            written.map_err(|error| ("write the ledger of the map", error))?;
        }
        let epoch = header::encode_epoch(layer, next);
        map.write_at(vec![epoch.into()], header::EPOCH_AT, Durability::AtSync)
            .await
            .map_err(|error| ("write the epoch", error))?;
        map.sync_data().await.map_err(|error| ("sync the map", error))?;
        *self.epoch.lock() = *next;
        self.pages.synced(pages.iter().map(|(page, _)| *page));
        Ok(())
    }

    /// Poisons the layer: from the first step no sync publishes anything. Before anybody is told, the map gets a mark for whoever
    /// opens it next; that is the very next call, since who dies before it takes along what is known. Then the logs go, which run
    /// ahead of what is on the medium, in case there is no mark.
    pub(crate) async fn poison(&self, doing: &str, error: std::io::Error) -> Error {
        let epoch = *self.epoch.lock();
        let what = format!(
            "{doing} of layer {}; what was written since its last good sync ({} seconds after 1970) may be missing",
            self.facts.id, epoch.last_sync
        );
        let error = Error::io(what, error).maybe_done();
        tracing::error!(
            layer = %self.facts.id, image = %self.facts.image_name, last_good_sync = epoch.last_sync, error = %error.chain(),
            "a sync failed: the image takes no writes until it is opened again, and what was written since the last good sync \
             may be missing"
        );
        let _ = self.poison.set(error.clone());
        if let Some(map) = self.map_to_write() {
            let mark = header::encode_epoch(
                self.facts.id.number(),
                &Epoch { poisoned: Some(now()), ..epoch },
            );
            let _ = map.write_at(vec![mark.into()], header::EPOCH_AT, Durability::Durable).await;
        }
        let _ = self.shared.remove_logs(self.facts.id).await;
        self.poison_is_marked.send_replace(true);
        error
    }

    /// Lets changes go to the other log from now on. Where no log was begun yet, the answer keeps one from beginning until the
    /// epoch is written, since it would continue the old one.
    async fn switch_logs(
        &self,
        epoch: u64,
    ) -> Result<Option<tokio::sync::MutexGuard<'_, Files<D::File>>>> {
        let mut files = self.live.files.lock().await;
        if self.live.current().is_none() {
            return Ok(Some(files));
        }
        let which = 1 - files.which;
        let file = files.both.as_ref().expect("a log that takes records has files")[which].clone();
        let log = Log::begin(file, self.log_header(epoch)).await?;
        let previous = self.live.current.lock().replace(log);
        files.which = which;
        if let Some(previous) = previous {
            // The next sync writes a new header over it, which nothing may land on top of.
            previous.retire().await;
        }
        Ok(None)
    }

    /// The log that takes records; begins it if this is the first record since the layer was opened or unsealed.
    pub(crate) async fn live_log(&self) -> Result<Log<D::File>> {
        match self.live.current() {
            Some(log) => Ok(log),
            None => Box::pin(self.begin_log()).await,
        }
    }

    async fn begin_log(&self) -> Result<Log<D::File>> {
        let mut files = self.live.files.lock().await;
        if let Some(log) = self.live.current() {
            return Ok(log);
        }
        let both = [self.log_file(0).await?, self.log_file(1).await?];
        let epoch = self.epoch.lock().epoch;
        let log = Log::begin(both[0].clone(), self.log_header(epoch)).await?;
        *files = Files { both: Some(both), which: 0 };
        *self.live.current.lock() = Some(log.clone());
        Ok(log)
    }

    /// A log file that holds nothing.
    async fn log_file(&self, which: usize) -> Result<D::File> {
        let path = self.shared.log_path(self.facts.id, which);
        let failed = |error| Error::io(format!("create {}", path.display()), error);
        let opened = self.shared.disk.open(&path, OpenMode::ReadWriteOrCreate).await;
        let file =
            opened.map_err(|error| cannot_open(format!("create {}", path.display()), error))?;
        // Before there is a header, so that a file which is shorter than it says has lost something.
        file.set_length(LOG_SIZE).await.map_err(failed)?;
        // Zeros over the header that an earlier owner left: two logs that both look valid would be one too many. The records
        // behind it belong to it alone.
        let zeros = Bytes::from_static(&[0; SECTOR]);
        file.write_at(vec![zeros], 0, Durability::AtSync).await.map_err(failed)?;
        Ok(file)
    }

    fn log_header(&self, epoch: u64) -> LogHeader {
        let map = self.map.get().expect("files are created before logs").identity();
        let nonce = crate::layer_id::random_number(&self.shared.disk);
        let (layer, boot) = (self.facts.id.number(), self.shared.boot);
        LogHeader { layer, boot, map, epoch, nonce, length: LOG_SIZE }
    }

    /// Removes the logs: everything is in the map. What cannot be removed does not count any more, or will be replayed to the
    /// same states.
    pub(crate) async fn drop_logs(&self) {
        let mut files = self.live.files.lock().await;
        let current = self.live.current.lock().take();
        *files = Files { both: None, which: 0 };
        let Some(current) = current else { return };
        current.retire().await;
        let _ = self.shared.remove_logs(self.facts.id).await;
    }
}
