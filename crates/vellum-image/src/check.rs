//! Check: links between images, through all pools that are known here.
//!
//! An engine checks its own pool ([`Catalog::check`]); what one pool says of another is checked here: that a child's parent is
//! there and knows the child, that who is listed as a child is one, and that every chain can be opened. And what an operation made
//! for itself and left behind: an automatic snapshot that nothing hangs on.

use std::time::{Duration, SystemTime};

use vellum_core::ImageName;
use vellum_engine::catalog::FINDINGS_MAX;
use vellum_engine::{
    Catalog, Change, ChildRef, Error, ErrorKind, Finding, ImageId, ImageRecord, ParentLink, Repair,
    Result, RevisionId, Severity,
};

use crate::chain::{Attempts, open_below};
use crate::{Pools, admin};

/// How many records are asked for at once.
const PAGE: usize = 256;

/// How old an automatic snapshot without a child is before a repair takes it away: whoever made it may be about to clone it.
pub const CHILDLESS_MIN: Duration = Duration::from_secs(3600);

/// Checks a pool, or one image of it: what the engine finds, and the links to images in any pool. Errors are those of looking;
/// what is wrong is a finding.
pub async fn check<C: Catalog>(
    pools: &Pools<C>,
    catalog: &C,
    image: Option<&ImageId>,
    repair: Repair,
) -> Result<Vec<Finding>> {
    check_at(pools, catalog, image, repair, SystemTime::now()).await
}

/// The same, as of a moment.
pub async fn check_at<C: Catalog>(
    pools: &Pools<C>,
    catalog: &C,
    image: Option<&ImageId>,
    repair: Repair,
    now: SystemTime,
) -> Result<Vec<Finding>> {
    let mut findings = catalog.check(image, repair).await?;
    if image.is_none() && findings.iter().any(is_damage_of_the_pool) {
        return Ok(findings);
    }
    let mut after: Option<ImageName> = None;
    loop {
        let records = match image {
            Some(id) => vec![catalog.get(id).await?],
            None => match catalog.list(after.as_ref(), PAGE).await {
                Ok(records) => records,
                Err(error) => {
                    findings.push(Finding::not_looked_at(&error));
                    return Ok(findings);
                }
            },
        };
        for record in &records {
            let found = check_links(pools, catalog, record, repair, now).await;
            findings.extend(found.into_iter().map(|finding| finding.of(&record.name)));
        }
        after = records.last().map(|record| record.name.clone());
        if image.is_some() || records.len() < PAGE || findings.len() >= FINDINGS_MAX {
            return Ok(Finding::most(findings));
        }
    }
}

fn is_damage_of_the_pool(finding: &Finding) -> bool {
    finding.severity == Severity::Damage && finding.image.is_none()
}

