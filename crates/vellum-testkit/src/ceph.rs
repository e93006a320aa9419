//! [`Cluster`]: a Ceph of its own for a test, which ends with it. A monitor and a storage daemon of the machine's packages, on
//! loopback, with two pools; it is there in a second or two.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::tools;

/// What starts and stops one, by hand too.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/ceph/cluster.sh");

/// Its pools.
pub const POOLS: [&str; 2] = ["rbd", "rbd2"];

/// A cluster.
#[derive(Debug)]
pub struct Cluster {
    dir: TempDir,
}

/// Where a cluster keeps its objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Store {
    /// In memory.
    Memory,
    /// As Ceph does, in a file.
    Blue,
}

impl Cluster {
    /// Why there can be none on this machine.
    pub fn unavailable() -> Option<String> {
        let missing = ["ceph-mon", "ceph-osd", "ceph-authtool", "monmaptool"]
            .into_iter()
            .find(|program| tools::find(program).is_none());
        missing.map(|program| format!("{program} is not installed (Debian: ceph-mon ceph-osd)"))
    }

    /// Starts one, and waits until its pools take objects.
    pub fn start(store: Store) -> Result<Self> {
        // Paths of sockets are short, so it is not below whatever the temporary directory is.
        let dir = tempfile::Builder::new().prefix("vellum-ceph-").tempdir_in("/tmp")?;
        let cluster = Self { dir };
        let store = match store {
            Store::Memory => "memstore",
            Store::Blue => "bluestore",
        };
        cluster.script(&["start"], &["--store", store, "--mgr", "no"]).context("start a Ceph")?;
        Ok(cluster)
    }

    /// Its configuration, which says where its monitor is, and where the keys are.
    pub fn conf(&self) -> PathBuf {
        self.path().join("ceph.conf")
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("c")
    }

    /// A program of Ceph's that works on this cluster.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("CEPH_CONF", self.conf()).env_remove("CEPH_ARGS");
        command
    }

    /// What such a program prints. An error if it fails.
    pub fn ok(&self, program: &str, arguments: &[&str]) -> Result<String> {
        tools::output(self.command(program).args(arguments))
    }

    /// Makes a user, without `client.`, who may do so much, and enters the key where clients of this cluster look for it.
    pub fn add_user(&self, user: &str, capabilities: &[&str]) -> Result<()> {
        let named = format!("client.{user}");
        let make = [&["auth", "get-or-create", &named], capabilities].concat();
        let key = self.ok("ceph", &make)?;
        let mut keys = std::fs::File::options().append(true).open(self.path().join("keyring"))?;
        keys.write_all(key.as_bytes()).context("enter a key")
    }

    /// Sends a signal to one of its daemons: `mon.a` or `osd.0`.
    pub fn signal(&self, daemon: &str, signal: Signal) -> Result<()> {
        let pid = std::fs::read_to_string(self.path().join("run").join(format!("{daemon}.pid")))
            .with_context(|| format!("the process of {daemon}"))?;
        let pid = Pid::from_raw(pid.trim().parse()?).context("a process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Starts the daemons that have ended, and waits until the cluster takes objects.
    pub fn start_again(&self) -> Result<()> {
        self.script(&["start"], &["--mgr", "no"]).context("start a Ceph again").map(drop)
    }

    fn script(&self, verb: &[&str], options: &[&str]) -> Result<String> {
        let path = self.path();
        let path: &Path = &path;
        tools::output(Command::new("bash").arg(SCRIPT).args(verb).arg(path).args(options))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.script(&["destroy"], &[]) {
            eprintln!("a Ceph was not stopped: {error:#}");
        }
    }
}
