//! Flatten: copy up everything that is inherited from the parent image, then cut the link.
//!
//! What is copied goes into the image's *lowest own* layer, so that every snapshot profits and the link can go for all of
//! them. The link is cut on the word of that layer's units alone: a last pass finds none through which the parent's data
//! shows. It may be stopped or die at any point; what was copied stays, and the next flatten goes on from there.

use std::time::Duration;

use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::time::Instant;
use vellum_core::Extent;
use vellum_engine::{
    AtomicSpan, Catalog, Error, ErrorKind, Fill, Guarded, Head, HeadChange, ImageRecord, Layer,
    Missing, ParentLink, Part, Result, Revision, RevisionId,
};

use crate::canary::Canary;
use crate::chain::{Chain, Extents, open_below};
use crate::copy_up::{merged_overlapping, split_zeros};
use crate::image::View;
use crate::job::Job;
use crate::snapshot::sync_until_little_is_left;
use crate::{Image, admin};

/// How much is looked at between two looks at the reins.
const STEP: u64 = 1 << 30;
/// How long a throttled copy waits between two looks at the reins.
const REINS: Duration = Duration::from_millis(200);
/// How much one copy moves, unless it is a whole object.
const COPY_STEP: u64 = 1 << 20;
/// How much is under way at once, unless one copy is more.
const COPIED_AT_ONCE: u64 = 64 << 20;

/// How to flatten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlattenOptions {
    /// How many copies are under way at once: of up to 1 MiB, or of an object in `copy-up` mode and where the engine changes one in
    /// a step. Fewer, where these are large: 64 MiB in all.
    pub copies: usize,
    /// At most this many bytes a second are copied; `None` and 0 for no limit.
    pub bytes_per_second: Option<u64>,
}

impl Default for FlattenOptions {
    /// Sixteen copies, no limit.
    fn default() -> Self {
        Self { copies: 16, bytes_per_second: None }
    }
}

impl<C: Catalog> Image<C> {
    /// Makes the image independent of its parent while it is in use. Reads and writes go on; a discard to the parent answers
    /// `Busy` meanwhile. An image without a parent is done at once. When it returns the link is durably gone and the
    /// parent may be removed. Errors: `Stopped` by the job's reins, `Busy` while another flatten runs.
    pub async fn flatten(&self, options: FlattenOptions, job: &Job) -> Result<ImageRecord> {
        let _flattening = self.0.re_inherit.try_write().map_err(|_| {
            Error::new(
                ErrorKind::Busy,
                "a flatten or a discard to the parent is under way on this image",
            )
        })?;
        loop {
            self.present().await?.writer()?;
            self.reload_record().await?;
            let view = self.view();
            let Some((bottom, link, _)) = view.record.parent() else {
                return Ok(view.record.clone());
            };
            let error = match self.flatten_from(&view, bottom, link, options, job).await {
                Err(error) if error.kind() == ErrorKind::NotFound => error,
                flattened => return flattened,
            };
            // A revision that lost its name and defines nothing may have been taken out meanwhile: then another one is the lowest.
            self.reload_record().await?;
            if self.view().record.parent().is_some_and(|(now, ..)| now.id == bottom.id) {
                return Err(error);
            }
        }
    }

    async fn flatten_from(
        &self,
        view: &View<C>,
        bottom: &Revision,
        link: &ParentLink,
        options: FlattenOptions,
        job: &Job,
    ) -> Result<ImageRecord> {
        let filler = tokio::sync::OnceCell::new();
        if view.record.head != bottom.id {
            // Before the first look at it: a filler that died left copies in its log alone, where they look as if there was
            // nothing to do, and would be lost behind the cut. Opening one makes them durable.
            let opened = self.0.catalog.filler(&self.0.id, &bottom.id).await?;
            filler.set(opened).expect("it was empty");
        }
        let copier = Copier {
            image: self,
            chain: self.chain_from(view, bottom).await?,
            bottom: bottom.id.clone(),
            filler,
            options,
            next_copy: Mutex::new(Instant::now()),
        };
        let copied = copier.copy_all(job).await;
        // Whatever was copied is kept, also where the rest was not.
        copied.and(copier.close().await)?;
        self.cut(link).await
    }

    /// The chain as the image's lowest own revision sees it: its overlap may reach further than the head's.
    async fn chain_from(&self, view: &View<C>, bottom: &Revision) -> Result<Chain<C::Layer>> {
        let (below, _) =
            open_below(&self.0.pools, &self.0.catalog, &view.record, &bottom.id).await?;
        // Not simply the lowest one that is open: what lost its snapshot and defines nothing may have been taken out of the
        // image since, and whoever fills one layer and looks at another never ends.
        let open = view.chain.links()[..view.chain.own()].iter().map(|link| &link.layer);
        let lowest = open.into_iter().find(|layer| *layer.revision() == bottom.id);
        let lowest = match lowest {
            Some(layer) => layer.clone(),
            None => self.0.catalog.layer(&self.0.id, &bottom.id).await?,
        };
        Ok(Chain::new(lowest, &below, 1, view.chain.cache()))
    }

    /// Looks at the catalog anew: somebody else may have taken a snapshot's name away, and with it a layer.
    async fn reload_record(&self) -> Result<()> {
        let _alone = self.alone().await?;
        self.install_record(self.0.catalog.get(&self.0.id).await?);
        Ok(())
    }

    async fn cut(&self, link: &ParentLink) -> Result<ImageRecord> {
        let alone = self.alone().await?;
        let head = self.view().writer()?.clone();
        sync_until_little_is_left(&head).await?;
        let prepared = head.prepare(HeadChange::CutParent).await?;
        let record = self.commit(alone, prepared).await?;
        // The parent's list goes last: a crash in between leaves an entry that the child denies. A snapshot that still sees the
        // parent keeps it.
        if record.parent_link().is_none() {
            admin::leave(&self.0.pools, &self.0.catalog, link, &self.0.id).await;
        }
        Ok(record)
    }
}

