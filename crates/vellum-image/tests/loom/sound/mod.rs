//! The gate as it is, of loom's atomics.

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicUsize, Ordering};

    pub(crate) use crate::notify::Notify;
}

#[path = "../../../src/gate.rs"]
pub mod gate;
