//! Sockets that wait for connections.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};

use crate::export::Exports;
use crate::server::Server;

/// How long to wait after the system refused a connection, for want of descriptors, say.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// The longest path that fits into a socket address.
const PATH_MAX: usize = 107;

/// Binds a Unix socket.
pub(super) fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    // A path that is too long is bound through a short name of its directory.
    let directory =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let opened = fs::File::open(directory)?;
    let name = path.file_name().ok_or_else(|| io::Error::from(ErrorKind::InvalidInput))?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd())).join(name);
    let path = if path.as_os_str().len() > PATH_MAX { short.as_path() } else { path };
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_dead_socket(path) => {
            fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        result => result?,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn is_dead_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

pub(super) async fn accept_unix<E: Exports>(server: Server<E>, listener: UnixListener) {
    while let Some(permit) = admit(&server).await {
        let accepted = tokio::select! {
            () = server.0.ending.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Some((stream, _)) = accepted_or_pause(accepted).await else { continue };
        let this = server.clone();
        server.0.tasks.spawn(async move {
            let (reader, writer) = stream.into_split();
            this.serve(reader, writer).await;
            drop(permit);
        });
    }
}

pub(super) async fn accept_tcp<E: Exports>(server: Server<E>, listener: TcpListener) {
    while let Some(permit) = admit(&server).await {
        let accepted = tokio::select! {
            () = server.0.ending.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Some((stream, _)) = accepted_or_pause(accepted).await else { continue };
        let this = server.clone();
        server.0.tasks.spawn(async move {
            // Replies are gathered already; waiting for more would only delay them.
            let _ = stream.set_nodelay(true);
            let (reader, writer) = stream.into_split();
            this.serve(reader, writer).await;
            drop(permit);
        });
    }
}

async fn admit<E: Exports>(server: &Server<E>) -> Option<tokio::sync::OwnedSemaphorePermit> {
    tokio::select! {
        () = server.0.ending.cancelled() => None,
        permit = server.0.connections.clone().acquire_owned() => permit.ok(),
    }
}

async fn accepted_or_pause<T>(accepted: io::Result<T>) -> Option<T> {
    match accepted {
        Ok(connection) => Some(connection),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(REFUSED_PAUSE).await;
            None
        }
    }
}
