//! Opening a layer: what an earlier owner left is found, judged and, where it counts, taken over.
//!
//! | what is found | what happened | what is done |
//! |---|---|---|
//! | no map, or a header of zeros | nothing was ever acknowledged | the layer defines nothing |
//! | the same beside data, or a log of this boot | files were lost | the layer is corrupt |
//! | a map, no log that counts | closed; or a power cut | the map is the truth |
//! | a map, logs of this boot, file and epoch | the process died | data is synced, then the logs are replayed |
//! | the same, and damaged | what they said is lost | the layer is corrupt |
//! | a map, a log of this boot that is none of its past | another file is here than was written | a warning; nothing is freed |
//! | a map with the mark of a failed sync | the storage failed | logs are dropped, caches too; a warning says since when |
//!
//! What the logs are is found out in [`logs`](crate::logs), and which count is decided in
//! [`live::which_count`](crate::format::live::which_count).

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use vellum_core::{Extent, State};
use vellum_disk::{Disk, Durability, File, FileIdentity, OpenMode};
use vellum_engine::{Error, ErrorKind, Ranges, Result};

use crate::format::header::{self, Epoch, Header};
use crate::format::live::Record;
use crate::format::{PAGE, SECTOR, ledger, sector};
use crate::layer::{Inner, LocalLayer, Role};
use crate::logs::Logs;
use crate::map::Units;
use crate::map::page::Page;
use crate::map::page_set::PageSet;
use crate::map::pages::Pages;
use crate::map_file;
use crate::place::cannot_open;
use crate::segment::{self, Segments};
use crate::store::{Access, LayerFacts, Shared};
use crate::sync::{Live, Syncing};

/// What is on disk of a layer that has files.
struct OnDisk<F> {
    map: F,
    epoch: Epoch,
    pages: OnMap,
    segments: Vec<u64>,
}

/// What a map has beside its header.
#[derive(Default)]
struct OnMap {
    /// Pages of states that may exist.
    present: PageSet,
    /// Pages of states that the ledger names.
    whole: PageSet,
    /// Pages of the ledger that may exist.
    ledger: PageSet,
}

impl<D: Disk> LocalLayer<D> {
    /// Opens a layer.
    pub(crate) async fn open(
        shared: Arc<Shared<D>>,
        key: u64,
        facts: LayerFacts,
        access: Access,
    ) -> Result<Self> {
        // Boxed, as what is rare and would make the futures of all who open a layer larger.
        match Box::pin(Self::open_once(shared.clone(), key, facts.clone(), access)).await {
            // A filler may have made a page between two looks at it, and the log speaks of it already.
            Err(error) if access == Access::Read && error.kind() == ErrorKind::Corrupt => {
                Box::pin(Self::open_once(shared, key, facts, access)).await
            }
            opened => opened,
        }
    }

    async fn open_once(
        shared: Arc<Shared<D>>,
        key: u64,
        facts: LayerFacts,
        access: Access,
    ) -> Result<Self> {
        let units = Units { size: facts.size, block: u64::from(facts.block_size) };
        let found = match look(&shared, &facts, units, access).await? {
            None => look_again(&shared, &facts, units, access).await?,
            found => found,
        };
        let (map, epoch, pages, present) = match found {
            Some(found) => (Some(found.map), found.epoch, found.pages, found.segments),
            None => (None, first_epoch(&shared.disk), OnMap::default(), Vec::new()),
        };
        let dir = shared.layer_dir(facts.id);
        let segments =
            Segments::new(shared.disk.clone(), &dir, facts.size, shared.options.lock_wait);
        let ledger = tokio::sync::Mutex::new(pages.ledger);
        let pages = Pages::new(units, key, shared.cache.clone(), pages.present, pages.whole);
        let role = Role {
            sealed: AtomicBool::new(access != Access::Own),
            fillable: AtomicBool::new(false),
            frozen: AtomicBool::new(access != Access::Own),
            recovered: AtomicBool::new(false),
        };
        let map = map.map_or_else(OnceLock::new, OnceLock::from);
        let layer = Self(Arc::new(Inner {
            shared,
            facts,
            units,
            pages,
            segments,
            ranges: Ranges::default(),
            map,
            map_to_fill: OnceLock::new(),
            creating: ledger,
            epoch: Mutex::new(epoch),
            live: Live::default(),
            syncing: Syncing::default(),
            mutations: tokio::sync::RwLock::default(),
            role,
            poison: OnceLock::new(),
            doubt: OnceLock::new(),
            poison_is_marked: tokio::sync::watch::Sender::new(false),
            freeable: Mutex::default(),
            unsynced_bytes: AtomicU64::new(0),
            sync_on_its_way: Default::default(),
        }));
        layer.recover(&present, access).await?;
        Ok(layer)
    }

