//! Writing: guarded, and with a copy-up where a unit that is written in part is still inherited.

use std::sync::Arc;

use bytes::Bytes;
use vellum_core::Extent;
use vellum_engine::{
    Catalog, Content, Durability, Error, ErrorKind, Fill, Guard, Guarded, Head, Missing, Part,
    Result, Write,
};

use crate::Image;
use crate::canary::Canary;
use crate::image::View;
use crate::steps::Step;

/// How to write.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriteOptions {
    /// Whether the write survives power loss when it is acknowledged (forced unit access). Else it does after the next
    /// [`Image::sync`].
    pub durable: bool,
}

impl WriteOptions {
    pub(crate) fn durability(self) -> Durability {
        if self.durable { Durability::Durable } else { Durability::AtSync }
    }
}

impl<C: Catalog> Image<C> {
    /// Writes. When it returns, every later read sees the bytes, and they survive the death of the process. A write that fails
    /// may have happened in part, each 512-byte sector old or new. Errors: `Invalid` beyond the end, `ReadOnly`, `NoSpace`,
    /// `Poisoned` after a failed sync, `OwnershipLost`.
    pub async fn write(&self, offset: u64, data: Bytes, options: WriteOptions) -> Result<()> {
        let at = Extent::checked(offset, data.len() as u64).ok_or_else(overflow)?;
        self.check_range(at).await?;
        if at.is_empty() {
            return self.view().writer().map(|_| ());
        }
        let _held = self.0.hold(at).await;
        self.write_held(at, data, options).await
    }

    /// Writes what the caller holds.
    pub(crate) async fn write_held(
        &self,
        at: Extent,
        data: Bytes,
        options: WriteOptions,
    ) -> Result<()> {
        let view = self.view();
        for piece in self.pieces(&view, at) {
            let write = Write {
                offset: piece.offset(),
                data: data.slice(at.range_of(&piece)),
                guard: Guard::Edges,
                durability: options.durability(),
            };
            self.write_piece(write).await?;
        }
        Ok(())
    }

    /// One guarded write, again until it is done: the guard fails only when a unit must be filled first, and a writer that
    /// lost a race against an operation or another copy-up starts over.
    async fn write_piece(&self, write: Write) -> Result<()> {
        loop {
            let (view, missing) = match self.guarded(&write).await? {
                (_, Guarded::Done) => return Ok(()),
                (view, Guarded::Missing(missing)) => (view, missing),
                (view, Guarded::Sealed) => {
                    self.expect_successor(&view)?;
                    continue;
                }
            };
            // Boxed, so that the many writes that need no copy-up have a small future.
            let filled = Box::pin(self.fill_and_write(&view, &write, &missing)).await;
            if let Some(result) = self.settled(&view, filled).await {
                return result;
            }
        }
    }

    async fn guarded(&self, write: &Write) -> Result<(Arc<View<C>>, Guarded)> {
        let piece = write.extent();
        loop {
            let (pass, view) = self.enter().await?;
            let head = view.writer()?;
            if head.must_fill_first(piece) {
                drop(pass);
                // Whether it was filled or the image has changed is seen at the next look.
                let _ = Box::pin(self.fill_objects(&view, piece)).await?;
                continue;
            }
            let guard = if view.copies_objects() && piece.offset() < view.chain.parent_limit() {
                Guard::All
            } else {
                Guard::Edges
            };
            let guarded = head.write(Write { guard, ..write.clone() }).await?;
            return Ok((view, guarded));
        }
    }

    /// Reads what is missing from below, outside the gate; then, if the image is still what it was, fills and writes in one
    /// step.
    async fn fill_and_write(
        &self,
        view: &Arc<View<C>>,
        write: &Write,
        missing: &Missing,
    ) -> Result<Step> {
        let (parts, _budget) = self.parts_for_write(view, write.extent(), missing).await?;
        let _pass = self.0.gate.enter().await;
        if self.view().epoch != view.epoch {
            return Ok(Step::Again);
        }
        if self.0.makes(Canary::CopyUpOverwrites) {
            return overwrite(view.writer()?, parts, write).await;
        }
        let fill = Fill { parts, then: Some(write.clone()) };
        match view.writer()?.fill(fill).await? {
            Guarded::Done => Ok(Step::Done(())),
            Guarded::Missing(_) => Ok(Step::Again),
            Guarded::Sealed => self.expect_successor(view).map(|()| Step::Again),
        }
    }

    /// After `Sealed`: fine if an operation has put another head there, an error if the image was closed.
    pub(crate) fn expect_successor(&self, view: &View<C>) -> Result<()> {
        if self.view().epoch != view.epoch {
            return Ok(());
        }
        Err(Error::new(ErrorKind::OwnershipLost, format!("image {} was closed", view.record.name)))
    }
}

/// What a copy-up must not do: see [`Canary::CopyUpOverwrites`].
async fn overwrite<H: Head>(head: &H, parts: Vec<Part>, write: &Write) -> Result<Step> {
    for part in parts {
        let data = match part.content {
            Content::Data(data) => data,
            Content::Zero => vec![0; part.at.len_usize()].into(),
        };
        let _ = head.write(Write { offset: part.at.offset(), data, ..write.clone() }).await?;
    }
    let _ = head.write(write.clone()).await?;
    Ok(Step::Done(()))
}

fn overflow() -> Error {
    Error::new(ErrorKind::Invalid, "the end of the extent overflows")
}
