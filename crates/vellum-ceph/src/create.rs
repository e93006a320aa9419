//! How an image comes to be: noted in the directory, then entered in the list of its parent, and there with its header, which is
//! written in one step. What was begun before that is taken back.

use std::time::SystemTime;

use vellum_core::Geometry;
use vellum_engine::{
    ChildRef, Error, ErrorKind, Happened, ImageId, ImageRecord, Layering, NewImage, NewParent,
    Result,
};
use vellum_rados::{Failure, Objects, SnapContext, WriteOp, WriteStep};
use vellum_rbd::features::operation;
use vellum_rbd::method::{CLASS, data, directory, id as id_method};
use vellum_rbd::names::{self, DIRECTORY, key};
use vellum_rbd::records::{Parent, ParentSpec};
use vellum_rbd::wire::Time;
use vellum_rbd::{Encode, Features, Header};

use crate::catalog::CephCatalog;
use crate::described::text;
use crate::error::failed;
use crate::header::described;
use crate::keys::{self, Elsewhere, HIDDEN_PREFIX, SPARSE, Sparse};
use crate::pending::{Begun, Pending, take_out};
use crate::states::UNITS_MAX;
use crate::{bitmap, children};

/// `EBADF`: the id of a new image is taken.
const ID_TAKEN: Failure = Failure(9);
/// Those of a sparse image. Its bitmap is not RBD's, and a flatten leaves its snapshots alone.
const SPARSE_FEATURES: Features = Features(Features::LAYERING.0 | Features::EXCLUSIVE_LOCK.0);

/// How a clone is known to be one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloneFormat {
    /// A list in the clone's pool names it, and the parent's snapshot is protected.
    V1,
    /// The header of the parent names it.
    V2,
}

