//! What the clients of an image tell each other, over the watch that each of them has on its header.
//!
//! Whoever holds the lock answers what it is asked; all others acknowledge with nothing. So an answer with nothing in it from
//! everybody says that nobody holds the lock. A message of no bytes is that the header changed, from clients of long ago.

use std::collections::BTreeMap;

use crate::records::Purpose;
use crate::wire::{Decode, Encode, Reader, Result, Text, structure};

/// How long an answer is waited for, in milliseconds.
pub const ANSWER_WAIT_MS: u64 = 5000;

const VERSION: u8 = 7;
/// Behind a request for the lock: it is of a client that did not have it before.
const BEGINS: u32 = u32::from_le_bytes(*b"VLUM");

/// A client, by its number at the cluster and by its watch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientId {
    /// Its number.
    pub client: u64,
    /// Its watch.
    pub watch: u64,
}

impl Encode for ClientId {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.client, self.watch).encode(out);
    }
}

impl Decode for ClientId {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        let (client, watch) = input.value()?;
        Ok(Self { client, watch })
    }
}

/// A request that takes a while, by who asked and a number of theirs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId {
    /// Who asked.
    pub from: ClientId,
    /// Their number for it.
    pub number: u64,
}

impl Encode for RequestId {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.from, self.number).encode(out);
    }
}

impl Decode for RequestId {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        let (from, number) = input.value()?;
        Ok(Self { from, number })
    }
}

/// A message. Those with a request are for who holds the lock, and are answered with [`Answer`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Somebody has the lock now.
    Acquired(ClientId),
    /// Somebody has given it back.
    Released(ClientId),
    /// Somebody wants it.
    Request {
        /// Who.
        from: ClientId,
        /// Even if its holder would rather keep it.
        force: bool,
        /// Whether it did not have it before, and may do without. Ceph's clients do not say so, and skip it.
        begins: bool,
    },
    /// The header changed.
    HeaderChanged,
    /// A request goes on.
    Progress {
        /// Which.
        request: RequestId,
        /// How far it is.
        done: u64,
        /// Of how much.
        all: u64,
    },
    /// A request is done.
    Complete {
        /// Which.
        request: RequestId,
        /// Zero, or an error number below it.
        result: i32,
    },
    /// Something that only who holds the lock may do.
    Asked(Ask, RequestId),
    /// Something that is not known here.
    Unknown(u32),
}

/// What who holds the lock can be asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    /// To cut the image off from its parent.
    Flatten,
    /// To give it another size.
    Resize {
        /// In bytes.
        size: u64,
        /// Even if it gets smaller.
        may_shrink: bool,
    },
    /// To take a snapshot.
    CreateSnapshot {
        /// Its name.
        name: Text,
        /// Whose it is.
        purpose: Purpose,
        /// How.
        flags: u64,
    },
    /// To remove one.
    RemoveSnapshot(Text, Purpose),
    /// To protect one.
    ProtectSnapshot(Text, Purpose),
    /// To stop protecting one.
    UnprotectSnapshot(Text, Purpose),
    /// To give one another name.
    RenameSnapshot {
        /// Its id.
        id: u64,
        /// The name that it gets.
        name: Text,
        /// Whose it is.
        purpose: Purpose,
    },
    /// To make the object map anew.
    RebuildObjectMap,
    /// To give the image another name.
    Rename(Text),
    /// To give it features, or take them.
    UpdateFeatures {
        /// Which.
        features: u64,
        /// Whether it gets them.
        enable: bool,
    },
    /// To let it be moved.
    Migrate,
    /// To give back space that holds zeros.
    Sparsify {
        /// How much in a row, in bytes.
        size: u64,
    },
    /// To hold writes for a moment.
    Quiesce,
    /// To go on with them.
    Unquiesce,
    /// To change what a user keeps with the image.
    UpdateMetadata {
        /// Under which key.
        key: Text,
        /// To what; nothing to remove it.
        value: Option<Text>,
    },
}

