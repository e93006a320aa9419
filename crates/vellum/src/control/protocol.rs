//! What is said over a control socket: requests, answers, errors. Bytes and types, no I/O.

use serde::{Deserialize, Serialize};
use vellum_core::{Extent, SnapshotName};
use vellum_engine::{Error, ErrorKind, Happened, Result, Wanted};
use vellum_image::{Mapped, MappedKind};

/// Changes when old and new programs would misunderstand each other.
pub(crate) const VERSION: u32 = 1;
/// The longest request, in bytes.
pub(crate) const REQUEST_MAX: u64 = 64 << 10;
/// The longest answer, in bytes.
pub(crate) const ANSWER_MAX: u64 = 4 << 20;

/// A request and the image it is about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) version: u32,
    /// The pool's id: copies of a pool have images of the same ids.
    pub(crate) pool: String,
    pub(crate) image: String,
    pub(crate) request: Request,
}

/// What the holder of an image can be asked to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Take a snapshot.
    Snapshot { name: String, auto: bool },
    /// Flatten, with progress. Ends when whoever asked hangs up.
    Flatten { copies: usize, bytes_per_second: Option<u64> },
    /// Discard.
    Discard { offset: u64, length: u64, to_parent: bool },
    /// Make what was acknowledged durable.
    Sync,
    /// Tell which layer defines what, from here on, as far as one answer goes.
    Map { offset: u64 },
    /// Tell what the top layer holds.
    Usage,
    /// Tell who uses the image.
    Status,
}

impl Request {
    /// The same, as it can be asked of clients of the storage, whatever program they are.
    pub(crate) fn wanted(&self) -> Result<Option<Wanted>> {
        Ok(match self {
            Request::Snapshot { name, auto } => {
                Some(Wanted::Snapshot { name: snapshot_name(name)?, auto: *auto })
            }
            Request::Flatten { .. } => Some(Wanted::Flatten),
            _ => None,
        })
    }

    /// Whether an image must be owned for it.
    pub(crate) fn changes(&self) -> bool {
        match self {
            Request::Snapshot { .. }
            | Request::Flatten { .. }
            | Request::Discard { .. }
            | Request::Sync => true,
            Request::Map { .. } | Request::Usage | Request::Status => false,
        }
    }
}

/// An answer. The last line of a connection is not a `Progress`; any number of these may come before, and says that work goes on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub(crate) enum Answer {
    Progress {
        done: u64,
        total: u64,
    },
    Done,
    Map {
        entries: Vec<Entry>,
    },
    Usage {
        data_bytes: u64,
        zero_bytes: u64,
    },
    Status {
        clients: usize,
    },
    /// Not, or not any more, or not yet: look again who holds it.
    NotHeld,
    Failed {
        kind: String,
        maybe_done: bool,
        message: String,
    },
}

impl Answer {
    /// What a caller on the other side is told of an error.
    pub(crate) fn failed(error: &Error) -> Self {
        Answer::Failed {
            kind: format!("{:?}", error.kind()),
            maybe_done: error.happened() == Happened::MaybeDone,
            message: error.chain(),
        }
    }
}

/// The name of a snapshot, as it was sent.
pub(crate) fn snapshot_name(name: &str) -> Result<SnapshotName> {
    SnapshotName::new(name).map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))
}

/// That the other side talks nonsense.
pub(crate) fn nonsense() -> Error {
    Error::new(
        ErrorKind::Io,
        "the process that holds the image answers something that makes no sense",
    )
    .maybe_done()
}

/// The error that an answer told of. On the wire a kind is called what it is called in the code.
pub(crate) fn error_of(kind: &str, maybe_done: bool, message: String) -> Error {
    let kind = ErrorKind::ALL.iter().find(|known| format!("{known:?}") == kind);
    let error = Error::new(kind.copied().unwrap_or(ErrorKind::Io), message);
    if maybe_done { error.maybe_done() } else { error }
}

/// An entry of a map: offset, length, kind, depth.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Entry(u64, u64, u8, usize);

impl From<&Mapped> for Entry {
    fn from(mapped: &Mapped) -> Self {
        let kind = match mapped.kind {
            MappedKind::Nothing => 0,
            MappedKind::Data => 1,
            MappedKind::Zero => 2,
        };
        Entry(mapped.at.offset(), mapped.at.length(), kind, mapped.depth)
    }
}

impl TryFrom<Entry> for Mapped {
    type Error = Error;

    fn try_from(Entry(offset, length, kind, depth): Entry) -> Result<Mapped> {
        let at =
            Extent::checked(offset, length).filter(|at| !at.is_empty()).ok_or_else(nonsense)?;
        let kind = match kind {
            0 => MappedKind::Nothing,
            1 => MappedKind::Data,
            2 => MappedKind::Zero,
            _ => return Err(nonsense()),
        };
        Ok(Mapped { at, kind, depth })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_are_what_the_other_side_reads() {
        let request = Request::Snapshot { name: "s".into(), auto: false };
        let asked = Asked { version: 1, pool: "p1".into(), image: "a1".into(), request };
        let text = serde_json::to_string(&asked).unwrap();
        assert_eq!(
            text,
            r#"{"version":1,"pool":"p1","image":"a1","request":{"do":"snapshot","name":"s","auto":false}}"#
        );
        assert_eq!(serde_json::from_str::<Asked>(&text).unwrap(), asked);
        let answer = Answer::Map { entries: vec![Entry(0, 4096, 1, 2)] };
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            r#"{"is":"map","entries":[[0,4096,1,2]]}"#
        );
        assert_eq!(serde_json::to_string(&Answer::NotHeld).unwrap(), r#"{"is":"not-held"}"#);
    }

    #[test]
    fn errors_survive_the_wire() {
        for kind in ErrorKind::ALL {
            for error in [Error::new(*kind, "why"), Error::new(*kind, "why").maybe_done()] {
                let Answer::Failed { kind, maybe_done, message } = Answer::failed(&error) else {
                    unreachable!()
                };
                let arrived = error_of(&kind, maybe_done, message);
                assert_eq!((arrived.kind(), arrived.happened()), (error.kind(), error.happened()));
                assert!(arrived.chain().contains("why"));
            }
        }
        assert_eq!(error_of("Nonsense", false, String::new()).kind(), ErrorKind::Io);
    }

    #[test]
    fn an_entry_that_makes_no_sense_is_an_error() {
        for entry in [Entry(u64::MAX, 2, 0, 0), Entry(0, 0, 1, 1), Entry(0, 1, 3, 0)] {
            assert!(Mapped::try_from(entry).is_err(), "{entry:?}");
        }
    }
}
