//! The records of a pool: listing them, changing what needs no ownership, and finishing what somebody has begun.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use vellum_core::{ImageName, ObjectNo, SnapshotName};
use vellum_engine::{
    Change, Error, ErrorKind, ImageId, ImageRecord, Pending as PendingRecord, Result, SnapshotId,
    Version,
};
use vellum_rados::{Failure, Objects, SnapContext, WriteOp, WriteStep};
use vellum_rbd::method::{CLASS, directory, id as id_method, metadata, snapshot};
use vellum_rbd::names::{self, DIRECTORY};

use crate::catalog::CephCatalog;
use crate::create::{self, forget_name, remove_if_there};
use crate::data::Data;
use crate::described::{Described, snapshot_number, text};
use crate::error::failed;
use crate::header::{described, write_header};
use crate::pending::{self, Begun, Pending};
use crate::protect::check_unprotected;
use crate::{children, keys, remove, trash};

/// Names in one page of a list.
const PAGE: u64 = 256;
/// Objects that are looked at at once.
const AT_ONCE: usize = 64;

/// `Conflict` unless a record is at this version.
pub(crate) fn check_version(record: &ImageRecord, at: Version) -> Result<()> {
    if record.version == at {
        return Ok(());
    }
    let what = format!("image {} was changed meanwhile; look at it again", record.name);
    Err(Error::new(ErrorKind::Conflict, what))
}

/// The names and ids behind one name, in the order of the names. Names that nobody could type here are left out.
pub(crate) async fn page<O: Objects>(
    catalog: &CephCatalog<O>,
    after: &str,
) -> Result<Vec<(String, ImageId)>> {
    let mut after = text(after);
    loop {
        let ask = directory::dir_list(after, PAGE);
        let page = catalog.ask(DIRECTORY, ask, || "list the images of this pool".to_owned());
        let page: BTreeMap<_, _> = page.await?.unwrap_or_default();
        let Some((last, _)) = page.last_key_value() else { return Ok(Vec::new()) };
        after = last.clone();
        let known: Vec<_> = page
            .into_iter()
            .filter(|(name, _)| name.as_str().is_some_and(|name| name.parse::<ImageName>().is_ok()))
            .map(|(name, id)| (name.to_string(), ImageId::new(id.to_string())))
            .collect();
        if !known.is_empty() {
            return Ok(known);
        }
    }
}

/// Changes what needs no ownership.
pub(crate) async fn change<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    at: Version,
    change: Change,
) -> Result<ImageRecord> {
    loop {
        let now = described(catalog.objects(), id).await?;
        let name = catalog.name_of(id).await?;
        check_version(&now.record(catalog.home(), &name)?, at)?;
        let changed = match &change {
            Change::Rename(to) => rename(catalog, &now, &name, to).await,
            Change::RemoveSnapshot(snapshot) => {
                let snapshot = find_snapshot(&now, snapshot)?;
                if now.has_children(snapshot) {
                    let what = format!(
                        "the snapshot of image {name} has children; flatten or remove them first"
                    );
                    return Err(Error::new(ErrorKind::HasChildren, what));
                }
                check_unprotected(&now, &name, snapshot)?;
                children::remove_snapshot(catalog, catalog.objects(), &now, snapshot).await
            }
            Change::RenameSnapshot(snapshot, to) => {
                rename_snapshot(catalog, &now, snapshot, to).await
            }
            Change::Meta(key, value) => set_meta(catalog, &now, key, value.as_deref()).await,
        };
        match changed {
            Ok(()) => return vellum_engine::Catalog::get(catalog, id).await,
            // Only the header was changed, and maybe nothing that its record shows: looked at again.
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Err(error),
        }
    }
}

fn find_snapshot(now: &Described, id: &SnapshotId) -> Result<u64> {
    snapshot_number(id).filter(|snapshot| now.header.snapshots.contains_key(snapshot)).ok_or_else(
        || {
            let what = format!("image {} has no snapshot with id {id}", now.id);
            Error::new(ErrorKind::NotFound, what)
        },
    )
}

async fn rename_snapshot<O: Objects>(
    catalog: &CephCatalog<O>,
    now: &Described,
    id: &SnapshotId,
    to: &SnapshotName,
) -> Result<()> {
    let number = find_snapshot(now, id)?;
    let doing = || format!("rename a snapshot of image {}", now.id);
    let op = WriteOp::new().assert_version(now.version);
    let op = match now.snapshot_named(to) {
        Some(other) if other != number => {
            let what = format!("the image has a snapshot {to} already; choose another name");
            return Err(Error::new(ErrorKind::Exists, what));
        }
        // It keeps its name, and is kept.
        Some(_) => op,
        None => {
            let rename = snapshot::snapshot_rename(number, text(to.as_str()));
            op.call(CLASS, rename.method, rename.input)
        }
    };
    let key = keys::auto(number).into_bytes();
    let op = op.then(WriteStep::RemoveOmap([key].into()));
    let done = write_header(catalog.objects(), &now.id, op).await;
    done.map_err(|failure| failed(failure, doing()))
}

async fn set_meta<O: Objects>(
    catalog: &CephCatalog<O>,
    now: &Described,
    key: &str,
    value: Option<&str>,
) -> Result<()> {
    let op = WriteOp::new().assert_version(now.version);
    let set = match value {
        Some(value) => metadata::metadata_set([(text(key), text(value))].into()),
        None => metadata::metadata_remove(text(key)),
    };
    let op = op.call(CLASS, set.method, set.input);
    match write_header(catalog.objects(), &now.id, op).await {
        // There was no such key.
        Err(Failure::NOT_FOUND) if value.is_none() => Ok(()),
        done => done.map_err(|failure| failed(failure, format!("change image {}", now.id))),
    }
}

