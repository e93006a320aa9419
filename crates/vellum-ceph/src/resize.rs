//! Another size for an image: larger, or smaller.
//!
//! | | steps |
//! |---|---|
//! | larger | the block that a sparse image ends in gets zeros behind its end; the object map grows; the header |
//! | smaller | what snapshots see through to the parent is made for them; what lies beyond the new end becomes zeros; the header; objects beyond the end that hold nothing go; the object map shrinks |
//!
//! One change of the header sets the size and what the head sees of the parent. As everything beyond the new end is zeros by then,
//! and what is seen of the parent never grows again, nothing comes back when the image becomes larger later, whoever makes it so and
//! wherever this one died: before that the image has its old size, and its end reads as it was, or as zeros. So an object that would
//! show the parent is emptied first, and removed only when the image has no part of it any more. Until these are gone a note in the header,
//! [`TRIM`], says how far they reach; whoever owns the image next removes them.
//!
//! What a parent holds is not this engine's to know: whoever calls for a shrink brings along who [reads](ReadParent) it.

use std::future::Future;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};
use vellum_core::{Extent, ObjectNo};
use vellum_engine::{Catalog, Content, Error, ErrorKind, Head, ImageId, ImageRecord, Part, Result};
use vellum_rados::{Objects, WriteOp, WriteStep};
use vellum_rbd::method::{CLASS, header as method};
use vellum_rbd::notify::Message;
use vellum_rbd::object_map::OBJECTS_MAX;
use vellum_rbd::{Encode, Features};

use crate::bitmap;
use crate::catalog::CephCatalog;
use crate::create::remove_if_there;
use crate::described::Described;
use crate::head::Owned;
use crate::header::{change_header, described};
use crate::keys::{self, TRIM};
use crate::remove;
use crate::rules::Rules;

/// Objects that are filled or trimmed at once.
const AT_ONCE: usize = 16;

/// Whether an image may become smaller, and lose what lies beyond its new end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Shrink {
    /// It may.
    Allowed,
    /// It may not.
    #[default]
    Refused,
}

/// Reads what the head of an image sees of its parent.
pub trait ReadParent: Send + Sync + 'static {
    /// What the parent holds of an extent of the image, within what the head sees of it: as many bytes, whatever further images they come
    /// from.
    ///
    /// # Errors
    /// Whatever keeps it from being read; the image is as it was then.
    fn read(&self, at: Extent) -> impl Future<Output = Result<Bytes>> + Send;
}

/// For images whose parent nobody needs to read: those that have none, and sparse ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NoParent;

impl ReadParent for NoParent {
    async fn read(&self, _: Extent) -> Result<Bytes> {
        let what = "snapshots of the image see its parent, which must be read to keep what they hold; say how";
        Err(Error::new(ErrorKind::Invalid, what))
    }
}

/// Gives an image another size.
pub(crate) async fn resize<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
    size: u64,
    shrink: Shrink,
    parent: &impl ReadParent,
) -> Result<ImageRecord> {
    check(catalog, &described(catalog.objects(), id).await?, size, shrink)?;
    let head = catalog.own(id).await?;
    let resized = resize_owned(catalog, head.owned(), size, shrink, parent).await;
    let closed = head.close().await;
    resized?;
    closed?;
    catalog.get(id).await
}

fn check<O: Objects>(
    catalog: &CephCatalog<O>,
    now: &Described,
    size: u64,
    shrink: Shrink,
) -> Result<()> {
    let (before, max) = (now.header.size, catalog.capabilities().size_max);
    let objects = now.geometry()?.object_count(size);
    let what = match () {
        () if size == 0 || size > max => {
            format!("an image has from 1 to {max} bytes, and not {size}")
        }
        () if size < before && shrink == Shrink::Refused => format!(
            "image {} has {before} bytes, of which {size} would be left; allow it to become smaller if they are not needed",
            now.id
        ),
        () if objects > OBJECTS_MAX && now.header.features.has(Features::OBJECT_MAP) => format!(
            "an object map tells of at most {OBJECTS_MAX} objects, and not of {objects}; disable that feature of the image first"
        ),
        () => return Ok(()),
    };
    Err(Error::new(ErrorKind::Invalid, what))
}

