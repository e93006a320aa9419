//! The tests of rules, on the memory engine.

#[path = "../depth.rs"]
mod depth;
#[path = "../failures.rs"]
mod failures;
#[path = "../fixture.rs"]
mod fixture;
#[path = "../handover.rs"]
mod handover;
#[path = "../links.rs"]
mod links;
#[path = "../others.rs"]
mod others;
#[path = "../overlaps.rs"]
mod overlaps;
mod place;
#[path = "../races.rs"]
mod races;
#[path = "../rules.rs"]
mod rules;
