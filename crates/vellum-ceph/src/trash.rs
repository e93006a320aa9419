//! The trash: images that have no name any more, and are kept until somebody brings them back or removes them.
//!
//! The steps are librbd's, in its order, so that what a death has left is finished by `rbd` or by Vellum:
//!
//! | | steps |
//! |---|---|
//! | into it | entered in [`TRASH`] as *moving*; the object of the name goes; the entry in the directory goes; *normal* |
//! | back | *restoring*; the object of the name is made; entered in the directory; the entry in the trash goes |
//! | removal | *removing*; the header says that it is gone, and all else goes as of any image; the entry in the trash goes |
//!
//! An image keeps its id, so its clones and whoever has it open read it as before. A [note](crate::pending) says who is at it and, for
//! the way back, under which name.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use vellum_core::{ImageName, quoted};
use vellum_engine::{Error, ErrorKind, Happened, ImageId, ImageRecord, Result};
use vellum_rados::{Failure, Objects, SnapContext, WriteOp};
use vellum_rbd::Text;
use vellum_rbd::method::{CLASS, directory, id as id_method, trash as method};
use vellum_rbd::names::{self, DIRECTORY, TRASH};
use vellum_rbd::records::Trashed;
use vellum_rbd::wire::Time;

use crate::catalog::{CephCatalog, call};
use crate::create::{now, remove_if_there};
use crate::described::{Described, text, time};
use crate::error::{failed, no_image_with_id};
use crate::header::described;
use crate::ownership::{LOOK_AGAIN, SILENT_MAX, check_free, check_no_strangers};
use crate::pending::{self, Begun, Pending};
use crate::remove::{self, From};

/// How often a name is looked for that others may change in between.
const ATTEMPTS: usize = 20;

/// An image in the trash.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TrashedImage {
    /// Its id, which is all that it is known by.
    pub id: ImageId,
    /// The name that it had, which another image may have by now.
    pub name: String,
    /// Who put it there.
    pub source: TrashSource,
    /// When.
    pub since: SystemTime,
    /// Until when it is not removed, unless somebody insists.
    pub until: SystemTime,
    /// How far it is in the trash.
    pub state: TrashState,
}

/// Who put an image in the trash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrashSource {
    /// A user.
    User,
    /// The daemon that mirrors images.
    Mirroring,
    /// A migration, which needs it.
    Migration,
    /// A removal that goes on elsewhere.
    Removing,
    /// A user who removed it while it had children.
    UserParent,
    /// One that is not known here.
    Other(u8),
}

impl TrashSource {
    fn of(number: u8) -> Self {
        match number {
            0 => Self::User,
            1 => Self::Mirroring,
            2 => Self::Migration,
            3 => Self::Removing,
            4 => Self::UserParent,
            other => Self::Other(other),
        }
    }

    /// Whether users decide what becomes of such an image.
    fn is_of_users(self) -> bool {
        matches!(self, Self::User | Self::Mirroring | Self::UserParent)
    }
}

/// How far an image is in the trash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TrashState {
    /// It is there.
    Normal,
    /// It is on its way there.
    Moving,
    /// It is being removed.
    Removing,
    /// It is on its way back.
    Restoring,
    /// One that is not known here.
    Other(u8),
}

impl TrashState {
    fn of(number: u8) -> Self {
        match number {
            0 => Self::Normal,
            1 => Self::Moving,
            2 => Self::Removing,
            3 => Self::Restoring,
            other => Self::Other(other),
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Normal => 0,
            Self::Moving => 1,
            Self::Removing => 2,
            Self::Restoring => 3,
            Self::Other(number) => number,
        }
    }
}

/// Whether an image is kept for as long as it was to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Deferment {
    /// It is.
    #[default]
    Heeded,
    /// It is not.
    Ignored,
}

