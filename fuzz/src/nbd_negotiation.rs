//! Negotiation: a client that says whatever it likes before it uses an export.
//!
//! An input is the client's flags and then options, with their magic number put before each. What the server answers is read
//! by the words of the protocol: as many answers as options, each of the option it belongs to, until the connection ends
//! where it must. What would be a request afterwards is none, and must find no answer.

use crate::input::Input;
use crate::nbd::disk::{Behaviour, Disks, NAMES, SIZE};
use crate::nbd::wire::Wire;
use crate::nbd::{answers_to, server};
use crate::run::on_runtime;

/// Bytes that either side says ahead of the other.
const AHEAD: usize = 16 << 10;
/// The most that a server says to an input.
const HEARD_MAX: usize = 384 << 10;
/// The most that a client says. Each query of a good client is one byte of an input, and up to 25 of what it says.
const SAID_MAX: usize = 25 * crate::INPUT_MAX;

/// The most that is allocated at once, in bytes: what the target itself keeps, and what a server may take for a connection.
pub(crate) const MEMORY_MAX: usize = {
    let here = SIZE as usize + HEARD_MAX + 2 * AHEAD + 2 * SAID_MAX;
    let option = vellum_nbd::proto::option::OPTION_MAX as usize;
    let requests_read_at_once = 256 << 10;
    let everything_else = 64 << 10;
    here + option + requests_read_at_once + everything_else
};

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const LIST_META_CONTEXT: u32 = 9;
const SET_META_CONTEXT: u32 = 10;
const EXTENDED_HEADERS: u32 = 11;

const ACK: u32 = 1;
const SERVER: u32 = 2;
const INFO_REPLY: u32 = 3;
const META_CONTEXT: u32 = 4;
const ERROR: u32 = 1 << 31;
const UNSUPPORTED: u32 = ERROR | 1;
const INVALID: u32 = ERROR | 3;

const QUERIES: [&str; 6] =
    ["base:allocation", "qemu:allocation-depth", "base:", "qemu:", "", "x-none:y"];

/// What a client says.
enum Said {
    /// A whole option.
    Option { option: u32, data: Vec<u8> },
    /// Bytes after which nobody can tell where an option begins.
    Bytes(Vec<u8>),
}

/// See the module.
pub fn look_at(data: &[u8]) {
    let mut input = Input::new(data);
    let flags = match input.u8() {
        few @ 0..=3 => few.into(),
        _ => input.u32(),
    };
    let mut steps = Vec::new();
    while !input.is_empty() {
        steps.push(step(&mut input));
    }
    let mut said = Vec::with_capacity(4 + steps.iter().map(Said::len).sum::<usize>());
    said.extend(flags.to_be_bytes());
    steps.iter().for_each(|step| step.write(&mut said));
    let heard = on_runtime(async {
        let heard = Vec::with_capacity(HEARD_MAX);
        answers_to(&server(Behaviour::default()), &said, AHEAD, heard).await
    });
    assert_eq!(heard.capacity(), HEARD_MAX, "{} bytes say too much", data.len());
    check(flags, &steps, &heard);
}

fn step(input: &mut Input<'_>) -> Said {
    let kind = input.u8();
    let option = u32::from(kind & 0xf);
    match kind >> 4 {
        0..=9 => {
            let length = input.u8();
            Said::Option { option, data: input.bytes(length.into()).to_vec() }
        }
        10 => {
            let (option, length) = (input.u32(), input.u16());
            Said::Option { option, data: input.bytes(length.into()).to_vec() }
        }
        // An option whose data is shorter, or longer, than it says.
        11 => {
            let (length, here) = (input.u32(), input.u8());
            let mut bytes = header(option, length);
            bytes.extend(input.bytes(here.into()));
            Said::Bytes(bytes)
        }
        12 => {
            let length = input.u8();
            Said::Bytes(input.bytes(length.into()).to_vec())
        }
        _ => Said::Option { option, data: well_formed(option, input) },
    }
}

/// The data that an option has when a good client says it.
fn well_formed(option: u32, input: &mut Input<'_>) -> Vec<u8> {
    let name = input.one_of(&NAMES);
    let mut data = Vec::new();
    match option {
        EXPORT_NAME => data.extend(name.as_bytes()),
        INFO | GO => {
            let wanted = input.u8() % 8;
            push_text(&mut data, name);
            data.extend(u16::from(wanted).to_be_bytes());
            (0..wanted).for_each(|_| data.extend(u16::from(input.u8()).to_be_bytes()));
        }
        LIST_META_CONTEXT | SET_META_CONTEXT => {
            let queries = input.u8() % 80;
            push_text(&mut data, name);
            data.extend(u32::from(queries).to_be_bytes());
            (0..queries).for_each(|_| push_text(&mut data, input.one_of(&QUERIES)));
        }
        _ => {}
    }
    data
}

