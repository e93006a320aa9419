//! [`Failure`]: an error inside a transaction, and what an error of SQLite means to a caller.

use rusqlite::ErrorCode;
use vellum_engine::{Error, ErrorKind};

/// What a function of a transaction returns.
pub(crate) type Outcome<T> = Result<T, Failure>;

/// Why a transaction failed: SQLite said no, or a rule did.
#[derive(Debug)]
pub(crate) enum Failure {
    Sql(rusqlite::Error),
    Rule(Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Failure::Sql(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Rule(error)
    }
}

impl Failure {
    /// The error for the caller, who was `doing` something.
    pub(crate) fn into_error(self, doing: &str) -> Error {
        match self {
            Failure::Rule(error) => error,
            Failure::Sql(error) => {
                let (kind, advice) = meaning(&error);
                Error::new(kind, format!("catalog: {doing}{advice}")).with_source(error)
            }
        }
    }
}

/// A stored value that the rules forbid.
pub(crate) fn corrupt(what: impl std::fmt::Display) -> Failure {
    Error::corrupt(format!("catalog: {what}")).into()
}

/// Whether a COMMIT that failed with this certainly changed nothing. Anything else may have reached the disk.
pub(crate) fn certainly_undone(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::DiskFull)
            | Some(ErrorCode::ConstraintViolation | ErrorCode::ReadOnly)
    )
}

fn meaning(error: &rusqlite::Error) -> (ErrorKind, &'static str) {
    use rusqlite::Error as Sql;
    match error {
        Sql::SqliteFailure(failure, _) => meaning_of_code(failure),
        Sql::FromSqlConversionFailure(..)
        | Sql::IntegralValueOutOfRange(..)
        | Sql::InvalidColumnType(..)
        | Sql::Utf8Error(..)
        | Sql::QueryReturnedMoreThanOneRow
        | Sql::QueryReturnedNoRows => (
            ErrorKind::Corrupt,
            ": a stored value is not what it must be; restore a backup of pool.sqlite",
        ),
        // A table or column is missing: the statements themselves are tested.
        Sql::SqlInputError { .. } => {
            (ErrorKind::Corrupt, ": the tables are not those of this version")
        }
        _ => (ErrorKind::Io, ""),
    }
}

fn meaning_of_code(failure: &rusqlite::ffi::Error) -> (ErrorKind, &'static str) {
    match failure.code {
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => {
            (ErrorKind::Busy, ": another process is changing it; try again")
        }
        ErrorCode::DiskFull => (ErrorKind::NoSpace, ": no space is left; free some and try again"),
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
            (ErrorKind::Corrupt, ": it is damaged; restore a backup of pool.sqlite")
        }
        ErrorCode::ReadOnly => (ErrorKind::ReadOnly, ": it cannot be written"),
        ErrorCode::PermissionDenied => (ErrorKind::Io, ": permission denied"),
        ErrorCode::CannotOpen => {
            (ErrorKind::Io, ": its files cannot be opened; look at their owner and mode")
        }
        ErrorCode::ConstraintViolation
            if failure.extended_code == rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE =>
        {
            (ErrorKind::Exists, ": the name is taken")
        }
        ErrorCode::ConstraintViolation => {
            (ErrorKind::Corrupt, ": a rule of the tables would be broken")
        }
        ErrorCode::SystemIoFailure => (ErrorKind::Io, ": the storage failed"),
        ErrorCode::TooBig => (ErrorKind::Invalid, ": a value is too large"),
        // The statements themselves are tested, so it is the file.
        _ if failure.extended_code == rusqlite::ffi::SQLITE_ERROR => (
            ErrorKind::Corrupt,
            ": it is damaged, or written by a newer SQLite; restore a backup of pool.sqlite",
        ),
        _ => (ErrorKind::Io, ""),
    }
}