impl Message {
    fn number(&self) -> u32 {
        match self {
            Self::Acquired(_) => 0,
            Self::Released(_) => 1,
            Self::Request { .. } => 2,
            Self::HeaderChanged => 3,
            Self::Progress { .. } => 4,
            Self::Complete { .. } => 5,
            Self::Asked(ask, _) => ask.number(),
            Self::Unknown(number) => *number,
        }
    }
}

impl Ask {
    fn number(&self) -> u32 {
        match self {
            Self::Flatten => 6,
            Self::Resize { .. } => 7,
            Self::CreateSnapshot { .. } => 8,
            Self::RemoveSnapshot(..) => 9,
            Self::RebuildObjectMap => 10,
            Self::RenameSnapshot { .. } => 11,
            Self::ProtectSnapshot(..) => 12,
            Self::UnprotectSnapshot(..) => 13,
            Self::Rename(_) => 14,
            Self::UpdateFeatures { .. } => 15,
            Self::Migrate => 16,
            Self::Sparsify { .. } => 17,
            Self::Quiesce => 18,
            Self::Unquiesce => 19,
            Self::UpdateMetadata { .. } => 20,
        }
    }

    /// What is asked, with the request where Ceph puts it, which is not always at the end.
    fn encode(&self, request: RequestId, out: &mut Vec<u8>) {
        match self {
            Self::Flatten
            | Self::RebuildObjectMap
            | Self::Migrate
            | Self::Quiesce
            | Self::Unquiesce => {
                request.encode(out);
            }
            Self::Resize { size, may_shrink } => {
                size.encode(out);
                request.encode(out);
                may_shrink.encode(out);
            }
            Self::CreateSnapshot { name, purpose, flags } => {
                snapshot(name, purpose, request, out);
                flags.encode(out);
            }
            Self::RemoveSnapshot(name, purpose)
            | Self::ProtectSnapshot(name, purpose)
            | Self::UnprotectSnapshot(name, purpose) => snapshot(name, purpose, request, out),
            Self::RenameSnapshot { id, name, purpose } => {
                id.encode(out);
                snapshot(name, purpose, request, out);
            }
            Self::Rename(name) => {
                name.encode(out);
                request.encode(out);
            }
            Self::UpdateFeatures { features, enable } => {
                features.encode(out);
                enable.encode(out);
                request.encode(out);
            }
            Self::Sparsify { size } => {
                request.encode(out);
                size.encode(out);
            }
            Self::UpdateMetadata { key, value } => {
                key.encode(out);
                value.encode(out);
                request.encode(out);
            }
        }
    }

    /// The question of this number, as of this version of the messages, or `None` if it is not known or too old to have a request.
    fn decode(
        number: u32,
        version: u8,
        input: &mut Reader<'_>,
    ) -> Result<Option<(Self, RequestId)>> {
        if version < VERSION && matches!(number, 8 | 9 | 11..=13) {
            return Ok(None);
        }
        Ok(Some(match number {
            6 => (Self::Flatten, input.value()?),
            7 => {
                let (size, request) = (input.value()?, input.value()?);
                let may_shrink = if version < 4 { true } else { input.value()? };
                (Self::Resize { size, may_shrink }, request)
            }
            8 => {
                let (name, purpose, request) = (input.value()?, input.value()?, input.value()?);
                (Self::CreateSnapshot { name, purpose, flags: input.value()? }, request)
            }
            9 => (Self::RemoveSnapshot(input.value()?, input.value()?), input.value()?),
            10 => (Self::RebuildObjectMap, input.value()?),
            11 => {
                let (id, name, purpose) = (input.value()?, input.value()?, input.value()?);
                (Self::RenameSnapshot { id, name, purpose }, input.value()?)
            }
            12 => (Self::ProtectSnapshot(input.value()?, input.value()?), input.value()?),
            13 => (Self::UnprotectSnapshot(input.value()?, input.value()?), input.value()?),
            14 => (Self::Rename(input.value()?), input.value()?),
            15 => {
                let (features, enable) = (input.value()?, input.value()?);
                (Self::UpdateFeatures { features, enable }, input.value()?)
            }
            16 => (Self::Migrate, input.value()?),
            17 => {
                let request = input.value()?;
                (Self::Sparsify { size: input.value()? }, request)
            }
            18 => (Self::Quiesce, input.value()?),
            19 => (Self::Unquiesce, input.value()?),
            20 => {
                let (key, value) = (input.value()?, input.value()?);
                (Self::UpdateMetadata { key, value }, input.value()?)
            }
            _ => return Ok(None),
        }))
    }
}

