//! What is measured: Vellum and its peers, each flat, as a fresh clone, and at the end of a chain.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::cache;
use crate::fio::{self, Client, Sample, Writer};
use crate::server::Server;
use crate::workload::{Before, Beside, SNAPSHOT_AFTER, Workload};

/// How long a client that is to write meanwhile has to begin.
const WRITER_BEGINS: Duration = Duration::from_millis(500);

/// How many layers the deep chains have above the one that holds all the data.
const DEEP: usize = 8;

/// Who serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    VellumSparse,
    VellumCopyUp,
    Qcow2,
    Qcow2Subclusters,
    NbdkitFile,
}

/// What of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    /// An image that holds all its data itself.
    Flat,
    /// A child that defines nothing yet, over a parent that is fully written.
    FreshClone,
    /// The same at the end of a chain of empty children.
    Deep,
}

/// One column of the report.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    who: Who,
    shape: Shape,
    name: &'static str,
}

impl Target {
    /// Its name in reports.
    pub fn name(&self) -> &'static str {
        self.name
    }
}

const fn target(who: Who, shape: Shape, name: &'static str) -> Target {
    Target { who, shape, name }
}

/// All targets.
pub const ALL: &[Target] = &[
    target(Who::VellumSparse, Shape::Flat, "vellum-flat"),
    target(Who::VellumSparse, Shape::FreshClone, "vellum-clone-sparse"),
    target(Who::VellumCopyUp, Shape::FreshClone, "vellum-clone-copy-up"),
    target(Who::VellumSparse, Shape::Deep, "vellum-depth8-sparse"),
    target(Who::Qcow2, Shape::Flat, "qcow2-flat"),
    target(Who::Qcow2, Shape::FreshClone, "qcow2-clone-64k"),
    target(Who::Qcow2Subclusters, Shape::FreshClone, "qcow2-clone-extended-l2"),
    target(Who::Qcow2, Shape::Deep, "qcow2-depth8-64k"),
    target(Who::NbdkitFile, Shape::Flat, "nbdkit-file-flat"),
];

/// The parents, made once, and where clones of them are made.
#[derive(Debug)]
pub struct Bench {
    dir: PathBuf,
    vellum: PathBuf,
    size: u64,
}

impl Bench {
    /// Makes the same fully written parent for everybody.
    pub fn prepare(dir: &Path, vellum: &Path, size: u64) -> Result<Self> {
        let bench = Self { dir: dir.to_owned(), vellum: vellum.to_owned(), size };
        write_random(&bench.raw(), size)?;
        bench.vellum(&["import", path(&bench.raw())?, "gold"])?;
        bench.vellum(&["snap", "create", "gold@s"])?;
        let gold = bench.qcow2("gold");
        run(Command::new("qemu-img").args(["convert", "-O", "qcow2"]).arg(bench.raw()).arg(gold))?;
        run(&mut Command::new("sync"))?;
        Ok(bench)
    }

    /// One run: a fresh image if the workload writes or the shape is a clone, served for this run alone.
    pub fn measure(&self, target: Target, workload: &Workload, round: usize) -> Result<Sample> {
        let name = format!("{}-{}-{round}", target.name, workload.name);
        let socket = self.dir.join("nbd.sock");
        let (server, export) = match target.who {
            Who::VellumSparse => {
                self.serve_vellum(&name, target.shape, "sparse", workload, &socket)?
            }
            Who::VellumCopyUp => {
                self.serve_vellum(&name, target.shape, "copy-up", workload, &socket)?
            }
            Who::Qcow2 => {
                self.serve_qcow2(&name, target.shape, "cluster_size=64k", workload, &socket)?
            }
            Who::Qcow2Subclusters => {
                let options = "extended_l2=on,cluster_size=128k";
                self.serve_qcow2(&name, target.shape, options, workload, &socket)?
            }
            Who::NbdkitFile => self.serve_nbdkit(&name, workload, &socket)?,
        };
        let uri = server.uri(&export);
        if workload.before == Before::Alternating {
            fio::alternate(&uri, self.size)?;
        }
        // What others left to be written, and the freeing of what they removed, is nobody's to pay for now.
        run(&mut Command::new("sync"))?;
        if workload.before != Before::Nothing {
            cache::drop_files(&self.dir)?;
        }
        let sample = self.run(&uri, &export, workload)?;
        drop(server);
        self.remove(&name, target)?;
        Ok(sample)
    }

    /// Runs a workload, and what goes on beside it.
    fn run(&self, uri: &str, export: &str, workload: &Workload) -> Result<Sample> {
        match workload.beside {
            Beside::Nothing => fio::run(&Client::Nbd(uri), workload, self.size),
            Beside::Writer => {
                let mut writer = Writer::start(uri, self.size)?;
                std::thread::sleep(WRITER_BEGINS);
                let sample = fio::run(&Client::Nbd(uri), workload, self.size)?;
                writer.still_writes()?;
                Ok(sample)
            }
            Beside::Snapshot => std::thread::scope(|scope| {
                let measured = scope.spawn(|| fio::run(&Client::Nbd(uri), workload, self.size));
                std::thread::sleep(SNAPSHOT_AFTER);
                self.vellum(&["snap", "create", &format!("{export}@s")])?;
                ensure!(!measured.is_finished(), "the snapshot took longer than what it is beside");
                measured.join().expect("it reports what goes wrong")
            }),
        }
    }

