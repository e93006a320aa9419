//! What is said of a sync that failed, and what is left of one that failed while a layer was taken over from a dead owner.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::subscriber::{DefaultGuard, NoSubscriber};
use tracing::{Dispatch, Event, Level, Metadata, Subscriber, span};
use vellum_disk::{Disk, Durability, File, OpenMode};
use vellum_engine::{ErrorKind, Write};
use vellum_sim::{Call, Fault, SimDisk};

use super::failures::{EIO, STEPS, once};
use super::leftovers::{MAP, contents};
use super::{BLOCK, Lab, blocks, facts, look, write, write_of};
use crate::format::header::{self, Epoch};
use crate::format::{PAGE, SECTOR};
use crate::recovery::now;
use crate::store::Access;

/// What was logged on this thread since it began to listen, until it is dropped.
struct Heard {
    events: Arc<Mutex<Vec<Said>>>,
    _listening: DefaultGuard,
    /// As long as there is one listener alone, a thread without one can settle for all that nobody wants an event.
    _another: Dispatch,
}

/// An event: its level, and its fields as text.
#[derive(Debug)]
struct Said {
    level: Level,
    fields: BTreeMap<&'static str, String>,
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
}

struct Listener(Arc<Mutex<Vec<Said>>>);

impl Subscriber for Listener {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut said = Said { level: *event.metadata().level(), fields: BTreeMap::new() };
        event.record(&mut said);
        self.0.lock().push(said);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

impl Heard {
    fn from_now_on() -> Self {
        let another = Dispatch::new(NoSubscriber::default());
        let events = Arc::default();
        let listening = tracing::subscriber::set_default(Listener(Arc::clone(&events)));
        Self { events, _listening: listening, _another: another }
    }

