//! Snapshots of an open image, and how any change of its record is committed while I/O waits at the gate.

use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;
use vellum_core::SnapshotName;
use vellum_engine::{
    Catalog, Change, Committed, Head, HeadChange, ImageRecord, Prepared, Result, RunToEnd,
};

use crate::Image;
use crate::chain::{DEPTH_MAX, too_deep};
use crate::image::{Shared, View};

/// The gate is closed only once this little is left to sync, or after this many syncs.
const UNSYNCED_BYTES_MAX: u64 = 4 << 20;
const SYNC_ROUNDS: usize = 3;

impl<C: Catalog> Image<C> {
    /// Freezes the image under a name, at a cost that does not grow with it. I/O goes on until the last moment, then pauses
    /// for one small sync and a few metadata writes. Everything acknowledged before the call is in the snapshot; of a request
    /// under way, each block is in it as it was before or after. Durable when it returns. `Exists` if the name is taken.
    pub async fn snapshot(&self, name: SnapshotName, auto: bool) -> Result<ImageRecord> {
        let alone = self.alone().await?;
        let view = self.view();
        let head = view.writer()?.clone();
        // The engine counts the layers in its own pool; the chain may go on in others, and must stay one that can be opened.
        // What others took out of the image meanwhile does not count.
        if view.chain.links().len() >= DEPTH_MAX {
            self.install_record(self.0.catalog.get(&self.0.id).await?);
        }
        if self.view().chain.links().len() >= DEPTH_MAX {
            return Err(too_deep(&view.record));
        }
        sync_until_little_is_left(&head).await?;
        let prepared = head.prepare(HeadChange::Snapshot { name, auto }).await?;
        self.commit(alone, prepared).await
    }

    /// Takes the name of a snapshot away. `HasChildren` if clones hang on it.
    pub async fn remove_snapshot(&self, name: &SnapshotName) -> Result<ImageRecord> {
        let _alone = self.0.operations.lock().await;
        let record = crate::admin::change_snapshot(
            &self.0.pools,
            &self.0.catalog,
            &self.0.id,
            name,
            |snapshot| Change::RemoveSnapshot(snapshot.id.clone()),
        )
        .await?;
        self.install_record(record.clone());
        Ok(record)
    }

    /// Commits with the gate closed. Runs to its end whoever stops waiting, and opens the gate whatever happens.
    pub(crate) async fn commit(
        &self,
        alone: OwnedMutexGuard<()>,
        prepared: <C::Head as Head>::Prepared,
    ) -> Result<ImageRecord> {
        let shared = self.0.clone();
        RunToEnd::new(async move {
            let _alone = alone;
            let closed = shared.close_gate().await;
            let committed = prepared.commit().await?;
            let record = committed.record.clone();
            install(&shared, committed);
            drop(closed);
            Ok(record)
        })
        .await
    }

    /// Takes over a record that somebody else changed in a way that leaves the image's own layers as they are. A parent may be
    /// gone: the commit that cut it off was not heard of.
    pub(crate) fn install_record(&self, record: ImageRecord) {
        let view = self.view();
        let chain = view.chain.as_of(&record);
        let is_cut_off = record.parent().is_none() && view.record.parent().is_some();
        let epoch = view.epoch + u64::from(is_cut_off);
        let (head, is_away) = (view.head.clone(), view.is_away);
        self.0.view.store(Arc::new(View { epoch, record, head, chain, is_away }));
    }
}

fn install<C: Catalog>(shared: &Shared<C>, committed: Committed<C::Head>) {
    let old = shared.view.load_full();
    let chain = old.chain.as_of(&committed.record);
    let (head, chain) = match committed.successor {
        Some(head) => (Some(head.clone()), chain.with_top(head.layer().clone())),
        None => (old.head.clone(), chain),
    };
    shared.view.store(Arc::new(View {
        epoch: old.epoch + 1,
        record: committed.record,
        head,
        chain,
        is_away: false,
    }));
}

/// Syncs before the gate, so that little is left for inside.
pub(crate) async fn sync_until_little_is_left<H: Head>(head: &H) -> Result<()> {
    for _ in 0..SYNC_ROUNDS {
        head.sync().await?;
        if head.unsynced_bytes() <= UNSYNCED_BYTES_MAX {
            break;
        }
    }
    Ok(())
}
