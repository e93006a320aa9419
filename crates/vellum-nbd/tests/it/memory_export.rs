//! [`Memory`]: exports over bytes in memory, which note what is asked of them, wait and fail as they are told.

use std::sync::Arc;
use std::sync::mpsc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use vellum_core::{BufferPool, Extent};
use vellum_nbd::{
    Context, Errno, Export, ExportInfo, Exports, Limits, Listed, NbdError, OpenError, ReadPiece,
    Server, Status, ZeroFlags,
};

/// Bytes in the export.
pub(crate) const SIZE: u64 = 1 << 20;
const BLOCK: u64 = 4096;

/// What was asked of an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    Read(Extent),
    Write(Extent, bool),
    Flush,
    Trim(Extent, bool),
    Zeroes(Extent, ZeroFlags),
    Cache(Extent),
    Status(Extent, Context, usize),
}

/// Four exports: `disk`, `sealed` which is the same and read-only, `taken` and `ending` which cannot be opened.
#[derive(Clone)]
pub(crate) struct Memory(Arc<Disk>);

pub(crate) struct Disk {
    pub(crate) bytes: Mutex<Vec<u8>>,
    calls: Mutex<Vec<Call>>,
    fails: Mutex<Option<Errno>>,
    held: watch::Sender<bool>,
    wakes: Mutex<Option<mpsc::Receiver<()>>>,
}

/// The disk, as one export shows it.
pub(crate) struct View {
    disk: Arc<Disk>,
    read_only: bool,
}

/// A server of the exports, and the disk behind them.
pub(crate) fn server(limits: Limits) -> (Server<Memory>, Arc<Disk>) {
    let disk = Arc::new(Disk {
        bytes: Mutex::new(vec![0; SIZE as usize]),
        calls: Mutex::default(),
        fails: Mutex::default(),
        held: watch::Sender::new(false),
        wakes: Mutex::default(),
    });
    (Server::new(Memory(disk.clone()), limits, BufferPool::default()), disk)
}

impl Disk {
    /// What was asked since the last time this was called.
    pub(crate) fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock())
    }

    /// Lets everything fail from now on, or nothing.
    pub(crate) fn fail(&self, errno: Option<Errno>) {
        *self.fails.lock() = errno;
    }

    /// Lets whatever changes something wait from now on, or go on.
    pub(crate) fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Lets the next change put the thread that makes it to sleep, as a kernel does, until what is returned is dropped.
    pub(crate) fn sleep_over_the_next(&self) -> mpsc::Sender<()> {
        let (sleeps, wakes) = mpsc::channel();
        *self.wakes.lock() = Some(wakes);
        sleeps
    }

    /// Waits until so many calls were made.
    pub(crate) async fn called(&self, times: usize) {
        while self.calls.lock().len() < times {
            tokio::task::yield_now().await;
        }
    }

    fn call(&self, call: Call) -> Result<(), NbdError> {
        self.calls.lock().push(call);
        self.fails.lock().map_or(Ok(()), |errno| Err(NbdError::new(errno, "as it was told")))
    }

    async fn change(
        &self,
        call: Call,
        at: Extent,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), NbdError> {
        self.call(call)?;
        let wakes = self.wakes.lock().take();
        if let Some(wakes) = wakes {
            wakes.recv().unwrap_err();
        }
        self.held.subscribe().wait_for(|held| !held).await.unwrap();
        fill(&mut self.bytes.lock()[at.offset() as usize..at.end() as usize]);
        Ok(())
    }

    fn is_zero(&self, at: Extent) -> bool {
        self.bytes.lock()[at.offset() as usize..at.end() as usize].iter().all(|byte| *byte == 0)
    }
}

impl Exports for Memory {
    type Export = View;

    async fn list(&self) -> Result<Vec<Listed>, OpenError> {
        let listed = |name: &str, description: &str| Listed {
            name: name.to_owned(),
            description: description.to_owned(),
        };
        if self.0.fails.lock().is_some() {
            return Err(OpenError::Refused("as it was told".to_owned()));
        }
        Ok(vec![listed("disk", "some bytes"), listed("sealed", ""), listed("taken", "")])
    }

    async fn info(&self, name: &str) -> Result<ExportInfo, OpenError> {
        match name {
            "disk" | "sealed" | "" => Ok(view(&self.0, name).info()),
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
        let description = if self.read_only { "" } else { "some bytes" };
        ExportInfo {
            size: SIZE,
            read_only: self.read_only,
            description: description.to_owned(),
            preferred_block: 4096,
        }
    }

    /// Only what fits into one block is here without waiting.
    fn try_read(&self, at: Extent, buffer: &mut [u8]) -> bool {
        let here = at.length() < BLOCK && self.disk.fails.lock().is_none();
        if here {
            buffer
                .copy_from_slice(&self.disk.bytes.lock()[at.offset() as usize..at.end() as usize]);
        }
        here
    }

    async fn read(&self, at: Extent) -> Result<Vec<ReadPiece>, NbdError> {
        self.disk.call(Call::Read(at))?;
        let pieces = at.chunks(BLOCK).map(|piece| {
            let bytes = &self.disk.bytes.lock()[piece.offset() as usize..piece.end() as usize];
            let zero = bytes.iter().all(|byte| *byte == 0);
            ReadPiece { at: piece, data: (!zero).then(|| Bytes::copy_from_slice(bytes)) }
        });
        Ok(pieces.collect())
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), NbdError> {
        let at = Extent::new(offset, data.len() as u64);
        self.disk.change(Call::Write(at, fua), at, |bytes| bytes.copy_from_slice(&data)).await
    }

    async fn flush(&self) -> Result<(), NbdError> {
        self.disk.call(Call::Flush)
    }

    async fn trim(&self, at: Extent, fua: bool) -> Result<(), NbdError> {
        self.disk.change(Call::Trim(at, fua), at, |bytes| bytes.fill(0)).await
    }

    async fn write_zeroes(&self, at: Extent, flags: ZeroFlags) -> Result<(), NbdError> {
        self.disk.change(Call::Zeroes(at, flags), at, |bytes| bytes.fill(0)).await
    }

    async fn cache(&self, at: Extent) -> Result<(), NbdError> {
        self.disk.call(Call::Cache(at))
    }

    async fn block_status(
        &self,
        at: Extent,
        context: Context,
        max: usize,
    ) -> Result<Vec<Status>, NbdError> {
        self.disk.call(Call::Status(at, context, max))?;
        let status = at.chunks(BLOCK).map(|piece| {
            let zero = self.disk.is_zero(piece);
            let flags = match context {
                Context::Allocation => {
                    if zero {
                        3
                    } else {
                        0
                    }
                }
                Context::Depth => u64::from(!zero),
            };
            Status { length: piece.length(), flags }
        });
        let mut merged: Vec<Status> = Vec::new();
        for status in status {
            match merged.last_mut() {
                Some(last) if last.flags == status.flags => last.length += status.length,
                _ => merged.push(status),
            }
        }
        merged.truncate(max);
        Ok(merged)
    }
}
