//! Whether a request may be carried out: every rule, one message and one number each, in one place.

use vellum_core::Extent;

use crate::proto::PAYLOAD_MAX;
use crate::proto::error::{Errno, NbdError};
use crate::proto::option::Agreed;
use crate::proto::request::{Command, Request, flag};

/// The flags that a command may have.
fn flags_of(command: Command, agreed: &Agreed) -> u16 {
    let payload = if agreed.extended { flag::PAYLOAD_LEN } else { 0 };
    match command {
        // Clients may set FUA on anything once it was offered; where nothing is written it means nothing.
        Command::Read => flag::FUA | if agreed.structured { flag::DF } else { 0 },
        Command::Write => flag::FUA | payload,
        Command::Trim => flag::FUA,
        Command::WriteZeroes => flag::FUA | flag::NO_HOLE | flag::FAST_ZERO,
        Command::BlockStatus => flag::FUA | flag::REQ_ONE,
        Command::Flush | Command::Cache | Command::Disconnect | Command::Unknown(_) => flag::FUA,
    }
}

/// The extent of a request that may be carried out; empty for one that has none.
pub fn validate(
    request: &Request,
    agreed: &Agreed,
    size: u64,
    read_only: bool,
) -> Result<Extent, NbdError> {
    let refuse = |errno, message: String| Err(NbdError::new(errno, message));
    let invalid = |message: String| Err(NbdError::new(Errno::Invalid, message));
    let unknown_flags = request.flags & !flags_of(request.command, agreed);
    let changes = matches!(request.command, Command::Write | Command::Trim | Command::WriteZeroes);
    match request.command {
        Command::Unknown(number) => return invalid(format!("there is no command {number}")),
        _ if unknown_flags != 0 => {
            return invalid(format!(
                "{:?} does not take flags {unknown_flags:#x}",
                request.command
            ));
        }
        Command::Disconnect => return Ok(Extent::default()),
        Command::Flush if request.offset != 0 || request.length != 0 => {
            return invalid("a flush has neither offset nor length".to_owned());
        }
        Command::Flush => return Ok(Extent::default()),
        Command::BlockStatus if agreed.contexts.is_empty() => {
            return invalid("no context was settled for block status".to_owned());
        }
        _ => {}
    }
    if changes && read_only {
        return refuse(Errno::Permission, "the export is read-only".to_owned());
    }
    if request.length == 0 {
        return invalid(format!("{:?} of no bytes", request.command));
    }
    let moves_data = matches!(request.command, Command::Read | Command::Write);
    if moves_data && request.length > u64::from(PAYLOAD_MAX) {
        let overflow = request.flags & flag::DF != 0;
        let errno = if overflow { Errno::Overflow } else { Errno::Invalid };
        return refuse(
            errno,
            format!(
                "{} bytes are more than the {PAYLOAD_MAX} that one request moves",
                request.length
            ),
        );
    }
    match Extent::checked(request.offset, request.length) {
        Some(at) if at.end() <= size => Ok(at),
        // What a write beyond the end of a disk is told.
        _ if changes => refuse(Errno::NoSpace, beyond(request, size)),
        _ => invalid(beyond(request, size)),
    }
}

fn beyond(request: &Request, size: u64) -> String {
    format!("offset {} length {} reaches beyond the end at {size}", request.offset, request.length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::meta::Context;

    const SIZE: u64 = 1 << 20;

    fn request(command: Command, flags: u16, offset: u64, length: u64) -> Request {
        Request { command, flags, cookie: 1, offset, length }
    }

    #[test]
    fn every_rule_has_its_number() {
        use Command::*;
        let plain = Agreed::default();
        let structured = Agreed { structured: true, ..Agreed::default() };
        let extended = Agreed {
            structured: true,
            extended: true,
            contexts: [Context::Depth].into_iter().collect(),
        };
        let check = |agreed: &Agreed, read_only, request: Request, want: Option<Errno>| {
            let got = validate(&request, agreed, SIZE, read_only).err().map(|error| error.errno);
            assert_eq!(got, want, "{request:?}");
        };
        let invalid = Some(Errno::Invalid);
        check(&plain, false, request(Read, 0, 0, SIZE), None);
        check(&plain, false, request(Read, 0, 1, SIZE), invalid);
        check(&plain, false, request(Read, 0, u64::MAX, 2), invalid);
        check(&plain, false, request(Read, 0, 0, 0), invalid);
        check(&plain, false, request(Read, flag::DF, 0, 1), invalid);
        check(&structured, false, request(Read, flag::DF, 0, 1), None);
        check(
            &structured,
            false,
            request(Read, flag::DF, 0, u64::from(PAYLOAD_MAX) + 1),
            Some(Errno::Overflow),
        );
        check(&plain, false, request(Write, flag::FUA, 0, 1), None);
        check(&plain, false, request(Write, 0, SIZE, 1), Some(Errno::NoSpace));
        check(&plain, true, request(Write, 0, 0, 1), Some(Errno::Permission));
        check(&plain, true, request(Trim, 0, 0, 1), Some(Errno::Permission));
        check(&plain, true, request(WriteZeroes, 0, 0, 1), Some(Errno::Permission));
        check(&plain, true, request(Flush, 0, 0, 0), None);
        check(&plain, false, request(Flush, 0, 1, 0), invalid);
        check(
            &plain,
            false,
            request(WriteZeroes, flag::NO_HOLE | flag::FAST_ZERO | flag::FUA, 0, SIZE),
            None,
        );
        check(&plain, false, request(WriteZeroes, flag::DF, 0, SIZE), invalid);
        check(&plain, false, request(Write, flag::PAYLOAD_LEN, 0, 1), invalid);
        check(&extended, false, request(Write, flag::PAYLOAD_LEN, 0, 1), None);
        check(&extended, false, request(Write, 0, 0, 1), None);
        check(&extended, false, request(Write, flag::PAYLOAD_LEN, 0, 1 << 40), invalid);
        check(&extended, false, request(Trim, 0, 0, 1 << 40), Some(Errno::NoSpace));
        check(&plain, false, request(BlockStatus, 0, 0, 1), invalid);
        check(&extended, false, request(BlockStatus, flag::REQ_ONE, 0, SIZE), None);
        check(&extended, false, request(BlockStatus, flag::PAYLOAD_LEN, 0, 8), invalid);
        check(&plain, false, request(Cache, 0, 0, SIZE), None);
        check(&plain, false, request(Unknown(77), 0, 0, 1), invalid);
        check(&plain, false, request(Disconnect, 0, 5, 5), None);
    }
}
