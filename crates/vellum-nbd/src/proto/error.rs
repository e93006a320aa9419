//! The error numbers of the protocol.

use std::fmt;

/// The errors that the protocol knows. The numbers are Linux's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
pub enum Errno {
    /// Operation not permitted: a write to what takes none.
    Permission = 1,
    /// Input/output error.
    Io = 5,
    /// Cannot allocate memory.
    NoMemory = 12,
    /// Invalid argument.
    Invalid = 22,
    /// No space left on device.
    NoSpace = 28,
    /// Value too large: a reply that must not be fragmented.
    Overflow = 75,
    /// Operation not supported.
    NotSupported = 95,
    /// The server is shutting down.
    Shutdown = 108,
}

/// Why a request failed: a number for the client, a line for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NbdError {
    /// The number.
    pub errno: Errno,
    /// The line.
    pub message: String,
}

impl NbdError {
    /// An error.
    pub fn new(errno: Errno, message: impl Into<String>) -> Self {
        Self { errno, message: message.into() }
    }
}

impl fmt::Display for NbdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (NBD error {})", self.message, self.errno as u32)
    }
}

impl std::error::Error for NbdError {}
