//! Control sockets: one for each server, of mode 0600, in the directory `run` of its home.
//!
//! The name is random. A process id alone would do for one machine, but homes are shared between containers that each have
//! a process 1.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixSocket, UnixStream};

/// The longest path that fits into a socket address.
const PATH_MAX: usize = 107;
/// Connections that the kernel keeps while nobody accepts them.
const BACKLOG: u32 = 1024;
/// How long a socket that others left is asked whether somebody listens.
const PROBE_MAX: Duration = Duration::from_millis(200);
/// How many sockets that others left are looked at.
const PROBES_MAX: usize = 256;

/// Listens on a new socket in a directory, which is created if need be.
pub(crate) fn listen(directory: &Path) -> io::Result<(PathBuf, UnixListener)> {
    fs::create_dir_all(directory)?;
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let name = format!("control-{}-{:016x}", std::process::id(), u64::from_le_bytes(random));
    let path = directory.join(name);
    let (short, _kept) = reachable(&path)?;
    let socket = UnixSocket::new_stream()?;
    // The file gets the mode that the socket has, whatever the umask is: there is no moment at which others can connect.
    let same = File::from(socket.as_fd().try_clone_to_owned()?);
    same.set_permissions(fs::Permissions::from_mode(0o600))?;
    socket.bind(&short)?;
    Ok((path, socket.listen(BACKLOG)?))
}

/// Connects to a socket.
pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let (short, _kept) = reachable(path)?;
    UnixStream::connect(&short).await
}

/// Removes the sockets of servers that were killed. Best effort.
pub(crate) async fn remove_dead(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten().take(PROBES_MAX) {
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with("control-") {
            continue;
        }
        let dead = match tokio::time::timeout(PROBE_MAX, connect(&path)).await {
            Ok(Err(error)) => error.kind() == ErrorKind::ConnectionRefused,
            _ => false,
        };
        if dead {
            let _ = fs::remove_file(&path);
        }
    }
}

/// A path by which a socket is reached: one that is too long is reached through a short name of its directory, for as long as
/// that is kept open.
fn reachable(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    if path.as_os_str().len() <= PATH_MAX {
        return Ok((path.to_owned(), None));
    }
    let name = path.file_name().ok_or_else(|| io::Error::from(ErrorKind::InvalidInput))?;
    let directory = File::open(path.parent().unwrap_or(Path::new("/")))?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    Ok((short, Some(directory)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_reached_however_long_its_path_is() {
        let home = tempfile::tempdir().unwrap();
        for length in [1, 100, 200] {
            let (path, _listener) = listen(&home.path().join("d".repeat(length))).unwrap();
            connect(&path).await.unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[tokio::test]
    async fn only_the_sockets_of_the_dead_are_removed() {
        let home = tempfile::tempdir().unwrap();
        let (dead, listener) = listen(home.path()).unwrap();
        drop(listener);
        let (live, _listener) = listen(home.path()).unwrap();
        let other = home.path().join("something-else");
        fs::write(&other, "").unwrap();
        remove_dead(home.path()).await;
        assert!(!dead.exists() && live.exists() && other.exists());
    }
}
