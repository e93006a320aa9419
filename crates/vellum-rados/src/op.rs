//! [`WriteOp`] and [`ReadOp`]: what is to be done with one object, in one atomic step, as data.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use vellum_core::Buffer;

/// Steps that change an object. They are taken in their order, all of them or, if one fails, none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WriteOp {
    /// The steps.
    pub steps: Vec<WriteStep>,
}

/// One step of a [`WriteOp`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WriteStep {
    /// Fails with `NOT_FOUND` unless the object is there.
    AssertExists,
    /// Fails with `MISMATCH` unless an attribute has this value; one that is not there has none, as if it were empty. Fails with
    /// `NOT_FOUND` if there is no object.
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
    /// Makes a range zeros. Makes no object, and does not make it longer.
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
    /// Removes keys; those that are not there are fine.
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

impl WriteOp {
    /// One of no steps.
    pub fn new() -> Self {
        Self::default()
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
