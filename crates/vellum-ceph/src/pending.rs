//! What somebody has begun with an image: noted in the directory before the first step and taken out after the last, so that it can be
//! finished, or undone, after a death.
//!
//! Whoever notes it can be asked whether they are still at it: all who have such notes watch one object, [`CLIENTS`].

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OnceCell, oneshot};
use vellum_engine::{Error, ErrorKind, ImageId, Result};
use vellum_rados::{
    Event, Failure, Found, Objects, ReadOp, ReadStep, SnapContext, SnapId, Watch, WriteOp,
    WriteStep,
};
use vellum_rbd::names::DIRECTORY;
use vellum_rbd::notify::Heard;
use vellum_rbd::records::ParentSpec;
use vellum_rbd::wire::{self, Reader, structure};
use vellum_rbd::{Decode, Encode, Text};

use crate::background::Background;
use crate::error::{corrupt, failed, unexpected};
use crate::keys;
use crate::omap;
use crate::watched::{AGAIN, ANSWER_WAIT};

/// The object that all watch who have something pending.
pub const CLIENTS: &str = "vellum_clients";

/// What was begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Begun {
    /// An id is kept for an image that is about to be made, elsewhere or here.
    Reservation = 0,
    /// An image is being made. Until its header is there, there is no image.
    Creation = 1,
    /// An image is being removed. Once its header says so, there is no image.
    Removal = 2,
    /// An image is being moved to the trash.
    Discard = 3,
    /// An image is being brought back from the trash, under the name that the note has.
    Return = 4,
}

/// A note of what was begun.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pending {
    /// What.
    pub begun: Begun,
    /// The client that did.
    pub client: u64,
    /// Chance, which tells one note of a client from the next.
    pub chance: u64,
    /// The name of the image.
    pub name: Text,
    /// The snapshot that it hangs on, if it does.
    pub parent: Option<ParentSpec>,
}

impl Pending {
    /// A note of what a client begins now.
    pub(crate) fn new(begun: Begun, client: u64, name: Text) -> Self {
        let chance = getrandom::u64().expect("the system has random numbers");
        Self { begun, client, chance, name, parent: None }
    }
}

impl Encode for Pending {
    fn encode(&self, out: &mut Vec<u8>) {
        structure(out, 1, 1, |out| {
            (self.begun as u8).encode(out);
            self.client.encode(out);
            self.chance.encode(out);
            self.name.encode(out);
            self.parent.encode(out);
        });
    }
}

impl Decode for Pending {
    fn decode(input: &mut Reader<'_>) -> wire::Result<Self> {
        let (_, mut fields) = input.structure("note of what is pending", 1)?;
        let begun = match fields.value::<u8>()? {
            0 => Begun::Reservation,
            1 => Begun::Creation,
            2 => Begun::Removal,
            3 => Begun::Discard,
            4 => Begun::Return,
            other => {
                let what = "thing that can be pending";
                return Err(wire::Malformed::Unknown { what, value: other.into() });
            }
        };
        let (client, chance) = fields.value()?;
        Ok(Self { begun, client, chance, name: fields.value()?, parent: fields.value()? })
    }
}

/// All notes of a pool, by image.
pub(crate) async fn all<O: Objects>(objects: &O) -> Result<BTreeMap<ImageId, Pending>> {
    let doing = || "read what is pending in this pool".to_owned();
    let notes = omap::all(objects, DIRECTORY, keys::PENDING, doing).await?.unwrap_or_default();
    let read = |(key, value): (String, Vec<u8>)| {
        let note = Pending::from_bytes(&value)
            .map_err(|why| corrupt(format!("key {key} of {DIRECTORY}"), why))?;
        Ok((ImageId::new(key.strip_prefix(keys::PENDING).unwrap_or(&key)), note))
    };
    notes.into_iter().map(read).collect()
}

/// The note of one image.
pub(crate) async fn of<O: Objects>(objects: &O, id: &ImageId) -> Result<Option<Pending>> {
    let key = keys::pending(id.as_str());
    let step = ReadStep::OmapKeys([key.clone().into_bytes()].into());
    let done = objects.read(DIRECTORY, SnapId::HEAD, ReadOp::new().then(step)).await;
    let found = match done.result {
        Ok((_, found)) => found,
        Err(Failure::NOT_FOUND) => return Ok(None),
        Err(failure) => {
            return Err(failed(failure, format!("look what is pending for image {id}")));
        }
    };
    let Some(Found::Omap { values, .. }) = found.into_iter().next() else {
        return Err(unexpected());
    };
    let note = values.get(key.as_bytes()).map(|value| Pending::from_bytes(value)).transpose();
    note.map_err(|why| corrupt(format!("key {key} of {DIRECTORY}"), why))
}

