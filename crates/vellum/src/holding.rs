//! The images that a server owns: from the first client that may write to the last, and a moment longer.
//!
//! ```text
//!            own                      last user goes              grace is over, still no user
//!   absent -------> held, used ---------------------> held, idle ------------------------------> absent
//!                     ^                                   |
//!                     +------------- own -----------------+
//! ```
//!
//! Connections share what is held. A place in the table is locked while its image is being opened or closed, and users come and
//! go only under that lock or while another user keeps the image held, so that no one gets an image that is being closed.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex as SyncMutex;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use vellum_engine::{Catalog as _, ImageId, PoolId, Result};
use vellum_image::image::Open;

use crate::control::hint;
use crate::vellum::Located;
use crate::{Image, Vellum, requests};

/// Names an image among all pools: copies of a pool have images of the same ids.
pub(crate) type Key = (PoolId, ImageId);

/// The images that this server owns. Clones share them.
#[derive(Clone)]
pub(crate) struct Holdings(Arc<Shared>);

struct Shared {
    vellum: Vellum,
    /// Where this process is asked about them.
    control: PathBuf,
    /// How long an image is kept after its last user.
    grace: Duration,
    table: SyncMutex<HashMap<Key, Arc<Slot>>>,
}

type Slot = Mutex<Option<Arc<Held>>>;

/// An image that this process owns.
struct Held {
    located: Located,
    image: Image,
    /// Clients, and operations under way.
    users: AtomicUsize,
    clients: Arc<AtomicUsize>,
    /// The names under which clients have opened it, which go on working after a rename until the last client has left.
    names: SyncMutex<HashSet<String>>,
    /// Set when the image takes no writes until it is opened again.
    broken: AtomicBool,
    /// Answers what others want of the image; ends with this.
    _answering: JoinSet<()>,
}

impl Holdings {
    pub(crate) fn new(vellum: Vellum, control: PathBuf, grace: Duration) -> Self {
        Self(Arc::new(Shared { vellum, control, grace, table: SyncMutex::default() }))
    }

    /// The image for one more client, who calls it `name`; opened for writing if this process does not hold it yet.
    pub(crate) async fn own(&self, located: &Located, name: &str) -> Result<User> {
        let key = (located.catalog.pool(), located.record.id.clone());
        let slot = self.0.table.lock().entry(key.clone()).or_default().clone();
        let mut here = slot.lock().await;
        if let Some(broken) =
            here.take_if(|held| held.is_broken() && held.users.load(Ordering::SeqCst) == 0)
        {
            broken.close().await;
        }
        if here.is_none() {
            *here = Some(self.open(located, &key).await?);
        }
        let held = here.as_ref().expect("it was there or was opened");
        held.names.lock().insert(name.to_owned());
        Ok(User::new(self, key, held, Role::Client))
    }

    async fn open(&self, located: &Located, key: &Key) -> Result<Arc<Held>> {
        let image = self.0.vellum.open_located(located, Open::Own).await?;
        if let Err(error) = hint::leave(&located.hints, image.id(), &self.0.control) {
            tracing::warn!(image = %located.record.name, %error, "others will not find who holds the image");
        }
        let clients = Arc::new(AtomicUsize::new(0));
        let mut answering = JoinSet::new();
        let catalog = located.catalog.clone();
        let (holdings, key) = (Arc::downgrade(&self.0), key.clone());
        // Not by a share of what this is a part of.
        let keep = move || Holdings(holdings.upgrade()?).find(&key);
        answering.spawn(requests::answer(image.clone(), catalog, clients.clone(), keep));
        Ok(Arc::new(Held {
            located: located.clone(),
            image,
            users: AtomicUsize::new(0),
            names: SyncMutex::default(),
            broken: AtomicBool::new(false),
            clients,
            _answering: answering,
        }))
    }

    /// The image for an operation, if it is held. Not if it is being opened or closed, which does not last.
    pub(crate) fn find(&self, key: &Key) -> Option<User> {
        let slot = self.0.table.lock().get(key)?.clone();
        let here = slot.try_lock().ok()?;
        Some(User::new(self, key.clone(), here.as_ref()?, Role::Operation))
    }

    /// How many clients use an image, if it is held.
    pub(crate) fn clients(&self, key: &Key) -> Option<usize> {
        let slot = self.0.table.lock().get(key)?.clone();
        let here = slot.try_lock().ok()?;
        here.as_ref().map(|held| held.clients.load(Ordering::SeqCst))
    }

    /// What a client may still mean by a name that no image has any more.
    pub(crate) async fn renamed(&self, name: &str) -> Option<Located> {
        let slots: Vec<_> = self.0.table.lock().values().cloned().collect();
        let held = slots.iter().find_map(|slot| {
            slot.try_lock().ok()?.as_ref().filter(|held| held.names.lock().contains(name)).cloned()
        })?;
        let record = held.located.catalog.get(held.image.id()).await.ok()?;
        Some(Located { record, ..held.located.clone() })
    }

