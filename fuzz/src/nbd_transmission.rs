//! Transmission: a client that asks for whatever it likes of an export, in each of the three ways of talking.
//!
//! An input says how the client talks, how the disk behaves, and then what is asked, with magic numbers and payloads put
//! where they belong. Asked one by one, each request is answered once, by its cookie; one that makes plain sense succeeds, one
//! that cannot does not; and what is read, and the status of each block, is what an array of bytes says that the same was
//! done to. Asked all at once, each is answered once. Either may end with bytes that are no request.

use std::collections::BTreeMap;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use vellum_core::Extent;
use vellum_nbd::Context;

use crate::input::Input;
use crate::nbd::disk::{Behaviour, SIZE, status_of};
use crate::nbd::wire::{Content, Reply, Style, Wire};
use crate::nbd::{answers_to, server};
use crate::run::on_runtime;

/// Bytes that either side says ahead of the other.
const AHEAD: usize = 1 << 18;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;

const FUA: u16 = 1;
const REQ_ONE: u16 = 8;
const PAYLOAD_LEN: u16 = 32;

/// A payload longer than this is begun and not ended.
const PAYLOAD_MAX: u64 = 80 << 10;
/// Requests in an input; more only say the same again.
const REQUESTS_MAX: usize = 64;
/// What one request has in memory at most: the payload as it is said, and the buffer that it is put in, of the next power of two;
/// or the sectors of a whole disk, each with its head, and once more where they are heard. What is heard is kept in as much room as
/// it needs.
const REQUEST_MEMORY_MAX: usize = (PAYLOAD_MAX + (128 << 10)) as usize;
/// All requests at once, and what the pipes and the server have beside them.
pub(crate) const MEMORY_MAX: usize = REQUESTS_MAX * REQUEST_MEMORY_MAX + (2 << 20);
const CONTEXTS: [Context; 2] = [Context::Allocation, Context::Depth];

/// A request.
#[derive(Clone, Copy, Debug)]
struct Asked {
    command: u16,
    flags: u16,
    cookie: u64,
    offset: u64,
    length: u64,
    /// What a payload is made of.
    seed: u8,
}

/// All that an input says.
struct Story<'a> {
    style: Style,
    read_only: bool,
    at_once: bool,
    behaviour: Behaviour,
    requests: Vec<Asked>,
    /// What is said in the end.
    last_words: &'a [u8],
}

/// See the module.
pub fn look_at(data: &[u8]) {
    let story = Story::read(&mut Input::new(data));
    on_runtime(async {
        if story.at_once { story.ask_all_at_once().await } else { story.ask_one_by_one().await }
    });
}

impl<'a> Story<'a> {
    fn read(input: &mut Input<'a>) -> Self {
        let (how, fails) = (input.u8(), input.u8());
        let style = [Style::Simple, Style::Structured, Style::Extended][usize::from(how & 3) % 3];
        let fails_every = if how & 1 << 4 != 0 { u32::from(fails) } else { 0 };
        let mut story = Self {
            style,
            read_only: how & 1 << 2 != 0,
            at_once: how & 1 << 3 != 0,
            behaviour: Behaviour { waits: how & 1 << 5 != 0, fails_every },
            requests: Vec::new(),
            last_words: &[],
        };
        while !input.is_empty() && story.requests.len() < REQUESTS_MAX {
            let command = input.u8();
            if command == u8::MAX {
                story.last_words = input.rest();
                break;
            }
            let cookie = story.requests.len() as u64 + 0x0102_0304_0506_0700;
            let asked = Asked::read(input, command, cookie, style);
            let is_last = asked.payload(style).is_some_and(|length| length > PAYLOAD_MAX);
            story.requests.push(asked);
            if is_last {
                break;
            }
        }
        story
    }

    /// What a client says until it uses the export.
    fn greeting(&self) -> Vec<u8> {
        let mut said = 3_u32.to_be_bytes().to_vec();
        let name = if self.read_only { "sealed" } else { "disk" };
        let mut option = |option: u32, data: &[u8]| {
            said.extend(b"IHAVEOPT");
            said.extend(option.to_be_bytes());
            said.extend((data.len() as u32).to_be_bytes());
            said.extend(data);
        };
        let text = |text: &str| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        if self.style != Style::Simple {
            option(if self.style == Style::Extended { 11 } else { 8 }, &[]);
            let queries = CONTEXTS.map(|context| text(context.name())).concat();
            option(10, &[&text(name)[..], &2_u32.to_be_bytes(), &queries].concat());
        }
        option(7, &[&text(name)[..], &[0; 2]].concat());
        said
    }

