//! What lies in the place of a file of a layer, where that cannot be opened.

use std::io::{Error as IoError, ErrorKind as Io};

use rustix::io::Errno;
use vellum_engine::Error;

/// That a file, or a directory, cannot be opened. Where something of another kind lies in its place, that is damage, and no fault
/// of the storage.
pub(crate) fn cannot_open(doing: impl Into<String>, error: IoError) -> Error {
    if !is_of_another_kind(&error) {
        return Error::io(doing, error);
    }
    let doing = doing.into();
    Error::corrupt(format!("{doing}: something else lies in its place")).with_source(error)
}

/// Whether a call failed for what it was to open: a directory, a pipe, a socket, a device, links in a circle, or a file where a
/// directory must be.
fn is_of_another_kind(error: &IoError) -> bool {
    match error.raw_os_error() {
        Some(code) => {
            let kinds = [Errno::ISDIR, Errno::NOTDIR, Errno::LOOP, Errno::NXIO];
            kinds.iter().any(|kind| kind.raw_os_error() == code)
        }
        // Found out by the seam, without the kernel.
        None => matches!(error.kind(), Io::InvalidInput | Io::IsADirectory | Io::NotADirectory),
    }
}

#[cfg(test)]
mod tests {
    use vellum_engine::ErrorKind;

    use super::*;

    #[test]
    fn what_is_of_another_kind_is_damage_and_other_failures_are_not() {
        let kind = |error| cannot_open("open map", error).kind();
        for kernel in [Errno::ISDIR, Errno::NOTDIR, Errno::LOOP, Errno::NXIO] {
            assert_eq!(kind(kernel.into()), ErrorKind::Corrupt, "{kernel}");
        }
        assert_eq!(kind(Io::InvalidInput.into()), ErrorKind::Corrupt);
        for kernel in [Errno::IO, Errno::MFILE, Errno::ACCESS, Errno::INVAL] {
            assert_eq!(kind(kernel.into()), ErrorKind::Io, "{kernel}");
        }
        assert_eq!(kind(Errno::NOSPC.into()), ErrorKind::NoSpace);
    }
}
