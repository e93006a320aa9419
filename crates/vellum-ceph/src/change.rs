//! Changes of an image that need its ownership: a snapshot, and the cut of the link to the parent.

use std::sync::Arc;

use vellum_core::SnapshotName;
use vellum_engine::{
    Committed, Error, ErrorKind, HeadChange, ImageRecord, Prepared, Result, RunToEnd,
};
use vellum_rados::{Failure, Objects, SnapContext, WriteOp, WriteStep};
use vellum_rbd::Encode;
use vellum_rbd::method::{CLASS, layering, snapshot as method};
use vellum_rbd::notify::Message;
use vellum_rbd::records::Purpose;

use crate::background::Background;
use crate::described::{Described, text};
use crate::error::failed;
use crate::head::{CephHead, Owned};
use crate::header::{change_header, described, write_header};
use crate::keys::{self, Elsewhere};

/// A change that is ready.
#[derive(Debug)]
pub struct CephPrepared<O: Objects> {
    owned: Arc<Owned<O>>,
    change: Ready<O>,
}

#[derive(Debug)]
enum Ready<O: Objects> {
    Snapshot { name: SnapshotName, auto: bool, number: Number<O> },
    CutParent,
}

impl<O: Objects> CephPrepared<O> {
    pub(crate) async fn new(owned: Arc<Owned<O>>, change: HeadChange) -> Result<Self> {
        let change = match change {
            HeadChange::CutParent => Ready::CutParent,
            HeadChange::Snapshot { name, auto } => {
                let described = described(owned.catalog.objects(), &owned.id).await?;
                refuse_taken(&described, &name)?;
                let number = Number::new(&owned).await?;
                Ready::Snapshot { name, auto, number }
            }
        };
        Ok(Self { owned, change })
    }
}

fn refuse_taken(described: &Described, name: &SnapshotName) -> Result<()> {
    match described.snapshot_named(name) {
        None => Ok(()),
        Some(_) => {
            let what = format!("the image has a snapshot {name} already; choose another name");
            Err(Error::new(ErrorKind::Exists, what))
        }
    }
}

impl<O: Objects> Prepared for CephPrepared<O> {
    type Head = CephHead<O>;

    async fn commit(self) -> Result<Committed<CephHead<O>>> {
        let Self { owned, change } = self;
        RunToEnd::new(async move {
            // Alone: what is written under a snapshot context is there, or not yet begun.
            let closed = owned.closed.write().await;
            if *closed {
                let what = "the image was closed meanwhile; open it and try again";
                return Err(Error::new(ErrorKind::Conflict, what));
            }
            owned.check_owned()?;
            let record = match change {
                Ready::Snapshot { name, auto, number } => {
                    snapshot(&owned, &name, auto, number).await?
                }
                Ready::CutParent => cut_parent(&owned).await?,
            };
            drop(closed);
            Ok(Committed { record, successor: None })
        })
        .await
    }
}

async fn snapshot<O: Objects>(
    owned: &Owned<O>,
    name: &SnapshotName,
    auto: bool,
    mut number: Number<O>,
) -> Result<ImageRecord> {
    let objects = owned.catalog.objects();
    let doing = || format!("take snapshot {name} of image {}", owned.id);
    loop {
        let now = described(objects, &owned.id).await?;
        refuse_taken(&now, name)?;
        let add = method::snapshot_add(text(name.as_str()), number.value, Purpose::User);
        let mut op = WriteOp::new().assert_version(now.version);
        if auto {
            op = op.set_omap(keys::auto(number.value), "");
        }
        let op = op.call(CLASS, add.method, add.input);
        // Before it is there, so that nothing is changed without it once it is. One too many costs a copy, and no more.
        owned.set_context(with_one_more(&now, number.value));
        match write_header(objects, &owned.id, op).await {
            Ok(()) => break,
            Err(Failure::MISMATCH) => {}
            // Somebody else took one with a higher number: the snapshots of an image go by their numbers.
            Err(Failure::STALE) => {
                number = Number::new(owned).await?;
            }
            Err(failure) => {
                if failure.may_have_happened() {
                    number.keep();
                } else {
                    owned.set_context(context(&now));
                }
                return Err(failed(failure, doing()));
            }
        }
    }
    let id = number.keep();
    // From here on the snapshot is there, whatever else fails.
    let now = described(objects, &owned.id).await.map_err(Error::maybe_done)?;
    owned.set_context(context(&now));
    if let Some(plain) = owned.plain() {
        plain.see(&now);
        if let Some(map) = plain.map() {
            map.snapshot(id).await.map_err(Error::maybe_done)?;
        }
    } else if let Some(presence) = owned.layer().data().presence() {
        let saved = crate::bitmap::save(objects, &owned.id, Some(id), &presence).await;
        // Without it the snapshot is slower to read, and no less right.
        if let Err(error) = saved {
            tracing::warn!(image = %owned.id, "a bitmap was not written: {}", error.chain());
        }
    }
    announce(owned).await;
    owned.catalog.record_of(&now).await.map_err(Error::maybe_done)
}

