//! [`Orders`]: the orders in which tasks can go on, one after another, each told again by its choices.
//!
//! A task runs from one place where it waits to the next, alone; then one of those that can go on is chosen. So what is
//! explored are orders of whole steps, of code that shares nothing but through what it awaits. What threads do to each other
//! between two instructions is not seen here.

use std::any::Any;
use std::future::Future;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// A task whose steps are put in order.
pub type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Which orders to try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Orders {
    /// Every one in which no more than so many tasks are interrupted where they could have gone on; `None` for any number.
    All {
        /// How many.
        interruptions: Option<u32>,
    },
    /// One for each seed: the task with the highest priority goes on, priorities are random, and at a few random steps that of
    /// the task that runs falls below all others. Mistakes that need few interruptions are found soon, however many steps
    /// there are.
    Random {
        /// The seeds.
        seeds: Range<u64>,
    },
    /// The one with these choices: what a failed exploration prints.
    One(Vec<usize>),
}

/// Lets others run once.
pub async fn step() {
    let mut waited = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// One order, as far as it is told.
#[derive(Debug)]
pub struct Order {
    chooser: Chooser,
    choices: Vec<usize>,
    last: Option<usize>,
}

#[derive(Debug)]
enum Chooser {
    /// Follows the path as far as it goes, and takes the first choice from there on.
    Path {
        path: Vec<Choice>,
        interruptions_left: Option<u32>,
    },
    Priorities {
        chance: Box<StdRng>,
        priorities: Vec<u64>,
        falls: Vec<usize>,
    },
}

#[derive(Clone, Copy, Debug)]
struct Choice {
    taken: usize,
    of: usize,
}

/// Steps among which random ones are chosen where a priority falls.
const FALLS_WITHIN: usize = 60;
const FALLS_MAX: usize = 6;
/// A run with more steps is taken for one that never ends.
const STEPS_MAX: usize = 100_000;

impl Order {
    fn on_path(path: Vec<Choice>, interruptions: Option<u32>) -> Self {
        Self::new(Chooser::Path { path, interruptions_left: interruptions })
    }

    fn random(seed: u64) -> Self {
        let mut chance = StdRng::seed_from_u64(seed);
        let falls = chance.random_range(0..=FALLS_MAX);
        let falls = (0..falls).map(|_| chance.random_range(0..FALLS_WITHIN)).collect();
        let chance = Box::new(chance);
        Self::new(Chooser::Priorities { chance, priorities: Vec::new(), falls })
    }

    fn new(chooser: Chooser) -> Self {
        Self { chooser, choices: Vec::new(), last: None }
    }

    /// How many steps were made so far; the clock of a run.
    pub fn steps(&self) -> usize {
        self.choices.len()
    }

    /// Runs tasks to their ends, in this order.
    ///
    /// # Panics
    /// If tasks are left that wait for each other, or a task panics.
    pub fn run<'a>(&mut self, tasks: impl IntoIterator<Item = Task<'a>>) {
        let mut tasks: Vec<_> = tasks.into_iter().map(Running::new).collect();
        self.last = None;
        while tasks.iter().any(|task| task.future.is_some()) {
            let ready: Vec<usize> =
                (0..tasks.len()).filter(|task| tasks[*task].is_ready()).collect();
            let waiting = || (0..tasks.len()).filter(|task| tasks[*task].future.is_some());
            assert!(
                !ready.is_empty(),
                "tasks {:?} wait, and nobody will wake them",
                waiting().collect::<Vec<_>>()
            );
            assert!(
                self.choices.len() < STEPS_MAX,
                "the tasks {:?} never end",
                waiting().collect::<Vec<_>>()
            );
            let chosen = self.choose(ready);
            tasks[chosen].go_on();
        }
    }

    fn choose(&mut self, mut ready: Vec<usize>) -> usize {
        // Whoever ran last comes first, so that the first choice interrupts nobody.
        let last = self.last.and_then(|last| ready.iter().position(|task| *task == last));
        if let Some(last) = last {
            ready[..=last].rotate_right(1);
        }
        let at = self.choices.len();
        let taken = match &mut self.chooser {
            Chooser::Path { path, interruptions_left } => {
                if last.is_some() && *interruptions_left == Some(0) {
                    ready.truncate(1);
                }
                if at == path.len() {
                    path.push(Choice { taken: 0, of: ready.len() });
                }
                let taken = path[at].taken.min(ready.len() - 1);
                path[at].of = ready.len();
                if let (Some(_), Some(left), true) = (last, interruptions_left, taken > 0) {
                    *left -= 1;
                }
                taken
            }
            Chooser::Priorities { chance, priorities, falls } => {
                let highest = *ready.iter().max().expect("somebody is ready");
                while priorities.len() <= highest {
                    priorities.push(chance.random_range(1 << 32..u64::MAX));
                }
                if let (Some(last), true) = (self.last, falls.contains(&at)) {
                    priorities[last] = (STEPS_MAX - at) as u64;
                }
                (0..ready.len()).max_by_key(|index| priorities[ready[*index]]).expect("as above")
            }
        };
        self.choices.push(taken);
        self.last = Some(ready[taken]);
        ready[taken]
    }

    /// The path of the next order, if there is one.
    fn next_path(self) -> Option<Vec<Choice>> {
        let Chooser::Path { mut path, .. } = self.chooser else { return None };
        while let Some(choice) = path.last_mut() {
            choice.taken += 1;
            if choice.taken < choice.of {
                return Some(path);
            }
            path.pop();
        }
        None
    }
}

struct Running<'a> {
    future: Option<Task<'a>>,
    woken: Arc<Woken>,
}