impl TrashedImage {
    fn of(id: ImageId, found: Trashed) -> Self {
        Self {
            id,
            name: found.name.to_string(),
            source: TrashSource::of(found.source),
            since: time(found.since),
            until: time(found.until),
            state: TrashState::of(found.state),
        }
    }
}

/// Images in the trash, in the order of their ids, behind one of them.
pub(crate) async fn list<O: Objects>(
    catalog: &CephCatalog<O>,
    after: Option<&ImageId>,
    max: usize,
) -> Result<Vec<TrashedImage>> {
    let after = text(after.map_or("", ImageId::as_str));
    let ask = method::trash_list(after, max as u64);
    let found = catalog.ask(TRASH, ask, || "list the trash".to_owned()).await?;
    let found = found.unwrap_or_default().into_iter();
    Ok(found.map(|(id, it)| TrashedImage::of(ImageId::new(id.to_string()), it)).collect())
}

/// What is known of an image in the trash; `None` if it is not there.
pub(crate) async fn get<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
) -> Result<Option<TrashedImage>> {
    let ask = method::trash_get(text(id.as_str()));
    let found = catalog.ask(TRASH, ask, || format!("look for image {id} in the trash")).await?;
    Ok(found.map(|found| TrashedImage::of(id.clone(), found)))
}

async fn must_get<O: Objects>(catalog: &CephCatalog<O>, id: &ImageId) -> Result<TrashedImage> {
    let found = get(catalog, id).await?;
    found.ok_or_else(|| {
        let what = format!("the trash of this pool has no image with id {}", quoted(id.as_str()));
        Error::new(ErrorKind::NotFound, what)
    })
}

/// Says how far an image is, if it was so far. `InUse` if somebody else is at it.
async fn set_state<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    from: TrashState,
    to: TrashState,
) -> Result<()> {
    let set = method::trash_state_set(text(id.as_str()), to.number(), from.number());
    match call(catalog.objects(), TRASH, set).await {
        Ok(()) => Ok(()),
        Err(Failure::STALE | Failure::NOT_FOUND) => {
            let what = format!("somebody else moves image {id} in the trash; look at it again");
            Err(Error::new(ErrorKind::InUse, what))
        }
        Err(failure) => Err(failed(failure, format!("change image {id} in the trash"))),
    }
}

/// Takes an image from the list of the trash; that it is not there is fine.
pub(crate) async fn forget<O: Objects>(catalog: &CephCatalog<O>, id: &ImageId) -> Result<()> {
    match call(catalog.objects(), TRASH, method::trash_remove(text(id.as_str()))).await {
        Ok(()) | Err(Failure::NOT_FOUND) => Ok(()),
        Err(failure) => Err(failed(failure, format!("take image {id} from the trash"))),
    }
}

/// Moves an image to the trash.
pub(crate) async fn put<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    keep: Duration,
) -> Result<TrashedImage> {
    let _work = catalog.at_work().begin(id).await?;
    let named = catalog.directory_name(id).await?;
    let name = match (&named, get(catalog, id).await?) {
        (Some(name), _) => name.clone(),
        // Somebody died who was about to say that it is there.
        (None, Some(found)) if found.state == TrashState::Moving => found.name,
        (None, Some(_)) => return Err(in_trash(id)),
        (None, None) => return Err(no_image_with_id(id.as_str())),
    };
    check_unused(catalog, id).await?;
    let note = Pending::new(Begun::Discard, catalog.objects().client(), text(&name));
    pending::begin(catalog.objects(), catalog.at_work(), id, &note).await?;
    if named.is_some()
        && let Err(error) = enter(catalog, id, &name, keep).await
    {
        // If it may be entered, that is for whoever looks at what is pending.
        if error.happened() == Happened::NotDone && matches!(get(catalog, id).await, Ok(None)) {
            pending::end(catalog.objects(), id, &note).await?;
        }
        return Err(error);
    }
    finish_put(catalog, id).await?;
    pending::end(catalog.objects(), id, &note).await?;
    must_get(catalog, id).await
}

