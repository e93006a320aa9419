//! Crashes at every moment: random work on a layer, ended by a power cut or the death of the process, and a look at what is
//! left, again and again. `VELLUM_SEEDS=first..end` runs other stories than the usual ones.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vellum_core::{Extent, State};
use vellum_engine::{Content, Durability, Fill, Guard, Guarded, Layer, Part, SetTo, Write};

use super::leftovers::{MAP, contents};
use super::{BLOCK, Lab, SimLayer, assert_in_order, facts};
use crate::format::sector::PAGE_UNITS;
use crate::format::{self, SECTOR};
use crate::store::{Access, StoreOptions};
use vellum_sim::{Call, History, SimDisk, Value};

const SECTOR_U64: u64 = SECTOR as u64;
/// Where it is interesting: the border of two pages of the map, and the short last unit.
const PAGE: u64 = PAGE_UNITS * BLOCK;
const SIZE: u64 = 2 * PAGE + 5 * BLOCK + 3 * SECTOR_U64;
const PLACES: [Range<u64>; 2] = [PAGE - 12 * BLOCK..PAGE + 12 * BLOCK, SIZE - 8 * BLOCK..SIZE];

/// A story that is being told.
struct Story {
    layer: SimLayer,
    history: Rc<RefCell<History>>,
}

/// One of those who work on a layer at the same time.
struct Worker {
    layer: SimLayer,
    history: Rc<RefCell<History>>,
    chance: StdRng,
}

fn seeds() -> Range<u64> {
    let usual = 0..150;
    let Ok(asked) = std::env::var("VELLUM_SEEDS") else { return usual };
    let (first, end) = asked.split_once("..").expect("VELLUM_SEEDS is like 0..1000");
    first.parse().unwrap()..end.parse().unwrap()
}

#[test]
fn whatever_moment_a_crash_picks_every_sector_reads_as_promised() {
    for seed in seeds() {
        let told = std::panic::catch_unwind(|| run(seed));
        assert!(told.is_ok(), "VELLUM_SEEDS={seed}..{} tells this story again", seed + 1);
    }
}

#[test]
fn a_seed_tells_the_same_story_each_time() {
    let calls = run(7).calls;
    assert!(calls.len() > 100);
    assert_eq!(first_difference(&calls, &run(7).calls), None);
    assert_ne!(first_difference(&calls, &run(8).calls), None);
}

#[test]
fn power_cuts_in_the_stories_tear_pages_of_the_map_on_both_sides_of_a_border() {
    let torn: BTreeSet<u64> = (0..40).flat_map(|seed| run(seed).torn).collect();
    assert!(torn.is_superset(&[0, 1].into()), "{torn:?}");
}

/// Where two stories part, and how they go on.
fn first_difference<T: PartialEq + Clone>(a: &[T], b: &[T]) -> Option<(usize, [Vec<T>; 2])> {
    let at = a.iter().zip(b).position(|(a, b)| a != b);
    let at = at.or_else(|| (a.len() != b.len()).then(|| a.len().min(b.len())))?;
    Some((at, [a, b].map(|story| story.iter().skip(at).take(5).cloned().collect())))
}

/// What is known of a story that was told.
#[derive(Default)]
struct Told {
    calls: Vec<(Call, String)>,
    /// Pages of the map that a power cut tore: some of their sectors are of one sync, and others of another.
    torn: BTreeSet<u64>,
}

/// Tells a story to its end.
fn run(seed: u64) -> Told {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(tell(seed))
}

async fn tell(seed: u64) -> Told {
    let mut told = Told::default();
    let mut chance = StdRng::seed_from_u64(seed);
    let history = Rc::new(RefCell::new(History::new()));
    let mut disk = SimDisk::new(seed);
    disk.world().yields_max = 3;
    for _ in 0..5 {
        // Checked below, by whoever looks at what is left.
        let life = Lab::with(disk.clone(), facts(SIZE, BLOCK), options(&mut chance));
        let lab = life.await.with_damage();
        // Opening may be cut short as well.
        disk.world().calls_left = Some(chance.random_range(1..400));
        let worked = async {
            let layer = lab.open(Access::Own).await.unwrap();
            work(&Story { layer, history: history.clone() }, &mut chance).await;
        };
        tokio::select! {
            biased;
            () = worked => {}
            () = disk.ended() => {}
        }
        let power_cut = chance.random_bool(0.5);
        disk = if power_cut { disk.power_cut() } else { disk.process_death() };
        if power_cut {
            told.torn.extend(torn_pages(&disk).await);
        }
        let access = if chance.random_bool(0.5) { Access::Own } else { Access::Read };
        let life = Lab::with(disk.clone(), facts(SIZE, BLOCK), options(&mut chance));
        let lab = life.await.with_damage();
        let layer = lab.open(access).await.unwrap();
        look_at_what_is_left(&layer, &history, power_cut).await;
        assert_in_order(&layer).await;
        // As a process that dies while it has nothing to do.
        disk = disk.process_death();
    }
    told.calls = disk.take_trace();
    told
}