/// Makes an image, and a clone in this format; in the one that can be made, if none is wanted.
pub(crate) async fn create<O: Objects>(
    catalog: &CephCatalog<O>,
    new: NewImage,
    format: Option<CloneFormat>,
) -> Result<ImageRecord> {
    check(catalog, &new)?;
    let parent = match &new.parent {
        Some(parent) => find_parent(catalog, &new, parent).await?,
        None => None,
    };
    if format.is_some() && parent.is_none() {
        let what =
            format!("{} has no parent in this cluster, so it is a clone of no format", new.name);
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    if new.layering == Layering::CopyUp && new.parent.is_some() && parent.is_none() {
        let what = "Ceph's own tools would read a plain RBD image without its parent, which is not in this cluster; make it \
                    sparse, or a copy";
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    let id = new.id.clone().unwrap_or_else(|| vellum_engine::Catalog::unused_id(catalog));
    let _work = catalog.at_work().begin(&id).await?;
    let note = enter(catalog, &new, &id, parent.as_ref()).await?;
    match build(catalog, &new, &id, parent.as_ref(), format).await {
        Ok(()) => finish(catalog, &id, note).await?,
        Err(error) => {
            // Whether the header is there is not known: then it is for whoever looks at what is pending.
            if error.happened() == Happened::NotDone {
                undo(catalog, &id, new.name.as_str(), parent.as_ref()).await;
            }
            return Err(error);
        }
    }
    let described = described(catalog.objects(), &id).await?;
    described.record(catalog.home(), new.name.as_str())
}

fn check<O: Objects>(catalog: &CephCatalog<O>, new: &NewImage) -> Result<()> {
    new.check_limits(vellum_engine::Catalog::capabilities(catalog))?;
    let invalid = |what: String| Err(Error::new(ErrorKind::Invalid, what));
    let units = new.geometry.object_size() / u64::from(new.block_size);
    if new.layering == Layering::Sparse && units > UNITS_MAX {
        return invalid(format!(
            "an object of {} bytes has {units} blocks of {}, and at most {UNITS_MAX} are possible; choose larger blocks or smaller objects",
            new.geometry.object_size(),
            new.block_size
        ));
    }
    if let Some(id) = new.id.as_ref().filter(|id| !names::is_id(id.as_str())) {
        return invalid(format!("the cluster takes letters and digits as an id, and not {id}"));
    }
    match &new.parent {
        Some(parent) if parent.overlap > new.size => invalid(format!(
            "{} cannot show {} bytes of its parent, since it has {}",
            new.name, parent.overlap, new.size
        )),
        _ => Ok(()),
    }
}

/// The snapshot that an image is going to hang on, if it is one of this cluster.
async fn find_parent<O: Objects>(
    catalog: &CephCatalog<O>,
    new: &NewImage,
    parent: &NewParent,
) -> Result<Option<ParentSpec>> {
    let link = &parent.link;
    let Some((pool, namespace)) = catalog.place_of(link.pool) else { return Ok(None) };
    let reach = catalog.objects().at(pool, &namespace);
    let objects = reach.map_err(|failure| failed(failure, "reach the pool of the parent"))?;
    let of = described(&objects, &link.image).await?;
    let Some((snapshot, found)) = of.named_snapshot(&link.revision) else {
        let what = format!("image {} has no snapshot of revision {}", link.image, link.revision);
        return Err(Error::new(ErrorKind::NotFound, what));
    };
    if parent.overlap > found.size {
        let what = format!(
            "{} cannot show {} bytes of its parent, which has {}",
            new.name, parent.overlap, found.size
        );
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    let (namespace, image) = (text(namespace), text(link.image.as_str()));
    Ok(Some(ParentSpec { pool, namespace, image, snapshot }))
}

/// Takes the name and the id.
async fn enter<O: Objects>(
    catalog: &CephCatalog<O>,
    new: &NewImage,
    id: &ImageId,
    parent: Option<&ParentSpec>,
) -> Result<Pending> {
    let name = new.name.as_str();
    let client = catalog.objects().client();
    let note =
        Pending { parent: parent.cloned(), ..Pending::new(Begun::Creation, client, text(name)) };
    let add = directory::dir_add_image(text(name), text(id.as_str()));
    let op = WriteOp::new()
        .call(CLASS, add.method, add.input)
        .set_omap(keys::pending(id.as_str()), note.to_bytes());
    match catalog.objects().write(DIRECTORY, &SnapContext::default(), op).await {
        Ok(()) => Ok(note),
        Err(Failure::EXISTS) => {
            let what = format!("an image {name} is there already; choose another name");
            Err(Error::new(ErrorKind::Exists, what))
        }
        Err(ID_TAKEN) => {
            Err(Error::new(ErrorKind::Exists, format!("an image with id {id} is there already")))
        }
        Err(failure) => Err(failed(failure, format!("create image {name}"))),
    }
}

async fn build<O: Objects>(
    catalog: &CephCatalog<O>,
    new: &NewImage,
    id: &ImageId,
    parent: Option<&ParentSpec>,
    mut format: Option<CloneFormat>,
) -> Result<()> {
    let objects = catalog.objects();
    let doing = || format!("create image {}", new.name);
    let write = async |object: String, op: WriteOp| -> Result<()> {
        let done = objects.write(&object, &SnapContext::default(), op).await;
        done.map_err(|failure| failed(failure, doing()))
    };
    let set = id_method::set_id(text(id.as_str()));
    let named = WriteOp::new().create(true).call(CLASS, set.method, set.input);
    write(names::id_object(new.name.as_str()), named).await?;
    if let Some(spec) = parent {
        let child = ChildRef { pool: catalog.pool_id(), image: id.clone() };
        let reach = objects.at(spec.pool, &spec.namespace.to_string());
        let of = reach.map_err(|failure| failed(failure, doing()))?;
        format = Some(children::enter(catalog, &of, spec, &child, format).await?);
    }
    match new.layering {
        Layering::Sparse => write(keys::bitmap(id.as_str(), None), bitmap::empty()).await?,
        Layering::CopyUp => {
            let count = new.geometry.object_count(new.size);
            if has_object_map(count) {
                let resize = data::object_map_resize(count, 0);
                let op = WriteOp::new().call(CLASS, resize.method, resize.input);
                write(names::object_map(id.as_str(), None), op).await?;
            }
        }
    }
    let mut keys = header(new, id, parent, format).to_keys();
    if new.layering == Layering::Sparse {
        let prefix = keys.insert(key::OBJECT_PREFIX.into(), HIDDEN_PREFIX.to_vec());
        debug_assert!(prefix.is_some());
        let prefix = text(names::data_prefix(id.as_str(), None));
        let sparse = Sparse { block_size: new.block_size, prefix };
        keys.insert(SPARSE.into(), sparse.to_bytes());
    }
    if let (None, Some(parent)) = (parent, &new.parent) {
        keys.insert(keys::PARENT.into(), elsewhere(parent).to_bytes());
    }
    write(names::header(id.as_str()), WriteOp::new().create(true).then(WriteStep::SetOmap(keys)))
        .await
}

fn has_object_map(objects: u64) -> bool {
    objects <= vellum_rbd::object_map::OBJECTS_MAX
}

fn elsewhere(parent: &NewParent) -> Elsewhere {
    Elsewhere {
        pool: parent.link.pool,
        image: text(parent.link.image.as_str()),
        revision: text(parent.link.revision.as_str()),
        overlap: parent.overlap,
        seen_until: None,
        clips: Vec::new(),
    }
}

/// What the header of a new image says.
fn header(
    new: &NewImage,
    id: &ImageId,
    parent: Option<&ParentSpec>,
    format: Option<CloneFormat>,
) -> Header {
    let mut features = match new.layering {
        Layering::Sparse => SPARSE_FEATURES,
        Layering::CopyUp if has_object_map(new.geometry.object_count(new.size)) => Features::USUAL,
        Layering::CopyUp => Features::USUAL.without(Features::OBJECT_MAP | Features::FAST_DIFF),
    };
    let geometry = new.geometry;
    let striping = (geometry != unstriped(geometry))
        .then(|| (geometry.stripe_unit(), geometry.stripe_count()));
    if striping.is_some() {
        features = features | Features::STRIPING;
    }
    let overlap = new.parent.as_ref().map(|parent| parent.overlap).filter(|overlap| *overlap > 0);
    let parent = parent.filter(|_| overlap.is_some());
    // By this, and the bit that goes with it, a clone of the second format is told from one of the first.
    let is_named = parent.is_some() && format == Some(CloneFormat::V2);
    if is_named {
        features = features | Features::OPERATIONS;
    }
    Header {
        size: new.size,
        order: geometry.object_size().trailing_zeros() as u8,
        features,
        prefix: text(names::data_prefix(id.as_str(), None)),
        snap_seq: 0,
        data_pool: None,
        striping,
        flags: 0,
        operations: if is_named { operation::CLONE_CHILD } else { 0 },
        parent: parent.map(|of| Parent { of: of.clone(), head_overlap: overlap }),
        snapshots: Default::default(),
        children: Default::default(),
        metadata: new.meta.iter().map(|(key, value)| (text(key), text(value))).collect(),
        migration: None,
        created: now(),
        unknown: Vec::new(),
    }
}

fn unstriped(geometry: Geometry) -> Geometry {
    Geometry::unstriped(geometry.object_size()).unwrap_or(geometry)
}

/// The time, as Ceph has it.
pub(crate) fn now() -> Time {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Time { seconds: since.as_secs() as u32, nanoseconds: since.subsec_nanos() }
}

async fn finish<O: Objects>(catalog: &CephCatalog<O>, id: &ImageId, note: Pending) -> Result<()> {
    let objects = catalog.objects();
    match objects.write(DIRECTORY, &SnapContext::default(), take_out(id, &note)).await {
        Ok(()) => Ok(()),
        // Somebody took this client for dead, and its image's name and entry back: so is the rest.
        Err(Failure::MISMATCH) => {
            let doing = || format!("create image {}", note.name);
            remove_if_there(objects, &names::header(id.as_str()), doing).await?;
            let what = format!("{}: another client took it back meanwhile; try again", doing());
            Err(Error::new(ErrorKind::Conflict, what))
        }
        // The image is there, and what is left of the note goes with the next who looks.
        Err(failure) => {
            tracing::warn!(image = %id, "the note of its creation is still there: {failure}");
            Ok(())
        }
    }
}

/// Takes back what was begun for an image that has no header. What cannot be taken back stays noted.
pub(crate) async fn undo<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    name: &str,
    parent: Option<&ParentSpec>,
) {
    if let Err(error) = try_undo(catalog, id, name, parent).await {
        tracing::warn!(image = %id, "what was begun is still there: {}", error.chain());
    }
}

pub(crate) async fn try_undo<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    name: &str,
    parent: Option<&ParentSpec>,
) -> Result<()> {
    let objects = catalog.objects();
    let doing = || format!("take back what was begun for image {name}");
    for object in [keys::bitmap(id.as_str(), None), names::object_map(id.as_str(), None)] {
        remove_if_there(objects, &object, doing).await?;
    }
    if let Some(spec) = parent {
        let child = ChildRef { pool: catalog.pool_id(), image: id.clone() };
        let reach = objects.at(spec.pool, &spec.namespace.to_string());
        let of = reach.map_err(|failure| failed(failure, doing()))?;
        let image = ImageId::new(spec.image.to_string());
        let revision = keys::snapshot_revision(image.as_str(), spec.snapshot);
        children::detach(catalog, &of, &image, &revision, &child).await?;
    }
    forget_name(catalog, id, name).await
}

/// Takes an image out of the directory, with the object of its name and the note of what is pending.
pub(crate) async fn forget_name<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    name: &str,
) -> Result<()> {
    let objects = catalog.objects();
    let doing = || format!("forget the name {name}");
    let object = names::id_object(name);
    let found = catalog.ask(&object, id_method::get_id(), doing).await?;
    if found.is_none_or(|found| found == text(id.as_str())) {
        remove_if_there(objects, &object, doing).await?;
    }
    let key = keys::pending(id.as_str()).into_bytes();
    let done_with = || WriteOp::new().then(WriteStep::RemoveOmap([key.clone()].into()));
    let remove = directory::dir_remove_image(text(name), text(id.as_str()));
    let op = WriteOp::new().call(CLASS, remove.method, remove.input);
    let op = WriteOp { steps: [op.steps, done_with().steps].concat() };
    let done = match objects.write(DIRECTORY, &SnapContext::default(), op).await {
        // It is not in the directory any more, and the note is all that is left.
        Err(Failure::NOT_FOUND | Failure::STALE) => {
            objects.write(DIRECTORY, &SnapContext::default(), done_with()).await
        }
        other => other,
    };
    done.map_err(|failure| failed(failure, doing()))
}

/// Removes an object; that there is none is fine.
pub(crate) async fn remove_if_there<O: Objects>(
    objects: &O,
    object: &str,
    doing: impl Fn() -> String,
) -> Result<()> {
    match objects.write(object, &SnapContext::default(), WriteOp::new().remove()).await {
        Ok(()) | Err(Failure::NOT_FOUND) => Ok(()),
        Err(failure) => Err(failed(failure, doing())),
    }
}
