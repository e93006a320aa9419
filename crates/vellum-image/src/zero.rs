//! Write zeroes and discard.
//!
//! Writing zeroes must make every byte read as zero, and hides what lies below. A discard is a hint: what it covers only in
//! part is left alone, and nothing is ever copied up for it, unless snapshots share the object and would lose what they see.

use std::collections::HashMap;
use std::sync::Arc;

use vellum_core::{Extent, Geometry, State, ZEROS_MAX, zeros_for};
use vellum_engine::{
    Catalog, Durability, Error, ErrorKind, Guarded, Head, Result, RunToEnd, SetTo,
};

use crate::Image;
use crate::canary::Canary;
use crate::chain::{Extents, merged};
use crate::copy_up::{merged_overlapping, subtract, whole_units};
use crate::image::View;
use crate::steps::Step;
use crate::write::WriteOptions;

/// How many pieces of an image are looked at in one step, so that a request for a petabyte neither collects without bound nor
/// stands in the way of an operation. Whole units of any size are far fewer pieces.
const PIECES_MAX: usize = 1 << 14;
/// How much is looked at in one step where a piece cannot be more than a unit: so many units.
const UNITS_MAX: u64 = 1 << 16;
/// How many bytes of zeros or of a parent's content are written in one step.
const WRITE_STEP: u64 = ZEROS_MAX as u64;

/// How to write zeroes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ZeroOptions {
    /// Whether the space must be allocated, so that a later write there cannot fail for lack of it.
    pub no_hole: bool,
    /// Whether to refuse (`Unsupported`), with nothing changed, rather than be slow: where units would have to be copied up or
    /// written out.
    pub fast: bool,
    /// Whether the zeros survive power loss when they are acknowledged.
    pub durable: bool,
}

/// What a discarded unit reads as.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DiscardPolicy {
    /// Zeros.
    #[default]
    Zero,
    /// What the parent image holds; zeros without a parent.
    Inherit,
}

impl<C: Catalog> Image<C> {
    /// Makes an extent read as zeros. Space is freed unless `no_hole`. Durability and errors are those of
    /// [`write`](Self::write).
    pub async fn write_zeroes(&self, at: Extent, options: ZeroOptions) -> Result<()> {
        let at = self.check_range(at).await?;
        if options.no_hole && options.fast {
            return Err(slow("zeros that must be allocated are written out"));
        }
        let held = self.0.hold(at).await;
        if options.no_hole {
            self.write_zero_bytes(at).await?;
        } else {
            let view = self.view();
            view.writer()?;
            if options.fast {
                self.on_a_view(|view| async move { self.refuse_what_is_slow(&view, at).await })
                    .await?;
            }
            for piece in zero_pieces(&view, at) {
                self.on_a_view(|view| async move { self.zero_piece(&view, piece).await }).await?;
            }
        }
        drop(held);
        if options.durable { self.sync().await } else { Ok(()) }
    }

    /// Tells that the content of an extent is not needed. Whole units read as the policy says afterwards; units that are covered in
    /// part are left alone. In `copy-up` mode so are objects that are covered in part: those that are inherited, and with
    /// [`DiscardPolicy::Inherit`] all of them. With that policy: `Unsupported` where the engine cannot, `Busy` while the image is being flattened.
    pub async fn discard(&self, at: Extent, policy: DiscardPolicy, durable: bool) -> Result<()> {
        let at = self.check_range(at).await?;
        self.view().writer()?;
        match policy {
            DiscardPolicy::Zero => {
                let _held = self.0.hold(at).await;
                self.discard_to_zero(at).await?;
            }
            DiscardPolicy::Inherit => self.discard_to_parent(at).await?,
        }
        if durable { self.sync().await } else { Ok(()) }
    }

    async fn write_zero_bytes(&self, at: Extent) -> Result<()> {
        for piece in at.chunks(WRITE_STEP) {
            let zeros = zeros_for(piece.offset(), piece.len_usize());
            self.write_held(piece, zeros, WriteOptions::default()).await?;
        }
        Ok(())
    }

    /// Fails, with nothing changed, if writing zeroes would have to copy something up.
    async fn refuse_what_is_slow(&self, view: &View<C>, at: Extent) -> Result<Step> {
        let head = view.writer()?;
        for piece in zero_pieces(view, at) {
            let filled_first = self.reach(piece.at).any(|at| head.must_fill_first(at));
            if filled_first || self.copies_up_first(view, piece).await? {
                return Err(slow("a part of an inherited object would have to be copied up"));
            }
            for edge in subtract(piece.at, whole_units(piece.at, view.size(), view.block())) {
                let inherited = view.chain.undefined_in(0..1, edge).await?;
                let all = 0..view.chain.links().len();
                if !inherited.is_empty() && !view.chain.data_in(all, edge).await?.is_empty() {
                    return Err(slow("a part of an inherited unit would have to be copied up"));
                }
            }
        }
        Ok(Step::Done(()))
    }

