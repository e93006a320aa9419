//! [`CephHead`]: the one writer of an image.
//!
//! A change of an object is one operation on it, which fails if the object's states are not what was expected; then they are read
//! again, and the change is planned anew. Changes of the states of one object come one after the other; what leaves them as they are
//! goes beside each other, and the cluster keeps the order in which it was sent.

use std::sync::Arc;

use futures::future::try_join_all;
use parking_lot::RwLock;
use vellum_core::{Extent, ObjectNo};
use vellum_engine::{
    AtomicSpan, Durability, Error, ErrorKind, Fill, Guarded, Head, HeadChange, ImageId, Ownership,
    Part, Requests, Result, RunToEnd, SetTo, Write, check_range, check_whole_units,
};
use vellum_rados::{Failure, Objects, SnapContext};

use crate::bitmap;
use crate::catalog::CephCatalog;
use crate::change::CephPrepared;
use crate::data::Data;
use crate::error::failed;
use crate::layer::CephLayer;
use crate::object_map::HeadMap;
use crate::ownership;
use crate::place::Place;
use crate::plain_head::PlainHead;
use crate::plan::Plan;
use crate::rules::{Rules, can_inherit};
use crate::states::ObjectStates;
use crate::watched::Role;

/// The one writer of an image. Clones share the ownership.
#[derive(Clone, Debug)]
pub struct CephHead<O: Objects>(Arc<Owner<O>>);

/// Who owns the image; gives it back when the last clone is gone.
#[derive(Debug)]
struct Owner<O: Objects>(Arc<Owned<O>>);

/// Which revisions a change is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Under {
    /// The head, and snapshots keep what they have.
    Newest,
    /// All that see through the absence of an object, if it is not there.
    All,
}

/// A change of an object that is planned.
#[derive(Clone, Copy, Debug)]
struct Change<'a> {
    object: ObjectNo,
    under: Under,
    rules: &'a Rules,
}

/// An image that is owned.
#[derive(Debug)]
pub(crate) struct Owned<O: Objects> {
    pub(crate) catalog: CephCatalog<O>,
    pub(crate) id: ImageId,
    layer: CephLayer<O>,
    /// The acquisition of the lock by which it is owned.
    acquisition: u64,
    /// Which snapshots must keep what is about to be changed.
    context: RwLock<Arc<SnapContext>>,
    /// What there is to know of a plain image.
    plain: Option<PlainHead<O>>,
    /// Whether the image was given back. Held shared by each change for as long as it lasts.
    pub(crate) closed: tokio::sync::RwLock<bool>,
}

impl<O: Objects> CephHead<O> {
    pub(crate) fn new(
        catalog: CephCatalog<O>,
        id: ImageId,
        layer: CephLayer<O>,
        context: SnapContext,
        plain: Option<PlainHead<O>>,
        acquisition: u64,
    ) -> Self {
        let context = RwLock::new(Arc::new(context));
        let closed = tokio::sync::RwLock::new(false);
        let owned = Owned { catalog, id, layer, acquisition, context, plain, closed };
        Self(Arc::new(Owner(Arc::new(owned))))
    }

    pub(crate) fn owned(&self) -> &Arc<Owned<O>> {
        &self.0.0
    }

    fn place(&self) -> &Place {
        self.owned().layer.data().place()
    }

    fn check_range(&self, at: Extent) -> Result<()> {
        check_range(at, self.place().size())
    }

    fn check_whole_units(&self, at: Extent) -> Result<()> {
        check_whole_units(at, self.place().size(), self.place().unit())
    }

    /// The only object that some extents lie in.
    fn object_of(&self, extents: impl Iterator<Item = Extent>) -> Result<Option<ObjectNo>> {
        let mut object = None;
        for at in extents {
            let one = self.place().object_of(at);
            if one.is_none() || object.is_some_and(|other| Some(other) != one) {
                let what = "a change of an image on Ceph is atomic within one object only, and this one crosses a border";
                return Err(Error::new(ErrorKind::Invalid, what));
            }
            object = one;
        }
        Ok(object)
    }
}

impl<O: Objects> Owned<O> {
    pub(crate) fn layer(&self) -> &CephLayer<O> {
        &self.layer
    }

    pub(crate) fn context(&self) -> Arc<SnapContext> {
        self.context.read().clone()
    }

    pub(crate) fn plain(&self) -> Option<&PlainHead<O>> {
        self.plain.as_ref()
    }

    pub(crate) fn rules(&self, object: ObjectNo) -> Rules {
        let place = self.layer.data().place();
        self.plain.as_ref().map_or(Rules::Sparse, |plain| plain.rules(place, object))
    }