/// The snapshots that must keep what the head changes, and one that is about to be among them.
fn with_one_more(described: &Described, number: u64) -> SnapContext {
    let mut context = context(described);
    if number > context.newest {
        context.newest = number;
        context.snapshots.insert(0, number);
    }
    context
}

/// The snapshots that must keep what the head changes.
pub(crate) fn context(described: &Described) -> SnapContext {
    SnapContext { newest: described.header.snap_seq, snapshots: described.header.snap_context() }
}

async fn cut_parent<O: Objects>(owned: &Owned<O>) -> Result<ImageRecord> {
    let (catalog, objects) = (&owned.catalog, owned.catalog.objects());
    let plan = |now: &Described, op: WriteOp| {
        Ok(match (&now.header.parent, &now.elsewhere) {
            (Some(_), _) => {
                let detach = layering::parent_detach();
                Some(op.call(CLASS, detach.method, detach.input))
            }
            (None, Some(parent)) if parent.seen_until.is_some() => None,
            (None, Some(_)) if now.header.snapshots.is_empty() => {
                Some(op.then(WriteStep::RemoveOmap([keys::PARENT.into()].into())))
            }
            (None, Some(parent)) => {
                let seen_until = Some(now.header.snap_seq);
                let parent = Elsewhere { seen_until, ..parent.clone() };
                Some(op.set_omap(keys::PARENT, parent.to_bytes()))
            }
            (None, None) => None,
        })
    };
    let doing = || format!("cut image {} off its parent", owned.id);
    let before = change_header(objects, &owned.id, plan, doing).await?;
    let now = described(objects, &owned.id).await?;
    // Where snapshots still see the parent, the image stays its child.
    if let Some(before) = before.filter(|_| now.parent_link(catalog.home()).is_none()) {
        catalog.leave(&before).await?;
    }
    if let Some(plain) = owned.plain() {
        plain.see(&now);
    }
    announce(owned).await;
    catalog.record_of(&now).await
}

/// Says that the header changed. Whoever does not hear it finds out when it looks.
async fn announce<O: Objects>(owned: &Owned<O>) {
    let _ = owned.layer().image().tell(&Message::HeaderChanged).await;
}

/// A number for a snapshot, which is given back if it is not used.
#[derive(Debug)]
struct Number<O: Objects> {
    objects: O,
    background: Background,
    value: u64,
    is_kept: bool,
}

impl<O: Objects> Number<O> {
    async fn new(owned: &Owned<O>) -> Result<Self> {
        let objects = owned.layer().data().objects().clone();
        let background = owned.catalog.background().clone();
        let value = objects.create_snapshot().await;
        let value = value.map_err(|failure| failed(failure, "get a number for a snapshot"))?;
        Ok(Self { objects, background, value, is_kept: false })
    }

    fn keep(&mut self) -> u64 {
        self.is_kept = true;
        self.value
    }
}

impl<O: Objects> Drop for Number<O> {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let (objects, value) = (self.objects.clone(), self.value);
        // Lost, it costs nothing but a number.
        self.background.spawn(async move {
            let _ = objects.remove_snapshot(value).await;
        });
    }
}
