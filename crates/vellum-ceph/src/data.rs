//! [`Data`]: the data objects of an image, as its head or one of its snapshots sees them, and what is known of their states.

use std::collections::HashMap;
use std::ops::Range;

use parking_lot::Mutex;
use tokio::sync::RwLock;
use vellum_core::{Buffer, Extent, ObjectNo, Runs, State};
use vellum_engine::{Error, ErrorKind, Known, Result};
use vellum_rados::{DataRead, Failure, Found, Objects, ReadDone, ReadOp, ReadStep, SnapId};
use vellum_rbd::names;

use crate::error::{corrupt, failed, unexpected};
use crate::keys::STATES;
use crate::place::Place;
use crate::plan::is_whole;
use crate::presence::Presence;
use crate::states::ObjectStates;

/// The most objects whose states are remembered: 16 MiB of them, at a kibibyte each at most.
const REMEMBERED_MAX: usize = 16 << 10;

/// Locks for objects: two of the same number share one.
const LOCKS: usize = 256;

/// The data objects of an image.
#[derive(Debug)]
pub(crate) struct Data<O: Objects> {
    objects: O,
    prefix: String,
    place: Place,
    at: SnapId,
    known: Mutex<Remembered>,
    /// By the number of the object: held alone by who changes the states of an object, and shared by who relies on them.
    locks: Box<[RwLock<()>; LOCKS]>,
}

#[derive(Debug)]
struct Remembered {
    states: HashMap<ObjectNo, ObjectStates>,
    /// Which objects there may be; `None` if that is not known.
    presence: Option<Presence>,
}

