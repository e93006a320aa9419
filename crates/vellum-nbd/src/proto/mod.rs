//! The protocol, as bytes and rules: no I/O, no async.
//!
//! [`option`] is the negotiation, [`request`] what a client asks afterwards and [`validate`] whether it may, [`reply`] what it is
//! answered, [`meta`] the contexts of block status, [`error`] the error numbers.

pub mod error;
pub mod meta;
pub mod option;
pub mod reply;
pub mod request;
pub mod validate;

/// The most bytes a request may carry or ask to be sent: 32 MiB, as the protocol advises.
pub const PAYLOAD_MAX: u32 = 32 << 20;
/// The longest string of the protocol.
pub const STRING_MAX: usize = 4096;

/// What an export can do, as the client is told. Bits of the protocol's transmission flags.
pub mod transmission {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// The export takes no writes.
    pub const READ_ONLY: u16 = 1 << 1;
    /// Flush is known.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// Forced unit access is known.
    pub const SEND_FUA: u16 = 1 << 3;
    /// Trim is known.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// Write zeroes is known.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// Don't-fragment is known.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// Cache is known.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// Fast zero is known.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;

    /// What is said of an export. Don't-fragment goes with structured replies.
    pub fn flags(read_only: bool, structured: bool) -> u16 {
        let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
        flags |= if read_only { READ_ONLY } else { SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO };
        if structured { flags | SEND_DF } else { flags }
    }
}

/// Reads numbers one after the other; `None` when the bytes end early.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    /// A string behind its length.
    pub(crate) fn string(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(head).ok().filter(|_| length <= STRING_MAX)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
