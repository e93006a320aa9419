//! How a process asks the one that holds an image: a Unix socket, one request a connection, lines of JSON.
//!
//! The lock on an image is the truth about who holds it. The file `<image id>.holder` beside the live logs is only a hint where
//! that process listens; if it leads nowhere, the image is simply in use.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use vellum_core::{Extent, SnapshotName};
use vellum_engine::{Error, ErrorKind, ImageId, Result};
use vellum_image::{DiscardPolicy, FlattenOptions, Mapped, MappedKind};

use crate::vellum::{Located, flatten_with_progress};
use crate::{Catalog, Image};

/// The longest line either side takes.
const LINE_MAX: u64 = 4 << 20;
/// Entries of a map in one answer.
const ENTRIES_MAX: usize = 10_000;

/// A request and the image it is about.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) image: String,
    pub(crate) request: Request,
}

/// What the holder of an image can be asked to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Take a snapshot.
    Snapshot { name: String, auto: bool },
    /// Flatten, with progress.
    Flatten { copies: usize, bytes_per_second: Option<u64> },
    /// Discard.
    Discard { offset: u64, length: u64, to_parent: bool },
    /// Tell which layer defines what.
    Map { offset: u64 },
}

/// An answer. The last line of a connection is not a `Progress`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub(crate) enum Answer {
    Progress { done: u64, total: u64 },
    Done,
    Map { entries: Vec<Entry> },
    Failed { kind: String, message: String },
}

/// An entry of a map: offset, length, kind, depth.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Entry(u64, u64, u8, usize);

/// The hint that a holder leaves.
#[derive(Serialize, Deserialize)]
struct Hint {
    socket: PathBuf,
    pid: u32,
}

fn hint_path(catalog: &Catalog, image: &ImageId) -> PathBuf {
    catalog.live_dir().join(format!("{image}.holder"))
}

/// Leaves a hint where the holder of an image is asked.
pub(crate) fn leave_hint(catalog: &Catalog, image: &ImageId, socket: &Path) -> io::Result<()> {
    let hint = Hint { socket: socket.to_owned(), pid: std::process::id() };
    std::fs::write(hint_path(catalog, image), serde_json::to_vec(&hint).map_err(io::Error::from)?)
}

/// Takes the hint away.
pub(crate) fn remove_hint(catalog: &Catalog, image: &ImageId) {
    // A hint that stays leads nowhere, which is harmless.
    let _ = std::fs::remove_file(hint_path(catalog, image));
}

async fn connect(located: &Located, in_use: Error) -> Result<UnixStream> {
    let path = hint_path(&located.catalog, &located.record.id);
    // A few dozen bytes, on the way to asking somebody else: not worth a thread.
    let Ok(bytes) = std::fs::read(&path) else { return Err(in_use) };
    let Ok(hint) = serde_json::from_slice::<Hint>(&bytes) else { return Err(in_use) };
    let connected = UnixStream::connect(&hint.socket).await;
    connected.map_err(|error| {
        in_use.context(format!(
            "{} is held by process {}, which cannot be asked ({error})",
            located.record.name, hint.pid
        ))
    })
}

/// Asks the holder of an image to do something. `in_use` is the error if there is no holder to ask.
pub(crate) async fn ask(
    located: &Located,
    request: Request,
    in_use: Error,
    progress: impl Fn(u64, u64),
) -> Result<()> {
    match exchange(located, request, in_use, progress).await? {
        Answer::Failed { kind, message } => Err(Error::new(kind_named(&kind), message)),
        _ => Ok(()),
    }
}

/// Asks the holder of an image for its map.
pub(crate) async fn ask_map(located: &Located, in_use: &Error) -> Result<Vec<Mapped>> {
    let mut map: Vec<Mapped> = Vec::new();
    let size = located.record.size();
    loop {
        let offset = map.last().map_or(0, |entry| entry.at.end());
        if offset >= size {
            return Ok(map);
        }
        match exchange(located, Request::Map { offset }, in_use.clone(), |_, _| {}).await? {
            Answer::Map { entries } if !entries.is_empty() => {
                for entry in entries {
                    map.push(mapped(entry)?);
                }
            }
            Answer::Failed { kind, message } => return Err(Error::new(kind_named(&kind), message)),
            _ => return Err(nonsense()),
        }
    }
}

fn mapped(Entry(offset, length, kind, depth): Entry) -> Result<Mapped> {
    let at = Extent::checked(offset, length).ok_or_else(nonsense)?;
    let kind = match kind {
        0 => MappedKind::Nothing,
        1 => MappedKind::Data,
        2 => MappedKind::Zero,
        _ => return Err(nonsense()),
    };
    Ok(Mapped { at, kind, depth })
}

fn nonsense() -> Error {
    Error::new(
        ErrorKind::Io,
        "the process that holds the image answers something that makes no sense",
    )
}

