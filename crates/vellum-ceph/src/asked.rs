//! What other clients ask of who holds the lock of an image, and how they are told what came of it.
//!
//! A question is acknowledged at once, with whether it will be done; what takes longer is told of later, by a message of its own.
//! Whoever hears no answer, or that it is not the time, asks again, under the same number; so what was asked is remembered until
//! they have heard what came of it, and done once. No longer: the numbers of a client begin anew with each watch, and a watch may be
//! called what an earlier one was called.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use vellum_core::{ImageName, SnapshotName};
use vellum_engine::{
    Change, Error, ErrorKind, ImageId, Reply, Request, Requests, Result, Wanted, Wants,
};
use vellum_rados::Objects;
use vellum_rbd::Text;
use vellum_rbd::notify::{ANSWER_WAIT_MS, Answer, Ask, Message, RequestId};
use vellum_rbd::records::Purpose;

use crate::described::snapshot_id;
use crate::header::described;
use crate::watched::{Role, Watched};

/// `EBUSY`, for who asks for a lock that its holder keeps for now.
const KEEPS: i32 = -16;
/// `EOPNOTSUPP`, for who asks for what this program does not do for others.
const CANNOT: i32 = -95;
/// `ERESTART`, for who asks at the wrong time.
pub(crate) const LATER: i32 = -85;
/// How long who asks at the wrong time waits for that answer.
pub(crate) const LATER_PAUSE: Duration = Duration::from_millis(200);
/// How long whoever has the image open has to decide; those who ask are answered before they stop waiting.
const DECISION_WAIT: Duration = Duration::from_millis(ANSWER_WAIT_MS * 3 / 5);
/// Questions that wait to be heard.
const WAITING_MAX: usize = 16;
/// Questions that are remembered.
const REMEMBERED_MAX: usize = 64;
/// How long what came of them is, unless whoever asked has heard of it.
const REMEMBERED: Duration = Duration::from_secs(60);
/// How long between two messages that something goes on. Ceph's clients take half a minute of silence for death.
const PROGRESS_PAUSE: Duration = Duration::from_secs(1);

/// What is known of questions.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    listener: Option<mpsc::Sender<Request>>,
    /// Those that were accepted, with what came of them, and when.
    accepted: VecDeque<(RequestId, Option<(i32, Instant)>)>,
    /// Whether the lock is about to be given to somebody.
    gives: bool,
}

impl Asked {
    /// Whoever listens from now on.
    pub(crate) fn listen(&mut self) -> Requests {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        self.listener = Some(sender);
        Requests::heard(receiver)
    }

    fn of(&mut self, id: RequestId) -> Option<Option<i32>> {
        self.accepted.retain(|(_, result)| result.is_none_or(|(_, at)| at.elapsed() < REMEMBERED));
        let known = self.accepted.iter().find(|(known, _)| *known == id);
        known.map(|(_, result)| result.map(|(code, _)| code))
    }

    fn accept(&mut self, id: RequestId) {
        self.accepted.truncate(REMEMBERED_MAX - 1);
        self.accepted.push_front((id, None));
    }

    fn forget(&mut self, id: RequestId) {
        self.accepted.retain(|(known, _)| *known != id);
    }

    fn finish(&mut self, id: RequestId, code: i32) {
        if let Some((_, result)) = self.accepted.iter_mut().find(|(known, _)| *known == id) {
            *result = Some((code, Instant::now()));
        }
    }
}

impl<O: Objects> Watched<O> {
    /// Somebody wants the lock. `None` if it is not this client's.
    pub(crate) async fn asked_for_lock(self: &Arc<Self>, wants: Wants) -> Option<Answer> {
        match self.role() {
            // Whoever has been told so waits for no decision.
            Role::Owner(_) if self.asked().gives => Some(Answer(0)),
            Role::Owner(_) => {
                let decided = self.put(Wanted::Ownership(wants), None).await;
                Some(Answer(decided.unwrap_or(KEEPS)))
            }
            Role::Releasing(_) => Some(Answer(0)),
            Role::Reader | Role::Taking | Role::Refused => None,
        }
    }

