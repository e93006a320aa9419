//! Taking away: images, layers that lost their name, and the files of layers that have no row any more.
//!
//! A row goes first and files follow, so that a crash in between leaves files without a row and never a row without its
//! files. Which files are to go is remembered in the same transaction; files that no catalog ever mentioned are listed, and
//! removed only if somebody asks for it, since they may be newer than a catalog that was brought back from a backup.

use std::collections::{BTreeSet, HashSet};
use std::fmt;

use rusqlite::Connection;
use vellum_disk::{Disk, LockKind};
use vellum_engine::{
    Catalog, ChildRef, Error, ErrorKind, Happened, ImageRecord, Pending, Result, Version,
};

use crate::LayerId;
use crate::catalog::children::ParentInPool;
use crate::catalog::record::ImageNo;
use crate::catalog::{Outcome, children, images, layers};
use crate::engine::LocalCatalog;
use crate::lock::Lock;

/// How many layers one collection removes at most.
const COLLECT_MAX: usize = 256;

/// A layer that has files and no row.
pub(crate) struct Leftover {
    pub(crate) layer: LayerId,
    pub(crate) why: Why,
}

/// Why there are files without a row.
pub(crate) enum Why {
    /// The row is gone, the files are still to go.
    Removed,
    /// No row ever mentioned them.
    Unknown,
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layer = self.layer;
        match self.why {
            Why::Removed => write!(f, "layer {layer} was removed, its files are still to go"),
            Why::Unknown => write!(
                f,
                "the catalog knows nothing of layer {layer}, which has files; they may be newer than it"
            ),
        }
    }
}

/// The layers of an image that is about to go. Its head is held alone, and so nobody writes or reads it; the others so that
/// nobody fills them.
struct Held<D: Disk> {
    with_files: Vec<LayerId>,
    _locks: Vec<Lock<D::File>>,
}

/// Layers that define nothing, and will not while this is held. They can be taken out in the transaction that takes their
/// name away.
#[derive(Debug)]
pub(crate) struct Empty<D: Disk> {
    layers: Vec<LayerId>,
    _locks: Vec<Lock<D::File>>,
}

impl<D: Disk> Empty<D> {
    /// For the closure of a transaction.
    pub(crate) fn layers(&self) -> Vec<LayerId> {
        self.layers.clone()
    }
}

impl<D: Disk> LocalCatalog<D> {
    /// Removes an image with all it holds.
    pub(crate) async fn remove_image(self, image: ImageNo, at: Version) -> Result<()> {
        self.writable()?;
        let (record, children) = self
            .database()
            .read("look up an image", move |db| {
                Ok((images::at_version(db, image, at)?, children::of_image(db, image)?.len()))
            })
            .await?;
        if children > 0 {
            return Err(images::has_children(&record, children));
        }
        let held = self.hold_all(&record).await?;
        let empty = self.empty_parents(&record).await;
        let (pool, with_files, taken_out) = (self.pool(), held.with_files.clone(), empty.layers());
        self.freeing("remove an image", move |db| {
            images::at_version(db, image, at)?;
            images::remove(db, pool, image, &with_files, &taken_out)
        })
        .await?;
        self.remove_files(&held.with_files).await;
        Ok(())
    }

    async fn hold_all(&self, record: &ImageRecord) -> Result<Held<D>> {
        let mut held = Held { with_files: Vec::new(), _locks: Vec::new() };
        for revision in &record.revisions {
            let layer = LayerId::of_revision(&revision.id)?;
            let kind = if revision.sealed { LockKind::Shared } else { LockKind::Exclusive };
            let lock = self.try_lock(layer, kind)?.ok_or_else(|| {
                let what = format!("image {} is in use; close it first", record.name);
                Error::new(ErrorKind::InUse, what)
            })?;
            held._locks.push(lock);
            if self.directory().has_files(layer).await? {
                held.with_files.push(layer);
            }
        }
        Ok(held)
    }

    /// Takes a child from a list, and what only it kept in place.
    pub(crate) async fn detach_child(self, parent: ParentInPool, child: ChildRef) -> Result<()> {
        self.writable()?;
        let empty = self.hold_empty(parent.image, [parent.layer].into()).await;
        let taken_out = empty.layers();
        self.freeing("detach a child", move |db| {
            children::unlist(db, child.pool, &parent, &child.image, &taken_out)
        })
        .await
    }

    /// Of the layers in this pool that an image has for parents, those that are empty.
    pub(crate) async fn empty_parents(&self, record: &ImageRecord) -> Empty<D> {
        let mut all = Empty { layers: Vec::new(), _locks: Vec::new() };
        for link in images::parents_in_pool(record, self.pool()) {
            let Ok(parent) = ParentInPool::of(&link) else { continue };
            let empty = self.hold_empty(parent.image, [parent.layer].into()).await;
            all.layers.extend(empty.layers);
            all._locks.extend(empty._locks);
        }
        all
    }

