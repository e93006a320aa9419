//! One object: its content, what snapshots keep of it, and what the steps of an operation do to it. Plain values, no locks.

use std::collections::{BTreeMap, HashMap};

use crate::failure::{Failure, Result};
use crate::{Found, ReadStep, SnapContext, SnapId, WriteStep};

/// What an object holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClassObject {
    /// Its bytes.
    pub data: Vec<u8>,
    /// Its attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Its keys and their values.
    pub omap: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl ClassObject {
    /// Writes bytes, with zeros for what is missing before them.
    ///
    /// # Errors
    /// `INVALID` if they lie where no memory is.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let start = usize::try_from(offset).map_err(|_| Failure::INVALID)?;
        let end = start.checked_add(bytes.len()).ok_or(Failure::INVALID)?;
        self.data.resize(self.data.len().max(end), 0);
        self.data[start..end].copy_from_slice(bytes);
        Ok(())
    }
}

/// Methods that work on an object inside the cluster.
pub trait Class: Send + Sync + 'static {
    /// Calls a method for a client, by its number. What it does to the object counts only if it succeeds, and so does the operation that it is a step of; an
    /// object that it makes of none comes to be. It is `UNSUPPORTED` if there is none of this name.
    ///
    /// # Errors
    /// Whatever the method answers.
    fn call(
        &self,
        method: &str,
        client: u64,
        object: &mut Option<ClassObject>,
        input: &[u8],
    ) -> Result<Vec<u8>>;
}

/// Classes by their names.
pub(super) type Classes = HashMap<&'static str, Box<dyn Class>>;

/// Who calls methods, and of which classes.
pub(super) struct Caller<'a> {
    pub(super) classes: &'a Classes,
    pub(super) client: u64,
}

/// An object as it is, and as snapshots keep it.
#[derive(Clone, Debug, Default)]
pub(super) struct Object {
    head: Option<ClassObject>,
    /// The newest snapshot context that it was written under.
    newest: u64,
    /// Which change made it what it is.
    version: u64,
    /// What snapshots keep, the oldest first.
    clones: Vec<Kept>,
}

/// What the object was when some snapshots were taken.
#[derive(Clone, Debug)]
struct Kept {
    /// The newest of them when it was put aside.
    newest: u64,
    /// Those that are left.
    snapshots: Vec<u64>,
    content: ClassObject,
}

impl Object {
    /// Whether nothing is left of it.
    pub(super) fn is_gone(&self) -> bool {
        self.head.is_none() && self.clones.is_empty()
    }

    /// Whether it is there, and not only in snapshots.
    pub(super) fn is_there(&self) -> bool {
        self.head.is_some()
    }

    /// As a snapshot sees it.
    pub(super) fn at(&self, at: SnapId) -> Option<&ClassObject> {
        if at == SnapId::HEAD || at.0 > self.newest {
            return self.head.as_ref();
        }
        let kept = self.clones.iter().find(|kept| kept.newest >= at.0)?;
        kept.snapshots.contains(&at.0).then_some(&kept.content)
    }

    /// Which change made it what it is.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Takes steps, all or none, and puts aside first what snapshots must keep. What changes is at this version then.
    pub(super) fn write(
        &mut self,
        version: u64,
        context: &SnapContext,
        steps: &[WriteStep],
        caller: &Caller<'_>,
    ) -> Result<()> {
        if !context.snapshots.is_sorted_by(|a, b| a > b)
            || context.snapshots.first().is_some_and(|first| *first > context.newest)
        {
            return Err(Failure::INVALID);
        }
        if self.head.is_none() && steps.iter().any(WriteStep::only_looks) {
            return Err(Failure::NOT_FOUND);
        }
        let mut changed = self.head.clone();
        for step in steps {
            match step {
                WriteStep::AssertVersion(expected) => holds(*expected == self.version)?,
                step => take(step, &mut changed, caller)?,
            }
        }
        let may_do_nothing = |step: &WriteStep| {
            step.only_looks() || matches!(step, WriteStep::Zero { .. } | WriteStep::Truncate(_))
        };
        if changed == self.head && steps.iter().all(may_do_nothing) {
            return Ok(());
        }
        if context.newest > self.newest {
            let newer = context.snapshots.iter().copied().filter(|one| *one > self.newest);
            let snapshots: Vec<u64> = newer.collect();
            if let (Some(content), Some(newest)) = (&self.head, snapshots.first().copied()) {
                self.clones.push(Kept { newest, snapshots, content: content.clone() });
            }
            self.newest = context.newest;
        }
        self.head = changed;
        self.version = version;
        Ok(())
    }

    /// How many bytes it holds, what snapshots keep included, and in how many pieces.
    pub(super) fn space(&self) -> (usize, usize) {
        let all = self.head.iter().chain(self.clones.iter().map(|kept| &kept.content));
        all.fold((0, 0), |(bytes, pieces), content| (bytes + content.data.len(), pieces + 1))
    }

    /// Lets go of what a snapshot alone keeps.
    pub(super) fn forget(&mut self, snapshot: u64) {
        for kept in &mut self.clones {
            kept.snapshots.retain(|one| *one != snapshot);
        }
        self.clones.retain(|kept| !kept.snapshots.is_empty());
    }
}

