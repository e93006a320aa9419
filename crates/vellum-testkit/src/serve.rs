//! [`Serve`]: a running `vellum serve`.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::Home;

const STOP_MAX: Duration = Duration::from_secs(60);

/// A server of a home on a Unix socket; killed when it is dropped.
#[derive(Debug)]
pub struct Serve {
    child: Child,
    socket: PathBuf,
}

impl Serve {
    /// Starts a server of everything in the home, and waits until it says that it is ready.
    pub fn start(home: &Home) -> Result<Self> {
        Self::start_with(home, &[])
    }

    /// Starts a server with more arguments.
    pub fn start_with(home: &Home, arguments: &[&str]) -> Result<Self> {
        Self::start_under(home, &[], arguments)
    }

    /// Starts a server through another program, whose command line goes before.
    pub fn start_under(home: &Home, before: &[&str], arguments: &[&str]) -> Result<Self> {
        Self::start_on(home, "nbd.sock", before, arguments)
    }

    /// Starts one more server of a home, with a socket of its own.
    pub fn start_beside(home: &Home) -> Result<Self> {
        Self::start_on(home, "beside.sock", &[], &[])
    }

    fn start_on(home: &Home, socket: &str, before: &[&str], arguments: &[&str]) -> Result<Self> {
        let socket = home.file(socket);
        let path = socket.to_str().context("a temporary path is UTF-8")?.to_owned();
        let mut command = home.command_under(before, &["serve", "--socket", &path]);
        let mut child =
            command.args(arguments).stdout(Stdio::piped()).spawn().context("start vellum serve")?;
        let mut ready = String::new();
        BufReader::new(child.stdout.take().context("its standard output is a pipe")?)
            .read_line(&mut ready)?;
        let serve = Self { child, socket };
        ensure!(!ready.is_empty(), "vellum serve ended before it was ready");
        Ok(serve)
    }

    /// The socket it listens on.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The address of an export.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to drain, and waits for its end.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        let pid =
            i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(pid, Signal::TERM)?;
        let asked = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if asked.elapsed() > STOP_MAX {
                bail!("vellum serve has not ended {STOP_MAX:?} after SIGTERM");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it has said on standard error, if that was piped; waits for its end.
    pub fn said(&mut self) -> Result<String> {
        let mut said = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            stderr.read_to_string(&mut said)?;
        }
        Ok(said)
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
