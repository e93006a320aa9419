//! The embedded engine through its public face, on real directories: what a pool is, who owns what, what survives. The
//! rules that every engine keeps are tested by the conformance suite; here are those that only this one has.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod check;
mod clones;
mod damage;
mod directories;
mod fixture;
mod ownership;
mod processes;
mod read_only;
mod removal;
mod snapshots;