    /// Somebody wants something done. `None` if that is not for this client.
    pub(crate) async fn asked_for(self: &Arc<Self>, ask: Ask, id: RequestId) -> Option<Answer> {
        if !matches!(self.role(), Role::Owner(_)) {
            return None;
        }
        let known = self.asked().of(id);
        match known {
            Some(None) => return Some(Answer(0)),
            Some(Some(result)) => {
                self.complete(id, result);
                return Some(Answer(0));
            }
            None => {}
        }
        let wanted = match self.wanted(ask).await {
            Ok(Some(wanted)) => wanted,
            Ok(None) => return Some(Answer(CANNOT)),
            Err(error) => return Some(Answer(code_of(&error))),
        };
        if let Some(code) = self.put(wanted, Some(id)).await {
            return Some(Answer(code));
        }
        tokio::time::sleep(LATER_PAUSE).await;
        Some(Answer(LATER))
    }

    /// What is asked, in the words of the contract; `None` for what is not done for others.
    async fn wanted(&self, ask: Ask) -> Result<Option<Wanted>> {
        Ok(Some(match ask {
            Ask::Flatten => Wanted::Flatten,
            Ask::CreateSnapshot { name, purpose: Purpose::User, .. } => {
                Wanted::Snapshot { name: parsed(&name)?, auto: false }
            }
            Ask::RemoveSnapshot(name, Purpose::User) => {
                let name: SnapshotName = parsed(&name)?;
                let number = described(self.objects(), self.id()).await?.snapshot_named(&name);
                let number = number.ok_or_else(|| {
                    Error::new(ErrorKind::NotFound, format!("there is no snapshot {name}"))
                })?;
                Wanted::Change(Change::RemoveSnapshot(snapshot_id(number)))
            }
            Ask::RenameSnapshot { id, name, purpose: Purpose::User } => {
                Wanted::Change(Change::RenameSnapshot(snapshot_id(id), parsed(&name)?))
            }
            Ask::Rename(name) => Wanted::Change(Change::Rename(parsed::<ImageName>(&name)?)),
            Ask::UpdateMetadata { key, value } => {
                let value = value.as_ref().map(text).transpose()?;
                Wanted::Change(Change::Meta(text(&key)?, value))
            }
            _ => return Ok(None),
        }))
    }

    /// Has whoever gave the image away know that nobody has it any more.
    pub(crate) fn tell_it_is_free(&self) {
        if let Some(listener) = self.asked().listener.clone() {
            // One that has much to hear has it open, and is about to take it back.
            let _ = listener.try_send(Request { wanted: Wanted::Free, reply: Box::new(Nobody) });
        }
    }

    /// Has whoever has the image open decide. `None` if nobody does.
    async fn put(self: &Arc<Self>, wanted: Wanted, id: Option<RequestId>) -> Option<i32> {
        let listener = self.asked().listener.clone()?;
        let (decision, decided) = oneshot::channel();
        let reply = WhoAsked {
            image: Arc::downgrade(self),
            id,
            decision: Some(decision),
            is_accepted: false,
            told: Instant::now(),
            telling: Arc::default(),
        };
        listener.try_send(Request { wanted, reply: Box::new(reply) }).ok()?;
        tokio::time::timeout(DECISION_WAIT, decided).await.ok()?.ok()
    }

    /// Tells whoever asked what came of it, until they have heard.
    fn complete(self: &Arc<Self>, request: RequestId, result: i32) {
        let image = self.clone();
        self.background().spawn(async move {
            let heard = image.tell(&Message::Complete { request, result }).await;
            if heard.is_ok_and(|heard| heard.answers.contains_key(&request.from)) {
                image.asked().forget(request);
            }
        });
    }

    /// Tells others something, without waiting for it.
    pub(crate) fn tell_later(self: &Arc<Self>, message: Message) {
        let image = self.clone();
        // Who did not hear it asks again.
        self.background().spawn(async move { drop(image.tell(&message).await) });
    }
}

fn text(text: &Text) -> Result<String> {
    text.as_str().map(str::to_owned).ok_or_else(|| invalid("what is not UTF-8"))
}

fn parsed<T: std::str::FromStr>(name: &Text) -> Result<T> {
    text(name)?.parse().map_err(|_| invalid("such a name"))
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("this program does not take {what}"))
}

