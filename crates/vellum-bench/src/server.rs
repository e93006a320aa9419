//! A server process on a Unix socket, stopped when it is no longer needed.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const START_MAX: Duration = Duration::from_secs(20);

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts a server and waits until its socket takes connections.
    pub fn start(command: &mut Command, socket: &Path) -> Result<Self> {
        let _ = std::fs::remove_file(socket);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let mut server = Self { child, socket: socket.to_owned() };
        let started = Instant::now();
        while UnixStream::connect(socket).is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("{command:?} ended with {status}");
            }
            if started.elapsed() > START_MAX {
                bail!("{command:?} does not listen after {START_MAX:?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// The address of one of its exports.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Asked to end, so that it syncs as it would in use; that lies outside of what is measured.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}
