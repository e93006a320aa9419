//! [`Failure`]: what the cluster, or the way to it, answers instead of a result.

use std::fmt;
use std::io;

/// The result of an operation.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// The number of an error, as errno(3) has it. A step that failed gives the whole operation its number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Failure(pub i32);

impl Failure {
    /// `EPERM`: this user may not, or the cluster does not know the class that was called.
    pub const NOT_PERMITTED: Self = Self(1);
    /// `ENOENT`: there is no such object or key; or pool, where one is looked up.
    pub const NOT_FOUND: Self = Self(2);
    /// `ENXIO`: there is no such pool any more. librados says `ENOENT`, as of an object; whoever takes that for an object that is not
    /// there takes what it holds for zeros.
    pub const NO_POOL: Self = Self(6);
    /// `EIO`.
    pub const IO: Self = Self(5);
    /// `EAGAIN`: try again.
    pub const AGAIN: Self = Self(11);
    /// `EBUSY`: somebody holds it.
    pub const BUSY: Self = Self(16);
    /// `EEXIST`: it is there already.
    pub const EXISTS: Self = Self(17);
    /// `EINVAL`.
    pub const INVALID: Self = Self(22);
    /// `ENOSPC`: the cluster, or the pool, is full.
    pub const NO_SPACE: Self = Self(28);
    /// `EROFS`: written through what reads a snapshot.
    pub const READ_ONLY: Self = Self(30);
    /// `ERANGE`: it is not at the version, or the snapshot, that was asserted.
    pub const RANGE: Self = Self(34);
    /// `EOVERFLOW`: it is at an older version than was asserted.
    pub const OVERFLOW: Self = Self(75);
    /// `EOPNOTSUPP`: the cluster does not know the operation.
    pub const UNSUPPORTED: Self = Self(95);
    /// `ENOTCONN`: the watch was lost.
    pub const NOT_CONNECTED: Self = Self(107);
    /// `ESHUTDOWN`: this client was blocklisted.
    pub const BLOCKLISTED: Self = Self(108);
    /// `ETIMEDOUT`: no answer in time.
    pub const TIMED_OUT: Self = Self(110);
    /// `ESTALE`: older than what is there.
    pub const STALE: Self = Self(116);
    /// `EDQUOT`: the pool has a quota, and has reached it.
    pub const QUOTA: Self = Self(122);
    /// `ECANCELED`: a comparison did not hold.
    pub const MISMATCH: Self = Self(125);

    /// What librados answers, with numbers below zero for errors. A comparison of bytes that failed answers with the place,
    /// counted down from -4095, and is a [`MISMATCH`](Self::MISMATCH) too.
    pub(crate) fn check(answer: i32) -> Result<u32> {
        match u32::try_from(answer) {
            Ok(value) => Ok(value),
            Err(_) if answer <= -4095 => Err(Self::MISMATCH),
            Err(_) => Err(Self(-answer)),
        }
    }

    /// Whether the operation may have taken effect all the same: no answer came, so nobody knows. A client that is blocklisted
    /// hears so of all that was under way, whatever became of it.
    pub fn may_have_happened(self) -> bool {
        matches!(self, Self::TIMED_OUT | Self::NOT_CONNECTED | Self::BLOCKLISTED)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BLOCKLISTED => write!(f, "this client was blocklisted (os error {})", self.0),
            Self::NO_POOL => {
                write!(f, "the pool was removed from the cluster (os error {})", self.0)
            }
            Self::MISMATCH => write!(f, "a comparison did not hold (os error {})", self.0),
            Self(number) => io::Error::from_raw_os_error(number).fmt(f),
        }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failure({}: {self})", self.0)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_below_zero_are_failures_and_a_place_that_differs_is_a_mismatch() {
        assert_eq!(Failure::check(0), Ok(0));
        assert_eq!(Failure::check(7), Ok(7));
        assert_eq!(Failure::check(-2), Err(Failure::NOT_FOUND));
        assert_eq!(Failure::check(-4095), Err(Failure::MISMATCH));
        assert_eq!(Failure::check(-4095 - 17), Err(Failure::MISMATCH));
    }

    #[test]
    fn only_an_answer_that_never_came_leaves_it_open_what_happened() {
        assert!(Failure::TIMED_OUT.may_have_happened());
        assert!(Failure::BLOCKLISTED.may_have_happened());
        assert!(!Failure::NO_SPACE.may_have_happened());
    }

    #[test]
    fn a_failure_says_what_it_is() {
        assert_eq!(Failure::NO_SPACE.to_string(), "No space left on device (os error 28)");
        assert_eq!(
            format!("{:?}", Failure(108)),
            "Failure(108: this client was blocklisted (os error 108))"
        );
    }
}
