//! What the cluster answers, as errors of the contract.

use vellum_core::quoted;
use vellum_engine::{Error, ErrorKind};
use vellum_rados::Failure;

/// A failure of the cluster while something was being done.
pub(crate) fn failed(failure: Failure, doing: impl Into<String>) -> Error {
    let kind = match failure {
        Failure::NOT_FOUND => ErrorKind::NotFound,
        Failure::EXISTS => ErrorKind::Exists,
        Failure::BUSY => ErrorKind::InUse,
        Failure::NO_SPACE | Failure::QUOTA => ErrorKind::NoSpace,
        Failure::READ_ONLY => ErrorKind::ReadOnly,
        Failure::BLOCKLISTED => ErrorKind::OwnershipLost,
        Failure::MISMATCH | Failure::STALE => ErrorKind::Conflict,
        Failure::UNSUPPORTED => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    };
    let error = Error::new(kind, doing).with_source(failure);
    if failure.may_have_happened() { error.maybe_done() } else { error }
}

/// What the cluster answers is no answer to what it was asked.
pub(crate) fn unexpected() -> Error {
    Error::new(ErrorKind::Io, "the cluster answers something else")
}

/// Stored bytes that are not what they should be.
pub(crate) fn corrupt(
    what: impl Into<String>,
    why: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::corrupt(what).with_source(why)
}

/// There is no image of this name.
pub(crate) fn no_image(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("this pool has no image {}", quoted(name)))
}

/// There is no image with this id.
pub(crate) fn no_image_with_id(id: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("this pool has no image with id {}", quoted(id)))
}
