//! Check: the catalog against itself, each layer's map against its data, and files against rows.
//!
//! What a check finds is said in [`Finding`]s. Four things are repaired, and only where nobody is using the layer: lists
//! and notes of the catalog that do not agree with what the layers say; files of layers that were removed; hints where holders of
//! images were that are gone; and space under units that are not data. Files of layers that the catalog never knew may be newer than a catalog that was brought back from
//! a backup, and space whose states the map does not have may be data of a map that was damaged: both go only if that is asked
//! for. Damage is told and left alone: whatever there is to save, is better saved from what is there.
//!
//! What cannot be looked at or repaired keeps nothing else from being looked at, and takes away nothing that was found before
//! or done: see [`Report`].

mod layer;
mod report;
mod space;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use rusqlite::Connection;
use vellum_disk::{Disk, LockKind};
use vellum_engine::{Catalog, Error, ErrorKind, Finding, Repair, Result, Revision, Severity};

use crate::LayerId;
use crate::catalog::consistency;
use crate::catalog::record::ImageNo;
use crate::engine::{LocalCatalog, facts};
use crate::removal::{Leftover, Why};
use crate::store::Access;

pub(crate) use report::Report;

/// How many files that nobody knows are told by name.
const STRANGERS_MAX: usize = 100;

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
        let mut report = Report::default();
        match image {
            Some(image) => self.check_image(image, repair, &mut report).await,
            None => self.check_pool(repair, &mut report).await?,
        }
        Ok(report.into_findings())
    }

    /// Fails if the catalog cannot be read, which says nothing of anything.
    async fn check_pool(&self, repair: Repair, report: &mut Report) -> Result<()> {
        let damage = self.database().read("check the catalog", consistency::damage).await?;
        if !damage.is_empty() {
            report.extend(damage);
            return Ok(());
        }
        let images = self.database().read("list images", consistency::all_images).await?;
        self.check_lists(repair, report).await;
        for image in images {
            self.check_image(image, repair, report).await;
            if report.is_full() {
                return Ok(());
            }
        }
        self.check_leftovers(repair, report).await;
        if let Err(error) = self.check_others(repair, report).await {
            report.not_looked_at(&error);
        }
        Ok(())
    }

    /// What lies beside the files of layers: what nobody knows, which stays; and hints to holders of images that are gone.
    async fn check_others(&self, repair: Repair, report: &mut Report) -> Result<()> {
        let others = self.directory().others().await?;
        for name in others.strangers.iter().take(STRANGERS_MAX) {
            let what = format!("{name} is none of the pool's files, and stays there");
            report.add(Finding::new(Severity::Unknown, what));
        }
        // Images afterwards: one has its row before somebody can hold it.
        let images = self.database().read("list images", consistency::all_images).await?;
        let known: HashSet<_> = images.into_iter().map(ImageNo::id).collect();
        for (path, image) in others.hints.iter().filter(|(_, image)| !known.contains(image)) {
            let what = format!("image {image} is gone, and a hint where its holder was is left");
            let finding = Finding::new(Severity::Leak, what);
            if repair.is_wanted() {
                self.directory().remove_hint(path).await?;
                report.add(finding.repaired("removed it"));
            } else {
                report.add(finding);
            }
        }
        Ok(())
    }

    /// What the catalog lists that is not so, and the other way round.
    async fn check_lists(&self, repair: Repair, report: &mut Report) {
        let pool = self.pool();
        if repair.is_wanted() {
            let mend = move |db: &Connection| consistency::stale(db, pool, repair);
            match self.database().write("mend the catalog's lists", mend).await {
                Ok(mended) => return report.extend(mended),
                // What was not mended is told all the same.
                Err(error) => report.not_looked_at(&error),
            }
        }
        let look = move |db: &Connection| consistency::stale(db, pool, Repair::No);
        match self.database().read("check the catalog's lists", look).await {
            Ok(found) => report.extend(found),
            Err(error) => report.not_looked_at(&error),
        }
    }

    /// Files of layers that have no row.
    async fn check_leftovers(&self, repair: Repair, report: &mut Report) {
        match self.leftovers().await {
            Err(error) => report.not_looked_at(&error),
            Ok(leftovers) => {
                for leftover in leftovers {
                    self.check_leftover(&leftover, repair, report).await;
                }
            }
        }
    }

    async fn check_leftover(&self, leftover: &Leftover, repair: Repair, report: &mut Report) {
        let (severity, removed_with) = match leftover.why {
            Why::Removed => (Severity::Leak, Repair::Safe),
            Why::Unknown => (Severity::Unknown, Repair::WithUnknownFiles),
        };
        let finding = Finding::new(severity, leftover.to_string());
        if repair < removed_with {
            return report.add(finding);
        }
        match self.remove_leftover(leftover.layer).await {
            Ok(()) => report.add(finding.repaired("removed its files")),
            Err(error) => {
                let what = cannot_remove(leftover, &error);
                report.add(Finding::new(severity, what).failed(&error));
            }
        }
    }

    async fn check_image(&self, image: ImageNo, repair: Repair, report: &mut Report) {
        let record = match self.look_up(image).await {
            Ok(record) => record,
            // Removed since it was listed.
            Err(error) if error.kind() == ErrorKind::NotFound => return,
            Err(error) => return report.not_looked_at(&error),
        };
        for revision in &record.revisions {
            let mut found = Report::default();
            let checked = self.check_revision(image, revision, repair, &mut found).await;
            if let Err(error) = checked {
                found.not_looked_at(&error);
            }
            report.take_over(found, &record.name);
        }
    }

    async fn check_revision(
        &self,
        image: ImageNo,
        revision: &Revision,
        repair: Repair,
        report: &mut Report,
    ) -> Result<()> {
        let id = LayerId::of_revision(&revision.id)?;
        let kind = match repair {
            Repair::No => LockKind::Shared,
            Repair::Safe | Repair::WithUnknownFiles => LockKind::Exclusive,
        };
        // Held while it is looked at, so that nobody writes or fills it meanwhile.
        let Some(_held) = self.try_lock(id, kind)? else {
            let what = format!("layer {id} is in use, and was not looked at");
            report.add(Finding::new(Severity::Unknown, what));
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
        self.store().layer(facts(&row), access).await?.check(repair, report).await;
        Ok(())
    }
}

fn cannot_remove(leftover: &Leftover, error: &Error) -> String {
    format!("{leftover}; they cannot be removed: {}", error.chain())
}