/// `InUse` if somebody writes to an image, or reads its head, or has it open in a way that cannot be told from that.
async fn check_unused<O: Objects>(catalog: &CephCatalog<O>, id: &ImageId) -> Result<()> {
    let (objects, until) = (catalog.objects(), Instant::now() + SILENT_MAX);
    check_no_strangers(objects, id).await?;
    while !check_free(objects, &described(objects, id).await?, until).await? {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

/// Enters an image in the trash, as one that is on its way there.
async fn enter<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    name: &str,
    keep: Duration,
) -> Result<()> {
    let since = now();
    let until = u64::from(since.seconds).saturating_add(keep.as_secs());
    let until = Time { seconds: u32::try_from(until).unwrap_or(u32::MAX), ..since };
    let state = TrashState::Moving.number();
    let trashed = Trashed { source: 0, name: text(name), since, until, state };
    let doing = || format!("move image {name} to the trash");
    loop {
        let add = method::trash_add(text(id.as_str()), trashed.clone());
        match call(catalog.objects(), TRASH, add).await {
            Ok(()) => break,
            Err(Failure::EXISTS) => {}
            Err(failure) => return Err(failed(failure, doing())),
        }
        // Somebody died in the middle: it is in both.
        match get(catalog, id).await?.map(|found| found.state) {
            Some(TrashState::Moving | TrashState::Normal) => break,
            Some(TrashState::Restoring) => forget(catalog, id).await?,
            Some(TrashState::Removing | TrashState::Other(_)) => {
                let what = format!("{}: it is being removed there", doing());
                return Err(Error::new(ErrorKind::InUse, what));
            }
            None => {}
        }
    }
    // One that was removed meanwhile would stay in the list.
    let is_there = Described::read(catalog.objects(), id).await?.is_some();
    if !is_there {
        forget(catalog, id).await?;
        return Err(no_image_with_id(id.as_str()));
    }
    Ok(())
}

/// Takes the names from an image that is entered in the trash.
pub(crate) async fn finish_put<O: Objects>(catalog: &CephCatalog<O>, id: &ImageId) -> Result<()> {
    let doing = || format!("take the name of image {id}, which goes to the trash");
    for _ in 0..ATTEMPTS {
        let Some(name) = catalog.directory_name(id).await? else {
            return match set_state(catalog, id, TrashState::Moving, TrashState::Normal).await {
                // Somebody else has finished it, and gone on.
                Err(error) if error.kind() == ErrorKind::InUse => Ok(()),
                other => other,
            };
        };
        forget_id_object(catalog, id, &name).await?;
        let remove = directory::dir_remove_image(text(&name), text(id.as_str()));
        match call(catalog.objects(), DIRECTORY, remove).await {
            // It has another name by now, or none.
            Ok(()) | Err(Failure::NOT_FOUND | Failure::STALE) => {}
            Err(failure) => return Err(failed(failure, doing())),
        }
    }
    Err(Error::corrupt(format!("{}: the directory does not let it go", doing())))
}

/// Removes the object of a name, if it leads to an image.
async fn forget_id_object<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    name: &str,
) -> Result<()> {
    let doing = || format!("take the name {name} from image {id}");
    let object = names::id_object(name);
    match catalog.ask(&object, id_method::get_id(), doing).await? {
        Some(found) if found == text(id.as_str()) => {
            remove_if_there(catalog.objects(), &object, doing).await
        }
        _ => Ok(()),
    }
}

