//! The task that reads requests, and what becomes of them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;
use vellum_core::{Buffer, BufferPool, Extent};

use crate::export::{Export, Exports, ZeroFlags};
use crate::proto::error::{Errno, NbdError};
use crate::proto::option::Agreed;
use crate::proto::reply::{self, Pieces};
use crate::proto::request::{Command, Request, flag};
use crate::proto::validate::validate;
use crate::server::Shared;
use crate::server::hangup::Hangup;
use crate::server::polling::Polling;
use crate::server::room::{Room, Watch};
use crate::server::under_way::UnderWay;
use crate::server::writer::{Holds, Reply, write_replies};

/// What is read from the socket at once: many small requests, or a piece of a payload.
const READ_AT_ONCE: usize = 256 << 10;
/// A read is answered where it was parsed only up to this size, lest a large one delays what comes behind it.
const INLINE_MAX: u64 = 128 << 10;
/// What an export may have in memory to bring content closer.
const CACHE_ROOM: usize = 1 << 20;
/// What a descriptor of block status takes while it is made, and in the reply.
const DESCRIPTOR_ROOM: usize = 64;

/// Who is at the other end of a connection.
pub(super) struct Client {
    pub(super) agreed: Agreed,
    /// `None` where nobody can tell.
    pub(super) hangup: Option<Hangup>,
}

/// A connection that uses an export.
struct Connection<X> {
    export: Arc<X>,
    agreed: Arc<Agreed>,
    hangup: Option<Hangup>,
    /// The client has said goodbye: it wants all that it asked for before, wherever it is by then.
    goodbye: AtomicBool,
    /// Changes that were not begun, for the client has hung up. It may have said goodbye before, which is not read yet.
    postponed: Mutex<Vec<Taken>>,
    size: u64,
    read_only: bool,
    descriptors_max: usize,
    replies: UnboundedSender<Reply>,
    requests: Arc<Semaphore>,
    room: Arc<Room>,
    buffers: BufferPool,
}

/// Reads and answers requests until the client leaves or the server ends, and all that was started has been answered.
pub(super) async fn transmit<E: Exports>(
    server: &Shared<E>,
    export: Arc<E::Export>,
    client: Client,
    reader: impl AsyncRead + Unpin,
    writer: impl AsyncWrite + Unpin + Send + 'static,
) {
    let (replies, queue) = unbounded_channel();
    let info = export.info();
    let limits = &server.limits;
    let room = Arc::new(Room::new(server.room.clone(), limits));
    let gone = CancellationToken::new();
    let writing = server.tasks.spawn(write_replies(writer, queue, room.clone(), gone.clone()));
    let connection = Connection {
        export,
        agreed: Arc::new(client.agreed),
        hangup: client.hangup,
        goodbye: AtomicBool::new(false),
        postponed: Mutex::default(),
        size: info.size,
        read_only: info.read_only,
        descriptors_max: limits.descriptors_max,
        replies,
        requests: Arc::new(Semaphore::new(limits.requests_max)),
        room,
        buffers: server.buffers.clone(),
    };
    let polling = Polling::new(server.lookouts.clone(), limits.poll_max);
    let mut input = Input { reader, buffer: BytesMut::with_capacity(READ_AT_ONCE), polling };
    let under_way = UnderWay::default();
    let start = |taken| under_way.add(connection.serve(taken));
    tokio::select! {
        biased;
        () = server.ending.cancelled() => {}
        taking = connection.take_requests(&mut input, start, || under_way.is_empty()) => {
            if let Err(error) = taking {
                tracing::debug!(%error, "a connection broke off");
            }
        }
        () = gone.cancelled() => {}
        () = under_way.run() => {}
    }
    under_way.end().await;
    drop(under_way);
    drop(connection);
    // The writer ends when the last request under way has been answered, or found nobody to answer.
    if let Ok(Err(error)) = writing.await {
        tracing::debug!(%error, "replies could not be sent");
    }
}

/// What came from the socket and was not taken yet.
struct Input<R> {
    reader: R,
    buffer: BytesMut,
    polling: Polling,
}

