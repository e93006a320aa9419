//! What other clients of the storage want of an image that this process holds, decided and done.
//!
//! Who asks may be any program that can reach the storage, such as Ceph's own tools. It is told at once whether its wish will be
//! done, and then what came of it. Processes of this machine ask over their sockets; that is in `control`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::task::JoinSet;
use vellum_engine::{
    Catalog as _, Change, Error, ErrorKind, Reply, Request, Result, Wanted, Wants,
};
use vellum_image::{FlattenOptions, admin};

use crate::control::operation::carry_out;
use crate::control::protocol;
use crate::{Catalog, Image};

/// What is done for others at once.
const UNDER_WAY_MAX: usize = 16;

/// Answers for as long as this is polled. `clients` are those that use the image through this process, and `keep` keeps it held while
/// something is done for others.
pub(crate) async fn answer<K: Send + 'static>(
    image: Image,
    catalog: Catalog,
    clients: Arc<AtomicUsize>,
    keep: impl Fn() -> K,
) {
    let mut requests = image.requests();
    let mut under_way = JoinSet::new();
    loop {
        let Request { wanted, reply } = requests.next().await;
        while under_way.try_join_next().is_some() {}
        let is_used = clients.load(Ordering::SeqCst) > 0;
        match wanted {
            Wanted::Ownership(wants) => {
                let is_kept = wants == Wants::ToBegin && is_used;
                under_way.spawn(hand_over(image.clone(), reply, is_kept));
            }
            // So that nobody else begins to use what is used here.
            Wanted::Free if is_used => drop(under_way.spawn(take_back(image.clone()))),
            Wanted::Free => {}
            _ if under_way.len() >= UNDER_WAY_MAX => {
                let what = "too much is done for others already; try again later";
                reply.refuse(&Error::new(ErrorKind::Busy, what));
            }
            wanted => {
                let (image, catalog, kept) = (image.clone(), catalog.clone(), keep());
                under_way.spawn(async move {
                    carry_out_for(image, catalog, wanted, reply).await;
                    drop(kept);
                });
            }
        }
    }
}

async fn take_back(image: Image) {
    if let Err(error) = image.take_back().await {
        tracing::warn!(image = %image.record().name, "{}", error.chain());
    }
}

async fn hand_over(image: Image, mut reply: Box<dyn Reply>, is_kept: bool) {
    if is_kept {
        let what = "clients of this process use the image";
        reply.refuse(&Error::new(ErrorKind::InUse, what));
    } else if !image.can_be_handed_over() {
        // It is on its way back, or flattened, which is soon over or not; whoever asks tries again.
        reply.refuse(&Error::new(ErrorKind::Busy, "the image cannot be handed over just now"));
    } else if reply.accept() {
        let result = image.hand_over().await;
        match &result {
            Ok(()) => tracing::info!(image = %image.record().name, "handed over"),
            // Whoever wants it asks again.
            Err(error) if error.kind() == ErrorKind::Busy => {}
            Err(error) => {
                tracing::error!(image = %image.record().name, error = %error.chain(), "an image could not be handed over");
            }
        }
        reply.finish(result);
    }
}

async fn carry_out_for(image: Image, catalog: Catalog, wanted: Wanted, mut reply: Box<dyn Reply>) {
    if !reply.accept() {
        return;
    }
    let reply = Mutex::new(reply);
    let progress = |done, total| reply.lock().progress(done, total);
    let result = done(&image, &catalog, wanted, progress).await;
    reply.into_inner().finish(result);
}

async fn done(
    image: &Image,
    catalog: &Catalog,
    wanted: Wanted,
    progress: impl Fn(u64, u64),
) -> Result<()> {
    match wanted {
        Wanted::Ownership(_) | Wanted::Free => {
            Err(Error::new(ErrorKind::Invalid, "that is not an operation"))
        }
        Wanted::Snapshot { name, auto } => image.snapshot(name, auto).await.map(drop),
        Wanted::Flatten => {
            let FlattenOptions { copies, bytes_per_second } = FlattenOptions::default();
            let request = protocol::Request::Flatten { copies, bytes_per_second };
            carry_out(image, &request, progress, std::future::pending()).await.map(drop)
        }
        Wanted::Change(Change::RemoveSnapshot(id)) => {
            let record = catalog.get(image.id()).await?;
            let snapshot = record.snapshots.into_iter().find(|snapshot| snapshot.id == id);
            let snapshot = snapshot.ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!("image {} has no such snapshot", record.name),
                )
            })?;
            image.remove_snapshot(&snapshot.name).await.map(drop)
        }
        Wanted::Change(change) => {
            admin::change(catalog, image.id(), |_| Ok(change.clone())).await.map(drop)
        }
    }
}
