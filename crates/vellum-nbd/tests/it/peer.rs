//! [`Peer`]: a client that says what a test wants it to say. The numbers are the protocol's, written down a second time.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use vellum_nbd::Server;

use crate::memory_export::Memory;

pub(crate) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const STARTTLS: u32 = 5;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
    pub(crate) const EXTENDED_HEADERS: u32 = 11;
}

pub(crate) mod answer {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    pub(crate) const UNSUPPORTED: u32 = 0x8000_0001;
    pub(crate) const POLICY: u32 = 0x8000_0002;
    pub(crate) const INVALID: u32 = 0x8000_0003;
    pub(crate) const UNKNOWN: u32 = 0x8000_0006;
    pub(crate) const SHUTDOWN: u32 = 0x8000_0007;
    pub(crate) const TOO_BIG: u32 = 0x8000_0009;
}

pub(crate) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISCONNECT: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;
}

pub(crate) mod flag {
    pub(crate) const FUA: u16 = 1;
    pub(crate) const NO_HOLE: u16 = 2;
    pub(crate) const DF: u16 = 4;
    pub(crate) const REQ_ONE: u16 = 8;
    pub(crate) const FAST_ZERO: u16 = 16;
    pub(crate) const PAYLOAD_LEN: u16 = 32;
}

pub(crate) mod chunk {
    pub(crate) const NONE: u16 = 0;
    pub(crate) const DATA: u16 = 1;
    pub(crate) const HOLE: u16 = 2;
    pub(crate) const STATUS: u16 = 5;
    pub(crate) const STATUS_EXTENDED: u16 = 6;
    pub(crate) const ERROR: u16 = 0x8001;
}

/// How a peer talks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Style {
    Simple,
    Structured,
    Extended,
}

/// A piece of a reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Chunk {
    pub(crate) kind: u16,
    pub(crate) payload: Vec<u8>,
}

/// A client.
pub(crate) struct Peer<S> {
    pub(crate) stream: S,
    style: Style,
    cookie: u64,
}

/// A peer whose server is called directly, and the task in which that serves it.
pub(crate) type Direct = (Peer<DuplexStream>, JoinHandle<()>);

/// A client that has said nothing yet, and reads at most so many bytes ahead.
pub(crate) fn connect(server: &Server<Memory>, ahead: usize) -> Direct {
    let (stream, other) = tokio::io::duplex(ahead);
    let (reader, writer) = tokio::io::split(other);
    let server = server.clone();
    let serving = tokio::spawn(async move { server.serve(reader, writer).await });
    (Peer::new(stream), serving)
}

