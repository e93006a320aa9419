//! [`OpenLayer`]: a layer as the catalog hands it out.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use vellum_core::{Buffer, Extent, Runs};
use vellum_disk::Disk;
use vellum_engine::{Known, Layer, Result, RevisionId, TryRead};

use crate::layer::LocalLayer;
use crate::lock::Lock;

/// An open layer, and the lock that keeps writers out if it is a head opened for reading. Clones share both.
#[derive(Clone, Debug)]
pub struct OpenLayer<D: Disk> {
    layer: LocalLayer<D>,
    _writers_out: Option<Arc<Lock<D::File>>>,
}

impl<D: Disk> OpenLayer<D> {
    /// A layer that nobody can change, or that its owner opened.
    pub(crate) fn new(layer: LocalLayer<D>) -> Self {
        Self { layer, _writers_out: None }
    }

    /// A head that stays as it is for as long as this lives.
    pub(crate) fn with_writers_out(layer: LocalLayer<D>, lock: Lock<D::File>) -> Self {
        Self { layer, _writers_out: Some(Arc::new(lock)) }
    }

    /// The layer as the store knows it.
    pub(crate) fn stored(&self) -> &LocalLayer<D> {
        &self.layer
    }
}

impl<D: Disk> Layer for OpenLayer<D> {
    fn revision(&self) -> &RevisionId {
        self.layer.revision()
    }

    fn size(&self) -> u64 {
        self.layer.size()
    }

    fn unit(&self) -> u64 {
        self.layer.unit()
    }

    fn states(&self, at: Extent, runs_max: usize, out: &mut Runs) -> Known {
        self.layer.states(at, runs_max, out)
    }

    fn load_states(
        &self,
        at: Extent,
        runs_max: usize,
        out: &mut Runs,
    ) -> impl Future<Output = Result<()>> + Send {
        self.layer.load_states(at, runs_max, out)
    }

    fn try_read(&self, at: Extent, buffer: &mut [u8], out: &mut Runs) -> TryRead {
        self.layer.try_read(at, buffer, out)
    }

    fn read(
        &self,
        at: Extent,
        buffer: Buffer,
        into: Range<usize>,
    ) -> impl Future<Output = (Buffer, Result<Runs>)> + Send {
        self.layer.read(at, buffer, into)
    }
}
