//! The library as its users meet it: homes on a real file system, real servers on Unix sockets, and a client that shares no code
//! with them.
//!
//! "Another process" is a second [`vellum::Vellum`] on the same home: locks belong to open file descriptions, and nothing else is
//! shared, so the two meet as processes do.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fixture;
mod held;
mod homes;
mod images;
mod load;
mod serving;
