//! Asking who holds the lock of an image to do something, and waiting until it is done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use vellum_core::SnapshotName;
use vellum_engine::{Error, ErrorKind, Heeded, ImageId, Progress, Result, Wanted};
use vellum_rados::Objects;
use vellum_rbd::notify::{Ask, ClientId, Message, RequestId};
use vellum_rbd::records::Purpose;

use crate::asked::{LATER, LATER_PAUSE, error_of};
use crate::described::text;
use crate::header::change_header;
use crate::keys;
use crate::watched::Watched;

/// How long somebody is asked again who says that it is not the time.
const PATIENCE: Duration = Duration::from_secs(5);
/// After so much silence whoever has accepted something is asked again, by the same number.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How often.
const SILENCES_MAX: u32 = 2;

/// What was asked by this process.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// What is heard of something that was asked.
#[derive(Clone, Copy, Debug)]
enum News {
    Progress(u64, u64),
    Complete(i32),
    /// Somebody else may have the image now.
    AnotherOwner(ClientId),
}

/// What this client has asked, and waits for.
#[derive(Debug, Default)]
pub(crate) struct Asking {
    waiting: BTreeMap<u64, mpsc::UnboundedSender<News>>,
}

impl Asking {
    /// Takes note of what is said to all.
    pub(crate) fn hear(&self, message: &Message, me: ClientId) {
        let about = |request: &RequestId| {
            self.waiting.get(&request.number).filter(|_| request.from.client == me.client)
        };
        // Whoever has stopped waiting for it hears nothing.
        match message {
            Message::Complete { request, result } => {
                let _ = about(request).map(|who| who.send(News::Complete(*result)));
            }
            Message::Progress { request, done, all } => {
                let _ = about(request).map(|who| who.send(News::Progress(*done, *all)));
            }
            Message::Acquired(by) if *by != me => {
                for who in self.waiting.values() {
                    let _ = who.send(News::AnotherOwner(*by));
                }
            }
            _ => {}
        }
    }
}

/// Something that was asked; forgotten when this is dropped.
struct Waiting<'a, O: Objects> {
    image: &'a Watched<O>,
    id: RequestId,
    news: mpsc::UnboundedReceiver<News>,
}

impl<'a, O: Objects> Waiting<'a, O> {
    fn begin(image: &'a Watched<O>) -> Self {
        let (sender, news) = mpsc::unbounded_channel();
        let from = image.me();
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        image.asking().waiting.insert(number, sender);
        Self { image, id: RequestId { from, number }, news }
    }

    /// Waits until it is done. `None` if it is to be asked again.
    async fn done(&mut self, by: ClientId, progress: Progress<'_>) -> Option<i32> {
        loop {
            match tokio::time::timeout(SILENCE_MAX, self.news.recv()).await {
                Ok(Some(News::Progress(done, total))) => progress(done, total),
                Ok(Some(News::Complete(code))) => return Some(code),
                // Of what was heard before this one was asked.
                Ok(Some(News::AnotherOwner(other))) if other == by => {}
                Ok(Some(News::AnotherOwner(_)) | None) | Err(_) => return self.completed(),
            }
        }
    }

    /// What has been heard already.
    fn completed(&mut self) -> Option<i32> {
        while let Ok(news) = self.news.try_recv() {
            if let News::Complete(code) = news {
                return Some(code);
            }
        }
        None
    }
}

impl<O: Objects> Drop for Waiting<'_, O> {
    fn drop(&mut self) {
        self.image.asking().waiting.remove(&self.id.number);
    }
}

/// Asks whoever holds the lock of an image.
pub(crate) async fn ask_owner<O: Objects>(
    objects: &O,
    image: &Arc<Watched<O>>,
    id: &ImageId,
    wanted: Wanted,
    progress: Progress<'_>,
) -> Result<Heeded> {
    match wanted {
        Wanted::Flatten => ask(image, Ask::Flatten, progress).await,
        Wanted::Snapshot { name, auto } => {
            let (ceph_name, purpose) = (text(name.as_str()), Purpose::User);
            let create = Ask::CreateSnapshot { name: ceph_name, purpose, flags: 0 };
            let heeded = ask(image, create, progress).await?;
            if heeded == Heeded::Done && auto {
                goes_with_its_last_child(objects, id, &name).await?;
            }
            Ok(heeded)
        }
        // Nobody needs to be asked for a change of the record, and the ownership is taken, not asked for.
        Wanted::Change(_) | Wanted::Ownership(_) | Wanted::Free => Ok(Heeded::ByNobody),
    }
}

async fn ask<O: Objects>(
    image: &Arc<Watched<O>>,
    ask: Ask,
    progress: Progress<'_>,
) -> Result<Heeded> {
    let mut waiting = Waiting::begin(image);
    let mut until = Instant::now() + PATIENCE;
    let mut silences = 0;
    loop {
        let heard = image.tell(&Message::Asked(ask.clone(), waiting.id)).await?;
        let answer = heard.answer().map_err(|why| {
            let what = format!("what who has image {} answers", image.id());
            Error::new(ErrorKind::Io, what).with_source(why)
        })?;
        let by = heard.answers.iter().find(|(_, said)| !said.0.is_empty()).map(|(by, _)| *by);
        let code = match (answer.map(|answer| answer.0), by) {
            (Some(0), Some(by)) => {
                let done = waiting.done(by, progress).await;
                until = Instant::now() + PATIENCE;
                silences += u32::from(done.is_none());
                done.unwrap_or(LATER)
            }
            (Some(code), _) => code,
            // Whoever has it may be slow.
            (None, _) if !heard.silent.is_empty() => LATER,
            (None, _) => return Ok(Heeded::ByNobody),
        };
        if silences > SILENCES_MAX {
            let what = format!(
                "whoever has image {} took it on, and does not say what came of it",
                image.id()
            );
            return Err(Error::new(ErrorKind::Io, what).maybe_done());
        }
        match code {
            0 => return Ok(Heeded::Done),
            LATER if Instant::now() < until => tokio::time::sleep(LATER_PAUSE).await,
            LATER => return Ok(Heeded::ByNobody),
            code => return Err(error_of(code, image.id())),
        }
    }
}

/// Whoever made a snapshot for somebody else does not know that it goes with its last child.
async fn goes_with_its_last_child<O: Objects>(
    objects: &O,
    id: &ImageId,
    name: &SnapshotName,
) -> Result<()> {
    let doing = || format!("note that snapshot {name} of image {id} was taken for a moment");
    let changed = change_header(
        objects,
        id,
        |now, op| Ok(now.snapshot_named(name).map(|number| op.set_omap(keys::auto(number), ""))),
        doing,
    );
    changed.await.map(drop)
}
