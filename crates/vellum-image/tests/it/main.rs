//! Tests of the layering rules on a real engine, under wrappers that count and inject faults.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fixture;
mod model;
mod others;
mod races;
mod rules;
