//! How an image goes: its header says so, all who have it open have heard it, and then everything else is removed, the header last.

use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::BTreeSet;
use tokio::time::Instant;
use vellum_engine::{Error, ErrorKind, ImageId, Result, Version};
use vellum_rados::{Failure, Objects, SnapContext, WriteOp};
use vellum_rbd::Encode;
use vellum_rbd::names::{self, DIRECTORY};
use vellum_rbd::notify::Message;

use crate::catalog::CephCatalog;
use crate::create::{forget_name, remove_if_there};
use crate::described::{Described, text};
use crate::error::failed;
use crate::header::{described, write_header};
use crate::keys;
use crate::ownership::{LOOK_AGAIN, SILENT_MAX, check_free, check_no_strangers};
use crate::pending::{Begun, Pending};
use crate::protect::check_unprotected;
use crate::watched::tell;
use crate::{bitmap, children, records, trash};

/// Objects that are removed at once.
const AT_ONCE: usize = 64;
/// An image of no more objects is removed by their numbers; of a larger one without a bitmap, the pool is listed.
const BY_NUMBER_MAX: u64 = 100_000;

/// Where an image is removed from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum From<'a> {
    /// The images of the pool, if its record is at this version.
    Pool(Version),
    /// The trash, where it had this name before.
    Trash(&'a str),
}

/// Removes an image, if its record is at this version.
pub(crate) async fn remove<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    at: Version,
) -> Result<()> {
    let _work = catalog.at_work().begin(id).await?;
    let name = condemn(catalog, id, From::Pool(at)).await?;
    finish(catalog, id, &name).await
}

/// Has the header of an image say that it is gone, if nothing keeps it; whoever removes one from the trash has noted that. Returns the
/// name that it has, or had.
pub(crate) async fn condemn<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    from: From<'_>,
) -> Result<String> {
    let objects = catalog.objects();
    let until = Instant::now() + SILENT_MAX;
    let mut is_noted = matches!(from, From::Trash(_));
    loop {
        let now = described(objects, id).await?;
        let name = match from {
            From::Pool(at) => {
                let name = catalog.name_of(id).await?;
                records::check_version(&now.record(catalog.home(), &name)?, at)?;
                if catalog.directory_name(id).await?.is_none() {
                    return Err(trash::in_trash(id));
                }
                name
            }
            From::Trash(name) => name.to_owned(),
        };
        check_unneeded(catalog, &now, &name).await?;
        check_no_strangers(objects, id).await?;
        if !check_free(objects, &now, until).await? {
            tokio::time::sleep(LOOK_AGAIN).await;
            continue;
        }
        if !is_noted {
            note(catalog, id, &name).await?;
            is_noted = true;
        }
        let op = WriteOp::new().assert_version(now.version).set_omap(keys::REMOVED, "");
        match write_header(objects, id, op).await {
            Ok(()) => return Ok(name),
            Err(Failure::MISMATCH) => {}
            Err(failure) => return Err(failed(failure, format!("remove image {name}"))),
        }
    }
}

/// `HasChildren` if something hangs on an image, `Invalid` if a snapshot is protected, and with it what is of no use without.
async fn check_unneeded<O: Objects>(
    catalog: &CephCatalog<O>,
    now: &Described,
    name: &str,
) -> Result<()> {
    let count = children::of(catalog, now).await?.len();
    if count > 0 {
        let what = format!("image {name} has children ({count}); flatten or remove them first");
        return Err(Error::new(ErrorKind::HasChildren, what));
    }
    let mut snapshots = now.header.snapshots.keys();
    snapshots.try_for_each(|snapshot| check_unprotected(now, name, *snapshot))
}

async fn note<O: Objects>(catalog: &CephCatalog<O>, id: &ImageId, name: &str) -> Result<()> {
    let note = Pending::new(Begun::Removal, catalog.objects().client(), text(name));
    let op = WriteOp::new().set_omap(keys::pending(id.as_str()), note.to_bytes());
    let noted = catalog.objects().write(DIRECTORY, &SnapContext::default(), op).await;
    noted.map_err(|failure| failed(failure, format!("begin to remove image {name}")))
}

