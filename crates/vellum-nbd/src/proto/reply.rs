//! Replies of the transmission phase: simple, in chunks, and in chunks with extended headers.

use bytes::Bytes;
use smallvec::SmallVec;

use crate::export::{ReadPiece, Status};
use crate::proto::error::NbdError;
use crate::proto::meta::Context;
use crate::proto::option::Agreed;
use crate::proto::request::{Command, Request};

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_MAGIC: u32 = 0x6e8a_278c;

const FLAG_DONE: u16 = 1;
const NONE: u16 = 0;
const OFFSET_DATA: u16 = 1;
const OFFSET_HOLE: u16 = 2;
const BLOCK_STATUS: u16 = 5;
const BLOCK_STATUS_EXTENDED: u16 = 6;
const ERROR: u16 = 1 << 15 | 1;
const MESSAGE_MAX: usize = 1024;
/// What holes are sent from, where they must be sent.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// A reply as pieces to be sent one after the other: headers, and data that is not copied.
pub type Pieces = SmallVec<[Bytes; 2]>;

/// The reply to a request that succeeded and has no data.
pub fn done(agreed: &Agreed, request: &Request) -> Pieces {
    let mut out = Vec::with_capacity(32);
    if agreed.extended {
        chunk(&mut out, agreed, request, FLAG_DONE, NONE, 0);
    } else {
        simple(&mut out, request, 0);
    }
    one(out)
}

/// The reply to a request that failed.
pub fn failed(agreed: &Agreed, request: &Request, error: &NbdError) -> Pieces {
    let mut out = Vec::with_capacity(64);
    // Once replies are structured a read is answered in chunks; other commands may still be answered simply.
    if agreed.extended
        || agreed.structured && matches!(request.command, Command::Read | Command::BlockStatus)
    {
        let message = &error.message.as_bytes()[..error.message.floor_char_boundary(MESSAGE_MAX)];
        chunk(&mut out, agreed, request, FLAG_DONE, ERROR, 6 + message.len() as u64);
        out.extend((error.errno as u32).to_be_bytes());
        out.extend((message.len() as u16).to_be_bytes());
        out.extend(message);
    } else {
        simple(&mut out, request, error.errno as u32);
    }
    one(out)
}

/// The reply to a read whose data is in one piece.
pub fn data(agreed: &Agreed, request: &Request, data: Bytes) -> Pieces {
    SmallVec::from_buf([data_header(agreed, request, data.len() as u64), data])
}

/// The reply to a read that is not to be cut into chunks: pieces as in [`pieces`], with holes as the zeros they are.
pub fn unbroken(agreed: &Agreed, request: &Request, pieces: &[ReadPiece]) -> Pieces {
    let length = pieces.iter().map(|piece| piece.at.length()).sum();
    let mut out = Pieces::new();
    out.push(data_header(agreed, request, length));
    for piece in pieces {
        match &piece.data {
            Some(data) => out.push(data.clone()),
            None => {
                let zeros = piece.at.chunks(ZEROS.len() as u64);
                out.extend(zeros.map(|part| Bytes::from_static(&ZEROS[..part.len_usize()])));
            }
        }
    }
    out
}

/// What comes before the data of a read that is in one chunk, or in none.
fn data_header(agreed: &Agreed, request: &Request, length: u64) -> Bytes {
    let mut out = Vec::with_capacity(40);
    if agreed.structured {
        chunk(&mut out, agreed, request, FLAG_DONE, OFFSET_DATA, 8 + length);
        out.extend(request.offset.to_be_bytes());
    } else {
        simple(&mut out, request, 0);
    }
    out.into()
}

/// The reply to a read as pieces of data and of holes, which cover the request in ascending order. Only for structured replies.
pub fn pieces(agreed: &Agreed, request: &Request, pieces: &[ReadPiece]) -> Pieces {
    let mut out = Pieces::new();
    for (index, piece) in pieces.iter().enumerate() {
        let flags = if index + 1 == pieces.len() { FLAG_DONE } else { 0 };
        let mut header = Vec::with_capacity(44);
        match &piece.data {
            Some(data) => {
                chunk(&mut header, agreed, request, flags, OFFSET_DATA, 8 + data.len() as u64);
                header.extend(piece.at.offset().to_be_bytes());
                out.push(header.into());
                out.push(data.clone());
            }
            None => {
                chunk(&mut header, agreed, request, flags, OFFSET_HOLE, 12);
                header.extend(piece.at.offset().to_be_bytes());
                // A read is never longer than 32 MiB.
                header.extend((piece.at.length() as u32).to_be_bytes());
                out.push(header.into());
            }
        }
    }
    out
}