impl<'a> Running<'a> {
    fn new(future: Task<'a>) -> Self {
        Self { future: Some(future), woken: Arc::new(Woken(AtomicBool::new(true))) }
    }

    fn is_ready(&self) -> bool {
        self.future.is_some() && self.woken.0.load(Ordering::SeqCst)
    }

    fn go_on(&mut self) {
        self.woken.0.store(false, Ordering::SeqCst);
        let waker = Waker::from(self.woken.clone());
        let future = self.future.as_mut().expect("a task that has ended is not ready");
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.future = None;
        }
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// What an exploration came to.
#[derive(Debug)]
pub struct Explored {
    /// How many orders were tried.
    pub orders: u64,
    /// The first that failed: its choices, and what it panicked with.
    pub failed: Option<Failed>,
}

/// An order that failed.
pub struct Failed {
    /// Its choices.
    pub choices: Vec<usize>,
    what: Box<dyn Any + Send>,
}

impl std::fmt::Debug for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} after the choices {:?}", self.message(), self.choices)
    }
}

impl Failed {
    /// What it panicked with.
    pub fn message(&self) -> String {
        let text = self.what.downcast_ref::<String>().cloned();
        text.or_else(|| self.what.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic without words".to_owned())
    }
}

impl Explored {
    /// The number of orders, if none failed.
    ///
    /// # Panics
    /// As the order that failed did, after saying which one it was.
    pub fn unwrap(self) -> u64 {
        if let Some(failed) = self.failed {
            let choices: Vec<_> = failed.choices.iter().map(usize::to_string).collect();
            println!("order {} failed, with the choices {}", self.orders, choices.join(","));
            resume_unwind(failed.what);
        }
        self.orders
    }
}

impl Orders {
    /// Tries orders until one fails: `run` builds a world, lets its tasks [run](Order::run), and judges what came of it. It
    /// must do the same each time as long as the choices are the same.
    pub fn explore(self, mut run: impl FnMut(&mut Order)) -> Explored {
        let mut orders = 0;
        let mut try_one = |mut order: Order| {
            orders += 1;
            match catch_unwind(AssertUnwindSafe(|| run(&mut order))) {
                Ok(()) => Ok(order),
                Err(what) => Err(Failed { choices: order.choices, what }),
            }
        };
        let failed = match self {
            Orders::All { interruptions } => {
                let mut path = Some(Vec::new());
                let mut failed = None;
                while let Some(next) = path.take() {
                    match try_one(Order::on_path(next, interruptions)) {
                        Ok(order) => path = order.next_path(),
                        Err(error) => failed = Some(error),
                    }
                }
                failed
            }
            Orders::Random { seeds } => {
                seeds.map(|seed| try_one(Order::random(seed))).find_map(Result::err)
            }
            Orders::One(choices) => {
                let path = choices.into_iter().map(|taken| Choice { taken, of: usize::MAX });
                try_one(Order::on_path(path.collect(), None)).err()
            }
        };
        Explored { orders, failed }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::HashSet;

    use super::*;

    fn two_by_two(interruptions: Option<u32>) -> (u64, HashSet<String>) {
        let mut seen = HashSet::new();
        let explored = Orders::All { interruptions }.explore(|order| {
            let trace = RefCell::new(String::new());
            let task = |name: char| -> Task<'_> {
                let trace = &trace;
                Box::pin(async move {
                    trace.borrow_mut().push(name);
                    step().await;
                    trace.borrow_mut().push(name);
                })
            };
            order.run([task('a'), task('b')]);
            seen.insert(trace.take());
        });
        (explored.unwrap(), seen)
    }

    #[test]
    fn every_order_is_tried_once() {
        let (orders, seen) = two_by_two(None);
        assert_eq!((orders, seen.len()), (6, 6));
        let (orders, seen) = two_by_two(Some(0));
        assert_eq!((orders, seen.len()), (2, 2), "who began goes on to the end");
        let (orders, seen) = two_by_two(Some(1));
        assert_eq!((orders, seen.len()), (4, 4));
    }

    /// Adds one, by reading before writing.
    async fn add(to: &Cell<u32>) {
        let read = to.get();
        step().await;
        to.set(read + 1);
    }

    fn lost_update(order: &mut Order) {
        let number = Cell::new(0);
        order.run((0..3).map(|_| Box::pin(add(&number)) as Task<'_>));
        assert_eq!(number.get(), 3);
    }

    #[test]
    fn a_lost_update_is_found_and_told_again_by_its_choices() {
        let all = Orders::All { interruptions: Some(1) };
        for orders in [all, Orders::Random { seeds: 0..100 }] {
            let failed = orders.explore(lost_update).failed.unwrap();
            let again = Orders::One(failed.choices.clone()).explore(lost_update).failed.unwrap();
            assert_eq!((again.message(), again.choices), (failed.message(), failed.choices));
        }
        assert!(Orders::All { interruptions: Some(0) }.explore(lost_update).failed.is_none());
    }

    #[test]
    fn those_who_wait_for_each_other_are_found() {
        let explored = Orders::All { interruptions: None }.explore(|order| {
            let (a, b) = (tokio::sync::Mutex::new(()), tokio::sync::Mutex::new(()));
            let both = |first, second| -> Task<'_> {
                Box::pin(async move {
                    let (first, second): (&tokio::sync::Mutex<()>, &tokio::sync::Mutex<()>) =
                        (first, second);
                    let _first = first.lock().await;
                    step().await;
                    let _second = second.lock().await;
                })
            };
            order.run([both(&a, &b), both(&b, &a)]);
        });
        assert!(explored.failed.unwrap().message().contains("nobody will wake them"));
    }
}