/// The pages of the map whose sectors are of more than one sync.
async fn torn_pages(disk: &SimDisk) -> Vec<u64> {
    if !disk.world().children("/pool/layers/00000000000000ab".as_ref()).contains(&MAP.into()) {
        return Vec::new();
    }
    let map = contents(disk, MAP).await;
    let epochs = |page: &[u8]| -> BTreeSet<u64> {
        let epoch = |sector: &[u8]| u64::from_le_bytes(sector[8..16].try_into().unwrap());
        page.chunks_exact(SECTOR).map(epoch).collect()
    };
    let pages = map.chunks_exact(format::PAGE).skip(1).zip(0..SIZE.div_ceil(PAGE));
    pages.filter(|(bytes, _)| epochs(bytes).len() > 1).map(|(_, page)| page).collect()
}

fn options(chance: &mut StdRng) -> StoreOptions {
    let sync_interval = Duration::from_millis(chance.random_range(1..1000));
    StoreOptions { sync_interval, changed_pages_max: 1, ..StoreOptions::default() }
}

/// Several at once, for a few rounds, between which the layer is alone.
async fn work(story: &Story, chance: &mut StdRng) {
    for _ in 0..4 {
        let workers = (0..3).map(|_| {
            let mut worker = Worker {
                layer: story.layer.clone(),
                history: story.history.clone(),
                chance: StdRng::seed_from_u64(chance.random()),
            };
            async move {
                for _ in 0..12 {
                    worker.act().await;
                }
            }
        });
        futures::future::join_all(workers).await;
        match chance.random_range(0..4) {
            0 => drop(story.layer.reclaim().await.unwrap()),
            1 => {
                let began = story.history.borrow_mut().tick();
                story.layer.seal().await.unwrap();
                story.history.borrow_mut().synced(began);
                story.layer.unseal();
            }
            _ => {}
        }
    }
    let began = story.history.borrow_mut().tick();
    story.layer.close().await.unwrap();
    story.history.borrow_mut().synced(began);
}

impl Worker {
    async fn act(&mut self) {
        match self.chance.random_range(0..20) {
            0..8 => self.write().await,
            8..11 => self.fill().await,
            11..14 => self.set().await,
            14..18 => self.read().await,
            _ => {
                let began = self.history.borrow_mut().tick();
                self.layer.sync().await.unwrap();
                self.history.borrow_mut().synced(began);
            }
        }
    }

    /// Some sectors, close together; or whole units.
    fn somewhere(&mut self, whole: bool) -> Extent {
        let place = &PLACES[self.chance.random_range(0..PLACES.len())];
        let first = self.chance.random_range(place.start / SECTOR_U64..place.end / SECTOR_U64);
        let length = self.chance.random_range(1..40);
        let at = Extent::new(first * SECTOR_U64, length * SECTOR_U64).clip(place.end);
        if whole { at.align_out(BLOCK).clip(SIZE) } else { at }
    }

    fn durability(&mut self) -> Durability {
        if self.chance.random_bool(0.15) { Durability::Durable } else { Durability::AtSync }
    }

    async fn write(&mut self) {
        let whole = self.chance.random_bool(0.6);
        let (at, number) = (self.somewhere(whole), self.chance.random_range(1..u64::MAX));
        let durability = self.durability();
        let change = self.history.borrow_mut().begin(at, Value::Holds(number), false);
        let guard = if self.chance.random_bool(0.2) { Guard::All } else { Guard::Edges };
        let write = Write { offset: at.offset(), data: bytes(at, number), guard, durability };
        let done = self.layer.write(write).await.unwrap();
        let mut history = self.history.borrow_mut();
        match done {
            Guarded::Done => history.end(at, change, durability == Durability::Durable),
            _ => history.refused(at, change),
        }
    }

