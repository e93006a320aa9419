//! Reading: what a layer does not define is read from the layer below, and zeros below the last.

use std::ops::Range;

use bytes::Bytes;
use vellum_core::{Buffer, Extent, Runs, State};
use vellum_engine::{Catalog, Layer, Result, TryRead};

use crate::Image;
use crate::chain::{Chain, Extents, merged};
use crate::gate::Pass;
use crate::image::View;
use crate::resolved::Resolved;
use crate::steps::Step;

/// A piece of what was read.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Which bytes of the image.
    pub at: Extent,
    /// What they hold; `None` where some layer's states say zeros, or nothing defines them.
    pub data: Option<Bytes>,
}

impl<C: Catalog> Image<C> {
    /// Reads without waiting: fills `buffer`, as long as `at`, and says in `holes` (cleared first) which parts are known to be
    /// zeros. `false` if it would have to wait, or if `at` is not inside the image: then [`read`](Self::read) says so.
    pub fn try_read(&self, at: Extent, buffer: &mut [u8], holes: &mut Extents) -> bool {
        holes.clear();
        let Some(_pass) = self.0.gate.try_enter() else { return false };
        let view = self.0.view.load();
        !view.is_away && at.end() <= view.size() && try_read_chain(&view.chain, at, buffer, holes)
    }

    /// Reads into `buffer[into]`, as long as `at`, and says which parts are known to be zeros (they are filled too). The
    /// buffer comes back whatever happened. `Invalid` if `at` reaches beyond the image.
    pub async fn read(
        &self,
        at: Extent,
        buffer: Buffer,
        into: Range<usize>,
    ) -> (Buffer, Result<Extents>) {
        if let Err(error) = self.check_range(at).await {
            return (buffer, Err(error));
        }
        let mut buffer = buffer;
        loop {
            let (pass, view) = match self.enter().await {
                Ok(entered) => entered,
                Err(error) => return (buffer, Err(error)),
            };
            let result;
            (buffer, result) = self.read_once(pass, &view, at, buffer, into.clone()).await;
            if let Some(result) = self.settled(&view, result.map(Step::Done)).await {
                return (buffer, result);
            }
        }
    }

    async fn read_once(
        &self,
        pass: Pass<'_>,
        view: &View<C>,
        at: Extent,
        buffer: Buffer,
        into: Range<usize>,
    ) -> (Buffer, Result<Extents>) {
        let mut reading = Reading::new(at, buffer, into);
        // The image's own layers are read inside the gate, since the head's freed space is reclaimed with the gate closed;
        // a parent may be slow, and is frozen: it is read outside.
        let own = view.chain.own();
        let mut result = reading.layers(&view.chain, 0..own).await;
        drop(pass);
        if let Some(resolved) = view.chain.resolved()
            && result.is_ok()
            && !reading.pending.is_empty()
        {
            result = resolved.load(&view.chain, at).await;
        }
        reading.finish(result, &view.chain, own..view.chain.links().len()).await
    }

    /// Reads as pieces of data and of zeros, in ascending order; zeros take no memory.
    pub async fn read_pieces(&self, at: Extent) -> Result<Vec<Piece>> {
        let buffer = self.0.buffers.take(at.len_usize());
        let (buffer, holes) = self.read(at, buffer, 0..at.len_usize()).await;
        let holes = holes?;
        let bytes = buffer.freeze();
        let mut pieces = Vec::with_capacity(2 * holes.len() + 1);
        let mut rest = at;
        for hole in holes {
            let (data, after) = rest.split(hole.offset());
            if !data.is_empty() {
                pieces.push(Piece { at: data, data: Some(bytes.slice(at.range_of(&data))) });
            }
            pieces.push(Piece { at: hole, data: None });
            rest = after.split(hole.end()).1;
        }
        if !rest.is_empty() {
            pieces.push(Piece { at: rest, data: Some(bytes.slice(at.range_of(&rest))) });
        }
        Ok(pieces)
    }

    /// Reads what lies below the top of a chain, outside the gate.
    pub(crate) async fn read_below(&self, chain: &Chain<C::Layer>, at: Extent) -> Result<Buffer> {
        self.read_links(chain, 1..chain.links().len(), at).await
    }

    /// Reads what these layers of the chain show together, outside the gate: they are frozen.
    pub(crate) async fn read_links(
        &self,
        chain: &Chain<C::Layer>,
        links: Range<usize>,
        at: Extent,
    ) -> Result<Buffer> {
        let buffer = self.0.buffers.take(at.len_usize());
        let reading = Reading::new(at, buffer, 0..at.len_usize());
        let (buffer, result) = reading.finish(Ok(()), chain, links).await;
        result.map(|_| buffer)
    }
}

