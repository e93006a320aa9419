//! A layer as a whole: files that somebody damaged, opened on the simulated disk and used.
//!
//! An input names an image, files that a life of the engine left (`files`), what was done to them since, whether checksums
//! were set right behind that, and what the next owner does. What must hold:
//!
//! - Whoever only reads writes nothing.
//! - A file that makes no sense is an error of the kinds that damage has, and never a panic.
//! - Where the owner gets in, so did the reader, and both see the same; a page that is damaged spoils itself alone, and a check
//!   that finds no damage means that everything can be read.
//! - What the owner does then is kept as a model of some units says (`model`), through the deaths of its process and through
//!   power cuts.

mod files;
mod model;

use std::path::PathBuf;
use std::time::Duration;

use vellum_core::BufferPool;
use vellum_engine::{Error, ErrorKind, ImageId, SetTo, Severity};
use vellum_local::fuzzing::{self, LocalLayer};
use vellum_local::store::{Access, LayerFacts, LayerStore};
use vellum_local::{LayerId, StoreOptions};
use vellum_sim::SimDisk;

use crate::input::Input;
use crate::run::on_runtime;
use files::Files;
use model::Model;

const LAYER: u64 = 0xab;
/// Units in a page of a map.
const PAGE_UNITS: u64 = 15_872;
/// Steps of an owner; more only say the same again.
const STEPS_MAX: usize = 32;

/// The images: size and bytes in a unit. One page, which ends in the middle of a unit; two pages and a few units; two pages
/// of small units.
const IMAGES: [(u64, u32); 3] = [
    (64 * 4096 + 512, 4096),
    (PAGE_UNITS * 4096 + 7 * 4096, 4096),
    (PAGE_UNITS * 512 + 99 * 512, 512),
];

type Opened = LocalLayer<SimDisk>;

/// See the module.
pub fn look_at(data: &[u8]) {
    let mut input = Input::new(data);
    let image = usize::from(input.u8()) % IMAGES.len();
    let facts = facts(IMAGES[image]);
    let access = if input.u8() & 1 != 0 { Access::Fill } else { Access::Own };
    let files = Files::read(&mut input, image);
    on_runtime(async {
        let disk = files.restore().await;
        let seen = look(&disk, &facts).await;
        let disk = disk.process_death();
        use_it(disk, &facts, access, seen, &mut input).await;
    });
}

fn facts((size, block_size): (u64, u32)) -> LayerFacts {
    let id = LayerId::new(LAYER).expect("a good number");
    LayerFacts {
        id,
        image: ImageId::new("00000000000000aa"),
        revision: id.revision(),
        size,
        block_size,
        below: "nothing".into(),
        image_name: "fuzzed".into(),
    }
}

/// No sync but those that are asked for, and little memory.
fn options() -> StoreOptions {
    StoreOptions {
        sync_interval: Duration::from_secs(1 << 30),
        map_cache_bytes: 1 << 18,
        lock_wait: Duration::ZERO,
        buffers: BufferPool::new(1 << 16),
        ..StoreOptions::default()
    }
}

async fn open(disk: &SimDisk, facts: &LayerFacts, access: Access) -> Result<Opened, Error> {
    let store = LayerStore::open(disk.clone(), PathBuf::from("/pool"), options()).await?;
    store.layer(facts.clone(), access).await
}

/// What opening and using damaged files may fail with.
fn check_error(error: &Error) {
    let kind = error.kind();
    let is_damage = matches!(kind, ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::Busy);
    assert!(is_damage, "{kind:?}: {}", error.chain());
}

/// What somebody who only reads sees; `None` if the layer cannot be opened.
async fn look(disk: &SimDisk, facts: &LayerFacts) -> Option<Model> {
    disk.take_trace();
    let layer = open(disk, facts, Access::Read).await.inspect_err(check_error).ok()?;
    let seen = Model::of(&layer, facts).await;
    let findings = fuzzing::check(&layer).await;
    assert_eq!(disk.take_trace(), [], "whoever only reads writes nothing");
    match findings {
        Ok(findings) => {
            let damaged = findings.iter().any(|found| found.severity == Severity::Damage);
            assert!(damaged || !seen.is_damaged(), "damage that a check does not find");
        }
        Err(error) => check_error(&error),
    }
    Some(seen)
}

/// The next owner, or filler, and what it does.
async fn use_it(
    mut disk: SimDisk,
    facts: &LayerFacts,
    access: Access,
    seen: Option<Model>,
    input: &mut Input<'_>,
) {
    let mut layer = match open(&disk, facts, access).await {
        Ok(layer) => layer,
        Err(error) => return check_error(&error),
    };
    let mut model = seen.expect("whoever writes reads, and could");
    model.compare(&layer, "its owner").await;
    if access == Access::Fill {
        fuzzing::close(&layer).await.expect("nothing was filled");
        return;
    }
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let step = input.u8();
        match step % 7 {
            0..=3 => {
                let at = model.range(input.u8(), input.u8(), step % 7 == 1);
                let done = match step % 7 {
                    0 | 1 => model.write(&layer, at, input.u8()).await,
                    2 => model.set(&layer, at, SetTo::Zero).await,
                    _ => model.set(&layer, at, SetTo::Inherit).await,
                };
                if !done {
                    // Damage was in the way, and nobody knows how much of it was done.
                    return;
                }
            }
            4 => fuzzing::sync(&layer).await.expect("the disk is sound"),
            death => {
                if death == 6 {
                    fuzzing::sync(&layer).await.expect("the disk is sound");
                }
                disk = if death == 5 { disk.process_death() } else { disk.power_cut() };
                drop(layer);
                layer = open(&disk, facts, Access::Own).await.expect("an owner was here before");
                model.compare(&layer, "the next owner").await;
            }
        }
    }
    model.compare(&layer, "its owner in the end").await;
    fuzzing::close(&layer).await.expect("the disk is sound");
    drop(layer);
    let disk = disk.power_cut();
    let layer = open(&disk, facts, Access::Read).await.expect("an owner was here before");
    model.compare(&layer, "whoever reads afterwards").await;
}