async fn resize_owned<O: Objects>(
    catalog: &CephCatalog<O>,
    owned: &Owned<O>,
    size: u64,
    shrink: Shrink,
    parent: &impl ReadParent,
) -> Result<()> {
    let now = described(catalog.objects(), &owned.id).await?;
    check(catalog, &now, size, shrink)?;
    let before = now.header.size;
    if size == before {
        return Ok(());
    }
    match size < before {
        true => empty_behind(owned, &now, size, parent).await?,
        false => make_room(owned, size).await?,
    }
    owned.check_owned()?;
    let doing = || format!("give image {} another size", owned.id);
    let changed = change_header(
        catalog.objects(),
        &owned.id,
        |now, op| Ok(Some(set_size(now, op, size))),
        doing,
    );
    changed.await?;
    let trimmed = if size < before {
        finish(owned, &described(catalog.objects(), &owned.id).await?).await
    } else {
        Ok(())
    };
    // Whoever does not hear it finds out when it looks.
    let _ = owned.layer().image().tell(&Message::HeaderChanged).await;
    trimmed
}

/// The change of a header by which an image has another size.
fn set_size(now: &Described, op: WriteOp, size: u64) -> WriteOp {
    let set = method::set_size(size);
    let op = op.call(CLASS, set.method, set.input);
    if size >= now.header.size {
        return op;
    }
    let left = now.trim.map_or(now.header.size, |left| left.max(now.header.size));
    let op = op.set_omap(TRIM, left.to_bytes());
    match &now.elsewhere {
        Some(parent) if parent.seen_by(None) > Some(size) => {
            let parent = parent.clipped(now.header.snap_seq, size);
            op.set_omap(keys::PARENT, parent.to_bytes())
        }
        _ => op,
    }
}

/// Readies an image for a larger size. Until it has that, nothing is to be seen of it.
async fn make_room<O: Objects>(owned: &Owned<O>, size: u64) -> Result<()> {
    let place = *owned.layer().data().place();
    for object in place.cut_by(place.size()) {
        owned.extend(ObjectNo(object)).await?;
    }
    match owned.plain().and_then(|plain| plain.map()) {
        Some(map) => map.resize(place.geometry().object_count(size)).await,
        None => Ok(()),
    }
}

/// Makes zeros of all that lies beyond a size, smaller than the one that the image still has. What the head does not define there it
/// goes on to see until it has that size; what snapshots see through it is made for them.
async fn empty_behind<O: Objects>(
    owned: &Owned<O>,
    now: &Described,
    size: u64,
    parent: &impl ReadParent,
) -> Result<()> {
    let place = *owned.layer().data().place();
    let count = |size: u64| place.geometry().object_count(size);
    let (kept, seen) = (count(size), count(now.overlap(None)));
    let behind = kept..seen.max(kept);
    let cut = place.cut_by(size);
    let seen_through =
        cut.clone().chain(behind.clone()).filter(|it| owned.must_fill_first(ObjectNo(*it)));
    let fills = seen_through.map(|object| keep_for_snapshots(owned, ObjectNo(object), parent));
    stream::iter(fills).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let there = there(owned, now, &behind).await?;
    let trims = cut.chain(there).map(|object| owned.trim(ObjectNo(object), size));
    stream::iter(trims).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    // Where nothing of a parent would show, an object that goes leaves zeros.
    remove_all(owned, now, behind.end..count(place.size())).await
}

