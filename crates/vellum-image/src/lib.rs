//! Images: the layering rules, once, above the engine contract.
//!
//! An [`Image`] is a chain of layers: its own head and older revisions, then the parent image's, and so on. This crate knows
//! how a read falls through the chain, when a write needs a copy-up, what a discard may hide, and how a snapshot, a
//! clone and a flatten change the chain while I/O goes on. It knows no engine, no file and no socket: everything below is a
//! [`Catalog`](vellum_engine::Catalog).
//!
//! # Reading order
//!
//! [`pools`] finds a parent's catalog. [`chain`] opens a chain of layers and says which of them defines what; `survey` says so of
//! a petabyte, a bounded number of pieces at a time; `resolved` remembers it for the frozen part of a deep chain. [`gate`] lets
//! I/O pass and operations close it. [`image`] ties them together; `steps` takes what is done on one view of an image again
//! on the next; the verbs are a file each: `read`, `write`, `zero` (write
//! zeroes and discard), `snapshot`, `flatten`, `status`, `handover`; `copy_up` is what a write does first where a unit is missing, and
//! `job` how whoever started a flatten watches and stops it. [`admin`] does what needs no open image: create, clone, remove; [`check`]
//! looks at the links between images.
//!
//! # Order of locks
//!
//! The extent that a request changes, then buffers, then the gate (shared), then whatever the engine locks. What lies
//! in a parent is read outside the gate, and applied guarded, after a look whether the view is still the same; inside it, a
//! request waits for nothing but the image's own storage. I/O asks the catalog only where a layer it reads has gone.
//! Operations hold no extents: a request may wait for one.
#![forbid(unsafe_code)]

pub mod admin;
mod canary;
pub mod chain;
pub mod check;
mod copy_up;
mod flatten;
pub mod gate;
mod handover;
pub mod image;
pub mod job;
pub mod pools;
mod read;
mod resolved;
mod snapshot;
mod status;
mod steps;
mod survey;
mod sync;
mod write;
mod zero;

pub use admin::{CloneOptions, CreateOptions};
#[cfg(any(test, feature = "canaries"))]
pub use canary::Canary;
pub use flatten::FlattenOptions;
pub use image::{Image, ImageOptions};
pub use job::{Job, Progress};
pub use pools::Pools;
pub use read::Piece;
pub use resolved::ResolvedCache;
pub use status::{Mapped, MappedKind};
pub use write::WriteOptions;
pub use zero::{DiscardPolicy, ZeroOptions};

/// Servers spawn these as tasks, so the futures must be `Send` for every engine.
#[cfg(test)]
mod send {
    use vellum_core::{Buffer, Extent, SnapshotName};
    use vellum_engine::Catalog;

    use crate::{DiscardPolicy, FlattenOptions, Image, Job, WriteOptions, ZeroOptions};

    fn is_send(_: impl Send) {}

    #[expect(dead_code, reason = "that it compiles is the test")]
    fn the_futures_of_every_verb_are_send<C: Catalog>(
        image: &Image<C>,
        name: SnapshotName,
        job: &Job,
    ) {
        let at = Extent::new(0, 1);
        is_send(image.read(at, Buffer::from_vec(Vec::new()), 0..0));
        is_send(image.read_pieces(at));
        is_send(image.write(0, bytes::Bytes::new(), WriteOptions::default()));
        is_send(image.write_zeroes(at, ZeroOptions::default()));
        is_send(image.discard(at, DiscardPolicy::Inherit, false));
        is_send(image.sync());
        is_send(image.snapshot(name.clone(), false));
        is_send(image.remove_snapshot(&name));
        is_send(image.flatten(FlattenOptions::default(), job));
        is_send(image.map(at, 1));
        is_send(image.hand_over());
        is_send(image.clone().close());
    }
}
