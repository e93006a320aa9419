//! `cargo xtask demo`: the main job, shown on a real file system image.
//!
//! An ext4 image with files in it is imported, frozen, cloned a thousand times, and served; a stranger's NBD client writes
//! into a few of the clones; and what each image stores, the tree, and the parent's checksum are printed. Everything
//! happens in a temporary directory that is removed at the end.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::packages;

const CLONES: usize = 1000;
const IMAGE_MIB: u64 = 256;

/// Runs the demonstration.
pub fn run() -> Result<()> {
    packages::install_missing(&[("mkfs.ext4", "e2fsprogs"), ("qemu-io", "qemu-utils")])?;
    say("Building vellum (release)");
    check(Command::new("cargo").args(["build", "--quiet", "--release", "-p", "vellum-cli"]))?;
    let dir = TempDir::new()?;
    let demo =
        Demo { vellum: std::env::current_dir()?.join("target/release/vellum"), dir: dir.0.clone() };
    demo.show()
}

struct Demo {
    vellum: PathBuf,
    dir: PathBuf,
}

impl Demo {
    fn show(&self) -> Result<()> {
        say("A disk image: ext4 with files in it, made by mkfs.ext4");
        let disk = self.make_disk()?;

        say("Import it, and freeze it as golden@v1");
        self.vellum(&["import", text(&disk)?, "golden"])?;
        self.vellum(&["snap", "create", "golden@v1"])?;
        let before = self.checksum("golden@v1")?;
        println!("sha256 of golden@v1: {before}");

        say(&format!("Make {CLONES} writable clones of it"));
        let started = Instant::now();
        self.vellum(&["clone", "--count", &CLONES.to_string(), "golden@v1", "vm"])?;
        let took = started.elapsed();
        println!(
            "{CLONES} clones in {:.2} s: {:.2} ms each",
            took.as_secs_f64(),
            took.as_secs_f64() * 1e3 / CLONES as f64
        );
        self.vellum(&["clone", "--layering", "copy-up", "golden@v1", "classic"])?;

        say("Serve all of them over NBD");
        let socket = self.dir.join("nbd.sock");
        let server = Server::start(&self.vellum, &self.home(), &socket)?;

        say(
            "Write 4 KiB into two clones and into one in copy-up mode, with qemu-io, a client nobody here wrote",
        );
        for (name, command) in [
            ("vm-0001", "write -P 0x11 64k 4k"),
            ("vm-0002", "write -P 0x22 64k 4k"),
            ("vm-0002", "write -P 0x22 128M 1M"),
            ("classic", "write -P 0x33 64k 4k"),
        ] {
            qemu_io(&socket, name, command)?;
        }

        say("A snapshot of a clone that is being served, and a clone of that clone");
        self.vellum(&["snap", "create", "vm-0001@before-upgrade"])?;
        qemu_io(&socket, "vm-0001", "write -P 0x44 64k 4k")?;
        self.vellum(&["clone", "vm-0001@before-upgrade", "vm-0001-copy"])?;

        say("Each reads what it should: its own bytes, and the parent's everywhere else");
        for (name, pattern) in [
            ("vm-0001", "0x44"),
            ("vm-0001-copy", "0x11"),
            ("vm-0002", "0x22"),
            ("classic", "0x33"),
        ] {
            qemu_io(&socket, name, &format!("read -P {pattern} 64k 4k"))?;
            println!("{name}: 64 KiB in, it holds {pattern}");
        }
        server.stop()?;

        say("What each image stores (of the 1,000, the few that were written to)");
        for name in ["golden", "vm-0001", "vm-0001-copy", "vm-0002", "vm-0003", "classic"] {
            self.vellum(&["du", name])?;
        }

        say("The tree (its first lines)");
        let tree = self.output(&["tree"])?;
        let lines: Vec<&str> = tree.lines().collect();
        lines.iter().take(12).for_each(|line| println!("{line}"));
        println!("... {} lines in all", lines.len());

        say("Which layer defines what in vm-0001");
        self.vellum(&["map", "vm-0001"])?;

        say("The parent is what it was");
        let after = self.checksum("golden@v1")?;
        println!("sha256 of golden@v1: {after}");
        ensure!(before == after, "the parent changed: {before} became {after}");
        println!(
            "\nShown: {CLONES} clones in {:.2} s, each an O(1) catalog entry; a 4 KiB write stores one block in sparse mode and one \
             object in copy-up mode; parent, siblings and snapshots are unchanged.",
            took.as_secs_f64()
        );
        Ok(())
    }

