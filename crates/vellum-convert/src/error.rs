//! [`Error`]: why a file cannot be read or written, and what its owner can do about it.

use std::fmt;
use std::io;
use std::path::Path;

/// The result of a call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. `Display` says what, and of which file; [`hint`](Error::hint) says what to do; [`source`] carries the cause,
/// such as the [`io::Error`].
///
/// [`source`]: std::error::Error::source
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    context: String,
    hint: Option<String>,
    source: Option<io::Error>,
}

/// Named for what the caller does next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such file. Check the name.
    NotFound,
    /// The file to be written exists. Choose another name, or say that it may be overwritten.
    Exists,
    /// The request makes no sense. Fix it.
    Invalid,
    /// The file is sound, but this crate does not read (or write) such files. The hint says how to convert it.
    Unsupported,
    /// The file is not what it must be: damaged, cut short, or changed while it was read.
    Corrupt,
    /// No space is left for the file. Free some and start again.
    NoSpace,
    /// Whoever read the pipe has gone.
    Closed,
    /// The storage failed.
    Io,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, context: context.into(), hint: None, source: None }))
    }

    pub(crate) fn invalid(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, context)
    }

    pub(crate) fn unsupported(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, context)
    }

    pub(crate) fn corrupt(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, context)
    }

    pub(crate) fn io(context: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        let mut error = Self::new(kind_of(&source), context);
        error.0.source = Some(source);
        error
    }

    #[must_use]
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The same error, said of a file: decoders know bytes, not where these come from.
    #[must_use]
    pub(crate) fn of(mut self, path: &Path) -> Self {
        self.0.context = format!("{}: {}", path.display(), self.0.context);
        self
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What the user can do about it, as a sentence without a full stop, where there is something better than the obvious.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

fn kind_of(error: &io::Error) -> ErrorKind {
    use io::ErrorKind as Io;
    match error.kind() {
        Io::NotFound => ErrorKind::NotFound,
        Io::AlreadyExists => ErrorKind::Exists,
        Io::InvalidInput | Io::InvalidFilename => ErrorKind::Invalid,
        Io::UnexpectedEof => ErrorKind::Corrupt,
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::NoSpace,
        Io::BrokenPipe => ErrorKind::Closed,
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
        write!(f, "{:?}({}", self.0.kind, self.0.context)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        if let Some(hint) = &self.0.hint {
            write!(f, "; hint: {hint}")?;
        }
        f.write_str(")")
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}
