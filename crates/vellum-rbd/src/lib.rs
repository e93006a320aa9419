//! The RBD image format 2, as Ceph's own tools know it: names of objects and keys, what is stored under them, and what the clients
//! of an image say to each other.
//!
//! Pure: bytes in and out, and no panic whatever the bytes. How objects are reached is not known here, nor what Vellum keeps beside
//! the format.
//!
//! | module | what it knows |
//! |---|---|
//! | [`wire`] | how Ceph writes numbers, strings, lists and structures that have versions |
//! | [`names`] | which objects an image has, and the keys in them |
//! | [`features`] | the bits of an image, which go together, and which a clone inherits |
//! | [`records`] | snapshots, parents, children, trash: what the keys hold |
//! | [`header`] | all that the keys of an image's header say |
//! | [`object_map`] | which data objects exist, two bits each |
//! | [`method`] | what the cluster's own methods are given and answer |
//! | [`lock`] | who holds a lock on an object |
//! | [`notify`] | what the clients of an image tell each other |
//!
//! Facts are from Ceph 16.2 ("Pacific"): the sources of librbd and of the object class `rbd`, and bytes taken from a cluster, which
//! the tests repeat.
#![forbid(unsafe_code)]

pub mod features;
pub mod header;
pub mod lock;
pub mod method;
pub mod names;
pub mod notify;
pub mod object_map;
pub mod records;
pub mod wire;

pub use features::Features;
pub use header::Header;
pub use wire::{Decode, Encode, Malformed, Text};
