//! A serving process: NBD sockets, the control socket, and a drain at the end.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vellum_core::ImageSpec;
use vellum_engine::{Error, ErrorKind, Result};
use vellum_nbd::{Limits, Server};

use crate::Vellum;
use crate::control::{self, socket};
use crate::exports::{ExportOptions, ImageExports};

/// However long the drain took, syncing what is held gets this long.
const CLOSE_MIN: Duration = Duration::from_secs(1);

/// What to serve, and where.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// A Unix socket for NBD.
    pub socket: Option<PathBuf>,
    /// An address for NBD over TCP.
    pub listen: Option<SocketAddr>,
    /// Whether to listen beyond loopback, where anybody can connect.
    pub insecure: bool,
    /// Whether no export takes writes.
    pub read_only: bool,
    /// The images to offer; all of the home if there are none.
    pub specs: Vec<ImageSpec>,
    /// How long an image is kept after its last connection.
    pub grace: Duration,
    /// What clients can drive, and how far.
    pub limits: Limits,
}

impl Default for ServeOptions {
    /// Everything, nowhere yet; images are kept for a second.
    fn default() -> Self {
        Self {
            socket: None,
            listen: None,
            insecure: false,
            read_only: false,
            specs: Vec::new(),
            grace: Duration::from_secs(1),
            limits: Limits::default(),
        }
    }
}

/// A server that listens.
#[derive(Debug)]
pub struct Serving {
    server: Server<ImageExports>,
    control: PathBuf,
    control_task: tokio::task::JoinHandle<()>,
    /// Where it listens for TCP.
    pub listening: Option<SocketAddr>,
}

impl Vellum {
    /// Begins to serve. `Invalid` for an address beyond loopback without `insecure`.
    pub async fn serve(&self, options: ServeOptions) -> Result<Serving> {
        if let Some(address) =
            options.listen.filter(|address| !address.ip().is_loopback() && !options.insecure)
        {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "{address} lets anybody who reaches it read and write every image; listen on loopback, or say --insecure"
                ),
            ));
        }
        raise_open_files();
        for spec in &options.specs {
            self.locate(spec).await?;
        }
        self.all_pools().await?;
        let run = self.home().join("run");
        socket::remove_dead(&run).await;
        let (control, listener) = socket::listen(&run).map_err(|error| {
            Error::io(format!("make a control socket in {}", run.display()), error)
        })?;
        let exports = ImageExports::new(
            self.clone(),
            ExportOptions {
                specs: options.specs,
                read_only: options.read_only,
                grace: options.grace,
                control: control.clone(),
            },
        );
        let control_task = tokio::spawn(control::server::serve(listener, exports.clone()));
        let buffers = self.buffers().clone();
        let server = Server::new(exports, options.limits, buffers)
            .on_thread(vellum_disk::let_this_thread_wait);
        if let Some(socket) = &options.socket {
            server
                .listen_unix(socket)
                .map_err(|error| Error::io(format!("listen on {}", socket.display()), error))?;
        }
        let listening = match options.listen {
            None => None,
            Some(address) => {
                let bound = server.listen_tcp(address).await;
                Some(bound.map_err(|error| Error::io(format!("listen on {address}"), error))?)
            }
        };
        Ok(Serving { server, control, control_task, listening })
    }
}

impl Serving {
    /// Takes no more requests, answers those under way, syncs and gives up every image. Says whether all of it was done before
    /// the deadline.
    pub async fn shutdown(self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        let drained = self.server.shutdown(deadline).await;
        self.control_task.abort();
        let left = until.saturating_duration_since(Instant::now()).max(CLOSE_MIN);
        let closed = self.server.exports().close_all(left).await;
        // Its name is random, and nobody else's. The NBD socket's file went with its listener. A disk that stands still is not
        // waited for.
        let removing = tokio::task::spawn_blocking(move || fs::remove_file(&self.control));
        let _ = tokio::time::timeout(CLOSE_MIN, removing).await;
        drained && closed
    }
}

/// Each image that is written has a handful of files open.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