    fn serve_vellum(
        &self,
        name: &str,
        shape: Shape,
        layering: &str,
        workload: &Workload,
        socket: &Path,
    ) -> Result<(Server, String)> {
        let export = match shape {
            Shape::Flat if !workload.needs_own_image() => "gold".to_owned(),
            Shape::Flat => {
                self.vellum(&["import", path(&self.raw())?, name])?;
                name.to_owned()
            }
            Shape::FreshClone => {
                self.vellum(&["clone", "--layering", layering, "gold@s", name])?;
                name.to_owned()
            }
            Shape::Deep => {
                self.vellum(&["clone", "--layering", layering, "gold@s", &link(name, 1)])?;
                for depth in 2..=DEEP {
                    self.vellum(&["snap", "create", &format!("{}@s", link(name, depth - 1))])?;
                    let parent = format!("{}@s", link(name, depth - 1));
                    self.vellum(&["clone", "--layering", layering, &parent, &link(name, depth)])?;
                }
                link(name, DEEP)
            }
        };
        let mut command = Command::new(&self.vellum);
        command.env("VELLUM_HOME", self.home()).args(["serve", "--socket"]).arg(socket);
        Ok((Server::start(&mut command, socket)?, export))
    }

    fn serve_qcow2(
        &self,
        name: &str,
        shape: Shape,
        options: &str,
        workload: &Workload,
        socket: &Path,
    ) -> Result<(Server, String)> {
        let file = match shape {
            Shape::Flat if !workload.needs_own_image() => self.qcow2("gold"),
            Shape::Flat => {
                let file = self.qcow2(name);
                run(Command::new("cp").arg("--sparse=never").arg(self.qcow2("gold")).arg(&file))?;
                file
            }
            Shape::FreshClone | Shape::Deep => {
                let depth = if shape == Shape::Deep { DEEP } else { 1 };
                let mut parent = self.qcow2("gold");
                for depth in 1..=depth {
                    let child = self.qcow2(&link(name, depth));
                    run(Command::new("qemu-img")
                        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-o", options, "-b"])
                        .arg(&parent)
                        .arg(&child))?;
                    parent = child;
                }
                parent
            }
        };
        let mut command = Command::new("qemu-nbd");
        command
            .args([
                "--persistent",
                "--shared=8",
                "--format=qcow2",
                "--cache=writeback",
                "--discard=unmap",
            ])
            .arg("--socket")
            .arg(socket)
            .arg(file);
        Ok((Server::start(&mut command, socket)?, String::new()))
    }

    fn serve_nbdkit(
        &self,
        name: &str,
        workload: &Workload,
        socket: &Path,
    ) -> Result<(Server, String)> {
        let file = if workload.needs_own_image() {
            let file = self.dir.join(format!("{name}.raw"));
            run(Command::new("cp").arg("--sparse=never").arg(self.raw()).arg(&file))?;
            file
        } else {
            self.raw()
        };
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--unix"]).arg(socket).arg("file").arg(file);
        Ok((Server::start(&mut command, socket)?, String::new()))
    }

    /// Removes what a run made, so that the disk does not fill up.
    fn remove(&self, name: &str, target: Target) -> Result<()> {
        for depth in (0..=DEEP).rev() {
            let name = if depth == 0 { name.to_owned() } else { link(name, depth) };
            let _ = std::fs::remove_file(self.qcow2(&name));
            let _ = std::fs::remove_file(self.dir.join(format!("{name}.raw")));
            if matches!(target.who, Who::VellumSparse | Who::VellumCopyUp) {
                // Not all of these exist for every shape.
                let _ = self.vellum_command(&["snap", "rm", &format!("{name}@s")]).output();
                let _ = self.vellum_command(&["rm", &name]).output();
            }
        }
        Ok(())
    }

    fn vellum_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.vellum);
        command.env("VELLUM_HOME", self.home()).args(arguments);
        command
    }

    fn vellum(&self, arguments: &[&str]) -> Result<()> {
        run(&mut self.vellum_command(arguments))
    }

    fn home(&self) -> PathBuf {
        self.dir.join("home")
    }

    fn raw(&self) -> PathBuf {
        self.dir.join("gold.raw")
    }

    fn qcow2(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.qcow2"))
    }
}

/// The name of the image at this depth of a chain.
fn link(name: &str, depth: usize) -> String {
    format!("{name}.{depth}")
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

pub fn write_random(path: &Path, size: u64) -> Result<()> {
    const CHUNK: usize = 4 << 20;
    let mut random = StdRng::seed_from_u64(1);
    let mut chunk = vec![0; CHUNK];
    let mut file = File::create(path)?;
    let mut left = size;
    while left > 0 {
        random.fill(&mut chunk[..]);
        let length = left.min(CHUNK as u64);
        file.write_all(&chunk[..length as usize])?;
        left -= length;
    }
    file.sync_all()?;
    Ok(())
}