/// What cannot be looked at keeps nothing else from being looked at, and takes away nothing that was found or mended before.
async fn check_links<C: Catalog>(
    pools: &Pools<C>,
    catalog: &C,
    record: &ImageRecord,
    repair: Repair,
    now: SystemTime,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(link) = record.parent_link() {
        match check_parent(pools, catalog, record, link, repair).await {
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(Finding::not_looked_at(&error)),
        }
    }
    if findings.is_empty() {
        match check_chain(pools, catalog, record).await {
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(Finding::not_looked_at(&error)),
        }
    }
    match catalog.children(&record.id).await {
        Ok(listed) => {
            check_automatic(catalog, record, &listed, repair, now, &mut findings).await;
            check_children(pools, catalog, record, listed, repair, &mut findings).await;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => findings.push(Finding::not_looked_at(&error)),
    }
    findings
}

/// Whether the parent is there and lists the child.
async fn check_parent<C: Catalog>(
    pools: &Pools<C>,
    catalog: &C,
    record: &ImageRecord,
    link: &ParentLink,
    repair: Repair,
) -> Result<Option<Finding>> {
    let Ok(parents) = pools.get(link.pool) else {
        let what = format!("its parent is in pool {}, which is not known here", link.pool);
        return Ok(Some(Finding::new(Severity::Unknown, what)));
    };
    let parent = match parents.get(&link.image).await {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let what = format!("its parent {} in pool {} is gone", link.image, link.pool);
            let finding = Finding::new(Severity::Damage, what);
            return Ok(still_hangs_on(catalog, record, link).await?.then_some(finding));
        }
        parent => parent?,
    };
    if parent.revision(&link.revision).is_none() {
        let what = format!("its parent {} has no revision {} any more", parent.name, link.revision);
        let finding = Finding::new(Severity::Damage, what);
        return Ok(still_hangs_on(catalog, record, link).await?.then_some(finding));
    }
    let child = ChildRef { pool: catalog.pool(), image: record.id.clone() };
    let listed = parents.children(&link.image).await?;
    if listed.contains(&(link.revision.clone(), child.clone())) {
        return Ok(None);
    }
    if !still_hangs_on(catalog, record, link).await? {
        return Ok(None);
    }
    let what = format!("its parent {} does not list it as a child", parent.name);
    let finding = Finding::new(Severity::Stale, what);
    if !repair.is_wanted() {
        return Ok(Some(finding));
    }
    Ok(Some(match parents.attach(&link.image, &link.revision, &child).await {
        Ok(()) if still_hangs_on(catalog, record, link).await? => {
            finding.repaired("entered it in the list")
        }
        Ok(()) => {
            // Cut off in between, by somebody who took it from the list before it was entered.
            parents.detach(&link.image, &link.revision, &child).await?;
            return Ok(None);
        }
        Err(error) => {
            let what = format!("{}, and cannot: {}", finding.what, error.chain());
            Finding::new(severity_of_unlisted(error.kind()), what).failed(&error)
        }
    }))
}

/// What it means that a child cannot be entered in the list of its parent.
fn severity_of_unlisted(kind: ErrorKind) -> Severity {
    match kind {
        // No snapshot keeps the revision for it: whoever removes something next may take it away.
        ErrorKind::NotFound | ErrorKind::Corrupt => Severity::Damage,
        // The list is as it was, and another repair may mend it.
        _ => Severity::Stale,
    }
}

