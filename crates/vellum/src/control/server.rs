//! Answering those who ask about the images that this process holds.
//!
//! Whoever can connect is the same user, but may be of another version, stopped in the middle of a line, or gone: lines, times
//! and connections have limits, and nothing that was begun depends on the other side but a flatten, which ends with it. While
//! something is being done, the other side is told every few seconds that it is, so that it can tell work from a hang.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use vellum_engine::{Error, ErrorKind, Result};

use crate::control::client::read_line;
use crate::control::operation::carry_out;
use crate::control::protocol::{Answer, Asked, REQUEST_MAX, Request, VERSION};
use crate::control::stopped;
use crate::exports::ImageExports;

/// Connections at once, but for flattens; more wait to be accepted.
const CONNECTIONS_MAX: usize = 64;
/// Flattens for others at once. They may take days, and are counted apart, so that they keep nobody else waiting.
const FLATTENS_MAX: usize = 64;
/// How long a request may take to arrive.
const REQUEST_WAIT: Duration = Duration::from_secs(10);
/// How often whoever asked is told that work goes on.
const ALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// How long an answer may take to be taken.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// How long to wait after the system refused a connection, for want of descriptors, say.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// Answers until it is aborted.
pub(crate) async fn serve(listener: UnixListener, exports: ImageExports) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let flattens = Arc::new(Semaphore::new(FLATTENS_MAX));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (exports, flattens) = (exports.clone(), flattens.clone());
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &exports, permit, flattens).await {
                        tracing::debug!(%error, "a request of another process broke off");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the control socket");
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
        }
    }
}

pub(crate) async fn answer(
    stream: UnixStream,
    exports: &ImageExports,
    permit: OwnedSemaphorePermit,
    flattens: Arc<Semaphore>,
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let line = tokio::time::timeout(REQUEST_WAIT, read_line(&mut reader, REQUEST_MAX)).await??;
    let asked: Asked = serde_json::from_slice(&line)?;
    let answer = if matches!(asked.request, Request::Flatten { .. }) {
        let _counted = match flattens.try_acquire_owned() {
            Ok(counted) => counted,
            Err(_) => return say(&mut writer, &Answer::failed(&too_many_flattens())).await,
        };
        drop(permit);
        tokio::select! {
            answer = do_as_asked(&asked, exports, &mut writer) => answer,
            // Nothing more is to come: this ends when the other side has gone.
            _ = reader.read_u8() => return Ok(()),
        }
    } else {
        do_as_asked(&asked, exports, &mut writer).await
    };
    say(&mut writer, &answer.unwrap_or_else(|error| Answer::failed(&error))).await
}

fn too_many_flattens() -> Error {
    let what = format!(
        "the process that holds the image flattens {FLATTENS_MAX} images already; try again when one has ended"
    );
    Error::new(ErrorKind::Busy, what)
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
    let tell = |done, total| {
        let _ = events.try_send((done, total));
    };
    let work = carry_out(&image, &asked.request, tell, std::future::pending());
    tokio::pin!(work);
    let (mut done, mut total) = (0, 0);
    let mut is_heard = true;
    loop {
        tokio::select! {
            result = &mut work => return result,
            Some(now) = progress.recv() => (done, total) = now,
            () = tokio::time::sleep(ALIVE_INTERVAL) => {}
        }
        // One who has hung up is found out by the reader's side; one who takes nothing is not waited for a second time.
        is_heard = is_heard && say(writer, &Answer::Progress { done, total }).await.is_ok();
        if !is_heard && matches!(asked.request, Request::Flatten { .. }) {
            return Err(stopped());
        }
    }
}

/// Sends an answer. `TimedOut` if nobody takes it.
async fn say(writer: &mut OwnedWriteHalf, answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    tokio::time::timeout(ANSWER_WAIT, writer.write_all(&line)).await?
}