/// What Ceph's clients and this program call a failure: the number that Linux has for it, and the kinds of the contract, of which the
/// first is what another client is taken to mean. All else is `EIO`.
const CODES: [(ErrorKind, i32); 12] = [
    (ErrorKind::NotFound, -2),
    (ErrorKind::Busy, KEEPS),
    (ErrorKind::InUse, KEEPS),
    (ErrorKind::HasChildren, KEEPS),
    (ErrorKind::Exists, -17),
    (ErrorKind::Invalid, -22),
    (ErrorKind::NoSpace, -28),
    (ErrorKind::ReadOnly, -30),
    // Somebody else has it by then, or whoever asked can have it.
    (ErrorKind::Conflict, LATER),
    (ErrorKind::Stopped, LATER),
    (ErrorKind::OwnershipLost, LATER),
    (ErrorKind::Unsupported, CANNOT),
];

/// What Ceph's clients are told of an error.
fn code_of(error: &Error) -> i32 {
    CODES.iter().find(|(kind, _)| *kind == error.kind()).map_or(-5, |(_, code)| *code)
}

/// What another client says of a failure with such a number.
pub(crate) fn error_of(code: i32, image: &ImageId) -> Error {
    let known = CODES.iter().find(|(_, known)| *known == code);
    let kind = known.map_or(ErrorKind::Io, |(kind, _)| *kind);
    let why = std::io::Error::from_raw_os_error(-code);
    Error::new(kind, format!("whoever has image {image} could not do it")).with_source(why)
}

/// Nobody waits for an answer.
#[derive(Debug)]
struct Nobody;

impl Reply for Nobody {
    fn accept(&mut self) -> bool {
        true
    }

    fn refuse(self: Box<Self>, _: &Error) {}

    fn progress(&mut self, _: u64, _: u64) {}

    fn finish(self: Box<Self>, _: Result<()>) {}
}

/// Whoever asked something.
#[derive(Debug)]
struct WhoAsked<O: Objects> {
    image: Weak<Watched<O>>,
    /// Their number for it, if they are to hear what came of it.
    id: Option<RequestId>,
    decision: Option<oneshot::Sender<i32>>,
    /// Whether it was accepted, and nothing has come of it yet.
    is_accepted: bool,
    /// When they were told something last.
    told: Instant,
    /// Whether they are being told.
    telling: Arc<AtomicBool>,
}

impl<O: Objects> Reply for WhoAsked<O> {
    fn accept(&mut self) -> bool {
        let Some(image) = self.image.upgrade() else { return false };
        let Some(decision) = self.decision.take() else { return self.is_accepted };
        // Before whoever asked hears of it, and may ask again.
        match self.id {
            Some(id) => image.asked().accept(id),
            None => image.asked().gives = true,
        }
        self.is_accepted = true;
        if decision.send(0).is_err() {
            self.is_accepted = false;
            match self.id {
                Some(id) => image.asked().forget(id),
                None => image.asked().gives = false,
            }
        }
        self.is_accepted
    }

    fn refuse(mut self: Box<Self>, error: &Error) {
        if let Some(decision) = self.decision.take() {
            let _ = decision.send(if self.id.is_some() { code_of(error) } else { KEEPS });
        }
    }

    fn progress(&mut self, done: u64, total: u64) {
        let (Some(image), Some(request)) = (self.image.upgrade(), self.id) else { return };
        if self.told.elapsed() < PROGRESS_PAUSE || self.telling.swap(true, Ordering::SeqCst) {
            return;
        }
        self.told = Instant::now();
        let telling = self.telling.clone();
        image.clone().background().spawn(async move {
            let _ = image.tell(&Message::Progress { request, done, all: total }).await;
            telling.store(false, Ordering::SeqCst);
        });
    }

    fn finish(mut self: Box<Self>, result: Result<()>) {
        if !std::mem::replace(&mut self.is_accepted, false) {
            return;
        }
        let Some(image) = self.image.upgrade() else { return };
        let Some(request) = self.id else {
            image.asked().gives = false;
            if result.is_ok() {
                image.set_lent(true);
            }
            return;
        };
        let result = result.as_ref().err().map_or(0, code_of);
        image.asked().finish(request, result);
        image.complete(request, result);
    }
}

/// What was begun and given up is asked for again.
impl<O: Objects> Drop for WhoAsked<O> {
    fn drop(&mut self) {
        let Some(image) = self.image.upgrade().filter(|_| self.is_accepted) else { return };
        match self.id {
            Some(request) => {
                image.asked().forget(request);
                image.tell_later(Message::Complete { request, result: LATER });
            }
            None => image.asked().gives = false,
        }
    }
}
