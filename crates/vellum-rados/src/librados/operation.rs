//! Operations as librados has them, made from [`WriteOp`] and [`ReadOp`](crate::ReadOp).
//!
//! librados copies what a step is given when the step is added, and writes what it finds out where it was told to: there are boxes
//! for that here, which live for as long as the operation.
#![expect(unsafe_code, reason = "librados takes and fills memory through pointers")]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::{ptr, slice};

use super::library::{Handle, Library};
use crate::failure::{Failure, Result};
use crate::{DataRead, Found, ReadStep, WriteOp, WriteStep};

/// Compare as equal, of the comparisons that librados knows.
const EQUAL: u8 = 1;

/// A text for librados. `INVALID` if it has a zero byte in it.
pub(super) fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Failure::INVALID)
}

fn start(bytes: &[u8]) -> *const c_char {
    bytes.as_ptr().cast()
}

/// Many byte strings, as two lists.
struct Many {
    starts: Vec<*const c_char>,
    lengths: Vec<usize>,
}

impl Many {
    fn of<'a>(all: impl Iterator<Item = &'a Vec<u8>>) -> Self {
        let (starts, lengths) = all.map(|bytes| (start(bytes), bytes.len())).unzip();
        Self { starts, lengths }
    }
}

/// A write operation. It is carried out once: librados would carry it out empty the second time.
pub(super) struct NativeWrite {
    pub(super) handle: Handle,
    library: &'static Library,
}

// SAFETY: an operation that nobody works on is memory without a thread of its own.
unsafe impl Send for NativeWrite {}

impl NativeWrite {
    pub(super) fn new(library: &'static Library, op: &WriteOp) -> Result<Self> {
        op.check()?;
        // SAFETY: it makes one, and nothing else.
        let new = Self { handle: unsafe { (library.create_write_op)() }, library };
        // Without it a comparison says one thing of what never was there, another of what snapshots keep, and a third where
        // something else is written.
        if op.steps.iter().any(WriteStep::only_looks) {
            new.add(&WriteStep::AssertExists)?;
        }
        op.steps.iter().try_for_each(|step| new.add(step))?;
        Ok(new)
    }

    fn add(&self, step: &WriteStep) -> Result<()> {
        let Self { handle, library } = *self;
        // SAFETY: the handle is of a write operation that was not carried out. All pointers are to what lives until the end
        // of the call, which copies what they point to; texts end with a zero byte.
        unsafe {
            match step {
                WriteStep::AssertExists => (library.write_op_assert_exists)(handle),
                WriteStep::AssertVersion(version) => {
                    (library.write_op_assert_version)(handle, *version);
                }
                WriteStep::CompareXattr { name, value } => {
                    let name = text(name)?;
                    let (value, length) = (start(value), value.len());
                    (library.write_op_cmpxattr)(handle, name.as_ptr(), EQUAL, value, length);
                }
                WriteStep::CompareOmap { key, value } => (library.write_op_omap_cmp2)(
                    handle,
                    start(key),
                    EQUAL,
                    start(value),
                    key.len(),
                    value.len(),
                    ptr::null_mut(),
                ),
                WriteStep::CompareExtent { offset, data } => {
                    let (bytes, length) = (start(data), data.len());
                    (library.write_op_cmpext)(handle, bytes, length, *offset, ptr::null_mut());
                }
                WriteStep::Create { exclusive } => {
                    (library.write_op_create)(handle, c_int::from(*exclusive), ptr::null());
                }
                WriteStep::Write { offset, data } => {
                    (library.write_op_write)(handle, start(data), data.len(), *offset);
                }
                WriteStep::WriteFull(data) => {
                    (library.write_op_write_full)(handle, start(data), data.len());
                }
                WriteStep::Zero { offset, length } => {
                    (library.write_op_zero)(handle, *offset, *length);
                }
                WriteStep::Truncate(length) => (library.write_op_truncate)(handle, *length),
                WriteStep::Remove => (library.write_op_remove)(handle),
                WriteStep::SetXattr { name, value } => {
                    let name = text(name)?;
                    (library.write_op_setxattr)(handle, name.as_ptr(), start(value), value.len());
                }
                WriteStep::RemoveXattr(name) => {
                    (library.write_op_rmxattr)(handle, text(name)?.as_ptr());
                }
                WriteStep::SetOmap(values) => self.set_omap(values),
                WriteStep::RemoveOmap(keys) => {
                    let keys = Many::of(keys.iter());
                    let (starts, lengths) = (keys.starts.as_ptr(), keys.lengths.as_ptr());
                    (library.write_op_omap_rm_keys2)(handle, starts, lengths, keys.starts.len());
                }
                WriteStep::Call { class, method, input } => {
                    let (class, method) = (text(class)?, text(method)?);
                    let (class, method) = (class.as_ptr(), method.as_ptr());
                    let (input, length) = (start(input), input.len());
                    (library.write_op_exec)(handle, class, method, input, length, ptr::null_mut());
                }
                WriteStep::AllocHint { object_size, write_size } => {
                    (library.write_op_set_alloc_hint2)(handle, *object_size, *write_size, 0);
                }
            }
        }
        Ok(())
    }