    /// Whether an object must be filled, for the snapshots too, before anything else touches it.
    pub(crate) fn must_fill_first(&self, object: ObjectNo) -> bool {
        let (data, plain) = (self.layer.data(), self.plain.as_ref());
        plain.is_some_and(|plain| plain.must_fill_first(data.place(), object))
            && data.remembered(object).is_none_or(|states| !states.exists())
    }

    /// Makes an object that is not there of what a parent holds, for all revisions that see it through its absence. These parts hold all
    /// that they see.
    pub(crate) async fn fill_for_all(&self, object: ObjectNo, parts: Vec<Part>) -> Result<()> {
        let (place, fill) = (*self.layer.data().place(), Fill { parts, then: None });
        let plan = |rules: &Rules, states: &ObjectStates| rules.fill(&place, states, &fill);
        self.must_change(object, Under::All, plan).await
    }

    /// Has an object keep what an image of this size has of it, which is smaller than it is.
    pub(crate) async fn trim(&self, object: ObjectNo, size: u64) -> Result<()> {
        let data = self.layer.data();
        let (place, end) = (*data.place(), data.place().end_in(object, size));
        // A plain one that is no longer would count as changed in the object map, and be as it was.
        if self.plain.is_some() && data.length(object).await? <= end {
            return Ok(());
        }
        let plan = |rules: &Rules, states: &ObjectStates| rules.trim(&place, states, end);
        self.must_change(object, Under::Newest, plan).await
    }

    /// Readies an object that the image ends in for one that is larger.
    pub(crate) async fn extend(&self, object: ObjectNo) -> Result<()> {
        let place = *self.layer.data().place();
        let end = place.end_in(object, place.size());
        let plan = |rules: &Rules, states: &ObjectStates| rules.extend(&place, states, end);
        self.must_change(object, Under::Newest, plan).await
    }

    /// Removes an object that the image does not have any more, or of which it has nothing that anybody sees. The object map is for
    /// whoever calls this.
    pub(crate) async fn remove(&self, object: ObjectNo) -> Result<()> {
        let data = self.layer.data();
        let _alone = data.lock(object).write().await;
        self.check_owned()?;
        let op = vellum_rados::WriteOp::new().remove();
        let removed = data.objects().write(&data.name(object), &self.context(), op).await;
        data.forget(object);
        match removed {
            Ok(()) | Err(Failure::NOT_FOUND) => Ok(()),
            Err(failure) => Err(failed(failure, format!("remove object {}", data.name(object)))),
        }
    }

    /// Changes an object as only the owner of a whole image does.
    async fn must_change(
        &self,
        object: ObjectNo,
        under: Under,
        plan: impl Fn(&Rules, &ObjectStates) -> Plan + Send,
    ) -> Result<()> {
        match self.change(object, under, plan).await? {
            Guarded::Done => Ok(()),
            Guarded::Sealed => {
                let what = format!("image {} was closed meanwhile; try again", self.id);
                Err(Error::new(ErrorKind::Conflict, what))
            }
            Guarded::Missing(_) => {
                let what =
                    format!("object {} sees more of its parent than it was filled with", object.0);
                Err(Error::new(ErrorKind::Invalid, what))
            }
        }
    }

    pub(crate) fn set_context(&self, context: SnapContext) {
        *self.context.write() = Arc::new(context);
    }

    pub(crate) fn check_owned(&self) -> Result<()> {
        match self.layer.image().role() {
            Role::Owner(number) | Role::Releasing(number) if number == self.acquisition => Ok(()),
            _ => Err(Error::new(
                ErrorKind::OwnershipLost,
                format!("image {} was taken over by somebody else; open it again", self.id),
            )),
        }
    }

    /// Plans a change of an object, and carries it out, again until nobody was faster.
    async fn change(
        &self,
        object: ObjectNo,
        under: Under,
        plan: impl Fn(&Rules, &ObjectStates) -> Plan + Send,
    ) -> Result<Guarded> {
        let closed = self.closed.read().await;
        if *closed {
            return Ok(Guarded::Sealed);
        }
        self.check_owned()?;
        let (data, rules) = (self.layer.data(), self.rules(object));
        let change = Change { object, under, rules: &rules };
        loop {
            let shared = data.lock(object).read().await;
            let states = data.states_under_lock(object).await?;
            let planned = plan(&rules, &states);
            let carried_out = match &planned {
                Plan::Change(..) | Plan::Remove => {
                    drop(shared);
                    let _alone = data.lock(object).write().await;
                    let states = data.states_under_lock(object).await?;
                    self.carry_out(data, change, &states, &plan(&rules, &states)).await?
                }
                planned => self.carry_out(data, change, &states, planned).await?,
            };
            if let Some(guarded) = carried_out {
                return Ok(guarded);
            }
        }
    }

