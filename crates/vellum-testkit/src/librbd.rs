//! [`Librbd`]: Ceph's own library at work on images, in a process of its own, for as long as this lives.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::ceph::Cluster;

/// What carries requests out.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/ceph/librbd.py");
/// The distribution's, which knows the library.
const PYTHON: &str = "/usr/bin/python3";

/// A client of a cluster that opens, for each request, the image that it is about.
#[derive(Debug)]
pub struct Librbd {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Librbd {
    /// Why there can be none on this machine.
    pub fn unavailable() -> Option<String> {
        let imported = Command::new(PYTHON).args(["-c", "import rbd, rados"]).output();
        let is_there = imported.is_ok_and(|output| output.status.success());
        (!is_there).then(|| "python3-rbd is not installed (Debian: python3-rbd)".to_owned())
    }

    /// Starts one, at a namespace of a pool.
    pub fn start(cluster: &Cluster, pool: &str, namespace: &str) -> Result<Self> {
        let mut child = Command::new(PYTHON)
            .arg(SCRIPT)
            .arg(cluster.conf())
            .args([pool, namespace])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start Python")?;
        let requests = child.stdin.take().context("its standard input is a pipe")?;
        let answers = BufReader::new(child.stdout.take().context("its standard output is a pipe")?);
        Ok(Self { child, requests, answers })
    }

    /// Has something done. An error says what the library said.
    pub fn ask(&mut self, request: &Value) -> Result<()> {
        writeln!(self.requests, "{request}").context("ask librbd")?;
        let mut answer = String::new();
        ensure!(self.answers.read_line(&mut answer)? > 0, "librbd is gone, at {request}");
        let answer: Value = serde_json::from_str(&answer).context("what librbd answers")?;
        match answer.get("error") {
            Some(error) => bail!("librbd: {error}, at {request}"),
            None => Ok(()),
        }
    }

    /// What an image, or a snapshot of it, reads as.
    pub fn read(&mut self, image: &str, snapshot: Option<&str>) -> Result<Vec<u8>> {
        let file = NamedTempFile::new()?;
        let to: &Path = file.path();
        let to = to.to_str().context("a temporary path is UTF-8")?;
        let request =
            serde_json::json!({"op": "read", "image": image, "snapshot": snapshot, "to": to});
        self.ask(&request)?;
        Ok(std::fs::read(file.path())?)
    }
}

impl Drop for Librbd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
