//! Who may write to an image: the lock on its header, taken and given as Ceph's clients do, and taken from the dead.
//!
//! Whoever holds the lock has a watch on the header, which its cookie names. Who answers as such is alive; who is not even asked any
//! more is dead, and is kept from the cluster before its lock is broken: what it had under way has landed then, or never will.
//! Those who read the head are noted in the header too. All of this changes in one step with a look at the version of the header, so
//! that a reader and a writer that come at the same time do not both believe that they are alone.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use vellum_engine::{Error, ErrorKind, Result, Wants};
use vellum_rados::{Failure, Objects, WriteOp, WriteStep};
use vellum_rbd::Text;
use vellum_rbd::lock::{self, Holder, HolderInfo, Kind, ask};
use vellum_rbd::notify::{ClientId, Message};

use crate::described::Described;
use crate::error::failed;
use crate::header::{described, write_header};
use crate::keys;
use crate::watched::{self, Role, Watched, tell};

/// How long a holder that gives no answer is waited for: until the cluster has forgotten a client that died.
pub(crate) const SILENT_MAX: Duration = Duration::from_secs(40);
/// How long between two looks.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Who looks for an image that nobody has.
#[derive(Clone, Copy, Debug)]
struct Seeker {
    client: ClientId,
    wants: Wants,
    /// How long whoever gives no answer is waited for.
    until: Instant,
}

/// Takes the lock of an image for this client, and returns what the header says then, and the number of the acquisition.
pub(crate) async fn acquire<O: Objects>(
    objects: &O,
    image: &Arc<Watched<O>>,
    id: &vellum_engine::ImageId,
) -> Result<(Described, u64)> {
    let until = Instant::now() + SILENT_MAX;
    let taking = Taking::begin(image, id, until).await?;
    loop {
        let described = described(objects, id).await?;
        let me = image.me();
        let seeker = Seeker { client: me, wants: image.wants(), until };
        if !is_free(objects, &described, seeker).await? {
            tokio::time::sleep(LOOK_AGAIN).await;
            continue;
        }
        let asked = ask::lock(lock::IMAGE, Kind::Exclusive, &lock::cookie(me.watch), lock::MANAGED);
        let op = WriteOp::new().assert_version(described.version).call("lock", "lock", asked);
        match write_header(objects, id, op).await {
            Ok(()) => {}
            Err(Failure::MISMATCH | Failure::BUSY) => continue,
            Err(failure) => {
                unlock(objects, id, me.watch).await?;
                return Err(failed(failure, format!("take the lock of image {id}")));
            }
        }
        match crate::header::described(objects, id).await {
            // By a watch that was lost meanwhile it is not held for long.
            Ok(described) if image.me() == me => {
                // Those who had asked somebody else for something ask again.
                image.tell_later(Message::Acquired(me));
                return Ok((described, taking.end()));
            }
            Ok(_) => unlock(objects, id, me.watch).await?,
            Err(error) => {
                unlock(objects, id, me.watch).await?;
                return Err(error);
            }
        }
    }
}

/// That this client is about to take the lock of an image, and nobody else of it.
struct Taking<'a, O: Objects>(&'a Arc<Watched<O>>);