    fn set_omap(&self, values: &BTreeMap<Vec<u8>, Vec<u8>>) {
        let (keys, values) = (Many::of(values.keys()), Many::of(values.values()));
        // SAFETY: as in `add`; all lists are of one length.
        unsafe {
            (self.library.write_op_omap_set2)(
                self.handle,
                keys.starts.as_ptr(),
                values.starts.as_ptr(),
                keys.lengths.as_ptr(),
                values.lengths.as_ptr(),
                keys.starts.len(),
            );
        }
    }
}

impl Drop for NativeWrite {
    fn drop(&mut self) {
        // SAFETY: it was made by `new`, and librados is done with it.
        unsafe { (self.library.release_write_op)(self.handle) }
    }
}

/// Where a step of a read operation puts what it finds.
enum Slot {
    Nothing,
    Length(u64),
    Xattrs(Handle),
    Omap { values: Handle, more: u8 },
    Output { bytes: *mut c_char, length: usize },
}

/// A read operation with all that it fills.
pub(super) struct NativeRead {
    pub(super) handle: Handle,
    slots: Vec<Slot>,
    data: Option<DataRead>,
    read: usize,
    library: &'static Library,
}

// SAFETY: an operation that nobody works on is memory without a thread of its own, and so is what it has found.
unsafe impl Send for NativeRead {}

impl NativeRead {
    /// Not complete before [`aim`](Self::aim), once it is in its place.
    pub(super) fn new(library: &'static Library, data: Option<DataRead>) -> Self {
        // SAFETY: it makes one, and nothing else.
        let handle = unsafe { (library.create_read_op)() };
        Self { handle, slots: Vec::new(), data, read: 0, library }
    }

    /// Adds the steps, and tells librados where to put what they find: into this, which must not be moved until it is done.
    pub(super) fn aim(&mut self, steps: &[ReadStep]) -> Result<()> {
        self.slots = steps
            .iter()
            .map(|step| match step {
                ReadStep::AssertExists => Slot::Nothing,
                ReadStep::Stat => Slot::Length(0),
                ReadStep::Xattrs => Slot::Xattrs(ptr::null_mut()),
                ReadStep::Omap { .. } | ReadStep::OmapKeys(_) => {
                    Slot::Omap { values: ptr::null_mut(), more: 0 }
                }
                ReadStep::Call { .. } => Slot::Output { bytes: ptr::null_mut(), length: 0 },
            })
            .collect();
        let (handle, library) = (self.handle, self.library);
        for (step, slot) in steps.iter().zip(&mut self.slots) {
            add(handle, library, step, slot)?;
        }
        if let Some(DataRead { offset, buffer, into }) = &mut self.data {
            let into = buffer.get_mut(into.clone()).ok_or(Failure::INVALID)?;
            if into.is_empty() {
                // To read nothing would be to ask for the whole object.
                return add(handle, library, &ReadStep::AssertExists, &mut Slot::Nothing);
            }
            // SAFETY: the buffer is on the heap and belongs to this, as does `read`; both stay where they are until the
            // operation is done.
            unsafe {
                let start = into.as_mut_ptr().cast();
                let read = &raw mut self.read;
                (library.read_op_read)(handle, *offset, into.len(), start, read, ptr::null_mut());
            }
        }
        Ok(())
    }

    /// What was found, once the operation has succeeded.
    pub(super) fn found(&mut self) -> (usize, Vec<Found>) {
        let library = self.library;
        let found = std::mem::take(&mut self.slots).into_iter();
        (self.read, found.map(|mut slot| slot.take(library)).collect())
    }

    pub(super) fn into_data(mut self) -> Option<DataRead> {
        self.data.take()
    }
}

impl Drop for NativeRead {
    fn drop(&mut self) {
        for mut slot in std::mem::take(&mut self.slots) {
            slot.free(self.library);
        }
        // SAFETY: it was made by `new`, and librados is done with it.
        unsafe { (self.library.release_read_op)(self.handle) }
    }
}

