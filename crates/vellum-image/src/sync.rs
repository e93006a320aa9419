//! What the gate is made of. The test under loom compiles the gate with loom's in place of these.

pub(crate) use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) use tokio::sync::Notify;