    /// Takes the answers to the greeting.
    fn check_greeting(&self, wire: &mut Wire<'_>) {
        wire.hello();
        loop {
            let reply = wire.option_reply();
            assert!(reply.kind < 1 << 31, "refused: {:#x}", reply.kind);
            if (reply.option, reply.kind) == (7, 1) {
                return;
            }
        }
    }

    async fn ask_all_at_once(&self) {
        let mut said = self.greeting();
        let payloads = self.requests.iter().filter_map(|asked| asked.payload(self.style));
        let payloads: u64 = payloads.map(|length| length.min(PAYLOAD_MAX)).sum();
        said.reserve_exact(payloads as usize + self.requests.len() * 32 + self.last_words.len());
        self.requests.iter().for_each(|asked| asked.write(self.style, &mut said));
        said.extend(self.last_words);
        let heard = Vec::with_capacity(self.heard_max());
        let heard = answers_to(&server(self.behaviour), &said, AHEAD, heard).await;
        let mut wire = Wire::new(&heard);
        self.check_greeting(&mut wire);
        // By cookie: whether the last piece of an answer has come.
        let mut answered = BTreeMap::new();
        while !wire.is_empty() {
            let reply = wire.reply(self.style);
            let asked = self.requests.iter().find(|asked| asked.cookie == reply.cookie);
            let Some(asked) = asked else {
                // The last words may have been a request.
                assert!(!self.last_words.is_empty(), "an answer to nobody");
                return;
            };
            if matches!(reply.content, Content::Simple) && asked.command == READ {
                wire.bytes(asked.length as usize);
            }
            let before = answered.insert(reply.cookie, reply.last);
            assert_ne!(before, Some(true), "a second answer to {asked:?}");
        }
        let all = self.requests.iter().take_while(|asked| asked.is_answered(self.style));
        for asked in all {
            assert_eq!(answered.remove(&asked.cookie), Some(true), "no answer to {asked:?}");
        }
        assert!(answered.is_empty(), "an answer to what came behind the end");
    }

    /// How much the answers take at most: what is read, and the heads of as many chunks as there can be.
    fn heard_max(&self) -> usize {
        let answer = |asked: &Asked| {
            let read = if asked.command == READ { asked.length.min(SIZE) } else { 0 };
            let sectors = SIZE.div_ceil(512);
            4096 + read + if asked.command <= BLOCK_STATUS { sectors * 44 } else { 0 }
        };
        8192 + self.requests.iter().map(answer).sum::<u64>() as usize
    }

    async fn ask_one_by_one(&self) {
        let server = server(self.behaviour);
        let (client, other) = tokio::io::duplex(1 << 18);
        let (reader, writer) = tokio::io::split(other);
        tokio::join!(server.serve(reader, writer), self.converse(client));
    }

    async fn converse(&self, mut stream: DuplexStream) {
        stream.write_all(&self.greeting()).await.expect("it listens");
        let mut peer = Peer { stream, style: self.style, heard: Vec::new() };
        peer.hear_greeting().await;
        self.check_greeting(&mut Wire::new(&std::mem::take(&mut peer.heard)));
        let mut disk = vec![0; SIZE as usize];
        for asked in &self.requests {
            let mut said = Vec::new();
            asked.write(self.style, &mut said);
            // One that hangs up in the middle of a payload is not heard to the end.
            let sent = peer.stream.write_all(&said).await;
            if !asked.is_answered(self.style) {
                break;
            }
            sent.expect("it listens");
            let outcome = peer.answer_to(asked, &disk, self.style).await;
            self.check_outcome(asked, outcome);
            if outcome.is_ok() {
                asked.apply(&mut disk);
            }
        }
        let _ = peer.stream.write_all(self.last_words).await;
        let _ = peer.stream.shutdown().await;
        let mut rest = Vec::new();
        peer.stream.read_to_end(&mut rest).await.expect("a pipe in memory");
        assert!(rest.is_empty() || !self.last_words.is_empty(), "a second answer");
    }

