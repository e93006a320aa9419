//! [`Layer`]: what one revision of an image defines.

use std::future::Future;
use std::ops::Range;

use vellum_core::{Buffer, Extent, Runs};

use crate::{Result, RevisionId};

/// What one revision itself defines, and nothing of what lies below it. A handle: clones share one open revision.
///
/// Extents lie within [`size`](Self::size). States are per unit of [`unit`](Self::unit) bytes, and are reported clipped to
/// the extent asked for; the last unit of the image may be short.
pub trait Layer: Clone + Send + Sync + std::fmt::Debug + 'static {
    /// Which revision.
    fn revision(&self) -> &RevisionId;

    /// The size of the image at this revision, in bytes.
    fn size(&self) -> u64;

    /// Bytes in a unit: a power of two.
    fn unit(&self) -> u64;

    /// The states of `at` as far as they are in memory: `out` is cleared, then covers `at` from its beginning, all of it with
    /// [`Known::All`], a part with [`Known::Part`] (which may be nothing). At most `runs_max` runs. Never waits.
    fn states(&self, at: Extent, runs_max: usize, out: &mut Runs) -> Known;

    /// As [`states`](Self::states), but fetches what is not in memory: `out` covers at least the first unit of `at`, and all
    /// of it unless it has `runs_max` runs or the engine bounds the work of one call.
    fn load_states(
        &self,
        at: Extent,
        runs_max: usize,
        out: &mut Runs,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Reads without waiting and without I/O to a device: fills `buffer` (as long as `at`) where the state is data, with
    /// zeros where it is zero, leaves it alone where it is inherited, and says which is which in `out` (cleared first).
    /// The states are as of some moment during the call, the bytes not older than the states.
    fn try_read(&self, at: Extent, buffer: &mut [u8], out: &mut Runs) -> TryRead;

    /// As [`try_read`](Self::try_read), but waits. Fills `buffer[into]`; the buffer comes back whatever happened. `Corrupt` if
    /// stored bytes are missing: they are never taken for zeros.
    fn read(
        &self,
        at: Extent,
        buffer: Buffer,
        into: Range<usize>,
    ) -> impl Future<Output = (Buffer, Result<Runs>)> + Send;
}

/// How much [`Layer::states`] could say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// The runs cover all that was asked, or there are as many as were allowed.
    All,
    /// The runs end early: what follows is not in memory.
    Part,
}

/// The answer of [`Layer::try_read`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TryRead {
    /// All of the extent is answered.
    Done,
    /// It would have to wait: use [`Layer::read`]. Buffer and runs are undefined.
    WouldWait,
}