    /// Lets a filler in: whoever reads the layer goes on, and sees what is filled.
    pub(crate) async fn allow_fills(&self) -> Result<()> {
        let admitted = self.prepare_for_fills().await;
        match &admitted {
            Ok(()) => self.0.role.fillable.store(true, Ordering::Release),
            // Whoever reads keeps the layer open, and with it whatever was locked by then.
            Err(_) => self.give_up_files()?,
        }
        admitted
    }

    async fn prepare_for_fills(&self) -> Result<()> {
        let inner = &self.0;
        let present = present_segments(&inner.shared, &inner.facts).await?;
        if inner.map.get().is_some() && inner.map_to_fill.get().is_none() {
            let path = inner.map_name();
            let map = inner.shared.disk.open(path.as_ref(), OpenMode::ReadWrite).await;
            let map =
                map.map_err(|error| cannot_open(format!("open {path} for writing"), error))?;
            header::check_writable(&path, &*inner.first_page(&map).await?)?;
            let _ = inner.map_to_fill.set(map);
        }
        inner.syncing.go_on();
        self.take_over(&present).await
    }

    async fn recover(&self, present: &[u64], access: Access) -> Result<()> {
        let inner = &self.0;
        let Some(map) = inner.map.get() else {
            inner.role.fillable.store(access == Access::Fill, Ordering::Release);
            return Ok(());
        };
        let epoch = *inner.epoch.lock();
        if let Some(failed) = epoch.poisoned {
            tracing::warn!(
                layer = %inner.facts.id, image = %inner.facts.image_name, last_good_sync = epoch.last_sync, failed_sync = failed,
                "an earlier sync failed: what was written between the two times (seconds since 1970) may be missing"
            );
            // What the failed sync should have written may be in the cache alone, and no sync will ever write it. Before
            // anything of it is believed, it goes.
            map.drop_cache().await;
        } else {
            self.replay_logs(epoch.epoch, map.identity()).await?;
        }
        if access != Access::Read {
            self.take_over(present).await?;
        }
        inner.role.fillable.store(access == Access::Fill, Ordering::Release);
        Ok(())
    }

    /// Replays the logs that count, and notes whether others should.
    async fn replay_logs(&self, epoch: u64, map: FileIdentity) -> Result<()> {
        let (inner, shared, facts) = (&self.0, &self.0.shared, &self.0.facts);
        let logs = Logs::read(shared, facts).await?;
        let counting = logs.that_count(shared, facts, epoch, map)?;
        for log in &counting {
            inner.replay(&log.records).await?;
        }
        let recovered = counting.iter().any(|log| !log.records.is_empty());
        inner.role.recovered.store(recovered, Ordering::Release);
        // A filler in another process may have gone on since the epoch was read.
        if let Some(doubt) = logs.doubt(shared, epoch, map)
            && self.is_current().await?
        {
            let (layer, image) = (&facts.id, &facts.image_name);
            tracing::warn!(%layer, %image, why = doubt, "what was written may be missing");
            let _ = inner.doubt.set(doubt);
        }
        Ok(())
    }

