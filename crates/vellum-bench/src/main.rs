//! Workloads and peers that measure Vellum.

fn main() {}
