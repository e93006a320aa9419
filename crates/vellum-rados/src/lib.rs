//! The narrow seam between the Ceph engine and RADOS.
//!
//! [`Objects`] is all that the engine asks of a pool: an operation is a list of steps on one object, which all take effect or none.
//! [`WriteOp`] and [`ReadOp`] are such lists, as data; [`Failure`] is what the cluster answers. [`librados`] keeps the promises on
//! a real cluster, by a library that is looked for when a pool is first opened, so that a program without Ceph beside it starts and
//! runs; [`memory`] is a cluster for tests.
//!
//! [`counted`] is for whoever must not end before what it has open does. The seam knows nothing of images and their format, and no layering.

mod contract;
pub mod counted;
mod failure;
pub mod librados;
pub mod memory;
mod op;

pub use contract::{Event, List, Objects, ReadDone, SnapContext, SnapId, Watch};
pub use failure::{Failure, Result};
pub use op::{DataRead, Found, ReadOp, ReadStep, WriteOp, WriteStep};
