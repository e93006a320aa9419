//! [`Watched`]: an image that this client has open, and hears of from others.
//!
//! All who use an image in one catalog share one watch on its header. What is answered there depends on what this client is to the
//! image: who holds its lock answers what is [asked](crate::asked) of it, all others acknowledge. That the header changed is acknowledged only once
//! this client has looked: so whoever removes an image knows that nobody still takes for inherited what is being removed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use vellum_engine::{Error, ErrorKind, ImageId, Result, Wants};
use vellum_rados::{Event, Failure, Objects, SnapContext, Watch, WriteOp, WriteStep};
use vellum_rbd::lock::{self, Kind, ask};
use vellum_rbd::notify::{ClientId, Heard, Message};
use vellum_rbd::{Decode, Encode, names};

use crate::asked::Asked;
use crate::asking::Asking;
use crate::background::Background;
use crate::described::Described;
use crate::error::failed;
use crate::keys;

/// How long others have to answer.
pub(crate) const ANSWER_WAIT: Duration = Duration::from_millis(vellum_rbd::notify::ANSWER_WAIT_MS);
/// How long after a watch was lost another one is tried.
pub(crate) const AGAIN: Duration = Duration::from_millis(500);
/// What who reads the head says to who tells that the header changed.
pub(crate) const READS: &[u8] = &[1];
/// What others of this program say. Ceph's own clients say nothing, or what they answer to whatever they are asked.
pub(crate) const LOOKS_ON: &[u8] = &[0];

/// What this client is to an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Role {
    /// One who reads.
    #[default]
    Reader,
    /// Who is about to take its lock.
    Taking,
    /// Who holds its lock, since an acquisition of this number.
    Owner(u64),
    /// Who is giving its lock back.
    Releasing(u64),
    /// Who cannot have it again: the cluster refuses this client.
    Refused,
}

impl Role {
    /// Whether the lock of the image may be this client's.
    fn may_hold(self) -> bool {
        matches!(self, Self::Owner(_) | Self::Releasing(_))
    }
}

/// An open image.
#[derive(Debug)]
pub(crate) struct Watched<O: Objects> {
    objects: O,
    id: ImageId,
    background: Background,
    /// Whether this client may watch the header; one that may only look does not hear that it has changed.
    hears: bool,
    state: Mutex<State>,
    asked: Mutex<Asked>,
    asking: Mutex<Asking>,
    /// How many are noted in the header as reading the head, and what keeps those who begin and end that apart.
    pub(crate) readers: tokio::sync::Mutex<usize>,
    /// How many do read it.
    reading: AtomicUsize,
    /// Dropped with this, which ends the watch.
    _end: oneshot::Sender<()>,
}

#[derive(Debug)]
struct State {
    watch: u64,
    role: Role,
    acquisitions: u64,
    is_gone: bool,
    /// Whether the lock was given to who asked for it, to be taken back later.
    is_lent: bool,
    /// The snapshots that there were when the header was looked at last, and its version then.
    snapshots: BTreeSet<u64>,
    looked_at: u64,
}

impl<O: Objects> Watched<O> {
    /// Begins to hear of an image, if this client may. `NotFound` if there is none.
    pub(crate) async fn begin(
        objects: O,
        id: ImageId,
        background: Background,
    ) -> Result<Arc<Self>> {
        let watch = match objects.watch(&names::header(id.as_str())).await {
            Ok(watch) => Some(watch),
            Err(Failure::NOT_PERMITTED) => None,
            Err(failure) => return Err(failed(failure, format!("watch image {id}"))),
        };
        let (end, ended) = oneshot::channel();
        let state = State {
            watch: watch.as_ref().map_or(0, Watch::id),
            role: Role::Reader,
            acquisitions: 0,
            is_gone: false,
            is_lent: false,
            snapshots: BTreeSet::new(),
            looked_at: 0,
        };
        let this = Arc::new(Self {
            objects: objects.clone(),
            id,
            background,
            hears: watch.is_some(),
            state: Mutex::new(state),
            asked: Mutex::default(),
            asking: Mutex::default(),
            readers: tokio::sync::Mutex::new(0),
            reading: AtomicUsize::new(0),
            _end: end,
        });
        if let Some(watch) = watch {
            this.background.spawn(listen(Arc::downgrade(&this), watch, ended));
        }
        Ok(this)
    }

    /// This client, by its watch on the image.
    pub(crate) fn me(&self) -> ClientId {
        ClientId { client: self.objects.client(), watch: self.state.lock().watch }
    }

