//! Tests of the layering rules on real engines: one by one, under wrappers that count and inject faults; and in random
//! programs.
//!
//! Each test of a rule runs on the memory engine, the reference, and on the embedded one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::duplicate_mod, reason = "the same tests, on another engine")]

mod embedded;
mod gate;
mod memory;
mod model;