/// Brings an image back from the trash, under the name that it had or another.
pub(crate) async fn restore<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    name: Option<&ImageName>,
) -> Result<ImageRecord> {
    let _work = catalog.at_work().begin(id).await?;
    let trashed = must_get(catalog, id).await?;
    check_source(&trashed)?;
    let name = match name {
        Some(name) => name.clone(),
        None => trashed.name.parse().map_err(|why| {
            let what = format!("image {id} cannot have its old name again; choose another one");
            Error::new(ErrorKind::Invalid, what).with_source(why)
        })?,
    };
    let back = catalog.directory_name(id).await?;
    check_at_rest(&trashed, back.is_some())?;
    let described = described(catalog.objects(), id).await?;
    let note = Pending::new(Begun::Return, catalog.objects().client(), text(name.as_str()));
    pending::begin(catalog.objects(), catalog.at_work(), id, &note).await?;
    if let Some(back) = back {
        // Somebody died who had it back already.
        forget(catalog, id).await?;
        pending::end(catalog.objects(), id, &note).await?;
        if back != name.as_str() {
            let what = format!("image {id} is back already, as {back}; rename it");
            return Err(Error::new(ErrorKind::Exists, what));
        }
    } else {
        set_state(catalog, id, trashed.state, TrashState::Restoring).await?;
        if let Err(error) = take_name(catalog, id, &name).await {
            if error.happened() == Happened::NotDone {
                take_back(catalog, id, &note).await?;
            }
            return Err(error);
        }
        forget(catalog, id).await?;
        pending::end(catalog.objects(), id, &note).await?;
    }
    described.record(catalog.home(), name.as_str())
}

/// `Unsupported` for an image that is not its user's while it is in the trash.
fn check_source(trashed: &TrashedImage) -> Result<()> {
    if trashed.source.is_of_users() {
        return Ok(());
    }
    let what = format!(
        "image {} was put in the trash by something that still needs it ({:?}), which is to be finished with Ceph's own tools",
        trashed.id, trashed.source
    );
    Err(Error::new(ErrorKind::Unsupported, what))
}

/// `InUse` if somebody moves, or removes, an image that is about to be brought back.
fn check_at_rest(trashed: &TrashedImage, is_named: bool) -> Result<()> {
    let what = match trashed.state {
        TrashState::Moving if is_named => {
            "is on its way to the trash; if nobody is at it any more, move it there again"
        }
        TrashState::Removing => "is being removed; if nobody is at it any more, remove it again",
        TrashState::Other(_) => "is in a state that this program does not know",
        TrashState::Normal | TrashState::Moving | TrashState::Restoring => return Ok(()),
    };
    Err(Error::new(ErrorKind::InUse, format!("image {} {what}", trashed.id)))
}

/// Gives a name to an image that has none. `Exists` if another image has it.
async fn take_name<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    name: &ImageName,
) -> Result<()> {
    let doing = || format!("bring image {name} back from the trash");
    let taken = || {
        let what = format!("an image {name} is there already; bring it back under another name");
        Error::new(ErrorKind::Exists, what)
    };
    let object = names::id_object(name.as_str());
    let set = id_method::set_id(text(id.as_str()));
    let op = WriteOp::new().create(true).call(CLASS, set.method, set.input);
    match catalog.objects().write(&object, &SnapContext::default(), op).await {
        Ok(()) => {}
        Err(Failure::EXISTS) => {
            // One that leads here is left from whoever died in the middle.
            let found: Option<Text> = catalog.ask(&object, id_method::get_id(), doing).await?;
            if found != Some(text(id.as_str())) {
                return Err(taken());
            }
        }
        Err(failure) => return Err(failed(failure, doing())),
    }
    let add = directory::dir_add_image(text(name.as_str()), text(id.as_str()));
    match call(catalog.objects(), DIRECTORY, add).await {
        Ok(()) => Ok(()),
        Err(Failure::EXISTS) => Err(taken()),
        Err(failure) => Err(failed(failure, doing())),
    }
}

/// Leaves an image in the trash that was to be brought back.
async fn take_back<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    note: &Pending,
) -> Result<()> {
    forget_id_object(catalog, id, &note.name.to_string()).await?;
    match set_state(catalog, id, TrashState::Restoring, TrashState::Normal).await {
        Err(error) if error.kind() != ErrorKind::InUse => return Err(error),
        _ => {}
    }
    pending::end(catalog.objects(), id, note).await
}

