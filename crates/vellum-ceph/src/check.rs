//! What a check of a pool looks at: the directory against headers, lists of children against the children, and what somebody has begun
//! and not ended.

use futures::stream::{self, StreamExt};
use vellum_core::{ImageName, ObjectNo};
use vellum_engine::{ChildRef, Finding, ImageId, Repair, Result, RevisionId, Severity};
use vellum_rados::Objects;

use crate::bitmap;
use crate::catalog::CephCatalog;
use crate::children;
use crate::described::Described;
use crate::header::described;
use crate::pending::Begun;
use crate::records;
use crate::remove::numbers;
use crate::trash::{self, TrashState, TrashedImage};

/// Images in the trash that are listed at once.
const PAGE: usize = 256;
/// Objects that are looked at at once.
const AT_ONCE: usize = 16;
/// Of no more objects each is looked at, and of more those of which the bitmap says that they may be there: the others are looked for
/// when somebody asks for a check of the bitmap.
const ALL_MAX: u64 = 4096;

/// Checks one image, or all and the pool itself.
pub(crate) async fn check<O: Objects>(
    catalog: &CephCatalog<O>,
    image: Option<&ImageId>,
    repair: Repair,
) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    match image {
        Some(id) => {
            let now = described(catalog.objects(), id).await?;
            let name = catalog.name_of(id).await?.parse().ok();
            check_image(catalog, &now, name.as_ref(), repair, &mut findings).await?;
        }
        None => {
            check_pending(catalog, repair, &mut findings).await?;
            check_images(catalog, repair, &mut findings).await?;
            check_trash(catalog, repair, &mut findings).await?;
        }
    }
    Ok(Finding::most(findings))
}

async fn check_pending<O: Objects>(
    catalog: &CephCatalog<O>,
    repair: Repair,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    for (pending, begun) in records::left_behind(catalog).await? {
        // An id that was kept, and for nothing, is in nobody's way.
        let severity = if begun == Begun::Reservation { Severity::Leak } else { Severity::Stale };
        let what = format!("{}, and not to its end", pending.what);
        let mut finding = Finding::new(severity, what);
        if repair.is_wanted() {
            match records::resume(catalog, &pending).await {
                Ok(()) => finding = finding.repaired("finished it, or took it back"),
                Err(error) => findings.push(Finding::not_looked_at(&error)),
            }
        }
        findings.push(finding);
    }
    Ok(())
}

async fn check_images<O: Objects>(
    catalog: &CephCatalog<O>,
    repair: Repair,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let mut after = String::new();
    loop {
        let page = records::page(catalog, &after).await?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after.clone_from(last);
        for (name, id) in page {
            let name: Option<ImageName> = name.parse().ok();
            match Described::read(catalog.objects(), &id).await {
                Ok(Some(now)) => {
                    check_image(catalog, &now, name.as_ref(), repair, findings).await?;
                }
                Ok(None) => {
                    let pending = crate::pending::of(catalog.objects(), &id).await?;
                    // Or it is just being removed, and its name the last that goes.
                    let is_named = catalog.directory_name(&id).await?.is_some();
                    if pending.is_none() && is_named {
                        let what = format!("the directory names image {id}, which has no header");
                        findings.push(of(Finding::new(Severity::Damage, what), name.as_ref()));
                    }
                }
                Err(error) => {
                    findings.push(of(Finding::not_looked_at(&error), name.as_ref()));
                }
            }
        }
    }
}

/// Looks at the images in the trash, and at what others than this program have begun with them.
async fn check_trash<O: Objects>(
    catalog: &CephCatalog<O>,
    repair: Repair,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let mut after: Option<ImageId> = None;
    loop {
        let page = trash::list(catalog, after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.id.clone());
        for found in page {
            // What was noted is looked at by that.
            if crate::pending::of(catalog.objects(), &found.id).await?.is_some() {
                continue;
            }
            let name: Option<ImageName> = found.name.parse().ok();
            findings.extend(check_trashed(catalog, &found, repair).await?);
            match Described::read(catalog.objects(), &found.id).await {
                Ok(Some(now)) => {
                    check_image(catalog, &now, name.as_ref(), repair, findings).await?;
                }
                Ok(None) => {}
                Err(error) => findings.push(of(Finding::not_looked_at(&error), name.as_ref())),
            }
        }
    }
}

/// What somebody has begun with an image in the trash. Only what cannot keep anybody from going on is finished: a removal, for one, may
/// just be about to be refused.
async fn check_trashed<O: Objects>(
    catalog: &CephCatalog<O>,
    found: &TrashedImage,
    repair: Repair,
) -> Result<Option<Finding>> {
    let TrashedImage { id, name, .. } = found;
    let is_named = catalog.directory_name(id).await?.is_some();
    let (doing, ends) = match found.state {
        TrashState::Normal | TrashState::Other(_) => return Ok(None),
        TrashState::Moving => ("moved to the trash", "trash mv"),
        TrashState::Restoring => ("brought back from the trash", "trash restore"),
        TrashState::Removing => ("removed from the trash", "trash rm"),
    };
    let what = format!(
        "image {id}, which was {name}, is being {doing}; if nobody is at it any more, `rbd {ends}` ends that"
    );
    let finding = Finding::new(Severity::Stale, what);
    if !repair.is_wanted() {
        return Ok(Some(finding));
    }
    let finished = match (found.state, is_named) {
        (TrashState::Moving, false) => trash::finish_put(catalog, id).await,
        (TrashState::Restoring, true) => trash::forget(catalog, id).await,
        _ => return Ok(Some(finding)),
    };
    Ok(Some(match finished {
        Ok(()) => finding.repaired("finished it"),
        Err(error) => finding.failed(&error),
    }))
}