async fn exchange(
    located: &Located,
    request: Request,
    in_use: Error,
    progress: impl Fn(u64, u64),
) -> Result<Answer> {
    let mut stream = connect(located, in_use).await?;
    let broken = |error| Error::io("ask the process that holds the image", error).maybe_done();
    let asked = Asked { image: located.record.id.to_string(), request };
    let mut line = serde_json::to_vec(&asked).map_err(|error| broken(error.into()))?;
    line.push(b'\n');
    stream.write_all(&line).await.map_err(broken)?;
    let mut lines = BufReader::new(stream);
    loop {
        let line = read_line(&mut lines).await.map_err(broken)?;
        match serde_json::from_slice(&line).map_err(|error| broken(error.into()))? {
            Answer::Progress { done, total } => progress(done, total),
            answer => return Ok(answer),
        }
    }
}

async fn read_line(reader: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    reader.take(LINE_MAX).read_until(b'\n', &mut line).await?;
    if line.last() != Some(&b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line)
}

/// Answers one connection: finds the image with `find`, does what is asked, and says how it went.
pub(crate) async fn answer<F, I>(stream: UnixStream, find: F) -> io::Result<()>
where
    F: AsyncFnOnce(&str) -> Option<(Image, I)>,
{
    let (reader, mut writer) = stream.into_split();
    let line = read_line(&mut BufReader::new(reader)).await?;
    let asked: Asked = serde_json::from_slice(&line)?;
    // What keeps the image held is kept until the answer is written.
    let found = find(&asked.image).await;
    let answer = match &found {
        None => Err(Error::new(
            ErrorKind::InUse,
            "the image is not held by this process any more; try again",
        )),
        Some((image, _held)) => {
            let (send, mut progress) = tokio::sync::mpsc::channel(1);
            let work = carry_out(image, asked.request, send);
            tokio::pin!(work);
            loop {
                tokio::select! {
                    result = &mut work => break result,
                    Some(event) = progress.recv() => say(&mut writer, &event).await?,
                }
            }
        }
    };
    let answer = answer.unwrap_or_else(|error| Answer::Failed {
        kind: format!("{:?}", error.kind()),
        message: error.chain(),
    });
    say(&mut writer, &answer).await
}

async fn say(writer: &mut (impl AsyncWriteExt + Unpin), answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    writer.write_all(&line).await
}

async fn carry_out(
    image: &Image,
    request: Request,
    progress: tokio::sync::mpsc::Sender<Answer>,
) -> Result<Answer> {
    match request {
        Request::Snapshot { name, auto } => {
            let name = SnapshotName::new(&name)
                .map_err(|error| Error::new(ErrorKind::Invalid, error.to_string()))?;
            image.snapshot(name, auto).await?;
        }
        Request::Flatten { copies, bytes_per_second } => {
            let options = FlattenOptions { copies: copies.clamp(1, 64), bytes_per_second };
            // Progress that nobody takes is not waited for.
            let tell = |done, total| drop(progress.try_send(Answer::Progress { done, total }));
            flatten_with_progress(image, options, tell).await?;
        }
        Request::Discard { offset, length, to_parent } => {
            let at = Extent::checked(offset, length)
                .ok_or_else(|| Error::new(ErrorKind::Invalid, "the end of the extent overflows"))?;
            let policy = if to_parent { DiscardPolicy::Inherit } else { DiscardPolicy::Zero };
            image.discard(at, policy, true).await?;
        }
        Request::Map { offset } => {
            let map = image.map(Extent::between(offset, image.size()), ENTRIES_MAX).await?;
            let entries = map.iter().map(|entry| {
                let kind = match entry.kind {
                    MappedKind::Nothing => 0,
                    MappedKind::Data => 1,
                    MappedKind::Zero => 2,
                };
                Entry(entry.at.offset(), entry.at.length(), kind, entry.depth)
            });
            return Ok(Answer::Map { entries: entries.collect() });
        }
    }
    Ok(Answer::Done)
}

/// The kinds of errors by the names they have on the wire.
const KINDS: &[ErrorKind] = &[
    ErrorKind::NotFound,
    ErrorKind::Exists,
    ErrorKind::InUse,
    ErrorKind::HasChildren,
    ErrorKind::Invalid,
    ErrorKind::Unsupported,
    ErrorKind::ReadOnly,
    ErrorKind::NoSpace,
    ErrorKind::Corrupt,
    ErrorKind::Poisoned,
    ErrorKind::OwnershipLost,
    ErrorKind::Conflict,
    ErrorKind::Busy,
    ErrorKind::Stopped,
    ErrorKind::Io,
];

fn kind_named(name: &str) -> ErrorKind {
    KINDS.iter().find(|kind| format!("{kind:?}") == name).copied().unwrap_or(ErrorKind::Io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_are_what_the_other_side_reads() {
        let asked = Asked {
            image: "a1".into(),
            request: Request::Snapshot { name: "s".into(), auto: false },
        };
        let text = serde_json::to_string(&asked).unwrap();
        assert_eq!(text, r#"{"image":"a1","request":{"do":"snapshot","name":"s","auto":false}}"#);
        assert_eq!(serde_json::from_str::<Asked>(&text).unwrap(), asked);
        let answer = Answer::Map { entries: vec![Entry(0, 4096, 1, 2)] };
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            r#"{"is":"map","entries":[[0,4096,1,2]]}"#
        );
    }

    #[test]
    fn kinds_of_errors_survive_the_wire() {
        for kind in KINDS {
            assert_eq!(kind_named(&format!("{kind:?}")), *kind);
        }
        assert_eq!(kind_named("Nonsense"), ErrorKind::Io);
    }
}