    /// Plain requests succeed, and those that cannot, do not.
    fn check_outcome(&self, asked: &Asked, outcome: Result<(), u32>) {
        let changes = matches!(asked.command, WRITE | TRIM | WRITE_ZEROES);
        let has_extent = asked.command != FLUSH;
        let fits = asked.offset.checked_add(asked.length).is_some_and(|end| end <= SIZE);
        let cannot = asked.command > BLOCK_STATUS
            || has_extent && (asked.length == 0 || !fits)
            || !has_extent && (asked.length != 0 || asked.offset != 0)
            || changes && self.read_only
            || asked.command == BLOCK_STATUS && self.style == Style::Simple;
        if cannot {
            assert!(outcome.is_err(), "{asked:?} cannot succeed");
        } else if asked.flags & !FUA == 0 && self.behaviour.fails_every == 0 {
            assert_eq!(outcome, Ok(()), "{asked:?} makes sense");
        }
    }
}

impl Asked {
    fn read(input: &mut Input<'_>, command: u8, cookie: u64, style: Style) -> Self {
        let command = match command {
            known @ 0..=0x7f => u16::from(known & 7),
            _ => u16::from_le_bytes([command, input.u8()]),
        };
        let flags = input.u8();
        let flags = u16::from(flags & 0x3f) | u16::from(flags >> 6) << 14;
        let offset = match input.u8() {
            0..=99 => input.u16().into(),
            100..=199 => u64::from(input.u8()) * 512,
            200..=239 => SIZE - u64::from(input.u8()),
            _ => input.u64(),
        };
        let length = match input.u8() {
            0..=99 => input.u8().into(),
            100..=199 => u64::from(input.u8()) * 512,
            200..=229 => SIZE.saturating_sub(offset),
            230..=239 => input.u16().into(),
            _ => input.u64(),
        };
        let length = if style == Style::Extended { length } else { length & u64::from(u32::MAX) };
        // A flush has neither, unless it is meant not to make sense.
        let plain = command == FLUSH && flags & 0x3e == 0;
        let (offset, length) = if plain { (0, 0) } else { (offset, length) };
        Self { command, flags, cookie, offset, length, seed: input.u8() }
    }

    /// How long the payload is, if it has one.
    fn payload(&self, style: Style) -> Option<u64> {
        let says = style == Style::Extended && self.flags & PAYLOAD_LEN != 0;
        (self.command == WRITE || says).then_some(self.length)
    }

    fn is_answered(&self, style: Style) -> bool {
        self.command != DISCONNECT && self.payload(style).is_none_or(|length| length <= PAYLOAD_MAX)
    }

    fn byte(&self, index: usize) -> u8 {
        // Runs of zeros, so that there are holes to be found.
        if index / 512 % 3 == 1 { 0 } else { self.seed.wrapping_add(index as u8) }
    }

    fn write(&self, style: Style, out: &mut Vec<u8>) {
        let extended = style == Style::Extended;
        let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        out.extend(magic.to_be_bytes());
        out.extend(self.flags.to_be_bytes());
        out.extend(self.command.to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        out.extend(self.offset.to_be_bytes());
        if extended {
            out.extend(self.length.to_be_bytes());
        } else {
            out.extend((self.length as u32).to_be_bytes());
        }
        if self.command != DISCONNECT {
            let here = self.payload(style).unwrap_or(0).min(PAYLOAD_MAX);
            out.extend((0..here as usize).map(|index| self.byte(index)));
        }
    }

    /// Does to an array of bytes what a request that succeeded has done to the disk.
    fn apply(&self, disk: &mut [u8]) {
        if matches!(self.command, WRITE | TRIM | WRITE_ZEROES) {
            let part = &mut disk[self.offset as usize..(self.offset + self.length) as usize];
            match self.command {
                WRITE => {
                    part.iter_mut().enumerate().for_each(|(index, to)| *to = self.byte(index));
                }
                _ => part.fill(0),
            }
        }
    }
}

/// The client's end of a connection.
struct Peer {
    stream: DuplexStream,
    style: Style,
    heard: Vec<u8>,
}

impl Peer {
    async fn hear(&mut self, length: usize) {
        let at = self.heard.len();
        self.heard.resize(at + length, 0);
        self.stream.read_exact(&mut self.heard[at..]).await.expect("it answers");
    }

