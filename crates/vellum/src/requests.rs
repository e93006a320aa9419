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

/// Answers for as long as this is polled. `clients` are those that use the image through this process.
pub(crate) async fn answer(image: Image, catalog: Catalog, clients: Arc<AtomicUsize>) {
    let mut requests = image.requests();
    let mut under_way = JoinSet::new();
    loop {
        let Request { wanted, reply } = requests.next().await;
        while under_way.try_join_next().is_some() {}
        match wanted {
            Wanted::Ownership(wants) => {
                let is_used = clients.load(Ordering::SeqCst) > 0;
                hand_over(&image, reply, wants == Wants::ToBegin && is_used).await;
            }
            _ if under_way.len() >= UNDER_WAY_MAX => {
                let what = "too much is done for others already; try again later";
                reply.refuse(&Error::new(ErrorKind::Busy, what));
            }
            wanted => {
                under_way.spawn(carry_out_for(image.clone(), catalog.clone(), wanted, reply));
            }
        }
    }
}

async fn hand_over(image: &Image, mut reply: Box<dyn Reply>, is_kept: bool) {
    if is_kept {
        let what = "clients of this process use the image";
        reply.refuse(&Error::new(ErrorKind::InUse, what));
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
        Wanted::Ownership(_) => Err(Error::new(ErrorKind::Invalid, "that is not done beside")),
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