/// Whether a child still has this link: it may have been flattened or removed since it was looked at.
async fn still_hangs_on<C: Catalog>(
    catalog: &C,
    child: &ImageRecord,
    link: &ParentLink,
) -> Result<bool> {
    match catalog.get(&child.id).await {
        Ok(now) => Ok(now.parent_link() == Some(link)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether all that lies below the head can be opened.
async fn check_chain<C: Catalog>(
    pools: &Pools<C>,
    catalog: &C,
    record: &ImageRecord,
) -> Result<Option<Finding>> {
    let (mut record, mut attempts) = (record.clone(), Attempts::default());
    let error = loop {
        match open_below(pools, catalog, &record, &record.head).await {
            Ok(_) => return Ok(None),
            Err(error) if attempts.again(&error) => match catalog.get(&record.id).await {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                now => record = now?,
            },
            Err(error) => break error,
        }
    };
    let Some(severity) = severity_of(error.kind()) else { return Err(error) };
    let what = format!("its chain cannot be opened: {}", error.chain());
    Ok(Some(Finding::new(severity, what)))
}

fn severity_of(kind: ErrorKind) -> Option<Severity> {
    match kind {
        ErrorKind::Corrupt | ErrorKind::Invalid => Some(Severity::Damage),
        // Removed or changed meanwhile, in a pool that is not known here, or to be asked about.
        ErrorKind::NotFound | ErrorKind::Busy | ErrorKind::InUse | ErrorKind::Unsupported => {
            Some(Severity::Unknown)
        }
        _ => None,
    }
}

/// Whether each automatic snapshot has a child, with the last of which it goes.
async fn check_automatic<C: Catalog>(
    catalog: &C,
    record: &ImageRecord,
    listed: &[(RevisionId, ChildRef)],
    repair: Repair,
    now: SystemTime,
    findings: &mut Vec<Finding>,
) {
    for snapshot in record.snapshots.iter().filter(|snapshot| snapshot.auto) {
        if listed.iter().any(|(revision, _)| *revision == snapshot.revision) {
            continue;
        }
        let is_old = now.duration_since(snapshot.created).is_ok_and(|age| age >= CHILDLESS_MIN);
        let who = if is_old { "whoever made it has died" } else { "somebody may be cloning it" };
        let what = format!("snapshot {} was made for a clone, and has none: {who}", snapshot.name);
        let finding = Finding::new(Severity::Leak, what);
        if !is_old || !repair.is_wanted() {
            findings.push(finding);
            continue;
        }
        let removal = |now: &ImageRecord| {
            // One that was given another name is its user's.
            let is_left = now.snapshots.iter().any(|it| it.id == snapshot.id && it.auto);
            let gone = || Error::new(ErrorKind::NotFound, "it is no automatic snapshot any more");
            is_left.then(|| Change::RemoveSnapshot(snapshot.id.clone())).ok_or_else(gone)
        };
        match admin::change(catalog, &record.id, removal).await {
            Ok(_) => findings.push(finding.repaired("removed it")),
            // It has a child by now, or is gone.
            Err(error) if [ErrorKind::HasChildren, ErrorKind::NotFound].contains(&error.kind()) => {
            }
            Err(error) => {
                let what = format!("{}, and it cannot be removed: {}", finding.what, error.chain());
                findings.push(Finding::new(Severity::Leak, what).failed(&error));
            }
        }
    }
}

/// Whether those in the list of children are children. Within a pool the engine has looked at that.
async fn check_children<C: Catalog>(
    pools: &Pools<C>,
    catalog: &C,
    record: &ImageRecord,
    listed: Vec<(RevisionId, ChildRef)>,
    repair: Repair,
    findings: &mut Vec<Finding>,
) {
    for (revision, child) in listed.into_iter().filter(|(_, child)| child.pool != catalog.pool()) {
        match check_child(pools, catalog, record, &revision, &child, repair).await {
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(Finding::not_looked_at(&error)),
        }
    }
}

/// Whether one that is listed is a child.
async fn check_child<C: Catalog>(
    pools: &Pools<C>,
    catalog: &C,
    record: &ImageRecord,
    revision: &RevisionId,
    child: &ChildRef,
    repair: Repair,
) -> Result<Option<Finding>> {
    let Ok(children) = pools.get(child.pool) else {
        let what = format!("a child is in pool {}, which is not known here", child.pool);
        return Ok(Some(Finding::new(Severity::Unknown, what)));
    };
    let hangs_on = match children.get(&child.image).await {
        Ok(found) => admin::hangs_on(&found, catalog, &record.id, revision),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // One that is just being created will.
            if repair.is_wanted() {
                !children.is_gone(&child.image).await?
            } else {
                let kept = children.reserve(&child.image).await;
                kept.is_err_and(|error| error.kind() == ErrorKind::InUse)
            }
        }
        Err(error) => return Err(error),
    };
    if hangs_on {
        return Ok(None);
    }
    let what = format!(
        "image {} in pool {} is listed as a child, and does not hang on it",
        child.image, child.pool
    );
    let finding = Finding::new(Severity::Stale, what);
    if !repair.is_wanted() {
        return Ok(Some(finding));
    }
    Ok(Some(match catalog.detach(&record.id, revision, child).await {
        Ok(()) => finding.repaired("took it from the list"),
        Err(error) => {
            let what =
                format!("{}, and cannot be taken from the list: {}", finding.what, error.chain());
            Finding::new(Severity::Stale, what).failed(&error)
        }
    }))
}
