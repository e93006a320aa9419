//! [`Wire`]: what a server said, read piece by piece. It panics where the protocol does not allow what is there.

/// How a connection talks once it uses an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Style {
    Simple,
    Structured,
    Extended,
}

/// An answer to an option.
pub(crate) struct OptionReply<'a> {
    pub(crate) option: u32,
    pub(crate) kind: u32,
    pub(crate) data: &'a [u8],
}

/// A reply, or a chunk of one.
pub(crate) struct Reply<'a> {
    pub(crate) cookie: u64,
    pub(crate) last: bool,
    pub(crate) content: Content<'a>,
}

/// What a reply says.
pub(crate) enum Content<'a> {
    /// It went well, and here is nothing.
    Done,
    /// A simple reply that went well; if it answers a read, the data follows.
    Simple,
    /// The error of this number.
    Error(u32),
    /// Data at an offset.
    Data(u64, &'a [u8]),
    /// Zeros from an offset on.
    Hole(u64, u64),
    /// The lengths and flags of a context.
    Status(u32, Vec<(u64, u64)>),
}

/// Bytes that a server said.
#[derive(Clone, Copy)]
pub(crate) struct Wire<'a>(&'a [u8]);

impl<'a> Wire<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at_checked(length).expect("what a server says is whole");
        self.0 = rest;
        head
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.bytes(N).try_into().expect("as many as asked for")
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }

    /// What a server says first.
    pub(crate) fn hello(&mut self) {
        assert_eq!(self.bytes(18), b"NBDMAGICIHAVEOPT\0\x03");
    }

    pub(crate) fn option_reply(&mut self) -> OptionReply<'a> {
        assert_eq!(self.u64(), 0x0003_e889_0455_65a9);
        let (option, kind, length) = (self.u32(), self.u32(), self.u32());
        assert!(length <= 1 << 16, "an answer of {length} bytes");
        OptionReply { option, kind, data: self.bytes(length as usize) }
    }

    /// The next reply or chunk.
    pub(crate) fn reply(&mut self, style: Style) -> Reply<'a> {
        match self.u32() {
            0x6744_6698 => {
                assert_ne!(style, Style::Extended, "a simple reply among extended ones");
                let (errno, cookie) = (self.u32(), self.u64());
                let content = if errno == 0 { Content::Simple } else { Content::Error(errno) };
                Reply { cookie, last: true, content }
            }
            0x668e_33ef => {
                assert_eq!(style, Style::Structured);
                let (flags, kind, cookie) = (self.u16(), self.u16(), self.u64());
                let length = u64::from(self.u32());
                self.chunk(style, flags, kind, cookie, length)
            }
            0x6e8a_278c => {
                assert_eq!(style, Style::Extended);
                let (flags, kind, cookie) = (self.u16(), self.u16(), self.u64());
                let (_offset, length) = (self.u64(), self.u64());
                self.chunk(style, flags, kind, cookie, length)
            }
            magic => panic!("{magic:#x} where a reply must be"),
        }
    }

    fn chunk(
        &mut self,
        style: Style,
        flags: u16,
        kind: u16,
        cookie: u64,
        length: u64,
    ) -> Reply<'a> {
        assert!(flags <= 1, "flags {flags:#x} of a chunk");
        let length = usize::try_from(length).expect("what was said fits into memory");
        let mut payload = Wire(self.bytes(length));
        let content = match kind {
            0 => Content::Done,
            1 => Content::Data(payload.u64(), payload.bytes(length - 8)),
            2 => Content::Hole(payload.u64(), u64::from(payload.u32())),
            5 if style == Style::Structured => {
                let context = payload.u32();
                let pairs = (length - 4) / 8;
                let status = (0..pairs).map(|_| (payload.u32().into(), payload.u32().into()));
                Content::Status(context, status.collect())
            }
            6 if style == Style::Extended => {
                let (context, pairs) = (payload.u32(), payload.u32());
                let status = (0..pairs).map(|_| (payload.u64(), payload.u64()));
                Content::Status(context, status.collect())
            }
            0x8001 => {
                let (errno, length) = (payload.u32(), payload.u16());
                assert_ne!(errno, 0, "an error without a number");
                let text = payload.bytes(length.into());
                assert!(std::str::from_utf8(text).is_ok(), "a line for people");
                Content::Error(errno)
            }
            other => panic!("a chunk of kind {other:#x}"),
        };
        assert!(payload.is_empty(), "a chunk of kind {kind:#x} with {length} bytes");
        assert!(flags == 1 || kind != 0, "an empty chunk ends a reply");
        Reply { cookie, last: flags == 1, content }
    }
}