    /// Carries a plan out; `None` if the object was not as it was thought to be.
    async fn carry_out(
        &self,
        data: &Data<O>,
        change: Change<'_>,
        before: &ObjectStates,
        planned: &Plan,
    ) -> Result<Option<Guarded>> {
        match planned {
            Plan::Nothing => return Ok(Some(Guarded::Done)),
            Plan::Missing(missing) => {
                self.expect_soon(change.object);
                return Ok(Some(Guarded::Missing(missing.clone())));
            }
            _ => {}
        }
        let Change { object, under, rules } = change;
        let op = rules.operation(data.place(), planned, before);
        if !before.exists() && matches!(planned, Plan::Change(..)) {
            // Noted before it can be there: whoever dies in between leaves no bitmap that lacks it.
            data.expect(object);
        }
        // Before all snapshots, and so for all of them: what the parent shows through an object that is not there.
        let for_all = under == Under::All && self.must_fill_first(object);
        let context = if for_all { Arc::default() } else { self.context() };
        self.note_before(object, planned, for_all).await?;
        match data.objects().write(&data.name(object), &context, op).await {
            Ok(()) => {
                match planned {
                    Plan::Change(_, after) => data.remember(object, after.clone()),
                    Plan::Remove => data.remember(object, ObjectStates::Absent),
                    _ => {}
                }
                self.note_after(object, planned).await?;
                Ok(Some(Guarded::Done))
            }
            Err(Failure::MISMATCH | Failure::EXISTS | Failure::NOT_FOUND) => {
                data.forget(object);
                Ok(None)
            }
            Err(failure) => {
                if failure == Failure::BLOCKLISTED {
                    self.layer.image().lose(Role::Refused);
                }
                if failure.may_have_happened() {
                    data.forget(object);
                }
                Err(failed(failure, format!("write object {}", data.name(object))))
            }
        }
    }

    /// The object map of a plain image, where there is one.
    fn map(&self) -> Option<&Arc<HeadMap<O>>> {
        self.plain.as_ref().and_then(PlainHead::map)
    }

    /// Has the object map say that an object may be there, while what it lacks is read from below. If nobody makes it then, the map
    /// says no more than what it may.
    fn expect_soon(&self, object: ObjectNo) {
        if let Some(map) = self.map().cloned() {
            let background = self.layer.image().background();
            // Who makes the object does it again, and hears of a failure.
            background.spawn(async move { drop(map.expect(object).await) });
        }
    }

    /// Has the object map say what is about to be, where there is one.
    async fn note_before(&self, object: ObjectNo, planned: &Plan, for_all: bool) -> Result<()> {
        let Some(map) = self.map() else { return Ok(()) };
        if *planned == Plan::Remove {
            return map.begin_removal(object).await;
        }
        if for_all {
            map.expect_in(object, &self.absent_in(object).await?).await?;
        }
        map.expect(object).await
    }

    /// The snapshots that do not have an object, the newest first. Others keep what they have, where the head gave it back to the parent.
    async fn absent_in(&self, object: ObjectNo) -> Result<Vec<u64>> {
        let (data, context) = (self.layer.data(), self.context());
        let looks = context.snapshots.iter().map(|snapshot| async {
            let is_there = data.exists_at(object, *snapshot).await?;
            Ok::<_, Error>((!is_there).then_some(*snapshot))
        });
        Ok(try_join_all(looks).await?.into_iter().flatten().collect())
    }

    /// The same of what has come to be.
    async fn note_after(&self, object: ObjectNo, planned: &Plan) -> Result<()> {
        match self.map() {
            Some(map) if *planned == Plan::Remove => map.end_removal(object).await,
            _ => Ok(()),
        }
    }

    /// Waits for what is under way, writes down which objects there are, and gives the image back.
    async fn give_back(&self) -> Result<()> {
        let mut closed = self.closed.write().await;
        if std::mem::replace(&mut *closed, true) {
            // Whoever had given it away does not want it back.
            self.layer.image().set_lent(false);
            return Ok(());
        }
        drop(closed);
        let objects = self.catalog.objects();
        let image = self.layer.image();
        let number = self.acquisition;
        image.change_role(Role::Owner(number), Role::Releasing(number));
        if image.role() != Role::Releasing(number) {
            return Ok(());
        }
        let saved = match (&self.plain, self.layer.data().presence()) {
            (None, Some(presence)) => bitmap::save(objects, &self.id, None, &presence).await,
            _ => Ok(()),
        };
        if let Some(map) = self.map() {
            map.close().await;
        }
        let released = ownership::release(objects, image, &self.id, number).await;
        // Without its bitmap the image is slower, and no less right.
        if let Err(error) = saved {
            tracing::warn!(image = %self.id, "the bitmap was not written: {}", error.chain());
        }
        released
    }
}