    /// Syncs and gives up everything, whoever uses it. Says whether all of it was done, in time.
    pub(crate) async fn close_all(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        let slots: Vec<_> = self.0.table.lock().drain().map(|(_, slot)| slot).collect();
        let mut well = true;
        for slot in slots {
            let close = async {
                match slot.lock().await.take() {
                    Some(held) => held.close().await,
                    None => true,
                }
            };
            well &= tokio::time::timeout_at(until.into(), close).await.unwrap_or(false);
        }
        well
    }

    /// Closes an image that has had no user for a while.
    async fn release(self, key: Key) {
        tokio::time::sleep(self.0.grace).await;
        let Some(slot) = self.0.table.lock().get(&key).cloned() else { return };
        let mut here = slot.lock().await;
        if let Some(held) = here.take_if(|held| held.users.load(Ordering::SeqCst) == 0) {
            held.close().await;
        }
        drop(here);
        let mut table = self.0.table.lock();
        // Whoever waits for the place has a share of it; new ones come by the table, which is locked.
        if Arc::strong_count(&slot) == 2 && slot.try_lock().is_ok_and(|here| here.is_none()) {
            table.remove(&key);
        }
    }
}

impl fmt::Debug for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Holdings({})", self.0.table.lock().len())
    }
}

impl Held {
    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    async fn close(&self) -> bool {
        // On a thread of its own: whoever waits for this gives up at some time, and a disk that stands still must not keep it.
        let (hints, id) = (self.located.hints.clone(), self.image.id().clone());
        let _ = tokio::task::spawn_blocking(move || hint::remove(&hints, &id)).await;
        let closed = self.image.clone().close().await;
        if let Err(error) = &closed {
            tracing::error!(image = %self.image.record().name, error = %error.chain(), "an image could not be synced when it was closed");
        }
        closed.is_ok()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Operation,
}

/// Keeps an image held.
pub(crate) struct User {
    holdings: Holdings,
    key: Key,
    held: Arc<Held>,
    role: Role,
    runtime: Handle,
}

impl User {
    fn new(holdings: &Holdings, key: Key, held: &Arc<Held>, role: Role) -> Self {
        held.users.fetch_add(1, Ordering::SeqCst);
        if role == Role::Client {
            held.clients.fetch_add(1, Ordering::SeqCst);
        }
        let (holdings, held, runtime) = (holdings.clone(), held.clone(), Handle::current());
        Self { holdings, key, held, role, runtime }
    }

    /// The image.
    pub(crate) fn image(&self) -> &Image {
        &self.held.image
    }

    /// Says that the image takes no writes until it is opened again, so that the next client after the last gets it anew.
    pub(crate) fn set_broken(&self) {
        self.held.broken.store(true, Ordering::SeqCst);
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if self.role == Role::Client {
            self.held.clients.fetch_sub(1, Ordering::SeqCst);
        }
        if self.held.users.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.runtime.spawn(self.holdings.clone().release(self.key.clone()));
        }
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "User({:?})", self.held.image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HomeOptions;

    async fn holdings(home: &std::path::Path, grace: Duration) -> (Holdings, Located) {
        let vellum = Vellum::open(HomeOptions { home: Some(home.to_owned()) }).await.unwrap();
        let spec = "a".parse().unwrap();
        vellum.create(&spec, 1 << 20, Default::default()).await.unwrap();
        let located = vellum.locate(&spec).await.unwrap();
        (Holdings::new(vellum, home.join("control"), grace), located)
    }

    fn is_owned(image: &Image) -> bool {
        image.ownership() == vellum_engine::Ownership::Held
    }

    #[tokio::test]
    async fn an_image_that_takes_no_writes_is_opened_anew_for_the_next_client_after_the_last() {
        let home = tempfile::tempdir().unwrap();
        let (holdings, located) = holdings(home.path(), Duration::from_secs(600)).await;
        let first = holdings.own(&located, "a").await.unwrap();
        let broken = first.image().clone();
        first.set_broken();
        let second = holdings.own(&located, "a").await.unwrap();
        drop(first);
        assert!(is_owned(&broken), "the second client still uses it");
        drop(second);
        let third = holdings.own(&located, "a").await.unwrap();
        assert!(!is_owned(&broken) && is_owned(third.image()));
    }

    #[tokio::test]
    async fn an_operation_keeps_an_image_held_and_is_no_client() {
        let home = tempfile::tempdir().unwrap();
        let (holdings, located) = holdings(home.path(), Duration::ZERO).await;
        let key = (located.catalog.pool(), located.record.id.clone());
        assert!(holdings.find(&key).is_none() && holdings.clients(&key).is_none());
        let client = holdings.own(&located, "a").await.unwrap();
        let operation = holdings.find(&key).unwrap();
        assert_eq!(holdings.clients(&key), Some(1));
        drop(client);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(holdings.clients(&key), Some(0));
        let image = operation.image().clone();
        assert!(is_owned(&image));
        drop(operation);
        while is_owned(&image) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(holdings.find(&key).is_none());
        while !holdings.0.table.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn closing_everything_does_not_wait_for_users() {
        let home = tempfile::tempdir().unwrap();
        let (holdings, located) = holdings(home.path(), Duration::ZERO).await;
        let client = holdings.own(&located, "a").await.unwrap();
        assert!(holdings.close_all(Duration::from_secs(10)).await);
        assert!(!is_owned(client.image()));
        assert!(hint::find(&located.hints, &located.record.id).is_none());
    }
}
