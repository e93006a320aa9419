//! Who holds an image, and how an operation reaches it wherever it is open.

use std::time::{Duration, Instant};

use vellum_engine::{Catalog as _, ErrorKind, Heeded, Progress, Result};
use vellum_image::image::Open;

use crate::control::hint::Hint;
use crate::control::operation::carry_out;
use crate::control::protocol::nonsense;
use crate::control::{Answer, Outcome, Request, ask, stopped};
use crate::vellum::Located;
use crate::{Image, Vellum};

/// How long an image may be in use by somebody who cannot be asked before that is an error. Most who hold an image do so for a
/// moment: another operation, or a server after its last client. It is longer than a machine under load takes for many such
/// moments, since nobody is next in a queue here.
const PATIENCE: Duration = Duration::from_secs(10);
/// Whoever took longer than this to say that it cannot do something had begun it.
const ASKED_LONG: Duration = Duration::from_secs(7);
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Who holds an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// Its process id, which means something in its own container only.
    pub pid: u32,
    /// How many clients use the image through it.
    pub clients: usize,
}

impl Vellum {
    /// The server that holds an image, if there is one and it can be asked.
    pub async fn holder(&self, located: &Located) -> Option<Holder> {
        let hint = crate::control::hint::find(&located.hints, &located.record.id)?;
        match ask(located, &Request::Status, |_, _| {}).await {
            Outcome::Answered(Ok(Answer::Status { clients })) => {
                Some(Holder { pid: hint.pid, clients })
            }
            _ => None,
        }
    }

    /// Opens what was located. An image that somebody has open for a moment is waited for; one that clients use is `InUse`.
    pub async fn open_located(&self, located: &Located, what: Open) -> Result<Image> {
        let mut patience = Patience::new();
        loop {
            let in_use = match self.try_open(located, what.clone()).await {
                Err(error) if error.kind() == ErrorKind::InUse => error,
                result => return result,
            };
            if let Some(Holder { pid, clients }) =
                self.holder(located).await.filter(|holder| holder.clients > 0)
            {
                let name = &located.record.name;
                return Err(in_use
                    .context(format!("process {pid} serves image {name} to {clients} clients")));
            }
            if !patience.wait().await {
                return Err(in_use);
            }
        }
    }

    /// Does something to an image: at the process that holds it, or here, where it is opened for this alone.
    pub(crate) async fn at_holder(
        &self,
        located: &Located,
        request: Request,
        progress: impl Fn(u64, u64) + Send + Sync,
    ) -> Result<Answer> {
        self.at_holder_until(located, request, progress, std::future::pending()).await
    }

    /// As [`at_holder`](Self::at_holder), but a flatten ends with `Stopped` soon after `stop` does.
    pub(crate) async fn at_holder_until(
        &self,
        located: &Located,
        request: Request,
        progress: impl Fn(u64, u64) + Send + Sync,
        stop: impl Future<Output = ()>,
    ) -> Result<Answer> {
        let what = if request.changes() { Open::Own } else { Open::Read };
        tokio::pin!(stop);
        let mut patience = Patience::new();
        loop {
            let in_use = match self.try_open(located, what.clone()).await {
                Ok(image) => {
                    let done = Box::pin(carry_out(&image, &request, &progress, stop)).await;
                    let closed = image.close().await;
                    return done.and_then(|answer| closed.map(|()| answer));
                }
                Err(error) if error.kind() == ErrorKind::InUse => error,
                Err(error) => return Err(error),
            };
            let outcome = tokio::select! {
                outcome = ask(located, &request, &progress) => outcome,
                // The holder stops when it is hung up on.
                () = &mut stop => return Err(stopped()),
            };
            let unreachable = match outcome {
                Outcome::Answered(result) => return result,
                Outcome::Unreachable(why) => why,
                Outcome::NotHeld => None,
            };
            // Or by another machine, or another program.
            let asked_for = Instant::now();
            let asked = Box::pin(self.ask_through_storage(located, &request, &progress));
            let heeded = tokio::select! {
                heeded = asked => heeded?,
                () = &mut stop => return Err(stopped()),
            };
            if heeded == Heeded::Done {
                return Ok(Answer::Done);
            }
            if asked_for.elapsed() > ASKED_LONG {
                // Whoever was asked had it for a while, and has given it up.
                patience = Patience::new();
            }
            if !patience.wait().await {
                return Err(match unreachable {
                    Some((Hint { pid, .. }, error)) => in_use.context(format!(
                        "process {pid} held image {} last, and cannot be asked ({error})",
                        located.record.name
                    )),
                    None => in_use,
                });
            }
        }
    }

    async fn ask_through_storage(
        &self,
        located: &Located,
        request: &Request,
        progress: Progress<'_>,
    ) -> Result<Heeded> {
        match request.wanted()? {
            Some(wanted) => located.catalog.ask_owner(&located.record.id, wanted, progress).await,
            None => Ok(Heeded::ByNobody),
        }
    }

    /// As [`at_holder`](Self::at_holder), for what is only done or not.
    pub(crate) async fn do_at_holder(&self, located: &Located, request: Request) -> Result<()> {
        match self.at_holder(located, request, |_, _| {}).await? {
            Answer::Done => Ok(()),
            _ => Err(nonsense()),
        }
    }

    async fn try_open(&self, located: &Located, what: Open) -> Result<Image> {
        let pools = self.all_pools().await?;
        let (catalog, id) = (&located.catalog, &located.record.id);
        Image::open(pools, catalog, id, what, self.image_options()).await
    }
}

/// Waits longer from time to time, and then no more.
pub(crate) struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self { until: Instant::now() + PATIENCE, pause: FIRST_PAUSE }
    }

    /// Waits a little; `false` if it has waited enough.
    pub(crate) async fn wait(&mut self) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        true
    }
}
