//! Negotiation: what a client may settle before it uses an export.
//!
//! ```text
//!   server hello -> client flags -> option, option, ... -> GO or EXPORT_NAME -> transmission
//!                                     \ ABORT -> end
//! ```
//!
//! [`Negotiation::take`] says what an option means; what needs the exports themselves, the caller does and answers with the
//! functions of this module.

use crate::export::{ExportInfo, Listed, OpenError};
use crate::proto::meta::{Context, Contexts};
use crate::proto::{Fields, PAYLOAD_MAX, transmission};

const HELLO: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 2;

/// The longest option: a few dozen queries of the longest string.
pub const OPTION_MAX: u32 = 256 << 10;
/// Bytes before an option's data.
pub const OPTION_HEADER: usize = 16;
/// Queries in one option.
const QUERIES_MAX: u32 = 64;

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
const ERR_UNSUPPORTED: u32 = ERROR | 1;
const ERR_POLICY: u32 = ERROR | 2;
const ERR_INVALID: u32 = ERROR | 3;
const ERR_UNKNOWN: u32 = ERROR | 6;
const ERR_SHUTDOWN: u32 = ERROR | 7;
const ERR_TOO_BIG: u32 = ERROR | 9;

const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_DESCRIPTION: u16 = 2;
const INFO_BLOCK_SIZE: u16 = 3;

/// What the server says first.
pub fn hello() -> [u8; 18] {
    let mut out = [0; 18];
    out[..8].copy_from_slice(&HELLO.to_be_bytes());
    out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    out[16..].copy_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    out
}

/// Why a negotiation ends at once, without an answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Broken {
    /// Flags that were not offered.
    #[error("the client sends flags {0:#x}, which were not offered")]
    Flags(u32),
    /// Not an option.
    #[error("the client sends {0:#x} where an option must be")]
    Magic(u64),
    /// An option so long that it is not even skipped.
    #[error("the client sends an option of {0} bytes")]
    TooLong(u32),
}

/// The header of an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OptionHeader {
    /// Which option.
    pub option: u32,
    /// How many bytes of data follow.
    pub length: u32,
}

impl OptionHeader {
    /// Reads a header.
    pub fn decode(bytes: &[u8; OPTION_HEADER]) -> Result<Self, Broken> {
        let mut fields = Fields(bytes);
        let (magic, option, length) =
            (fields.u64().unwrap_or(0), fields.u32().unwrap_or(0), fields.u32().unwrap_or(0));
        if magic != OPTION_MAGIC {
            return Err(Broken::Magic(magic));
        }
        if length > OPTION_MAX {
            return Err(Broken::TooLong(length));
        }
        Ok(Self { option, length })
    }
}

/// What a connection has settled so far.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Negotiation {
    fixed: bool,
    no_zeroes: bool,
    structured: bool,
    extended: bool,
    /// Contexts, and the export they were settled for.
    contexts: Option<(String, Contexts)>,
}

/// What a client asked for in an option.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked {
    /// This answer is all.
    Answer(Vec<u8>),
    /// The list: answer with [`list`].
    List,
    /// What an export is, and to use it if `go`: answer with [`Negotiation::describe`] or [`refuse`].
    Info {
        /// The export.
        name: String,
        /// Whether it is to be used from then on.
        go: bool,
        /// Which optional pieces of information the client wants.
        wanted: Vec<u16>,
    },
    /// To use an export, without a way to refuse but to hang up: answer with [`Negotiation::begin`].
    ExportName(String),
    /// Contexts of an export that must exist: answer with [`contexts`], and for `set` tell [`Negotiation::set_contexts`].
    Contexts {
        /// The export.
        name: String,
        /// Whether to use them from then on; else they are listed.
        set: bool,
        /// Those that match.
        contexts: Contexts,
    },
    /// This answer, and the end.
    End(Vec<u8>),
}

/// How a connection talks once it uses an export.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Agreed {
    /// Replies in chunks.
    pub structured: bool,
    /// Headers with 64-bit lengths.
    pub extended: bool,
    /// The contexts of block status.
    pub contexts: Contexts,
}

