//! What a change does to a data object of a plain RBD image. Pure.
//!
//! Such an object defines all of its bytes or, by not being there, none: what is beyond its end is zeros, and it hides what the parent
//! holds. So whatever of the parent can be seen through an object that is not there must be put into it before a part of it is written.

use vellum_core::{Extent, ObjectNo};
use vellum_engine::{Content, Fill, Guard, Missing, Write};
use vellum_rados::WriteStep;

use crate::place::Place;
use crate::plan::Plan;
use crate::states::ObjectStates;

/// What an object that is not there shows of the parent: the extents of the image in it, as far as the parent is seen.
pub fn shown(place: &Place, object: ObjectNo, overlap: u64) -> Vec<Extent> {
    let all = place.geometry().object_image_extents(object, place.size());
    all.map(|at| at.clip(overlap)).filter(|at| !at.is_empty()).collect()
}

/// Of a write that lies in one object.
pub fn write(place: &Place, states: &ObjectStates, shown: &[Extent], write: &Write) -> Plan {
    let missing = missing(place, states, shown, &[write.extent()], write.guard);
    if !missing.is_empty() {
        return Plan::Missing(missing);
    }
    done(states, vec![step(place, write)])
}

/// Of a fill whose parts, and whose write, lie in one object.
pub fn fill(place: &Place, states: &ObjectStates, shown: &[Extent], fill: &Fill) -> Plan {
    let mut steps = Vec::new();
    if !states.exists() {
        let filled = fill.parts.iter().map(|part| part.at);
        let covered: Vec<Extent> = filled.chain(fill.then.iter().map(Write::extent)).collect();
        let missing = missing(place, states, shown, &covered, Guard::Edges);
        if !missing.is_empty() {
            return Plan::Missing(missing);
        }
        for part in &fill.parts {
            if let Content::Data(data) = &part.content {
                let offset = place.offset(part.at.offset());
                steps.push(WriteStep::Write { offset, data: data.clone() });
            }
        }
    }
    steps.extend(fill.then.iter().map(|write| step(place, write)));
    if states.exists() && steps.is_empty() { Plan::Nothing } else { done(states, steps) }
}

/// Of whole units of one object that become zero. One that is zeros as a whole is removed, where nothing shows then. An object that is made by this is zeros as a whole: who zeroes a part of one that
/// shows something of the parent beside it has filled it before.
pub fn zero(place: &Place, states: &ObjectStates, shown: &[Extent], at: Extent) -> Plan {
    let all = place.geometry().object_size();
    match (states.exists(), shown.is_empty()) {
        (true, true) if at.length() == all => Plan::Remove,
        (true, _) => {
            let offset = place.offset(at.offset());
            done(states, vec![WriteStep::Zero { offset, length: at.length() }])
        }
        (false, true) => Plan::Nothing,
        (false, false) => done(states, Vec::new()),
    }
}

/// Of an object that keeps what lies before an offset, since the image is about to end there. One that is not there stays so: the
/// overlap ends with the image. One that would show the parent stays as well until it has, and holds nothing.
pub fn trim(place: &Place, states: &ObjectStates, shown: &[Extent], end: u64) -> Plan {
    match (states.exists(), place.geometry().object_size() - end) {
        (false, _) | (true, 0) => Plan::Nothing,
        (true, _) if end == 0 && shown.is_empty() => Plan::Remove,
        (true, length) => Plan::Write(vec![WriteStep::Zero { offset: end, length }]),
    }
}

/// Of an object that is to show the parent again, as a whole.
pub fn remove(states: &ObjectStates) -> Plan {
    if states.exists() { Plan::Remove } else { Plan::Nothing }
}

fn step(place: &Place, write: &Write) -> WriteStep {
    WriteStep::Write { offset: place.offset(write.offset), data: write.data.clone() }
}

/// Afterwards the object is there, and defines everything.
fn done(states: &ObjectStates, steps: Vec<WriteStep>) -> Plan {
    match states {
        ObjectStates::Absent => Plan::Change(steps, ObjectStates::Opaque),
        _ => Plan::Write(steps),
    }
}

