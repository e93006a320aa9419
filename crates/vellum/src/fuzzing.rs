//! A narrow door for the fuzz targets, behind the feature `fuzzing`: what this crate reads that somebody else wrote, and both
//! ends of the control protocol against a stranger. Not part of the library.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use crate::control::hint::Hint;
use crate::control::protocol::{Answer, Asked, Request, VERSION};
use crate::control::{exchange, server};
use crate::exports::{ExportOptions, ImageExports};
use crate::{HomeOptions, Result, Vellum, home};

/// A `vellum.toml`, as it is understood, written again; `None` if it is not.
pub fn config_again(text: &str) -> Option<String> {
    home::config_again(text)
}

/// A request over a control socket, as it is understood, written again; `None` if it is not.
pub fn request_again(line: &[u8]) -> Option<Vec<u8>> {
    json_again::<Asked>(line)
}

/// An answer over a control socket, likewise.
pub fn answer_again(line: &[u8]) -> Option<Vec<u8>> {
    json_again::<Answer>(line)
}

/// A hint where a holder is, likewise.
pub fn hint_again(bytes: &[u8]) -> Option<Vec<u8>> {
    json_again::<Hint>(bytes)
}

/// Whether an answer says that work goes on, and another one follows.
pub fn is_progress(line: &[u8]) -> bool {
    matches!(serde_json::from_slice(line), Ok(Answer::Progress { .. }))
}

fn json_again<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Option<Vec<u8>> {
    let understood: T = serde_json::from_slice(bytes).ok()?;
    Some(serde_json::to_vec(&understood).expect("what was read can be written"))
}

/// Asks a holder that says these bytes and hangs up. Its answer, written again.
pub async fn ask(says: &[u8]) -> io::Result<Vec<u8>> {
    let (here, mut there) = UnixStream::pair()?;
    let (pool, image) = ("p".to_owned(), "i".to_owned());
    let asked = Asked { version: VERSION, pool, image, request: Request::Sync };
    // What does not fit into the socket is not said any more once nobody listens.
    let holder = async {
        let _ = there.write_all(says).await;
        drop(there);
    };
    let (answer, ()) = tokio::join!(exchange(here, &asked, |_, _| {}), holder);
    Ok(serde_json::to_vec(&answer?)?)
}

/// A process that can be asked, and holds no image.
#[derive(Debug)]
pub struct Holder(ImageExports);

impl Holder {
    /// In this home, which is not looked at.
    pub async fn new(home: &Path) -> Result<Self> {
        let vellum = Vellum::open(HomeOptions { home: Some(home.to_owned()) }).await?;
        let (specs, control) = (Vec::new(), home.join("control"));
        let options = ExportOptions { specs, read_only: false, grace: Duration::ZERO, control };
        Ok(Self(ImageExports::new(vellum, options)))
    }

    /// What it says to somebody who says these bytes and no more. An error if it hangs up on them.
    pub async fn asked(&self, says: &[u8]) -> io::Result<Vec<u8>> {
        let (here, there) = UnixStream::pair()?;
        let permit = Arc::new(Semaphore::new(1)).acquire_owned().await.map_err(io::Error::other)?;
        let (mut reader, mut writer) = here.into_split();
        let mut heard = Vec::new();
        let stranger = async {
            let _ = writer.write_all(says).await;
            drop(writer);
            let _ = reader.read_to_end(&mut heard).await;
        };
        let answering = server::answer(there, &self.0, permit, Arc::new(Semaphore::new(1)));
        let (answered, ()) = tokio::join!(answering, stranger);
        answered.map(|()| heard)
    }
}