/// Removes what is left of an image whose header says that it is gone, or that has none any more.
pub(crate) async fn finish<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    name: &str,
) -> Result<()> {
    let objects = catalog.objects();
    let doing = || format!("remove what is left of image {name}");
    if let Some(last) = Described::read_whatever(objects, id).await? {
        // All who have it open look, and find it gone, before anything of it is missing. Whoever does not hear it has lost its watch,
        // or will before long; what cannot be told is told by whoever goes on with this.
        let until = Instant::now() + SILENT_MAX;
        while !tell(objects, id, &Message::HeaderChanged).await?.silent.is_empty()
            && Instant::now() < until
        {}
        remove_data(catalog, &last).await?;
        let snapshots = last.header.snapshots.keys().chain(&last.dropped).map(|id| Some(*id));
        for snapshot in snapshots.chain([None]) {
            let (bitmap, map) =
                (keys::bitmap(id.as_str(), snapshot), names::object_map(id.as_str(), snapshot));
            remove_if_there(objects, &bitmap, doing).await?;
            remove_if_there(objects, &map, doing).await?;
        }
        catalog.leave(&last).await?;
        remove_if_there(objects, &names::header(id.as_str()), doing).await?;
    }
    trash::forget(catalog, id).await?;
    forget_name(catalog, id, name).await
}

async fn remove_data<O: Objects>(catalog: &CephCatalog<O>, last: &Described) -> Result<()> {
    let data = catalog.data_objects(last)?;
    let doing = || format!("remove the data of image {}", last.id);
    for snapshot in last.header.snapshots.keys().chain(&last.dropped) {
        let freed = data.remove_snapshot(*snapshot).await;
        freed.map_err(|failure| failed(failure, doing()))?;
    }
    let prefix = last.header.prefix.to_string();
    let numbers = numbers(catalog, &data, last, None).await?;
    let removals = numbers.into_iter().map(|number| {
        let (data, name) = (&data, names::data(&prefix, number));
        async move { remove_if_there(data, &name, doing).await }
    });
    stream::iter(removals).buffer_unordered(AT_ONCE).try_collect::<()>().await
}

/// The numbers of all data objects that there may be, at the head or at a snapshot. Those that only snapshots have are not found
/// where the pool is listed.
pub(crate) async fn numbers<O: Objects>(
    catalog: &CephCatalog<O>,
    data: &O,
    of: &Described,
    snapshot: Option<u64>,
) -> Result<Vec<u64>> {
    if let Some(presence) = bitmap::load(catalog.objects(), &of.id, snapshot).await? {
        return Ok(presence.iter().collect());
    }
    numbers_without_bitmap(data, of, snapshot).await
}

/// The same, of those that there may be without the word of a bitmap.
pub(crate) async fn numbers_without_bitmap<O: Objects>(
    data: &O,
    of: &Described,
    snapshot: Option<u64>,
) -> Result<Vec<u64>> {
    let prefix = of.header.prefix.to_string();
    let size = of.size(snapshot).unwrap_or(0);
    // Whoever died in a shrink left some behind its end.
    let size = of.trim.filter(|_| snapshot.is_none()).map_or(size, |left| left.max(size));
    let count = of.geometry()?.object_count(size);
    if count <= BY_NUMBER_MAX {
        return Ok((0..count).collect());
    }
    let found = listed(data, &prefix).await;
    let found = found.map_err(|failure| failed(failure, "list the objects of a pool"))?;
    Ok(found.into_iter().collect())
}

/// The numbers of the data objects of this prefix, by a look at all objects of a pool.
pub(crate) async fn listed<O: Objects>(
    data: &O,
    prefix: &str,
) -> vellum_rados::Result<BTreeSet<u64>> {
    let (mut list, mut numbers) = (data.list(), BTreeSet::new());
    while let Some(names) = list.next().await {
        numbers.extend(names?.iter().filter_map(|name| names::data_number(prefix, name)));
    }
    Ok(numbers)
}
