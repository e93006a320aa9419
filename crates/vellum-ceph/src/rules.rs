//! [`Rules`]: what a change does to an object, in an image of either sort. Pure.

use vellum_core::{Extent, ObjectNo};
use vellum_engine::{Fill, SetTo, Write};
use vellum_rados::WriteOp;

use crate::place::Place;
use crate::plan::{self, Plan, alloc_hint};
use crate::states::ObjectStates;
use crate::{place, plain};

/// By which an object changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rules {
    /// It says of each unit what it is.
    Sparse,
    /// It defines all of its units, or is not there and shows these extents of the image as the parent has them.
    Plain(Vec<Extent>),
}

impl Rules {
    /// Of an object of a plain image whose parent is seen up to here.
    pub fn plain(place: &Place, object: ObjectNo, overlap: u64) -> Self {
        Self::Plain(plain::shown(place, object, overlap))
    }

    /// Of a write that lies in one object.
    pub fn write(&self, place: &Place, states: &ObjectStates, write: &Write) -> Plan {
        match self {
            Self::Sparse => plan::write(place, states, write),
            Self::Plain(shown) => plain::write(place, states, shown, write),
        }
    }

    /// Of a fill whose parts, and whose write, lie in one object.
    pub fn fill(&self, place: &Place, states: &ObjectStates, fill: &Fill) -> Plan {
        match self {
            Self::Sparse => plan::fill(place, states, fill),
            Self::Plain(shown) => plain::fill(place, states, shown, fill),
        }
    }

    /// Of whole units of one object that become zero, or inherited.
    pub fn set(&self, place: &Place, states: &ObjectStates, at: Extent, to: SetTo) -> Plan {
        match (self, to) {
            (Self::Sparse, to) => plan::set(place, states, at, to),
            (Self::Plain(shown), SetTo::Zero) => plain::zero(place, states, shown, at),
            (Self::Plain(_), SetTo::Inherit) => plain::remove(states),
        }
    }

    /// Of an object that keeps what lies before an offset, since the image is about to end there.
    pub fn trim(&self, place: &Place, states: &ObjectStates, end: u64) -> Plan {
        match self {
            Self::Sparse => plan::trim(place, states, end),
            Self::Plain(shown) => plain::trim(place, states, shown, end),
        }
    }

    /// Of an object in which the image ends, since it is about to go on there. What an object of a plain image lacks is zeros.
    pub fn extend(&self, place: &Place, states: &ObjectStates, end: u64) -> Plan {
        match self {
            Self::Sparse => plan::extend(place, states, end),
            Self::Plain(_) => Plan::Nothing,
        }
    }

    /// The whole operation on an object with such states, which fails if it has others by now.
    pub fn operation(&self, place: &Place, planned: &Plan, before: &ObjectStates) -> WriteOp {
        let Self::Plain(shown) = self else { return planned.operation(place, before) };
        let op = match (planned, shown.is_empty()) {
            (Plan::Nothing | Plan::Missing(_), _) => return WriteOp::new(),
            (Plan::Remove, _) => return WriteOp::new().remove(),
            (Plan::Change(..), _) => WriteOp::new().create(true).then(alloc_hint(place)),
            // One that was removed would hide what the parent shows.
            (Plan::Write(_), false) => WriteOp::new().assert_exists(),
            (Plan::Write(_), true) => WriteOp::new(),
        };
        let (Plan::Write(steps) | Plan::Change(steps, _)) = planned else { return op };
        WriteOp { steps: [op.steps, steps.clone()].concat() }
    }
}

/// Whether some units of a plain image can be inherited again: all of an object, at once.
pub fn can_inherit(place: &place::Place, at: Extent) -> bool {
    let Some(object) = place.object_of(at) else { return false };
    let mut all = place.geometry().object_image_extents(object, place.size());
    all.next() == Some(at) && all.next().is_none()
}