    /// Becomes the one who writes: waits until what an earlier one had in flight has landed, and makes durable what was
    /// recovered. The first sync clears the mark of a failed one.
    async fn take_over(&self, present: &[u64]) -> Result<()> {
        let inner = &self.0;
        let poisoned = inner.epoch.lock().poisoned.is_some();
        for number in present {
            if let Some(lacking) = inner.segments.own(*number).await? {
                inner.check_holds_no_data(*number, lacking).await?;
                inner.segments.lengthen(*number).await?;
            }
        }
        for missing in inner.segments.missing_beside(present) {
            inner.check_holds_no_data(missing.offset() / segment::SEGMENT, missing).await?;
        }
        if poisoned {
            for file in inner.segments.files() {
                file.drop_cache().await;
            }
            // The failed sync did so itself, unless that failed too. With an epoch of their own and of this boot they would be
            // believed after the next death, once the mark is gone.
            inner.shared.remove_logs(inner.facts.id).await?;
            inner.rewrite_map().await?;
        }
        // A process may have died between making the files and this; pages and data go only into files that stay.
        if let Some(map) = inner.map_to_write() {
            inner.rewrite_header(map).await?;
            if let Err(error) = map.sync_data().await {
                return Err(inner.poison("sync the map", error).await);
            }
            inner.sync_names().await?;
        }
        // Whoever died left no trace of writes over data, which may be in the cache alone: the first sync covers them too.
        inner.segments.distrust();
        let recovered = inner.role.recovered.swap(false, Ordering::AcqRel);
        if recovered {
            // The sync that takes the records over must not look like the one that was under way.
            let mut epoch = inner.epoch.lock();
            epoch.epoch = epoch.epoch.wrapping_add(1);
        }
        if recovered || poisoned {
            self.sync().await?;
        }
        Ok(())
    }
}

impl<D: Disk> Inner<D> {
    /// Applies records in memory. Each sets states absolutely, so that replaying them over a map that has some of them
    /// already ends in the same states.
    async fn replay(&self, records: &[Record]) -> Result<()> {
        for record in records {
            let end = record.first_unit.saturating_add(u64::from(record.units));
            let at = self.units.bytes(record.first_unit, end);
            self.check_has_pages(at)?;
            self.change(&[(at, record.state)]).await?;
        }
        Ok(())
    }

    /// Fails if a record speaks of units that are not there, or whose page is not: a page exists before a record speaks of it, so
    /// the map has lost one, and what else it said is not known.
    fn check_has_pages(&self, at: Extent) -> Result<()> {
        let absent = self.units.by_page(at).find(|(page, _)| !self.pages.is_present(*page));
        let what = match absent {
            None if !at.is_empty() => return Ok(()),
            None => "units past the end of the image".to_owned(),
            Some((page, _)) => format!("page {page} of the map, which is not there"),
        };
        Err(Error::corrupt(format!("a live log of layer {} speaks of {what}", self.facts.id)))
    }