    fn make_disk(&self) -> Result<PathBuf> {
        let (files, disk) = (self.dir.join("files"), self.dir.join("disk.raw"));
        std::fs::create_dir(&files)?;
        for number in 0..200 {
            let content = format!("file {number} of the golden image\n").repeat(8_000);
            std::fs::write(files.join(format!("file-{number:03}.txt")), content)?;
        }
        let size = format!("{IMAGE_MIB}M");
        check(
            Command::new("mkfs.ext4")
                .args(["-q", "-F", "-L", "golden", "-d"])
                .arg(&files)
                .arg(&disk)
                .arg(size),
        )?;
        println!("{IMAGE_MIB} MiB, 200 files");
        Ok(disk)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.vellum);
        command.env("VELLUM_HOME", self.home()).args(arguments);
        command
    }

    fn vellum(&self, arguments: &[&str]) -> Result<()> {
        println!("$ vellum {}", arguments.join(" "));
        check(&mut self.command(arguments))
    }

    fn output(&self, arguments: &[&str]) -> Result<String> {
        println!("$ vellum {}", arguments.join(" "));
        let output = self.command(arguments).stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "vellum {} failed", arguments.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The checksum of an image or snapshot as it reads, taken by sha256sum.
    fn checksum(&self, spec: &str) -> Result<String> {
        let mut export = self.command(&["export", spec, "-"]).stdout(Stdio::piped()).spawn()?;
        let bytes = export.stdout.take().context("the pipe of an export")?;
        let output = Command::new("sha256sum").stdin(bytes).output()?;
        ensure!(export.wait()?.success() && output.status.success(), "checksum of {spec}");
        let line = String::from_utf8(output.stdout)?;
        line.split_whitespace().next().map(str::to_owned).context("sha256sum prints a checksum")
    }

    fn home(&self) -> PathBuf {
        self.dir.join("home")
    }
}

/// `vellum serve` for as long as it is needed.
struct Server(Child);

impl Server {
    fn start(vellum: &Path, home: &Path, socket: &Path) -> Result<Self> {
        let mut child = Command::new(vellum)
            .env("VELLUM_HOME", home)
            .args(["serve", "--socket"])
            .arg(socket)
            .stdout(Stdio::piped())
            .spawn()
            .context("start vellum serve")?;
        let stdout = child.stdout.take().context("the pipe of the server")?;
        let server = Self(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.is_empty() {
            bail!("vellum serve ended before it was ready");
        }
        print!("{line}");
        Ok(server)
    }

    /// Asks it to drain, sync and end.
    fn stop(mut self) -> Result<()> {
        check(Command::new("kill").arg(self.0.id().to_string()))?;
        let status = self.0.wait()?;
        ensure!(status.success(), "vellum serve ended with {status}");
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn qemu_io(socket: &Path, export: &str, command: &str) -> Result<()> {
    let uri = format!("nbd+unix:///{export}?socket={}", socket.display());
    let output = Command::new("qemu-io")
        .args(["-f", "raw", "-c", command, &uri])
        .output()
        .context("run qemu-io")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    // qemu-io says "Pattern verification failed" and ends with success in older versions.
    ensure!(
        output.status.success() && !printed.contains("failed"),
        "qemu-io -c '{command}' {uri}: {printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

fn say(text: &str) {
    println!("\n== {text}");
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// A directory that goes when it is dropped.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> Result<Self> {
        let started = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        let path = std::env::temp_dir().join(format!(
            "vellum-demo-{}-{}",
            std::process::id(),
            started.subsec_nanos()
        ));
        std::fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