impl<'a, O: Objects> Taking<'a, O> {
    async fn begin(
        image: &'a Arc<Watched<O>>,
        id: &vellum_engine::ImageId,
        until: Instant,
    ) -> Result<Self> {
        while !image.change_role(Role::Reader, Role::Taking) {
            match image.role() {
                Role::Refused => {
                    let what = "the cluster refuses this client, since another took its lock";
                    return Err(Error::new(ErrorKind::OwnershipLost, what));
                }
                Role::Reader | Role::Releasing(_) if Instant::now() < until => {}
                _ => {
                    let what = format!("image {id} is in use by this process");
                    return Err(Error::new(ErrorKind::InUse, what));
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(Self(image))
    }

    /// It has it.
    fn end(self) -> u64 {
        let number = self.0.next_acquisition();
        self.0.change_role(Role::Taking, Role::Owner(number));
        number
    }
}

impl<O: Objects> Drop for Taking<'_, O> {
    fn drop(&mut self) {
        self.0.change_role(Role::Taking, Role::Reader);
    }
}

/// Gives the lock back that this client took as this acquisition, if it still has it.
pub(crate) async fn release<O: Objects>(
    objects: &O,
    image: &Arc<Watched<O>>,
    id: &vellum_engine::ImageId,
    acquisition: u64,
) -> Result<()> {
    let mut me = image.me();
    let mut released = unlock(objects, id, me.watch).await;
    // Another watch may have taken the place of the one that it was held by.
    while released.is_ok() && image.me() != me {
        me = image.me();
        released = unlock(objects, id, me.watch).await;
    }
    image.change_role(Role::Releasing(acquisition), Role::Reader);
    released?;
    // Whoever waits for it asks again; it is no loss if nobody hears.
    let _ = image.tell(&Message::Released(me)).await;
    Ok(())
}

/// Gives a lock back that is held by a watch of this client; that it is not is fine.
async fn unlock<O: Objects>(objects: &O, id: &vellum_engine::ImageId, watch: u64) -> Result<()> {
    let asked = ask::unlock(lock::IMAGE, &lock::cookie(watch));
    let op = WriteOp::new().assert_exists().call("lock", "unlock", asked);
    match write_header(objects, id, op).await {
        Ok(()) | Err(Failure::NOT_FOUND) => Ok(()),
        Err(failure) => Err(failed(failure, format!("give back the lock of image {id}"))),
    }
}

/// Notes that this client reads the head, so that nobody writes to it. Returns what the header says.
pub(crate) async fn begin_reading<O: Objects>(
    objects: &O,
    image: &Arc<Watched<O>>,
    id: &vellum_engine::ImageId,
) -> Result<Described> {
    let mut readers = image.readers.lock().await;
    let until = Instant::now() + SILENT_MAX;
    loop {
        let described = described(objects, id).await?;
        let me = image.me();
        if *readers > 0 && described.readers.contains(&(me.client, me.watch)) {
            *readers += 1;
            return Ok(described);
        }
        let seeker = Seeker { client: me, wants: Wants::ToBegin, until };
        if !no_owner(objects, &described, seeker).await? {
            tokio::time::sleep(LOOK_AGAIN).await;
            continue;
        }
        let key = keys::reader(me.client, me.watch);
        let op = WriteOp::new().assert_version(described.version).set_omap(key, "");
        match write_header(objects, id, op).await {
            Ok(()) => {
                *readers += 1;
                return Ok(described);
            }
            Err(Failure::MISMATCH) => {}
            Err(failure) => return Err(failed(failure, format!("begin to read image {id}"))),
        }
    }
}

/// Lets writers in again, with the last who reads.
pub(crate) async fn end_reading<O: Objects>(
    objects: &O,
    image: &Arc<Watched<O>>,
    id: &vellum_engine::ImageId,
) {
    let mut readers = image.readers.lock().await;
    *readers -= 1;
    if *readers > 0 {
        return;
    }
    let me = image.me();
    let key = keys::reader(me.client, me.watch).into_bytes();
    let op = WriteOp::new().assert_exists().then(WriteStep::RemoveOmap([key].into()));
    // What is left behind is of a watch that nobody has any more, and goes with the next who looks.
    let _ = write_header(objects, id, op).await;
}

/// `InUse` if somebody holds the image, or reads its head. Takes it from the dead.
pub(crate) async fn check_free<O: Objects>(
    objects: &O,
    described: &Described,
    until: Instant,
) -> Result<bool> {
    let nobody = ClientId { client: objects.client(), watch: 0 };
    is_free(objects, described, Seeker { client: nobody, wants: Wants::ToBegin, until }).await
}

/// `InUse` if somebody has an image open with Ceph's own library, or with the kernel. Those do not say whether they write to it: one
/// that gives its lock to whoever asks takes it again when it writes next.
pub(crate) async fn check_no_strangers<O: Objects>(
    objects: &O,
    id: &vellum_engine::ImageId,
) -> Result<()> {
    let heard = tell(objects, id, &Message::HeaderChanged).await?;
    let is_ours = |answer: &Text| [watched::READS, watched::LOOKS_ON].contains(&&*answer.0);
    match heard.answers.iter().find(|(_, answer)| !is_ours(answer)) {
        None => Ok(()),
        Some((stranger, _)) => {
            let what =
                format!("image {id} is open at client.{}; close it there first", stranger.client);
            Err(Error::new(ErrorKind::InUse, what))
        }
    }
}

/// Whether nobody holds the image, or reads its head. False if another look is needed; `InUse` if somebody does.
async fn is_free<O: Objects>(objects: &O, described: &Described, seeker: Seeker) -> Result<bool> {
    Ok(no_owner(objects, described, seeker).await?
        && no_reader(objects, described, seeker.until).await?)
}

async fn no_owner<O: Objects>(
    objects: &O,
    described: &Described,
    Seeker { client, wants, until }: Seeker,
) -> Result<bool> {
    let id = &described.id;
    let Some(lock) = &described.lock else { return Ok(true) };
    let Some((holder, info)) = lock.managed_holder() else {
        let what = format!("image {id} is locked by hand; see `rbd lock ls`");
        return Err(Error::new(ErrorKind::InUse, what));
    };
    let in_use = || {
        let who = format!("client.{} at {}", holder.entity.number, info.address);
        Error::new(ErrorKind::InUse, format!("image {id} is in use by {who}"))
    };
    let owner = owner(holder);
    let begins = wants == Wants::ToBegin;
    let request = Message::Request { from: client, force: false, begins };
    let heard = tell(objects, id, &request).await?;
    match owner.and_then(|owner| heard.answers.get(&owner)) {
        Some(answer) => match vellum_rbd::Decode::from_bytes(&answer.0) {
            // It gives the lock back, or has done so.
            Ok(vellum_rbd::notify::Answer(0)) if Instant::now() < until => Ok(false),
            Ok(_) => Err(in_use()),
            // It has the image open, and does not say that the lock is its own: it may be on its way back.
            Err(_) if Instant::now() < until => Ok(false),
            Err(_) => Err(in_use()),
        },
        None if owner.is_some_and(|owner| heard.silent.contains(&owner)) => {
            if Instant::now() < until { Ok(false) } else { Err(in_use()) }
        }
        None => break_lock(objects, described, holder, info).await.map(|()| false),
    }
}

/// The client that holds a lock, by its watch.
fn owner(holder: &Holder) -> Option<ClientId> {
    let client = u64::try_from(holder.entity.number).ok()?;
    Some(ClientId { client, watch: lock::watch_of(&holder.cookie)? })
}

/// Takes the lock of a client that is dead.
async fn break_lock<O: Objects>(
    objects: &O,
    described: &Described,
    holder: &Holder,
    info: &HolderInfo,
) -> Result<()> {
    let id = &described.id;
    let doing = || format!("take the lock of image {id} from client.{}", holder.entity.number);
    // One that only lost its watch, and is this very client, must not be kept from the cluster.
    if holder.entity.number != objects.client() as i64 {
        let client = holder.entity.number as u64;
        let fenced = objects.fence(client, &info.address.to_string()).await;
        fenced.map_err(|failure| failed(failure, doing()))?;
    }
    let asked = ask::break_lock(lock::IMAGE, holder.entity, &holder.cookie);
    let op = WriteOp::new().assert_version(described.version).call("lock", "break_lock", asked);
    match write_header(objects, id, op).await {
        Ok(()) | Err(Failure::MISMATCH | Failure::NOT_FOUND) => Ok(()),
        Err(failure) => Err(failed(failure, doing())),
    }
}

async fn no_reader<O: Objects>(objects: &O, described: &Described, until: Instant) -> Result<bool> {
    if described.readers.is_empty() {
        return Ok(true);
    }
    let id = &described.id;
    let heard = tell(objects, id, &Message::HeaderChanged).await?;
    let as_client = |reader: &(u64, u64)| ClientId { client: reader.0, watch: reader.1 };
    for reader in &described.readers {
        let answer = heard.answers.get(&as_client(reader));
        let what = format!("image {id} is being read by client.{}", reader.0);
        match answer {
            Some(answer) if answer.0 == watched::READS => {
                return Err(Error::new(ErrorKind::InUse, what));
            }
            None if !heard.silent.contains(&as_client(reader)) => {}
            // It is about to end, or gives no answer.
            _ if Instant::now() < until => return Ok(false),
            _ => return Err(Error::new(ErrorKind::InUse, what)),
        }
    }
    let dead = described.readers.iter();
    let dead = dead.map(|(client, watch)| keys::reader(*client, *watch).into_bytes()).collect();
    let op = WriteOp::new().assert_version(described.version).then(WriteStep::RemoveOmap(dead));
    match write_header(objects, id, op).await {
        Ok(()) | Err(Failure::MISMATCH) => Ok(false),
        Err(failure) => Err(failed(failure, format!("look who reads image {id}"))),
    }
}
