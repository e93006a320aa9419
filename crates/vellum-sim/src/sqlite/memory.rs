//! [`Memory`]: memory that is mapped by several connections, each at an address of its own, so that one can be cut off from it.

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// Zeros at first; it lasts as long as anybody maps it.
#[derive(Debug)]
pub(crate) struct Memory {
    file: OwnedFd,
    length: usize,
}

impl Memory {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { file: memfd_create("vellum-sim", MemfdFlags::CLOEXEC)?, length: 0 })
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }

    pub(crate) fn grow(&mut self, length: usize) -> io::Result<()> {
        ftruncate(&self.file, length as u64)?;
        self.length = length;
        Ok(())
    }

    /// Maps a range of it.
    #[expect(unsafe_code, reason = "memory is mapped, at no address in particular")]
    pub(crate) fn map(&self, at: Range<usize>) -> io::Result<Mapping> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let length = at.len();
        // SAFETY: the kernel chooses an address where nothing is.
        let address = unsafe {
            mmap(ptr::null_mut(), length, access, MapFlags::SHARED, &self.file, at.start as u64)
        }?;
        Ok(Mapping { address, length })
    }
}

/// A range of it, where one connection sees it.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: *mut c_void,
    length: usize,
}

// SAFETY: the address is only handed to SQLite, which keeps to its own locks.
#[expect(unsafe_code, reason = "an address that any thread may give to SQLite")]
unsafe impl Send for Mapping {}

impl Mapping {
    pub(crate) fn address(&self) -> *mut c_void {
        self.address
    }

    /// Cuts it off: it holds what it held, and what is written to it nobody else sees, nor does it see what others write.
    #[expect(unsafe_code, reason = "memory is replaced where it is")]
    pub(crate) fn part(&mut self) {
        let mut held = vec![0_u8; self.length];
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the range is mapped, by this value, which alone replaces it; nobody writes to it meanwhile, since the simulation
        // runs on one thread.
        unsafe {
            ptr::copy_nonoverlapping(self.address.cast(), held.as_mut_ptr(), self.length);
            mmap_anonymous(self.address, self.length, access, MapFlags::PRIVATE | MapFlags::FIXED)
                .expect("memory that is mapped can be mapped anew");
            ptr::copy_nonoverlapping(held.as_ptr(), self.address.cast(), self.length);
        }
    }
}

impl Drop for Mapping {
    #[expect(unsafe_code, reason = "memory is unmapped")]
    fn drop(&mut self) {
        // SAFETY: the range was mapped by this value, and SQLite has let go of it: it unmaps before it closes.
        let _ = unsafe { munmap(self.address, self.length) };
    }
}
