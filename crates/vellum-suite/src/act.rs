//! What cases do to a head, in few words.

use anyhow::Context;
use bytes::Bytes;
use vellum_core::Extent;
use vellum_engine::{
    Content, Durability, Fill, Guard, Guarded, Head, HeadChange, ImageRecord, Part, Prepared,
    SetTo, Write,
};

use crate::Result;

/// Whether a snapshot stays without children.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kept {
    /// It does.
    Kept,
    /// It goes with its last child.
    Auto,
}

/// As many bytes as the extent has, all the same.
pub(crate) fn bytes(at: Extent, byte: u8) -> Bytes {
    vec![byte; at.len_usize()].into()
}

/// A write of one byte all over an extent.
pub(crate) fn write_of(at: Extent, byte: u8) -> Write {
    let data = bytes(at, byte);
    Write { offset: at.offset(), data, guard: Guard::Edges, durability: Durability::AtSync }
}

/// A part of a fill that makes data.
pub(crate) fn data(at: Extent, byte: u8) -> Part {
    Part { at, content: Content::Data(bytes(at, byte)) }
}

/// A part of a fill that makes zeros.
pub(crate) fn zeros(at: Extent) -> Part {
    Part { at, content: Content::Zero }
}

pub(crate) async fn write<H: Head>(
    head: &H,
    at: Extent,
    byte: u8,
) -> vellum_engine::Result<Guarded> {
    head.write(write_of(at, byte)).await
}

/// Writes where nothing can be missing.
pub(crate) async fn put<H: Head>(head: &H, at: Extent, byte: u8) -> Result<()> {
    done(write(head, at, byte).await?)
}

pub(crate) async fn fill<H: Head>(
    head: &H,
    parts: impl Into<Vec<Part>>,
    then: Option<Write>,
) -> vellum_engine::Result<Guarded> {
    head.fill(Fill { parts: parts.into(), then }).await
}

pub(crate) async fn set<H: Head>(
    head: &H,
    at: Extent,
    to: SetTo,
) -> vellum_engine::Result<Guarded> {
    head.set(at, to, Durability::AtSync).await
}

pub(crate) async fn zero<H: Head>(head: &H, at: Extent) -> Result<()> {
    done(set(head, at, SetTo::Zero).await?)
}

pub(crate) async fn inherit<H: Head>(head: &H, at: Extent) -> Result<()> {
    done(set(head, at, SetTo::Inherit).await?)
}

/// Writes to a part of a unit whatever its state, as a caller does that finds zeros below: guarded, then with a fill, again
/// if somebody was faster.
pub(crate) async fn write_over_zeros<H: Head>(head: &H, at: Extent, byte: u8) -> Result<()> {
    loop {
        match write(head, at, byte).await? {
            Guarded::Done => return Ok(()),
            Guarded::Missing(missing) => {
                let parts: Vec<Part> = missing.iter().map(|at| zeros(*at)).collect();
                if fill(head, parts, Some(write_of(at, byte))).await? == Guarded::Done {
                    return Ok(());
                }
            }
            Guarded::Sealed => anyhow::bail!("the head is sealed"),
        }
    }
}

pub(crate) fn done(answer: Guarded) -> Result<()> {
    anyhow::ensure!(answer == Guarded::Done, "the answer is {answer:?} and not Done");
    Ok(())
}

/// Takes a snapshot that is kept, and says who writes from then on.
pub(crate) async fn snapshot<H: Head>(head: &H, name: &str) -> Result<(ImageRecord, H)> {
    snapshot_as(head, name, Kept::Kept).await
}

pub(crate) async fn snapshot_as<H: Head>(
    head: &H,
    name: &str,
    kept: Kept,
) -> Result<(ImageRecord, H)> {
    let prepared = head.prepare(snapshot_named(name, kept)?).await?;
    let committed = prepared.commit().await.context("commit a snapshot")?;
    // Where snapshots are native, the head goes on.
    Ok((committed.record, committed.successor.unwrap_or_else(|| head.clone())))
}

pub(crate) fn snapshot_named(name: &str, kept: Kept) -> Result<HeadChange> {
    Ok(HeadChange::Snapshot { name: name.parse()?, auto: kept == Kept::Auto })
}

/// Cuts the link to the parent.
pub(crate) async fn cut<H: Head>(head: &H) -> Result<ImageRecord> {
    let committed = head.prepare(HeadChange::CutParent).await?.commit().await?;
    anyhow::ensure!(committed.successor.is_none(), "a cut has no successor");
    Ok(committed.record)
}
