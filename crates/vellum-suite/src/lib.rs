//! The conformance suite: what the engine contract says, as small named cases that every engine and every wrapper passes.
//!
//! It knows the contract and no engine. A [`Harness`] makes storage for it and opens it, as often as a case likes, so that a
//! case can be several processes, or one that died. [`trials`] turns the cases into tests; each runs on storage of its own
//! and has a time limit. A case that an engine cannot be asked, because its [capabilities](vellum_engine::Capabilities)
//! say so or its harness cannot do what the case needs, shows as ignored, with the reason.
//!
//! What is not here: the speed of an engine, its formats, and what it does about damaged bytes. Those are its own tests.
//!
//! # How an engine runs it
//!
//! In the engine's `Cargo.toml`, `vellum-suite` and `libtest-mimic` are dev-dependencies, and there is
//!
//! ```toml
//! [[test]]
//! name = "conformance"
//! harness = false
//! ```
//!
//! In `tests/conformance.rs`, a harness and a `main`; this one runs the suite on the reference engine:
//!
//! ```
//! use libtest_mimic::Arguments;
//! use vellum_engine::memory::{MemoryCatalog, MemoryStore};
//! use vellum_suite::{Harness, Result, trials};
//!
//! struct Memory(MemoryStore);
//!
//! impl Harness for Memory {
//!     type Catalog = MemoryCatalog;
//!
//!     async fn open(&self) -> Result<MemoryCatalog> {
//!         Ok(self.0.catalog())
//!     }
//!
//!     async fn power_cut(&self) -> Result<()> {
//!         self.0.power_cut();
//!         Ok(())
//!     }
//! }
//!
//! fn main() {
//!     let args = Arguments { filter: Some("catalog::".into()), ..Arguments::default() };
//!     let trials = trials("memory", || Ok(Memory(MemoryStore::default())));
//!     libtest_mimic::run(&args, trials).exit_if_failed();
//! }
//! ```
//!
//! A real one passes `Arguments::from_args()`. An engine in a directory keeps a temporary directory in its harness and
//! opens the pool in it anew at each call of [`Harness::open`]. Several lists of trials, for an engine on two file
//! systems or under a wrapper, are run together: each has its own name in front.
#![forbid(unsafe_code)]

mod act;
mod cases;
mod harness;
mod model;
mod pool;
mod runner;
mod see;

pub use anyhow::Result;

pub use harness::{Harness, Skip};
pub use runner::trials;