/// Puts a note in the place of what there is, if that is this.
fn replace(id: &ImageId, before: Option<&Pending>, note: &Pending) -> WriteOp {
    let key = keys::pending(id.as_str());
    let before = before.map_or_else(Vec::new, Pending::to_bytes);
    WriteOp::new().compare_omap(key.clone(), before).set_omap(key, note.to_bytes())
}

/// Takes a note out, if it is still this one.
pub(crate) fn take_out(id: &ImageId, note: &Pending) -> WriteOp {
    let key = keys::pending(id.as_str());
    let remove = WriteStep::RemoveOmap([key.clone().into_bytes()].into());
    WriteOp::new().compare_omap(key, note.to_bytes()).then(remove)
}

/// Notes what this client, which says that it is at work at the image, begins with it. `InUse` if somebody else is at it.
pub(crate) async fn begin<O: Objects>(
    objects: &O,
    at_work: &AtWork<O>,
    id: &ImageId,
    note: &Pending,
) -> Result<()> {
    loop {
        let before = of(objects, id).await?;
        if let Some(other) = before.as_ref().filter(|other| other.client != note.client)
            && at_work.is_somebody_at(id, other.client).await?
        {
            let what = format!("somebody else is at work at image {id}; try again later");
            return Err(Error::new(ErrorKind::InUse, what));
        }
        let op = replace(id, before.as_ref(), note);
        match objects.write(DIRECTORY, &SnapContext::default(), op).await {
            Ok(()) => return Ok(()),
            Err(Failure::MISMATCH) => {}
            Err(failure) => {
                return Err(failed(failure, format!("note what is begun with image {id}")));
            }
        }
    }
}

/// Takes a note out that is still this one.
pub(crate) async fn end<O: Objects>(objects: &O, id: &ImageId, note: &Pending) -> Result<()> {
    match objects.write(DIRECTORY, &SnapContext::default(), take_out(id, note)).await {
        Ok(()) | Err(Failure::MISMATCH | Failure::NOT_FOUND) => Ok(()),
        Err(failure) => Err(failed(failure, format!("forget what was begun with image {id}"))),
    }
}

/// What this client has begun, and that it can be asked for it.
#[derive(Debug)]
pub(crate) struct AtWork<O: Objects> {
    objects: O,
    background: Background,
    watch: OnceCell<oneshot::Sender<()>>,
    images: Arc<Mutex<BTreeMap<ImageId, usize>>>,
}

impl<O: Objects> AtWork<O> {
    pub(crate) fn new(objects: O, background: Background) -> Self {
        Self { objects, background, watch: OnceCell::new(), images: Arc::default() }
    }

    /// Is at work at an image from now on, until what is returned is dropped.
    pub(crate) async fn begin(&self, id: &ImageId) -> Result<Work> {
        let watch = || async {
            let doing = || "say that this client is at work";
            let made = WriteOp::new().create(false);
            let made = self.objects.write(CLIENTS, &SnapContext::default(), made).await;
            made.map_err(|failure| failed(failure, doing()))?;
            let watch = self.objects.watch(CLIENTS).await;
            let watch = watch.map_err(|failure| failed(failure, doing()))?;
            let (end, ended) = oneshot::channel();
            let answers = answer(self.objects.clone(), watch, self.images.clone(), ended);
            self.background.spawn(answers);
            Ok(end)
        };
        self.watch.get_or_try_init(watch).await?;
        *self.images.lock().entry(id.clone()).or_default() += 1;
        Ok(Work { images: self.images.clone(), id: id.clone() })
    }

    /// Whether this client is at work at an image.
    pub(crate) fn is_at(&self, id: &ImageId) -> bool {
        self.images.lock().contains_key(id)
    }

    /// Whether somebody is at work at an image, who is not sure not to be.
    pub(crate) async fn is_somebody_at(&self, id: &ImageId, client: u64) -> Result<bool> {
        if client == self.objects.client() {
            return Ok(self.is_at(id));
        }
        let asks = id.as_str().as_bytes().to_vec();
        let heard = match self.objects.notify(CLIENTS, asks, ANSWER_WAIT).await {
            Ok(heard) => heard,
            Err(Failure::NOT_FOUND) => return Ok(false),
            Err(failure) => return Err(failed(failure, format!("ask who is at image {id}"))),
        };
        let heard = Heard::from_bytes(&heard).map_err(|why| unexpected().with_source(why))?;
        let is_at = heard
            .answers
            .iter()
            .any(|(from, answer)| from.client == client && !answer.0.is_empty());
        Ok(is_at || heard.silent.iter().any(|from| from.client == client))
    }
}

