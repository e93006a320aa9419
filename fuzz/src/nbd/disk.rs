//! [`Disks`]: a disk in memory, served under a few names, which waits and fails as an input says.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use vellum_core::Extent;
use vellum_nbd::{
    Context, Errno, Export, ExportInfo, Exports, Listed, NbdError, OpenError, ReadPiece, Status,
    ZeroFlags,
};

/// Bytes on the disk.
pub(crate) const SIZE: u64 = 1 << 16;
const BLOCK: u64 = 512;
/// Names of exports, with one that is none: a disk, the same read-only, one that cannot be opened, one that is ending.
pub(crate) const NAMES: [&str; 6] = ["disk", "sealed", "taken", "ending", "", "nowhere"];

/// How a disk behaves.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Behaviour {
    /// Reads and writes let others go first, and are answered out of order.
    pub(crate) waits: bool,
    /// This call, counted from one, and every so many after it fail; none if zero.
    pub(crate) fails_every: u32,
}

/// The disk, under all of its names.
#[derive(Debug)]
pub(crate) struct Disks(Arc<Disk>);

#[derive(Debug)]
struct Disk {
    bytes: Mutex<Vec<u8>>,
    behaviour: Behaviour,
    calls: Mutex<u32>,
}

/// The disk under one name.
#[derive(Debug)]
pub(crate) struct View {
    disk: Arc<Disk>,
    read_only: bool,
}

impl Disks {
    pub(crate) fn new(behaviour: Behaviour) -> Self {
        let bytes = Mutex::new(vec![0; SIZE as usize]);
        Self(Arc::new(Disk { bytes, behaviour, calls: Mutex::default() }))
    }

    /// Whether a name can be opened.
    pub(crate) fn has(name: &str) -> bool {
        matches!(name, "disk" | "sealed" | "")
    }
}

/// What the status of a beginning of `at` must be, of a disk that holds these bytes.
pub(crate) fn status_of(bytes: &[u8], at: Extent, context: Context, max: usize) -> Vec<Status> {
    let mut merged: Vec<Status> = Vec::new();
    for piece in at.chunks(BLOCK) {
        let flags = match (is_zero(bytes, piece), context) {
            (true, Context::Allocation) => 3,
            (false, Context::Depth) => 1,
            _ => 0,
        };
        match merged.last_mut() {
            Some(last) if last.flags == flags => last.length += piece.length(),
            _ => merged.push(Status { length: piece.length(), flags }),
        }
    }
    merged.truncate(max);
    merged
}

fn is_zero(bytes: &[u8], at: Extent) -> bool {
    bytes[at.offset() as usize..at.end() as usize].iter().all(|byte| *byte == 0)
}

impl Disk {
    async fn call(&self) -> Result<(), NbdError> {
        let call = {
            let mut calls = self.calls.lock();
            *calls += 1;
            *calls
        };
        if self.behaviour.waits {
            for _ in 0..call % 3 {
                tokio::task::yield_now().await;
            }
        }
        match self.behaviour.fails_every {
            0 => Ok(()),
            every if call.is_multiple_of(every) => {
                Err(NbdError::new(Errno::NoSpace, "as it was told"))
            }
            _ => Ok(()),
        }
    }

    async fn fill(&self, at: Extent, fill: impl FnOnce(&mut [u8])) -> Result<(), NbdError> {
        self.call().await?;
        fill(&mut self.bytes.lock()[at.offset() as usize..at.end() as usize]);
        Ok(())
    }
}

impl Exports for Disks {
    type Export = View;

    async fn list(&self) -> Result<Vec<Listed>, OpenError> {
        let listed =
            |name: &str| Listed { name: name.to_owned(), description: "a disk".to_owned() };
        Ok(NAMES[..3].iter().map(|name| listed(name)).collect())
    }

    async fn info(&self, name: &str) -> Result<ExportInfo, OpenError> {
        match name {
            name if Self::has(name) => Ok(view(&self.0, name).info()),
            "taken" => Err(OpenError::Refused("somebody else has it".to_owned())),
            "ending" => Err(OpenError::ShuttingDown("come back later".to_owned())),
            _ => Err(OpenError::Unknown(format!("no export {name}"))),
        }
    }

    async fn open(&self, name: &str) -> Result<Arc<View>, OpenError> {
        self.info(name).await?;
        Ok(Arc::new(view(&self.0, name)))
    }
}

fn view(disk: &Arc<Disk>, name: &str) -> View {
    View { disk: disk.clone(), read_only: name == "sealed" }
}

impl Export for View {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            size: SIZE,
            read_only: self.read_only,
            description: "a disk".to_owned(),
            preferred_block: 4096,
        }
    }

    /// Only what is short is here without waiting.
    fn try_read(&self, at: Extent, buffer: &mut [u8]) -> bool {
        let here = at.length() < BLOCK && self.disk.behaviour.fails_every == 0;
        if here {
            let bytes = self.disk.bytes.lock();
            buffer.copy_from_slice(&bytes[at.offset() as usize..at.end() as usize]);
        }
        here
    }

    async fn read(&self, at: Extent) -> Result<Vec<ReadPiece>, NbdError> {
        self.disk.call().await?;
        let bytes = self.disk.bytes.lock();
        let piece = |at: Extent| {
            let part = &bytes[at.offset() as usize..at.end() as usize];
            let data = (!is_zero(&bytes, at)).then(|| Bytes::copy_from_slice(part));
            ReadPiece { at, data }
        };
        Ok(at.chunks(BLOCK).map(piece).collect())
    }

    async fn write(&self, offset: u64, data: Bytes, _fua: bool) -> Result<(), NbdError> {
        let at = Extent::new(offset, data.len() as u64);
        self.disk.fill(at, |bytes| bytes.copy_from_slice(&data)).await
    }

    async fn flush(&self) -> Result<(), NbdError> {
        self.disk.call().await
    }

    async fn trim(&self, at: Extent, _fua: bool) -> Result<(), NbdError> {
        self.disk.fill(at, |bytes| bytes.fill(0)).await
    }

    async fn write_zeroes(&self, at: Extent, _flags: ZeroFlags) -> Result<(), NbdError> {
        self.disk.fill(at, |bytes| bytes.fill(0)).await
    }

    async fn cache(&self, _at: Extent) -> Result<(), NbdError> {
        self.disk.call().await
    }

    async fn block_status(
        &self,
        at: Extent,
        context: Context,
        max: usize,
    ) -> Result<Vec<Status>, NbdError> {
        self.disk.call().await?;
        Ok(status_of(&self.disk.bytes.lock(), at, context, max))
    }
}