/// Makes an object that is not there, if snapshots would lose what they see through it once the head is cut off the parent. If that is
/// all zeros, they lose nothing.
async fn keep_for_snapshots<O: Objects>(
    owned: &Owned<O>,
    object: ObjectNo,
    parent: &impl ReadParent,
) -> Result<()> {
    let Rules::Plain(shown) = owned.rules(object) else { return Ok(()) };
    let data = owned.layer().data();
    // A map may say that it is not there, or that it is, and be wrong only in the latter.
    if data.states_of(object).await?.exists() {
        return Ok(());
    }
    let mut parts = Vec::new();
    for seen in shown {
        let at = data.place().around(seen);
        let bytes = parent.read(seen).await?;
        if bytes.len() != seen.len_usize() {
            let what = format!("{} bytes were read of the parent in place of {seen}", bytes.len());
            return Err(Error::new(ErrorKind::Io, what));
        }
        let content = match bytes.iter().all(|byte| *byte == 0) {
            true => Content::Zero,
            false => Content::Data(padded(at, seen, bytes)),
        };
        parts.push(Part { at, content });
    }
    if parts.iter().all(|part| matches!(part.content, Content::Zero)) {
        return Ok(());
    }
    owned.fill_for_all(object, parts).await
}

fn padded(at: Extent, seen: Extent, bytes: Bytes) -> Bytes {
    if at == seen {
        return bytes;
    }
    let mut all = BytesMut::zeroed(at.len_usize());
    all[at.range_of(&seen)].copy_from_slice(&bytes);
    all.freeze()
}

/// Those of some objects that there may be.
async fn there<O: Objects>(
    owned: &Owned<O>,
    now: &Described,
    objects: &Range<u64>,
) -> Result<Vec<u64>> {
    let data = owned.layer().data();
    if objects.is_empty() {
        return Ok(Vec::new());
    }
    let Some(presence) = data.presence() else {
        let all = remove::numbers_without_bitmap(data.objects(), now, None).await?;
        return Ok(all.into_iter().filter(|object| objects.contains(object)).collect());
    };
    let there = presence.iter_from(objects.start);
    Ok(there.take_while(|object| *object < objects.end).collect())
}

/// Removes some objects, those of them that there may be.
async fn remove_all<O: Objects>(
    owned: &Owned<O>,
    now: &Described,
    objects: Range<u64>,
) -> Result<()> {
    let there = there(owned, now, &objects).await?;
    let map = owned.plain().and_then(|plain| plain.map());
    if let Some(map) = map {
        map.begin_removals(objects.clone()).await?;
    }
    let removals = there.into_iter().map(|object| owned.remove(ObjectNo(object)));
    stream::iter(removals).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    match map {
        Some(map) => map.end_removals(objects).await,
        None => Ok(()),
    }
}

/// Removes what a shrink has left behind the end of an image, and has the object map end there. Nothing to do where none was.
pub(crate) async fn finish<O: Objects>(owned: &Owned<O>, now: &Described) -> Result<()> {
    let (objects, data) = (owned.catalog.objects(), owned.layer().data());
    let count = |size: u64| data.place().geometry().object_count(size);
    let kept = count(now.header.size);
    let map = owned.plain().and_then(|plain| plain.map());
    let told = map.map_or(0, |map| map.objects());
    let left = now.trim.map_or(0, count).max(told);
    if left > kept {
        remove_all(owned, now, kept..left).await?;
        data.end_presence(kept);
    }
    if let Some(map) = map.filter(|_| told > kept) {
        map.resize(kept).await?;
    }
    if now.trim.is_none() {
        return Ok(());
    }
    if owned.plain().is_none() {
        // Pages that tell of what is gone would stay.
        let doing = || format!("remove the bitmap of image {}", owned.id);
        remove_if_there(objects, &keys::bitmap(owned.id.as_str(), None), doing).await?;
        bitmap::invalidate(objects, &owned.id, None).await?;
    }
    let plan = |now: &Described, op: WriteOp| {
        let forget = WriteStep::RemoveOmap([TRIM.into()].into());
        Ok(now.trim.is_some().then(|| op.then(forget)))
    };
    let doing = || format!("forget that image {} became smaller", owned.id);
    change_header(objects, &owned.id, plan, doing).await.map(drop)
}
