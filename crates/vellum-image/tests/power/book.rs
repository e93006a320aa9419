//! [`Book`]: all that is known of the images of a story, written by those who act on them, in whatever process.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use vellum_engine::ImageRecord;

use crate::known::{Change, Frozen, Known};

pub type Shared<T> = Rc<RefCell<T>>;

/// Of one story.
#[derive(Debug, Default)]
pub struct Book {
    images: RefCell<Vec<Shared<Known>>>,
    changes: RefCell<Vec<Open>>,
    /// Which process has an image open, takes it, or gives it up.
    held: RefCell<Vec<Held>>,
    /// Images that a process had when it died: what it was writing is not known.
    left: RefCell<BTreeSet<String>>,
    numbers: Cell<u64>,
}

#[derive(Clone, Debug)]
struct Held {
    by: u64,
    image: String,
    /// It has it, and is not about to give it up.
    surely: bool,
}

/// A change that has not ended, or whose end nobody knows.
#[derive(Clone, Debug)]
struct Open {
    number: u64,
    by: u64,
    image: String,
    change: Change,
    /// Whoever made it is dead, or was told that it may have happened.
    lost: bool,
}

impl Book {
    fn number(&self) -> u64 {
        self.numbers.set(self.numbers.get() + 1);
        self.numbers.get()
    }

    /// A name that nothing has.
    pub fn new_name(&self, what: &str) -> String {
        format!("{what}{}", self.number())
    }

    pub fn images(&self) -> Vec<Shared<Known>> {
        self.images.borrow().clone()
    }

    pub fn find(&self, name: &str) -> Option<Shared<Known>> {
        self.images.borrow().iter().find(|known| known.borrow().name == name).cloned()
    }

    /// What an image may be called: as it is, or as changes that have not ended make it.
    pub fn may_be_called(&self, image: &str) -> Vec<String> {
        let called = self.find(image).map(|known| known.borrow().called.0.clone());
        let mut names = vec![called.unwrap_or_else(|| image.to_owned())];
        let changes = self.changes.borrow();
        names.extend(changes.iter().filter(|open| open.image == image).filter_map(|open| {
            if let Change::Rename { to } = &open.change { Some(to.clone()) } else { None }
        }));
        names
    }

    /// The image that may be called so.
    pub fn find_called(&self, called: &str) -> Option<Shared<Known>> {
        self.images().into_iter().find(|known| {
            self.may_be_called(&known.borrow().name).iter().any(|name| name == called)
        })
    }

    pub fn add(&self, name: &str, pool: usize, content: &Frozen, parent: Option<Frozen>) {
        let known = Known::new(name.to_owned(), pool, content, parent);
        self.images.borrow_mut().push(Rc::new(RefCell::new(known)));
    }

    pub fn remove(&self, name: &str) {
        self.images.borrow_mut().retain(|known| known.borrow().name != name);
    }

    /// A process begins to change an image.
    pub fn begin(&self, by: u64, image: &str, change: Change) -> u64 {
        let number = self.number();
        let (image, lost) = (image.to_owned(), false);
        self.changes.borrow_mut().push(Open { number, by, image, change, lost });
        number
    }

    /// It was told how that ended.
    pub fn ended(&self, number: u64) {
        self.changes.borrow_mut().retain(|open| open.number != number);
    }

    /// It was told that nobody knows.
    pub fn lost(&self, number: u64) {
        let mut changes = self.changes.borrow_mut();
        changes.iter_mut().filter(|open| open.number == number).for_each(|open| open.lost = true);
    }

    /// Whether nobody knows how a change of this image ended.
    pub fn is_in_doubt(&self, image: &str) -> bool {
        self.changes.borrow().iter().any(|open| open.lost && open.image == image)
    }

    /// Whether a change of an image is under way, or in doubt, that satisfies a condition.
    pub fn may_be(&self, image: &str, what: impl Fn(&Change) -> bool) -> bool {
        self.changes.borrow().iter().any(|open| open.image == image && what(&open.change))
    }

    /// Whether an image may be there that is not among those that are known.
    pub fn may_have_image(&self, image: &str) -> bool {
        self.may_be(image, |change| matches!(change, Change::Create { .. } | Change::Clone { .. }))
    }