    /// What was said since this was asked last: one thing, of the image, at this level, which says that data may be missing.
    #[track_caller]
    fn one(&self, level: Level) -> Said {
        let mut events = std::mem::take(&mut *self.events.lock());
        assert!(events.len() == 1 && events[0].level == level, "{events:?}");
        let said = events.remove(0);
        assert_eq!(said.fields["image"], "test");
        assert!(said.fields["message"].contains("may be missing"), "{said:?}");
        said
    }
}

/// In 2001, when the last good sync of [`synced_long_ago`] was.
const LONG_AGO: u64 = 1_000_000_000;

async fn epoch_of(lab: &Lab) -> Epoch {
    let page: [u8; PAGE] = contents(&lab.disk, MAP).await[..PAGE].try_into().unwrap();
    header::decode(MAP, 0xab, &page).unwrap().1
}

/// A layer that was closed long ago, with `a` in its first block.
async fn synced_long_ago() -> Lab {
    let lab = Lab::new(64 * BLOCK).await;
    let layer = lab.own().await;
    write(&layer, blocks(0, 1), b'a').await;
    layer.close().await.unwrap();
    let lab = lab.after_death().await;
    let epoch = Epoch { last_sync: LONG_AGO, ..epoch_of(&lab).await };
    let map = lab.disk.open(Path::new(MAP), OpenMode::ReadWrite).await.unwrap();
    let sector = header::encode_epoch(0xab, &epoch).into();
    map.write_at(vec![sector], header::EPOCH_AT, Durability::Durable).await.unwrap();
    lab
}

#[tokio::test]
async fn a_failed_sync_says_when_the_last_good_one_was() {
    for (call, file) in STEPS {
        let lab = synced_long_ago().await;
        let layer = lab.own().await;
        write(&layer, blocks(1, 1), b'b').await;
        lab.disk.fail(once(call, file, EIO));
        let heard = Heard::from_now_on();
        let error = layer.sync().await.unwrap_err();
        assert!(error.to_string().contains(&format!("({LONG_AGO} seconds")), "{error}");
        let said = heard.one(Level::ERROR);
        assert_eq!(said.fields["last_good_sync"], LONG_AGO.to_string(), "{call:?} {file}");
    }
}

#[tokio::test]
async fn a_durable_write_that_fails_on_the_medium_says_when_the_last_good_sync_was() {
    let lab = synced_long_ago().await;
    let layer = lab.own().await;
    lab.disk.fail(once(Call::SyncData, "data.0", EIO));
    let heard = Heard::from_now_on();
    let durable =
        Write { durability: vellum_engine::Durability::Durable, ..write_of(blocks(0, 1), b'b') };
    layer.write(durable).await.unwrap_err();
    assert_eq!(heard.one(Level::ERROR).fields["last_good_sync"], LONG_AGO.to_string());
}

#[tokio::test]
async fn whoever_opens_a_layer_after_a_failed_sync_is_told_from_when_to_when_data_may_be_missing() {
    for (call, file) in STEPS {
        let lab = synced_long_ago().await;
        let layer = lab.own().await;
        write(&layer, blocks(1, 1), b'b').await;
        lab.disk.fail(once(call, file, EIO));
        let failed_after = now();
        layer.sync().await.unwrap_err();
        let failed_before = now();
        let mut lab = lab.after_death().await;
        // The one who only reads leaves the mark for the next owner.
        for access in [Access::Read, Access::Own] {
            let heard = Heard::from_now_on();
            lab.open(access).await.unwrap();
            let said = heard.one(Level::WARN);
            assert_eq!(said.fields["last_good_sync"], LONG_AGO.to_string(), "{call:?} {file}");
            let failed = said.fields["failed_sync"].parse().unwrap();
            assert!((failed_after..=failed_before).contains(&failed), "{said:?}");
            lab = lab.after_death().await;
        }
        // That owner's sync is the last good one now.
        let heard = Heard::from_now_on();
        lab.own().await;
        assert!(heard.events.lock().is_empty(), "{:?}", heard.events.lock());
        assert!(epoch_of(&lab).await.last_sync >= failed_after);
    }
}

#[tokio::test]
async fn whoever_dies_after_a_failed_sync_has_left_a_mark_unless_it_was_at_the_next_call() {
    for (call, file) in STEPS {
        for calls in 1.. {
            let lab = synced_long_ago().await;
            let layer = lab.own().await;
            write(&layer, blocks(0, 2), b'b').await;
            lab.disk.fail(once(call, file, EIO));
            let (before, hold) = (lab.disk.world().failures(), lab.disk.hold(call, file));
            let syncing = async {
                let arrived = async {
                    hold.arrived().await;
                    // The call that fails is one of them.
                    lab.disk.world().calls_left = Some(1 + calls);
                    drop(hold);
                };
                futures::join!(layer.sync(), arrived).0
            };
            let ended = tokio::select! {
                biased;
                result = syncing => Some(result),
                () = lab.disk.ended() => None,
            };
            assert_eq!(lab.disk.world().failures(), before + 1, "{call:?} {file}");
            if let Some(result) = ended {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::Io);
                // The mark, durably, and two logs.
                assert_eq!(calls, 1 + 4, "{call:?} {file}");
                break;
            }
            let lab = lab.after_death().await;
            assert_eq!(
                epoch_of(&lab).await.poisoned.is_some(),
                calls > 1,
                "{call:?} {file} {calls}"
            );
        }
    }
}

/// An owner that synced block 0 with `a`, overwrote it with `A`, wrote blocks 1 to 3, and died.
async fn dead(seed: u64) -> Lab {
    let lab = Lab::on(SimDisk::new(seed), facts(64 * BLOCK, BLOCK)).await;
    let layer = lab.own().await;
    write(&layer, blocks(0, 1), b'a').await;
    layer.sync().await.unwrap();
    for (block, byte) in [(0, b'A'), (1, b'b'), (2, b'c'), (3, b'd')] {
        write(&layer, blocks(block, 1), byte).await;
    }
    lab.after_death().await
}