fn add(handle: Handle, library: &Library, step: &ReadStep, slot: &mut Slot) -> Result<()> {
    let none = ptr::null_mut::<c_int>();
    // SAFETY: the handle is of a read operation that was not carried out. What the steps are given lives until the end of the
    // call, which copies it; the slots stay where they are until the operation is done.
    unsafe {
        match (step, slot) {
            (ReadStep::Stat, Slot::Length(length)) => {
                (library.read_op_stat)(handle, length, ptr::null_mut(), none);
            }
            (ReadStep::Xattrs, Slot::Xattrs(values)) => {
                (library.read_op_getxattrs)(handle, values, none);
            }
            (ReadStep::Omap { after, prefix, max }, Slot::Omap { values, more }) => {
                let (after, prefix) = (text(after)?, text(prefix)?);
                let (after, prefix) = (after.as_ptr(), prefix.as_ptr());
                (library.read_op_omap_get_vals2)(handle, after, prefix, *max, values, more, none);
            }
            (ReadStep::OmapKeys(keys), Slot::Omap { values, .. }) => {
                let keys = Many::of(keys.iter());
                let (starts, lengths) = (keys.starts.as_ptr(), keys.lengths.as_ptr());
                let count = keys.starts.len();
                (library.read_op_omap_get_vals_by_keys2)(
                    handle, starts, count, lengths, values, none,
                );
            }
            (ReadStep::Call { class, method, input }, Slot::Output { bytes, length }) => {
                let (class, method) = (text(class)?, text(method)?);
                let (class, method) = (class.as_ptr(), method.as_ptr());
                let (start, given) = (start(input), input.len());
                (library.read_op_exec)(handle, class, method, start, given, bytes, length, none);
            }
            (_, _) => (library.read_op_assert_exists)(handle),
        }
    }
    Ok(())
}

impl Slot {
    /// Frees what librados has made for it, and does not look at that: of an operation that was never answered there is
    /// nothing to see, and to look for it would be to follow a pointer that leads nowhere.
    fn free(&mut self, library: &Library) {
        // SAFETY: each is what librados has made for this, if it is there, and nobody else knows it.
        unsafe {
            match std::mem::replace(self, Self::Nothing) {
                Self::Xattrs(values) if !values.is_null() => (library.getxattrs_end)(values),
                Self::Omap { values, .. } if !values.is_null() => (library.omap_get_end)(values),
                Self::Output { bytes, .. } if !bytes.is_null() => (library.buffer_free)(bytes),
                _ => {}
            }
        }
    }

    /// What is in it once the operation has succeeded, and frees what librados has made for it.
    fn take(&mut self, library: &Library) -> Found {
        match std::mem::replace(self, Self::Nothing) {
            Self::Nothing => Found::Nothing,
            Self::Length(length) => Found::Length(length),
            Self::Xattrs(values) => Found::Xattrs(xattrs(values, library)),
            Self::Omap { values, more } => {
                Found::Omap { values: omap(values, library), more: more != 0 }
            }
            Self::Output { bytes, length } => Found::Output(output(bytes, length, library)),
        }
    }
}

fn xattrs(values: Handle, library: &Library) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    if values.is_null() {
        return all;
    }
    loop {
        let (mut name, mut value, mut length) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the iterator is one that librados has made; what it points to lives until it is ended, and is copied. The name
        // ends with a zero byte, and is null at the end.
        unsafe {
            let next =
                (library.getxattrs_next)(values, &raw mut name, &raw mut value, &raw mut length);
            if next < 0 || name.is_null() {
                (library.getxattrs_end)(values);
                return all;
            }
            let name = CStr::from_ptr(name).to_string_lossy().into_owned();
            all.insert(name, copied(value, length));
        }
    }
}

fn omap(values: Handle, library: &Library) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut all = BTreeMap::new();
    if values.is_null() {
        return all;
    }
    loop {
        let (mut key, mut value) = (ptr::null_mut(), ptr::null_mut());
        let (mut key_length, mut length) = (0, 0);
        // SAFETY: as for attributes, with lengths for both.
        unsafe {
            let next = (library.omap_get_next2)(
                values,
                &raw mut key,
                &raw mut value,
                &raw mut key_length,
                &raw mut length,
            );
            if next < 0 || key.is_null() {
                (library.omap_get_end)(values);
                return all;
            }
            all.insert(copied(key, key_length), copied(value, length));
        }
    }
}

/// What librados has allocated for an answer, which is freed.
pub(super) fn output(bytes: *mut c_char, length: usize, library: &Library) -> Vec<u8> {
    if bytes.is_null() {
        return Vec::new();
    }
    // SAFETY: librados allocated it, says how long it is, and has given it away.
    unsafe {
        let all = copied(bytes, length);
        (library.buffer_free)(bytes);
        all
    }
}

/// A copy of bytes of librados'.
///
/// # Safety
/// There are as many, or the pointer is null.
pub(super) unsafe fn copied(bytes: *const c_char, length: usize) -> Vec<u8> {
    if bytes.is_null() || length == 0 {
        return Vec::new();
    }
    // SAFETY: the caller says so.
    unsafe { slice::from_raw_parts(bytes.cast::<u8>(), length) }.to_vec()
}