/// A client that uses an export.
pub(crate) async fn client(
    server: &Server<Memory>,
    style: Style,
    export: &str,
) -> Peer<DuplexStream> {
    let (mut peer, _) = connect(server, 1 << 16);
    peer.hello(3).await;
    peer.use_export(style, export).await;
    peer
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

/// The data of a request for information.
pub(crate) fn wanted(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = text(name);
    data.extend((wanted.len() as u16).to_be_bytes());
    data.extend(wanted.iter().flat_map(|wanted| wanted.to_be_bytes()));
    data
}

/// The data of a request for contexts.
pub(crate) fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = text(name);
    data.extend((queries.len() as u32).to_be_bytes());
    data.extend(queries.iter().flat_map(|query| text(query)));
    data
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, style: Style::Simple, cookie: 0x1122_3344_5566_0000 }
    }

    pub(crate) async fn hello(&mut self, flags: u32) {
        assert_eq!(self.take(18).await, b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&flags.to_be_bytes()).await;
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    /// The server hung up, after this.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes).await.unwrap();
        bytes
    }

    pub(crate) async fn send_option(&mut self, option: u32, data: &[u8]) {
        let length = (data.len() as u32).to_be_bytes();
        self.send(&[&b"IHAVEOPT"[..], &option.to_be_bytes(), &length, data].concat()).await;
    }

    /// All answers to an option, the last of which ends it.
    pub(crate) async fn ask(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send_option(option, data).await;
        let mut answers = Vec::new();
        loop {
            assert_eq!(self.take(8).await, 0x0003_e889_0455_65a9_u64.to_be_bytes());
            assert_eq!(self.stream.read_u32().await.unwrap(), option);
            let kind = self.stream.read_u32().await.unwrap();
            let length = self.stream.read_u32().await.unwrap() as usize;
            answers.push((kind, self.take(length).await));
            if kind == answer::ACK || kind & 1 << 31 != 0 {
                return answers;
            }
        }
    }

    /// The kind of the one answer to an option.
    pub(crate) async fn ask_one(&mut self, option: u32, data: &[u8]) -> u32 {
        let answers = self.ask(option, data).await;
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers[0].0
    }

    /// Negotiates like a good client.
    pub(crate) async fn use_export(&mut self, style: Style, export: &str) {
        self.style = style;
        match style {
            Style::Simple => {}
            Style::Structured => {
                assert_eq!(self.ask_one(option::STRUCTURED_REPLY, &[]).await, answer::ACK);
            }
            Style::Extended => {
                assert_eq!(self.ask_one(option::EXTENDED_HEADERS, &[]).await, answer::ACK);
            }
        }
        if style != Style::Simple {
            let all = queries(export, &["base:allocation", "qemu:allocation-depth"]);
            assert_eq!(self.ask(option::SET_META_CONTEXT, &all).await.len(), 3);
        }
        let answers = self.ask(option::GO, &wanted(export, &[])).await;
        assert_eq!(answers.last().unwrap().0, answer::ACK, "{answers:?}");
    }

    /// Uses an export with structured replies, and whatever else was settled before.
    pub(crate) async fn use_structured(&mut self, export: &str) {
        self.style = Style::Structured;
        let answers = self.ask(option::GO, &wanted(export, &[])).await;
        assert_eq!(answers.last().unwrap().0, answer::ACK, "{answers:?}");
    }

    /// Sends a request and says which cookie it has.
    pub(crate) async fn request(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u64,
    ) -> u64 {
        self.cookie += 1;
        let extended = self.style == Style::Extended;
        let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        if extended {
            bytes.extend(length.to_be_bytes());
        } else {
            bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
        }
        self.send(&bytes).await;
        self.cookie
    }

    pub(crate) async fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u64 {
        let says = if self.style == Style::Extended { flag::PAYLOAD_LEN } else { 0 };
        let cookie = self.request(command::WRITE, flags | says, offset, data.len() as u64).await;
        self.send(data).await;
        cookie
    }

    /// A reply without chunks: its cookie and its error.
    pub(crate) async fn simple(&mut self) -> (u64, u32) {
        assert_eq!(self.stream.read_u32().await.unwrap(), 0x6744_6698);
        let errno = self.stream.read_u32().await.unwrap();
        (self.stream.read_u64().await.unwrap(), errno)
    }

    /// One chunk: its cookie, whether it is the last, and what it says.
    pub(crate) async fn chunk(&mut self) -> (u64, bool, Chunk) {
        let magic = self.stream.read_u32().await.unwrap();
        let extended = self.style == Style::Extended;
        assert_eq!(magic, if extended { 0x6e8a_278c } else { 0x668e_33ef });
        let flags = self.stream.read_u16().await.unwrap();
        let kind = self.stream.read_u16().await.unwrap();
        let cookie = self.stream.read_u64().await.unwrap();
        let length = if extended {
            let _offset = self.stream.read_u64().await.unwrap();
            self.stream.read_u64().await.unwrap() as usize
        } else {
            self.stream.read_u32().await.unwrap() as usize
        };
        assert!(flags <= 1 && length <= (32 << 20) + 12);
        (cookie, flags == 1, Chunk { kind, payload: self.take(length).await })
    }

    /// All chunks of the reply to the newest request.
    pub(crate) async fn chunks(&mut self) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        loop {
            let (cookie, last, chunk) = self.chunk().await;
            assert_eq!(cookie, self.cookie);
            chunks.push(chunk);
            if last {
                return chunks;
            }
        }
    }

    /// The error number of the reply to the newest request, 0 for none, in whatever shape the style gives it.
    pub(crate) async fn outcome(&mut self, chunked: bool) -> u32 {
        if self.style == Style::Extended || self.style == Style::Structured && chunked {
            let chunks = self.chunks().await;
            let last = chunks.last().unwrap();
            match last.kind {
                chunk::ERROR => u32::from_be_bytes(last.payload[..4].try_into().unwrap()),
                _ => 0,
            }
        } else {
            let (cookie, errno) = self.simple().await;
            assert_eq!(cookie, self.cookie);
            errno
        }
    }

    /// Reads, and puts the pieces together.
    pub(crate) async fn read(&mut self, offset: u64, length: u64) -> Vec<u8> {
        self.request(command::READ, 0, offset, length).await;
        if self.style == Style::Simple {
            assert_eq!(self.simple().await, (self.cookie, 0));
            return self.take(length as usize).await;
        }
        let mut bytes = Vec::new();
        for piece in self.chunks().await {
            let at = u64::from_be_bytes(piece.payload[..8].try_into().unwrap());
            assert_eq!(at, offset + bytes.len() as u64, "pieces ascend");
            match piece.kind {
                chunk::DATA => bytes.extend(&piece.payload[8..]),
                chunk::HOLE => {
                    let hole = u32::from_be_bytes(piece.payload[8..].try_into().unwrap());
                    bytes.resize(bytes.len() + hole as usize, 0);
                }
                other => panic!("a piece of kind {other:#x}"),
            }
        }
        bytes
    }
}