    /// Whether objects must be copied up before this piece of them is zeroed, since the rest still shows the parent image.
    async fn copies_up_first(&self, view: &View<C>, piece: ZeroPiece) -> Result<bool> {
        Ok(!self.shown_beside(view, piece).await?.is_empty())
    }

    /// The units under a piece that covers its objects in part, through which the parent image's data shows.
    async fn shown_beside(&self, view: &View<C>, piece: ZeroPiece) -> Result<Extents> {
        if !view.copies_objects() || piece.covers_its_objects {
            return Ok(Extents::new());
        }
        self.parent_data_under(view, piece.at).await
    }

    async fn zero_piece(&self, view: &Arc<View<C>>, piece: ZeroPiece) -> Result<Step> {
        let at = piece.at;
        if self.copies_up_first(view, piece).await?
            && self.fill_objects(view, at).await? == Step::Again
        {
            return Ok(Step::Again);
        }
        let whole = whole_units(at, view.size(), view.block());
        for edge in subtract(at, whole) {
            self.zero_edge(view, edge).await?;
        }
        self.zero_units(whole).await.map(Step::Done)
    }

    /// Zeroes a part of a unit, unless the unit reads as zeros anyway.
    async fn zero_edge(&self, view: &Arc<View<C>>, edge: Extent) -> Result<()> {
        let all = 0..view.chain.links().len();
        if view.chain.data_in(all, edge).await?.is_empty() {
            return Ok(());
        }
        self.write_zero_bytes(edge).await
    }

    /// Sets whole units to zero: those that hold data, and those that something below would show through.
    async fn zero_units(&self, whole: Extent) -> Result<()> {
        let mut rest = whole;
        while !rest.is_empty() {
            tokio::task::yield_now().await;
            let view = self.present().await?;
            let survey = view.chain.survey(rest, PIECES_MAX).await?;
            let reaches_end = survey.end == rest.end();
            // Pieces may end within a unit, where layers below have smaller ones.
            let end =
                if reaches_end { survey.end } else { survey.end / view.block() * view.block() };
            // What the head says is zero may be the doing of a request that was dropped, and not have landed yet: setting it
            // again waits for that, and costs nothing else.
            let to_set = survey.pieces.iter().filter(|found| {
                found.state == State::Data || (found.state == State::Zero && found.link == Some(0))
            });
            let units = to_set.map(|found| found.at.align_out(view.block()).clip(end));
            let units = merged_overlapping(units.filter(|unit| !unit.is_empty()).collect());
            if self.set_in(&view, &units, SetTo::Zero).await? == Step::Done(()) {
                rest = rest.split(end).1;
            }
        }
        Ok(())
    }

    /// Sets units for as long as the image has this view; `Again` if an operation has changed it: plan again.
    async fn set_in(&self, view: &Arc<View<C>>, units: &[Extent], to: SetTo) -> Result<Step> {
        // Also where there is nothing to set: it may have been somebody else's meanwhile.
        if self.view().epoch != view.epoch {
            return Ok(Step::Again);
        }
        for extent in units.iter().flat_map(|extent| self.reach(*extent)) {
            loop {
                let pass = self.0.gate.enter().await;
                if self.view().epoch != view.epoch {
                    return Ok(Step::Again);
                }
                let head = view.writer()?;
                if head.must_fill_first(extent) {
                    drop(pass);
                    // Whether it was filled or the image has changed is seen at the next look.
                    let _ = Box::pin(self.fill_objects(view, extent)).await?;
                    continue;
                }
                match head.set(extent, to, Durability::AtSync).await? {
                    Guarded::Done | Guarded::Missing(_) => break,
                    Guarded::Sealed => {
                        self.expect_successor(view)?;
                        return Ok(Step::Again);
                    }
                }
            }
        }
        Ok(Step::Done(()))
    }

    async fn discard_to_zero(&self, at: Extent) -> Result<()> {
        for piece in zero_pieces(&self.view(), at) {
            self.on_a_view(|view| async move { self.discard_piece(&view, piece).await }).await?;
        }
        Ok(())
    }

    /// Zeroes the whole units of a piece, but for those that the parent image shows beside others of their objects.
    async fn discard_piece(&self, view: &View<C>, piece: ZeroPiece) -> Result<Step> {
        let mut rest = whole_units(piece.at, view.size(), view.block());
        for inherited in self.shown_beside(view, piece).await? {
            self.zero_units(rest.clip(inherited.offset())).await?;
            rest = rest.split(inherited.end()).1;
        }
        self.zero_units(rest).await.map(Step::Done)
    }

    /// The units under `piece` through which the parent image's data shows.
    async fn parent_data_under(&self, view: &View<C>, piece: Extent) -> Result<Extents> {
        let own = view.chain.own();
        let mut units = Extents::new();
        for through in view.chain.undefined_in(0..own, piece).await? {
            for data in view.chain.data_in(own..view.chain.links().len(), through).await? {
                units.push(data.align_out(view.block()).clip(view.size()));
            }
        }
        Ok(merged(units))
    }