    /// Creates the files of a layer, durably, before its first write. A power cut leaves nothing that counts, or all of it.
    pub(crate) async fn create_files(&self) -> Result<()> {
        let _alone = self.creating.lock().await;
        if self.map.get().is_some() {
            return Ok(());
        }
        let (disk, dir) = (&self.shared.disk, self.shared.layer_dir(self.facts.id));
        let failed = |error| Error::io(format!("create {}", dir.display()), error);
        match disk.create_dir(&dir).await {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(failed(error));
            }
            _ => {}
        }
        let map = disk.open(&dir.join("map"), OpenMode::ReadWriteOrCreate).await.map_err(failed)?;
        map.set_length(map_length(self.units)).await.map_err(failed)?;
        let page = header::encode(&self.header(), &self.epoch.lock());
        map.write_at(vec![page.into()], 0, Durability::AtSync).await.map_err(failed)?;
        // All at once: a file system that has a journal makes one commit of it.
        let durable = async { map.sync_data().await.map_err(failed) };
        futures::try_join!(durable, self.sync_names())?;
        let _ = self.map.set(map);
        Ok(())
    }

    /// Makes the names of the layer's files durable.
    async fn sync_names(&self) -> Result<()> {
        let (layer, layers) = (self.shared.layer_dir(self.facts.id), self.shared.layers_dir());
        let sync = async |dir: &std::path::Path| {
            let synced = self.shared.disk.sync_dir(dir).await;
            synced.map_err(|error| Error::io(format!("sync {}", dir.display()), error))
        };
        futures::try_join!(sync(&layer), sync(&layers))?;
        Ok(())
    }

    /// Fails if a segment lacks something that the map says it has. Goes from page to page that is there, of which there may be few
    /// in an extent of many millions.
    async fn check_holds_no_data(&self, number: u64, lacking: Extent) -> Result<()> {
        let page_size = self.units.page_size();
        let mut page = lacking.offset() / page_size;
        let end = lacking.end().div_ceil(page_size);
        while let Some(present) = self.pages.next_present_in(page..end) {
            let piece = Extent::new(present * page_size, page_size).intersect(&lacking);
            if self.states_of(piece).await?.iter().any(|run| run.state == State::Data) {
                let path = self.shared.layer_dir(self.facts.id).join(segment::file_name(number));
                return Err(Error::corrupt(format!(
                    "{} lacks {lacking} of the image, where the map says that it holds data",
                    path.display()
                )));
            }
            page = present + 1;
        }
        Ok(())
    }

    /// Writes the first page of the map once more, so that the sync that follows makes it durable: whoever created the map may
    /// have failed to sync it and died, and what that left is cached, clean, and perhaps not on the medium.
    async fn rewrite_header(&self, map: &D::File) -> Result<()> {
        let bytes = match self.first_page(map).await {
            Ok(page) => Bytes::copy_from_slice(&page[..]),
            // It was whole a moment ago, in a cache that was dropped since.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                header::encode(&self.header(), &self.epoch.lock()).into()
            }
            Err(error) => return Err(error),
        };
        let written = map.write_at(vec![bytes], 0, Durability::AtSync).await;
        written.map_err(|error| Error::io(format!("write {}", self.map_name()), error))
    }

    /// Writes every page of the map as it is read, and what the ledger says, so that the sync that follows makes it durable: after a failed sync a page
    /// may be in the cache, not on the medium, and clean.
    async fn rewrite_map(&self) -> Result<()> {
        let Some(map) = self.map_to_write() else { return Ok(()) };
        let mut next = self.pages.next_present(0);
        while let Some(page) = next {
            match self.page(page).await {
                Ok(content) => {
                    let words = content.map_or([0; sector::PAGE_WORDS], |content| content.words());
                    let epoch = self.epoch.lock().epoch;
                    let bytes = sector::encode(self.facts.id.number(), page, epoch, &words);
                    self.write_page(map, page, bytes).await?;
                }
                // Damage stays what it is, and spoils this page alone.
                Err(error) if error.kind() == ErrorKind::Corrupt => {}
                Err(error) => return Err(error),
            }
            next = self.pages.next_present(page + 1);
        }
        let ledger = self.creating.lock().await;
        let mut next = ledger.next(0);
        while let Some(number) = next {
            let epoch = self.epoch.lock().epoch;
            let written = self.write_ledger(map, number, epoch, &self.pages.ledger(number)).await;
            written.map_err(|error| self.cannot_write_ledger(error))?;
            next = ledger.next(number + 1);
        }
        Ok(())
    }

    /// Writes a page of the ledger.
    pub(crate) async fn write_ledger(
        &self,
        map: &D::File,
        number: u64,
        epoch: u64,
        words: &[u64; sector::PAGE_WORDS],
    ) -> std::io::Result<()> {
        let (layer, states) = (self.facts.id.number(), self.units.pages());
        let bytes = ledger::encode(layer, states, number, epoch, words);
        map.write_at(vec![bytes.into()], ledger::page_at(states, number), Durability::AtSync).await
    }

    fn cannot_write_ledger(&self, error: std::io::Error) -> Error {
        Error::io(format!("write the ledger of {}", self.map_name()), error)
    }

    async fn write_page(&self, map: &D::File, page: u64, bytes: Vec<u8>) -> Result<()> {
        let written =
            map.write_at(vec![bytes.into()], sector::page_at(page), Durability::AtSync).await;
        written.map_err(|error| {
            Error::io(format!("write page {page} of the map of layer {}", self.facts.id), error)
        })
    }

    fn header(&self) -> Header {
        let mut image = [b'0'; 16];
        let id = self.facts.image.as_str().as_bytes();
        let length = id.len().min(image.len());
        image[..length].copy_from_slice(&id[..length]);
        Header {
            layer: self.facts.id.number(),
            size: self.facts.size,
            block_size: self.facts.block_size,
            image,
            image_name: self.facts.image_name.clone(),
            below: self.facts.below.clone(),
        }
    }

    /// Writes all of a page that is not known to be whole: a new one, with all units inherited, or what a power cut left of one.
    /// What the next sync writes is allocated then, so that a full disk fails the write and not the sync.
    pub(crate) async fn make_whole(&self, page: u64) -> Result<()> {
        let mut ledger = self.creating.lock().await;
        if self.pages.is_ready(page) {
            return Ok(());
        }
        // Nobody changes it before it is ready, so this is what the map has of it.
        let words = self.page(page).await?.map_or([0; sector::PAGE_WORDS], |page| page.words());
        let map = self.map_to_write().expect("files are created before pages");
        let epoch = self.epoch.lock().epoch;
        let number = page / ledger::PAGES_NAMED;
        if !ledger.has(number) {
            let written = self.write_ledger(map, number, epoch, &self.pages.ledger(number)).await;
            written.map_err(|error| self.cannot_write_ledger(error))?;
            ledger.add(number);
        }
        let bytes = sector::encode(self.facts.id.number(), page, epoch, &words);
        self.write_page(map, page, bytes).await?;
        self.pages.made_whole(page, Page::new(&words));
        Ok(())
    }
}