impl<R: AsyncRead + Unpin> Input<R> {
    /// The next request; `None` when the client hung up between two.
    async fn request(
        &mut self,
        extended: bool,
        is_idle: impl Fn() -> bool,
    ) -> io::Result<Option<Request>> {
        loop {
            if let Some(request) = Request::decode(extended, &self.buffer) {
                let request =
                    request.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                self.buffer.advance(Request::header_length(extended));
                return Ok(Some(request));
            }
            self.make_room();
            let read = self.reader.read_buf(&mut self.buffer);
            if self.polling.wait(read, &is_idle).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    /// Moves the beginning of a request, if there is one, to the front of the buffer, which never grows.
    fn make_room(&mut self) {
        self.buffer.reserve(READ_AT_ONCE - self.buffer.len());
    }

    /// Fills a payload: first from what is here already, then straight from the socket.
    async fn payload(&mut self, payload: &mut [u8], mut watch: Watch<'_>) -> io::Result<()> {
        let mut here = self.buffer.len().min(payload.len());
        payload[..here].copy_from_slice(&self.buffer[..here]);
        self.buffer.advance(here);
        while here < payload.len() {
            here += match watch.step(self.reader.read(&mut payload[here..])).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => read,
            };
        }
        Ok(())
    }

    /// Takes a payload that nobody wants, without keeping it.
    async fn skip(&mut self, mut length: u64) -> io::Result<()> {
        loop {
            let here = (self.buffer.len() as u64).min(length);
            self.buffer.advance(here as usize);
            length -= here;
            if length == 0 {
                return Ok(());
            }
            self.make_room();
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl<X: Export> Connection<X> {
    /// Reads requests until the client leaves. Those that can be answered on the spot are; `start` has the others carried out.
    async fn take_requests(
        &self,
        input: &mut Input<impl AsyncRead + Unpin>,
        start: impl Fn(Taken),
        is_idle: impl Fn() -> bool,
    ) -> io::Result<()> {
        loop {
            let permit = self.requests.clone().acquire_owned().await.map_err(io::Error::other)?;
            let Some(request) = input.request(self.agreed.extended, &is_idle).await? else {
                return Ok(());
            };
            if request.command == Command::Disconnect {
                self.goodbye.store(true, Ordering::Relaxed);
                std::mem::take(&mut *self.postponed.lock()).into_iter().for_each(start);
                return Ok(());
            }
            let mut holds = Holds { request: Some(permit), bytes: None };
            let payload = request.payload_length(self.agreed.extended);
            let at = match validate(&request, &self.agreed, self.size, self.read_only) {
                Ok(at) => at,
                Err(error) => {
                    input.skip(payload).await?;
                    self.answer(reply::failed(&self.agreed, &request, &error), holds);
                    continue;
                }
            };
            let needed = self.room_needed(&request, at);
            if needed > 0 {
                holds.bytes = Some(self.room.take(needed).await?);
            }
            let data = if request.command == Command::Write {
                let mut buffer = self.buffers.take(at.len_usize());
                input.payload(&mut buffer, self.room.watch()).await?;
                Some(buffer.freeze())
            } else {
                None
            };
            match self.read_at_once(&request, at) {
                Some(pieces) => self.answer(pieces, holds),
                None => start(Taken { request, at, data, holds }),
            }
        }
    }

    /// How many bytes of a request, or of its answer, are in memory at once.
    fn room_needed(&self, request: &Request, at: Extent) -> usize {
        match request.command {
            // At most 32 MiB by now.
            Command::Read | Command::Write => BufferPool::footprint(at.len_usize()),
            Command::Cache => CACHE_ROOM,
            Command::BlockStatus => {
                self.descriptors_max * self.agreed.contexts.len() * DESCRIPTOR_ROOM
            }
            _ => 0,
        }
    }

    fn read_at_once(&self, request: &Request, at: Extent) -> Option<Pieces> {
        if request.command != Command::Read || at.length() > INLINE_MAX {
            return None;
        }
        let mut buffer: Buffer = self.buffers.take(at.len_usize());
        let read = self.export.try_read(at, &mut buffer);
        read.then(|| reply::data(&self.agreed, request, buffer.freeze()))
    }

    /// Carries a request out and answers it; one that would change something for a client that has given it up is postponed.
    async fn serve(&self, taken: Taken) {
        let command = taken.request.command;
        let changes = matches!(command, Command::Write | Command::Trim | Command::WriteZeroes);
        if changes && self.is_given_up() {
            tracing::debug!(at = ?taken.at, "a change was not begun, for its client has hung up");
            // It holds up nothing: what such a client has sent lies in the socket, has an end, and must be read to it.
            self.postponed.lock().push(Taken { holds: Holds::default(), ..taken });
            return;
        }
        let Taken { request, at, data, mut holds } = taken;
        let pieces = match self.carry_out(&request, at, data).await {
            Ok(pieces) => pieces,
            Err(error) => reply::failed(&self.agreed, &request, &error),
        };
        if request.command == Command::Write {
            // Its payload is where it belongs, whenever the client takes the reply.
            holds.bytes = None;
        }
        self.answer(pieces, holds);
    }

    /// Whether the client may have sent over another connection, again, what was not begun yet.
    fn is_given_up(&self) -> bool {
        !self.goodbye.load(Ordering::Relaxed) && self.hangup.as_ref().is_some_and(Hangup::has_come)
    }

    fn answer(&self, pieces: Pieces, holds: Holds) {
        // A connection that is gone is not waiting for it.
        let _ = self.replies.send(Reply { pieces, holds });
    }

    async fn carry_out(
        &self,
        request: &Request,
        at: Extent,
        data: Option<Bytes>,
    ) -> Result<Pieces, NbdError> {
        if let Some(data) = data {
            self.export.write(at.offset(), data, request.flags & flag::FUA != 0).await?;
            return Ok(reply::done(&self.agreed, request));
        }
        let descriptors_max = self.descriptors_max;
        // Boxed, so that the futures of the many writes are small.
        let rest =
            carry_out_without_payload(&*self.export, &self.agreed, request, at, descriptors_max);
        Box::pin(rest).await
    }
}

/// A request that was taken, and what came with it.
struct Taken {
    request: Request,
    at: Extent,
    data: Option<Bytes>,
    holds: Holds,
}

async fn carry_out_without_payload<X: Export>(
    export: &X,
    agreed: &Agreed,
    request: &Request,
    at: Extent,
    descriptors_max: usize,
) -> Result<Pieces, NbdError> {
    let has = |flag: u16| request.flags & flag != 0;
    let fua = has(flag::FUA);
    match request.command {
        Command::Read => return read(export, agreed, request, at).await,
        Command::BlockStatus => {
            let max = if has(flag::REQ_ONE) { 1 } else { descriptors_max };
            return block_status(export, agreed, request, at, max).await;
        }
        Command::Flush => export.flush().await?,
        Command::Trim => export.trim(at, fua).await?,
        Command::WriteZeroes => {
            let flags = ZeroFlags { no_hole: has(flag::NO_HOLE), fast: has(flag::FAST_ZERO), fua };
            export.write_zeroes(at, flags).await?;
        }
        Command::Cache => export.cache(at).await?,
        Command::Write | Command::Disconnect | Command::Unknown(_) => {
            return Err(NbdError::new(Errno::Invalid, "not a command to carry out"));
        }
    }
    Ok(reply::done(agreed, request))
}

async fn read<X: Export>(
    export: &X,
    agreed: &Agreed,
    request: &Request,
    at: Extent,
) -> Result<Pieces, NbdError> {
    let pieces = export.read(at).await?;
    if agreed.structured && request.flags & flag::DF == 0 {
        return Ok(reply::pieces(agreed, request, &pieces));
    }
    Ok(reply::unbroken(agreed, request, &pieces))
}

async fn block_status<X: Export>(
    export: &X,
    agreed: &Agreed,
    request: &Request,
    at: Extent,
    max: usize,
) -> Result<Pieces, NbdError> {
    // A compact reply has 32-bit lengths.
    let at = if agreed.extended {
        at
    } else {
        Extent::new(at.offset(), at.length().min(u64::from(u32::MAX)))
    };
    let mut status = Vec::new();
    for context in &agreed.contexts {
        let descriptors = export.block_status(at, *context, max).await?;
        status.push((*context, descriptors));
    }
    Ok(reply::block_status(agreed, request, &status))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::proto::request::HEADER;
    use crate::server::polling::Lookouts;

    #[tokio::test]
    async fn requests_in_pieces_of_any_length_do_not_grow_the_buffer() {
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&0x2560_9513u32.to_be_bytes());
        for piece in 1..=2 * HEADER {
            let (mut client, reader) = tokio::io::duplex(piece);
            let polling = Polling::new(Lookouts::new(), Duration::ZERO);
            let buffer = BytesMut::with_capacity(READ_AT_ONCE);
            let mut input = Input { reader, buffer, polling };
            let said = header.repeat(100);
            let saying = async move { client.write_all(&said).await.unwrap() };
            let hearing = async {
                for _ in 0..100 {
                    input.request(false, || true).await.unwrap().unwrap();
                }
                assert!(input.request(false, || true).await.unwrap().is_none());
            };
            tokio::join!(saying, hearing);
            input.make_room();
            assert_eq!(input.buffer.capacity(), READ_AT_ONCE, "pieces of {piece} bytes");
        }
    }
}