/// What the parent would show no more, though nobody has written it: whole units, as bytes of the image.
fn missing(
    place: &Place,
    states: &ObjectStates,
    shown: &[Extent],
    covered: &[Extent],
    guard: Guard,
) -> Missing {
    let mut missing = Missing::new();
    if states.exists() {
        return missing;
    }
    let units = shown.iter().flat_map(|at| place.around(*at).chunks(place.unit()));
    for unit in units.map(|unit| unit.clip(place.size())) {
        let is_covered = covered.iter().any(|at| at.contains(&unit));
        if guard == Guard::Edges && is_covered {
            continue;
        }
        match missing.last_mut() {
            Some(last) if last.end() == unit.offset() => {
                *last = Extent::between(last.offset(), unit.end());
            }
            _ => missing.push(unit),
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use vellum_core::Geometry;
    use vellum_engine::{Durability, Part};

    use super::*;

    const UNIT: u64 = 512;

    /// Objects of 4 KiB, in stripes of 1 KiB over two.
    fn place() -> Place {
        Place::new(Geometry::new(4096, 1024, 2).unwrap(), 10_000, UNIT)
    }

    fn write_of(offset: u64, length: u64) -> Write {
        let data = Bytes::from(vec![7; length as usize]);
        Write { offset, data, guard: Guard::Edges, durability: Durability::AtSync }
    }

    #[test]
    fn what_an_object_shows_of_the_parent_follows_its_stripes_and_ends_with_the_overlap() {
        let at = |offset, length| Extent::new(offset, length);
        assert_eq!(shown(&place(), ObjectNo(0), 2500), [at(0, 1024), at(2048, 452)]);
        assert_eq!(shown(&place(), ObjectNo(1), 2500), [at(1024, 1024)]);
        assert_eq!(shown(&place(), ObjectNo(2), 2500), []);
    }

    #[test]
    fn a_write_into_an_object_that_is_not_there_misses_all_that_the_parent_shows_in_it() {
        let (place, absent) = (place(), ObjectStates::Absent);
        let seen = shown(&place, ObjectNo(0), 2500);
        let plan = write(&place, &absent, &seen, &write_of(0, UNIT));
        let expected = [Extent::new(512, 512), Extent::new(2048, 512)];
        assert!(matches!(&plan, Plan::Missing(missing) if missing[..] == expected), "{plan:?}");
        let all = Write { guard: Guard::All, ..write_of(0, UNIT) };
        let plan = write(&place, &absent, &seen, &all);
        let expected = [Extent::new(0, 1024), Extent::new(2048, 512)];
        assert!(matches!(&plan, Plan::Missing(missing) if missing[..] == expected), "{plan:?}");
        // Beyond the overlap too: the object would be there, and hide the parent before it.
        let beyond = write(&place, &absent, &seen, &write_of(4096, UNIT));
        assert!(matches!(beyond, Plan::Missing(_)), "{beyond:?}");
        for (states, seen) in [(&ObjectStates::Opaque, &seen[..]), (&absent, &[])] {
            let plan = write(&place, states, seen, &write_of(5, 6));
            let (Plan::Write(steps) | Plan::Change(steps, _)) = &plan else { panic!("{plan:?}") };
            assert_eq!(steps.len(), 1);
        }
    }

    #[test]
    fn a_fill_of_all_that_is_shown_makes_the_object_and_one_of_less_misses_the_rest() {
        let (place, absent) = (place(), ObjectStates::Absent);
        let seen = shown(&place, ObjectNo(0), 2500);
        let data =
            |at: Extent| Part { at, content: Content::Data(Bytes::from(vec![1; at.len_usize()])) };
        let zeros = Part { at: Extent::new(2048, 512), content: Content::Zero };
        let parts = vec![data(Extent::new(0, 1024)), zeros.clone()];
        let whole = Fill { parts, then: Some(write_of(100, 9)) };
        let plan = fill(&place, &absent, &seen, &whole);
        let Plan::Change(steps, after) = &plan else { panic!("{plan:?}") };
        assert_eq!((steps.len(), after), (2, &ObjectStates::Opaque));
        let less = Fill { parts: vec![zeros], then: Some(write_of(100, 9)) };
        assert!(matches!(fill(&place, &absent, &seen, &less), Plan::Missing(_)));
        let late = fill(&place, &ObjectStates::Opaque, &seen, &whole);
        assert!(matches!(&late, Plan::Write(steps) if steps.len() == 1), "{late:?}");
    }

    #[test]
    fn what_lies_behind_a_new_end_goes_and_nothing_of_the_parent_comes_back() {
        let (place, absent, there) = (place(), ObjectStates::Absent, ObjectStates::Opaque);
        let seen = shown(&place, ObjectNo(0), 2500);
        let zero = |offset| Plan::Write(vec![WriteStep::Zero { offset, length: 4096 - offset }]);
        assert_eq!(trim(&place, &there, &seen, 100), zero(100));
        assert_eq!(trim(&place, &there, &seen, 0), zero(0));
        assert_eq!(trim(&place, &there, &[], 0), Plan::Remove);
        assert_eq!(trim(&place, &there, &[], 4096), Plan::Nothing);
        assert_eq!(trim(&place, &absent, &seen, 0), Plan::Nothing);
    }

    #[test]
    fn zeros_need_an_object_only_where_the_parent_would_show() {
        let (place, absent, at) = (place(), ObjectStates::Absent, Extent::new(0, 1024));
        let seen = shown(&place, ObjectNo(0), 2500);
        assert_eq!(zero(&place, &absent, &[], at), Plan::Nothing);
        let tombstone = zero(&place, &absent, &seen, at);
        assert_eq!(tombstone, Plan::Change(Vec::new(), ObjectStates::Opaque));
        let whole = Place::new(Geometry::unstriped(4096).unwrap(), 10_000, UNIT);
        let all = Extent::new(4096, 4096);
        assert_eq!(zero(&whole, &ObjectStates::Opaque, &[], all), Plan::Remove);
        let hidden = zero(&whole, &ObjectStates::Opaque, &[all], all);
        assert_eq!(hidden, Plan::Write(vec![WriteStep::Zero { offset: 0, length: 4096 }]));
        let punched = zero(&place, &ObjectStates::Opaque, &seen, at);
        assert_eq!(punched, Plan::Write(vec![WriteStep::Zero { offset: 0, length: 1024 }]));
    }
}
