//! The gate with `Relaxed` for every order of memory.

mod sync {
    pub(crate) use loom::sync::atomic::Ordering;

    pub(crate) use crate::notify::Notify;

    #[derive(Debug, Default)]
    pub(crate) struct AtomicUsize(loom::sync::atomic::AtomicUsize);

    impl AtomicUsize {
        pub(crate) fn load(&self, _: Ordering) -> usize {
            self.0.load(Ordering::Relaxed)
        }

        pub(crate) fn fetch_add(&self, value: usize, _: Ordering) -> usize {
            self.0.fetch_add(value, Ordering::Relaxed)
        }

        pub(crate) fn fetch_sub(&self, value: usize, _: Ordering) -> usize {
            self.0.fetch_sub(value, Ordering::Relaxed)
        }

        pub(crate) fn fetch_or(&self, value: usize, _: Ordering) -> usize {
            self.0.fetch_or(value, Ordering::Relaxed)
        }

        pub(crate) fn fetch_and(&self, value: usize, _: Ordering) -> usize {
            self.0.fetch_and(value, Ordering::Relaxed)
        }
    }
}

#[path = "../../../src/gate.rs"]
pub mod gate;