struct Copier<'a, C: Catalog> {
    image: &'a Image<C>,
    /// The lowest own layer, then all that lies below it.
    chain: Chain<C::Layer>,
    bottom: RevisionId,
    /// Fills the lowest own layer once it is sealed; until then the image's head does.
    filler: tokio::sync::OnceCell<C::Head>,
    options: FlattenOptions,
    /// When the next copy may begin, where there is a limit.
    next_copy: Mutex<Instant>,
}

impl<C: Catalog> Copier<'_, C> {
    /// Copies until nothing shows through any more.
    async fn copy_all(&self, job: &Job) -> Result<()> {
        job.set_total(self.chain.parent_limit());
        if self.image.0.makes(Canary::CutTooEarly) {
            return Ok(());
        }
        // The second pass finds nothing to copy unless a write that was under way during the first one failed.
        while self.pass(job).await? > 0 {}
        Ok(())
    }

    /// Copies all that shows through now. Returns how many bytes that was.
    async fn pass(&self, job: &Job) -> Result<u64> {
        let (unit, size) = (self.chain.top().unit(), self.chain.top().size());
        let view = self.image.view();
        let by_object = view.copies_objects()
            || self.image.0.catalog.capabilities().atomic == AtomicSpan::Object;
        let most = if by_object { view.record.geometry.object_size() } else { COPY_STEP }.max(unit);
        let at_once = self.options.copies.min((COPIED_AT_ONCE / most) as usize).max(1);
        let mut copied = 0;
        for step in Extent::new(0, self.chain.parent_limit()).chunks(STEP) {
            job.check()?;
            let mut units = Extents::new();
            for through in self.chain.undefined_in(0..1, step).await? {
                let data = self.chain.data_in(1..self.chain.links().len(), through).await?;
                // Layers below may have smaller units, several of which lie in one.
                units.extend(data.iter().map(|data| data.align_out(unit).clip(size)));
            }
            let reach = merged_overlapping(units).into_iter().flat_map(|at| self.image.reach(at));
            let pieces = reach.flat_map(|at| at.chunks(most)).collect();
            copied += self.copy(pieces, at_once, job).await?;
            job.set_done(step.end());
        }
        Ok(copied)
    }

    async fn copy(&self, pieces: Vec<Extent>, at_once: usize, job: &Job) -> Result<u64> {
        let mut copies =
            stream::iter(pieces).map(|piece| self.copy_piece(piece, job)).buffer_unordered(at_once);
        let mut copied = 0;
        while let Some(done) = copies.next().await {
            copied += done?;
            job.check()?;
        }
        Ok(copied)
    }

    async fn copy_piece(&self, units: Extent, job: &Job) -> Result<u64> {
        let mut parts = self.content_of(units, job).await?;
        let mut copied = units.length();
        // More, where an object would hide what else is seen through it.
        while let Some(beside) = self.fill(&parts).await? {
            for units in beside {
                parts.extend(self.content_of(units, job).await?);
                copied += units.length();
            }
            parts.sort_by_key(|part| part.at.offset());
        }
        Ok(copied)
    }

    async fn content_of(&self, units: Extent, job: &Job) -> Result<Vec<Part>> {
        self.throttle(units.length(), job).await?;
        let content = self.image.read_below(&self.chain, units).await?.freeze();
        let mut parts = Vec::new();
        split_zeros(units, content, self.chain.top().unit(), &mut parts);
        Ok(parts)
    }

    /// Fills the lowest own layer: through the head while it is the head, else through a filler. Answers what must be filled with it.
    async fn fill(&self, parts: &[Part]) -> Result<Option<Missing>> {
        loop {
            let fill = Fill { parts: parts.to_vec(), then: None };
            let pass = self.image.0.gate.enter().await;
            let view = self.image.view();
            let guarded = if view.record.head == self.bottom {
                view.writer()?.fill(fill).await?
            } else {
                drop(pass);
                self.filler().await?.fill(fill).await?
            };
            match guarded {
                Guarded::Done => return Ok(None),
                Guarded::Missing(missing) => return Ok(Some(missing)),
                // A snapshot was taken: the head that was the lowest own layer has become a sealed one.
                Guarded::Sealed if self.image.view().record.head != self.bottom => {}
                Guarded::Sealed => {
                    return Err(Error::new(ErrorKind::OwnershipLost, "the image was closed"));
                }
            }
        }
    }

    async fn filler(&self) -> Result<&C::Head> {
        let shared = &self.image.0;
        self.filler.get_or_try_init(|| shared.catalog.filler(&shared.id, &self.bottom)).await
    }

    /// Makes what was copied durable, and lets others fill the layer.
    async fn close(self) -> Result<()> {
        match self.filler.into_inner() {
            Some(filler) => filler.close().await,
            None => self.image.sync().await,
        }
    }

    /// Waits until copying `length` bytes more keeps within the limit. Time in which nothing was copied is not made up for.
    async fn throttle(&self, length: u64, job: &Job) -> Result<()> {
        let Some(limit) = self.options.bytes_per_second.filter(|limit| *limit > 0) else {
            return Ok(());
        };
        let turn = {
            let mut next = self.next_copy.lock();
            let turn = (*next).max(Instant::now());
            *next = turn + Duration::from_secs_f64(length as f64 / limit as f64);
            turn
        };
        while Instant::now() < turn {
            job.check()?;
            tokio::time::sleep_until(turn.min(Instant::now() + REINS)).await;
        }
        Ok(())
    }
}