    fn number(&self, at: usize, length: usize) -> u64 {
        self.heard[at..at + length].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    async fn hear_greeting(&mut self) {
        self.hear(18).await;
        loop {
            let at = self.heard.len();
            self.hear(20).await;
            self.hear(self.number(at + 16, 4) as usize).await;
            if (self.number(at + 8, 4), self.number(at + 12, 4)) == (7, 1) {
                return;
            }
        }
    }

    /// Hears a reply or a chunk as a whole, and nothing behind it.
    async fn hear_reply(&mut self, asked: &Asked) -> Vec<u8> {
        self.heard.clear();
        self.hear(16).await;
        let simple = self.heard[..4] == [0x67, 0x44, 0x66, 0x98];
        let length = match self.style {
            _ if simple && asked.command == READ && self.number(4, 4) == 0 => asked.length,
            _ if simple => 0,
            Style::Extended => {
                self.hear(16).await;
                self.number(24, 8)
            }
            _ => {
                self.hear(4).await;
                self.number(16, 4)
            }
        };
        assert!(length <= SIZE + 12, "{length} bytes for {asked:?}");
        self.hear(length as usize).await;
        std::mem::take(&mut self.heard)
    }

    /// The error number of the answer to a request, all of which makes sense for a disk that holds these bytes.
    async fn answer_to(&mut self, asked: &Asked, disk: &[u8], style: Style) -> Result<(), u32> {
        let mut covered = vec![false; if asked.command == READ { disk.len() } else { 0 }];
        let mut contexts = Vec::new();
        let mut error = None;
        loop {
            let bytes = self.hear_reply(asked).await;
            let mut wire = Wire::new(&bytes);
            let Reply { cookie, last, content } = wire.reply(style);
            assert_eq!(cookie, asked.cookie, "an answer to another request");
            match content {
                Content::Done => assert_ne!(asked.command, READ),
                Content::Simple if asked.command == READ => {
                    assert_eq!(style, Style::Simple, "a read is answered in chunks");
                    cover(
                        &mut covered,
                        asked,
                        disk,
                        asked.offset,
                        wire.bytes(asked.length as usize),
                    );
                }
                Content::Simple => assert_ne!(asked.command, BLOCK_STATUS),
                Content::Error(errno) => error = Some(errno),
                Content::Data(at, data) => cover(&mut covered, asked, disk, at, data),
                Content::Hole(at, length) => {
                    cover(&mut covered, asked, disk, at, &vec![0; length as usize]);
                }
                Content::Status(context, status) => {
                    check_status(asked, disk, context, &status);
                    contexts.push(context);
                }
            }
            if last {
                break;
            }
        }
        if let Some(errno) = error {
            return Err(errno);
        }
        match asked.command {
            READ => {
                let all = covered.iter().filter(|byte| **byte).count() as u64;
                assert_eq!(all, asked.length, "a read without some of its bytes");
            }
            BLOCK_STATUS => assert_eq!(contexts, CONTEXTS.map(|context| context as u32)),
            _ => assert!(contexts.is_empty()),
        }
        Ok(())
    }
}

/// Notes what was read, which must be what the disk holds, and nothing twice.
fn cover(covered: &mut [bool], asked: &Asked, disk: &[u8], at: u64, data: &[u8]) {
    assert_eq!(asked.command, READ);
    let piece = Extent::checked(at, data.len() as u64).expect("it lies on the disk");
    assert!(Extent::new(asked.offset, asked.length).contains(&piece), "bytes not asked for");
    let range = at as usize..at as usize + data.len();
    assert!(disk[range.clone()] == *data, "{asked:?} reads something else at {at}");
    for byte in &mut covered[range] {
        assert!(!std::mem::replace(byte, true), "bytes that are said twice");
    }
}

fn check_status(asked: &Asked, disk: &[u8], context: u32, status: &[(u64, u64)]) {
    assert_eq!(asked.command, BLOCK_STATUS);
    let context = CONTEXTS.into_iter().find(|known| *known as u32 == context);
    let max = if asked.flags & REQ_ONE != 0 { 1 } else { usize::MAX };
    let at = Extent::new(asked.offset, asked.length);
    let expected = status_of(disk, at, context.expect("a context that was settled"), max);
    let expected: Vec<_> = expected.iter().map(|status| (status.length, status.flags)).collect();
    assert_eq!(status, expected, "{asked:?}");
}
