//! [`WriteOp`] and [`ReadOp`]: what is to be done with one object, in one atomic step, as data.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use vellum_core::Buffer;

use crate::failure::{Failure, Result};

/// Steps that change an object. They are taken in their order, all of them or, if one fails, none. Those that only
/// [look](WriteStep::only_looks) come first, and fail with `NOT_FOUND` if there is no object. See [`check`](Self::check).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WriteOp {
    /// The steps.
    pub steps: Vec<WriteStep>,
}

/// One step of a [`WriteOp`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WriteStep {
    /// Nothing but that the object is there.
    AssertExists,
    /// Fails with `MISMATCH` unless the object is at this [version](crate::ReadDone::version).
    AssertVersion(u64),
    /// Fails with `MISMATCH` unless an attribute has this value; one that is not there has none, as if it were empty.
    CompareXattr {
        /// Its name.
        name: String,
        /// Its value.
        value: Vec<u8>,
    },
    /// Fails with `MISMATCH` unless a key has this value; one that is not there has none, as if it were empty.
    CompareOmap {
        /// The key.
        key: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
    },
    /// Fails with `MISMATCH` unless these bytes are there; what lies behind the end counts as zeros.
    CompareExtent {
        /// Where in the object.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// Makes an object of no bytes, if there is none. With `exclusive` fails with `EXISTS` if there is one.
    Create {
        /// Whether there must be none.
        exclusive: bool,
    },
    /// Writes bytes, and makes the object and what is missing before them, which is zeros.
    Write {
        /// Where in the object.
        offset: u64,
        /// What.
        data: Bytes,
    },
    /// Makes these bytes the whole object.
    WriteFull(Bytes),
    /// Makes a range zeros. Makes no object, and does not make it longer; one that ends within the range, or with it, ends where
    /// the range begins.
    Zero {
        /// Where in the object.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// Makes the object so long, with zeros behind its end. Makes no object.
    Truncate(u64),
    /// Removes the object; snapshots keep what they have. Fails with `NOT_FOUND` if there is none.
    Remove,
    /// Sets an attribute, and makes the object.
    SetXattr {
        /// Its name.
        name: String,
        /// Its value.
        value: Vec<u8>,
    },
    /// Removes an attribute. Fails with `NOT_FOUND` if there is no object.
    RemoveXattr(String),
    /// Sets keys, and makes the object.
    SetOmap(BTreeMap<Vec<u8>, Vec<u8>>),
    /// Removes keys; those that are not there are fine. Fails with `NOT_FOUND` if there is no object.
    RemoveOmap(BTreeSet<Vec<u8>>),
    /// Has a method of an object class work on the object, inside the cluster.
    Call {
        /// The class.
        class: &'static str,
        /// The method.
        method: &'static str,
        /// What it is given.
        input: Vec<u8>,
    },
    /// Says how large the object is going to be, and its writes.
    AllocHint {
        /// Bytes in the object.
        object_size: u64,
        /// Bytes in a write.
        write_size: u64,
    },
}

impl WriteStep {
    /// Whether a step changes nothing.
    pub fn only_looks(&self) -> bool {
        matches!(
            self,
            Self::AssertExists
                | Self::AssertVersion(_)
                | Self::CompareXattr { .. }
                | Self::CompareOmap { .. }
                | Self::CompareExtent { .. }
        )
    }
}

impl WriteStep {
    /// The object class that it calls, if it calls one.
    fn class(&self) -> Option<&'static str> {
        if let Self::Call { class, .. } = self { Some(*class) } else { None }
    }
}

impl WriteOp {
    /// One of no steps.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether an operation means the same whatever the object has been through; if not, it is not sent. These do not, on Ceph
    /// 16.2: a range of no bytes that becomes zeros, of which the storage daemons die; no bytes as a whole object, which are an
    /// object or not by what snapshots keep of an older one; a look behind a change, and a second method of one object class, which
    /// see what was there before; and a removal with other changes, which may bring attributes back.
    ///
    /// # Errors
    /// `INVALID`; also for the name of an attribute with a zero byte in it.
    pub fn check(&self) -> Result<()> {
        let is_named_well = |step: &WriteStep| match step {
            WriteStep::SetXattr { name, .. }
            | WriteStep::CompareXattr { name, .. }
            | WriteStep::RemoveXattr(name) => !name.contains('\0'),
            WriteStep::Zero { length, .. } => *length > 0,
            WriteStep::WriteFull(data) => !data.is_empty(),
            _ => true,
        };
        let looks = self.steps.iter().take_while(|step| step.only_looks()).count();
        let changes = &self.steps[looks..];
        let removes = changes.contains(&WriteStep::Remove);
        let classes = || changes.iter().filter_map(WriteStep::class);
        let calls_twice =
            classes().enumerate().any(|(n, class)| classes().take(n).any(|it| it == class));
        let is_bad = !self.steps.iter().all(is_named_well)
            || changes.iter().any(WriteStep::only_looks)
            || (removes && changes.len() > 1)
            || calls_twice;
        if is_bad { Err(Failure::INVALID) } else { Ok(()) }
    }

    /// With one step more.
    #[must_use]
    pub fn then(mut self, step: WriteStep) -> Self {
        self.steps.push(step);
        self
    }

    /// [`WriteStep::AssertExists`].
    #[must_use]
    pub fn assert_exists(self) -> Self {
        self.then(WriteStep::AssertExists)
    }

    /// [`WriteStep::AssertVersion`].
    #[must_use]
    pub fn assert_version(self, version: u64) -> Self {
        self.then(WriteStep::AssertVersion(version))
    }

