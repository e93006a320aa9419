//! Publishing: a sparse image becomes a plain one, which Ceph's own tools open.
//!
//! Object by object the states go: what is under a unit that is not data becomes zeros, and the object says no more than that it is
//! there. Died in the middle, the image is a sparse one some of whose objects define all they hold. Then one change of the header
//! makes the true prefix readable.

use std::collections::BTreeSet;

use futures::stream::{self, StreamExt, TryStreamExt};
use vellum_core::{ObjectNo, State};
use vellum_engine::{Catalog, Error, ErrorKind, Head, ImageId, ImageRecord, Result};
use vellum_rados::{Objects, WriteOp, WriteStep};
use vellum_rbd::Encode;
use vellum_rbd::names::key;

use crate::catalog::CephCatalog;
use crate::create::remove_if_there;
use crate::described::Described;
use crate::error::failed;
use crate::head::Owned;
use crate::header::{change_header, described};
use crate::keys::{self, SPARSE, STATES};
use crate::remove;
use crate::states::ObjectStates;

/// Objects that lose their states at once.
const AT_ONCE: usize = 16;

/// Makes a sparse image a plain one. `Unsupported` while it has a parent, or snapshots, whose objects keep their states.
pub(crate) async fn publish<O: Objects>(
    catalog: &CephCatalog<O>,
    id: &ImageId,
) -> Result<ImageRecord> {
    check(catalog, &described(catalog.objects(), id).await?)?;
    let head = catalog.own(id).await?;
    let published = publish_owned(catalog, head.owned()).await;
    let closed = head.close().await;
    published?;
    closed?;
    let doing = || format!("remove the bitmap of image {id}");
    remove_if_there(catalog.objects(), &keys::bitmap(id.as_str(), None), doing).await?;
    catalog.get(id).await
}

fn check<O: Objects>(catalog: &CephCatalog<O>, now: &Described) -> Result<()> {
    let unsupported = |what: &str| Err(Error::new(ErrorKind::Unsupported, what));
    if now.sparse.is_none() {
        return unsupported("it is a plain RBD image already");
    }
    if now.parent_link(catalog.home()).is_some() {
        return unsupported("it still hangs on a parent; flatten it first");
    }
    if !now.header.snapshots.is_empty() {
        return unsupported("its snapshots are as sparse as they were taken; remove them first");
    }
    Ok(())
}

async fn publish_owned<O: Objects>(catalog: &CephCatalog<O>, owned: &Owned<O>) -> Result<()> {
    let now = described(catalog.objects(), &owned.id).await?;
    check(catalog, &now)?;
    let data = owned.layer().data();
    let numbers = remove::numbers(catalog, data.objects(), &now, None).await?;
    let plain = numbers.into_iter().map(|number| make_plain(owned, ObjectNo(number)));
    stream::iter(plain).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let doing = || format!("publish image {}", owned.id);
    let plan = |now: &Described, op: WriteOp| {
        check(catalog, now)?;
        let sparse = BTreeSet::from([SPARSE.into()]);
        let op = op.set_omap(key::OBJECT_PREFIX, now.header.prefix.to_bytes());
        Ok(Some(op.then(WriteStep::RemoveOmap(sparse))))
    };
    change_header(catalog.objects(), &owned.id, plan, doing).await.map(drop)
}

/// Takes the states from an object, which then defines all that it holds.
async fn make_plain<O: Objects>(owned: &Owned<O>, object: ObjectNo) -> Result<()> {
    let data = owned.layer().data();
    let _alone = data.lock(object).write().await;
    data.forget(object);
    let states = data.states_under_lock(object).await?;
    let Some(op) = operation(data.place(), &states) else { return Ok(()) };
    owned.check_owned()?;
    let written = data.objects().write(&data.name(object), &owned.context(), op).await;
    data.forget(object);
    written.map_err(|failure| failed(failure, format!("publish object {}", data.name(object))))
}

/// What makes an object with such states plain; `None` if it is, or is not there.
fn operation(place: &crate::place::Place, states: &ObjectStates) -> Option<WriteOp> {
    let ObjectStates::Map(_) = states else { return None };
    let all = place.units_of_object();
    let op = WriteOp::new().compare_xattr(STATES, states.encode(place.unit_shift(), all));
    let hidden = states.runs(0..all).filter(|(_, state)| *state != State::Data);
    let op = hidden.fold(op, |op, (run, _)| {
        let offset = u64::from(run.start) * place.unit();
        let length = u64::from(run.end - run.start) * place.unit();
        op.then(WriteStep::Zero { offset, length })
    });
    Some(op.then(WriteStep::RemoveXattr(STATES.to_owned())))
}

#[cfg(test)]
mod tests {
    use vellum_core::Geometry;

    use super::*;
    use crate::place::Place;

    #[test]
    fn an_object_loses_its_states_and_what_they_hid() {
        let place = Place::new(Geometry::unstriped(4096).unwrap(), 8192, 512);
        let states = ObjectStates::Absent.with(1..3, State::Data, 8).with(5..6, State::Zero, 8);
        let op = operation(&place, &states).unwrap();
        assert_eq!(op.check(), Ok(()));
        let zero = |offset, length| WriteStep::Zero { offset, length };
        let last = WriteStep::RemoveXattr(STATES.to_owned());
        assert_eq!(
            op.steps[1..],
            [zero(0, 512), zero(1536, 1024), zero(2560, 512), zero(3072, 1024), last]
        );
        assert_eq!(operation(&place, &ObjectStates::Absent), None);
        assert_eq!(operation(&place, &ObjectStates::Opaque), None);
    }
}
