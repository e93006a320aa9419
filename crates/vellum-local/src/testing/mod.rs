//! What the tests of layers on disk stand on: a simulated disk and a record of what may be read
//! (vellum-sim), and short ways to say what is done to a layer. Not part of the engine.
//!
//! The scenarios are a file each: [crashes] at random moments, [sync_steps] cut one after another, a whole [program] cut at each
//! of its calls, [failures] of calls and of space, [reads] that fail, a [full_log], what is said and left of a [failed_sync],
//! [leftovers] that an earlier life left behind, [damage] to whole files, [open_files] that are closed, and the [cost] of a request in
//! calls. A [pool] has a catalog too.
//!
//! Where a test ends, the engine's own check must find no damage, unless the test made some: see [`Lab::with_damage`].

mod cost;
mod crashes;
mod damage;
mod failed_sync;
pub(crate) mod failures;
mod full_log;
mod leftovers;
mod lost;
mod open_files;
pub(crate) mod pool;
mod program;
mod reads;
mod sync_steps;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use vellum_core::{Buffer, Extent, Runs, State};
use vellum_engine::{
    Durability, Guard, Guarded, ImageId, Known, Layer, Repair, Result, Severity, TryRead, Write,
};

use crate::LayerId;
use crate::check::Report;
use crate::layer::LocalLayer;
use crate::store::{Access, LayerFacts, LayerStore, StoreOptions};
use vellum_sim::SimDisk;

pub(crate) const BLOCK: u64 = 4096;
pub(crate) const ID: &str = "00000000000000ab";

/// One life of a process that has a layer open, or may open it. Where the last life of a test ends, what it leaves is checked.
pub(crate) struct Lab {
    pub(crate) disk: SimDisk,
    pub(crate) store: LayerStore<SimDisk>,
    pub(crate) facts: LayerFacts,
    /// Whether what is left when this life ends must be in order.
    is_checked: bool,
}

pub(crate) type SimLayer = LocalLayer<SimDisk>;

impl Lab {
    /// A new disk, and an image of this size on it.
    pub(crate) async fn new(size: u64) -> Self {
        Self::on(SimDisk::new(1), facts(size, BLOCK)).await
    }

    /// A process begins.
    pub(crate) async fn on(disk: SimDisk, facts: LayerFacts) -> Self {
        Self::with(disk, facts, options()).await
    }

    pub(crate) async fn with(disk: SimDisk, facts: LayerFacts, options: StoreOptions) -> Self {
        let store = LayerStore::open(disk.clone(), PathBuf::from("/pool"), options).await.unwrap();
        Self { disk, store, facts, is_checked: true }
    }

    /// The test makes damage: neither this life nor one after it is checked where it ends.
    pub(crate) fn with_damage(mut self) -> Self {
        self.is_checked = false;
        self
    }

    pub(crate) async fn open(&self, access: Access) -> Result<SimLayer> {
        self.store.layer(self.facts.clone(), access).await
    }

    pub(crate) async fn own(&self) -> SimLayer {
        self.open(Access::Own).await.unwrap()
    }

    /// The next process, after this one died.
    pub(crate) async fn after_death(self) -> Self {
        let disk = self.disk.process_death();
        self.followed_on(disk).await
    }

    /// The next process, after a power cut.
    pub(crate) async fn after_power_cut(self) -> Self {
        let disk = self.disk.power_cut();
        self.followed_on(disk).await
    }

    /// The next life, which is the one to be checked.
    async fn followed_on(mut self, disk: SimDisk) -> Self {
        let mut next = Self::on(disk, self.facts.clone()).await;
        next.is_checked = std::mem::take(&mut self.is_checked);
        next
    }
}

impl Drop for Lab {
    /// The process dies, and another one looks at what it left.
    fn drop(&mut self) {
        if !self.is_checked || std::thread::panicking() {
            return;
        }
        let disk = self.disk.process_death();
        disk.world().yields_max = 0;
        let facts = self.facts.clone();
        let look = async move {
            let lab = Self::on(disk, facts).await.with_damage();
            assert_in_order(&lab.open(Access::Read).await.unwrap()).await;
        };
        // Nothing waits on a disk that lets nobody else run in between.
        tokio::task::unconstrained(look).now_or_never().expect("a check of a layer does not wait");
    }
}

/// The engine's own check of a layer finds no damage. Space that nothing refers to is none.
pub(crate) async fn assert_in_order(layer: &SimLayer) {
    let findings = findings(layer, Repair::No).await.unwrap();
    let is_leak = |found: &vellum_engine::Finding| found.severity == Severity::Leak;
    assert!(findings.iter().all(is_leak), "{findings:?}");
}

/// What a check of a layer finds; an error if it could not look at all of it.
pub(crate) async fn findings(
    layer: &SimLayer,
    repair: Repair,
) -> Result<Vec<vellum_engine::Finding>> {
    let mut report = Report::default();
    layer.check(repair, &mut report).await;
    report.into_result()
}

/// No sync but those that are asked for.
pub(crate) fn options() -> StoreOptions {
    StoreOptions { sync_interval: Duration::from_secs(1 << 30), ..StoreOptions::default() }
}

pub(crate) fn facts(size: u64, block: u64) -> LayerFacts {
    let id = LayerId::from_hex(ID).unwrap();
    LayerFacts {
        id,
        image: ImageId::new("00000000000000aa"),
        revision: id.revision(),
        size,
        block_size: u32::try_from(block).unwrap(),
        below: "nothing".into(),
        image_name: "test".into(),
    }
}

pub(crate) fn blocks(first: u64, count: u64) -> Extent {
    Extent::new(first * BLOCK, count * BLOCK)
}

pub(crate) fn write_of(at: Extent, byte: u8) -> Write {
    Write {
        offset: at.offset(),
        data: Bytes::from(vec![byte; at.len_usize()]),
        guard: Guard::Edges,
        durability: Durability::AtSync,
    }
}

/// Writes, which must be done.
pub(crate) async fn write(layer: &SimLayer, at: Extent, byte: u8) {
    assert_eq!(layer.write(write_of(at, byte)).await.unwrap(), Guarded::Done);
}

/// What a layer says of an extent, read in both ways, which must agree: `?` where it inherits.
pub(crate) async fn look(layer: &SimLayer, at: Extent) -> Result<(Vec<u8>, Runs)> {
    let buffer = Buffer::from_vec(vec![b'?'; at.len_usize()]);
    let (buffer, runs) = layer.read(at, buffer, 0..at.len_usize()).await;
    let runs = runs?;
    let (mut again, mut runs_again) = (vec![b'?'; at.len_usize()], Runs::new());
    if layer.try_read(at, &mut again, &mut runs_again) == TryRead::Done {
        assert_eq!((&again[..], &runs_again), (&buffer[..], &runs));
    }
    if layer.states(at, usize::MAX, &mut runs_again) == Known::All {
        assert_eq!(runs_again, runs);
    }
    Ok((buffer.to_vec(), runs))
}

/// The first byte of some blocks: `?` where the layer inherits.
pub(crate) async fn seen(layer: &SimLayer, first: u64, count: u64) -> Vec<u8> {
    let (bytes, _) = look(layer, blocks(first, count)).await.unwrap();
    bytes.chunks_exact(BLOCK as usize).map(|block| block[0]).collect()
}

/// The states of some blocks.
pub(crate) async fn states(layer: &SimLayer, first: u64, count: u64) -> Vec<State> {
    let (_, runs) = look(layer, blocks(first, count)).await.unwrap();
    let states = runs.iter().map(|run| vec![run.state; (run.extent.length() / BLOCK) as usize]);
    states.flatten().collect()
}
