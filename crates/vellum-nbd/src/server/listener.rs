//! Sockets that wait for connections.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixSocket, tcp, unix};
use tokio::sync::OwnedSemaphorePermit;

use crate::export::Exports;
use crate::server::Server;
use crate::server::hangup::Hangup;

/// How long to wait after the system refused a connection, for want of descriptors, say.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// The longest path that fits into a socket address.
const PATH_MAX: usize = 107;

/// Connections that the kernel keeps while nobody accepts them.
const BACKLOG: u32 = 1024;

/// A Unix socket that is listened on, under a path that is given up with it.
#[derive(Debug)]
pub(super) struct Bound {
    // Dropped first: while the socket is still listened on, nobody takes it for dead and puts another one into its place.
    #[expect(dead_code, reason = "its file goes when it is dropped")]
    file: SocketFile,
    listener: UnixListener,
}

impl Bound {
    /// The next connection.
    pub(super) async fn next(&self) -> io::Result<UnixStream> {
        self.listener.accept().await?.0.into_std()
    }
}

/// The file of a socket. Dropped, it takes the file away, unless the path leads to another one by then.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(found: &fs::Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

/// Listens on a Unix socket.
pub(super) fn bind_unix(path: &Path) -> io::Result<Bound> {
    // A path that is too long is bound through a short name of its directory.
    let directory =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let opened = fs::File::open(directory)?;
    let name = path.file_name().ok_or_else(|| io::Error::from(ErrorKind::InvalidInput))?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd())).join(name);
    let short = if path.as_os_str().len() > PATH_MAX { short.as_path() } else { path };
    let socket = match bind_private(short) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_dead_socket(short) => {
            fs::remove_file(short)?;
            bind_private(short)?
        }
        result => result?,
    };
    let file = SocketFile {
        path: std::path::absolute(path)?,
        identity: identity(&fs::symlink_metadata(short)?),
    };
    Ok(Bound { file, listener: socket.listen(BACKLOG)? })
}

/// Binds a socket that its owner alone can connect to, from the first moment on: the file gets the mode that the socket has,
/// whatever the umask is.
fn bind_private(path: &Path) -> io::Result<UnixSocket> {
    let socket = UnixSocket::new_stream()?;
    let same = fs::File::from(socket.as_fd().try_clone_to_owned()?);
    same.set_permissions(fs::Permissions::from_mode(0o600))?;
    socket.bind(path)?;
    Ok(socket)
}

fn is_dead_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// A connection that was accepted, on no runtime yet.
pub(super) trait Socket: AsFd + Send + 'static {
    type Reader: AsyncRead + Unpin + Send;
    type Writer: AsyncWrite + Unpin + Send + 'static;

    /// What is read and what is written, on the runtime that this is called on.
    fn halves(self) -> io::Result<(Self::Reader, Self::Writer)>;
}

impl Socket for UnixStream {
    type Reader = unix::OwnedReadHalf;
    type Writer = unix::OwnedWriteHalf;

    fn halves(self) -> io::Result<(Self::Reader, Self::Writer)> {
        Ok(tokio::net::UnixStream::from_std(self)?.into_split())
    }
}

impl Socket for TcpStream {
    type Reader = tcp::OwnedReadHalf;
    type Writer = tcp::OwnedWriteHalf;

    fn halves(self) -> io::Result<(Self::Reader, Self::Writer)> {
        // Replies are gathered already; waiting for more would only delay them.
        let _ = self.set_nodelay(true);
        Ok(tokio::net::TcpStream::from_std(self)?.into_split())
    }
}

/// The next connection on TCP.
pub(super) async fn next_tcp(listener: &TcpListener) -> io::Result<TcpStream> {
    listener.accept().await?.0.into_std()
}

/// Accepts connections until the server ends.
pub(super) async fn accept<E: Exports, S: Socket>(
    server: Server<E>,
    next: impl AsyncFn() -> io::Result<S>,
) {
    while let Some(permit) = admit(&server).await {
        let accepted = tokio::select! {
            () = server.0.ending.cancelled() => return,
            accepted = next() => accepted,
        };
        if let Err(error) = accepted.and_then(|socket| start(&server, permit, socket)) {
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(REFUSED_PAUSE).await;
        }
    }
}

/// Starts the thread of a connection. Everything it begins has ended when it ends, for a connection ends with its last reply.
fn start<E: Exports>(
    server: &Server<E>,
    permit: OwnedSemaphorePermit,
    socket: impl Socket,
) -> io::Result<()> {
    let (server, counted) = (server.clone(), server.0.tasks.token());
    let work = move || {
        (server.0.on_thread)();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let serve = async {
            let hangup = Hangup::of(&socket)?;
            let (reader, writer) = socket.halves()?;
            server.serve_until(reader, writer, Some(hangup)).await;
            Ok(())
        };
        if let Err(error) = runtime.and_then(|runtime| runtime.block_on(serve)) {
            tracing::warn!(%error, "cannot serve a connection");
        }
        drop((permit, counted));
    };
    std::thread::Builder::new().name("vellum-nbd".to_owned()).spawn(work).map(|_| ())
}

async fn admit<E: Exports>(server: &Server<E>) -> Option<OwnedSemaphorePermit> {
    tokio::select! {
        () = server.0.ending.cancelled() => None,
        permit = server.0.connections.clone().acquire_owned() => permit.ok(),
    }
}
