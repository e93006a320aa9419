//! [`MemoryCatalog`]: a pool in memory, as one process has it open.

use std::fmt;
use std::sync::Arc;

use vellum_core::ImageName;

use super::content::Units;
use super::head::MemoryHead;
use super::layer::{MemoryLayer, Stored};
use super::owners::{Hold, Lock};
use super::{MemoryStore, State};
use crate::{
    Capabilities, Catalog, Change, ChildRef, Error, ErrorKind, Finding, Heeded, ImageId,
    ImageRecord, NewImage, Pending, PoolId, Progress, Repair, Reserved, Result, RevisionId,
    Version, Wanted,
};

/// A pool in memory, open. Clones share it.
#[derive(Clone)]
pub struct MemoryCatalog {
    store: MemoryStore,
}

impl MemoryCatalog {
    pub(crate) fn new(store: MemoryStore) -> Self {
        Self { store }
    }

    pub(crate) fn store(&self) -> &MemoryStore {
        &self.store
    }

    /// Runs `call` on all that the store knows, alone.
    pub(super) fn with<T>(&self, call: impl FnOnce(&mut State) -> T) -> T {
        call(&mut self.store.0.state.lock())
    }

    fn take(&self, state: &mut State, revision: &RevisionId, hold: Hold) -> Result<Lock> {
        let lock = Lock::take(&self.store, &mut state.owners, revision, hold);
        lock.ok_or_else(|| in_use(&format!("revision {revision}")))
    }
}

impl State {
    pub(super) fn add_stored(&mut self, record: &ImageRecord) -> Arc<Stored> {
        let units = Units { size: record.size(), unit: u64::from(record.block_size) };
        let stored = Stored::empty(record.head.clone(), units);
        self.stored.insert(record.head.clone(), stored.clone());
        stored
    }

    fn stored(&self, image: &ImageId, revision: &RevisionId) -> Result<Arc<Stored>> {
        self.images.revision(image, revision)?;
        Ok(self.stored.get(revision).expect("each revision has what it stores").clone())
    }

    fn sealed(&self, image: &ImageId, revision: &RevisionId) -> Result<Arc<Stored>> {
        if self.images.revision(image, revision)?.sealed {
            return self.stored(image, revision);
        }
        let what =
            format!("revision {revision} is the head of image {image}, which can still change");
        Err(Error::new(ErrorKind::Invalid, what))
    }
}

/// What is held of an id that is kept. No revision has this name.
fn kept(id: &ImageId) -> RevisionId {
    RevisionId::new(format!("kept for {id}"))
}

fn in_use(what: &str) -> Error {
    let what = format!("{what} is in use; ask its holder, or wait until it is closed");
    Error::new(ErrorKind::InUse, what)
}

impl Catalog for MemoryCatalog {
    type Layer = MemoryLayer;
    type Head = MemoryHead;

    fn pool(&self) -> PoolId {
        self.store.0.pool
    }

    fn capabilities(&self) -> &Capabilities {
        &self.store.0.capabilities
    }

    async fn create(&self, new: NewImage) -> Result<ImageRecord> {
        self.with(|state| {
            let record = state.images.create(new, self.capabilities())?;
            state.add_stored(&record);
            Ok(record)
        })
    }

    fn unused_id(&self) -> ImageId {
        self.with(|state| state.images.unused_id())
    }

    async fn reserve(&self, id: &ImageId) -> Result<Reserved> {
        self.with(|state| Ok(Reserved::new(self.take(state, &kept(id), Hold::Alone)?)))
    }

    async fn is_gone(&self, id: &ImageId) -> Result<bool> {
        Ok(self.with(|state| !state.owners.is_held(&kept(id)) && state.images.get(id).is_err()))
    }

    async fn find(&self, name: &ImageName) -> Result<ImageRecord> {
        self.with(|state| state.images.find(name).cloned())
    }

    async fn get(&self, id: &ImageId) -> Result<ImageRecord> {
        self.with(|state| state.images.get(id).cloned())
    }

    async fn list(&self, after: Option<&ImageName>, max: usize) -> Result<Vec<ImageRecord>> {
        Ok(self.with(|state| state.images.list(after, max)))
    }

    async fn change(&self, id: &ImageId, at: Version, change: Change) -> Result<ImageRecord> {
        self.with(|state| state.images.change(id, at, change))
    }

    async fn remove(&self, id: &ImageId, at: Version) -> Result<()> {
        self.with(|state| {
            let record = state.images.at_version(id, at)?;
            if record.revisions.iter().any(|revision| state.owners.is_held(&revision.id)) {
                return Err(in_use(&format!("image {}", record.name)));
            }
            for revision in state.images.remove(id)? {
                state.stored.remove(&revision);
            }
            Ok(())
        })
    }

    async fn attach(&self, image: &ImageId, revision: &RevisionId, child: &ChildRef) -> Result<()> {
        self.with(|state| state.images.attach(image, revision, child.clone()))
    }

    async fn detach(&self, image: &ImageId, revision: &RevisionId, child: &ChildRef) -> Result<()> {
        self.with(|state| state.images.detach(image, revision, child));
        Ok(())
    }

    async fn children(&self, image: &ImageId) -> Result<Vec<(RevisionId, ChildRef)>> {
        self.with(|state| state.images.children(image))
    }

    /// Nothing ever: each call of this engine is one step.
    async fn pending(&self) -> Result<Vec<Pending>> {
        Ok(Vec::new())
    }

    async fn resume(&self, pending: &Pending) -> Result<()> {
        let what = format!("{:?} is no pending work of this engine", pending.token);
        Err(Error::new(ErrorKind::Invalid, what))
    }

    async fn layer(&self, image: &ImageId, revision: &RevisionId) -> Result<MemoryLayer> {
        self.with(|state| Ok(MemoryLayer::new(state.sealed(image, revision)?, None)))
    }

    async fn read_head(&self, image: &ImageId) -> Result<MemoryLayer> {
        self.with(|state| {
            let head = state.images.get(image)?.head.clone();
            let stored = state.stored(image, &head)?;
            let lock = self.take(state, &head, Hold::Shared)?;
            Ok(MemoryLayer::new(stored, Some(lock)))
        })
    }

    async fn own(&self, image: &ImageId) -> Result<MemoryHead> {
        self.with(|state| {
            let head = state.images.get(image)?.head.clone();
            let stored = state.stored(image, &head)?;
            let lock = self.take(state, &head, Hold::Alone)?;
            Ok(MemoryHead::owner(self.clone(), image.clone(), stored, lock))
        })
    }

    async fn ask_owner(&self, _: &ImageId, _: Wanted, _: Progress<'_>) -> Result<Heeded> {
        Ok(Heeded::ByNobody)
    }

    async fn filler(&self, image: &ImageId, revision: &RevisionId) -> Result<MemoryHead> {
        self.with(|state| {
            let stored = state.sealed(image, revision)?;
            let lock = self.take(state, revision, Hold::Alone)?;
            Ok(MemoryHead::filler(self.clone(), image.clone(), stored, lock))
        })
    }

    async fn check(&self, image: Option<&ImageId>, repair: Repair) -> Result<Vec<Finding>> {
        self.with(|state| state.images.check(image, repair))
    }

    async fn stored_bytes(&self, image: &ImageId, revision: &RevisionId) -> Result<u64> {
        let stored = self.with(|state| state.stored(image, revision))?;
        let bytes = stored.lock().now.stored_bytes();
        Ok(bytes)
    }
}

impl fmt::Debug for MemoryCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryCatalog({})", self.store.0.pool)
    }
}