impl<O: Objects> Drop for Owner<O> {
    fn drop(&mut self) {
        let owned = self.0.clone();
        // Once closed it has nothing to give back: the image may have another owner by now.
        if owned.closed.try_read().is_ok_and(|closed| *closed) {
            return;
        }
        let number = owned.acquisition;
        owned.layer.image().change_role(Role::Owner(number), Role::Releasing(number));
        // Where nobody gives it back any more, whoever takes it over finds that nobody answers.
        let background = owned.layer.image().background().clone();
        background.spawn(async move {
            if let Err(error) = owned.give_back().await {
                tracing::warn!(image = %owned.id, "{}", error.chain());
            }
        });
    }
}

impl<O: Objects> Head for CephHead<O> {
    type Layer = CephLayer<O>;
    type Prepared = CephPrepared<O>;

    fn layer(&self) -> &CephLayer<O> {
        &self.owned().layer
    }

    fn must_fill_first(&self, at: Extent) -> bool {
        // A snapshot of an object of a sparse image keeps the states that it had, and one that has none sees the parent by itself.
        let mut pieces = self.place().geometry().objects(at);
        self.owned().plain.is_some()
            && pieces.any(|piece| self.owned().must_fill_first(piece.object))
    }

    async fn write(&self, write: Write) -> Result<Guarded> {
        self.check_range(write.extent())?;
        let object = self.object_of([write.extent()].into_iter())?.expect("it is not empty");
        let (owned, place) = (self.owned().clone(), *self.place());
        RunToEnd::new(async move {
            let plan = |rules: &Rules, states: &ObjectStates| rules.write(&place, states, &write);
            owned.change(object, Under::Newest, plan).await
        })
        .await
    }

    async fn fill(&self, fill: Fill) -> Result<Guarded> {
        fill.check_parts(|at| self.check_whole_units(at))?;
        if let Some(write) = &fill.then {
            self.check_range(write.extent())?;
        }
        let touched = fill.parts.iter().map(|part| part.at);
        let object = self.object_of(touched.chain(fill.then.iter().map(Write::extent)))?;
        let (owned, place) = (self.owned().clone(), *self.place());
        let Some(object) = object else {
            return Ok(if *owned.closed.read().await { Guarded::Sealed } else { Guarded::Done });
        };
        RunToEnd::new(async move {
            let under = if fill.then.is_none() { Under::All } else { Under::Newest };
            let plan = |rules: &Rules, states: &ObjectStates| rules.fill(&place, states, &fill);
            owned.change(object, under, plan).await
        })
        .await
    }

    async fn set(&self, at: Extent, to: SetTo, _durability: Durability) -> Result<Guarded> {
        self.check_whole_units(at)?;
        let object = self.object_of([at].into_iter())?.expect("it is not empty");
        let (owned, place) = (self.owned().clone(), *self.place());
        if to == SetTo::Inherit && owned.plain.is_some() && !can_inherit(&place, at) {
            let what = "a part of an object of a plain RBD image cannot show the parent again; discard to zero";
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        RunToEnd::new(async move {
            let plan = |rules: &Rules, states: &ObjectStates| rules.set(&place, states, at, to);
            owned.change(object, Under::Newest, plan).await
        })
        .await
    }

    async fn reclaim(&self) -> Result<u64> {
        // Space is freed in the same step in which a unit becomes inherited: a read gets states and bytes of one moment.
        Ok(0)
    }

    async fn sync(&self) -> Result<()> {
        if *self.owned().closed.read().await {
            return Ok(());
        }
        // What was acknowledged is durable.
        self.owned().check_owned()
    }

    fn unsynced_bytes(&self) -> u64 {
        0
    }

    fn wants_reclaim(&self) -> bool {
        false
    }

    async fn prepare(&self, change: HeadChange) -> Result<CephPrepared<O>> {
        if *self.owned().closed.read().await {
            let what = "only the head that owns the image can change it, and this one does not";
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        self.owned().check_owned()?;
        CephPrepared::new(self.owned().clone(), change).await
    }

    fn ownership(&self) -> Ownership {
        let is_closed = self.owned().closed.try_read().is_ok_and(|closed| *closed);
        match self.owned().layer.image().role() {
            Role::Owner(number) if number == self.owned().acquisition && !is_closed => {
                Ownership::Held
            }
            _ => Ownership::Lost,
        }
    }

    fn requests(&self) -> Requests {
        self.owned().layer().image().asked().listen()
    }

    async fn close(self) -> Result<()> {
        let owned = self.owned().clone();
        RunToEnd::new(async move { owned.give_back().await }).await
    }
}

/// How far one change of a head reaches atomically.
pub(crate) const ATOMIC: AtomicSpan = AtomicSpan::Object;