fn snapshot(name: &Text, purpose: &Purpose, request: RequestId, out: &mut Vec<u8>) {
    name.encode(out);
    purpose.encode(out);
    request.encode(out);
}

impl Encode for Message {
    fn encode(&self, out: &mut Vec<u8>) {
        structure(out, VERSION, 1, |out| {
            self.number().encode(out);
            match self {
                Self::Acquired(client) | Self::Released(client) => client.encode(out),
                Self::Request { from, force, begins } => {
                    (*from, *force).encode(out);
                    if *begins {
                        BEGINS.encode(out);
                    }
                }
                Self::HeaderChanged | Self::Unknown(_) => {}
                Self::Progress { request, done, all } => (*request, (*done, *all)).encode(out),
                Self::Complete { request, result } => (*request, *result).encode(out),
                Self::Asked(ask, request) => ask.encode(*request, out),
            }
        });
    }
}

impl Decode for Message {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        if input.left() == 0 {
            return Ok(Self::HeaderChanged);
        }
        let (version, mut fields) = input.structure("message", VERSION)?;
        Ok(match fields.value()? {
            0 => Self::Acquired(fields.value()?),
            1 => Self::Released(fields.value()?),
            2 => {
                let from = fields.value()?;
                let force = if version < 3 { false } else { fields.value()? };
                let begins = fields.left() >= 4 && fields.value::<u32>()? == BEGINS;
                Self::Request { from, force, begins }
            }
            3 => Self::HeaderChanged,
            4 => {
                let (request, (done, all)) = fields.value()?;
                Self::Progress { request, done, all }
            }
            5 => {
                let (request, result) = fields.value()?;
                Self::Complete { request, result }
            }
            number => match Ask::decode(number, version, &mut fields)? {
                Some((ask, request)) => Self::Asked(ask, request),
                None => Self::Unknown(number),
            },
        })
    }
}

/// What who holds the lock answers: zero, or an error number below it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer(pub i32);

impl Encode for Answer {
    fn encode(&self, out: &mut Vec<u8>) {
        structure(out, 1, 1, |out| self.0.encode(out));
    }
}

impl Decode for Answer {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        let (_, mut fields) = input.structure("answer", 1)?;
        Ok(Self(fields.value()?))
    }
}

/// What came of a message.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Heard {
    /// Who acknowledged it, and with what.
    pub answers: BTreeMap<ClientId, Text>,
    /// Who did not in time.
    pub silent: Vec<ClientId>,
}

impl Heard {
    /// The answer of who holds the lock. `None` if nobody answered as such.
    ///
    /// # Errors
    /// If an answer is not what it should be.
    pub fn answer(&self) -> Result<Option<Answer>> {
        let answer = self.answers.values().find(|answer| !answer.0.is_empty());
        answer.map(|answer| Answer::from_bytes(&answer.0)).transpose()
    }
}

