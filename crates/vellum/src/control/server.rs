//! Answering those who ask about the images that this process holds.
//!
//! Whoever can connect is the same user, but may be of another version, stopped in the middle of a line, or gone: lines, times
//! and connections have limits, and nothing that was begun depends on the other side but a flatten, which ends with it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use vellum_engine::{Error, ErrorKind, Result};

use crate::control::client::read_line;
use crate::control::operation::carry_out;
use crate::control::protocol::{Answer, Asked, REQUEST_MAX, Request, VERSION};
use crate::exports::ImageExports;

/// Connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// How long a request may take to arrive.
const REQUEST_WAIT: Duration = Duration::from_secs(10);
/// How long to wait after the system refused a connection, for want of descriptors, say.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// Answers until it is aborted.
pub(crate) async fn serve(listener: UnixListener, exports: ImageExports) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let exports = exports.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &exports).await {
                        tracing::debug!(%error, "a request of another process broke off");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the control socket");
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, exports: &ImageExports) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let line = tokio::time::timeout(REQUEST_WAIT, read_line(&mut reader, REQUEST_MAX)).await??;
    let asked: Asked = serde_json::from_slice(&line)?;
    let work = do_as_asked(&asked, exports, &mut writer);
    let answer = if matches!(asked.request, Request::Flatten { .. }) {
        tokio::select! {
            answer = work => answer,
            // Nothing more is to come: this ends when the other side has gone.
            _ = reader.read_u8() => return Ok(()),
        }
    } else {
        work.await
    };
    say(&mut writer, &answer.unwrap_or_else(|error| Answer::failed(&error))).await
}

async fn do_as_asked(
    asked: &Asked,
    exports: &ImageExports,
    writer: &mut OwnedWriteHalf,
) -> Result<Answer> {
    if asked.version != VERSION {
        let what = format!(
            "the process that holds the image speaks version {VERSION} of the control protocol, not {}; restart it",
            asked.version
        );
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    if asked.request == Request::Status {
        return Ok(exports
            .clients(&asked.pool, &asked.image)
            .map_or(Answer::NotHeld, |clients| Answer::Status { clients }));
    }
    // What keeps the image held is kept until the work is done.
    let Some((image, _user)) = exports.held(&asked.pool, &asked.image) else {
        return Ok(Answer::NotHeld);
    };
    let (events, mut progress) = mpsc::channel(1);
    // Progress that nobody takes is not waited for.
    let tell = |done, total| drop(events.try_send(Answer::Progress { done, total }));
    let work = carry_out(&image, &asked.request, tell);
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return result,
            // One who does not listen any more is found out by the reader's side.
            Some(event) = progress.recv() => drop(say(writer, &event).await),
        }
    }
}

async fn say(writer: &mut OwnedWriteHalf, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    writer.write_all(&line).await
}