    pub(crate) fn role(&self) -> Role {
        self.state.lock().role
    }

    /// Changes what this client is, if it is what it is thought to be. Whether it was.
    pub(crate) fn change_role(&self, from: Role, to: Role) -> bool {
        let mut state = self.state.lock();
        let is_so = state.role == from;
        if is_so {
            state.role = to;
        }
        is_so
    }

    /// The number of the next acquisition, by which whoever has it knows whether it is still theirs.
    pub(crate) fn next_acquisition(&self) -> u64 {
        let mut state = self.state.lock();
        state.acquisitions += 1;
        state.acquisitions
    }

    /// The lock is not this client's any more, whoever of it had it.
    pub(crate) fn lose(&self, to: Role) {
        let mut state = self.state.lock();
        if state.role.may_hold() {
            state.role = to;
        }
    }

    /// `NotFound` once the image was removed, or the snapshot.
    pub(crate) fn check_there(&self, snapshot: Option<u64>) -> Result<()> {
        let state = self.state.lock();
        if state.is_gone {
            return Err(Error::new(ErrorKind::NotFound, format!("image {} was removed", self.id)));
        }
        if snapshot.is_some_and(|snapshot| !state.snapshots.contains(&snapshot)) {
            let what = format!("a snapshot of image {} was removed", self.id);
            return Err(Error::new(ErrorKind::NotFound, what));
        }
        Ok(())
    }

    /// Whether this client hears that the header has changed.
    pub(crate) fn hears(&self) -> bool {
        self.hears
    }

    /// The same, once more to be sure by a look at the header if this client does not hear of its changes.
    pub(crate) async fn make_sure(&self, snapshot: Option<u64>) -> Result<()> {
        if !self.hears {
            match Described::read(&self.objects, &self.id).await? {
                Some(described) => self.saw(&described),
                None => self.state.lock().is_gone = true,
            }
        }
        self.check_there(snapshot)
    }

    /// Takes note of what a header says, unless a later one was seen.
    pub(crate) fn saw(&self, described: &Described) {
        let mut state = self.state.lock();
        if described.version >= state.looked_at {
            state.looked_at = described.version;
            state.snapshots = described.header.snapshots.keys().copied().collect();
        }
    }

    /// Somebody reads the head from now on.
    pub(crate) fn begin_reading(&self) {
        self.reading.fetch_add(1, Ordering::SeqCst);
    }

    /// One of them does not any more.
    pub(crate) fn end_reading(&self) {
        self.reading.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn objects(&self) -> &O {
        &self.objects
    }

    pub(crate) fn id(&self) -> &ImageId {
        &self.id
    }

    /// What is known of what others ask.
    pub(crate) fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock()
    }

