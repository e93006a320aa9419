//! Handing an image over to another client of the storage that has it open as well, and coming back.
//!
//! Whoever handed an image over keeps it open, without its ownership. What it knows of the image may be wrong from then on, so nothing
//! is done with it; the next request takes the ownership back, waiting for whoever has it, and looks at everything anew. Who may
//! have the image is no matter of this; that is for whoever answers the [`Requests`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;
use vellum_engine::{Catalog, Error, ErrorKind, Head, Requests, Result, RunToEnd};

use crate::Image;
use crate::gate::Pass;
use crate::image::{Open, Shared, View, open_view};
use crate::snapshot::sync_until_little_is_left;

/// How long a request waits for an image that another client has, before it fails with `InUse`.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long between two looks.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

impl<C: Catalog> Image<C> {
    /// What other clients of the storage want of this image, which is open for writing. Whoever asks last hears it.
    pub fn requests(&self) -> Requests {
        self.view().head.as_ref().map_or_else(Requests::never, Head::requests)
    }

    /// Gives the ownership up, so that another client of the storage can have it, and stays open: the next request takes it back.
    /// What is under way ends first. `Busy` during a flatten or a discard to the parent, whose word on what is inherited must
    /// hold to their end; a failed sync is an error, after which the image takes no writes.
    pub async fn hand_over(&self) -> Result<()> {
        // Not behind a request that waits for its return.
        if self.is_handed_over() {
            return Ok(());
        }
        let alone = self.0.operations.clone().lock_owned().await;
        // Only looked at: who begins to flatten comes back first, and waits for the operation.
        if self.0.re_inherit.try_write().is_err() {
            let what = "a flatten or a discard to the parent is under way on this image";
            return Err(Error::new(ErrorKind::Busy, what));
        }
        let view = self.view();
        if view.is_away {
            return Ok(());
        }
        self.refuse_closed()?;
        let head = view.writer()?.clone();
        sync_until_little_is_left(&head).await?;
        let shared = self.0.clone();
        RunToEnd::new(async move {
            let _alone = alone;
            let closed = shared.close_gate().await;
            // Before somebody else may have it: nothing of this view is to be believed from then on.
            set_away(&shared, true);
            let given = head.close().await;
            if given.is_err() {
                // Nobody can say what of it is safe: as after a failed sync, it must be opened anew.
                shared.is_closed.store(true, Ordering::SeqCst);
            }
            drop(closed);
            given
        })
        .await
    }

    /// Takes an image back that was handed over, and that nobody may have any more.
    pub async fn take_back(&self) -> Result<()> {
        self.present().await.map(drop)
    }

    fn refuse_closed(&self) -> Result<()> {
        if !self.0.is_closed.load(Ordering::SeqCst) {
            return Ok(());
        }
        let what = format!("image {} was closed", self.view().record.name);
        Err(Error::new(ErrorKind::OwnershipLost, what))
    }

    /// Whether [`hand_over`](Self::hand_over) would do so now, and not find the image away or busy.
    pub fn can_be_handed_over(&self) -> bool {
        !self.is_handed_over() && self.0.re_inherit.try_write().is_ok()
    }

    /// Whether another client of the storage may have the image.
    pub fn is_handed_over(&self) -> bool {
        self.view().is_away
    }

    /// The view, of an image that is here: it comes back first where it was handed over.
    pub(crate) async fn present(&self) -> Result<Arc<View<C>>> {
        loop {
            let view = self.view();
            if !view.is_away {
                return Ok(view);
            }
            drop(Box::pin(self.alone()).await?);
        }
    }

    /// Passes the gate, to an image that is here.
    pub(crate) async fn enter(&self) -> Result<(Pass<'_>, Arc<View<C>>)> {
        loop {
            let pass = self.0.gate.enter().await;
            let view = self.view();
            if !view.is_away {
                return Ok((pass, view));
            }
            drop(pass);
            drop(Box::pin(self.alone()).await?);
        }
    }

    /// Keeps other operations away from an image that is here.
    pub(crate) async fn alone(&self) -> Result<OwnedMutexGuard<()>> {
        let alone = self.0.operations.clone().lock_owned().await;
        if self.view().is_away {
            self.come_back().await?;
        }
        Ok(alone)
    }

    /// Takes the ownership back. Called by who keeps other operations away.
    async fn come_back(&self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        let mut pause = FIRST_PAUSE;
        let (pools, catalog, id) = (&self.0.pools, &self.0.catalog, &self.0.id);
        loop {
            self.refuse_closed()?;
            let away = self.view();
            let opened = open_view(pools, catalog, id, &Open::Own, away.chain.cache()).await;
            match opened {
                Ok(view) => {
                    self.0.view.store(Arc::new(View { epoch: away.epoch + 1, ..view }));
                    return Ok(());
                }
                // A layer may go between two looks at the record, as when an image is opened.
                Err(error)
                    if [ErrorKind::InUse, ErrorKind::NotFound].contains(&error.kind())
                        && Instant::now() < until
                        && catalog.get(id).await.is_ok() => {}
                Err(error) => {
                    let name = &away.record.name;
                    return Err(
                        error.context(format!("take back image {name}, which was handed over"))
                    );
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// It is closed, and does not come back. Called by who keeps other operations away.
    pub(crate) fn stay_away(&self) {
        if self.view().is_away {
            set_away(&self.0, false);
        }
    }
}

fn set_away<C: Catalog>(shared: &Shared<C>, is_away: bool) {
    let view = shared.view.load_full();
    shared.view.store(Arc::new(View {
        epoch: view.epoch + 1,
        record: view.record.clone(),
        head: view.head.clone(),
        chain: view.chain.clone(),
        is_away,
    }));
}