impl Decode for Heard {
    fn decode(input: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { answers: input.value()?, silent: input.value()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::tests::{bytes, is_written_as};

    const FROM: ClientId = ClientId { client: 1, watch: 2 };
    const REQUEST: RequestId = RequestId { from: FROM, number: 3 };

    fn asks() -> Vec<Ask> {
        let (name, purpose) = (Text::from("s"), Purpose::User);
        vec![
            Ask::Flatten,
            Ask::Resize { size: 5, may_shrink: true },
            Ask::CreateSnapshot { name: name.clone(), purpose: purpose.clone(), flags: 1 },
            Ask::RemoveSnapshot(name.clone(), purpose.clone()),
            Ask::RebuildObjectMap,
            Ask::RenameSnapshot { id: 4, name: name.clone(), purpose: purpose.clone() },
            Ask::ProtectSnapshot(name.clone(), purpose.clone()),
            Ask::UnprotectSnapshot(name.clone(), purpose),
            Ask::Rename(name.clone()),
            Ask::UpdateFeatures { features: 8, enable: false },
            Ask::Migrate,
            Ask::Sparsify { size: 4096 },
            Ask::Quiesce,
            Ask::Unquiesce,
            Ask::UpdateMetadata { key: name.clone(), value: Some(name) },
        ]
    }

    #[test]
    fn every_message_is_read_as_it_was_written() {
        let plain = [
            Message::Acquired(FROM),
            Message::Released(FROM),
            Message::Request { from: FROM, force: true, begins: false },
            Message::HeaderChanged,
            Message::Progress { request: REQUEST, done: 1, all: 2 },
            Message::Complete { request: REQUEST, result: -5 },
        ];
        let asked = asks().into_iter().map(|ask| Message::Asked(ask, REQUEST));
        let all: Vec<_> = plain.into_iter().chain(asked).collect();
        for (number, message) in (0..).zip(&all) {
            assert_eq!(message.number(), number);
            assert_eq!(Message::from_bytes(&message.to_bytes()).as_ref(), Ok(message));
        }
        assert_eq!(all.len(), 21);
    }

    #[test]
    fn a_request_lies_where_ceph_puts_it() {
        let request = "0100000000000000 0200000000000000 0300000000000000";
        let resize = Message::Asked(Ask::Resize { size: 5, may_shrink: true }, REQUEST);
        is_written_as(&resize, &format!("07 01 25000000 07000000 0500000000000000 {request} 01"));
        let sparsify = Message::Asked(Ask::Sparsify { size: 4096 }, REQUEST);
        is_written_as(&sparsify, &format!("07 01 24000000 11000000 {request} 0010000000000000"));
        let begins = Message::Request { from: FROM, force: false, begins: true };
        let (from, mark) = ("0100000000000000 0200000000000000", "\"VLUM\"");
        is_written_as(&begins, &format!("07 01 19000000 02000000 {from} 00 {mark}"));
        is_written_as(&Answer(-16), "01 01 04000000 f0ffffff");
    }

    #[test]
    fn what_older_and_newer_clients_say_is_understood_as_far_as_it_can_be() {
        assert_eq!(Message::from_bytes(&[]), Ok(Message::HeaderChanged));
        let old = bytes("02 01 14000000 02000000 0100000000000000 0200000000000000");
        assert_eq!(
            Message::from_bytes(&old),
            Ok(Message::Request { from: FROM, force: false, begins: false })
        );
        let new = bytes("09 01 05000000 63000000 ff");
        assert_eq!(Message::from_bytes(&new), Ok(Message::Unknown(99)));
        let snapshot = bytes("05 01 09000000 08000000 01000000 \"s\"");
        assert_eq!(Message::from_bytes(&snapshot), Ok(Message::Unknown(8)));
    }

    #[test]
    fn whoever_holds_the_lock_is_the_one_that_says_something() {
        let mut heard = Heard::default();
        heard.answers.insert(FROM, Text::default());
        assert_eq!(heard.answer(), Ok(None));
        heard.answers.insert(ClientId { client: 7, watch: 7 }, Text(Answer(0).to_bytes()));
        assert_eq!(heard.answer(), Ok(Some(Answer(0))));
        let reply = bytes(
            "01000000 0100000000000000 0200000000000000 00000000 | 01000000 0100000000000000 0200000000000000",
        );
        let heard = Heard::from_bytes(&reply).unwrap();
        assert_eq!((heard.answers.len(), heard.silent), (1, vec![FROM]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = Message::from_bytes(&bytes);
            let _ = Heard::from_bytes(&bytes);
        }
    }
}