/// Looks again where a log says that a layer without a map was written: none begins before the map is durable, and none stays when
/// the map is removed. So a filler has just made it, or it is lost. A log of another boot says nothing: a power cut may have undone
/// either.
async fn look_again<D: Disk>(
    shared: &Shared<D>,
    facts: &LayerFacts,
    units: Units,
    access: Access,
) -> Result<Option<OnDisk<D::File>>> {
    let Some(boot) = shared.boot else { return Ok(None) };
    if !Logs::read(shared, facts).await?.say_it_was_written(boot) {
        return Ok(None);
    }
    let found = look(shared, facts, units, access).await?;
    found.map(Some).ok_or_else(|| {
        let (layer, image) = (facts.id, &facts.image_name);
        Error::corrupt(format!(
            "{} is missing or empty, and a live log says that layer {layer} of image {image} was written since the machine was \
             started: its files were lost, or are those of an earlier moment; bring them back, or remove live/{layer}.0 and \
             live/{layer}.1 to do without what was written",
            shared.layer_dir(layer).join("map").display()
        ))
    })
}

/// Looks at the files of a layer; `None` if it has none that count.
async fn look<D: Disk>(
    shared: &Shared<D>,
    facts: &LayerFacts,
    units: Units,
    access: Access,
) -> Result<Option<OnDisk<D::File>>> {
    let path = shared.layer_dir(facts.id).join("map");
    let what = path.display().to_string();
    let mode = if access == Access::Read { OpenMode::Read } else { OpenMode::ReadWrite };
    let segments = present_segments(shared, facts).await?;
    // A map is made durable before any data file gets a name, so a crash that leaves no map leaves no data either.
    let no_map = || {
        segments.is_empty().then_some(None).ok_or_else(|| {
            Error::corrupt(format!("{what}: is missing or empty beside files that hold data"))
        })
    };
    let map = match shared.disk.open(&path, mode).await {
        Ok(map) => map,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return no_map(),
        Err(error) => return Err(cannot_open(format!("open {what}"), error)),
    };
    let failed = |error| Error::io(format!("read {what}"), error);
    let length = map.length().await.map_err(failed)?;
    // Before its first page is read, which is whole before any other is written: a filler may be making it.
    let mut pages = pages_of(&map, units).await.map_err(failed)?;
    if length < PAGE as u64 {
        // A power cut in the middle of creating it.
        return no_map();
    }
    let has_pages = pages.present.next(0).is_some();
    let first = map_file::read_checked(&map, 0, &what, |page| {
        // A power cut may leave either sector of a map that was being created; with pages behind it, it was damaged later.
        if page.chunks(SECTOR).take(2).any(sector::is_blank) && !has_pages {
            return Ok(None);
        }
        header::decode(&what, facts.id.number(), page)
            .map(|decoded| Some((Box::new(*page), decoded)))
    });
    let Some((page, (header, epoch))) = first.await? else { return no_map() };
    if access != Access::Read {
        header::check_writable(&what, &page)?;
    }
    if (header.size, header.block_size) != (facts.size, facts.block_size) {
        return Err(Error::corrupt(format!(
            "{what}: for an image of {} bytes in blocks of {}, but the catalog says {} in blocks of {}",
            header.size, header.block_size, facts.size, facts.block_size
        )));
    }
    if length < map_length(units) {
        return Err(Error::corrupt(format!(
            "{what}: has {length} bytes, expected {}",
            map_length(units)
        )));
    }
    read_ledger(&what, &map, facts, units, &mut pages).await?;
    Ok(Some(OnDisk { map, epoch, pages, segments }))
}

