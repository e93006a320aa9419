//! Clones of RBD's first format. Their parent's header does not name them: each is in a list in its own pool, and their parent's snapshot
//! is protected for as long as it has any.
//!
//! Whoever makes one enters it in the list first, and looks then whether the snapshot is still protected; whoever ends the protection
//! says so in the header first, and looks for children then. So at least one of both sees the other.
//!
//! A list names no namespace, so a child is in the same as its parent.

use std::collections::BTreeSet;

use futures::stream::{self, StreamExt, TryStreamExt};
use vellum_engine::{ChildRef, Error, ErrorKind, ImageId, Result, RevisionId};
use vellum_rados::{Failure, Objects};
use vellum_rbd::features::operation;
use vellum_rbd::method::layering;
use vellum_rbd::names::CHILDREN;
use vellum_rbd::records::{ParentSpec, Protection};

use crate::catalog::{CephCatalog, call};
use crate::described::{Described, text};
use crate::error::failed;
use crate::header::described;
use crate::keys;

/// Pools that are looked at at once.
const AT_ONCE: usize = 16;

/// What a child of this format hangs on; `None` for an image without a parent in this cluster, and for a child that its parent's header
/// names.
pub(crate) fn parent(child: &Described) -> Option<&ParentSpec> {
    let is_named = child.header.operations & operation::CLONE_CHILD != 0;
    child.header.parent.as_ref().filter(|_| !is_named).map(|parent| &parent.of)
}

/// All children of this format that hang on an image of this pool, with the revision that each hangs on. Only what is protected, or was
/// until a moment ago, can have any: for each such snapshot the list of every pool is looked at.
pub(crate) async fn of<O: Objects>(
    catalog: &CephCatalog<O>,
    now: &Described,
) -> Result<Vec<(RevisionId, ChildRef)>> {
    let snapshots = now.header.snapshots.iter();
    let protected = snapshots.filter(|(_, it)| it.protection != Protection::Unprotected);
    let mut all = Vec::new();
    for (snapshot, _) in protected {
        let revision = keys::snapshot_revision(now.id.as_str(), *snapshot);
        let children = of_snapshot(catalog, &now.id, *snapshot).await?;
        all.extend(children.into_iter().map(|child| (revision.clone(), child)));
    }
    Ok(all)
}

/// Those that hang on a snapshot of an image of this pool, by a look at every pool of the cluster.
pub(crate) async fn of_snapshot<O: Objects>(
    catalog: &CephCatalog<O>,
    image: &ImageId,
    snapshot: u64,
) -> Result<Vec<ChildRef>> {
    let pools = catalog.objects().pools().await;
    let pools = pools.map_err(|failure| failed(failure, "list the pools of the cluster"))?;
    let looks =
        pools.into_iter().map(|(number, name)| in_pool(catalog, number, name, image, snapshot));
    let found: Vec<_> = stream::iter(looks).buffer_unordered(AT_ONCE).try_collect().await?;
    let mut found: Vec<_> = found.into_iter().flatten().collect();
    found.sort_by(|one, other| (one.pool, &one.image).cmp(&(other.pool, &other.image)));
    Ok(found)
}

async fn in_pool<O: Objects>(
    catalog: &CephCatalog<O>,
    number: i64,
    name: String,
    image: &ImageId,
    snapshot: u64,
) -> Result<Vec<ChildRef>> {
    let home = catalog.home();
    let doing = || {
        format!(
            "look for clones in pool {name}, which this user must be able to read, as with `profile rbd`, all pools included"
        )
    };
    let reach = catalog.objects().at(number, &home.namespace);
    let objects = reach.map_err(|failure| failed(failure, doing()))?;
    let ask = layering::get_children(home.pool, text(image.as_str()), snapshot);
    let found: Option<BTreeSet<_>> = CephCatalog::ask_at(&objects, CHILDREN, ask, doing).await?;
    let pool = keys::pool_id(home.cluster, number, home.namespace.as_bytes());
    let children = found.unwrap_or_default().into_iter();
    Ok(children.map(|id| ChildRef { pool, image: ImageId::new(id.to_string()) }).collect())
}

