//! Check: the catalog against itself, each layer's map against its data, and files against rows.
//!
//! What a check finds is said in [`Finding`]s. Three things are repaired, and only where nobody is using the layer: lists
//! and notes of the catalog that do not agree with what the layers say; files of layers that were removed; and space under
//! units that are not data. Files of layers that the catalog never knew may be newer than a catalog that was brought back from
//! a backup, and space whose states the map does not have may be data of a map that was damaged: both go only if that is asked
//! for. Damage is told and left alone: whatever there is to save, is better saved from what is there.

mod layer;
mod space;

use vellum_disk::{Disk, LockKind};
use vellum_engine::catalog::FINDINGS_MAX;
use vellum_engine::{Catalog, ErrorKind, Finding, ImageRecord, Repair, Result, Revision, Severity};

use crate::LayerId;
use crate::catalog::consistency;
use crate::catalog::record::ImageNo;
use crate::engine::{LocalCatalog, facts};
use crate::removal::Why;
use crate::store::Access;

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
