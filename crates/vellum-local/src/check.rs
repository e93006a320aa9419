//! Check: the catalog against itself, each layer's map against its data, and files against rows.
//!
//! What a check finds is said in [`Finding`]s. Three things are repaired, and only where nobody is using the layer: lists
//! and notes of the catalog that do not agree with what the layers say; files of layers that were removed; and space under
//! units that are not data. Files of layers that the catalog never knew may be newer than a catalog that was brought back from
//! a backup, and space whose states the map does not have may be data of a map that was damaged: both go only if that is asked
//! for. Damage is told and left alone: whatever there is to save, is better saved from what is there.

use std::collections::BTreeMap;

use vellum_core::{Extent, State};
use vellum_disk::{Disk, LockKind};
use vellum_engine::catalog::FINDINGS_MAX;
use vellum_engine::{Catalog, ErrorKind, Finding, ImageRecord, Repair, Result, Revision, Severity};

use crate::LayerId;
use crate::catalog::consistency;
use crate::catalog::record::ImageNo;
use crate::engine::{LocalCatalog, facts};
use crate::format::sector;
use crate::layer::LocalLayer;
use crate::map_file;
use crate::recovery::present_segments;
use crate::removal::Why;
use crate::segment;
use crate::store::Access;

/// What file systems allocate at once, at least: a smaller hole in what is data frees nothing.
const FILE_SYSTEM_BLOCK: u64 = 4096;

/// Extents of one kind in one layer that are named one by one; the rest is counted.
const NAMED_MAX: usize = 3;

impl<D: Disk> LocalCatalog<D> {
    /// See [`Catalog::check`].
    pub(crate) async fn check_all(
        self,
        image: Option<ImageNo>,
        repair: Repair,
    ) -> Result<Vec<Finding>> {
        if repair.is_wanted() {
            self.writable()?;
        }
        let mut findings = Vec::new();
        let images = match image {
            Some(image) => vec![image],
            None => {
                findings.extend(self.check_catalog(repair).await?);
                if findings.iter().any(|finding| finding.severity == Severity::Damage) {
                    return Ok(findings);
                }
                self.database().read("list images", consistency::all_images).await?
            }
        };
        for image in images {
            self.check_image(image, repair, &mut findings).await?;
            if findings.len() > FINDINGS_MAX {
                findings.truncate(FINDINGS_MAX);
                return Ok(findings);
            }
        }
        if image.is_none() {
            findings.extend(self.check_leftovers(repair).await?);
        }
        Ok(findings)
    }

    async fn check_catalog(&self, repair: Repair) -> Result<Vec<Finding>> {
        let damage = self.database().read("check the catalog", consistency::damage).await?;
        if !damage.is_empty() {
            return Ok(damage);
        }
        let pool = self.pool();
        let look = move |db: &rusqlite::Connection| consistency::stale(db, pool, repair);
        match repair {
            Repair::No => self.database().read("check the catalog's lists", look).await,
            Repair::Safe | Repair::WithUnknownFiles => {
                self.database().write("mend the catalog's lists", look).await
            }
        }
    }

