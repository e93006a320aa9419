//! An NBD client of a few dozen lines: blocking, simple replies, many writes in flight.
//!
//! It exists to keep its own record of what was acknowledged, and shares no code with the server it talks to. Protocol:
//! <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

use std::collections::HashMap;
use std::fmt::Debug;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
const OPT_EXPORT_NAME: u32 = 1;
/// How long a server may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// The flag of a request that is durable when it is answered.
pub const FUA: u16 = 1;
/// The flag of zeros that take space.
pub const NO_HOLE: u16 = 2;

/// A command of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Command {
    /// Reads.
    Read = 0,
    /// Writes.
    Write = 1,
    /// Says goodbye.
    Disconnect = 2,
    /// Makes what was acknowledged durable.
    Flush = 3,
    /// Gives content up.
    Trim = 4,
    /// Makes zeros.
    WriteZeroes = 6,
}

/// Whatever leads to a server.
trait Stream: Read + Write + Send + Debug {}

impl<S: Read + Write + Send + Debug> Stream for S {}

/// A connection to an export. A server that says nothing for two minutes is an error.
#[derive(Debug)]
pub struct Client {
    stream: Box<dyn Stream>,
    size: u64,
    next_cookie: u64,
    /// What was asked and not answered yet, by cookie; for a read, how many bytes will come.
    waiting: HashMap<u64, usize>,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// To which request.
    pub cookie: u64,
    /// The NBD errno, 0 for success.
    pub error: u32,
    /// What a read read.
    pub data: Vec<u8>,
}

impl Client {
    /// Connects to an export by `NBD_OPT_EXPORT_NAME`.
    pub fn connect(socket: &Path, export: &str) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        Self::negotiate(Box::new(stream), export)
    }

    /// The same over TCP.
    pub fn connect_tcp(address: SocketAddr, export: &str) -> Result<Self> {
        let stream =
            TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        Self::negotiate(Box::new(stream), export)
    }

    fn negotiate(mut stream: Box<dyn Stream>, export: &str) -> Result<Self> {
        let mut hello = [0; 18];
        stream.read_exact(&mut hello)?;
        ensure!(
            hello[..8] == NBD_MAGIC.to_be_bytes() && hello[8..16] == OPTION_MAGIC.to_be_bytes(),
            "not an NBD server"
        );
        let mut out = FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes().to_vec();
        out.extend(OPTION_MAGIC.to_be_bytes());
        out.extend(OPT_EXPORT_NAME.to_be_bytes());
        out.extend(u32::try_from(export.len())?.to_be_bytes());
        out.extend(export.as_bytes());
        stream.write_all(&out)?;
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).with_context(|| format!("export {export} is refused"))?;
        let size = u64::from_be_bytes(answer[..8].try_into()?);
        Ok(Self { stream, size, next_cookie: 1, waiting: HashMap::new() })
    }

    /// The size of the export.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// How many requests wait for their answer.
    pub fn in_flight(&self) -> usize {
        self.waiting.len()
    }

    /// Sends a request and returns its cookie.
    pub fn send(
        &mut self,
        command: Command,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> io::Result<u64> {
        self.send_flagged(command, 0, offset, length, payload)
    }

    /// Sends a request with flags, [`FUA`] or [`NO_HOLE`], and returns its cookie.
    pub fn send_flagged(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut out = Vec::with_capacity(28 + payload.len());
        out.extend(REQUEST_MAGIC.to_be_bytes());
        out.extend(flags.to_be_bytes());
        out.extend((command as u16).to_be_bytes());
        out.extend(cookie.to_be_bytes());
        out.extend(offset.to_be_bytes());
        out.extend(length.to_be_bytes());
        out.extend(payload);
        self.stream.write_all(&out)?;
        if command != Command::Disconnect {
            self.waiting.insert(cookie, if command == Command::Read { length as usize } else { 0 });
        }
        Ok(cookie)
    }

    /// Waits for the next answer, in whatever order they come.
    pub fn receive(&mut self) -> Result<Reply> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header)?;
        ensure!(header[..4] == SIMPLE_REPLY_MAGIC.to_be_bytes(), "not a simple reply");
        let error = u32::from_be_bytes(header[4..8].try_into()?);
        let cookie = u64::from_be_bytes(header[8..].try_into()?);
        let Some(length) = self.waiting.remove(&cookie) else {
            bail!("an answer to {cookie}, which was not asked")
        };
        let mut data = vec![0; if error == 0 { length } else { 0 }];
        self.stream.read_exact(&mut data)?;
        Ok(Reply { cookie, error, data })
    }

    /// Reads.
    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>> {
        self.send(Command::Read, offset, length, &[])?;
        self.one().map(|reply| reply.data)
    }

    /// Writes and waits for the acknowledgement.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.send(Command::Write, offset, u32::try_from(data.len())?, data)?;
        self.one().map(|_| ())
    }

    /// Makes what was acknowledged durable.
    pub fn flush(&mut self) -> Result<()> {
        self.send(Command::Flush, 0, 0, &[])?;
        self.one().map(|_| ())
    }

    /// Trims or zeroes.
    pub fn clear(&mut self, command: Command, offset: u64, length: u32) -> Result<()> {
        self.send(command, offset, length, &[])?;
        self.one().map(|_| ())
    }

    /// Says goodbye.
    pub fn disconnect(mut self) -> Result<()> {
        self.send(Command::Disconnect, 0, 0, &[])?;
        Ok(())
    }

    fn one(&mut self) -> Result<Reply> {
        ensure!(self.in_flight() == 1, "one request at a time here");
        let reply = self.receive()?;
        ensure!(reply.error == 0, "the server answers error {}", reply.error);
        Ok(reply)
    }
}
