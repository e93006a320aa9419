//! Which images hang on the snapshots of an image: those of this cluster in RBD's own lists, others beside them. Clones of RBD's
//! first format are in [lists of their own](crate::clone_v1).

use std::collections::BTreeSet;

use vellum_engine::{ChildRef, Error, ErrorKind, ImageId, Result, RevisionId};
use vellum_rados::{Failure, Objects, WriteOp, WriteStep};
use vellum_rbd::method::{CLASS, layering, snapshot as snapshot_method};
use vellum_rbd::names;
use vellum_rbd::notify::Message;
use vellum_rbd::records::{Child, ParentSpec};

use crate::catalog::CephCatalog;
use crate::clone_v1;
use crate::create::{CloneFormat, remove_if_there};
use crate::described::{Described, text};
use crate::error::failed;
use crate::header::{change_header, described, write_header};
use crate::keys;
use crate::object_map;
use crate::protect::check_unprotected;
use crate::watched::tell;

/// `EACCES`.
const NO_ACCESS: Failure = Failure(13);

/// The children of an image, with the revision that each hangs on: those that its header names, and clones of the first format.
pub(crate) async fn of<O: Objects>(
    catalog: &CephCatalog<O>,
    described: &Described,
) -> Result<Vec<(RevisionId, ChildRef)>> {
    let mut all = named(catalog, described);
    all.extend(clone_v1::of(catalog, described).await?);
    Ok(all)
}

/// The children that the header of an image names.
pub(crate) fn named<O: Objects>(
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

/// Enters a child in the list of a snapshot, where these objects are: of the format that is wanted or, if none is, in the header
/// unless that cannot be written. Returns which it was.
pub(crate) async fn enter<O: Objects>(
    catalog: &CephCatalog<O>,
    parents: &O,
    on: &ParentSpec,
    child: &ChildRef,
    wanted: Option<CloneFormat>,
) -> Result<CloneFormat> {
    let refused = match wanted {
        Some(CloneFormat::V1) => None,
        _ => match name(catalog, parents, on, child).await {
            Ok(()) => return Ok(CloneFormat::V2),
            Err(error) if wanted.is_none() && is_refused(&error) => Some(error),
            Err(error) => return Err(error),
        },
    };
    clone_v1::enter(catalog, parents, on, child, refused).await?;
    Ok(CloneFormat::V1)
}

/// Whether this user may not do what failed, or nobody can.
fn is_refused(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref());
    source.is_some_and(|failure| {
        [Failure::NOT_PERMITTED, Failure::READ_ONLY, NO_ACCESS].contains(failure)
    })
}

/// Has the header of an image name a child.
async fn name<O: Objects>(
    catalog: &CephCatalog<O>,
    parents: &O,
    on: &ParentSpec,
    child: &ChildRef,
) -> Result<()> {
    let image = ImageId::new(on.image.to_string());
    let revision = keys::snapshot_revision(image.as_str(), on.snapshot);
    let plan = |now: &Described, op: WriteOp| {
        let Some((snapshot, _)) = now.named_snapshot(&revision) else {
            return Err(no_snapshot(&image, &revision));
        };
        if named(catalog, now).contains(&(revision.clone(), child.clone())) {
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
    change_header(parents, &image, plan, doing).await.map(drop)
}

/// Enters a child, which may be there already, in the list of a revision of an image of this pool.
pub(crate) async fn attach<O: Objects>(
    catalog: &CephCatalog<O>,
    image: &ImageId,
    revision: &RevisionId,
    child: &ChildRef,
) -> Result<()> {
    let snapshot = keys::snapshot_of(image.as_str(), revision).flatten();
    let snapshot = snapshot.ok_or_else(|| no_snapshot(image, revision))?;
    let home = catalog.home();
    let (namespace, id) = (text(&home.namespace), text(image.as_str()));
    let on = ParentSpec { pool: home.pool, namespace, image: id, snapshot };
    let wanted = format_of(catalog, &on, child).await?;
    enter(catalog, catalog.objects(), &on, child, wanted).await.map(drop)
}

/// The format that a child of this snapshot is of; `None` if it is not there yet, or is elsewhere.
async fn format_of<O: Objects>(
    catalog: &CephCatalog<O>,
    on: &ParentSpec,
    child: &ChildRef,
) -> Result<Option<CloneFormat>> {
    let Some((pool, namespace)) = catalog.place_of(child.pool) else { return Ok(None) };
    let reach = catalog.objects().at(pool, &namespace);
    let children = reach.map_err(|failure| failed(failure, "reach the pool of a child"))?;
    let found = Described::read(&children, &child.image).await?;
    Ok(found.and_then(|child| match clone_v1::parent(&child) {
        Some(parent) if parent == on => Some(CloneFormat::V1),
        _ => None,
    }))
}

fn no_snapshot(image: &ImageId, revision: &RevisionId) -> Error {
    let what = format!("image {image} has no snapshot of revision {revision}");
    Error::new(ErrorKind::NotFound, what)
}

/// Takes a child from the list of a snapshot, where these objects are, or from the one of its pool; with the last one a snapshot goes
/// that is automatic.
pub(crate) async fn detach<O: Objects>(
    catalog: &CephCatalog<O>,
    objects: &O,
    image: &ImageId,
    revision: &RevisionId,
    child: &ChildRef,
) -> Result<()> {
    let plan = |now: &Described, op: WriteOp| {
        let snapshot = now.snapshot_of(revision).flatten();
        let is_listed = named(catalog, now).contains(&(revision.clone(), child.clone()));
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
    let Some(snapshot) = keys::snapshot_of(image.as_str(), revision).flatten() else {
        return Ok(());
    };
    match change_header(objects, image, plan, doing).await {
        Ok(Some(_)) => return drop_if_unused(catalog, objects, image, snapshot).await,
        Ok(None) => {}
        // Its list may be gone with it, and that of the child's pool is not.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let namespace = catalog.place_of(child.pool).map_or_else(String::new, |(_, name)| name);
    let (namespace, image) = (text(namespace), text(image.as_str()));
    let on = ParentSpec { pool: objects.pool(), namespace, image, snapshot };
    clone_v1::leave(catalog, &on, child).await
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
        let may_go = is_there && now.auto.contains(&snapshot) && !now.has_children(snapshot);
        // What is protected stays until somebody ends that.
        if !may_go || check_unprotected(&now, image.as_str(), snapshot).is_err() {
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
    check_unprotected(now, id.as_str(), snapshot)?;
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
            let what =
                format!("a snapshot of image {id} has children; flatten or remove them first");
            return Err(Error::new(ErrorKind::HasChildren, what));
        }
        Err(failure) => return Err(failed(failure, format!("remove a snapshot of image {id}"))),
    }
    let after = described(objects, id).await?;
    if now.sparse.is_none() {
        object_map::snapshot_removed(catalog, now, snapshot).await.map_err(Error::maybe_done)?;
    }
    // With the last snapshot that saw the parent, the image is cut off from it.
    if after.parent_link(catalog.home()).is_none() {
        catalog.leave(now).await?;
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