/// Removes an image that is in the trash.
pub(crate) async fn remove<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    deferment: Deferment,
) -> Result<()> {
    let _work = catalog.at_work().begin(id).await?;
    let trashed = must_get(catalog, id).await?;
    check_source(&trashed)?;
    if trashed.until > time(now()) && deferment == Deferment::Heeded {
        let what = format!(
            "image {id}, which was {}, is kept in the trash for longer; wait, bring it back, or insist on its removal",
            trashed.name
        );
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    check_removable(catalog, &trashed).await?;
    let note = Pending::new(Begun::Removal, catalog.objects().client(), text(&trashed.name));
    pending::begin(catalog.objects(), catalog.at_work(), id, &note).await?;
    if let Err(error) = condemn(catalog, &trashed).await {
        if error.happened() == Happened::NotDone {
            take_removal_back(catalog, id).await?;
            pending::end(catalog.objects(), id, &note).await?;
        }
        return Err(error);
    }
    remove::finish(catalog, id, &trashed.name).await
}

/// `InUse` if somebody moves an image that is about to be removed.
async fn check_removable<O: Objects>(
    catalog: &CephCatalog<O>,
    trashed: &TrashedImage,
) -> Result<()> {
    let what = match trashed.state {
        // Whoever began it died, or goes on with it beside.
        TrashState::Removing => return Ok(()),
        TrashState::Restoring => "bring it back again",
        _ if catalog.directory_name(&trashed.id).await?.is_some() => "move it to the trash again",
        _ => return Ok(()),
    };
    let what = format!(
        "somebody moves image {} to the trash or back; if nobody is at it any more, {what}",
        trashed.id
    );
    Err(Error::new(ErrorKind::InUse, what))
}

async fn condemn<O: Objects>(catalog: &CephCatalog<O>, trashed: &TrashedImage) -> Result<()> {
    let id = &trashed.id;
    if trashed.state != TrashState::Removing {
        set_state(catalog, id, trashed.state, TrashState::Removing).await?;
    }
    // What is gone but for its entry here says nothing any more.
    if Described::read(catalog.objects(), id).await?.is_some() {
        remove::condemn(catalog, id, From::Trash(&trashed.name)).await?;
    }
    Ok(())
}

/// Leaves an image in the trash that was to be removed.
pub(crate) async fn take_removal_back<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
) -> Result<()> {
    if get(catalog, id).await?.is_none_or(|found| found.state != TrashState::Removing) {
        return Ok(());
    }
    match set_state(catalog, id, TrashState::Removing, TrashState::Normal).await {
        // Somebody else did.
        Err(error) if error.kind() == ErrorKind::InUse => Ok(()),
        other => other,
    }
}

/// Finishes, or takes back, what somebody has begun who died.
pub(crate) async fn resume<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    note: &Pending,
) -> Result<()> {
    let found = get(catalog, id).await?;
    let is_named = catalog.directory_name(id).await?.is_some();
    match (note.begun, found.map(|found| found.state)) {
        (Begun::Discard, Some(TrashState::Moving)) => finish_put(catalog, id).await?,
        (Begun::Return, Some(TrashState::Restoring)) if is_named => forget(catalog, id).await?,
        (Begun::Return, Some(TrashState::Restoring)) => {
            return take_back(catalog, id, note).await;
        }
        // It was finished, or not begun, or somebody else is at it.
        _ => {}
    }
    pending::end(catalog.objects(), id, note).await
}

/// The error of what cannot be done with an image for as long as it is in the trash.
pub(crate) fn in_trash(id: &ImageId) -> Error {
    let what = format!("image {id} is in the trash; bring it back first, or remove it from there");
    Error::new(ErrorKind::Invalid, what)
}