/// That this client is at work at an image.
#[derive(Debug)]
#[must_use]
pub(crate) struct Work {
    images: Arc<Mutex<BTreeMap<ImageId, usize>>>,
    id: ImageId,
}

impl Drop for Work {
    fn drop(&mut self) {
        let mut images = self.images.lock();
        if let Some(count) = images.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                images.remove(&self.id);
            }
        }
    }
}

/// Keeps an id until what is returned is dropped. `InUse` if somebody does already.
pub(crate) async fn reserve<O: Objects>(
    objects: &O,
    at_work: &AtWork<O>,
    id: &ImageId,
) -> Result<Kept<O>> {
    let in_use = || Error::new(ErrorKind::InUse, format!("somebody creates image {id} already"));
    let doing = || format!("keep the id {id}");
    loop {
        let before = of(objects, id).await?;
        if let Some(note) = &before
            && at_work.is_somebody_at(id, note.client).await?
        {
            return Err(in_use());
        }
        if at_work.is_at(id) {
            return Err(in_use());
        }
        let work = at_work.begin(id).await?;
        let note = Pending::new(Begun::Reservation, objects.client(), Text::default());
        let op = replace(id, before.as_ref(), &note);
        match objects.write(DIRECTORY, &SnapContext::default(), op).await {
            Ok(()) => {
                let (objects, background) = (objects.clone(), at_work.background.clone());
                return Ok(Kept { objects, id: id.clone(), note, background, work: Some(work) });
            }
            Err(Failure::MISMATCH) => {}
            Err(Failure::NOT_FOUND) => {
                let made = WriteOp::new().create(false);
                let made = objects.write(DIRECTORY, &SnapContext::default(), made).await;
                made.map_err(|failure| failed(failure, doing()))?;
            }
            Err(failure) => return Err(failed(failure, doing())),
        }
    }
}

/// That an id is kept.
#[derive(Debug)]
pub(crate) struct Kept<O: Objects> {
    objects: O,
    id: ImageId,
    note: Pending,
    background: Background,
    work: Option<Work>,
}

impl<O: Objects> Drop for Kept<O> {
    fn drop(&mut self) {
        drop(self.work.take());
        let (objects, op) = (self.objects.clone(), take_out(&self.id, &self.note));
        // A note that is left behind is of somebody who is not at it any more, and goes with the next who looks.
        self.background.spawn(async move {
            let _ = objects.write(DIRECTORY, &SnapContext::default(), op).await;
        });
    }
}

/// Answers those who ask, with something if this client is at work at the image that they name.
async fn answer<O: Objects>(
    objects: O,
    mut watch: O::Watch,
    images: Arc<Mutex<BTreeMap<ImageId, usize>>>,
    mut ended: oneshot::Receiver<()>,
) {
    loop {
        let event = tokio::select! {
            biased;
            _ = &mut ended => break,
            event = watch.next() => event,
        };
        if let Some(Event::Said { said, bytes, .. }) = event {
            let id = ImageId::new(String::from_utf8_lossy(&bytes).into_owned());
            let answer = if images.lock().contains_key(&id) { vec![1] } else { Vec::new() };
            let _ = watch.answer(said, answer).await;
            continue;
        }
        // It was lost: until there is another, others may take this client for dead, and what it has begun from it.
        loop {
            match objects.watch(CLIENTS).await {
                Ok(another) => {
                    let _ = std::mem::replace(&mut watch, another).close().await;
                    break;
                }
                Err(Failure::BLOCKLISTED) => return,
                Err(_) => {}
            }
            tokio::select! {
                _ = &mut ended => return,
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
    }
    let _ = watch.close().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_is_written() {
        let parent = ParentSpec { pool: 1, namespace: "".into(), image: "10".into(), snapshot: 4 };
        let all =
            [Begun::Reservation, Begun::Creation, Begun::Removal, Begun::Discard, Begun::Return];
        for begun in all {
            let note = Pending {
                begun,
                client: 7,
                chance: 9,
                name: "vm".into(),
                parent: Some(parent.clone()),
            };
            assert_eq!(Pending::from_bytes(&note.to_bytes()), Ok(note));
        }
        assert!(Pending::from_bytes(&[1, 1, 1, 0, 0, 0, 9]).is_err());
    }
}
