//! [`Ranges`]: which extents are being changed.
//!
//! Changes whose extents overlap wait for each other, in the order they came; others pass. Layering has one for the requests of
//! an image, an engine one for the mutations of a layer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use vellum_core::Extent;

/// Extents that are held. Clones share them.
///
/// To hold what nobody wants is a look into a tree; to wait, and to let go of what others wait for, costs a look at each who
/// waits.
#[derive(Clone, Debug, Default)]
pub struct Ranges(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Disjoint, by offset.
    held: BTreeMap<u64, Extent>,
    /// In the order they came.
    waiting: VecDeque<Waiter>,
    next_number: u64,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    extent: Extent,
    /// How many of those that hold an extent, or came earlier, are in its way.
    before: usize,
    granted: oneshot::Sender<RangeGuard>,
}

impl Ranges {
    /// Waits until nobody else holds or, having come earlier, waits for a part of the extent. Whoever stops waiting has never
    /// come. Nobody is in the way of an extent of no bytes, nor is it in anybody's way.
    pub async fn lock(&self, extent: Extent) -> RangeGuard {
        if extent.is_empty() {
            return RangeGuard { ranges: None, extent };
        }
        let mut waiting = {
            let mut state = self.0.lock();
            let before = state.before(extent);
            if before == 0 {
                return self.hold(&mut state, extent);
            }
            let (granted, waiter) = oneshot::channel();
            let number = state.next_number;
            state.next_number += 1;
            state.waiting.push_back(Waiter { number, extent, before, granted });
            Waiting { ranges: self, number, granted: waiter }
        };
        (&mut waiting.granted).await.expect("a waiter is granted its range, or is itself gone")
    }

    fn hold(&self, state: &mut State, extent: Extent) -> RangeGuard {
        state.held.insert(extent.offset(), extent);
        RangeGuard { ranges: Some(self.clone()), extent }
    }

    fn release(&self, extent: Extent) {
        let mut state = self.0.lock();
        state.held.remove(&extent.offset());
        self.clear(&mut state, extent, 0);
    }

    /// Takes an extent out of the way of those that came after it, who wait from this place on.
    fn clear(&self, state: &mut State, extent: Extent, from: usize) {
        let mut place = from;
        while let Some(waiter) = state.waiting.get_mut(place) {
            waiter.before -= usize::from(waiter.extent.overlaps(&extent));
            if waiter.before > 0 {
                place += 1;
                continue;
            }
            let waiter = state.waiting.remove(place).expect("it was just there");
            let guard = self.hold(state, waiter.extent);
            waiter.granted.send(guard).expect("who stops waiting leaves the queue first");
        }
    }
}

impl State {
    /// How many are in the way of an extent that comes now.
    fn before(&self, extent: Extent) -> usize {
        // Those held are disjoint, so from the last one that begins before the end, each one further ends earlier.
        let held = self.held.range(..extent.end()).rev();
        let held = held.take_while(|(_, held)| held.end() > extent.offset()).count();
        held + self.waiting.iter().filter(|waiter| waiter.extent.overlaps(&extent)).count()
    }
}

/// A place in the queue, which is given up when this is dropped.
struct Waiting<'a> {
    ranges: &'a Ranges,
    number: u64,
    granted: oneshot::Receiver<RangeGuard>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.ranges.0.lock();
        // Not there any more if it was granted.
        if let Ok(place) = state.waiting.binary_search_by_key(&self.number, |waiter| waiter.number)
        {
            let gone = state.waiting.remove(place).expect("it was just found");
            self.ranges.clear(&mut state, gone.extent, place);
        }
    }
}

