//! Check of one layer: its map against its data.

use std::collections::BTreeMap;

use vellum_core::{Extent, State};
use vellum_disk::Disk;
use vellum_engine::catalog::FINDINGS_MAX;
use vellum_engine::{ErrorKind, Finding, Repair, Result, Severity};

use super::space::{Extents, Space};
use crate::format::sector;
use crate::layer::LocalLayer;
use crate::map_file;
use crate::recovery::present_segments;
use crate::segment;

/// What file systems allocate at once, at least: a smaller hole in what is data frees nothing.
const FILE_SYSTEM_BLOCK: u64 = 4096;

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