    async fn discard_to_parent(&self, at: Extent) -> Result<()> {
        let capabilities = self.0.catalog.capabilities();
        if !capabilities.inherit {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the {} engine cannot let the parent show through again",
                    capabilities.engine
                ),
            ));
        }
        let _not_flattening = match self.0.re_inherit.try_read() {
            Ok(not_flattening) => Some(not_flattening),
            Err(_) if self.0.makes(Canary::GiveBackBesideFlatten) => None,
            Err(_) => {
                let what = "the image is being flattened; stop that, or discard to zero";
                return Err(Error::new(ErrorKind::Busy, what));
            }
        };
        let held = self.0.hold(at).await;
        for piece in zero_pieces(&self.view(), at) {
            let view = self.view();
            if view.copies_objects() && !piece.covers_its_objects {
                continue;
            }
            let whole = whole_units(piece.at, view.size(), view.block());
            for step in whole.chunks(UNITS_MAX * view.block()) {
                tokio::task::yield_now().await;
                self.on_a_view(|view| async move { self.inherit_units(&view, step).await }).await?;
            }
        }
        drop(held);
        self.reclaim().await
    }

    /// Lets the parent image show through whole units. Where an older revision of the image itself defines a unit, falling
    /// through would show that one: there the parent's content is copied. Which revisions are older must not change meanwhile.
    async fn inherit_units(&self, view: &Arc<View<C>>, step: Extent) -> Result<Step> {
        let own = view.chain.own();
        let free = view.chain.undefined_in(1..own, step).await?;
        let mut covered = step;
        for extent in &free {
            self.copy_from_parent(view, covered.clip(extent.offset())).await?;
            covered = covered.split(extent.end()).1;
            // All of it, also what is inherited by now: that may be the doing of a request that was dropped, and not have
            // landed yet.
            if self.set_in(view, &[*extent], SetTo::Inherit).await? == Step::Again {
                return Ok(Step::Again);
            }
        }
        self.copy_from_parent(view, covered).await?;
        Ok(Step::Done(()))
    }

    async fn copy_from_parent(&self, view: &Arc<View<C>>, at: Extent) -> Result<()> {
        let parent = view.chain.own()..view.chain.links().len();
        for piece in at.chunks(WRITE_STEP) {
            if view.chain.data_in(parent.clone(), piece).await?.is_empty() {
                self.zero_units(piece).await?;
            } else {
                let content = self.read_links(&view.chain, parent.clone(), piece).await?.freeze();
                self.write_held(piece, content, WriteOptions::default()).await?;
            }
        }
        Ok(())
    }

    /// Frees the space of units that are inherited again, with the gate closed: no read is on its way to it then.
    async fn reclaim(&self) -> Result<()> {
        let alone = self.alone().await?;
        let Some(head) = self.view().head.clone().filter(Head::wants_reclaim) else {
            return Ok(());
        };
        head.sync().await?;
        let shared = self.0.clone();
        RunToEnd::new(async move {
            let _closed = shared.close_gate().await;
            let freed = head.reclaim().await;
            drop(alone);
            freed.map(|_| ())
        })
        .await
    }
}

/// A piece of a request that one rule applies to.
#[derive(Clone, Copy, Debug)]
struct ZeroPiece {
    at: Extent,
    /// Whether the request covers all of the objects that the piece lies in.
    covers_its_objects: bool,
}

/// The pieces of a request: all of it, but in `copy-up` mode, where an object may be covered in part, the pieces of the objects
/// at both ends. Whole object sets in between need no look at each object.
fn zero_pieces<C: Catalog>(
    view: &View<C>,
    at: Extent,
) -> impl Iterator<Item = ZeroPiece> + Send + use<C> {
    let (geometry, size) = (view.record.geometry, view.size());
    let sets = if view.copies_objects() {
        let set = geometry.object_set_size();
        let start = at.offset().next_multiple_of(set).min(at.end());
        Extent::between(start, (at.end() / set * set).max(start))
    } else {
        at
    };
    let (first, rest) = at.split(sets.offset());
    let last = rest.split(sets.end()).1;
    let whole = (!sets.is_empty()).then_some(ZeroPiece { at: sets, covers_its_objects: true });
    edge_pieces(geometry, size, first, at).chain(whole).chain(edge_pieces(geometry, size, last, at))
}

/// The pieces of the objects under one end of a request, which is less than an object set. Each object is looked at once.
fn edge_pieces(
    geometry: Geometry,
    size: u64,
    edge: Extent,
    request: Extent,
) -> impl Iterator<Item = ZeroPiece> + Send {
    let mut known = HashMap::new();
    geometry.objects(edge).map(move |piece| {
        let covers_its_objects = *known.entry(piece.object).or_insert_with(|| {
            geometry.object_image_extents(piece.object, size).all(|part| request.contains(&part))
        });
        ZeroPiece { at: piece.image, covers_its_objects }
    })
}

fn slow(why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("cannot be done fast: {why}"))
}