fn of(finding: Finding, name: Option<&ImageName>) -> Finding {
    match name {
        Some(name) => finding.of(name),
        None => finding,
    }
}

async fn check_image<O: Objects>(
    catalog: &CephCatalog<O>,
    now: &Described,
    name: Option<&ImageName>,
    repair: Repair,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let listed = match children::of(catalog, now).await {
        Ok(listed) => listed,
        Err(error) => {
            findings.push(of(Finding::not_looked_at(&error), name));
            children::named(catalog, now)
        }
    };
    for (revision, child) in listed {
        if child.pool != catalog.pool_id() || is_child(catalog, now, &revision, &child).await? {
            continue;
        }
        let what = format!(
            "revision {revision} lists image {} as a child, which does not hang on it",
            child.image
        );
        let mut finding = of(Finding::new(Severity::Stale, what), name);
        if repair.is_wanted() {
            match children::detach(catalog, catalog.objects(), &now.id, &revision, &child).await {
                Ok(()) => finding = finding.repaired("took it from the list"),
                Err(error) => findings.push(Finding::not_looked_at(&error)),
            }
        }
        findings.push(finding);
    }
    findings.extend(check_trimmed(catalog, now, repair).await.map(|finding| of(finding, name)));
    check_states(catalog, now, name, repair, findings).await?;
    for snapshot in &now.dropped {
        let what = format!("image {} still keeps what a removed snapshot kept", now.id);
        let mut finding = of(Finding::new(Severity::Leak, what), name);
        if repair.is_wanted() {
            match children::forget_dropped(catalog, catalog.objects(), now, *snapshot).await {
                Ok(()) => finding = finding.repaired("let the cluster free it"),
                Err(error) => findings.push(Finding::not_looked_at(&error)),
            }
        }
        findings.push(finding);
    }
    Ok(())
}

/// What somebody who died, or is at it, has left behind the end of an image that became smaller.
async fn check_trimmed<O: Objects>(
    catalog: &CephCatalog<O>,
    now: &Described,
    repair: Repair,
) -> Option<Finding> {
    now.trim?;
    let what = format!("image {} may have empty objects behind its end", now.id);
    let finding = Finding::new(Severity::Leak, what);
    if !repair.is_wanted() {
        return Some(finding);
    }
    // Whoever owns it removes them first.
    Some(match vellum_engine::Catalog::own(catalog, &now.id).await {
        Ok(head) => match vellum_engine::Head::close(head).await {
            Ok(()) => finding.repaired("removed them"),
            Err(error) => finding.failed(&error),
        },
        Err(error) => finding.failed(&error),
    })
}

/// What the data objects of a sparse image say of their blocks, at the head and at each snapshot.
async fn check_states<O: Objects>(
    catalog: &CephCatalog<O>,
    now: &Described,
    name: Option<&ImageName>,
    repair: Repair,
    findings: &mut Vec<Finding>,
) -> Result<()> {
    if now.sparse.is_none() {
        return Ok(());
    }
    let snapshots = now.header.snapshots.keys().map(|snapshot| Some(*snapshot));
    for snapshot in snapshots.chain([None]) {
        let said = bitmap::load(catalog.objects(), &now.id, snapshot).await?;
        // Without a bitmap, which would say by itself that an object is not there.
        let data = &catalog.data(now, snapshot, None)?;
        let count = now.geometry()?.object_count(data.place().size());
        let numbers = match count <= ALL_MAX {
            true => (0..count).collect(),
            false => numbers(catalog, data.objects(), now, snapshot).await?,
        };
        let looks = numbers
            .into_iter()
            .map(|number| async move { (number, data.states_of(ObjectNo(number)).await) });
        let mut hidden = 0;
        let mut looks = stream::iter(looks).buffer_unordered(AT_ONCE);
        while let Some((number, states)) = looks.next().await {
            match states {
                Ok(states) => {
                    let is_hidden = said.as_ref().is_some_and(|said| !said.contains(number));
                    hidden += u64::from(states.exists() && is_hidden);
                }
                Err(error) => findings.push(of(Finding::not_looked_at(&error), name)),
            }
        }
        // Unless somebody has begun to write meanwhile, who takes the bitmap away first.
        if hidden > 0 && bitmap::load(catalog.objects(), &now.id, snapshot).await? == said {
            findings.push(of(hides(catalog, now, snapshot, hidden, repair).await, name));
        }
    }
    Ok(())
}

/// That a bitmap hides objects, which is as bad as if they were lost, and is over as soon as nobody believes it.
async fn hides<O: Objects>(
    catalog: &CephCatalog<O>,
    now: &Described,
    snapshot: Option<u64>,
    hidden: u64,
    repair: Repair,
) -> Finding {
    let what = format!(
        "the allocation bitmap hides {hidden} objects that are there, so that reads do not see them"
    );
    let finding = Finding::new(Severity::Damage, what);
    if !repair.is_wanted() {
        return finding;
    }
    match bitmap::invalidate(catalog.objects(), &now.id, snapshot).await {
        Ok(()) => {
            finding.repaired("it is not believed any more; `vellum bitmap build` makes a new one")
        }
        Err(error) => finding.failed(&error),
    }
}

/// Whether an image of this pool hangs on a revision, or is about to.
async fn is_child<O: Objects>(
    catalog: &CephCatalog<O>,
    now: &Described,
    revision: &RevisionId,
    child: &ChildRef,
) -> Result<bool> {
    match Described::read(catalog.objects(), &child.image).await? {
        Some(child) => Ok(child
            .parent_link(catalog.home())
            .is_some_and(|link| link.image == now.id && link.revision == *revision)),
        None => Ok(!vellum_engine::Catalog::is_gone(catalog, &child.image).await?),
    }
}
