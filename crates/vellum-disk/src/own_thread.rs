//! Threads that may wait for the file system.
//!
//! Handing a write to another thread and waking up again costs ten times as much as a write into the page cache. A thread
//! that works for one client alone need not: if the kernel makes it wait, because too much is unwritten or the file is being
//! punched, only that client waits, and it should.

use std::cell::Cell;

thread_local! {
    static MAY_WAIT: Cell<bool> = const { Cell::new(false) };
}

/// Lets writes be made on this thread from now on. For threads whose waiting holds up one client and nobody else; never for
/// those of a runtime that others share.
pub fn let_this_thread_wait() {
    MAY_WAIT.set(true);
}

/// Whether this thread may wait.
pub(crate) fn may_wait() -> bool {
    MAY_WAIT.get()
}