    /// Whether an image may be gone, or about to go.
    pub fn may_lack_image(&self, image: &str) -> bool {
        self.find(image).is_none() || self.may_be(image, |change| matches!(change, Change::Remove))
    }

    /// Whether a snapshot may be gone, or about to go.
    pub fn may_lack(&self, image: &str, snapshot: &str) -> bool {
        let there = self.find(image).is_some_and(|it| it.borrow_mut().snapshot(snapshot).is_some());
        !there
            || self.may_be(image, |change| match change {
                Change::Remove => true,
                Change::RemoveSnapshot { name } => name == snapshot,
                _ => false,
            })
    }

    /// A process has an image, or takes it, or gives it up.
    pub fn hold(&self, by: u64, image: &str, surely: bool) {
        self.let_go(by, image);
        self.held.borrow_mut().push(Held { by, image: image.to_owned(), surely });
    }

    pub fn let_go(&self, by: u64, image: &str) {
        self.held.borrow_mut().retain(|held| held.by != by || held.image != image);
    }

    /// Whether another process may have an image open.
    pub fn is_held_beside(&self, by: u64, image: &str) -> bool {
        self.held.borrow().iter().any(|held| held.by != by && held.image == image)
    }

    /// Whether another process has it.
    pub fn is_owned_beside(&self, by: u64, image: &str) -> bool {
        self.held.borrow().iter().any(|held| held.by != by && held.image == image && held.surely)
    }

    /// A process has died.
    pub fn died(&self, process: u64) {
        let mut changes = self.changes.borrow_mut();
        changes.iter_mut().filter(|open| open.by == process).for_each(|open| open.lost = true);
        let mut held = self.held.borrow_mut();
        let gone = held.extract_if(.., |held| held.by == process);
        self.left.borrow_mut().extend(gone.map(|held| held.image));
    }

    /// Whether a process had an image when it died, which is asked once.
    pub fn take_left(&self, image: &str) -> bool {
        self.left.borrow_mut().remove(image)
    }

    /// Everything was looked at after all processes have ended.
    pub fn is_settled(&self) {
        assert!(self.changes.borrow().is_empty());
        self.held.borrow_mut().clear();
        self.left.borrow_mut().clear();
    }

    /// The names of images that changes in doubt are about.
    pub fn in_doubt(&self) -> BTreeSet<String> {
        self.changes.borrow().iter().filter(|it| it.lost).map(|it| it.image.clone()).collect()
    }

    /// The record of an image among those of its pool.
    pub fn record_of<'a>(
        &self,
        image: &str,
        mut records: impl Iterator<Item = &'a ImageRecord>,
    ) -> Option<&'a ImageRecord> {
        let names = self.may_be_called(image);
        records.find(|record| names.contains(&record.name.to_string()))
    }

    /// What became of the changes of an image that were in doubt is what its record says; `None` if there is none.
    pub fn decide(&self, image: &str, record: Option<&ImageRecord>) {
        let (lost, rest) = self
            .changes
            .borrow_mut()
            .drain(..)
            .partition(|open: &Open| open.lost && open.image == image);
        *self.changes.borrow_mut() = rest;
        let lost: Vec<Open> = lost;
        for open in lost {
            self.settle(image, open.change, record);
        }
    }

    fn settle(&self, image: &str, change: Change, record: Option<&ImageRecord>) {
        let Some(record) = record else {
            if matches!(change, Change::Remove) {
                self.remove(image);
            }
            return;
        };
        match change {
            Change::Create { pool } => return self.add(image, pool, &Frozen::zeros(), None),
            Change::Clone { pool, content, .. } => {
                return self.add(image, pool, &content, Some(content.clone()));
            }
            _ => {}
        }
        let Some(known) = self.find(image) else { return };
        let mut known = known.borrow_mut();
        let has = |name: &str| record.snapshot(&name.parse().unwrap()).is_some();
        match change {
            Change::Snapshot { name, since } if has(&name) => known.has_snapshot(name, since),
            Change::RemoveSnapshot { name } if !has(&name) => {
                known.snapshots.retain(|known| known.name != name);
            }
            Change::Rename { .. } => known.is_called(record),
            Change::Flatten => {
                known.flattens = false;
                if record.parent().is_none() {
                    known.parent = None;
                }
            }
            _ => {}
        }
    }
}
