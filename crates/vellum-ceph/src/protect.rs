//! Protection of snapshots: one that is protected cannot be removed, and clones of the [first format](crate::clone_v1) may hang on it.

use vellum_engine::{Catalog, Error, ErrorKind, ImageId, ImageRecord, Result, SnapshotId};
use vellum_rados::{Failure, Objects, WriteOp};
use vellum_rbd::Features;
use vellum_rbd::method::{CLASS, snapshot as method};
use vellum_rbd::notify::Message;
use vellum_rbd::records::{Protection, Purpose, Snapshot};

use crate::catalog::CephCatalog;
use crate::clone_v1;
use crate::described::{Described, snapshot_number};
use crate::error::failed;
use crate::header::{change_header, described, write_header};
use crate::watched::tell;

/// Whether a snapshot is protected.
pub(crate) async fn protection<O: Objects>(
    catalog: &CephCatalog<O>,
    image: &ImageId,
    id: &SnapshotId,
) -> Result<Protection> {
    let now = described(catalog.objects(), image).await?;
    find(&now, id).map(|(_, snapshot)| snapshot.protection)
}

/// Protects a snapshot. That it is protected is fine.
pub(crate) async fn protect<O: Objects>(
    catalog: &CephCatalog<O>,
    image: &ImageId,
    id: &SnapshotId,
) -> Result<ImageRecord> {
    let from = [Protection::Unprotected, Protection::Unprotecting];
    set(catalog, image, id, &from, Protection::Protected).await?;
    catalog.get(image).await
}

/// Ends the protection of a snapshot that no clone of the first format hangs on. That it is not protected is fine.
pub(crate) async fn unprotect<O: Objects>(
    catalog: &CephCatalog<O>,
    image: &ImageId,
    id: &SnapshotId,
) -> Result<ImageRecord> {
    loop {
        // From here on nobody makes a clone that is not found below.
        set(catalog, image, id, &[Protection::Protected], Protection::Unprotecting).await?;
        let now = described(catalog.objects(), image).await?;
        let (number, snapshot) = find(&now, id)?;
        match snapshot.protection {
            Protection::Unprotected => return catalog.get(image).await,
            // Somebody else protects it again, or has found children.
            Protection::Protected => continue,
            Protection::Unprotecting => {}
        }
        let checked = check_no_children(catalog, &now, number, snapshot).await;
        let to = if checked.is_ok() { Protection::Unprotected } else { Protection::Protected };
        // At the version that children were looked for at: between two ends of its protection there may have been a new one.
        let op = change(WriteOp::new().assert_version(now.version), number, to);
        match write_header(catalog.objects(), image, op).await {
            Ok(()) => {}
            Err(Failure::MISMATCH) => continue,
            Err(failure) => {
                return Err(checked.err().unwrap_or_else(|| failed(failure, doing(image))));
            }
        }
        announce(catalog, image).await;
        checked?;
        return catalog.get(image).await;
    }
}

async fn check_no_children<O: Objects>(
    catalog: &CephCatalog<O>,
    now: &Described,
    number: u64,
    snapshot: &Snapshot,
) -> Result<()> {
    let children = clone_v1::of_snapshot(catalog, &now.id, number).await?;
    let Some(first) = children.first() else { return Ok(()) };
    let what = format!(
        "snapshot {} of image {} has clones of the first format ({}), such as image {} in pool {}; flatten or remove them first, then end its protection",
        snapshot.name,
        now.id,
        children.len(),
        first.image,
        first.pool
    );
    Err(Error::new(ErrorKind::HasChildren, what))
}

fn change(op: WriteOp, snapshot: u64, to: Protection) -> WriteOp {
    let set = method::set_protection_status(snapshot, to);
    op.call(CLASS, set.method, set.input)
}

fn doing(image: &ImageId) -> String {
    format!("change the protection of a snapshot of image {image}")
}

/// Tells who has the image open. Whoever does not hear it finds out when it looks.
async fn announce<O: Objects>(catalog: &CephCatalog<O>, image: &ImageId) {
    let _ = tell(catalog.objects(), image, &Message::HeaderChanged).await;
}

/// Sets the protection of a snapshot if it is one of those, and tells who has the image open.
async fn set<O: Objects>(
    catalog: &CephCatalog<O>,
    image: &ImageId,
    id: &SnapshotId,
    from: &[Protection],
    to: Protection,
) -> Result<()> {
    let plan = |now: &Described, op: WriteOp| {
        let (number, snapshot) = find(now, id)?;
        if !now.header.features.has(Features::LAYERING) {
            let what = format!(
                "image {image} lacks the feature layering, without which nothing is protected"
            );
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        Ok(from.contains(&snapshot.protection).then(|| change(op, number, to)))
    };
    if change_header(catalog.objects(), image, plan, || doing(image)).await?.is_some() {
        announce(catalog, image).await;
    }
    Ok(())
}

/// The snapshot of a user that has this id.
fn find<'a>(now: &'a Described, id: &SnapshotId) -> Result<(u64, &'a Snapshot)> {
    let found =
        snapshot_number(id).and_then(|number| Some((number, now.header.snapshots.get(&number)?)));
    found.filter(|(_, snapshot)| snapshot.purpose == Purpose::User).ok_or_else(|| {
        let what = format!("image {} has no snapshot with id {id}", now.id);
        Error::new(ErrorKind::NotFound, what)
    })
}

/// `Invalid` if a snapshot is protected, since it is about to be removed.
pub(crate) fn check_unprotected(now: &Described, name: &str, snapshot: u64) -> Result<()> {
    match now.header.snapshots.get(&snapshot) {
        Some(found) if found.protection != Protection::Unprotected => {
            let what = format!(
                "snapshot {} of image {name} is protected; end its protection first, as with `rbd snap unprotect`",
                found.name
            );
            Err(Error::new(ErrorKind::Invalid, what))
        }
        _ => Ok(()),
    }
}