    /// A copy-up and the write that asked for it; or a fill alone.
    async fn fill(&mut self) {
        let (at, number) = (self.somewhere(true), self.chance.random_range(1..u64::MAX));
        let zero = self.chance.random_bool(0.4);
        let value = Value::Holds(if zero { 0 } else { number });
        let content = if zero { Content::Zero } else { Content::Data(bytes(at, number)) };
        let filled = self.history.borrow_mut().begin(at, value, true);
        let then = self.chance.random_bool(0.5).then(|| {
            let first =
                at.offset() + self.chance.random_range(0..at.length() / SECTOR_U64) * SECTOR_U64;
            let length = self.chance.random_range(1..10) * SECTOR_U64;
            (Extent::new(first, length).clip(at.end()), self.chance.random_range(1..u64::MAX))
        });
        let over = then.map(|(over, number)| {
            (over, self.history.borrow_mut().begin(over, Value::Holds(number), false))
        });
        let durability = self.durability();
        let write = then.map(|(over, number)| Write {
            offset: over.offset(),
            data: bytes(over, number),
            guard: Guard::Edges,
            durability,
        });
        let fill = Fill { parts: vec![Part { at, content }], then: write };
        assert_eq!(self.layer.fill(fill).await.unwrap(), Guarded::Done);
        let mut history = self.history.borrow_mut();
        let durable = over.is_some() && durability == Durability::Durable;
        // The write counts as coming after what it lies over.
        history.end(at, filled, durable);
        if let Some((over, change)) = over {
            history.end(over, change, durable);
        }
    }

    async fn set(&mut self) {
        let page = self.chance.random_bool(0.1);
        let at = if page { Extent::new(PAGE, PAGE) } else { self.somewhere(true) };
        let (to, value) = match self.chance.random_range(0..3) {
            0 => (SetTo::Inherit, Value::Inherited),
            _ => (SetTo::Zero, Value::Holds(0)),
        };
        let durability = self.durability();
        // Of a whole page only what anybody looks at is remembered.
        let known: Vec<Extent> = PLACES
            .iter()
            .map(|place| at.intersect(&Extent::between(place.start, place.end)))
            .filter(|at| !at.is_empty())
            .collect();
        let changes: Vec<_> = known
            .iter()
            .map(|at| (*at, self.history.borrow_mut().begin(*at, value, false)))
            .collect();
        assert_eq!(self.layer.set(at, to, durability).await.unwrap(), Guarded::Done);
        for (at, change) in changes {
            self.history.borrow_mut().end(at, change, durability == Durability::Durable);
        }
    }

    async fn read(&mut self) {
        let at = self.somewhere(false);
        let began = self.history.borrow_mut().tick();
        for (sector, value) in values(&self.layer, at).await {
            let history = self.history.borrow();
            assert!(
                history.allows(sector, value, began),
                "sector {sector} reads as {value:?}, and may read as {:?}",
                history.allowed_now(sector)
            );
        }
    }
}

/// A number, as often as it fits into an extent.
pub(super) fn bytes(at: Extent, number: u64) -> Bytes {
    Bytes::from(number.to_le_bytes().repeat(at.len_usize() / 8))
}

/// What each sector of an extent reads as.
pub(super) async fn values(layer: &SimLayer, at: Extent) -> Vec<(u64, Value)> {
    let buffer = vellum_core::Buffer::from_vec(vec![0xff; at.len_usize()]);
    let (buffer, runs) = layer.read(at, buffer, 0..at.len_usize()).await;
    let mut values = Vec::new();
    for run in &runs.unwrap() {
        for piece in run.extent.chunks(SECTOR_U64) {
            let bytes = &buffer[at.range_of(&piece)];
            let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            assert!(
                run.state == State::Inherited
                    || bytes.chunks(8).all(|part| part == number.to_le_bytes()),
                "a sector at {piece} is torn"
            );
            let value = match run.state {
                State::Inherited => Value::Inherited,
                _ => Value::Holds(number),
            };
            values.push((piece.offset() / SECTOR_U64, value));
        }
    }
    values
}

async fn look_at_what_is_left(layer: &SimLayer, history: &RefCell<History>, power_cut: bool) {
    assert_eq!(layer.size(), SIZE);
    history.borrow_mut().tick();
    for place in PLACES {
        let found = values(layer, Extent::between(place.start, place.end)).await;
        let mut history = history.borrow_mut();
        for (sector, value) in found {
            let allowed = if power_cut {
                history.allowed_after_power_cut(sector)
            } else {
                history.allowed_now(sector)
            };
            assert!(
                allowed.contains(&value),
                "sector {sector} reads as {value:?} after {}, and may read as {allowed:?}; {}",
                if power_cut { "a power cut" } else { "the death of the process" },
                history.story(sector)
            );
            if power_cut {
                history.settle(sector, value);
            } else {
                history.see(sector, value);
            }
        }
    }
}