fn try_read_chain<L: Layer>(
    chain: &Chain<L>,
    at: Extent,
    buffer: &mut [u8],
    holes: &mut Extents,
) -> bool {
    let mut pending: Extents = Extents::from_slice(&[at]);
    let mut runs = Runs::new();
    for (depth, link) in chain.links().iter().enumerate() {
        if depth == 1
            && let Some(resolved) = chain.resolved()
        {
            return try_read_resolved(chain, resolved, at, &pending, buffer, holes);
        }
        let mut next = Extents::new();
        for extent in pending {
            let (inside, past) = extent.split(link.limit);
            if !past.is_empty() {
                buffer[at.range_of(&past)].fill(0);
                holes.push(past);
            }
            if inside.is_empty() {
                continue;
            }
            let part = &mut buffer[at.range_of(&inside)];
            if link.layer.try_read(inside, part, &mut runs) == TryRead::WouldWait {
                return false;
            }
            sort_runs(&runs, &mut next, holes);
        }
        pending = next;
        if pending.is_empty() {
            break;
        }
    }
    for extent in pending {
        buffer[at.range_of(&extent)].fill(0);
        holes.push(extent);
    }
    tidy(holes);
    true
}

/// Reads what the first layer does not define straight from the layers that hold it.
fn try_read_resolved<L: Layer>(
    chain: &Chain<L>,
    resolved: &Resolved,
    at: Extent,
    pending: &[Extent],
    buffer: &mut [u8],
    holes: &mut Extents,
) -> bool {
    let mut runs = Runs::new();
    let read = pending.iter().all(|extent| {
        resolved.visit(*extent, |piece, holder| {
            let (inside, past) = match holder {
                Some(holder) => piece.split(chain.links()[holder].limit),
                None => piece.split(piece.offset()),
            };
            if !past.is_empty() {
                buffer[at.range_of(&past)].fill(0);
                holes.push(past);
            }
            let Some(holder) = holder.filter(|_| !inside.is_empty()) else { return true };
            let part = &mut buffer[at.range_of(&inside)];
            chain.links()[holder].layer.try_read(inside, part, &mut runs) == TryRead::Done
                && runs.all(State::Data)
        })
    });
    tidy(holes);
    read
}

fn tidy(holes: &mut Extents) {
    if holes.len() > 1 {
        *holes = merged(std::mem::take(holes));
    }
}

fn sort_runs(runs: &Runs, inherited: &mut Extents, zero: &mut Extents) {
    for run in runs {
        match run.state {
            State::Data => {}
            State::Zero => zero.push(run.extent),
            State::Inherited => inherited.push(run.extent),
        }
    }
}

/// A read on its way down a chain.
struct Reading {
    at: Extent,
    /// Where `at` lies in the buffer.
    start: usize,
    /// Taken while a layer fills it.
    buffer: Option<Buffer>,
    pending: Extents,
    holes: Extents,
}

impl Reading {
    fn new(at: Extent, buffer: Buffer, into: Range<usize>) -> Self {
        assert_eq!(into.len(), at.len_usize(), "the buffer's range is as long as the extent");
        Self {
            at,
            start: into.start,
            buffer: Some(buffer),
            pending: Extents::from_slice(&[at]),
            holes: Extents::new(),
        }
    }

    fn range_of(&self, extent: &Extent) -> Range<usize> {
        let range = self.at.range_of(extent);
        self.start + range.start..self.start + range.end
    }

    fn zero(&mut self, extent: Extent) {
        let range = self.range_of(&extent);
        self.buffer.as_mut().expect("no layer has the buffer now")[range].fill(0);
        self.holes.push(extent);
    }

    /// Lets these layers fill what is still pending.
    async fn layers<L: Layer>(&mut self, chain: &Chain<L>, links: Range<usize>) -> Result<()> {
        for link in &chain.links()[links] {
            let mut next = Extents::new();
            for extent in std::mem::take(&mut self.pending) {
                let (inside, past) = extent.split(link.limit);
                if !past.is_empty() {
                    self.zero(past);
                }
                if inside.is_empty() {
                    continue;
                }
                let buffer = self.buffer.take().expect("no other layer has the buffer");
                let (buffer, runs) = link.layer.read(inside, buffer, self.range_of(&inside)).await;
                self.buffer = Some(buffer);
                sort_runs(&runs?, &mut next, &mut self.holes);
            }
            self.pending = next;
            if self.pending.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Goes on with these layers if all is well so far, and ends the read.
    async fn finish<L: Layer>(
        mut self,
        so_far: Result<()>,
        chain: &Chain<L>,
        links: Range<usize>,
    ) -> (Buffer, Result<Extents>) {
        let mut result = so_far;
        if result.is_ok() && !self.pending.is_empty() {
            result = self.layers(chain, links).await;
        }
        if result.is_ok() {
            for extent in std::mem::take(&mut self.pending) {
                self.zero(extent);
            }
        }
        let holes = std::mem::take(&mut self.holes);
        (self.into_buffer(), result.map(|()| merged(holes)))
    }

    fn into_buffer(self) -> Buffer {
        self.buffer.expect("the last layer gave the buffer back")
    }
}