/// Gives an image another name: the object of the new one, then the directory, which decides, then the object of the old one.
async fn rename<O: Objects>(
    catalog: &CephCatalog<O>,
    now: &Described,
    from: &str,
    to: &ImageName,
) -> Result<()> {
    let (objects, id) = (catalog.objects(), text(now.id.as_str()));
    if catalog.directory_name(&now.id).await?.is_none() {
        return Err(trash::in_trash(&now.id));
    }
    if from == to.as_str() {
        return Ok(());
    }
    let doing = || format!("rename image {from} to {to}");
    let taken = || {
        let what = format!("an image {to} is there already; choose another name");
        Error::new(ErrorKind::Exists, what)
    };
    let object = names::id_object(to.as_str());
    let set = id_method::set_id(id.clone());
    let op = WriteOp::new().create(true).call(CLASS, set.method, set.input);
    match objects.write(&object, &SnapContext::default(), op).await {
        Ok(()) => {}
        Err(Failure::EXISTS) => {
            // One that leads here is left from a rename that did not end.
            let found = catalog.ask(&object, id_method::get_id(), doing).await?;
            if found.as_ref() != Some(&id) {
                return Err(taken());
            }
        }
        Err(failure) => return Err(failed(failure, doing())),
    }
    let rename = directory::dir_rename_image(text(from), text(to.as_str()), id);
    let op = WriteOp::new().call(CLASS, rename.method, rename.input);
    match objects.write(DIRECTORY, &SnapContext::default(), op).await {
        Ok(()) => remove_if_there(objects, &names::id_object(from), doing).await,
        Err(failure) => {
            if !failure.may_have_happened() {
                remove_if_there(objects, &object, doing).await?;
            }
            Err(match failure {
                Failure::EXISTS => taken(),
                // It has another name by now.
                Failure::NOT_FOUND => failed(Failure::STALE, doing()),
                failure => failed(failure, doing()),
            })
        }
    }
}

/// What somebody has begun who is not at it any more.
pub(crate) async fn left_behind<O: Objects>(
    catalog: &CephCatalog<O>,
) -> Result<Vec<(PendingRecord, Begun)>> {
    let mut left = Vec::new();
    for (id, note) in pending::all(catalog.objects()).await? {
        if catalog.at_work().is_somebody_at(&id, note.client).await? {
            continue;
        }
        let what = match note.begun {
            Begun::Reservation => format!("the id {id} was kept for an image"),
            Begun::Creation => format!("image {} was being created", note.name),
            Begun::Removal => format!("image {} was removed", note.name),
            Begun::Discard => format!("image {} was being moved to the trash", note.name),
            Begun::Return => format!("image {} was being brought back from the trash", note.name),
        };
        left.push((PendingRecord { what, token: id.as_str().to_owned() }, note.begun));
    }
    Ok(left)
}

/// Finishes, or takes back, what somebody has begun.
pub(crate) async fn resume<O: Objects>(
    catalog: &CephCatalog<O>,
    pending: &PendingRecord,
) -> Result<()> {
    let id = ImageId::new(pending.token.as_str());
    let Some(note) = pending::of(catalog.objects(), &id).await? else { return Ok(()) };
    if catalog.at_work().is_somebody_at(&id, note.client).await? {
        return Ok(());
    }
    let _work = catalog.at_work().begin(&id).await?;
    resume_noted(catalog, &id, &note).await
}

async fn resume_noted<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    note: &Pending,
) -> Result<()> {
    if matches!(note.begun, Begun::Discard | Begun::Return) {
        return trash::resume(catalog, id, note).await;
    }
    let (objects, name) = (catalog.objects(), note.name.to_string());
    let found = Described::read_whatever(objects, id).await?;
    match (note.begun, found.as_ref().is_some_and(|found| !found.is_removed())) {
        (Begun::Creation, false) if found.is_none() => {
            create::try_undo(catalog, id, &name, note.parent.as_ref()).await
        }
        (Begun::Creation | Begun::Removal, false) => remove::finish(catalog, id, &name).await,
        (_, false) => forget_name(catalog, id, &name).await,
        // It was made, or its removal did not begin: only the note is left.
        (_, true) => {
            trash::take_removal_back(catalog, id).await?;
            let key = keys::pending(id.as_str()).into_bytes();
            let op = WriteOp::new().then(WriteStep::RemoveOmap([key].into()));
            let done = objects.write(DIRECTORY, &SnapContext::default(), op).await;
            done.map_err(|failure| failed(failure, format!("forget what was begun with {name}")))
        }
    }
}

/// About how many bytes the data objects of a revision take.
pub(crate) async fn stored_bytes<O: Objects>(data: &Data<O>, numbers: Vec<u64>) -> Result<u64> {
    let place = *data.place();
    let all = place.units_of_object();
    let data = Arc::new(data);
    let counts = numbers.into_iter().map(|number| {
        let data = data.clone();
        async move {
            let states = data.states_of(ObjectNo(number)).await?;
            Ok(u64::from(states.data_units(all)) * place.unit())
        }
    });
    let mut counts = stream::iter(counts).buffer_unordered(AT_ONCE);
    let mut sum = 0;
    while let Some(count) = counts.next().await {
        sum += count?;
    }
    Ok(sum)
}
