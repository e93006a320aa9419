//! Tests of the layering rules on a real engine, under wrappers that count and inject faults.

mod fixture;
mod model;
mod races;
mod rules;