impl Negotiation {
    /// Takes the client's answer to the [`hello`].
    pub fn new(flags: u32) -> Result<Self, Broken> {
        if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
            return Err(Broken::Flags(flags));
        }
        let has = |flag: u16| flags & u32::from(flag) != 0;
        Ok(Self {
            fixed: has(FLAG_FIXED_NEWSTYLE),
            no_zeroes: has(FLAG_NO_ZEROES),
            ..Self::default()
        })
    }

    /// Says what an option means.
    pub fn take(&mut self, option: u32, data: &[u8]) -> Asked {
        let invalid = |why: &str| Asked::Answer(error(option, ERR_INVALID, why));
        match option {
            EXPORT_NAME => match std::str::from_utf8(data) {
                Ok(name) if name.len() <= super::STRING_MAX => Asked::ExportName(name.to_owned()),
                _ => Asked::End(Vec::new()),
            },
            // A client that is not fixed knows no other option, nor how to take a refusal.
            _ if !self.fixed => Asked::End(Vec::new()),
            ABORT => Asked::End(reply(option, ACK, &[])),
            LIST if data.is_empty() => Asked::List,
            LIST => invalid("a request for the list has no data"),
            STARTTLS => Asked::Answer(error(option, ERR_UNSUPPORTED, "this server has no TLS")),
            INFO | GO => info_request(option, data)
                .unwrap_or_else(|| invalid("a malformed request for information")),
            STRUCTURED_REPLY | EXTENDED_HEADERS if !data.is_empty() => {
                invalid("this option has no data")
            }
            STRUCTURED_REPLY if self.extended => {
                invalid("extended headers are in use, and include structured replies")
            }
            STRUCTURED_REPLY => {
                self.structured = true;
                Asked::Answer(reply(option, ACK, &[]))
            }
            EXTENDED_HEADERS => {
                (self.structured, self.extended) = (true, true);
                Asked::Answer(reply(option, ACK, &[]))
            }
            LIST_META_CONTEXT | SET_META_CONTEXT => self.meta_request(option, data),
            _ => Asked::Answer(error(
                option,
                ERR_UNSUPPORTED,
                "this server does not know the option",
            )),
        }
    }

    fn meta_request(&mut self, option: u32, data: &[u8]) -> Asked {
        let set = option == SET_META_CONTEXT;
        if set {
            self.contexts = None;
        }
        if !self.structured {
            return Asked::Answer(error(option, ERR_INVALID, "contexts need structured replies"));
        }
        let parsed = parse_queries(data, set);
        match parsed {
            None => Asked::Answer(error(option, ERR_INVALID, "malformed queries")),
            Some(None) => Asked::Answer(error(option, ERR_TOO_BIG, "too many queries")),
            Some(Some((name, contexts))) => Asked::Contexts { name, set, contexts },
        }
    }

    /// Notes contexts that were granted for an export.
    pub fn set_contexts(&mut self, name: String, contexts: Contexts) {
        self.contexts = Some((name, contexts));
    }

    /// How the connection goes on with an export.
    pub fn agreed(&self, name: &str) -> Agreed {
        let contexts = self.contexts.as_ref().filter(|(settled, _)| settled == name);
        Agreed {
            structured: self.structured,
            extended: self.extended,
            contexts: contexts.map(|(_, contexts)| contexts.clone()).unwrap_or_default(),
        }
    }

    /// The answer to `EXPORT_NAME`: size, flags, and the zeros that old clients wait for.
    pub fn begin(&self, info: &ExportInfo) -> Vec<u8> {
        let mut out = info.size.to_be_bytes().to_vec();
        out.extend(transmission::flags(info.read_only, self.structured).to_be_bytes());
        if !self.no_zeroes {
            out.resize(out.len() + 124, 0);
        }
        out
    }

    /// The answer to `INFO` and `GO`.
    pub fn describe(&self, go: bool, name: &str, wanted: &[u16], info: &ExportInfo) -> Vec<u8> {
        let option = if go { GO } else { INFO };
        let piece = |kind: u16, data: &[u8]| {
            reply(option, INFO_REPLY, &[&kind.to_be_bytes()[..], data].concat())
        };
        let flags = transmission::flags(info.read_only, self.structured);
        let mut out =
            piece(INFO_EXPORT, &[&info.size.to_be_bytes()[..], &flags.to_be_bytes()].concat());
        let sizes = [1, info.preferred_block, PAYLOAD_MAX];
        out.extend(piece(INFO_BLOCK_SIZE, &sizes.map(u32::to_be_bytes).concat()));
        if wanted.contains(&INFO_NAME) {
            out.extend(piece(INFO_NAME, name.as_bytes()));
        }
        if wanted.contains(&INFO_DESCRIPTION) && !info.description.is_empty() {
            out.extend(piece(INFO_DESCRIPTION, info.description.as_bytes()));
        }
        out.extend(reply(option, ACK, &[]));
        out
    }
}

