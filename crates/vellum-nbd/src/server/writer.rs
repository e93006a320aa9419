//! The task that writes replies: all that are ready, in one system call.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

use crate::proto::reply::Pieces;
use crate::server::room::{Reserved, Room, Watch};

/// Replies taken at once.
const BATCH: usize = 64;
/// Pieces in one system call; the kernel takes 1,024.
const SLICES_MAX: usize = 256;

/// A reply, and what it holds until it is sent: its place among the connection's requests, and its payload's memory. Because of
/// them the queue needs no limit of its own.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) pieces: Pieces,
    #[expect(dead_code, reason = "what it holds is given back when it is dropped")]
    pub(super) holds: Holds,
}

/// Permits that go back when the reply is sent.
#[derive(Debug, Default)]
pub(super) struct Holds {
    #[expect(dead_code, reason = "given back when it is dropped")]
    pub(super) request: Option<OwnedSemaphorePermit>,
    pub(super) bytes: Option<Reserved>,
}

/// Writes replies until nobody can send one any more. After an error it says that the client is `gone`, and goes on taking them,
/// so that their permits return.
pub(super) async fn write_replies(
    mut writer: impl AsyncWrite + Unpin,
    mut replies: UnboundedReceiver<Reply>,
    room: Arc<Room>,
    gone: CancellationToken,
) -> io::Result<()> {
    let mut batch = Vec::with_capacity(BATCH);
    let mut result = Ok(());
    while replies.recv_many(&mut batch, BATCH).await > 0 {
        if result.is_ok() {
            let pieces = batch.iter_mut().flat_map(|reply| reply.pieces.drain(..)).collect();
            result = write_all(&mut writer, pieces, room.watch()).await;
            if result.is_err() {
                gone.cancel();
            }
        }
        batch.clear();
    }
    let _ = writer.shutdown().await;
    result
}

async fn write_all(
    writer: &mut (impl AsyncWrite + Unpin),
    mut pieces: VecDeque<Bytes>,
    mut watch: Watch<'_>,
) -> io::Result<()> {
    while !pieces.is_empty() {
        let slices: Vec<IoSlice<'_>> =
            pieces.iter().take(SLICES_MAX).map(|piece| IoSlice::new(piece)).collect();
        let mut written = watch.step(writer.write_vectored(&slices)).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while let Some(first) = pieces.front_mut() {
            if first.len() > written {
                first.advance(written);
                break;
            }
            written -= first.len();
            pieces.pop_front();
        }
    }
    Ok(())
}
