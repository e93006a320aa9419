//! The conformance suite on the reference engine, bare and under each wrapper.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use libtest_mimic::{Arguments, Trial};
use vellum_engine::count::{CountCatalog, Counts};
use vellum_engine::fault::{FaultCatalog, Faults};
use vellum_engine::memory::{MemoryCatalog, MemoryOptions, MemoryStore};
use vellum_engine::paced::{Pace, PacedCatalog};
use vellum_engine::{AtomicSpan, Catalog, Either, Snapshots};
use vellum_suite::{Harness, Result, trials};

/// Two stores, and what is put around the catalogs opened on each.
struct Memory<C> {
    first: MemoryStore,
    second: MemoryStore,
    wrap: [fn(MemoryCatalog) -> C; 2],
}

impl<C> Memory<C> {
    fn new(options: MemoryOptions, wrap: [fn(MemoryCatalog) -> C; 2]) -> Self {
        Self { first: MemoryStore::new(options), second: MemoryStore::new(options), wrap }
    }
}

impl<C: Catalog> Harness for Memory<C> {
    type Catalog = C;

    async fn open(&self) -> Result<C> {
        Ok(self.wrap[0](self.first.catalog()))
    }

    async fn open_second_pool(&self) -> Result<C> {
        Ok(self.wrap[1](self.second.catalog()))
    }

    async fn power_cut(&self) -> Result<()> {
        self.first.power_cut();
        Ok(())
    }

    async fn exhaust_space(&self) -> Result<()> {
        self.first.set_full(true);
        Ok(())
    }

    async fn free_space(&self) -> Result<()> {
        self.first.set_full(false);
        Ok(())
    }
}

fn trials_of<C: Catalog>(
    engine: &str,
    options: MemoryOptions,
    wrap: fn(MemoryCatalog) -> C,
) -> Vec<Trial> {
    trials(engine, move || Ok(Memory::new(options, [wrap, wrap])))
}

/// Two engines whose types differ.
type TwoEngines = Either<MemoryCatalog, CountCatalog<MemoryCatalog>>;

fn left(memory: MemoryCatalog) -> TwoEngines {
    Either::Left(memory)
}

fn right(memory: MemoryCatalog) -> TwoEngines {
    Either::Right(CountCatalog::new(memory, Counts::default()))
}

fn main() {
    let usual = MemoryOptions::default();
    // As an engine that keeps objects on servers would say of itself.
    let by_object = MemoryOptions {
        inherit: false,
        ack_is_durable: true,
        atomic: AtomicSpan::Object,
        ..MemoryOptions::default()
    };
    let sharing = MemoryOptions { snapshots: Snapshots::Native, inherit: false, ..usual };
    let all = [
        trials_of("memory", usual, |memory| memory),
        trials_of("memory-by-object", by_object, |memory| memory),
        trials_of("memory-sharing-objects", sharing, |memory| memory),
        trials_of("fault", usual, |memory| FaultCatalog::new(memory, Faults::default())),
        trials_of("count", usual, |memory| CountCatalog::new(memory, Counts::default())),
        trials_of("paced", usual, |memory| PacedCatalog::new(memory, Pace::new(|| 1))),
        trials("either", move || Ok(Memory::new(usual, [left, right]))),
        trials("either-by-object", move || Ok(Memory::new(by_object, [right, left]))),
        trials_of("count-fault", usual, |memory| {
            CountCatalog::new(FaultCatalog::new(memory, Faults::default()), Counts::default())
        }),
    ];
    let args = Arguments::from_args();
    libtest_mimic::run(&args, all.into_iter().flatten().collect()).exit();
}
