//! Taking away: images, layers that lost their name, and the files of layers that have no row any more.
//!
//! A row goes first and files follow, so that a crash in between leaves files without a row and never a row without its
//! files. Which files are to go is remembered in the same transaction; files that no catalog ever mentioned are listed, and
//! removed only if somebody asks for it, since they may be newer than a catalog that was brought back from a backup.

use std::collections::HashSet;

use rusqlite::Connection;
use vellum_disk::{Disk, LockKind};
use vellum_engine::{ChildRef, Error, ErrorKind, ImageRecord, Pending, Result, Version};

use crate::LayerId;
use crate::catalog::children::ParentInPool;
use crate::catalog::record::ImageNo;
use crate::catalog::{Outcome, children, images, layers};
use crate::engine::LocalCatalog;
use crate::lock::Lock;

/// How many layers one collection removes at most.
const COLLECT_MAX: usize = 256;

/// What a removed layer is called in the token of a pending piece of work, and one that no row ever mentioned.
const REMOVED: &str = "removed ";
const STRANGE: &str = "strange ";

/// The layers of an image that is about to go, each held alone.
struct Held<D: Disk> {
    with_files: Vec<LayerId>,
    _locks: Vec<Lock<D::File>>,
}

impl<D: Disk> LocalCatalog<D> {
    /// Removes an image with all it holds. Takes every layer of it alone first: whoever writes, fills or reads its head has it
    /// open.
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
        let (pool, with_files) = (vellum_engine::Catalog::pool(&self), held.with_files.clone());
        let lost_snapshot = self
            .freeing("remove an image", move |db| {
                images::at_version(db, image, at)?;
                images::remove(db, pool, image, &with_files)
            })
            .await?;
        self.remove_files(&held.with_files).await;
        drop(held);
        if let Some(parent) = lost_snapshot {
            self.take_out_empty_layers(parent).await;
        }
        Ok(())
    }

    async fn hold_all(&self, record: &ImageRecord) -> Result<Held<D>> {
        let mut held = Held { with_files: Vec::new(), _locks: Vec::new() };
        for revision in &record.revisions {
            let layer = LayerId::of_revision(&revision.id)?;
            let lock = self.try_lock(layer, LockKind::Exclusive)?.ok_or_else(|| {
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
        let lost_snapshot = self
            .freeing("detach a child", move |db| {
                children::unlist(db, child.pool, &parent, &child.image)
            })
            .await?;
        if lost_snapshot {
            self.take_out_empty_layers(parent.image).await;
        }
        Ok(())
    }

    /// Takes layers out of an image that have no name and define nothing, and says whether there were any. Best effort: one
    /// that stays costs a look at each read and is found again when the next name goes.
    pub(crate) async fn take_out_empty_layers(&self, image: ImageNo) -> bool {
        let unnamed = self
            .database()
            .read("look for unnamed layers", move |db| layers::unnamed(db, image))
            .await;
        let mut locks = Vec::new();
        let mut empty = Vec::new();
        for layer in unnamed.unwrap_or_default() {
            // While the lock is held nobody fills the layer, and without files it defines nothing.
            let Ok(Some(lock)) = self.try_lock(layer, LockKind::Exclusive) else { continue };
            if self.directory().has_files(layer).await.is_ok_and(|has| !has) {
                locks.push(lock);
                empty.push(layer);
            }
        }
        if empty.is_empty() {
            return false;
        }
        let result = self
            .database()
            .write("take out empty layers", move |db| {
                let mut any = false;
                for layer in empty {
                    any |= layers::take_out_empty(db, image, layer)?;
                }
                Ok(any)
            })
            .await;
        result.unwrap_or_else(|error| {
            tracing::debug!(error = %error.chain(), "empty layers stay for now");
            false
        })
    }

    /// Runs a transaction that takes something away. On a full disk it gives up the reserve and runs it once more.
    pub(crate) async fn freeing<T: Send + 'static>(
        &self,
        doing: &'static str,
        change: impl Fn(&Connection) -> Outcome<T> + Send + Sync + 'static,
    ) -> Result<T> {
        let change = std::sync::Arc::new(change);
        let again = change.clone();
        match self.database().write(doing, move |db| change(db)).await {
            Err(error) if self.wants_reserve(&error).await => {
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
        if gone.is_empty() {
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

    pub(crate) async fn list_pending(&self) -> Result<Vec<Pending>> {
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
        let explained: HashSet<&LayerId> = known.iter().chain(&removed).collect();
        let strange = on_disk.iter().filter(|layer| !explained.contains(layer));
        let removed = removed.iter().map(|layer| Pending {
            what: format!("layer {layer} was removed, its files are still to go"),
            token: format!("{REMOVED}{layer}"),
        });
        let strange = strange.map(|layer| Pending {
            what: format!("the catalog knows nothing of layer {layer}, which has files"),
            token: format!("{STRANGE}{layer}"),
        });
        Ok(removed.chain(strange).collect())
    }

    pub(crate) async fn finish_pending(self, token: String) -> Result<()> {
        self.writable()?;
        let layer = [REMOVED, STRANGE]
            .iter()
            .find_map(|kind| token.strip_prefix(kind))
            .and_then(LayerId::from_hex)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Invalid,
                    format!("{token:?} is no pending work of this engine"),
                )
            })?;
        let known =
            self.database().read("look up a layer", move |db| layers::known(db, &[layer])).await?;
        if known.is_empty() {
            self.store().remove_files(layer).await?;
        }
        self.database()
            .write("forget removed layers", move |db| layers::forget_removed(db, &[layer]))
            .await
    }
}