    /// [`WriteStep::CompareXattr`].
    #[must_use]
    pub fn compare_xattr(self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.then(WriteStep::CompareXattr { name: name.into(), value: value.into() })
    }

    /// [`WriteStep::CompareOmap`].
    #[must_use]
    pub fn compare_omap(self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        self.then(WriteStep::CompareOmap { key: key.into(), value: value.into() })
    }

    /// [`WriteStep::Create`].
    #[must_use]
    pub fn create(self, exclusive: bool) -> Self {
        self.then(WriteStep::Create { exclusive })
    }

    /// [`WriteStep::Write`].
    #[must_use]
    pub fn write(self, offset: u64, data: impl Into<Bytes>) -> Self {
        self.then(WriteStep::Write { offset, data: data.into() })
    }

    /// [`WriteStep::SetXattr`].
    #[must_use]
    pub fn set_xattr(self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.then(WriteStep::SetXattr { name: name.into(), value: value.into() })
    }

    /// [`WriteStep::SetOmap`] of one key.
    #[must_use]
    pub fn set_omap(self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        self.then(WriteStep::SetOmap(BTreeMap::from([(key.into(), value.into())])))
    }

    /// [`WriteStep::Call`].
    #[must_use]
    pub fn call(
        self,
        class: &'static str,
        method: &'static str,
        input: impl Into<Vec<u8>>,
    ) -> Self {
        self.then(WriteStep::Call { class, method, input: input.into() })
    }

    /// [`WriteStep::Remove`].
    #[must_use]
    pub fn remove(self) -> Self {
        self.then(WriteStep::Remove)
    }
}

/// Steps that look at an object, all at one moment.
#[derive(Debug, Default)]
pub struct ReadOp {
    /// The steps.
    pub steps: Vec<ReadStep>,
    /// Bytes to read beside them.
    pub data: Option<DataRead>,
}

/// One step of a [`ReadOp`]. If one fails, the whole operation does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadStep {
    /// Fails with `NOT_FOUND` unless the object is there.
    AssertExists,
    /// How long the object is: [`Found::Length`].
    Stat,
    /// All attributes: [`Found::Xattrs`].
    Xattrs,
    /// Keys that begin with a prefix, in their order: [`Found::Omap`].
    Omap {
        /// Only those behind this one.
        after: String,
        /// What they begin with.
        prefix: String,
        /// The most that are answered; the cluster may answer fewer.
        max: u64,
    },
    /// Those of some keys that are there: [`Found::Omap`].
    OmapKeys(BTreeSet<Vec<u8>>),
    /// Has a method of an object class look at the object: [`Found::Output`].
    Call {
        /// The class.
        class: &'static str,
        /// The method.
        method: &'static str,
        /// What it is given.
        input: Vec<u8>,
    },
}

/// Bytes to read, and where they go.
#[derive(Debug)]
pub struct DataRead {
    /// Where in the object.
    pub offset: u64,
    /// The buffer.
    pub buffer: Buffer,
    /// Which part of it. What lies behind the end of the object is left as it was.
    pub into: Range<usize>,
}

impl ReadOp {
    /// One of no steps.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one step more.
    #[must_use]
    pub fn then(mut self, step: ReadStep) -> Self {
        self.steps.push(step);
        self
    }

    /// [`ReadStep::Call`].
    #[must_use]
    pub fn call(
        self,
        class: &'static str,
        method: &'static str,
        input: impl Into<Vec<u8>>,
    ) -> Self {
        self.then(ReadStep::Call { class, method, input: input.into() })
    }

    /// That reads `into.len()` bytes from `offset` into a buffer.
    #[must_use]
    pub fn data(self, offset: u64, buffer: Buffer, into: Range<usize>) -> Self {
        Self { data: Some(DataRead { offset, buffer, into }), ..self }
    }
}

/// What a step found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// The step finds nothing out.
    Nothing,
    /// Bytes in the object.
    Length(u64),
    /// All attributes.
    Xattrs(BTreeMap<String, Vec<u8>>),
    /// Keys and values, and whether there are more.
    Omap {
        /// Those that are answered.
        values: BTreeMap<Vec<u8>, Vec<u8>>,
        /// Whether there are others behind them.
        more: bool,
    },
    /// What a method answered.
    Output(Vec<u8>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_not_mean_the_same_everywhere_is_not_sent() {
        let bad = [
            WriteOp::new().then(WriteStep::Zero { offset: 7, length: 0 }),
            WriteOp::new().then(WriteStep::WriteFull(Bytes::new())),
            WriteOp::new().write(0, "x").assert_exists(),
            WriteOp::new().remove().write(0, "x"),
            WriteOp::new().set_xattr("a", "").remove(),
            WriteOp::new().set_xattr("a\0b", ""),
            WriteOp::new().call("rbd", "a", "").call("rbd", "b", ""),
        ];
        for op in bad {
            assert_eq!(op.check(), Err(Failure::INVALID), "{op:?}");
        }
        let good = [
            WriteOp::new(),
            WriteOp::new().compare_xattr("a", "").assert_exists().write(0, "x").set_xattr("a", ""),
            WriteOp::new().assert_exists().remove(),
            WriteOp::new().create(true).then(WriteStep::Truncate(0)),
            WriteOp::new().call("lock", "assert_locked", "").call("rbd", "a", ""),
        ];
        for op in good {
            assert_eq!(op.check(), Ok(()), "{op:?}");
        }
    }
}