/// Enters a child, which may not be there yet, in the list of its pool.
///
/// `refused` is why the parent's header cannot name it, if that was tried.
pub(crate) async fn enter<O: Objects>(
    catalog: &CephCatalog<O>,
    parents: &O,
    on: &ParentSpec,
    child: &ChildRef,
    refused: Option<Error>,
) -> Result<()> {
    let Some(children) = pool_of(catalog, on, child)? else {
        let what = format!(
            "image {} is in another cluster, or in another namespace, than image {}; a clone of the first format is in the same",
            child.image, on.image
        );
        return Err(refused.unwrap_or_else(|| Error::new(ErrorKind::Invalid, what)));
    };
    check_protected(parents, on, refused.as_ref()).await?;
    let add =
        layering::add_child(on.pool, on.image.clone(), on.snapshot, text(child.image.as_str()));
    match call(&children, CHILDREN, add).await {
        Ok(()) | Err(Failure::EXISTS) => {}
        Err(failure) => {
            let what = format!("enter image {} in the list of clones of its pool", child.image);
            return Err(failed(failure, what));
        }
    }
    // Somebody may have looked for children before this one was entered.
    let checked = check_protected(parents, on, refused.as_ref()).await;
    if checked.is_err() {
        remove(&children, on, &child.image).await?;
    }
    checked
}

/// The objects of a child's pool, if it can be of this format.
fn pool_of<O: Objects>(
    catalog: &CephCatalog<O>,
    on: &ParentSpec,
    child: &ChildRef,
) -> Result<Option<O>> {
    let place = catalog.place_of(child.pool);
    let Some((pool, namespace)) = place.filter(|(_, namespace)| text(namespace) == on.namespace)
    else {
        return Ok(None);
    };
    let reach = catalog.objects().at(pool, &namespace);
    reach.map(Some).map_err(|failure| failed(failure, "reach the pool of a child"))
}

async fn check_protected<O: Objects>(
    parents: &O,
    on: &ParentSpec,
    refused: Option<&Error>,
) -> Result<()> {
    let image = ImageId::new(on.image.to_string());
    let now = described(parents, &image).await?;
    let Some(snapshot) = now.header.snapshots.get(&on.snapshot) else {
        let what = format!("image {image} has no such snapshot any more");
        return Err(Error::new(ErrorKind::NotFound, what));
    };
    if snapshot.protection == Protection::Protected {
        return Ok(());
    }
    Err(match refused {
        None => {
            let what = format!(
                "snapshot {} of image {image} is not protected, as it must be for a clone of the first format; protect it first",
                snapshot.name
            );
            Error::new(ErrorKind::Invalid, what)
        }
        Some(refused) => {
            let what = format!(
                "the header of image {image} cannot be written, to name the clone there; let this user write to its pool, or have somebody who may protect its snapshot {}, so that a clone of the first format can be made",
                snapshot.name
            );
            Error::new(ErrorKind::ReadOnly, what).with_source(refused.clone())
        }
    })
}

/// Takes a child from the list of its pool, where these objects are; that it is not there is fine.
pub(crate) async fn remove<O: Objects>(
    children: &O,
    on: &ParentSpec,
    child: &ImageId,
) -> Result<()> {
    let gone = layering::remove_child(on.pool, on.image.clone(), on.snapshot, text(child.as_str()));
    match call(children, CHILDREN, gone).await {
        Ok(()) | Err(Failure::NOT_FOUND) => Ok(()),
        Err(failure) => {
            let what = format!("take image {child} from the list of clones of its pool");
            Err(failed(failure, what))
        }
    }
}

/// The same, wherever in this cluster the child is.
pub(crate) async fn leave<O: Objects>(
    catalog: &CephCatalog<O>,
    on: &ParentSpec,
    child: &ChildRef,
) -> Result<()> {
    match pool_of(catalog, on, child)? {
        Some(children) => remove(&children, on, &child.image).await,
        None => Ok(()),
    }
}
