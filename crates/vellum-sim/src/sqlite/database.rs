//! [`Database`]: what the connections to one SQLite database hold, in whatever process, and the memory they share.
//!
//! It does what SQLite's own VFS does with locks of the kernel and a file mapped by all: locks exclude connections, a process that
//! dies lets go of them in the middle of whatever it was doing, and the memory stays for those that live. When nobody uses it
//! any more it is gone, and the next connection recovers.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::io;
use std::ops::Range;

use rusqlite::ffi::{
    SQLITE_LOCK_EXCLUSIVE, SQLITE_LOCK_NONE, SQLITE_LOCK_PENDING, SQLITE_LOCK_RESERVED,
    SQLITE_LOCK_SHARED, SQLITE_SHM_NLOCK,
};

use super::memory::{Mapping, Memory};

/// Who asks: an open file, in a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holder {
    pub(crate) description: u64,
    pub(crate) process: u64,
}

/// How a lock of the shared memory is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hold {
    Shared,
    Exclusive,
}

/// Of one database.
#[derive(Debug, Default)]
pub(crate) struct Database {
    connections: BTreeMap<u64, Connection>,
    memory: Option<Memory>,
}

#[derive(Debug)]
struct Connection {
    /// None once it has died: the connection is still there, and nothing it does counts.
    process: Option<u64>,
    level: c_int,
    holds: [Option<Hold>; SQLITE_SHM_NLOCK as usize],
    mapped: BTreeMap<c_int, Mapping>,
}

impl Connection {
    fn of(process: u64) -> Self {
        let holds = [None; SQLITE_SHM_NLOCK as usize];
        Self { process: Some(process), level: SQLITE_LOCK_NONE, holds, mapped: BTreeMap::new() }
    }
}

impl Database {
    fn connection(&mut self, holder: Holder) -> &mut Connection {
        let known = self.connections.entry(holder.description);
        known.or_insert_with(|| Connection::of(holder.process))
    }

    fn others(&self, holder: Holder) -> impl Iterator<Item = &Connection> {
        let connections = self.connections.iter();
        connections.filter(move |(id, _)| **id != holder.description).map(|(_, other)| other)
    }

    /// Takes the lock of the database file at a level, or a higher one. `false` if another connection is in the way.
    pub(crate) fn lock(&mut self, holder: Holder, level: c_int) -> bool {
        let highest = self.others(holder).map(|other| other.level).max();
        let highest = highest.unwrap_or(SQLITE_LOCK_NONE);
        let (allowed, reached) = match level {
            SQLITE_LOCK_SHARED => (highest < SQLITE_LOCK_PENDING, level),
            SQLITE_LOCK_RESERVED => (highest < SQLITE_LOCK_RESERVED, level),
            // Whoever waits for readers to leave lets no new ones in.
            _ if highest == SQLITE_LOCK_SHARED => (false, SQLITE_LOCK_PENDING),
            _ => (highest == SQLITE_LOCK_NONE, SQLITE_LOCK_EXCLUSIVE),
        };
        let own = self.connection(holder);
        if allowed || reached == SQLITE_LOCK_PENDING {
            own.level = own.level.max(reached);
        }
        allowed
    }

    /// Lowers it to a level.
    pub(crate) fn unlock(&mut self, holder: Holder, level: c_int) {
        let own = self.connection(holder);
        own.level = own.level.min(level);
    }

    /// Whether somebody is about to write to the database file.
    pub(crate) fn is_reserved(&self) -> bool {
        self.connections.values().any(|connection| connection.level >= SQLITE_LOCK_RESERVED)
    }

    /// A piece of the memory, as this connection sees it; `None` if it is not that large and is not to grow.
    pub(crate) fn map(
        &mut self,
        holder: Holder,
        region: c_int,
        size: usize,
        grow: bool,
    ) -> io::Result<Option<*mut c_void>> {
        let used = self
            .connections
            .values()
            .any(|connection| connection.process.is_some() && !connection.mapped.is_empty());
        if !used {
            self.memory = Some(Memory::new()?);
        }
        let memory = self.memory.as_mut().expect("it is used, or was just made");
        let at = region as usize * size..(region as usize + 1) * size;
        if memory.length() < at.end {
            if !grow {
                return Ok(None);
            }
            memory.grow(at.end)?;
        }
        let mapping = memory.map(at)?;
        // One that is there stays: SQLite goes on using its address.
        Ok(Some(self.connection(holder).mapped.entry(region).or_insert(mapping).address()))
    }