    /// Files of layers that have no row.
    async fn check_leftovers(&self, repair: Repair) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for leftover in self.leftovers().await? {
            let (severity, removed_with) = match leftover.why {
                Why::Removed => (Severity::Leak, Repair::Safe),
                Why::Unknown => (Severity::Unknown, Repair::WithUnknownFiles),
            };
            let finding = Finding::new(severity, leftover.to_string());
            findings.push(if repair >= removed_with {
                self.remove_leftover(leftover.layer).await?;
                finding.repaired("removed its files")
            } else {
                finding
            });
        }
        Ok(findings)
    }

    async fn check_image(
        &self,
        image: ImageNo,
        repair: Repair,
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let record = match self.look_up(image).await {
            // Removed since it was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                findings.push(Finding::not_looked_at(&error));
                return Ok(());
            }
            record => record?,
        };
        for revision in &record.revisions {
            let checked = self.check_revision(image, &record, revision, repair, findings).await;
            if let Err(error) = checked {
                findings.push(Finding::not_looked_at(&error).of(&record.name));
            }
        }
        Ok(())
    }

    async fn check_revision(
        &self,
        image: ImageNo,
        record: &ImageRecord,
        revision: &Revision,
        repair: Repair,
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let id = LayerId::of_revision(&revision.id)?;
        let kind = match repair {
            Repair::No => LockKind::Shared,
            Repair::Safe | Repair::WithUnknownFiles => LockKind::Exclusive,
        };
        // Held while it is looked at, so that nobody writes or fills it meanwhile.
        let Some(_held) = self.try_lock(id, kind)? else {
            let what = format!("layer {id} is in use, and was not looked at");
            findings.push(Finding::new(Severity::Unknown, what).of(&record.name));
            return Ok(());
        };
        let row = self
            .database()
            .read("look up a layer", move |db| crate::catalog::layers::get(db, image, id))
            .await;
        let row = match row {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            row => row?,
        };
        let access = match (repair, row.sealed) {
            (Repair::No, _) => Access::Read,
            (_, false) => Access::Own,
            (_, true) => Access::Fill,
        };
        let layer = self.store().layer(facts(&row), access).await?;
        let found = layer.check(repair).await?;
        findings.extend(found.into_iter().map(|found| found.of(&record.name)));
        Ok(())
    }
}

/// Extents of one kind, of which the first are named and all are counted.
#[derive(Default)]
struct Extents {
    named: Vec<Extent>,
    bytes: u64,
}

impl Extents {
    fn add(&mut self, at: Extent) {
        self.bytes += at.length();
        let many = self.named.len() >= NAMED_MAX;
        match self.named.last_mut() {
            Some(last) if last.end() == at.offset() => {
                *last = Extent::between(last.offset(), at.end());
            }
            _ if many => {}
            _ => self.named.push(at),
        }
    }

    /// What is to be said of them, if there are any.
    fn finding(&self, severity: Severity, what: &str) -> Option<Finding> {
        if self.bytes == 0 {
            return None;
        }
        let named: Vec<String> = self.named.iter().map(Extent::to_string).collect();
        let more = self.bytes > self.named.iter().map(Extent::length).sum();
        let more = if more { " and more" } else { "" };
        let what = format!("{what}: {} bytes, at {}{more}", self.bytes, named.join(", "));
        Some(Finding::new(severity, what))
    }
}

/// Space under units that are not data.
#[derive(Default)]
struct Space {
    /// Of units that the map says are something else.
    given_up: Extents,
    /// Of units whose states the map does not have. A power cut leaves them, of writes that were never synced; but a map that
    /// lost them looks the same, and then they are data.
    unsaid: Extents,
}

impl Space {
    /// Notes some, and says which repair may free it.
    fn add(&mut self, at: Extent, is_said: bool) -> Repair {
        if is_said {
            self.given_up.add(at);
            Repair::Safe
        } else {
            self.unsaid.add(at);
            Repair::WithUnknownFiles
        }
    }

    fn findings(&self, layer: LayerId, repair: Repair) -> Vec<Finding> {
        let given_up = format!("layer {layer}: space under units that are not data");
        let unsaid = format!(
            "layer {layer}: space under units whose states were never written, left by a power cut, or all that is left of data \
             if the map has lost a part"
        );
        let kinds = [
            (self.given_up.finding(Severity::Leak, &given_up), Repair::Safe),
            (self.unsaid.finding(Severity::Leak, &unsaid), Repair::WithUnknownFiles),
        ];
        let found = kinds.into_iter().filter_map(|(finding, freed_by)| {
            let is_freed = repair >= freed_by;
            finding.map(|it| if is_freed { it.repaired("freed it") } else { it })
        });
        found.collect()
    }
}

impl<D: Disk> LocalLayer<D> {
    /// Looks at all of the map, and at what the data files hold beside it. To repair, the layer is owned or filled, and is closed
    /// afterwards.
    pub(crate) async fn check(&self, repair: Repair) -> Result<Vec<Finding>> {
        let checked = self.check_files(repair).await;
        if repair.is_wanted() {
            self.close().await?;
        }
        checked
    }

