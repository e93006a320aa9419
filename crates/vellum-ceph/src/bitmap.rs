//! The allocation bitmap of an image, or of a snapshot, as it is stored: pages of [`Presence`] as keys of an object, and a key that
//! says that they are complete.
//!
//! While an image is owned its bitmap is not complete; who closes it writes what it knows, and says so last.

use std::collections::{BTreeMap, BTreeSet};

use vellum_engine::{Error, ErrorKind, ImageId, Result};
use vellum_rados::{
    Failure, Found, Objects, ReadOp, ReadStep, SnapContext, SnapId, WriteOp, WriteStep,
};

use crate::error::failed;
use crate::keys;
use crate::presence::Presence;

/// The key that says that the pages are complete.
const COMPLETE: &str = "complete";
/// What the keys of pages begin with.
const PAGE: &str = "page_";
/// Keys that are read, and written, at once.
const AT_ONCE: u64 = 256;

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
    let (mut presence, mut after, mut is_complete) = (Presence::default(), String::new(), false);
    loop {
        let step = ReadStep::Omap { after, prefix: String::new(), max: AT_ONCE };
        let done = objects.read(&name, SnapId::HEAD, ReadOp::new().then(step)).await;
        let found = match done.result {
            Ok((_, found)) => found,
            Err(Failure::NOT_FOUND) => return Ok(None),
            Err(failure) => {
                return Err(failed(failure, format!("read the bitmap of image {image}")));
            }
        };
        let Some(Found::Omap { values, more }) = found.into_iter().next() else {
            return Err(Error::new(ErrorKind::Io, "the cluster answers something else"));
        };
        let mut last = None;
        for (key, value) in values {
            let key = String::from_utf8_lossy(&key).into_owned();
            if key == COMPLETE {
                is_complete = true;
            } else if !take_page(&mut presence, &key, &value) {
                return Ok(None);
            }
            last = Some(key);
        }
        match last {
            Some(last) if more => after = last,
            _ => return Ok(is_complete.then_some(presence)),
        }
    }
}

fn take_page(presence: &mut Presence, key: &str, value: &[u8]) -> bool {
    let page = key.strip_prefix(PAGE).and_then(|page| u64::from_str_radix(page, 16).ok());
    page.is_some_and(|page| presence.take_page(page, value))
}

/// Notes, durably, that the bitmap is not complete.
pub(crate) async fn invalidate<O: Objects>(objects: &O, image: &ImageId) -> Result<()> {
    let name = keys::bitmap(image.as_str(), None);
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
    let ops = pages.chunks(AT_ONCE as usize).map(|pages| {
        let pages: BTreeMap<_, _> = pages.iter().cloned().collect();
        WriteOp::new().then(WriteStep::SetOmap(pages))
    });
    for op in ops.chain([empty()]) {
        let done = objects.write(&name, &SnapContext::default(), op).await;
        done.map_err(|failure| failed(failure, format!("write the bitmap of image {image}")))?;
    }
    Ok(())
}
