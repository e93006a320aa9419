//! [`Error`]: what went wrong, as its caller must act on it.

use std::fmt;
use std::sync::Arc;

/// The result of a call of the contract.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. Cheap to clone, since one failed sync answers many callers.
///
/// `Display` says its own level only; [`std::error::Error::source`] carries the rest, and whoever shows an error prints the
/// chain once.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    happened: Happened,
    context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Named for what the caller does next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such pool, image, snapshot or revision. Check the name.
    NotFound,
    /// The name is taken. Choose another.
    Exists,
    /// Somebody else holds it. Ask the holder, or wait.
    InUse,
    /// Children, snapshots or layers still depend on it. Remove or flatten them first.
    HasChildren,
    /// The request makes no sense. Fix it.
    Invalid,
    /// This engine, or this version of Vellum, cannot do that.
    Unsupported,
    /// The medium, the snapshot or the handle is read-only.
    ReadOnly,
    /// No space is left. Free some, and the image goes on.
    NoSpace,
    /// Stored bytes are not what they must be. Run `vellum check`.
    Corrupt,
    /// An earlier sync failed, and this layer takes no writes until it is opened again.
    Poisoned,
    /// Ownership was lost: every later call on this head fails.
    OwnershipLost,
    /// The image changed since its record was read. Read it again and decide anew.
    Conflict,
    /// The catalog is busy. Try again.
    Busy,
    /// The operation was asked to stop.
    Stopped,
    /// The storage failed.
    Io,
}

impl ErrorKind {
    /// Each kind once.
    pub const ALL: &[ErrorKind] = &[
        ErrorKind::NotFound,
        ErrorKind::Exists,
        ErrorKind::InUse,
        ErrorKind::HasChildren,
        ErrorKind::Invalid,
        ErrorKind::Unsupported,
        ErrorKind::ReadOnly,
        ErrorKind::NoSpace,
        ErrorKind::Corrupt,
        ErrorKind::Poisoned,
        ErrorKind::OwnershipLost,
        ErrorKind::Conflict,
        ErrorKind::Busy,
        ErrorKind::Stopped,
        ErrorKind::Io,
    ];
}

/// Whether a call that failed had an effect.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Happened {
    /// It had none.
    NotDone,
    /// It may have had all, part or none of it.
    MaybeDone,
}

impl Error {
    /// An error after which nothing was changed.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self::build(kind, Happened::NotDone, context.into(), None)
    }

    /// Stored bytes are wrong; `context` names what, where, what was expected and what was found.
    pub fn corrupt(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, context)
    }

    /// A failed system call that changed nothing. `ENOSPC` and `EDQUOT` become [`ErrorKind::NoSpace`], `EROFS` becomes
    /// [`ErrorKind::ReadOnly`], a missing file [`ErrorKind::NotFound`].
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        Self::build(kind_of_io(&source), Happened::NotDone, context.into(), Some(Box::new(source)))
    }

    /// The same error with what caused it.
    #[must_use]
    pub fn with_source(self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        let context = self.0.context.clone();
        Self::build(self.0.kind, self.0.happened, context, Some(Box::new(source)))
    }

    /// The same error, saying that the change may have happened.
    #[must_use]
    pub fn maybe_done(self) -> Self {
        match Arc::try_unwrap(self.0) {
            Ok(inner) => Self(Arc::new(Inner { happened: Happened::MaybeDone, ..inner })),
            Err(shared) => {
                let (kind, context) = (shared.kind, shared.context.clone());
                Self::build(kind, Happened::MaybeDone, context, Some(Box::new(Self(shared))))
            }
        }
    }

    /// The same failure as seen one level up, which says what was being done.
    #[must_use]
    pub fn context(self, context: impl Into<String>) -> Self {
        Self::build(self.0.kind, self.0.happened, context.into(), Some(Box::new(self)))
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the call had an effect.
    pub fn happened(&self) -> Happened {
        self.0.happened
    }

    /// The error and its causes, on one line.
    pub fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            line.push_str(": ");
            line.push_str(&error.to_string());
            source = error.source();
        }
        line
    }

    fn build(
        kind: ErrorKind,
        happened: Happened,
        context: String,
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self(Arc::new(Inner { kind, happened, context, source }))
    }
}

fn kind_of_io(error: &std::io::Error) -> ErrorKind {
    use std::io::ErrorKind as Io;
    match error.kind() {
        Io::StorageFull | Io::QuotaExceeded => ErrorKind::NoSpace,
        Io::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        Io::NotFound => ErrorKind::NotFound,
        Io::UnexpectedEof => ErrorKind::Corrupt,
        _ => ErrorKind::Io,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({})", self.0.kind, self.chain())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_keeps_its_kind_through_context_and_says_each_level_once() {
        let error = Error::io("write block 7", std::io::Error::from_raw_os_error(28))
            .maybe_done()
            .context("write image a/b");
        assert_eq!((error.kind(), error.happened()), (ErrorKind::NoSpace, Happened::MaybeDone));
        assert_eq!(
            error.chain(),
            "write image a/b: write block 7: No space left on device (os error 28)"
        );
    }

    #[test]
    fn a_short_file_is_corrupt() {
        let short = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        assert_eq!(Error::io("read", short).kind(), ErrorKind::Corrupt);
    }
}
