//! The allocation bitmap of a sparse image against the objects themselves: comparing the two, and making it anew.
//!
//! A bitmap is complete from one owner to the next; after a death it is not, and reads through a chain ask each layer. A wrong one,
//! which says of an object that it is not there, hides the object from reads, and from nothing else: what is changed is guarded by the
//! object itself.

use futures::stream::{self, StreamExt};
use vellum_core::ObjectNo;
use vellum_engine::{Catalog, Error, ErrorKind, Head, ImageId, Result, RevisionId};
use vellum_rados::Objects;

use crate::bitmap;
use crate::catalog::{CephCatalog, no_revision};
use crate::create::remove_if_there;
use crate::described::Described;
use crate::header::described;
use crate::keys;
use crate::presence::Presence;
use crate::remove::numbers_without_bitmap;

/// Objects that are looked at at once.
const AT_ONCE: usize = 32;

/// What a bitmap says against what there is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Compared {
    /// Whether there is a bitmap that is believed. There is none while the image is owned, nor after an owner has died.
    pub is_complete: bool,
    /// Objects that are there.
    pub there: u64,
    /// Objects of which it says that they may be there.
    pub said: u64,
    /// Objects that are there, and of which a bitmap that is believed says that they are not: reads do not see them.
    pub hidden: Vec<ObjectNo>,
}

/// Compares the bitmap of a revision with a look at each object.
pub(crate) async fn compare<O: Objects>(
    catalog: &CephCatalog<O>,
    image: &ImageId,
    revision: &RevisionId,
) -> Result<Compared> {
    let now = sparse(catalog, image).await?;
    let snapshot = now.snapshot_of(revision).ok_or_else(|| no_revision(&now))?;
    let said = bitmap::load(catalog.objects(), image, snapshot).await?;
    let there = existing(catalog, &now, snapshot).await?;
    let hidden = |said: &Presence| {
        there.iter().filter(|object| !said.contains(*object)).map(ObjectNo).collect()
    };
    Ok(Compared {
        is_complete: said.is_some(),
        there: there.iter().count() as u64,
        said: said.as_ref().map_or(0, |said| said.iter().count() as u64),
        hidden: said.as_ref().map_or_else(Vec::new, hidden),
    })
}

/// Makes the bitmap of a revision anew. For that of the head the image is owned meanwhile.
pub(crate) async fn build<O: Objects>(
    catalog: &CephCatalog<O>,
    image: &ImageId,
    revision: &RevisionId,
) -> Result<()> {
    let now = sparse(catalog, image).await?;
    match now.snapshot_of(revision).ok_or_else(|| no_revision(&now))? {
        Some(snapshot) => store(catalog, &now, Some(snapshot)).await,
        None => {
            let head = catalog.own(image).await?;
            // What it would write of what it knows when it is closed is not more.
            head.owned().layer().data().forget_presence();
            let now = sparse(catalog, image).await;
            let stored = async { store(catalog, &now?, None).await }.await;
            head.close().await?;
            stored
        }
    }
}

async fn store<O: Objects>(
    catalog: &CephCatalog<O>,
    now: &Described,
    snapshot: Option<u64>,
) -> Result<()> {
    let (objects, id) = (catalog.objects(), &now.id);
    let there = existing(catalog, now, snapshot).await?;
    // Pages that say more than there is would stay.
    let doing = || format!("make the bitmap of image {id} anew");
    remove_if_there(objects, &keys::bitmap(id.as_str(), snapshot), doing).await?;
    bitmap::save(objects, id, snapshot, &there).await
}

async fn sparse<O: Objects>(catalog: &CephCatalog<O>, image: &ImageId) -> Result<Described> {
    let now = described(catalog.objects(), image).await?;
    if now.sparse.is_none() {
        let what = "it is a plain RBD image, which has an object map; see `rbd object-map check` and `rbd object-map rebuild`";
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    Ok(now)
}

/// Which objects there are, on their own word.
async fn existing<O: Objects>(
    catalog: &CephCatalog<O>,
    now: &Described,
    snapshot: Option<u64>,
) -> Result<Presence> {
    // Without a bitmap, which would say by itself that an object is not there.
    let data = &catalog.data(now, snapshot, None)?;
    let numbers = numbers_without_bitmap(data.objects(), now, snapshot).await?;
    let looks = numbers.into_iter().map(|number| async move {
        Ok::<_, Error>((number, data.states_of(ObjectNo(number)).await?.exists()))
    });
    let (mut there, mut looks) =
        (Presence::default(), stream::iter(looks).buffer_unordered(AT_ONCE));
    while let Some(look) = looks.next().await {
        if let (number, true) = look? {
            there.insert(number);
        }
    }
    Ok(there)
}