fn push_text(data: &mut Vec<u8>, text: &str) {
    data.extend((text.len() as u32).to_be_bytes());
    data.extend(text.as_bytes());
}

/// Bytes of what [`header`] makes.
const OPTION_HEADER: usize = 16;

fn header(option: u32, length: u32) -> Vec<u8> {
    [&b"IHAVEOPT"[..], &option.to_be_bytes(), &length.to_be_bytes()].concat()
}

impl Said {
    fn len(&self) -> usize {
        match self {
            Said::Option { data, .. } => OPTION_HEADER + data.len(),
            Said::Bytes(bytes) => bytes.len(),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Said::Option { option, data } => {
                out.extend(header(*option, data.len() as u32));
                out.extend(data);
            }
            Said::Bytes(bytes) => out.extend(bytes),
        }
    }
}

/// How a connection goes on after an option.
#[derive(PartialEq, Eq)]
enum Then {
    Options,
    End,
}

/// Whether what was heard is what the protocol lets a server say to all this.
fn check(flags: u32, steps: &[Said], heard: &[u8]) {
    let mut wire = Wire::new(heard);
    wire.hello();
    let mut settled =
        Settled { fixed: flags & 1 != 0, no_zeroes: flags & 2 != 0, structured: false };
    for step in if flags <= 3 { steps } else { &[] } {
        let Said::Option { option, data } = step else {
            // From here on the server may take anything for an option, or nothing.
            return;
        };
        if answer(&mut settled, &mut wire, *option, data) == Then::End {
            break;
        }
    }
    assert!(wire.is_empty(), "an answer that nobody asked for");
}

/// What was settled so far.
struct Settled {
    fixed: bool,
    no_zeroes: bool,
    structured: bool,
}

fn answer(settled: &mut Settled, wire: &mut Wire<'_>, option: u32, data: &[u8]) -> Then {
    if option == EXPORT_NAME {
        let name = std::str::from_utf8(data);
        if name.is_ok_and(Disks::has) {
            assert_eq!(wire.u64(), SIZE);
            check_flags(wire.u16(), settled.structured);
            assert!(settled.no_zeroes || wire.bytes(124) == [0; 124]);
        }
        return Then::End;
    }
    if !settled.fixed {
        return Then::End;
    }
    let last = loop {
        let reply = wire.option_reply();
        assert_eq!(reply.option, option, "an answer to another option");
        if reply.kind == ACK || reply.kind & ERROR != 0 {
            assert!(std::str::from_utf8(reply.data).is_ok());
            break reply.kind;
        }
        check_piece(option, reply.kind, reply.data, settled.structured);
    };
    match option {
        ABORT => {
            assert_eq!(last, ACK);
            return Then::End;
        }
        GO if last == ACK => return Then::End,
        LIST => assert_eq!(last, if data.is_empty() { ACK } else { INVALID }),
        STRUCTURED_REPLY if last == ACK => settled.structured = true,
        EXTENDED_HEADERS => {
            assert_eq!(last, if data.is_empty() { ACK } else { INVALID });
            settled.structured |= last == ACK;
        }
        LIST_META_CONTEXT | SET_META_CONTEXT if !settled.structured => assert_eq!(last, INVALID),
        INFO | GO | STRUCTURED_REPLY | LIST_META_CONTEXT | SET_META_CONTEXT => {}
        STARTTLS => assert_eq!(last, UNSUPPORTED),
        _ => assert_eq!(last, UNSUPPORTED),
    }
    Then::Options
}

/// An answer that is not the last one to its option.
fn check_piece(option: u32, kind: u32, data: &[u8], structured: bool) {
    let mut data = Wire::new(data);
    match (option, kind) {
        (LIST, SERVER) => {
            let length = data.u32();
            let name = data.bytes(length as usize);
            assert!(NAMES.iter().any(|known| known.as_bytes() == name));
        }
        (INFO | GO, INFO_REPLY) => match data.u16() {
            0 => {
                assert_eq!(data.u64(), SIZE);
                check_flags(data.u16(), structured);
                assert!(data.is_empty());
            }
            3 => {
                let (least, good, most) = (data.u32(), data.u32(), data.u32());
                assert!(least <= good && good <= most && data.is_empty());
            }
            1 | 2 => {}
            other => panic!("information of kind {other}"),
        },
        (LIST_META_CONTEXT | SET_META_CONTEXT, META_CONTEXT) => {
            let id = data.u32();
            assert_eq!(id != 0, option == SET_META_CONTEXT);
        }
        _ => panic!("an answer of kind {kind} to option {option}"),
    }
}

fn check_flags(flags: u16, structured: bool) {
    assert_eq!(flags & 1, 1);
    assert_eq!(flags & 1 << 7 != 0, structured, "don't-fragment goes with structured replies");
}
