//! Asking the holder of an image.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use vellum_engine::{Catalog, Error, Result};

use crate::control::hint::{self, Hint};
use crate::control::protocol::{ANSWER_MAX, Answer, Asked, Request, VERSION, error_of};
use crate::control::socket;
use crate::vellum::Located;

/// What came of asking.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The holder answered; its errors are errors of the operation.
    Answered(Result<Answer>),
    /// There is no hint, or nobody answers where it leads; why, if that is known.
    Unreachable(Option<(Hint, io::Error)>),
    /// Whoever answered does not hold the image.
    NotHeld,
}

/// Asks the holder of an image to do something.
pub(crate) async fn ask(
    located: &Located,
    request: &Request,
    progress: impl Fn(u64, u64),
) -> Outcome {
    let Some(hint) = hint::find(&located.catalog, &located.record.id) else {
        return Outcome::Unreachable(None);
    };
    let stream = match socket::connect(&hint.socket).await {
        Ok(stream) => stream,
        Err(error) => return Outcome::Unreachable(Some((hint, error))),
    };
    let asked = Asked {
        version: VERSION,
        pool: located.catalog.pool().to_string(),
        image: located.record.id.to_string(),
        request: request.clone(),
    };
    match exchange(stream, &asked, progress).await {
        Ok(Answer::NotHeld) => Outcome::NotHeld,
        Ok(Answer::Failed { kind, maybe_done, message }) => {
            Outcome::Answered(Err(error_of(&kind, maybe_done, message)))
        }
        Ok(answer) => Outcome::Answered(Ok(answer)),
        Err(error) => {
            let what =
                format!("ask process {}, which holds image {}", hint.pid, located.record.name);
            Outcome::Answered(Err(Error::io(what, error).maybe_done()))
        }
    }
}

async fn exchange(
    mut stream: tokio::net::UnixStream,
    asked: &Asked,
    progress: impl Fn(u64, u64),
) -> io::Result<Answer> {
    let mut line = serde_json::to_vec(asked)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answers = BufReader::new(stream);
    loop {
        match serde_json::from_slice(&read_line(&mut answers, ANSWER_MAX).await?)? {
            Answer::Progress { done, total } => progress(done, total),
            answer => return Ok(answer),
        }
    }
}

/// A line of at most so many bytes, with its end.
pub(super) async fn read_line(
    reader: &mut (impl AsyncBufReadExt + Unpin),
    max: u64,
) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    reader.take(max).read_until(b'\n', &mut line).await?;
    if line.last() != Some(&b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}
