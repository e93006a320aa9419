//! The tests of rules, on the embedded engine.

mod cycles;
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
mod mistakes;
#[path = "../others.rs"]
mod others;
#[path = "../overlaps.rs"]
mod overlaps;
pub mod place;
#[path = "../races.rs"]
mod races;
#[path = "../rules.rs"]
mod rules;