    pub(crate) fn unmap(&mut self, holder: Holder) {
        let own = self.connection(holder);
        own.mapped.clear();
        own.holds.fill(None);
    }

    /// Takes locks of the memory. `false` if another connection is in the way.
    pub(crate) fn lock_memory(&mut self, holder: Holder, at: Range<usize>, hold: Hold) -> bool {
        let in_the_way = |other: &Connection| {
            other.holds[at.clone()]
                .iter()
                .flatten()
                .any(|held| *held == Hold::Exclusive || hold == Hold::Exclusive)
        };
        if self.others(holder).any(in_the_way) {
            return false;
        }
        self.connection(holder).holds[at].fill(Some(hold));
        true
    }

    pub(crate) fn unlock_memory(&mut self, holder: Holder, at: Range<usize>) {
        self.connection(holder).holds[at].fill(None);
    }

    /// A process has died: it holds nothing any more, and what its connections still do to the memory, when they are
    /// dropped, nobody sees.
    pub(crate) fn leave(&mut self, process: u64) {
        for connection in self.connections.values_mut() {
            if connection.process == Some(process) {
                connection.process = None;
                connection.level = SQLITE_LOCK_NONE;
                connection.holds.fill(None);
                connection.mapped.values_mut().for_each(Mapping::part);
            }
        }
    }

    /// A connection is closed.
    pub(crate) fn close(&mut self, description: u64) {
        self.connections.remove(&description);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Holder = Holder { description: 1, process: 1 };
    const B: Holder = Holder { description: 2, process: 2 };

    #[test]
    fn whoever_waits_for_readers_to_leave_lets_no_new_ones_in() {
        let c = Holder { description: 3, process: 2 };
        let mut database = Database::default();
        assert!(database.lock(A, SQLITE_LOCK_SHARED) && database.lock(B, SQLITE_LOCK_SHARED));
        assert!(database.lock(A, SQLITE_LOCK_RESERVED) && !database.lock(B, SQLITE_LOCK_RESERVED));
        assert!(!database.lock(A, SQLITE_LOCK_EXCLUSIVE));
        assert!(!database.lock(c, SQLITE_LOCK_SHARED));
        database.unlock(B, SQLITE_LOCK_NONE);
        assert!(database.lock(A, SQLITE_LOCK_EXCLUSIVE) && database.is_reserved());
        database.leave(A.process);
        assert!(database.lock(c, SQLITE_LOCK_SHARED) && !database.is_reserved());
    }

    #[test]
    fn locks_of_the_memory_exclude_each_other_until_the_process_dies() {
        let mut database = Database::default();
        assert!(database.lock_memory(A, 0..1, Hold::Exclusive));
        assert!(!database.lock_memory(B, 0..2, Hold::Shared));
        assert!(database.lock_memory(B, 1..2, Hold::Shared));
        assert!(database.lock_memory(A, 1..2, Hold::Shared));
        database.leave(A.process);
        assert!(database.lock_memory(B, 0..2, Hold::Exclusive));
    }

    #[test]
    #[expect(unsafe_code, reason = "memory that SQLite would write to")]
    fn memory_is_shared_by_those_that_live_and_gone_with_the_last() {
        let mut database = Database::default();
        let mut map = |holder| database.map(holder, 0, 32 << 10, true).unwrap().unwrap();
        let (a, b) = (map(A).cast::<u8>(), map(B).cast::<u8>());
        // SAFETY: both are mapped, for as long as the connections are there.
        let (read, write) = (|at: *mut u8| unsafe { *at }, |at: *mut u8, to| unsafe { *at = to });
        write(a, 7);
        assert_eq!(read(b), 7);
        database.leave(A.process);
        write(a, 8);
        assert_eq!((read(a), read(b)), (8, 7));
        database.close(B.description);
        let c = Holder { description: 3, process: 3 };
        assert!(database.map(c, 1, 32 << 10, false).unwrap().is_none());
        assert_eq!(read(database.map(c, 0, 32 << 10, true).unwrap().unwrap().cast()), 0);
    }
}