    async fn check_files(&self, repair: Repair) -> Result<Vec<Finding>> {
        let inner = &self.0;
        if inner.map.get().is_none() {
            return Ok(Vec::new());
        }
        let lengths = self.segment_lengths().await?;
        let id = inner.facts.id;
        let mut findings = Vec::new();
        let (mut lost, mut beyond) = (Extents::default(), Extents::default());
        let mut next = inner.pages.next_present(0);
        while let Some(page) = next {
            next = inner.pages.next_present(page + 1);
            match inner.page(page).await {
                Ok(None) => {}
                Ok(Some(content)) => {
                    let at = inner.units.page_at(page);
                    for data in inner.states_of(at).await?.in_state(State::Data) {
                        lost_of(data, &lengths, inner.facts.size).for_each(|at| lost.add(at));
                    }
                    if content.defines_beyond(inner.units.units_in(page)) {
                        beyond.add(at);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    findings.push(Finding::new(Severity::Damage, error.chain()));
                    if findings.len() >= FINDINGS_MAX {
                        return Ok(findings);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let lost = lost.finding(
            Severity::Damage,
            &format!("layer {id}: files lack what the map says they hold"),
        );
        let beyond = beyond.finding(
            Severity::Damage,
            &format!("layer {id}: the map defines units past the end of the image"),
        );
        findings.extend(lost.into_iter().chain(beyond));
        if findings.is_empty() {
            // What a damaged map says is no ground to free anything.
            findings.extend(self.check_space(&lengths, repair).await?);
        }
        Ok(findings)
    }

    /// How long each data file is.
    async fn segment_lengths(&self) -> Result<BTreeMap<u64, u64>> {
        let inner = &self.0;
        let mut lengths = BTreeMap::new();
        for number in present_segments(&inner.shared, &inner.facts).await? {
            lengths.insert(number, inner.segments.length(number).await?);
        }
        Ok(lengths)
    }

    /// Space under units that are not data.
    async fn check_space(
        &self,
        lengths: &BTreeMap<u64, u64>,
        repair: Repair,
    ) -> Result<Vec<Finding>> {
        let inner = &self.0;
        let mut space = Space::default();
        for number in lengths.keys() {
            let mut at = number * segment::SEGMENT;
            while let Some(occupied) = inner.segments.next_data(*number, at).await? {
                at = occupied.end();
                for (page, piece) in inner.units.by_page(occupied.clip(inner.facts.size)) {
                    self.check_space_of_page(page, piece, repair, &mut space).await?;
                }
            }
        }
        Ok(space.findings(inner.facts.id, repair))
    }

    async fn check_space_of_page(
        &self,
        page: u64,
        occupied: Extent,
        repair: Repair,
        space: &mut Space,
    ) -> Result<()> {
        let inner = &self.0;
        let never_written = self.never_written(page).await?;
        let runs = inner.states_of(occupied).await?;
        for run in runs.iter().filter(|run| run.state != State::Data) {
            for (sector, part) in inner.units.by_sector(run.extent) {
                let whole = part.align_in(FILE_SYSTEM_BLOCK);
                let is_said = run.state == State::Zero || never_written & 1 << sector == 0;
                if !whole.is_empty() && space.add(whole, is_said) <= repair {
                    inner.segments.punch(whole).await?;
                }
            }
        }
        Ok(())
    }

    /// Which sectors of a page the map has never had.
    async fn never_written(&self, page: u64) -> Result<u8> {
        let Some(map) = self.0.map.get() else { return Ok(u8::MAX) };
        let page = map_file::read(map, sector::page_at(page), &self.0.map_name()).await?;
        Ok(sector::never_written(map_file::bytes_of(&page)))
    }
}

/// The parts of an extent of data that its files are too short for, or that have no file.
fn lost_of(data: Extent, lengths: &BTreeMap<u64, u64>, size: u64) -> impl Iterator<Item = Extent> {
    data.clip(size).chunks(segment::SEGMENT).filter_map(|piece| {
        let number = piece.offset() / segment::SEGMENT;
        let length = lengths.get(&number).copied().unwrap_or(0);
        let lost = piece.split(number * segment::SEGMENT + length).1;
        (!lost.is_empty()).then_some(lost)
    })
}
