//! [`Hangup`]: whether a client has hung up, though what it sent before has not been read yet.
//!
//! The kernel's client, and others with several connections, send again over another connection what was not answered when one
//! was lost, and go on to write something else once that is answered. What the server has of the lost connection and has not
//! begun by then, since its thread was asleep, must not be carried out any more: it would undo what came later.
//!
//! It says nothing of a client that is gone without a word, whose machine lost its network, say.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a look counts. A thread that slept did so for longer; one that did not, and begins requests one behind the other,
/// need not ask the kernel before each.
const LOOK_COUNTS: Duration = Duration::from_micros(50);

/// The socket of a connection.
#[derive(Debug)]
pub(super) struct Hangup {
    socket: OwnedFd,
    /// When it was last seen that nobody had hung up.
    last_look: Mutex<Option<Instant>>,
}

impl Hangup {
    /// That of a client.
    pub(super) fn of(socket: &impl AsFd) -> io::Result<Self> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        Ok(Self { socket, last_look: Mutex::new(None) })
    }

    /// Whether it has come: the client has closed the connection, will send nothing more, or is known to be lost.
    pub(super) fn has_come(&self) -> bool {
        let mut last_look = self.last_look.lock();
        let now = Instant::now();
        if last_look.is_some_and(|last| now - last < LOOK_COUNTS) {
            return false;
        }
        // That a connection is lost is told without being asked for.
        let mut sockets = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let has_come = poll(&mut sockets, Some(&Timespec::default())).is_ok_and(|count| count > 0);
        *last_look = (!has_come).then_some(now);
        has_come
    }
}