impl<O: Objects> Data<O> {
    pub(crate) fn new(
        objects: O,
        prefix: String,
        place: Place,
        at: SnapId,
        presence: Option<Presence>,
    ) -> Self {
        let known = Mutex::new(Remembered { states: HashMap::new(), presence });
        let locks = Box::new(std::array::from_fn(|_| RwLock::default()));
        Self { objects, prefix, place, at, known, locks }
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn objects(&self) -> &O {
        &self.objects
    }

    /// The snapshot that is seen; `None` for the head.
    pub(crate) fn snapshot(&self) -> Option<u64> {
        (self.at != SnapId::HEAD).then_some(self.at.0)
    }

    pub(crate) fn name(&self, object: ObjectNo) -> String {
        names::data(&self.prefix, object.0)
    }

    /// What is remembered of an object, or follows from its not being there.
    pub(crate) fn remembered(&self, object: ObjectNo) -> Option<ObjectStates> {
        let known = self.known.lock();
        let absent = known.presence.as_ref().is_some_and(|presence| !presence.contains(object.0));
        match known.states.get(&object) {
            Some(states) => Some(states.clone()),
            None => absent.then_some(ObjectStates::Absent),
        }
    }

    /// Remembers what an object says of its units.
    pub(crate) fn remember(&self, object: ObjectNo, states: ObjectStates) {
        let mut known = self.known.lock();
        if states.exists()
            && let Some(presence) = &mut known.presence
        {
            presence.insert(object.0);
        }
        if known.states.len() >= REMEMBERED_MAX && !known.states.contains_key(&object) {
            // Which goes matters little: it is read again with the data.
            let some: Vec<ObjectNo> =
                known.states.keys().take(REMEMBERED_MAX / 8).copied().collect();
            some.iter().for_each(|object| drop(known.states.remove(object)));
        }
        known.states.insert(object, states);
    }

    /// An object may be there from now on.
    pub(crate) fn expect(&self, object: ObjectNo) {
        let mut known = self.known.lock();
        known.states.entry(object).or_insert(ObjectStates::Absent);
        if let Some(presence) = &mut known.presence {
            presence.insert(object.0);
        }
    }

    /// Forgets what an object says of its units, since that is not sure any more. It may be there from now on.
    pub(crate) fn forget(&self, object: ObjectNo) {
        let mut known = self.known.lock();
        known.states.remove(&object);
        if let Some(presence) = &mut known.presence {
            presence.insert(object.0);
        }
    }

    /// Forgets which objects there may be.
    pub(crate) fn forget_presence(&self) {
        self.known.lock().presence = None;
    }

    /// Notes that objects from one on are not there.
    pub(crate) fn end_presence(&self, first: u64) {
        let mut known = self.known.lock();
        known.states.retain(|object, _| object.0 < first);
        if let Some(presence) = &mut known.presence {
            presence.remove_from(first);
        }
    }

    /// Which objects there may be, if that is known.
    pub(crate) fn presence(&self) -> Option<Presence> {
        self.known.lock().presence.clone()
    }

    /// The lock of an object.
    pub(crate) fn lock(&self, object: ObjectNo) -> &RwLock<()> {
        &self.locks[object.0 as usize % LOCKS]
    }

    /// What an object says of its units.
    pub(crate) async fn states_of(&self, object: ObjectNo) -> Result<ObjectStates> {
        let _unchanged = self.lock(object).read().await;
        self.states_under_lock(object).await
    }

    /// The same, for who has the lock of the object.
    pub(crate) async fn states_under_lock(&self, object: ObjectNo) -> Result<ObjectStates> {
        if let Some(states) = self.remembered(object) {
            return Ok(states);
        }
        let (_, states, _) = self.look(object, None).await;
        let states = states?;
        self.remember(object, states.clone());
        Ok(states)
    }

    /// How many bytes an object has; none if there is none.
    pub(crate) async fn length(&self, object: ObjectNo) -> Result<u64> {
        let op = ReadOp::new().then(ReadStep::Stat);
        let done = self.objects.read(&self.name(object), self.at, op).await;
        match done.result.map(|(_, mut found)| found.pop()) {
            Ok(Some(Found::Length(length))) => Ok(length),
            Ok(_) => Err(unexpected()),
            Err(Failure::NOT_FOUND) => Ok(0),
            Err(failure) => Err(failed(failure, format!("read object {}", self.name(object)))),
        }
    }

    /// Whether a snapshot has an object.
    pub(crate) async fn exists_at(&self, object: ObjectNo, snapshot: u64) -> Result<bool> {
        let op = ReadOp::new().then(ReadStep::Stat);
        match self.objects.read(&self.name(object), SnapId(snapshot), op).await.result {
            Ok(_) => Ok(true),
            Err(Failure::NOT_FOUND) => Ok(false),
            Err(failure) => Err(failed(failure, format!("look at object {}", self.name(object)))),
        }
    }

    /// Reads what an object says of its units, and bytes of it, at one moment. How many bytes there were comes last.
    async fn look(
        &self,
        object: ObjectNo,
        data: Option<DataRead>,
    ) -> (Option<Buffer>, Result<ObjectStates>, u64) {
        let op = ReadOp { steps: vec![ReadStep::Xattrs], data };
        let ReadDone { buffer, result, .. } =
            self.objects.read(&self.name(object), self.at, op).await;
        match result {
            Ok((read, found)) => (buffer, self.decode(object, found), read as u64),
            Err(Failure::NOT_FOUND) => (buffer, Ok(ObjectStates::Absent), 0),
            Err(failure) => {
                let error = failed(failure, format!("read object {}", self.name(object)));
                (buffer, Err(error), 0)
            }
        }
    }

    fn decode(&self, object: ObjectNo, found: Vec<Found>) -> Result<ObjectStates> {
        let Some(Found::Xattrs(xattrs)) = found.into_iter().next() else {
            return Err(unexpected());
        };
        let Some(bytes) = xattrs.get(STATES) else { return Ok(ObjectStates::Opaque) };
        let units = self.place.units_of_object();
        ObjectStates::decode(bytes, self.place.unit_shift(), units)
            .map_err(|why| corrupt(format!("the states of object {}", self.name(object)), why))
    }

    /// Reads a piece of the image that lies in one piece of one object, into a part of a buffer, and says what its units are.
    /// `is_there` fails if the image is gone, so that an object that is missing says nothing.
    pub(crate) async fn read_piece(
        &self,
        at: Extent,
        buffer: Buffer,
        into: Range<usize>,
        is_there: impl Fn() -> Result<()>,
    ) -> (Buffer, Result<Runs>) {
        let (object, offset) = self.place.geometry().locate(at.offset());
        let units = self.place.units(at);
        let remembered = self.remembered(object);
        if remembered == Some(ObjectStates::Absent) {
            let mut runs = Runs::new();
            runs.push(at, State::Inherited);
            return (buffer, Ok(runs));
        }
        // What is inherited must not be touched: only what is data as a whole is read in place.
        let in_place = remembered
            .is_some_and(|states| units.clone().all(|unit| states.get(unit) == State::Data));
        let (scratch, kept) = if in_place {
            (DataRead { offset, buffer, into: into.clone() }, None)
        } else {
            let scratch = Buffer::from_vec(vec![0; at.len_usize()]);
            (DataRead { offset, buffer: scratch, into: 0..at.len_usize() }, Some(buffer))
        };
        let from = scratch.into.start;
        let (data, states, read) = self.look(object, Some(scratch)).await;
        let Some(mut data) = data else {
            let lost = Error::new(ErrorKind::Io, "the connection to the cluster is gone");
            return (kept.unwrap_or_else(|| Buffer::from_vec(vec![0; into.end])), Err(lost));
        };
        let states = match states.and_then(|states| is_there().map(|()| states)) {
            Ok(states) => states,
            Err(error) => return (kept.unwrap_or(data), Err(error)),
        };
        self.remember_read(object, &states);
        if !is_whole(&self.place, &states, at, read) {
            let what = format!("object {} ends where it should hold data", self.name(object));
            return (kept.unwrap_or(data), Err(Error::corrupt(what)));
        }
        let mut runs = Runs::new();
        data[from + read as usize..from + at.len_usize()].fill(0);
        let mut buffer = kept;
        for (run, state) in states.runs(units) {
            let run = self.place.image_of(&run, at).intersect(&at);
            let within = at.range_of(&run);
            runs.push(run, state);
            let source = from + within.start..from + within.end;
            match (state, &mut buffer) {
                (State::Inherited, _) => {}
                (State::Zero, None) => data[source].fill(0),
                (State::Data, None) => {}
                (state, Some(buffer)) => {
                    let into = &mut buffer[into.start + within.start..into.start + within.end];
                    match state {
                        State::Data => into.copy_from_slice(&data[source]),
                        _ => into.fill(0),
                    }
                }
            }
        }
        (buffer.unwrap_or(data), Ok(runs))
    }

    /// Remembers what a read has found, unless more is known by now.
    fn remember_read(&self, object: ObjectNo, states: &ObjectStates) {
        if self.at != SnapId::HEAD {
            self.remember(object, states.clone());
        }
    }

    /// The states of an extent as far as they are remembered, in as many runs as are wanted.
    pub(crate) fn states(&self, at: Extent, runs_max: usize, out: &mut Runs) -> Known {
        out.clear();
        let mut rest = at;
        while !rest.is_empty() {
            if let Some(end) = self.nothing_until(rest.offset()) {
                let (nothing, behind) = rest.split(end);
                if !push(out, nothing, State::Inherited, runs_max) {
                    return Known::All;
                }
                rest = behind;
                continue;
            }
            let Some(piece) = self.place.geometry().objects(rest).next() else { break };
            let Some(states) = self.remembered(piece.object) else { return Known::Part };
            for (run, state) in states.runs(self.place.units(piece.image)) {
                let run = self.place.image_of(&run, piece.image).intersect(&piece.image);
                if !push(out, run, state, runs_max) {
                    return Known::All;
                }
            }
            rest = rest.split(piece.image.end()).1;
        }
        Known::All
    }

    /// Up to where there is no object from a byte on, as far as that is a whole set of objects or more.
    fn nothing_until(&self, offset: u64) -> Option<u64> {
        let geometry = self.place.geometry();
        let (set, count) = (offset / geometry.object_set_size(), geometry.stripe_count());
        let known = self.known.lock();
        let next = match known.presence.as_ref()?.next(set * count) {
            None => return Some(self.place.size()),
            Some(object) => object / count,
        };
        (next > set).then(|| next.saturating_mul(geometry.object_set_size()))
    }

    /// The first objects of an extent whose states are not remembered.
    pub(crate) fn unknown_in(&self, at: Extent, max: usize) -> Vec<ObjectNo> {
        let mut objects = Vec::new();
        for piece in self.place.geometry().objects(at).take(max) {
            if self.remembered(piece.object).is_none() && !objects.contains(&piece.object) {
                objects.push(piece.object);
            }
        }
        objects
    }
}

/// Appends a run, if there is room for it.
fn push(out: &mut Runs, at: Extent, state: State, runs_max: usize) -> bool {
    if out.len() >= runs_max && out.last().is_none_or(|last| last.state != state) {
        return false;
    }
    out.push(at, state);
    true
}
