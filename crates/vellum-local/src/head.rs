//! [`LocalHead`]: the one writer of an image, and how its changes of the image are committed.
//!
//! A change is made by both halves of the engine: the store seals or syncs bytes, the catalog commits rows. The commit of
//! the catalog decides:
//!
//! ```text
//!   prepare   BEGIN IMMEDIATE, all statements, lock and open the (empty) successor      I/O goes on
//!   commit    seal or sync the layer                                                    I/O waits
//!             COMMIT  ----- done ----------> the successor takes over
//!               |---------- not done ------> the layer is unsealed, the head goes on
//!               `---------- unknown -------> settled by one more commit; if that fails too, the head stops
//! ```
//!
//! The bytes come first because a snapshot promises what was acknowledged, durably, the moment its row is there. After a
//! commit whose outcome cannot be found out, a head that went on could write into a layer that a snapshot names, so it
//! answers `Poisoned` until the image is owned anew and the catalog has said which layer is its head.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use parking_lot::Mutex;
use vellum_core::Extent;
use vellum_disk::{Disk, LockKind};
use vellum_engine::{
    Catalog, Committed, Durability, Error, ErrorKind, Fill, Guarded, Happened, Head, HeadChange,
    ImageRecord, Layer, Ownership, Prepared, Requests, Result, RunToEnd, SetTo, Write,
};

use crate::LayerId;
use crate::catalog::record::ImageNo;
use crate::catalog::snapshots::NewSnapshot;
use crate::catalog::{Outcome, Undecided, images, layers, record, snapshots};
use crate::engine::{LocalCatalog, facts, in_use};
use crate::layer::LocalLayer;
use crate::lock::Lock;
use crate::open_layer::OpenLayer;
use crate::removal::Empty;
use crate::store::Access;

/// The one writer of an image, or the one who fills a sealed layer.
#[derive(Debug)]
pub struct LocalHead<D: Disk>(Arc<Shared<D>>);

#[derive(Debug)]
struct Shared<D: Disk> {
    catalog: LocalCatalog<D>,
    image: ImageNo,
    layer: OpenLayer<D>,
    role: Role,
    /// Set after a commit whose outcome is unknown.
    stopped: AtomicBool,
    /// The ownership; none once it was given up or handed to a successor. Dropped last, when nothing writes any more.
    lock: Mutex<Option<Lock<D::File>>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Owner,
    Filler,
}

impl<D: Disk> Clone for LocalHead<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: Disk> Drop for Shared<D> {
    /// Without [`Head::close`] nothing is synced: whoever owns the image next finds what the death of the process would have
    /// left. A sync under way has to end first.
    fn drop(&mut self) {
        let Some(lock) = self.lock.get_mut().take() else { return };
        let layer = self.layer.stored().clone();
        let Some(running) = layer.abandon() else { return };
        let give_up = move |_| {
            let _ = layer.give_up_files();
            drop(lock);
        };
        drop(self.catalog.store().runtime().spawn(running.map(give_up)));
    }
}

impl<D: Disk> LocalHead<D> {
    /// The writer of an image, which holds its head's lock.
    pub(crate) fn owner(
        catalog: LocalCatalog<D>,
        image: ImageNo,
        layer: LocalLayer<D>,
        lock: Lock<D::File>,
    ) -> Self {
        Self::new(catalog, image, layer, lock, Role::Owner)
    }

    /// The one who fills a sealed layer, which holds that layer's lock.
    pub(crate) fn filler(
        catalog: LocalCatalog<D>,
        image: ImageNo,
        layer: LocalLayer<D>,
        lock: Lock<D::File>,
    ) -> Self {
        Self::new(catalog, image, layer, lock, Role::Filler)
    }

    fn new(
        catalog: LocalCatalog<D>,
        image: ImageNo,
        layer: LocalLayer<D>,
        lock: Lock<D::File>,
        role: Role,
    ) -> Self {
        let layer = OpenLayer::new(layer);
        let (stopped, lock) = (AtomicBool::new(false), Mutex::new(Some(lock)));
        Self(Arc::new(Shared { catalog, image, layer, role, stopped, lock }))
    }

    fn stored(&self) -> &LocalLayer<D> {
        self.0.layer.stored()
    }

