//! [`MemoryLayer`]: a revision that is open.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use vellum_core::{Buffer, Extent, Runs};

use super::content::{Content, Units};
use super::owners::Lock;
use crate::{Error, ErrorKind, Known, Layer, Result, RevisionId, TryRead};

/// What the store holds of a revision.
#[derive(Debug)]
pub(crate) struct Stored {
    revision: RevisionId,
    units: Units,
    /// As it is now, and as it would be after a power cut.
    versions: Mutex<Versions>,
}

#[derive(Debug, Default)]
pub(crate) struct Versions {
    pub now: Arc<Content>,
    synced: Arc<Content>,
    pub unsynced_bytes: u64,
}

impl Versions {
    /// The content, to be changed.
    pub fn change(&mut self) -> &mut Content {
        Arc::make_mut(&mut self.now)
    }

    pub fn sync(&mut self) {
        self.synced = self.now.clone();
        self.unsynced_bytes = 0;
    }

    pub fn forget_unsynced(&mut self) {
        self.now = self.synced.clone();
        self.unsynced_bytes = 0;
    }
}

impl Stored {
    /// A revision that defines nothing yet.
    pub fn empty(revision: RevisionId, units: Units) -> Arc<Self> {
        Arc::new(Self { revision, units, versions: Mutex::default() })
    }

    pub fn units(&self) -> Units {
        self.units
    }

    pub fn lock(&self) -> MutexGuard<'_, Versions> {
        self.versions.lock()
    }
}

/// An open revision of the memory engine. Clones share it, and what keeps writers out of it if it is a head that was
/// opened for reading.
#[derive(Clone, Debug)]
pub struct MemoryLayer {
    stored: Arc<Stored>,
    _writers_out: Option<Arc<Lock>>,
}

impl MemoryLayer {
    pub(crate) fn new(stored: Arc<Stored>, writers_out: Option<Lock>) -> Self {
        Self { stored, _writers_out: writers_out.map(Arc::new) }
    }

    pub(crate) fn stored(&self) -> &Arc<Stored> {
        &self.stored
    }

    /// The content as of now, whatever is written from now on.
    fn content(&self) -> Arc<Content> {
        self.stored.lock().now.clone()
    }
}

impl Layer for MemoryLayer {
    fn revision(&self) -> &RevisionId {
        &self.stored.revision
    }

    fn size(&self) -> u64 {
        self.stored.units.size
    }

    fn unit(&self) -> u64 {
        self.stored.units.unit
    }

    fn states(&self, at: Extent, runs_max: usize, out: &mut Runs) -> Known {
        out.clear();
        self.content().states(at, runs_max, out);
        Known::All
    }

    async fn load_states(&self, at: Extent, runs_max: usize, out: &mut Runs) -> Result<()> {
        self.states(at, runs_max, out);
        Ok(())
    }

    fn try_read(&self, at: Extent, buffer: &mut [u8], out: &mut Runs) -> TryRead {
        *out = self.content().read(self.stored.units, at, buffer);
        TryRead::Done
    }

    async fn read(
        &self,
        at: Extent,
        mut buffer: Buffer,
        into: Range<usize>,
    ) -> (Buffer, Result<Runs>) {
        if at.end() > self.size() {
            let what = format!("{at} reaches beyond the end of the image at {}", self.size());
            return (buffer, Err(Error::new(ErrorKind::Invalid, what)));
        }
        let runs = self.content().read(self.stored.units, at, &mut buffer[into]);
        (buffer, Ok(runs))
    }
}
