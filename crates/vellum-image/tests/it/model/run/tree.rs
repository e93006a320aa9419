//! What changes which images and snapshots there are, what they are called, and what is noted on them; and what each of these must answer, beside whatever
//! else is under way.

use super::*;

impl<G: Ground> Run<G> {
    /// The first image, or a clone of the last one's snapshot.
    pub(super) async fn extend_chain(&self, shape: &Shape) {
        match self.images().last().cloned() {
            Some(last) => self.clone(&last, 0, false, shape).await,
            None => {
                self.create(shape, None).await.unwrap();
                let known = self.images()[0].clone();
                // So that there is something to inherit.
                self.write(&known, Extent::new(0, shape.size), 251, false).await;
            }
        }
        self.settle().await;
    }

    /// A new image, open.
    async fn create(&self, shape: &Shape, parent: Option<(Parent, NewParent)>) -> Result<()> {
        let name = self.new_name("i");
        let new = NewImage {
            name: name.parse().unwrap(),
            size: shape.size,
            geometry: shape.geometry,
            layering: shape.layering,
            block_size: shape.block_size,
            parent: parent.as_ref().map(|(_, new)| new.clone()),
            id: None,
            meta: Default::default(),
        };
        let record = self.catalog.create(new).await?;
        let parent = parent.map(|(parent, _)| parent);
        if let Some(parent) = &parent {
            let of = self.images.borrow().iter().find(|it| it.name == parent.image).cloned();
            let of = of.expect("what has children is not removed");
            let there = of.with_snapshot(&parent.snapshot, |it| it.is_parent = true);
            assert!(there.is_some(), "{name} hangs on what was removed");
        }
        let zeros = || Arc::new(vec![0; shape.size as usize]);
        let content = parent.as_ref().map_or_else(zeros, |parent| parent.shown.clone());
        let state = State { cells: Cells::new(content), parent, ..State::default() };
        let known = Rc::new(Known {
            called: RefCell::new(Called { name: name.clone(), since: record.version }),
            name,
            notes: RefCell::default(),
            id: record.id,
            image: RefCell::new(None),
            users: Cell::new(0),
            comes: Cell::new(true),
            leaves: Cell::new(false),
            state: RefCell::new(state),
        });
        self.images.borrow_mut().push(known.clone());
        self.open(&known).await;
        known.comes.set(false);
        Ok(())
    }

    /// A clone of a snapshot, which is made first if there is none, or if it is to go with the clone.
    pub(super) async fn clone(
        &self,
        known: &Known<Paced<G>>,
        which: usize,
        auto: bool,
        shape: &Shape,
    ) {
        if self.images().len() + self.coming.get() >= IMAGES_MAX {
            return;
        }
        self.coming.update(|coming| coming + 1);
        known.users.update(|users| users + 1);
        let snapshot = Self::pick_snapshot(known, which).filter(|_| !auto);
        let snapshot = match snapshot {
            Some(snapshot) => snapshot.id,
            None => self.snapshot(known, auto).await,
        };
        known.users.update(|users| users - 1);
        known.state.borrow_mut().begin_clone();
        if let Some((parent, new)) = self.parent_of(known, &snapshot, shape).await
            && let Err(error) = self.create(shape, Some((parent, new))).await
        {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
            assert!(known.may_lack(&snapshot), "{error:?}");
        }
        known.state.borrow_mut().clones -= 1;
        self.coming.update(|coming| coming - 1);
    }

    async fn parent_of(
        &self,
        known: &Known<Paced<G>>,
        snapshot: &SnapshotId,
        shape: &Shape,
    ) -> Option<(Parent, NewParent)> {
        let content = self.look_at_snapshot(known, snapshot).await?;
        let record = match self.catalog.get(&known.id).await {
            Ok(record) => record,
            Err(error) => {
                assert_eq!((error.kind(), known.leaves.get()), (ErrorKind::NotFound, true));
                return None;
            }
        };
        let Some(found) = record.snapshots.iter().find(|it| it.id == *snapshot) else {
            assert!(known.may_lack(snapshot), "{} has lost {snapshot}", known.name);
            return None;
        };
        let overlap = shape.overlap.min(shape.size).min(content.len() as u64);
        let mut shown = content[..overlap as usize].to_vec();
        shown.resize(shape.size as usize, 0);
        let revision = found.revision.clone();
        let link = ParentLink { pool: self.catalog.pool(), image: record.id, revision };
        let image = known.name.clone();
        let parent = Parent { image, snapshot: snapshot.clone(), shown: Arc::new(shown) };
        Some((parent, NewParent { link, overlap }))
    }

