//! The engine contract: the only thing an engine implements, and the only thing the layering rules know of it.
//!
//! An engine knows objects, units and atomic operations. It knows which units a layer defines, and nothing of what lies in
//! the layers below: parents' *content* stays above this line, though links to what is below are data on both sides.
//! There are three traits:
//!
//! - [`Catalog`], cold: images, snapshots, children, what a crash left pending; opens layers and hands out ownership.
//! - [`Layer`], what one revision of an image itself defines. Reads only, cheap to clone and share.
//! - [`Head`], the one writer of an image. Exists only while the image is owned.
//!
//! Beside the contract live the in-memory reference engine ([`memory`]); a wrapper of engines ([`around`]) that injects faults
//! ([`fault`]), counts operations ([`count`]) or lets others run in between ([`paced`]); two engines as one ([`either`]); and what keeps the rules below:
//! [`RunToEnd`] for a mutation that was submitted, [`Ranges`] for those that overlap. There is no file, no socket and no
//! layering rule here.
//!
//! # Rules for every call
//!
//! - **Addresses** are extents of the image in bytes, within its size. An engine that is atomic per object only
//!   ([`Capabilities::atomic`]) is never given an extent that crosses an object.
//! - **Cancel-safety.** A call that changes something runs to its end once its future was polled: dropping the future drops
//!   the answer, and neither the operation, its buffers nor its ranges. A call that only reads may be dropped at any time.
//! - **Failure.** An [`Error`] says whether the change *did not happen* or *may have happened* ([`Error::happened`]). After
//!   "may have happened" the units touched hold their old or their new content, each 512-byte sector by itself.
//! - **Order.** Mutations whose extents overlap take effect one after the other; the rest may run side by side.

pub mod around;
pub mod catalog;
pub mod check;
pub mod count;
pub mod either;
pub mod error;
pub mod fault;
pub mod head;
pub mod layer;
pub mod memory;
pub mod paced;
pub mod ranges;
pub mod record;
pub mod request;
pub mod run_to_end;

pub use catalog::{
    AtomicSpan, Capabilities, Catalog, Change, NewImage, NewParent, Pending, Reserved, Snapshots,
};
pub use check::{Finding, Repair, Severity};
pub use either::{Either, EitherHead};
pub use error::{Error, ErrorKind, Happened, Result};
pub use head::{
    Committed, Content, Durability, Fill, Guard, Guarded, Head, HeadChange, Missing, Ownership,
    Part, Prepared, SetTo, Write, check_range, check_whole_units,
};
pub use layer::{Known, Layer, TryRead};
pub use ranges::{RangeGuard, Ranges};
pub use record::{
    Below, ChildRef, ImageId, ImageRecord, Layering, ParentLink, PoolId, Revision, RevisionId,
    SnapshotId, SnapshotRecord, Version,
};
pub use request::{Heeded, Progress, Reply, Request, Requests, Wanted, Wants};
pub use run_to_end::RunToEnd;
