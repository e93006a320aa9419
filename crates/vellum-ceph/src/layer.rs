//! [`CephLayer`]: the head of an image, or one of its snapshots, that is open.

use std::ops::Range;
use std::sync::Arc;

use futures::future::try_join_all;
use futures::stream::{FuturesOrdered, StreamExt};
use vellum_core::{Buffer, Extent, Runs, State};
use vellum_engine::{Error, ErrorKind, ImageId, Known, Layer, Result, RevisionId, TryRead};
use vellum_rados::Objects;

use crate::data::Data;
use crate::ownership;
use crate::watched::Watched;

/// Objects whose states are fetched at once, and pieces that are read at once.
const AT_ONCE: usize = 64;

/// An open revision. Clones share it.
#[derive(Clone, Debug)]
pub struct CephLayer<O: Objects>(Arc<Open<O>>);

#[derive(Debug)]
struct Open<O: Objects> {
    revision: RevisionId,
    data: Arc<Data<O>>,
    image: Arc<Watched<O>>,
    /// Keeps writers out, if this is a head that is only read.
    _reads_head: Option<ReadsHead<O>>,
}

impl<O: Objects> Open<O> {
    /// `NotFound` once what it is of was removed: what is missing then says nothing.
    fn check_there(&self) -> Result<()> {
        self.image.check_there(self.data.snapshot())
    }

    /// The same, after something was found to be missing.
    async fn make_sure(&self) -> Result<()> {
        self.image.make_sure(self.data.snapshot()).await
    }
}

impl<O: Objects> CephLayer<O> {
    pub(crate) fn new(
        revision: RevisionId,
        data: Arc<Data<O>>,
        image: Arc<Watched<O>>,
        reads_head: Option<ReadsHead<O>>,
    ) -> Self {
        Self(Arc::new(Open { revision, data, image, _reads_head: reads_head }))
    }

    pub(crate) fn data(&self) -> &Arc<Data<O>> {
        &self.0.data
    }

    pub(crate) fn image(&self) -> &Arc<Watched<O>> {
        &self.0.image
    }

    fn check_range(&self, at: Extent) -> Result<()> {
        if at.end() > self.size() {
            let what = format!("{at} reaches beyond the end of the image at {}", self.size());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok(())
    }

    async fn read_pieces(&self, at: Extent, buffer: &mut [u8]) -> Result<Runs> {
        let data = &self.0.data;
        let pieces: Vec<Extent> =
            data.place().geometry().objects(at).map(|piece| piece.image).collect();
        let mut runs = Runs::new();
        for pieces in pieces.chunks(AT_ONCE) {
            let reads = pieces.iter().map(|piece| async {
                let scratch = Buffer::from_vec(vec![0; piece.len_usize()]);
                let all = 0..piece.len_usize();
                let is_there = || self.0.check_there();
                (*piece, data.read_piece(*piece, scratch, all, is_there).await)
            });
            let mut reads: FuturesOrdered<_> = reads.collect();
            while let Some((piece, (scratch, found))) = reads.next().await {
                for run in &found? {
                    let (into, from) = (at.range_of(&run.extent), piece.range_of(&run.extent));
                    if run.state != State::Inherited {
                        buffer[into].copy_from_slice(&scratch[from]);
                    }
                    runs.push(run.extent, run.state);
                }
            }
        }
        Ok(runs)
    }
}

impl<O: Objects> Layer for CephLayer<O> {
    fn revision(&self) -> &RevisionId {
        &self.0.revision
    }

    fn size(&self) -> u64 {
        self.0.data.place().size()
    }

    fn unit(&self) -> u64 {
        self.0.data.place().unit()
    }

    fn states(&self, at: Extent, runs_max: usize, out: &mut Runs) -> Known {
        self.0.data.states(at, runs_max, out)
    }

    async fn load_states(&self, at: Extent, runs_max: usize, out: &mut Runs) -> Result<()> {
        let (data, mut asked) = (&self.0.data, 0);
        while data.states(at, runs_max, out) == Known::Part {
            // One call does not ask for all objects of a large image.
            if asked >= AT_ONCE && !out.is_empty() {
                break;
            }
            let rest = out.last().map_or(at, |last| at.split(last.extent.end()).1);
            let unknown = data.unknown_in(rest, AT_ONCE);
            try_join_all(unknown.iter().map(|object| data.states_of(*object))).await?;
            self.0.make_sure().await?;
            asked += unknown.len();
        }
        Ok(())
    }

    fn try_read(&self, at: Extent, _buffer: &mut [u8], out: &mut Runs) -> TryRead {
        // What is data, or may be, comes over a network.
        match self.states(at, usize::MAX, out) {
            Known::All
                if out.all(State::Inherited)
                    && self.0.image.hears()
                    && self.0.check_there().is_ok() =>
            {
                TryRead::Done
            }
            _ => TryRead::WouldWait,
        }
    }

    async fn read(
        &self,
        at: Extent,
        mut buffer: Buffer,
        into: Range<usize>,
    ) -> (Buffer, Result<Runs>) {
        if let Err(error) = self.check_range(at) {
            return (buffer, Err(error));
        }
        let data = &self.0.data;
        let found = match data.place().object_of(at) {
            Some(_) => {
                let found;
                (buffer, found) = data.read_piece(at, buffer, into, || self.0.check_there()).await;
                found
            }
            None => self.read_pieces(at, &mut buffer[into]).await,
        };
        let is_there = self.0.make_sure().await;
        (buffer, found.and_then(|runs| is_there.map(|()| runs)))
    }
}

/// That somebody reads the head of an image.
#[derive(Debug)]
pub(crate) struct ReadsHead<O: Objects> {
    objects: O,
    image: Arc<Watched<O>>,
    id: ImageId,
}

impl<O: Objects> ReadsHead<O> {
    pub(crate) fn new(objects: O, image: Arc<Watched<O>>, id: ImageId) -> Self {
        image.begin_reading();
        Self { objects, image, id }
    }
}

impl<O: Objects> Drop for ReadsHead<O> {
    fn drop(&mut self) {
        self.image.end_reading();
        let (objects, image, id) = (self.objects.clone(), self.image.clone(), self.id.clone());
        // Where nobody says it any more, whoever writes next finds that nobody answers.
        let background = self.image.background().clone();
        background.spawn(async move { ownership::end_reading(&objects, &image, &id).await });
    }
}