/// What can fail, after how many calls of its kind, while a dead owner's work is made durable; and whether its states may be on the
/// medium by then, and rightly so, since its data is.
const TAKING_OVER: [(Call, &str, u32, bool); 4] = [
    (Call::SyncData, "map", 0, false),
    (Call::SyncData, "data.0", 0, false),
    (Call::Write, "map", 1, false),
    (Call::SyncData, "map", 1, true),
];

/// Takes over what a dead owner left, while a call fails; and what its logs said, if they cannot be removed either.
async fn fail_to_take_over(lab: &Lab, fault: Fault, access: Access, logs_stay: bool) {
    lab.disk.fail(fault);
    if logs_stay {
        lab.disk.fail(once(Call::Remove, "ab.0", EIO));
        lab.disk.fail(once(Call::Remove, "ab.1", EIO));
    }
    let heard = Heard::from_now_on();
    let error = lab.open(access).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{fault:?}");
    heard.one(Level::ERROR);
    let logs = lab.disk.world().children("/pool/live".as_ref()).len();
    assert_eq!(logs > 0, logs_stay, "{fault:?}: {logs} logs");
}

/// What the layer of [`dead`] reads as, which must be what its last good sync left, with what may have been written over it; and, if
/// it may, all of the rest.
async fn found(lab: &Lab, all_may_be_there: bool, what: &str) -> Vec<u8> {
    let layer = lab.own().await;
    let (bytes, _) = look(&layer, blocks(0, 5)).await.unwrap();
    let (first, rest) = bytes.split_at(BLOCK as usize);
    for sector in first.chunks(SECTOR) {
        assert!([[b'a'; SECTOR], [b'A'; SECTOR]].iter().any(|whole| whole == sector), "{what}");
    }
    let expected =
        |text: &[u8]| rest.chunks(BLOCK as usize).map(|block| block[0]).eq(text.to_vec());
    let is_there = all_may_be_there && expected(b"bcd?");
    assert!(is_there || expected(b"????"), "{what}");
    assert!(rest.chunks(BLOCK as usize).all(|block| block.iter().all(|byte| *byte == block[0])));
    layer.sync().await.unwrap();
    bytes
}

#[tokio::test]
async fn what_could_not_be_synced_while_it_was_taken_over_is_believed_by_nobody() {
    for (call, file, skip, all_may_be_there) in TAKING_OVER {
        let fault = Fault { call, file, error: EIO, times: 1, skip };
        for (access, logs_stay) in
            [(Access::Own, false), (Access::Own, true), (Access::Fill, false), (Access::Fill, true)]
        {
            for seed in 0..12 {
                let what = format!("{fault:?}, {access:?}, logs stay: {logs_stay}, seed {seed}");
                let lab = dead(seed).await;
                fail_to_take_over(&lab, fault, access, logs_stay).await;
                // The same process tries again, or another one does, or the machine is started again.
                let lab = match seed % 3 {
                    0 => lab,
                    1 => lab.after_death().await,
                    _ => lab.after_power_cut().await,
                };
                let before = found(&lab, all_may_be_there, &what).await;
                // What it showed and synced is on the medium, and nothing else is believed later.
                let lab = lab.after_death().await;
                assert!(found(&lab, all_may_be_there, &what).await == before, "{what}");
                let lab = lab.after_power_cut().await;
                assert!(found(&lab, all_may_be_there, &what).await == before, "{what}");
            }
        }
    }
}

#[tokio::test]
async fn a_layer_that_could_not_be_taken_over_is_whole_again_for_the_next_who_writes() {
    for (call, file, skip, _) in TAKING_OVER {
        let lab = dead(1).await;
        let fault = Fault { call, file, error: EIO, times: 1, skip };
        fail_to_take_over(&lab, fault, Access::Own, false).await;
        let layer = lab.own().await;
        write(&layer, blocks(0, 5), b'z').await;
        layer.close().await.unwrap();
        let lab = lab.after_power_cut().await;
        let (bytes, _) = look(&lab.own().await, blocks(0, 5)).await.unwrap();
        assert!(bytes.iter().all(|byte| *byte == b'z'), "{fault:?}");
    }
}