/// Which pages may exist. Nobody punches maps, so a hole is a page that was never written, unless the ledger names it.
async fn pages_of<F: File>(map: &F, units: Units) -> std::io::Result<OnMap> {
    let mut pages = OnMap::default();
    let mut at = 0;
    while let Some(extent) = map.next_data(at).await? {
        pages.present.add_extent(extent, 1, units.pages());
        pages.ledger.add_extent(extent, 1 + units.pages(), ledger::pages(units.pages()));
        at = extent.end();
    }
    Ok(pages)
}

/// Reads which pages are whole. They exist, even if the file has holes there: then they are lost.
async fn read_ledger<F: File>(
    what: &str,
    map: &F,
    facts: &LayerFacts,
    units: Units,
    pages: &mut OnMap,
) -> Result<()> {
    let mut next = pages.ledger.next(0);
    while let Some(number) = next {
        let at = ledger::page_at(units.pages(), number);
        let words = map_file::read_checked(map, at, what, |bytes| {
            ledger::decode(what, facts.id.number(), units.pages(), number, bytes)
        })
        .await?;
        for set in [&mut pages.whole, &mut pages.present] {
            set.add_words(number * ledger::PAGES_NAMED, &words);
        }
        next = pages.ledger.next(number + 1);
    }
    Ok(())
}

/// The numbers of the data files that a layer has, in ascending order.
pub(crate) async fn present_segments<D: Disk>(
    shared: &Shared<D>,
    facts: &LayerFacts,
) -> Result<Vec<u64>> {
    let files = files_of(shared, facts).await?;
    let numbers =
        files.iter().filter_map(|path| path.file_name()?.to_str().and_then(segment::number_of));
    let mut numbers: Vec<u64> = numbers.filter(|number| facts.has_segment(*number)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Everything in the directory of a layer; nothing if it has none.
pub(crate) async fn files_of<D: Disk>(
    shared: &Shared<D>,
    facts: &LayerFacts,
) -> Result<Vec<PathBuf>> {
    let dir = shared.layer_dir(facts.id);
    match shared.disk.list_dir(&dir).await {
        Ok(files) => Ok(files),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(cannot_open(format!("list {}", dir.display()), error)),
    }
}

fn map_length(units: Units) -> u64 {
    ledger::page_at(units.pages(), ledger::pages(units.pages()))
}

/// The epoch of a map that is made now: random, so that a log of an earlier map at the same inode does not continue it.
fn first_epoch(disk: &impl Disk) -> Epoch {
    Epoch { epoch: crate::layer_id::random_number(disk), last_sync: now(), poisoned: None }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