    fn go_on(&self) -> Result<()> {
        if !self.0.stopped.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Poisoned,
            "the catalog failed while the image was changed, and what it holds is unknown; close the image and open it again",
        ))
    }

    fn layer_id(&self) -> Result<LayerId> {
        LayerId::of_revision(self.0.layer.revision())
    }

    async fn prepare_snapshot(self, new: NewSnapshot) -> Result<LocalPrepared<D>> {
        let (catalog, image) = (self.0.catalog.clone(), self.0.image);
        let (sealed, successor, pool) =
            (self.layer_id()?, LayerId::random(catalog.disk()), catalog.pool());
        let lock = catalog.try_lock(successor, LockKind::Exclusive)?;
        let ((row, record), undecided) = catalog
            .database()
            .prepare("snapshot an image", move |db| {
                expect_head(db, image, sealed)?;
                snapshots::refuse_taken_name(db, image, &new.name)?;
                images::put_on_top(db, pool, image, successor)?;
                snapshots::add(db, image, sealed, &new)?;
                layers::record_change(db, image)?;
                Ok((layers::get(db, image, successor)?, record::load(db, image)?))
            })
            .await?;
        let lock = lock.ok_or_else(|| in_use(&row))?;
        let layer = catalog.store().layer(facts(&row), Access::Own).await?;
        let successor = LocalHead::owner(catalog, image, layer, lock);
        Ok(LocalPrepared { head: self, undecided, work: Work::Snapshot { successor, record } })
    }

    async fn prepare_cut(self) -> Result<LocalPrepared<D>> {
        let (catalog, image) = (self.0.catalog.clone(), self.0.image);
        let empty = catalog.empty_parents(&catalog.look_up(image).await?).await;
        let (head, pool, taken_out) = (self.layer_id()?, catalog.pool(), empty.layers());
        let (record, undecided) = catalog
            .database()
            .prepare("cut an image from its parent", move |db| {
                expect_head(db, image, head)?;
                images::cut_parent(db, pool, image, &taken_out)?;
                record::load(db, image)
            })
            .await?;
        Ok(LocalPrepared { head: self, undecided, work: Work::Cut { record, _empty: empty } })
    }

    /// What became of a change whose commit failed: the record if it was made after all. Where that cannot be found out, the
    /// head stops.
    async fn outcome(&self, error: Error, record: ImageRecord) -> Result<ImageRecord> {
        if error.happened() == Happened::NotDone {
            return Err(error);
        }
        let (catalog, image) = (&self.0.catalog, self.0.image);
        let found = async {
            catalog.database().settle().await?;
            catalog.look_up(image).await
        };
        match found.await {
            // Somebody else may have raised the version, by another change, where this one came to nothing.
            Ok(found) if found.version == record.version && is_the_same_change(&found, &record) => {
                Ok(found)
            }
            Ok(_) => Err(error),
            Err(unknown) => {
                let unknown = unknown.chain();
                tracing::error!(image = %record.name, error = %unknown, "the catalog failed: the image stops");
                self.0.stopped.store(true, Ordering::Release);
                Err(error)
            }
        }
    }
}

/// Whether a record that was found shows the change that another one was prepared with: what a snapshot or a cut changes.
fn is_the_same_change(found: &ImageRecord, prepared: &ImageRecord) -> bool {
    found.head == prepared.head && found.parent().is_some() == prepared.parent().is_some()
}

fn expect_head(db: &rusqlite::Connection, image: ImageNo, head: LayerId) -> Outcome<()> {
    let found = layers::head(db, image)?;
    if found.id == head {
        return Ok(());
    }
    let what =
        format!("image {} has another head by now; take that and try again", found.image_name);
    Err(Error::new(ErrorKind::Conflict, what).into())
}

impl<D: Disk> Head for LocalHead<D> {
    type Layer = OpenLayer<D>;
    type Prepared = LocalPrepared<D>;

    fn layer(&self) -> &OpenLayer<D> {
        &self.0.layer
    }

    fn must_fill_first(&self, _at: Extent) -> bool {
        false
    }

    async fn write(&self, write: Write) -> Result<Guarded> {
        self.go_on()?;
        if self.0.role == Role::Filler {
            return Ok(Guarded::Sealed);
        }
        let this = self.clone();
        RunToEnd::new(async move { this.stored().write(write).await }).await
    }

    async fn fill(&self, fill: Fill) -> Result<Guarded> {
        self.go_on()?;
        if self.0.role == Role::Filler && fill.then.is_some() {
            return Ok(Guarded::Sealed);
        }
        let this = self.clone();
        RunToEnd::new(async move { this.stored().fill(fill).await }).await
    }