/// The reply to a request for block status, a chunk for each context.
pub fn block_status(
    agreed: &Agreed,
    request: &Request,
    status: &[(Context, Vec<Status>)],
) -> Pieces {
    let mut out = Vec::with_capacity(64);
    for (index, (context, descriptors)) in status.iter().enumerate() {
        let flags = if index + 1 == status.len() { FLAG_DONE } else { 0 };
        let count = descriptors.len() as u64;
        if agreed.extended {
            chunk(&mut out, agreed, request, flags, BLOCK_STATUS_EXTENDED, 8 + 16 * count);
            out.extend((*context as u32).to_be_bytes());
            out.extend((count as u32).to_be_bytes());
            for status in descriptors {
                out.extend(status.length.to_be_bytes());
                out.extend(status.flags.to_be_bytes());
            }
        } else {
            chunk(&mut out, agreed, request, flags, BLOCK_STATUS, 4 + 8 * count);
            out.extend((*context as u32).to_be_bytes());
            for status in descriptors {
                // The request's own length fits, and a descriptor is clipped to it.
                out.extend((status.length as u32).to_be_bytes());
                out.extend((status.flags as u32).to_be_bytes());
            }
        }
    }
    one(out)
}

fn one(bytes: Vec<u8>) -> Pieces {
    let mut pieces = Pieces::new();
    pieces.push(bytes.into());
    pieces
}

fn simple(out: &mut Vec<u8>, request: &Request, errno: u32) {
    out.extend(SIMPLE_MAGIC.to_be_bytes());
    out.extend(errno.to_be_bytes());
    out.extend(request.cookie.to_be_bytes());
}

fn chunk(
    out: &mut Vec<u8>,
    agreed: &Agreed,
    request: &Request,
    flags: u16,
    kind: u16,
    length: u64,
) {
    let magic = if agreed.extended { EXTENDED_MAGIC } else { STRUCTURED_MAGIC };
    out.extend(magic.to_be_bytes());
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(request.cookie.to_be_bytes());
    if agreed.extended {
        out.extend(request.offset.to_be_bytes());
        out.extend(length.to_be_bytes());
    } else {
        out.extend((length as u32).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::error::Errno;
    use vellum_core::Extent;

    const COOKIE: u64 = u64::from_be_bytes(*b"ABCDEFGH");

    fn read() -> Request {
        Request { command: Command::Read, flags: 0, cookie: COOKIE, offset: 256, length: 3 }
    }

    fn bytes(pieces: Pieces) -> Vec<u8> {
        pieces.concat()
    }

    fn agreed(structured: bool, extended: bool) -> Agreed {
        Agreed { structured, extended, ..Agreed::default() }
    }

    #[test]
    fn simple_replies_byte_for_byte() {
        let plain = agreed(false, false);
        assert_eq!(bytes(done(&plain, &read())), b"\x67\x44\x66\x98\0\0\0\0ABCDEFGH");
        assert_eq!(
            bytes(data(&plain, &read(), Bytes::from_static(b"xyz"))),
            b"\x67\x44\x66\x98\0\0\0\0ABCDEFGHxyz"
        );
        let error = NbdError::new(Errno::NoSpace, "full");
        assert_eq!(bytes(failed(&plain, &read(), &error)), b"\x67\x44\x66\x98\0\0\0\x1cABCDEFGH");
    }

    #[test]
    fn chunks_byte_for_byte() {
        let structured = agreed(true, false);
        assert_eq!(
            bytes(data(&structured, &read(), Bytes::from_static(b"xyz"))),
            b"\x66\x8e\x33\xef\0\x01\0\x01ABCDEFGH\0\0\0\x0b\0\0\0\0\0\0\x01\0xyz"
        );
        let error = NbdError::new(Errno::Io, "bad");
        assert_eq!(
            bytes(failed(&structured, &read(), &error)),
            b"\x66\x8e\x33\xef\0\x01\x80\x01ABCDEFGH\0\0\0\x09\0\0\0\x05\0\x03bad"
        );
        let hole = ReadPiece { at: Extent::new(256, 2), data: None };
        let rest = ReadPiece { at: Extent::new(258, 1), data: Some(Bytes::from_static(b"z")) };
        assert_eq!(
            bytes(pieces(&structured, &read(), &[hole, rest])),
            b"\x66\x8e\x33\xef\0\0\0\x02ABCDEFGH\0\0\0\x0c\0\0\0\0\0\0\x01\0\0\0\0\x02\
              \x66\x8e\x33\xef\0\x01\0\x01ABCDEFGH\0\0\0\x09\0\0\0\0\0\0\x01\x02z"
        );
        let status = [(Context::Allocation, vec![Status { length: 4096, flags: 3 }])];
        assert_eq!(
            bytes(block_status(&structured, &read(), &status)),
            b"\x66\x8e\x33\xef\0\x01\0\x05ABCDEFGH\0\0\0\x0c\0\0\0\x01\0\0\x10\0\0\0\0\x03"
        );
    }

    #[test]
    fn extended_chunks_byte_for_byte() {
        let extended = agreed(true, true);
        assert_eq!(
            bytes(done(&extended, &read())),
            b"\x6e\x8a\x27\x8c\0\x01\0\0ABCDEFGH\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0"
        );
        let status = [(Context::Depth, vec![Status { length: 1 << 40, flags: 2 }])];
        assert_eq!(
            bytes(block_status(&extended, &read(), &status)),
            b"\x6e\x8a\x27\x8c\0\x01\0\x06ABCDEFGH\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\x18\
              \0\0\0\x02\0\0\0\x01\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\x02"
        );
    }
}
