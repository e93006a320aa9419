//! [`LockFile`]: who owns what.
//!
//! A layer is owned by holding the lock of one byte of `pool.lock`, at the offset that is the layer's id: exclusively by
//! the one who writes or fills it, shared by those who read a head and keep writers out. The kernel keeps such a lock
//! until its description is closed, so a process that dies owns nothing any more.
//!
//! All locks of one open pool are on one description, which would not conflict with itself; what is held within the
//! process is therefore counted here as well. These locks say who may begin; that nobody's last write is still on its way
//! is the business of the locks on the data files themselves.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use vellum_core::Extent;
use vellum_disk::{File, LockKind};
use vellum_engine::{Error, Result};

use crate::LayerId;

/// The byte that is held while a pool is created. No layer has this id.
const POOL_BYTE: Extent = Extent::new(0, 1);

/// The open lock file of a pool. Clones share it.
pub(crate) struct LockFile<F: File>(Arc<Inner<F>>);

struct Inner<F> {
    /// None on a read-only file system that has no lock file: nobody can write there, so there is nothing to lock.
    file: Option<F>,
    held: Mutex<HashMap<LayerId, Held>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Held {
    Alone,
    Shared(usize),
}

impl<F: File> LockFile<F> {
    /// The locks of an open `pool.lock`.
    pub(crate) fn new(file: Option<F>) -> Self {
        Self(Arc::new(Inner { file, held: Mutex::default() }))
    }

    /// Locks a layer without waiting; `None` if somebody holds it in a way that conflicts. Lasts until the answer is dropped.
    pub(crate) fn try_lock(&self, layer: LayerId, kind: LockKind) -> Result<Option<Lock<F>>> {
        let mut held = self.0.held.lock();
        match (held.entry(layer), kind) {
            (Entry::Occupied(mut entry), LockKind::Shared) => {
                let Held::Shared(count) = entry.get_mut() else { return Ok(None) };
                *count += 1;
            }
            (Entry::Occupied(_), LockKind::Exclusive) => return Ok(None),
            (Entry::Vacant(entry), kind) => {
                if !self.0.take(byte(layer), kind)? {
                    return Ok(None);
                }
                entry.insert(match kind {
                    LockKind::Shared => Held::Shared(1),
                    LockKind::Exclusive => Held::Alone,
                });
            }
        }
        Ok(Some(Lock { file: self.0.clone(), layer }))
    }

    /// Takes the lock under which a pool is created, without waiting.
    pub(crate) fn try_lock_pool(&self) -> Result<bool> {
        self.0.take(POOL_BYTE, LockKind::Exclusive)
    }

    /// Releases it.
    pub(crate) fn unlock_pool(&self) -> Result<()> {
        let Some(file) = &self.0.file else { return Ok(()) };
        file.unlock(POOL_BYTE).map_err(|error| Error::io("unlock pool.lock", error))
    }
}

impl<F: File> Inner<F> {
    fn take(&self, range: Extent, kind: LockKind) -> Result<bool> {
        let Some(file) = &self.file else { return Ok(true) };
        file.try_lock(range, kind).map_err(|error| Error::io("lock pool.lock", error))
    }
}

fn byte(layer: LayerId) -> Extent {
    Extent::new(layer.number(), 1)
}

impl<F: File> Clone for LockFile<F> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<F: File> fmt::Debug for LockFile<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockFile").field("held", &*self.0.held.lock()).finish_non_exhaustive()
    }
}

/// A layer that is held. Released when dropped.
pub(crate) struct Lock<F: File> {
    file: Arc<Inner<F>>,
    layer: LayerId,
}

impl<F: File> Drop for Lock<F> {
    fn drop(&mut self) {
        let mut held = self.file.held.lock();
        if let Some(Held::Shared(count)) = held.get_mut(&self.layer)
            && *count > 1
        {
            *count -= 1;
            return;
        }
        held.remove(&self.layer);
        let Some(file) = &self.file.file else { return };
        if let Err(error) = file.unlock(byte(self.layer)) {
            tracing::warn!(layer = %self.layer, %error, "a layer stays locked until its pool is closed");
        }
    }
}

impl<F: File> fmt::Debug for Lock<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lock({})", self.layer)
    }
}
