//! Which images hang on the snapshots of an image: those of this cluster in RBD's own lists, others beside them.

use std::collections::BTreeSet;

use vellum_engine::{ChildRef, Error, ErrorKind, ImageId, Result, RevisionId};
use vellum_rados::{Failure, Objects, WriteOp, WriteStep};
use vellum_rbd::method::{CLASS, layering, snapshot as snapshot_method};
use vellum_rbd::names;
use vellum_rbd::notify::Message;
use vellum_rbd::records::Child;

use crate::catalog::CephCatalog;
use crate::create::remove_if_there;
use crate::described::{Described, text};
use crate::error::failed;
use crate::header::{change_header, described, write_header};
use crate::keys;
use crate::object_map;
use crate::watched::tell;

/// The children of an image, with the revision that each hangs on.
pub(crate) fn of<O: Objects>(
    catalog: &CephCatalog<O>,
    described: &Described,
) -> Vec<(RevisionId, ChildRef)> {
    let cluster = catalog.home().cluster;
    let here = described.header.children.iter().flat_map(|(snapshot, children)| {
        children.iter().map(|child| {
            let pool = keys::pool_id(cluster, child.pool, &child.namespace.0);
            (*snapshot, ChildRef { pool, image: ImageId::new(child.image.to_string()) })
        })
    });
    let all = here.chain(described.children_elsewhere.iter().cloned());
    let id = described.id.as_str();
    all.map(|(snapshot, child)| (keys::snapshot_revision(id, snapshot), child)).collect()
}

/// Enters a child in the list of a snapshot, where these objects are.
pub(crate) async fn attach<O: Objects>(
    catalog: &CephCatalog<O>,
    objects: &O,
    image: &ImageId,
    revision: &RevisionId,
    child: &ChildRef,
) -> Result<()> {
    let plan = |now: &Described, op: WriteOp| {
        let Some((snapshot, _)) = now.named_snapshot(revision) else {
            let what = format!("image {image} has no snapshot of revision {revision}");
            return Err(Error::new(ErrorKind::NotFound, what));
        };
        if of(catalog, now).contains(&(revision.clone(), child.clone())) {
            return Ok(None);
        }
        Ok(Some(match record(catalog, child) {
            Some(record) => {
                let attach = layering::child_attach(snapshot, record);
                op.call(CLASS, attach.method, attach.input)
            }
            None => op.set_omap(keys::child(snapshot, child), ""),
        }))
    };
    let doing = || format!("enter image {} in the list of image {image}", child.image);
    change_header(objects, image, plan, doing).await.map(drop)
}

/// Takes a child from the list of a snapshot, where these objects are, and with the last one a snapshot that is automatic.
pub(crate) async fn detach<O: Objects>(
    catalog: &CephCatalog<O>,
    objects: &O,
    image: &ImageId,
    revision: &RevisionId,
    child: &ChildRef,
) -> Result<()> {
    let plan = |now: &Described, op: WriteOp| {
        let snapshot = now.snapshot_of(revision).flatten();
        let is_listed = of(catalog, now).contains(&(revision.clone(), child.clone()));
        let Some(snapshot) = snapshot.filter(|_| is_listed) else { return Ok(None) };
        Ok(Some(match record(catalog, child) {
            Some(record) => {
                let detach = layering::child_detach(snapshot, record);
                op.call(CLASS, detach.method, detach.input)
            }
            None => {
                let key = keys::child(snapshot, child).into_bytes();
                op.then(WriteStep::RemoveOmap([key].into()))
            }
        }))
    };
    let doing = || format!("take image {} from the list of image {image}", child.image);
    let before = change_header(objects, image, plan, doing).await?;
    match before.and_then(|before| before.snapshot_of(revision).flatten()) {
        Some(snapshot) => drop_if_unused(catalog, objects, image, snapshot).await,
        None => Ok(()),
    }
}

/// A child as RBD's lists have it, if it is one of this cluster.
fn record<O: Objects>(catalog: &CephCatalog<O>, child: &ChildRef) -> Option<Child> {
    let (pool, namespace) = catalog.place_of(child.pool)?;
    Some(Child { pool, image: text(child.image.as_str()), namespace: text(namespace) })
}

/// Removes a snapshot that is automatic and that nothing hangs on any more.
async fn drop_if_unused<O: Objects>(
    catalog: &CephCatalog<O>,
    objects: &O,
    image: &ImageId,
    snapshot: u64,
) -> Result<()> {
    loop {
        let now = described(objects, image).await?;
        let is_there = now.header.snapshots.contains_key(&snapshot);
        if !is_there || !now.auto.contains(&snapshot) || now.has_children(snapshot) {
            return Ok(());
        }
        match remove_snapshot(catalog, objects, &now, snapshot).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            other => return other,
        }
    }
}

/// Removes a snapshot that nothing hangs on, if the header is as described; else `Conflict`.
pub(crate) async fn remove_snapshot<O: Objects>(
    catalog: &CephCatalog<O>,
    objects: &O,
    now: &Described,
    snapshot: u64,
) -> Result<()> {
    let id = &now.id;
    let remove = snapshot_method::snapshot_remove(snapshot);
    let mut gone = BTreeSet::from([keys::auto(snapshot).into_bytes()]);
    if now.is_last_to_see_elsewhere(snapshot) {
        gone.insert(keys::PARENT.into());
    }
    let op = WriteOp::new()
        .assert_version(now.version)
        .call(CLASS, remove.method, remove.input)
        .then(WriteStep::RemoveOmap(gone))
        .set_omap(keys::dropped(snapshot), "");
    match write_header(objects, id, op).await {
        Ok(()) => {}
        Err(Failure::BUSY) => {
            let what = format!("a snapshot of image {id} is protected, or has children");
            return Err(Error::new(ErrorKind::HasChildren, what));
        }
        Err(failure) => return Err(failed(failure, format!("remove a snapshot of image {id}"))),
    }
    let after = described(objects, id).await?;
    if now.sparse.is_none() {
        object_map::snapshot_removed(catalog, now, snapshot).await.map_err(Error::maybe_done)?;
    }
    // With the last snapshot that saw the parent, the image is cut off from it.
    if let (Some(link), None) = (now.parent_link(catalog.home()), after.parent_link(catalog.home()))
    {
        let child = ChildRef { pool: catalog.pool_id(), image: id.clone() };
        catalog.leave(&link, &child).await?;
    }
    // Whoever has the snapshot open hears that it is gone, before anything of it is.
    let _ = tell(objects, id, &Message::HeaderChanged).await.map_err(Error::maybe_done)?;
    forget_dropped(catalog, objects, &after, snapshot).await.map_err(Error::maybe_done)
}

/// Lets the cluster free what a removed snapshot alone kept.
pub(crate) async fn forget_dropped<O: Objects>(
    catalog: &CephCatalog<O>,
    objects: &O,
    now: &Described,
    snapshot: u64,
) -> Result<()> {
    let id = &now.id;
    let doing = || format!("free what a removed snapshot of image {id} kept");
    let data = catalog.data_objects(now)?;
    let freed = data.remove_snapshot(snapshot).await;
    freed.map_err(|failure| failed(failure, doing()))?;
    for object in
        [keys::bitmap(id.as_str(), Some(snapshot)), names::object_map(id.as_str(), Some(snapshot))]
    {
        remove_if_there(objects, &object, doing).await?;
    }
    let key = BTreeSet::from([keys::dropped(snapshot).into_bytes()]);
    let op = WriteOp::new().assert_exists().then(WriteStep::RemoveOmap(key));
    write_header(objects, id, op).await.map_err(|failure| failed(failure, doing()))
}
