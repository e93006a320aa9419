//! The catalog on disk: images, layers, snapshots and children of a pool, in one SQLite database.
//!
//! [`Database`] owns the connections and the threads they live on; the other modules are statements and the rules they
//! keep, each a function of an open transaction. Nothing here opens a layer, takes a lock or touches a file of data.
//!
//! In reading order: [`schema`] (what is on disk), [`connection`] (how it is opened), [`worker`] (threads, transactions,
//! two-phase commit), [`alone`] (the same without threads, for
//! simulations), [`log`] (what a process that died has left at its end), [`failure`] (what an error of SQLite means), [`record`] (rows to records), [`images`],
//! [`snapshots`], [`children`], [`layers`], [`registry`] (the pool's own row), [`consistency`] (what must hold between rows).

pub(crate) mod alone;
pub(crate) mod children;
pub(crate) mod connection;
pub(crate) mod consistency;
pub(crate) mod failure;
pub(crate) mod images;
pub(crate) mod layers;
pub(crate) mod log;
pub(crate) mod record;
pub(crate) mod registry;
pub(crate) mod schema;
pub(crate) mod snapshots;
pub(crate) mod worker;

pub(crate) use failure::{Failure, Outcome};
pub use worker::wait_for_catalogs;
pub(crate) use worker::{DECISION_WAIT, Database, Undecided};

#[cfg(test)]
mod tests;
