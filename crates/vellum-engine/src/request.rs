//! [`Requests`]: what clients of the storage want of who owns an image, where the storage itself carries their words.
//!
//! This is the one way in which something comes *up* through the contract: the engine hears it, and whoever has the image open
//! decides and does it. How processes of this program find each other on one machine is not here; that is no matter of the storage.

use std::fmt;

use tokio::sync::mpsc;
use vellum_core::SnapshotName;

use crate::{Change, Error, Result};

/// What is wanted of who owns an image, one after the other, for as long as its writer is open, and also while it was handed over.
#[derive(Debug)]
pub struct Requests(Option<mpsc::Receiver<Request>>);

impl Requests {
    /// None ever, where the storage carries no words.
    pub fn never() -> Self {
        Self(None)
    }

    /// Those that an engine hears. Whoever asks waits meanwhile, so there is no use in many.
    pub fn heard(from: mpsc::Receiver<Request>) -> Self {
        Self(Some(from))
    }

    /// The next. Waits, for ever where none can come (any more). May be dropped at any time; nothing is lost by it.
    pub async fn next(&mut self) -> Request {
        if let Some(from) = &mut self.0
            && let Some(request) = from.recv().await
        {
            return request;
        }
        std::future::pending().await
    }
}

/// Something that is wanted. One that is dropped without an answer is asked again, after a while.
#[derive(Debug)]
pub struct Request {
    /// What.
    pub wanted: Wanted,
    /// Who is told.
    pub reply: Box<dyn Reply>,
}

/// What can be wanted.
#[derive(Clone, PartialEq, Debug)]
pub enum Wanted {
    /// The ownership, by another client that has the image open as well.
    Ownership(Wants),
    /// A snapshot.
    Snapshot {
        /// Its name.
        name: SnapshotName,
        /// Whether it goes with its last child.
        auto: bool,
    },
    /// That the image is cut off from its parent.
    Flatten,
    /// A change of the record.
    Change(Change),
    /// Nothing: an image that was handed over is free again. Until it is taken back, others may begin to use it.
    Free,
}

/// Why somebody wants the ownership.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wants {
    /// To use an image that somebody else may be using: whoever has users of its own rather keeps it.
    ToBegin,
    /// To write, as one of several clients that have the image open and hand it to each other: who gave it away, or is no program of
    /// this kind.
    ATurn,
}

/// What has become of something that was asked of who owns an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heeded {
    /// It was done.
    Done,
    /// Nobody owns the image who could be asked, or not for now.
    ByNobody,
}

/// Told how far something is, and how far it goes.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

/// Whoever asked, and waits for a moment.
pub trait Reply: fmt::Debug + Send + 'static {
    /// It will be done, or was. False if whoever asked has stopped waiting for this: then it is not to be done.
    fn accept(&mut self) -> bool;

    /// It will not be done.
    fn refuse(self: Box<Self>, error: &Error);

    /// How far it is. Whoever asked takes silence for death, so this is for once in a few seconds at least.
    fn progress(&mut self, done: u64, total: u64);

    /// What has come of something that was accepted.
    fn finish(self: Box<Self>, result: Result<()>);
}