    /// What this client has asked of others.
    pub(crate) fn asking(&self) -> MutexGuard<'_, Asking> {
        self.asking.lock()
    }

    pub(crate) fn set_lent(&self, is_lent: bool) {
        self.state.lock().is_lent = is_lent;
    }

    fn is_lent(&self) -> bool {
        self.state.lock().is_lent
    }

    /// Why this client asks for the lock.
    pub(crate) fn wants(&self) -> Wants {
        if self.is_lent() { Wants::ATurn } else { Wants::ToBegin }
    }

    /// Where what is left to do for it runs.
    pub(crate) fn background(&self) -> &Background {
        &self.background
    }

    fn header(&self) -> String {
        names::header(self.id.as_str())
    }

    /// Tells all who have the image open, and says who answered what.
    pub(crate) async fn tell(&self, message: &Message) -> Result<Heard> {
        tell(&self.objects, &self.id, message).await
    }

    async fn answer_to(self: &Arc<Self>, bytes: &[u8]) -> Vec<u8> {
        // What cannot be read is nothing to answer.
        let Ok(message) = Message::from_bytes(bytes) else { return Vec::new() };
        match message {
            Message::HeaderChanged => {
                self.look().await;
                // For who wants to write, and finds this client noted as one who reads.
                let reads = self.reading.load(Ordering::SeqCst) > 0;
                if reads { READS.to_vec() } else { LOOKS_ON.to_vec() }
            }
            Message::Request { begins, .. } => {
                let wants = if begins { Wants::ToBegin } else { Wants::ATurn };
                self.asked_for_lock(wants).await.map_or_else(Vec::new, |answer| answer.to_bytes())
            }
            Message::Asked(ask, id) => {
                self.asked_for(ask, id).await.map_or_else(Vec::new, |answer| answer.to_bytes())
            }
            said => {
                self.asking().hear(&said, self.me());
                if matches!(said, Message::Released(by) if by != self.me()) && self.is_lent() {
                    self.tell_it_is_free();
                }
                Vec::new()
            }
        }
    }

    /// Whether the image is still there, and which snapshots.
    async fn look(&self) {
        match Described::read(&self.objects, &self.id).await {
            Ok(Some(described)) => self.saw(&described),
            Ok(None) => self.state.lock().is_gone = true,
            Err(error) => {
                tracing::warn!(image = %self.id, "its header was not looked at: {}", error.chain());
            }
        }
    }

    /// Whoever reads the head is noted by the watch that there is now.
    async fn renew_reader(&self, before: u64, now: u64) {
        if *self.readers.lock().await == 0 {
            return;
        }
        let (client, none) = (self.objects.client(), Vec::new());
        let keys = [(keys::reader(client, now).into_bytes(), none)].into();
        let old = [keys::reader(client, before).into_bytes()].into();
        let op = WriteOp::new()
            .assert_exists()
            .then(WriteStep::SetOmap(keys))
            .then(WriteStep::RemoveOmap(old));
        if let Err(failure) = self.objects.write(&self.header(), &SnapContext::default(), op).await
        {
            tracing::warn!(image = %self.id, "who reads it is not noted any more: {failure}");
        }
    }

    /// Watches again, under another number, by which the lock is held from then on. `None` if there is no use in that.
    async fn watch_again(&self) -> Option<O::Watch> {
        let watch = match self.objects.watch(&self.header()).await {
            Ok(watch) => watch,
            Err(Failure::NOT_FOUND) => {
                self.state.lock().is_gone = true;
                return None;
            }
            Err(Failure::BLOCKLISTED) => {
                self.state.lock().role = Role::Refused;
                return None;
            }
            Err(_) => return None,
        };
        let before = std::mem::replace(&mut self.state.lock().watch, watch.id());
        if self.role().may_hold() {
            let (from, to) = (lock::cookie(before), lock::cookie(watch.id()));
            let asked = ask::set_cookie(lock::IMAGE, Kind::Exclusive, &from, lock::MANAGED, &to);
            let op = WriteOp::new().assert_exists().call("lock", "set_cookie", asked);
            if self.objects.write(&self.header(), &SnapContext::default(), op).await.is_err() {
                self.lose(Role::Reader);
            }
        }
        self.renew_reader(before, watch.id()).await;
        self.look().await;
        Some(watch)
    }
}

/// Tells all who have an image open.
pub(crate) async fn tell<O: Objects>(
    objects: &O,
    id: &ImageId,
    message: &Message,
) -> Result<Heard> {
    let doing = || format!("talk to those who have image {id} open");
    let header = names::header(id.as_str());
    let heard = objects.notify(&header, message.to_bytes(), ANSWER_WAIT).await;
    let heard = heard.map_err(|failure| failed(failure, doing()))?;
    Heard::from_bytes(&heard).map_err(|why| Error::new(ErrorKind::Io, doing()).with_source(why))
}

/// Hears and answers until nobody has the image open any more.
async fn listen<O: Objects>(
    image: Weak<Watched<O>>,
    mut watch: O::Watch,
    mut ended: oneshot::Receiver<()>,
) {
    loop {
        let event = tokio::select! {
            biased;
            _ = &mut ended => break,
            event = watch.next() => event,
        };
        let Some(image) = image.upgrade() else { break };
        match event {
            Some(Event::Said { said, bytes, .. }) => {
                let answer = image.answer_to(&bytes).await;
                // Whoever said it may have gone.
                let _ = watch.answer(said, answer).await;
            }
            Some(Event::Lost(_)) | None => {
                let lost = std::mem::replace(
                    &mut watch,
                    match again(&image, &mut ended).await {
                        Some(watch) => watch,
                        None => return,
                    },
                );
                let _ = lost.close().await;
            }
        }
    }
    let _ = watch.close().await;
}

/// Another watch, as soon as there can be one; `None` if there never will be.
async fn again<O: Objects>(
    image: &Arc<Watched<O>>,
    ended: &mut oneshot::Receiver<()>,
) -> Option<O::Watch> {
    loop {
        if let Some(watch) = image.watch_again().await {
            return Some(watch);
        }
        let is_over = image.check_there(None).is_err() || image.role() == Role::Refused;
        if is_over || Arc::strong_count(image) == 1 {
            return None;
        }
        tokio::select! {
            _ = &mut *ended => return None,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}