fn there(object: &mut Option<ClassObject>) -> Result<&mut ClassObject> {
    object.as_mut().ok_or(Failure::NOT_FOUND)
}

fn holds(is_so: bool) -> Result<()> {
    if is_so { Ok(()) } else { Err(Failure::MISMATCH) }
}

/// Bytes from a place on, with zeros behind the end.
fn bytes_at(object: &ClassObject, offset: u64, length: usize) -> Vec<u8> {
    let data = &object.data;
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
    let mut bytes = data[start..].iter().copied().take(length).collect::<Vec<u8>>();
    bytes.resize(length, 0);
    bytes
}

/// One step.
fn take(step: &WriteStep, object: &mut Option<ClassObject>, caller: &Caller<'_>) -> Result<()> {
    match step {
        WriteStep::AssertExists | WriteStep::AssertVersion(_) => there(object).map(drop),
        WriteStep::CompareXattr { name, value } => {
            let found = there(object)?.xattrs.get(name).map_or(&[][..], Vec::as_slice);
            holds(found == value)
        }
        WriteStep::CompareOmap { key, value } => {
            let found = there(object)?.omap.get(key).map_or(&[][..], Vec::as_slice);
            holds(found == value)
        }
        WriteStep::CompareExtent { offset, data } => {
            holds(bytes_at(there(object)?, *offset, data.len()) == data[..])
        }
        WriteStep::Create { exclusive } => {
            if *exclusive && object.is_some() {
                return Err(Failure::EXISTS);
            }
            object.get_or_insert_default();
            Ok(())
        }
        WriteStep::Write { offset, data } => object.get_or_insert_default().write(*offset, data),
        WriteStep::WriteFull(data) => {
            object.get_or_insert_default().data = data.to_vec();
            Ok(())
        }
        WriteStep::Zero { offset, length } => {
            if let Some(object) = object {
                let start = usize::try_from(*offset).unwrap_or(usize::MAX);
                let end = usize::try_from(offset.saturating_add(*length)).unwrap_or(usize::MAX);
                if end < object.data.len() {
                    object.data[start..end].fill(0);
                } else {
                    object.data.truncate(start);
                }
            }
            Ok(())
        }
        WriteStep::Truncate(length) => {
            if let Some(object) = object {
                object.data.resize(usize::try_from(*length).map_err(|_| Failure::INVALID)?, 0);
            }
            Ok(())
        }
        WriteStep::Remove => object.take().map(drop).ok_or(Failure::NOT_FOUND),
        WriteStep::SetXattr { name, value } => {
            object.get_or_insert_default().xattrs.insert(name.clone(), value.clone());
            Ok(())
        }
        WriteStep::RemoveXattr(name) => {
            there(object)?.xattrs.remove(name);
            Ok(())
        }
        WriteStep::SetOmap(values) => {
            object.get_or_insert_default().omap.extend(values.clone());
            Ok(())
        }
        WriteStep::RemoveOmap(keys) => {
            there(object)?.omap.retain(|key, _| !keys.contains(key));
            Ok(())
        }
        WriteStep::Call { class, method, input } => {
            call(caller, class, method, object, input).map(drop)
        }
        WriteStep::AllocHint { .. } => {
            object.get_or_insert_default();
            Ok(())
        }
    }
}

fn call(
    caller: &Caller<'_>,
    class: &str,
    method: &str,
    object: &mut Option<ClassObject>,
    input: &[u8],
) -> Result<Vec<u8>> {
    let class = caller.classes.get(class).ok_or(Failure::UNSUPPORTED)?;
    class.call(method, caller.client, object, input)
}

/// What the steps of a read find.
pub(super) fn look(
    object: Option<&ClassObject>,
    steps: &[ReadStep],
    caller: &Caller<'_>,
) -> Result<Vec<Found>> {
    steps.iter().map(|step| look_once(object, step, caller)).collect()
}

fn look_once(object: Option<&ClassObject>, step: &ReadStep, caller: &Caller<'_>) -> Result<Found> {
    let object = object.ok_or(Failure::NOT_FOUND)?;
    Ok(match step {
        ReadStep::AssertExists => Found::Nothing,
        ReadStep::Stat => Found::Length(object.data.len() as u64),
        ReadStep::Xattrs => Found::Xattrs(object.xattrs.clone()),
        ReadStep::Omap { after, prefix, max } => {
            let all = object.omap.iter().filter(|(key, _)| {
                key.starts_with(prefix.as_bytes()) && key.as_slice() > after.as_bytes()
            });
            let max = usize::try_from(*max).unwrap_or(usize::MAX);
            let mut all = all.map(|(key, value)| (key.clone(), value.clone()));
            let values = all.by_ref().take(max).collect();
            Found::Omap { values, more: all.next().is_some() }
        }
        ReadStep::OmapKeys(keys) => {
            let there = object.omap.iter().filter(|(key, _)| keys.contains(*key));
            let values = there.map(|(key, value)| (key.clone(), value.clone())).collect();
            Found::Omap { values, more: false }
        }
        ReadStep::Call { class, method, input } => {
            // What it does to the object is for nothing.
            Found::Output(call(caller, class, method, &mut Some(object.clone()), input)?)
        }
    })
}
