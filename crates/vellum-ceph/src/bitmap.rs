//! The allocation bitmap of an image, or of a snapshot, as it is stored: pages of [`Presence`] as keys of an object, and a key that
//! says that they are complete.
//!
//! While an image is owned its bitmap is not complete; who closes it writes what it knows, and says so last.

use std::collections::{BTreeMap, BTreeSet};

use vellum_engine::{ImageId, Result};
use vellum_rados::{Objects, SnapContext, WriteOp, WriteStep};

use crate::error::failed;
use crate::keys;
use crate::omap;
use crate::presence::Presence;

/// The key that says that the pages are complete.
const COMPLETE: &str = "complete";
/// What the keys of pages begin with.
const PAGE: &str = "page_";
/// Pages that are written at once.
const AT_ONCE: usize = 256;

/// Makes a bitmap of nothing, which is complete.
pub(crate) fn empty() -> WriteOp {
    WriteOp::new().set_omap(COMPLETE, "")
}

/// Reads a bitmap; `None` if there is none, or it is not complete, or was changed by something else.
pub(crate) async fn load<O: Objects>(
    objects: &O,
    image: &ImageId,
    snapshot: Option<u64>,
) -> Result<Option<Presence>> {
    let name = keys::bitmap(image.as_str(), snapshot);
    let doing = || format!("read the bitmap of image {image}");
    let Some(mut keys) = omap::all(objects, &name, "", doing).await? else { return Ok(None) };
    let (mut presence, is_complete) = (Presence::default(), keys.remove(COMPLETE).is_some());
    let is_whole = keys.iter().all(|(key, value)| take_page(&mut presence, key, value));
    Ok((is_complete && is_whole).then_some(presence))
}

fn take_page(presence: &mut Presence, key: &str, value: &[u8]) -> bool {
    let page = key.strip_prefix(PAGE).and_then(|page| u64::from_str_radix(page, 16).ok());
    page.is_some_and(|page| presence.take_page(page, value))
}

/// Notes, durably, that the bitmap is not complete.
pub(crate) async fn invalidate<O: Objects>(
    objects: &O,
    image: &ImageId,
    snapshot: Option<u64>,
) -> Result<()> {
    let name = keys::bitmap(image.as_str(), snapshot);
    let complete = BTreeSet::from([COMPLETE.as_bytes().to_vec()]);
    let op = WriteOp::new().create(false).then(WriteStep::RemoveOmap(complete));
    let done = objects.write(&name, &SnapContext::default(), op).await;
    done.map_err(|failure| failed(failure, format!("begin to write image {image}")))
}

/// Writes a bitmap, and then that it is complete.
pub(crate) async fn save<O: Objects>(
    objects: &O,
    image: &ImageId,
    snapshot: Option<u64>,
    presence: &Presence,
) -> Result<()> {
    let name = keys::bitmap(image.as_str(), snapshot);
    let pages: Vec<_> = presence
        .pages()
        .map(|(page, bytes)| (format!("{PAGE}{page:016x}").into_bytes(), bytes))
        .collect();
    let ops = pages.chunks(AT_ONCE).map(|pages| {
        let pages: BTreeMap<_, _> = pages.iter().cloned().collect();
        WriteOp::new().then(WriteStep::SetOmap(pages))
    });
    for op in ops.chain([empty()]) {
        let done = objects.write(&name, &SnapContext::default(), op).await;
        done.map_err(|failure| failed(failure, format!("write the bitmap of image {image}")))?;
    }
    Ok(())
}
