//! System calls that no safe library offers: open-file-description locks, and the extent-size hint.
#![expect(unsafe_code, reason = "fcntl with F_OFD_SETLK and two ioctls have no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vellum_core::Extent;

use crate::LockKind;

/// Takes or releases an open-file-description lock without waiting. `false` if another description holds one that
/// conflicts. See fcntl(2), "Open file description locks".
pub(crate) fn set_lock(file: &File, range: Extent, kind: Option<LockKind>) -> io::Result<bool> {
    let signed = |value: u64| {
        libc::off_t::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
    };
    let kind = match kind {
        Some(LockKind::Shared) => libc::F_RDLCK,
        Some(LockKind::Exclusive) => libc::F_WRLCK,
        None => libc::F_UNLCK,
    };
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: signed(range.offset())?,
        l_len: signed(range.length())?,
        l_pid: 0, // must be zero for these locks
    };
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and `lock` is a whole `flock` that the kernel only
    // reads during the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

const FS_XFLAG_EXTSIZE: u32 = 0x0000_0800;
const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f;
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820;

/// Sets the extent-size hint of an empty file, where the file system knows one.
pub(crate) fn hint_extent_size(file: &File, bytes: u32) -> io::Result<()> {
    let mut attributes = FsXattr::default();
    // SAFETY: the descriptor is open for as long as `file` is borrowed; the kernel writes a `struct fsxattr`, which is what
    // the pointer leads to (28 bytes, as the number of the ioctl says).
    if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attributes) } != 0 {
        return Err(io::Error::last_os_error());
    }
    attributes.xflags |= FS_XFLAG_EXTSIZE;
    attributes.extsize = bytes;
    // SAFETY: as above; the kernel only reads.
    if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const attributes) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_is_as_long_as_the_number_of_its_ioctl_says() {
        assert_eq!(size_of::<FsXattr>(), 28);
        assert_eq!((FS_IOC_FSGETXATTR >> 16) & 0x3fff, 28);
        assert_eq!((FS_IOC_FSSETXATTR >> 16) & 0x3fff, 28);
    }
}
