//! Requests of the transmission phase.

use crate::proto::Fields;

const MAGIC: u32 = 0x2560_9513;
const EXTENDED_MAGIC: u32 = 0x21e4_1c71;

/// Bytes in a request's header, compact.
pub const HEADER: usize = 28;
/// Bytes in a request's header, extended.
pub const EXTENDED_HEADER: usize = 32;

/// Flags of a request.
pub mod flag {
    /// Durable before it is answered.
    pub const FUA: u16 = 1 << 0;
    /// Zeros must be allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// One chunk of data.
    pub const DF: u16 = 1 << 2;
    /// One descriptor of block status.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Zeros fast or not at all.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The length is that of a payload; extended headers only.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// A command.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Command {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Says goodbye.
    Disconnect,
    /// Makes durable.
    Flush,
    /// Gives content up.
    Trim,
    /// Brings content closer.
    Cache,
    /// Makes zeros.
    WriteZeroes,
    /// Asks for block status.
    BlockStatus,
    /// None that is known.
    Unknown(u16),
}

impl Command {
    fn from_number(number: u16) -> Self {
        match number {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            5 => Command::Cache,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            other => Command::Unknown(other),
        }
    }
}

/// A request's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// How.
    pub flags: u16,
    /// What the client calls the request.
    pub cookie: u64,
    /// Where.
    pub offset: u64,
    /// How much.
    pub length: u64,
}

/// The client sends something that is no request: where the next one begins cannot be known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the client sends {0:#010x} where a request must be")]
pub struct NoRequest(pub u32);

impl Request {
    /// How many bytes a header has.
    pub const fn header_length(extended: bool) -> usize {
        if extended { EXTENDED_HEADER } else { HEADER }
    }

    /// Reads a header; `None` if the bytes end early.
    pub fn decode(extended: bool, bytes: &[u8]) -> Option<Result<Self, NoRequest>> {
        let mut fields = Fields(bytes.get(..Self::header_length(extended))?);
        let magic = fields.u32()?;
        if magic != if extended { EXTENDED_MAGIC } else { MAGIC } {
            return Some(Err(NoRequest(magic)));
        }
        let (flags, command, cookie, offset) =
            (fields.u16()?, fields.u16()?, fields.u64()?, fields.u64()?);
        let length = if extended { fields.u64()? } else { u64::from(fields.u32()?) };
        let command = Command::from_number(command);
        Some(Ok(Self { command, flags, cookie, offset, length }))
    }

    /// How many bytes of payload follow the header, whether the request makes sense or not. With extended headers any
    /// request may carry one and says so; of a write it is plain without being said, and QEMU 10 does not say it.
    pub fn payload_length(&self, extended: bool) -> u64 {
        let says = extended && self.flags & flag::PAYLOAD_LEN != 0;
        if says || self.command == Command::Write { self.length } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_byte_for_byte() {
        let compact = b"\x25\x60\x95\x13\0\x01\0\x01ABCDEFGH\0\0\0\0\0\0\x10\0\0\0\x02\0";
        let request = Request::decode(false, compact).unwrap().unwrap();
        let cookie = u64::from_be_bytes(*b"ABCDEFGH");
        let expected = Request {
            command: Command::Write,
            flags: flag::FUA,
            cookie,
            offset: 4096,
            length: 512,
        };
        assert_eq!((request, request.payload_length(false)), (expected, 512));
        let extended =
            b"\x21\xe4\x1c\x71\0\x20\0\x01ABCDEFGH\0\0\0\0\0\0\x10\0\0\0\0\x01\0\0\x02\0";
        let request = Request::decode(true, extended).unwrap().unwrap();
        assert_eq!(
            (request.length, request.payload_length(true)),
            ((1 << 32) + 512, (1 << 32) + 512)
        );
        assert!(
            Request::decode(true, &extended[..31]).is_none()
                && Request::decode(false, &compact[..27]).is_none()
        );
        assert_eq!(
            Request::decode(true, &[&compact[..], &[0; 4]].concat()),
            Some(Err(NoRequest(MAGIC)))
        );
    }
}
