//! The Ceph engine: images on RADOS, in the RBD format.
//!
//! Only its ground is here yet: the object classes of Ceph in memory, so that what the engine is going to ask of a cluster can be
//! tested without one.
#![forbid(unsafe_code)]

pub mod classes;
