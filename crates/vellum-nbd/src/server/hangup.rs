//! [`Hangup`]: whether a client has hung up, though what it sent before has not been read yet.
//!
//! The kernel's client, and others with several connections, send again over another connection what was not answered when one
//! was lost, and go on to write something else once that is answered. What the server has of the lost connection and has not
//! begun by then, since its thread was asleep, must not be carried out any more: it would undo what came later.
//!
//! It says nothing of a client that is gone without a word, whose machine lost its network, say.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The socket of a connection.
#[derive(Debug)]
pub(super) struct Hangup(OwnedFd);

impl Hangup {
    /// That of a client.
    pub(super) fn of(socket: &impl AsFd) -> io::Result<Self> {
        Ok(Self(socket.as_fd().try_clone_to_owned()?))
    }

    /// Whether it has come: the client has closed the connection, will send nothing more, or is known to be lost.
    pub(super) fn has_come(&self) -> bool {
        // That a connection is lost is told without being asked for.
        let mut sockets = [PollFd::new(&self.0, PollFlags::RDHUP)];
        poll(&mut sockets, Some(&Timespec::default())).is_ok_and(|count| count > 0)
    }
}
