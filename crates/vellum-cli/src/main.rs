//! The command line `vellum`.

fn main() {}