    /// Removes an image. One that somebody uses is refused, and so is one that has children.
    pub(super) async fn remove(&self, known: &Known<Paced<G>>) {
        let before = known.state.borrow().clones_ended();
        let had_children = self.has_children(known, None, false);
        let in_use = known.users.get() > 0;
        known.users.update(|users| users + 1);
        if !in_use {
            known.leaves.set(true);
            self.close(known).await;
        }
        let removed = admin::remove(&self.pools, &self.catalog, &known.id).await;
        known.users.update(|users| users - 1);
        match removed.map_err(|error| error.kind()) {
            Ok(()) => {
                assert!(!in_use, "{} was in use", known.name);
                assert!(!self.has_children(known, None, true), "{} had children", known.name);
                self.images.borrow_mut().retain(|other| other.name != known.name);
            }
            Err(kind) => {
                let may_have = had_children || known.state.borrow().clones_begun > before;
                match kind {
                    ErrorKind::HasChildren => assert!(may_have, "{} has none", known.name),
                    ErrorKind::InUse => assert!(in_use, "{} is not in use", known.name),
                    kind => panic!("{}: {kind:?}", known.name),
                }
                if !in_use {
                    self.open(known).await;
                    known.leaves.set(false);
                }
            }
        }
    }

    /// Whoever uses an image goes on, whatever it is called. No two are called the same.
    pub(super) async fn rename(&self, known: &Known<Paced<G>>, taken: Option<usize>) {
        let other = taken.and_then(|number| self.pick(number));
        let name = other.as_ref().map_or_else(|| self.new_name("r"), |other| other.called());
        let change = |_: &ImageRecord| Ok(Change::Rename(name.parse().unwrap()));
        match admin::change(&self.catalog, &known.id, change).await {
            Ok(record) => known.called.borrow_mut().is_now(name, record.version),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Exists, "{error:?}");
                assert!(other.is_some(), "{error:?}");
            }
        }
    }

    /// Notes something new, or takes away what is noted, which may be nothing.
    pub(super) async fn note(&self, known: &Known<Paced<G>>, key: u8, away: bool) {
        let (key, text) = (format!("key{key}"), (!away).then(|| self.new_name("n")));
        let change = |_: &ImageRecord| Ok(Change::Meta(key.clone(), text.clone()));
        let record = admin::change(&self.catalog, &known.id, change).await.unwrap();
        let (new, mut notes) = (Note { text, since: record.version }, known.notes.borrow_mut());
        if notes.get(&key).is_none_or(|old| old.since < new.since) {
            notes.insert(key, new);
        }
    }

    pub(super) async fn snapshot(&self, known: &Known<Paced<G>>, auto: bool) -> SnapshotId {
        let name = self.new_name("s");
        let began = self.tick();
        let record = known.image().snapshot(name.parse().unwrap(), auto).await.unwrap();
        let ended = self.tick();
        let id = record.snapshot(&name.parse().unwrap()).unwrap().id.clone();
        let mut state = known.state.borrow_mut();
        state.cells.synced(began);
        let content = Content::OfAMoment { cells: state.cells.clone(), began, ended };
        let called = Called { name, since: record.version };
        let snapshot =
            Snapshot { id: id.clone(), called, auto, removals: 0, is_parent: false, content };
        state.snapshots.push(snapshot);
        id
    }

    fn pick_snapshot(known: &Known<Paced<G>>, which: usize) -> Option<Snapshot> {
        let snapshots = &known.state.borrow().snapshots;
        Some(snapshots[which.checked_rem(snapshots.len())?].clone())
    }

    /// Whether images hang on a snapshot of one, or on any of them; those for sure that nothing cuts off now.
    fn has_children(&self, known: &Known<Paced<G>>, on: Option<&SnapshotId>, sure: bool) -> bool {
        let hangs = |other: &Rc<Known<Paced<G>>>| {
            let state = other.state.borrow();
            let stays = !other.leaves.get() && state.flattens == 0;
            let parent = state.parent.as_ref().filter(|_| stays || !sure);
            parent
                .is_some_and(|it| it.image == known.name && on.is_none_or(|on| it.snapshot == *on))
        };
        self.images.borrow().iter().any(hangs)
    }

    pub(super) async fn remove_snapshot(&self, known: &Known<Paced<G>>, which: usize) {
        let Some(Snapshot { id, called, .. }) = Self::pick_snapshot(known, which) else { return };
        let before = known.state.borrow().clones_ended();
        let had_children = self.has_children(known, Some(&id), false);
        known.with_snapshot(&id, |it| it.removals += 1);
        let removed = known.image().remove_snapshot(&called.name.parse().unwrap()).await;
        known.with_snapshot(&id, |it| it.removals -= 1);
        match removed {
            Ok(_) => {
                assert!(!self.has_children(known, Some(&id), true), "{} had children", called.name);
                known.state.borrow_mut().snapshots.retain(|it| it.id != id);
            }
            Err(error) if error.kind() == ErrorKind::HasChildren => {
                assert!(had_children || known.state.borrow().clones_begun > before, "{error:?}");
            }
            // Somebody else was faster, or has renamed it.
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
                let now = known.with_snapshot(&id, |it| it.called.name.clone());
                assert!(known.may_lack(&id) || now != Some(called.name), "{error:?}");
            }
        }
    }

    /// Children go on reading, whatever it is called.
    pub(super) async fn rename_snapshot(&self, known: &Known<Paced<G>>, which: usize) {
        let Some(Snapshot { id, .. }) = Self::pick_snapshot(known, which) else { return };
        let name = self.new_name("t");
        let change =
            |_: &ImageRecord| Ok(Change::RenameSnapshot(id.clone(), name.parse().unwrap()));
        match admin::change(&self.catalog, &known.id, change).await {
            Ok(record) => {
                known.with_snapshot(&id, |it| {
                    it.called.is_now(name.clone(), record.version);
                    it.auto = false;
                });
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
                assert!(known.may_lack(&id), "{error:?}");
            }
        }
    }

    /// Every image, and every snapshot, is found by what it is called, and no other is there.
    pub(super) async fn look_at_names(&self) {
        let records = self.catalog.list(None, 2 * IMAGES_MAX).await.unwrap();
        assert_eq!(records.len(), self.images().len());
        for known in &self.images() {
            let record = self.catalog.find(&known.called().parse().unwrap()).await.unwrap();
            assert_eq!(record.id, known.id);
            assert_eq!(record.meta, noted(known), "notes on {}", known.name);
            self.look_at_snapshots_of(known, &record);
        }
    }

    /// An automatic snapshot is there until it has lost its last child.
    fn look_at_snapshots_of(&self, known: &Known<Paced<G>>, record: &ImageRecord) {
        let snapshots = known.state.borrow().snapshots.clone();
        let stays = |it: &Snapshot| {
            !it.auto || !it.is_parent || self.has_children(known, Some(&it.id), false)
        };
        known.state.borrow_mut().snapshots = snapshots.into_iter().filter(stays).collect();
        let there: BTreeMap<_, _> =
            record.snapshots.iter().map(|it| (it.id.clone(), it.name.to_string())).collect();
        let state = known.state.borrow();
        let expected: BTreeMap<_, _> =
            state.snapshots.iter().map(|it| (it.id.clone(), it.called.name.clone())).collect();
        assert_eq!(there, expected, "snapshots of {}", known.name);
    }
}

/// All that is noted on an image.
fn noted<C: Catalog>(known: &Known<C>) -> BTreeMap<String, String> {
    let notes = known.notes.borrow();
    let noted = notes.iter().filter_map(|(key, note)| Some((key.clone(), note.text.clone()?)));
    noted.collect()
}