    async fn set(&self, at: Extent, to: SetTo, durability: Durability) -> Result<Guarded> {
        self.go_on()?;
        if self.0.role == Role::Filler {
            return Ok(Guarded::Sealed);
        }
        let this = self.clone();
        RunToEnd::new(async move { this.stored().set(at, to, durability).await }).await
    }

    async fn reclaim(&self) -> Result<u64> {
        self.go_on()?;
        let this = self.clone();
        RunToEnd::new(async move { this.stored().reclaim().await }).await
    }

    async fn sync(&self) -> Result<()> {
        self.go_on()?;
        let this = self.clone();
        RunToEnd::new(async move { this.stored().sync().await }).await
    }

    fn unsynced_bytes(&self) -> u64 {
        self.stored().unsynced_bytes()
    }

    fn wants_reclaim(&self) -> bool {
        self.stored().wants_reclaim()
    }

    async fn prepare(&self, change: HeadChange) -> Result<LocalPrepared<D>> {
        self.go_on()?;
        if self.0.role == Role::Filler || self.ownership() == Ownership::Lost {
            return Err(Error::new(
                ErrorKind::Invalid,
                "only the head that owns the image can change it, and this one does not",
            ));
        }
        match change {
            HeadChange::Snapshot { name, auto } => {
                self.clone().prepare_snapshot(NewSnapshot { name, auto }).await
            }
            HeadChange::CutParent => self.clone().prepare_cut().await,
        }
    }

    fn ownership(&self) -> Ownership {
        if self.0.lock.lock().is_some() { Ownership::Held } else { Ownership::Lost }
    }

    fn requests(&self) -> Requests {
        Requests::never()
    }

    async fn close(self) -> Result<()> {
        RunToEnd::new(async move {
            let result = self.stored().close().await;
            self.0.lock.lock().take();
            result
        })
        .await
    }
}

/// A change of an image that waits in an open transaction of the catalog. Dropped, it never happened.
#[derive(Debug)]
pub struct LocalPrepared<D: Disk> {
    head: LocalHead<D>,
    undecided: Undecided,
    work: Work<D>,
}

#[derive(Debug)]
enum Work<D: Disk> {
    Snapshot {
        successor: LocalHead<D>,
        record: ImageRecord,
    },
    Cut {
        record: ImageRecord,
        /// Held until it is decided, since what is empty is taken out by it.
        _empty: Empty<D>,
    },
}

impl<D: Disk> Prepared for LocalPrepared<D> {
    type Head = LocalHead<D>;

    async fn commit(self) -> Result<Committed<LocalHead<D>>> {
        let Self { head, undecided, work } = self;
        RunToEnd::new(async move {
            match work {
                Work::Snapshot { successor, record } => {
                    commit_snapshot(head, undecided, successor, record).await
                }
                Work::Cut { record, _empty } => commit_cut(&head, undecided, record).await,
            }
        })
        .await
    }
}

async fn commit_snapshot<D: Disk>(
    head: LocalHead<D>,
    undecided: Undecided,
    successor: LocalHead<D>,
    record: ImageRecord,
) -> Result<Committed<LocalHead<D>>> {
    if let Err(error) = head.stored().seal().await {
        // What failed says itself why no write succeeds, if none does.
        head.stored().unseal();
        return Err(error);
    }
    let record = match commit(&head, undecided, record).await {
        Ok(record) => record,
        Err(error) => {
            if head.go_on().is_ok() {
                head.stored().unseal();
            }
            return Err(error);
        }
    };
    // The sealed layer is free for whoever fills it.
    head.0.lock.lock().take();
    Ok(Committed { record, successor: Some(successor) })
}

/// What was copied up must be durable before the link is cut: after a power cut a unit that fell back to inherited would
/// read as zeros.
async fn commit_cut<D: Disk>(
    head: &LocalHead<D>,
    undecided: Undecided,
    record: ImageRecord,
) -> Result<Committed<LocalHead<D>>> {
    head.stored().sync().await?;
    let record = commit(head, undecided, record).await?;
    Ok(Committed { record, successor: None })
}

async fn commit<D: Disk>(
    head: &LocalHead<D>,
    undecided: Undecided,
    record: ImageRecord,
) -> Result<ImageRecord> {
    match undecided.commit(|_| Ok(())).await {
        Ok(()) => Ok(record),
        Err(error) => head.outcome(error, record).await,
    }
}
