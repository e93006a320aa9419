//! [`Failure`]: what a command ends with when it does not succeed.

use vellum_engine::{Error, ErrorKind};

/// The request was understood and failed.
pub const FAILED: u8 = 1;
/// The command line makes no sense.
pub const USAGE: u8 = 2;
/// No such pool, image or snapshot.
pub const NOT_FOUND: u8 = 3;
/// The name is taken.
pub const EXISTS: u8 = 4;
/// Somebody uses it, or has children of it.
pub const IN_USE: u8 = 5;
/// Stored bytes are not what they must be.
pub const CORRUPT: u8 = 6;

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// The library says so.
    Library(Error),
    /// The command line asks for something that makes no sense.
    Usage(String),
    /// A disk image file, in or out.
    File(vellum_convert::Error),
    /// Pipes and the terminal, on this side of the library.
    Other(anyhow::Error),
    /// SIGINT or SIGTERM ended it; what was half done is gone.
    Stopped,
}

/// The result of a command.
pub type Result<T = ()> = std::result::Result<T, Failure>;

impl Failure {
    /// A usage error.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// The whole chain of causes, on one line.
    pub fn message(&self) -> String {
        match self {
            Failure::Library(error) => error.chain(),
            Failure::Usage(message) => message.clone(),
            Failure::File(error) => chain(error),
            Failure::Other(error) => format!("{error:#}"),
            Failure::Stopped => "stopped".to_owned(),
        }
    }

    /// What the user could do.
    pub fn hint(&self) -> Option<&str> {
        if let Failure::File(error) = self {
            return error.hint();
        }
        let Failure::Library(error) = self else { return None };
        hint_for(error.kind())
    }

    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Usage(_) => USAGE,
            Failure::Other(_) | Failure::Stopped => FAILED,
            Failure::File(error) => match error.kind() {
                vellum_convert::ErrorKind::NotFound => NOT_FOUND,
                vellum_convert::ErrorKind::Exists => EXISTS,
                vellum_convert::ErrorKind::Corrupt => CORRUPT,
                _ => FAILED,
            },
            Failure::Library(error) => match error.kind() {
                ErrorKind::NotFound => NOT_FOUND,
                ErrorKind::Exists => EXISTS,
                ErrorKind::InUse | ErrorKind::HasChildren => IN_USE,
                ErrorKind::Corrupt => CORRUPT,
                _ => FAILED,
            },
        }
    }

    /// Whether whoever read our output has gone, which is their right.
    pub fn is_closed_pipe(&self) -> bool {
        if let Failure::File(error) = self {
            return error.kind() == vellum_convert::ErrorKind::Closed;
        }
        let Failure::Other(error) = self else { return false };
        error
            .chain()
            .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
            .any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

/// What a user could do about an error of this kind.
fn hint_for(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::NotFound => Some(
            "`vellum ls` lists the images of this home, `vellum snap ls` the snapshots of one, `vellum pool ls` its pools; --home or VELLUM_HOME names another home",
        ),
        ErrorKind::Exists => Some(
            "choose another name, or remove what has it: `vellum rm` an image, `vellum snap rm` a snapshot",
        ),
        ErrorKind::InUse => {
            Some("disconnect its clients, or stop the `vellum serve` that holds it")
        }
        ErrorKind::HasChildren => {
            Some("`vellum children` lists them; remove them, or `vellum flatten` each")
        }
        ErrorKind::NoSpace => Some(
            "`vellum rm` images that are no longer needed, or free space on the file system; a snapshot that goes alone frees nothing",
        ),
        ErrorKind::Poisoned => {
            Some("a sync failed; check the disk, then close and open the image again")
        }
        ErrorKind::Busy => Some("try again in a moment"),
        ErrorKind::Corrupt => {
            Some("`vellum check` lists what is damaged; restore it from a copy of the pool's files")
        }
        _ => None,
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Library(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(error) => Failure::Library(error),
            Err(error) => Failure::Other(error),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::Other(error.into())
    }
}

impl From<vellum_convert::Error> for Failure {
    fn from(error: vellum_convert::Error) -> Self {
        Failure::File(error)
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line.push_str(&format!(": {error}"));
        source = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Arguments;

    #[test]
    fn hints_name_commands_that_exist() {
        let mut named = 0;
        for hint in ErrorKind::ALL.iter().filter_map(|kind| hint_for(*kind)) {
            for quoted in hint.split('`').skip(1).step_by(2) {
                let words = quoted.strip_prefix("vellum ").expect("what is quoted is a command");
                let all = Arguments::command();
                let mut command = &all;
                for word in words.split(' ') {
                    command = command.find_subcommand(word).unwrap_or_else(|| panic!("{quoted}"));
                }
                named += 1;
            }
        }
        assert!(named > 5);
    }
}
