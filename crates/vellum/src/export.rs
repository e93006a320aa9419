//! [`ImageExport`]: an image as one NBD connection uses it.

use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use vellum_core::Extent;
use vellum_engine::{Error, ErrorKind};
use vellum_image::{DiscardPolicy, MappedKind, WriteOptions, ZeroOptions};
use vellum_nbd::proto::meta::{STATE_HOLE, STATE_ZERO};
use vellum_nbd::{Context, Errno, Export, ExportInfo, NbdError, ReadPiece, Status, ZeroFlags};

use crate::Image;
use crate::holding::User;

/// Holes of this size are worth being sent as holes; smaller ones are sent as the zeros they are, without a detour.
const HOLE_MIN: u64 = 32 << 10;
/// How much one `NBD_CMD_CACHE` brings closer at most.
const CACHE_MAX: u64 = 64 << 20;
const CACHE_STEP: u64 = 1 << 20;

/// An image, or a snapshot, that a connection uses.
pub struct ImageExport {
    image: Image,
    info: ExportInfo,
    /// Keeps the image held, if it takes writes.
    user: Option<User>,
}

impl ImageExport {
    pub(crate) fn held(user: User, info: ExportInfo) -> Self {
        Self { image: user.image().clone(), info, user: Some(user) }
    }

    pub(crate) fn read_only(image: Image, info: ExportInfo) -> Self {
        Self { image, info, user: None }
    }

    /// What a client is told of a result, and what is remembered and logged of an error.
    fn answer<T>(&self, result: vellum_engine::Result<T>) -> Result<T, NbdError> {
        result.map_err(|error| {
            if let Some(user) = &self.user
                && matches!(error.kind(), ErrorKind::Poisoned | ErrorKind::OwnershipLost)
            {
                user.set_broken();
            }
            let errno = errno_of(error.kind());
            if errno == Errno::Io {
                log(&self.image, &error);
            }
            NbdError::new(errno, error.chain())
        })
    }
}

impl fmt::Debug for ImageExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageExport({:?})", self.image)
    }
}

impl Export for ImageExport {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    fn try_read(&self, at: Extent, buffer: &mut [u8]) -> bool {
        let mut holes = Default::default();
        self.image.try_read(at, buffer, &mut holes)
            && holes.iter().all(|hole| hole.length() < HOLE_MIN)
    }

    async fn read(&self, at: Extent) -> Result<Vec<ReadPiece>, NbdError> {
        let pieces = self.answer(self.image.read_pieces(at).await)?;
        Ok(pieces.into_iter().map(|piece| ReadPiece { at: piece.at, data: piece.data }).collect())
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), NbdError> {
        self.answer(self.image.write(offset, data, WriteOptions { durable: fua }).await)
    }

    async fn flush(&self) -> Result<(), NbdError> {
        self.answer(self.image.sync().await)
    }

    async fn trim(&self, at: Extent, fua: bool) -> Result<(), NbdError> {
        self.answer(self.image.discard(at, DiscardPolicy::Zero, fua).await)
    }

    async fn write_zeroes(&self, at: Extent, flags: ZeroFlags) -> Result<(), NbdError> {
        let options = ZeroOptions { no_hole: flags.no_hole, fast: flags.fast, durable: flags.fua };
        self.answer(self.image.write_zeroes(at, options).await)
    }

    async fn cache(&self, at: Extent) -> Result<(), NbdError> {
        for step in at.split(at.offset().saturating_add(CACHE_MAX)).0.chunks(CACHE_STEP) {
            self.answer(self.image.read_pieces(step).await)?;
        }
        Ok(())
    }

    async fn block_status(
        &self,
        at: Extent,
        context: Context,
        max: usize,
    ) -> Result<Vec<Status>, NbdError> {
        let map = self.answer(self.image.map(at, max).await)?;
        let mut status: Vec<Status> = Vec::with_capacity(map.len());
        for entry in map {
            let flags = match (context, entry.kind) {
                (Context::Depth, _) => entry.depth as u64,
                (Context::Allocation, MappedKind::Data) => 0,
                (Context::Allocation, MappedKind::Zero | MappedKind::Nothing) => {
                    STATE_HOLE | STATE_ZERO
                }
            };
            match status.last_mut() {
                Some(last) if last.flags == flags => last.length += entry.at.length(),
                _ => status.push(Status { length: entry.at.length(), flags }),
            }
        }
        Ok(status)
    }
}

/// What a client is told of an error: the only place where kinds become numbers.
fn errno_of(kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::NoSpace => Errno::NoSpace,
        ErrorKind::ReadOnly => Errno::Permission,
        ErrorKind::Invalid => Errno::Invalid,
        ErrorKind::Unsupported => Errno::NotSupported,
        ErrorKind::OwnershipLost | ErrorKind::Stopped => Errno::Shutdown,
        _ => Errno::Io,
    }
}

/// So many failed requests are logged in an interval: a dead disk fails thousands a second.
const LOGGED_MAX: u32 = 10;
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Failed requests of this interval, and when it began.
static FAILED: Mutex<Option<(Instant, u32)>> = Mutex::new(None);

fn log(image: &Image, error: &Error) {
    let mut failed = FAILED.lock();
    let (began, count) = match *failed {
        Some((began, count)) if began.elapsed() < LOG_INTERVAL => (began, count.saturating_add(1)),
        Some((_, count)) if count > LOGGED_MAX => {
            tracing::error!(
                requests = count - LOGGED_MAX,
                "more requests failed and were not logged"
            );
            (Instant::now(), 1)
        }
        _ => (Instant::now(), 1),
    };
    *failed = Some((began, count));
    if count <= LOGGED_MAX {
        tracing::error!(image = %image.record().name, error = %error.chain(), "a request failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_become_the_numbers_that_clients_act_on() {
        for (kind, errno) in [
            (ErrorKind::NoSpace, Errno::NoSpace),
            (ErrorKind::ReadOnly, Errno::Permission),
            (ErrorKind::Invalid, Errno::Invalid),
            (ErrorKind::Unsupported, Errno::NotSupported),
            (ErrorKind::OwnershipLost, Errno::Shutdown),
            (ErrorKind::Poisoned, Errno::Io),
            (ErrorKind::Corrupt, Errno::Io),
            (ErrorKind::Io, Errno::Io),
        ] {
            assert_eq!(errno_of(kind), errno, "{kind:?}");
        }
    }
}
