//! [`Home`]: a home of its own for a test, and commands run in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// A temporary home, and the program under test. When it goes, `vellum check` must find it in good order, whatever the test did
/// to it, kills included.
#[derive(Debug)]
pub struct Home {
    dir: TempDir,
    vellum: PathBuf,
    spoiled: AtomicBool,
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() || self.spoiled.load(Ordering::Relaxed) || !self.home().exists()
        {
            return;
        }
        let checked = self.run(&["check"]).expect("the program under test can be run");
        let found = String::from_utf8_lossy(&checked.stdout);
        let stale = found.lines().any(|line| line.starts_with("stale"));
        assert!(
            checked.status.success() && !stale,
            "vellum check ends with {} and finds: {found}{}",
            checked.status,
            String::from_utf8_lossy(&checked.stderr)
        );
    }
}

impl Home {
    /// A new, empty home for this `vellum`.
    pub fn new(vellum: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("vellum-test-").tempdir()?;
        Ok(Self { dir, vellum: PathBuf::from(vellum), spoiled: AtomicBool::new(false) })
    }

    /// Says that the test has damaged what lies in the home, by hand.
    pub fn spoil(&self) {
        self.spoiled.store(true, Ordering::Relaxed);
    }

    /// A directory for the test's own files, beside the home.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path for a file of the test's own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The home itself.
    pub fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// A command that has not been started, with nothing of the caller's environment that matters.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_under(&[], arguments)
    }

    /// The same, run by another program, whose command line goes before.
    pub fn command_under(&self, before: &[&str], arguments: &[&str]) -> Command {
        let mut command = match before.split_first() {
            None => Command::new(&self.vellum),
            Some((program, more)) => {
                let mut command = Command::new(program);
                command.args(more).arg(&self.vellum);
                command
            }
        };
        command
            .env_remove("XDG_DATA_HOME")
            .env_remove("NOTIFY_SOCKET")
            .env("VELLUM_HOME", self.home())
            .env("COLUMNS", "100")
            .args(arguments);
        command
    }

    /// Runs a command to its end, whatever that is.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments)
            .output()
            .with_context(|| format!("run vellum {}", arguments.join(" ")))
    }

    /// Runs a command that must succeed, and returns what it printed.
    pub fn ok(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments)?;
        ensure!(
            output.status.success(),
            "vellum {} ended with {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs a command that must fail with this exit code, and returns what it said on standard error.
    pub fn fails(&self, code: i32, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(code),
            "vellum {} ended with {}, not {code}: {said}",
            arguments.join(" "),
            output.status
        );
        ensure!(!said.contains("panicked"), "vellum {} panicked: {said}", arguments.join(" "));
        Ok(said)
    }
}
