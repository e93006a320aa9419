//! [`PlainHead`]: what the owner of a plain RBD image knows beside what every owner does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vellum_core::ObjectNo;
use vellum_engine::{Error, ErrorKind, Result};
use vellum_rados::Objects;
use vellum_rbd::Features;

use crate::catalog::CephCatalog;
use crate::described::{Described, UNDERSTOOD};
use crate::object_map::HeadMap;
use crate::place::Place;
use crate::rules::Rules;

/// A plain image that is owned.
#[derive(Debug)]
pub(crate) struct PlainHead<O: Objects> {
    /// How far the head sees the parent.
    overlap: AtomicU64,
    /// Whether a snapshot sees the parent too, through the absence of objects.
    is_seen_by_snapshots: AtomicBool,
    map: Option<Arc<HeadMap<O>>>,
}

impl<O: Objects> PlainHead<O> {
    /// Of an image whose lock this client has.
    pub(crate) async fn open(catalog: &CephCatalog<O>, described: &Described) -> Result<Self> {
        check_can_be_written(described)?;
        let map = HeadMap::open(catalog, described).await?.map(Arc::new);
        let this =
            Self { overlap: AtomicU64::new(0), is_seen_by_snapshots: AtomicBool::new(false), map };
        this.see(described);
        Ok(this)
    }

    /// Takes over what the header says by now. Nothing is written meanwhile.
    pub(crate) fn see(&self, described: &Described) {
        self.overlap.store(described.overlap(None), Ordering::SeqCst);
        let mut snapshots = described.header.snapshots.keys();
        let seen = snapshots.any(|snapshot| described.overlap(Some(*snapshot)) > 0);
        self.is_seen_by_snapshots.store(seen, Ordering::SeqCst);
    }

    /// How an object changes.
    pub(crate) fn rules(&self, place: &Place, object: ObjectNo) -> Rules {
        Rules::plain(place, object, self.overlap.load(Ordering::SeqCst))
    }

    /// Whether an object that is not there must be made for the snapshots too, before anything else touches it.
    pub(crate) fn must_fill_first(&self, place: &Place, object: ObjectNo) -> bool {
        self.is_seen_by_snapshots.load(Ordering::SeqCst)
            && !matches!(self.rules(place, object), Rules::Plain(shown) if shown.is_empty())
    }

    /// Its object map, if it has one that is kept.
    pub(crate) fn map(&self) -> Option<&Arc<HeadMap<O>>> {
        self.map.as_ref()
    }
}

fn check_can_be_written(described: &Described) -> Result<()> {
    let (id, features) = (&described.id, described.header.features);
    let unsupported = |what: String| Err(Error::new(ErrorKind::Unsupported, what));
    let beyond = features.not_understood(true, UNDERSTOOD);
    if beyond != Features(0) {
        return unsupported(format!(
            "image {id} has features with which this program can only read it: {beyond}"
        ));
    }
    if !features.has(Features::EXCLUSIVE_LOCK) {
        return unsupported(format!(
            "image {id} has no exclusive lock, so that others could write beside; see `rbd feature enable IMAGE exclusive-lock`"
        ));
    }
    Ok(())
}