    /// Of these layers of an image, and of those that have lost their name before, the ones that are empty. Best effort: one
    /// that is overlooked costs a look at each read, and is found again when the next name goes.
    pub(crate) async fn hold_empty(&self, image: ImageNo, losing: Vec<LayerId>) -> Empty<D> {
        let mut empty = Empty { layers: Vec::new(), _locks: Vec::new() };
        let unnamed = self
            .database()
            .read("look for unnamed layers", move |db| layers::unnamed(db, image))
            .await;
        let candidates: BTreeSet<_> =
            losing.into_iter().chain(unnamed.unwrap_or_default()).collect();
        for layer in candidates {
            // While the lock is held nobody fills the layer, and without files it defines nothing.
            let Ok(Some(lock)) = self.try_lock(layer, LockKind::Shared) else { continue };
            if self.directory().has_files(layer).await.is_ok_and(|has| !has) {
                empty._locks.push(lock);
                empty.layers.push(layer);
            }
        }
        empty
    }

    /// Runs a transaction that takes something away. On a full disk it gives up the reserve and runs it once more, unless it may
    /// have been made.
    pub(crate) async fn freeing<T: Send + 'static>(
        &self,
        doing: &'static str,
        change: impl Fn(&Connection) -> Outcome<T> + Send + Sync + 'static,
    ) -> Result<T> {
        let change = std::sync::Arc::new(change);
        let again = change.clone();
        match self.database().write(doing, move |db| change(db)).await {
            Err(error)
                if error.happened() == Happened::NotDone && self.wants_reserve(&error).await =>
            {
                self.database().write(doing, move |db| again(db)).await
            }
            result => result,
        }
    }

    async fn wants_reserve(&self, error: &Error) -> bool {
        // A full disk makes SQLite say "I/O error" or "unable to open", depending on the file system.
        let may_be_full = match error.kind() {
            ErrorKind::NoSpace => true,
            ErrorKind::Io => self.directory().is_full().await,
            _ => false,
        };
        may_be_full && self.directory().give_up_reserve().await
    }

    /// Removes the files of layers whose rows are gone. What cannot be removed now stays remembered.
    async fn remove_files(&self, layers: &[LayerId]) {
        let mut gone = Vec::new();
        for layer in layers {
            match self.store().remove_files(*layer).await {
                Ok(()) => gone.push(*layer),
                Err(error) => {
                    tracing::warn!(%layer, error = %error.chain(), "files of a removed layer stay for now");
                }
            }
        }
        // Forgotten only when a power cut cannot bring the files back.
        if gone.is_empty() || self.directory().sync_removals().await.is_err() {
            return;
        }
        let forget = self
            .database()
            .write("forget removed layers", move |db| layers::forget_removed(db, &gone))
            .await;
        if let Err(error) = forget {
            tracing::debug!(error = %error.chain(), "removed layers are looked for once more");
        }
        self.directory().build_reserve().await;
    }

    /// Removes what an earlier process had no time to.
    pub(crate) fn collect_in_background(&self) {
        let this = self.clone();
        tokio::spawn(async move {
            let removed = this
                .database()
                .read("look for removed layers", |db| layers::removed(db, COLLECT_MAX))
                .await;
            this.remove_files(&removed.unwrap_or_default()).await;
        });
    }

    /// The files of layers that have no row.
    pub(crate) async fn leftovers(&self) -> Result<Vec<Leftover>> {
        // Directories first, rows afterwards: a layer gets its row before its directory, so none that is new can look
        // like garbage.
        let on_disk = self.directory().layers_on_disk().await?;
        let looked = on_disk.clone();
        let (removed, known) = self
            .database()
            .read("look for garbage", move |db| {
                Ok((layers::removed(db, usize::MAX)?, layers::known(db, &looked)?))
            })
            .await?;
        let explained: HashSet<LayerId> = known.iter().chain(&removed).copied().collect();
        let unknown = on_disk.into_iter().filter(|layer| !explained.contains(layer));
        let removed = removed.into_iter().map(|layer| Leftover { layer, why: Why::Removed });
        Ok(removed.chain(unknown.map(|layer| Leftover { layer, why: Why::Unknown })).collect())
    }

    /// Removes the files of a layer, unless it has a row.
    pub(crate) async fn remove_leftover(&self, layer: LayerId) -> Result<()> {
        self.writable()?;
        let known =
            self.database().read("look up a layer", move |db| layers::known(db, &[layer])).await?;
        if known.is_empty() {
            self.store().remove_files(layer).await?;
            self.directory().sync_removals().await?;
        }
        self.database()
            .write("forget removed layers", move |db| layers::forget_removed(db, &[layer]))
            .await
    }

    pub(crate) async fn list_pending(&self) -> Result<Vec<Pending>> {
        let pending = |leftover: Leftover| Pending {
            what: leftover.to_string(),
            token: leftover.layer.to_string(),
        };
        Ok(self.leftovers().await?.into_iter().map(pending).collect())
    }

    pub(crate) async fn finish_pending(self, token: String) -> Result<()> {
        let layer = LayerId::from_hex(&token).ok_or_else(|| {
            let what = format!("{token:?} is no pending work of this engine");
            Error::new(ErrorKind::Invalid, what)
        })?;
        self.remove_leftover(layer).await
    }
}
