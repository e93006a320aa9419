//! Check of one layer: its map against its data.

use std::collections::BTreeMap;

use vellum_core::{Extent, State};
use vellum_disk::Disk;
use vellum_engine::{Finding, Repair, Result, Severity};

use super::Report;
use super::space::{Extents, NAMED_MAX, Space};
use crate::LayerId;
use crate::format::sector;
use crate::layer::LocalLayer;
use crate::map_file;
use crate::recovery::{files_of, present_segments};
use crate::segment;

/// What file systems allocate at once, at least: a smaller hole in what is data frees nothing.
const FILE_SYSTEM_BLOCK: u64 = 4096;

/// What a map says that cannot be so.
#[derive(Default)]
struct Contradicted {
    /// Data that the files are too short for.
    lost: Extents,
    /// Pages with units past the end of the image.
    beyond: Extents,
}

impl Contradicted {
    fn findings(&self, layer: LayerId) -> impl Iterator<Item = Finding> {
        let lost = format!("layer {layer}: files lack what the map says they hold");
        let beyond = format!("layer {layer}: the map defines units past the end of the image");
        let lost = self.lost.finding(Severity::Damage, &lost);
        lost.into_iter().chain(self.beyond.finding(Severity::Damage, &beyond))
    }
}

impl<D: Disk> LocalLayer<D> {
    /// Looks at all of the map, and at what the data files hold beside it. To repair, the layer is owned or filled, and is closed
    /// afterwards.
    pub(crate) async fn check(&self, repair: Repair, report: &mut Report) {
        self.check_files(repair, report).await;
        if repair.is_wanted()
            && let Err(error) = self.close().await
        {
            report.not_looked_at(&error);
        }
    }

    async fn check_files(&self, repair: Repair, report: &mut Report) {
        self.check_map(repair, report).await;
        match self.strangers().await {
            Ok(names) => report.extend(strangers_found(self.0.facts.id, &names)),
            Err(error) => report.not_looked_at(&error),
        }
    }

    /// What lies in the directory of the layer and is none of its files.
    async fn strangers(&self) -> Result<Vec<String>> {
        let inner = &self.0;
        let files = files_of(&inner.shared, &inner.facts).await?;
        let is_strange = |name: &String| {
            let own =
                segment::number_of(name).is_some_and(|number| inner.facts.has_segment(number));
            name != "map" && !own
        };
        let names = files.iter().filter_map(|path| path.file_name());
        Ok(names.map(|name| name.display().to_string()).filter(is_strange).collect())
    }

    async fn check_map(&self, repair: Repair, report: &mut Report) {
        let inner = &self.0;
        if inner.map.get().is_none() {
            return;
        }
        let lengths = self.segment_lengths(report).await;
        let mut contradicted = Contradicted::default();
        let mut next = inner.pages.next_present(0);
        while let Some(page) = next.filter(|_| !report.is_full()) {
            next = inner.pages.next_present(page + 1);
            if let Err(error) = self.check_page(page, &lengths, &mut contradicted).await {
                report.not_looked_at(&error);
            }
        }
        report.extend(contradicted.findings(inner.facts.id));
        let doubt = inner.doubt.get().map(|why| format!("layer {}: {why}", inner.facts.id));
        if report.is_empty() {
            // What a map says that is damaged, or cannot be read, is no ground to free anything, nor what an earlier one says.
            let repair =
                if doubt.is_some() && repair == Repair::Safe { Repair::No } else { repair };
            self.check_space(&lengths, repair, report).await;
        }
        report.extend(doubt.map(|why| Finding::new(Severity::Unknown, why)));
    }

    async fn check_page(
        &self,
        page: u64,
        lengths: &BTreeMap<u64, u64>,
        contradicted: &mut Contradicted,
    ) -> Result<()> {
        let inner = &self.0;
        let Some(content) = inner.page(page).await? else { return Ok(()) };
        let at = inner.units.page_at(page);
        for data in inner.states_of(at).await?.in_state(State::Data) {
            lost_of(data, lengths, inner.facts.size).for_each(|at| contradicted.lost.add(at));
        }
        if content.defines_beyond(inner.units.units_in(page)) {
            contradicted.beyond.add(at);
        }
        Ok(())
    }

    /// How long each data file is. Of those that cannot be looked at nothing is known to be lost.
    async fn segment_lengths(&self, report: &mut Report) -> BTreeMap<u64, u64> {
        let inner = &self.0;
        let mut lengths = BTreeMap::new();
        let present = match present_segments(&inner.shared, &inner.facts).await {
            Ok(present) => present,
            Err(error) => {
                report.not_looked_at(&error);
                let all = 0..inner.facts.size.div_ceil(segment::SEGMENT);
                return all.map(|number| (number, segment::SEGMENT)).collect();
            }
        };
        for number in present {
            let length = inner.segments.length(number).await.unwrap_or_else(|error| {
                report.not_looked_at(&error);
                segment::SEGMENT
            });
            lengths.insert(number, length);
        }
        lengths
    }

    /// Space under units that are not data.
    async fn check_space(&self, lengths: &BTreeMap<u64, u64>, repair: Repair, report: &mut Report) {
        let mut space = Space::default();
        for number in lengths.keys() {
            if let Err(error) = self.check_space_of_segment(*number, repair, &mut space).await {
                report.not_looked_at(&error);
            }
        }
        space.tell(self.0.facts.id, report);
    }

    async fn check_space_of_segment(
        &self,
        number: u64,
        repair: Repair,
        space: &mut Space,
    ) -> Result<()> {
        let inner = &self.0;
        let mut at = number * segment::SEGMENT;
        let end = inner.facts.size.min(at + segment::SEGMENT);
        while let Some(occupied) = inner.segments.next_data(number, at).await? {
            at = occupied.end();
            let (inside, behind) = occupied.split(end);
            for (page, piece) in inner.units.by_page(inside) {
                self.check_space_of_page(page, piece, repair, space).await?;
            }
            let behind = behind.align_in(FILE_SYSTEM_BLOCK);
            if !behind.is_empty() {
                let may = space.behind.freed_by <= repair;
                space.behind.add(behind, self.free_in(number, behind, may).await);
            }
        }
        Ok(())
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
                if !whole.is_empty() {
                    let kind = if is_said { &mut space.given_up } else { &mut space.unsaid };
                    let number = whole.offset() / segment::SEGMENT;
                    kind.add(whole, self.free_in(number, whole, kind.freed_by <= repair).await);
                }
            }
        }
        Ok(())
    }

    /// Frees an extent of a data file if it may. Says whether it did.
    async fn free_in(&self, number: u64, at: Extent, may: bool) -> Result<bool> {
        if may {
            self.0.segments.punch_in(number, at).await?;
        }
        Ok(may)
    }

    /// Which sectors of a page the map has never had.
    async fn never_written(&self, page: u64) -> Result<u8> {
        let Some(map) = self.0.map.get() else { return Ok(u8::MAX) };
        let page = map_file::read(map, sector::page_at(page), &self.0.map_name()).await?;
        Ok(sector::never_written(map_file::bytes_of(&page)))
    }
}

/// What is said of files that are not the layer's own. Nobody knows whose they are, and so they stay.
fn strangers_found(layer: LayerId, names: &[String]) -> Option<Finding> {
    let (named, rest) = names.split_at(names.len().min(NAMED_MAX));
    let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
    let what = format!(
        "layer {layer}: its directory holds what is none of its files, and stays there: {}{more}",
        named.join(", ")
    );
    (!named.is_empty()).then(|| Finding::new(Severity::Unknown, what))
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