/// The answer to `LIST`.
pub fn list(exports: &[Listed]) -> Vec<u8> {
    let mut out = Vec::new();
    for export in exports {
        let name = export.name.as_bytes();
        let length = (name.len() as u32).to_be_bytes();
        out.extend(reply(
            LIST,
            SERVER,
            &[&length[..], name, export.description.as_bytes()].concat(),
        ));
    }
    out.extend(reply(LIST, ACK, &[]));
    out
}

/// The answer to a request for contexts.
pub fn contexts(set: bool, contexts: &[Context]) -> Vec<u8> {
    let option = if set { SET_META_CONTEXT } else { LIST_META_CONTEXT };
    let mut out = Vec::new();
    for context in contexts {
        let id = if set { *context as u32 } else { 0 };
        out.extend(reply(
            option,
            META_CONTEXT,
            &[&id.to_be_bytes()[..], context.name().as_bytes()].concat(),
        ));
    }
    out.extend(reply(option, ACK, &[]));
    out
}

/// Which option an answer belongs to that may be a refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum About {
    /// The list.
    List,
    /// What an export is, or using it.
    Info {
        /// Whether it was to be used.
        go: bool,
    },
    /// Contexts.
    Contexts {
        /// Whether they were to be used.
        set: bool,
    },
}

/// A refusal because of the export.
pub fn refuse(about: About, why: &OpenError) -> Vec<u8> {
    let option = match about {
        About::List => LIST,
        About::Info { go } => {
            if go {
                GO
            } else {
                INFO
            }
        }
        About::Contexts { set } => {
            if set {
                SET_META_CONTEXT
            } else {
                LIST_META_CONTEXT
            }
        }
    };
    let kind = match why {
        OpenError::Unknown(_) => ERR_UNKNOWN,
        OpenError::Refused(_) => ERR_POLICY,
        OpenError::ShuttingDown(_) => ERR_SHUTDOWN,
    };
    error(option, kind, &why.to_string())
}

fn info_request(option: u32, data: &[u8]) -> Option<Asked> {
    let mut fields = Fields(data);
    let name = fields.string()?.to_owned();
    let count = fields.u16()?;
    let wanted = (0..count).map(|_| fields.u16()).collect::<Option<Vec<u16>>>()?;
    fields.is_empty().then_some(Asked::Info { name, go: option == GO, wanted })
}

/// The export and the contexts that queries match; `Some(None)` for too many.
#[expect(clippy::option_option, reason = "malformed, too many, or fine")]
fn parse_queries(data: &[u8], set: bool) -> Option<Option<(String, Contexts)>> {
    let mut fields = Fields(data);
    let name = fields.string()?.to_owned();
    let count = fields.u32()?;
    if count > QUERIES_MAX {
        return Some(None);
    }
    let mut contexts = Contexts::new();
    for _ in 0..count {
        let query = fields.string()?;
        if set {
            contexts.extend(Context::named(query));
        } else {
            contexts.extend(Context::listed(query));
        }
    }
    if count == 0 && !set {
        contexts.extend(Context::ALL);
    }
    contexts.sort_unstable();
    contexts.dedup();
    fields.is_empty().then_some(Some((name, contexts)))
}

fn error(option: u32, kind: u32, message: &str) -> Vec<u8> {
    reply(option, kind, &message.as_bytes()[..message.floor_char_boundary(super::STRING_MAX)])
}

fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(20 + data.len());
    out.extend(REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiation() -> Negotiation {
        Negotiation::new(3).unwrap()
    }

    fn answer(asked: &Asked) -> (u32, u32) {
        let Asked::Answer(bytes) = asked else { panic!("{asked:?}") };
        let mut fields = Fields(bytes);
        assert_eq!(fields.u64(), Some(REPLY_MAGIC));
        (fields.u32().unwrap(), fields.u32().unwrap())
    }

    #[test]
    fn the_hello_is_eighteen_bytes_everybody_knows() {
        assert_eq!(hello(), *b"NBDMAGICIHAVEOPT\x00\x03");
    }

    #[test]
    fn go_is_read_byte_for_byte() {
        let data = b"\0\0\0\x02vm\0\x02\0\x01\0\x03";
        let asked = negotiation().take(GO, data);
        assert_eq!(asked, Asked::Info { name: "vm".into(), go: true, wanted: vec![1, 3] });
        for cut in 0..data.len() {
            assert_eq!(
                answer(&negotiation().take(GO, &data[..cut])),
                (GO, ERR_INVALID),
                "cut at {cut}"
            );
        }
        let longer = [&data[..], b"x"].concat();
        assert_eq!(answer(&negotiation().take(GO, &longer)), (GO, ERR_INVALID));
    }

    #[test]
    fn an_export_is_described_byte_for_byte() {
        let info = ExportInfo {
            size: 1 << 20,
            read_only: true,
            description: String::new(),
            preferred_block: 4096,
        };
        let bytes = negotiation().describe(true, "vm", &[], &info);
        let expected = [
            &b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0c\0\0\0\0\0\0\0\x10\0\0\x05\x0f"[..],
            b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x03\0\0\0\x0e\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0",
            b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x07\0\0\0\x01\0\0\0\0",
        ];
        assert_eq!(bytes, expected.concat());
    }

    #[test]
    fn contexts_need_structured_replies_and_belong_to_one_export() {
        let data =
            [&b"\0\0\0\x02vm\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x05x-y:z"[..]].concat();
        let mut negotiation = negotiation();
        assert_eq!(
            answer(&negotiation.take(SET_META_CONTEXT, &data)),
            (SET_META_CONTEXT, ERR_INVALID)
        );
        assert_eq!(answer(&negotiation.take(STRUCTURED_REPLY, &[])), (STRUCTURED_REPLY, ACK));
        let Asked::Contexts { name, set: true, contexts } =
            negotiation.take(SET_META_CONTEXT, &data)
        else {
            panic!()
        };
        assert_eq!((&name[..], &contexts[..]), ("vm", &[Context::Allocation][..]));
        negotiation.set_contexts(name, contexts);
        assert_eq!(negotiation.agreed("vm").contexts[..], [Context::Allocation]);
        assert!(negotiation.agreed("other").contexts.is_empty());
        // Asking again, be it badly, forgets what was settled.
        negotiation.take(SET_META_CONTEXT, b"junk");
        assert!(negotiation.agreed("vm").contexts.is_empty());
    }

    #[test]
    fn what_is_unknown_or_malformed_is_refused_and_the_negotiation_goes_on() {
        let mut negotiation = negotiation();
        assert_eq!(answer(&negotiation.take(99, b"abc")), (99, ERR_UNSUPPORTED));
        assert_eq!(answer(&negotiation.take(STARTTLS, &[])), (STARTTLS, ERR_UNSUPPORTED));
        assert_eq!(answer(&negotiation.take(LIST, b"x")), (LIST, ERR_INVALID));
        assert_eq!(
            answer(&negotiation.take(EXTENDED_HEADERS, b"x")),
            (EXTENDED_HEADERS, ERR_INVALID)
        );
        negotiation.take(EXTENDED_HEADERS, &[]);
        assert_eq!(
            answer(&negotiation.take(STRUCTURED_REPLY, &[])),
            (STRUCTURED_REPLY, ERR_INVALID)
        );
        let many = [&b"\0\0\0\0"[..], &u32::MAX.to_be_bytes()].concat();
        assert_eq!(
            answer(&negotiation.take(LIST_META_CONTEXT, &many)),
            (LIST_META_CONTEXT, ERR_TOO_BIG)
        );
        let long = [&((super::super::STRING_MAX + 1) as u32).to_be_bytes()[..], &vec![b'x'; 5000]]
            .concat();
        assert_eq!(answer(&negotiation.take(INFO, &long)), (INFO, ERR_INVALID));
    }

    #[test]
    fn headers_that_are_none_break_the_negotiation() {
        assert_eq!(OptionHeader::decode(&[0; 16]), Err(Broken::Magic(0)));
        let long =
            [&OPTION_MAGIC.to_be_bytes()[..], &[0, 0, 0, 1], &u32::MAX.to_be_bytes()].concat();
        assert_eq!(OptionHeader::decode(&long.try_into().unwrap()), Err(Broken::TooLong(u32::MAX)));
        assert_eq!(Negotiation::new(4), Err(Broken::Flags(4)));
        let mut old = Negotiation::new(0).unwrap();
        assert_eq!(old.take(LIST, &[]), Asked::End(Vec::new()));
        let info = ExportInfo {
            size: 1,
            read_only: false,
            description: String::new(),
            preferred_block: 512,
        };
        assert_eq!(old.begin(&info).len(), 134);
    }
}
