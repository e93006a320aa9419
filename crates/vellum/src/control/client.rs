//! Asking the holder of an image.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use vellum_engine::{Catalog, Error, ErrorKind, Result};

use crate::control::hint::{self, Hint};
use crate::control::protocol::{ANSWER_MAX, Answer, Asked, Request, VERSION, error_of};
use crate::control::socket;
use crate::vellum::Located;

/// How long the holder may be silent. While it works it says so every second or two.
const ANSWER_WAIT: Duration = Duration::from_secs(20);

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
    let Some(hint) = hint::find(&located.hints, &located.record.id) else {
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
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            Outcome::Answered(Err(silent(&hint, &located.record.name)))
        }
        Err(error) => {
            let what =
                format!("ask process {}, which holds image {}", hint.pid, located.record.name);
            Outcome::Answered(Err(Error::io(what, error).maybe_done()))
        }
    }
}

fn silent(hint: &Hint, image: &vellum_core::ImageName) -> Error {
    let what = format!(
        "process {}, which holds image {image}, has said nothing for {ANSWER_WAIT:?}; it was stopped or hangs: let it go on, and it may still do what it was asked, or kill it, which loses nothing that was acknowledged",
        hint.pid
    );
    Error::new(ErrorKind::InUse, what).maybe_done()
}

/// Asks, and takes answers until the last one. `TimedOut` if the other side is silent for too long.
pub(crate) async fn exchange(
    mut stream: tokio::net::UnixStream,
    asked: &Asked,
    progress: impl Fn(u64, u64),
) -> io::Result<Answer> {
    let mut line = serde_json::to_vec(asked)?;
    line.push(b'\n');
    tokio::time::timeout(ANSWER_WAIT, stream.write_all(&line)).await??;
    let mut answers = BufReader::new(stream);
    loop {
        let line = tokio::time::timeout(ANSWER_WAIT, read_line(&mut answers, ANSWER_MAX)).await??;
        match serde_json::from_slice(&line)? {
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
        // Not that of a file, which would be damage.
        return Err(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "the process at the other end closed the connection, or said too much at once; if it has ended, start it again",
        ));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    fn asked() -> Asked {
        let (pool, image) = ("p".to_owned(), "i".to_owned());
        Asked { version: VERSION, pool, image, request: Request::Sync }
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_says_nothing_is_not_waited_for_for_ever() {
        let (here, _there) = UnixStream::pair().unwrap();
        let error = exchange(here, &asked(), |_, _| {}).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let hint = Hint { socket: "/s".into(), pid: 4711 };
        let error = silent(&hint, &"gold".parse().unwrap());
        assert!(error.chain().contains("4711") && error.chain().contains("gold"), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_works_for_long_and_says_so_is_waited_for() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let working = tokio::spawn(async move {
            for _ in 0..100 {
                tokio::time::sleep(ANSWER_WAIT / 2).await;
                there.write_all(b"{\"is\":\"progress\",\"done\":0,\"total\":0}\n").await.unwrap();
            }
            there.write_all(b"{\"is\":\"done\"}\n").await.unwrap();
            there
        });
        assert_eq!(exchange(here, &asked(), |_, _| {}).await.unwrap(), Answer::Done);
        working.await.unwrap();
    }
}