/// Holds an extent until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct RangeGuard {
    /// `None` for no bytes.
    ranges: Option<Ranges>,
    extent: Extent,
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        if let Some(ranges) = &self.ranges {
            ranges.release(self.extent);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, Ordering};

    use futures::poll;
    use vellum_sim::orders::step;
    use vellum_sim::{Orders, Task};

    use super::*;

    #[tokio::test]
    async fn disjoint_ranges_pass_and_overlapping_ones_wait_in_order() {
        let ranges = Ranges::default();
        let first = ranges.lock(Extent::new(0, 10)).await;
        let _beside = ranges.lock(Extent::new(10, 10)).await;
        let mut second = Box::pin(ranges.lock(Extent::new(5, 3)));
        let mut third = Box::pin(ranges.lock(Extent::new(0, 6)));
        let mut fourth = Box::pin(ranges.lock(Extent::new(8, 1)));
        assert!(
            poll!(&mut second).is_pending()
                && poll!(&mut third).is_pending()
                && poll!(&mut fourth).is_pending()
        );
        drop(first);
        let second = second.await;
        assert!(poll!(&mut third).is_pending(), "the third overlaps the second");
        drop(fourth.await);
        drop(second);
        drop(third.await);
    }

    #[tokio::test]
    async fn a_waiter_that_gave_up_holds_up_nobody() {
        let ranges = Ranges::default();
        let first = ranges.lock(Extent::new(0, 10)).await;
        let mut second = Box::pin(ranges.lock(Extent::new(0, 10)));
        let mut third = Box::pin(ranges.lock(Extent::new(0, 10)));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        let mut fourth = Box::pin(ranges.lock(Extent::new(5, 10)));
        assert!(poll!(&mut fourth).is_pending());
        drop(second);
        drop(first);
        drop(third.await);
        drop(fourth.await);
        assert!(ranges.0.lock().held.is_empty() && ranges.0.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn whoever_waited_behind_one_that_gave_up_waits_no_longer() {
        let ranges = Ranges::default();
        let _first = ranges.lock(Extent::new(0, 10)).await;
        let mut second = Box::pin(ranges.lock(Extent::new(0, 20)));
        let mut third = Box::pin(ranges.lock(Extent::new(15, 10)));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        drop(second);
        assert!(poll!(&mut third).is_ready(), "only who gave up was in its way");
        assert!(poll!(Box::pin(ranges.lock(Extent::new(30, 10)))).is_ready());
    }

    #[tokio::test]
    async fn no_bytes_are_in_nobodys_way() {
        let ranges = Ranges::default();
        for offset in [0, 4, 10] {
            let held = ranges.lock(Extent::new(0, 10)).await;
            drop(ranges.lock(Extent::new(offset, 0)).await);
            let mut next = Box::pin(ranges.lock(Extent::new(0, 4)));
            assert!(poll!(&mut next).is_pending(), "an empty extent at {offset} lets it in");
            drop(held);
            let empty = ranges.lock(Extent::new(offset, 0)).await;
            drop(next.await);
            drop(empty);
        }
        assert!(ranges.0.lock().held.is_empty());
    }

    /// Takes a range, counts itself in and out, and lets others run in between.
    async fn pass_through(ranges: &Ranges, extent: Extent, held: &[Cell<u32>]) {
        let _guard = ranges.lock(extent).await;
        let units = &held[extent.offset() as usize..extent.end() as usize];
        assert!(units.iter().all(|unit| unit.replace(1) == 0), "{extent} is held twice");
        step().await;
        units.iter().for_each(|unit| unit.set(0));
    }

    /// Waits for a range, and gives up after so many polls.
    async fn give_up(ranges: &Ranges, extent: Extent, polls: usize) {
        let mut waiting = Box::pin(ranges.lock(extent));
        for _ in 0..polls {
            if poll!(&mut waiting).is_ready() {
                return;
            }
            step().await;
        }
    }

    #[test]
    fn in_every_order_no_two_hold_the_same_unit_and_nobody_waits_for_ever() {
        let orders = Orders::All { interruptions: None }.explore(|order| {
            let (ranges, held) = (Ranges::default(), vec![Cell::new(0); 8]);
            order.run([
                Box::pin(pass_through(&ranges, Extent::new(0, 4), &held)) as Task<'_>,
                Box::pin(pass_through(&ranges, Extent::new(2, 4), &held)),
                Box::pin(pass_through(&ranges, Extent::new(5, 2), &held)),
                Box::pin(give_up(&ranges, Extent::new(3, 3), 2)),
            ]);
            let state = ranges.0.lock();
            assert!(state.held.is_empty() && state.waiting.is_empty());
        });
        let orders = orders.unwrap();
        println!("{orders} orders");
        assert!(orders > 500);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_two_hold_the_same_unit() {
        let ranges = Ranges::default();
        let units: Arc<Vec<AtomicU64>> = Arc::new((0..64).map(|_| AtomicU64::new(0)).collect());
        let tasks: Vec<_> = (0..8u64)
            .map(|task| {
                let (ranges, units) = (ranges.clone(), units.clone());
                tokio::spawn(async move {
                    for round in 0..500u64 {
                        let start = (task * 7 + round * 13) % 60;
                        let extent = Extent::new(start, 1 + (round % 4));
                        let _guard = ranges.lock(extent).await;
                        for unit in extent.offset()..extent.end() {
                            assert_eq!(units[unit as usize].fetch_add(1, Ordering::SeqCst), 0);
                        }
                        tokio::task::yield_now().await;
                        for unit in extent.offset()..extent.end() {
                            units[unit as usize].fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(ranges.0.lock().held.is_empty());
    }
}
