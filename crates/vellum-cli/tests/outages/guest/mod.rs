//! [`Guest`]: a machine in QEMU whose power can be cut, with `vellum` in it and a [`disk`] that loses what was not flushed.
//!
//! Nothing of it needs the right to do anything on this machine: the network ends in QEMU, with three ports on loopback.

pub mod disk;
mod initramfs;
pub mod kernel;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use vellum_testkit::nbd::Client;
use vellum_testkit::tools;

use self::disk::Served;
use self::kernel::Kernel;
use crate::machine::{Answer, Machine};

/// A machine without hardware help on a busy computer is slow to boot.
const BOOT_MAX: Duration = Duration::from_secs(180);
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// The file system of a guest's disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// What it believes that a disk never tears. The commit block of ext4's journal is one of its blocks: where only a part of
    /// one has landed, the journal is corrupt to it. XFS asks for sectors.
    pub fn unit(self) -> u64 {
        match self {
            Self::Ext4 => 4096,
            Self::Xfs => 512,
        }
    }

    /// Makes a file that holds an empty one.
    pub fn make(self, path: &Path) -> Result<()> {
        std::fs::File::create(path)?.set_len(DISK)?;
        match self {
            Self::Ext4 => tools::ok("mkfs.ext4", &["-q".as_ref(), path.as_os_str()])?,
            Self::Xfs => tools::ok("mkfs.xfs", &["-q".as_ref(), path.as_os_str()])?,
        };
        Ok(())
    }

    /// Looks whether a file system is sound that was unmounted, or lost its power and was mounted since.
    pub fn check(self, path: &Path) -> Result<()> {
        match self {
            Self::Ext4 => tools::ok("e2fsck", &["-fn".as_ref(), path.as_os_str()])?,
            Self::Xfs => tools::ok("xfs_repair", &["-n".as_ref(), path.as_os_str()])?,
        };
        Ok(())
    }
}

/// The size of the disk.
const DISK: u64 = 1 << 30;

/// What any number of guests are started with.
#[derive(Debug)]
pub struct Parts {
    kernel: Kernel,
    initramfs: PathBuf,
}

impl Parts {
    pub fn gather(dir: &Path, vellum: &Path) -> Result<Self> {
        Self::gather_with(dir, vellum, &[])
    }

    /// The same, with more programs of this machine.
    pub fn gather_with(dir: &Path, vellum: &Path, programs: &[&str]) -> Result<Self> {
        let kernel = kernel::find().context("a kernel was found before")?;
        let initramfs = initramfs::build(dir, &kernel, vellum, programs)?;
        Ok(Self { kernel, initramfs })
    }
}

/// A machine that runs. Its power is cut when it is dropped.
#[derive(Debug)]
pub struct Guest {
    switch: Switch,
    shell: SocketAddr,
    /// Of each server that there can be.
    nbd: [SocketAddr; 2],
    console: Console,
    served: AtomicUsize,
}

/// Takes a machine's power away, from any thread.
#[derive(Clone, Debug)]
pub struct Switch(Arc<Mutex<Child>>);

impl Switch {
    /// At once, and for good.
    pub fn off(&self) -> Result<()> {
        let mut qemu = self.0.lock();
        qemu.kill()?;
        qemu.wait()?;
        Ok(())
    }
}

/// What a guest has printed.
#[derive(Clone, Debug, Default)]
struct Console(Arc<Mutex<Printed>>);

#[derive(Debug, Default)]
struct Printed {
    text: String,
    ended: bool,
}

impl Guest {
    /// Switches it on. `writeback` is how soon, in centiseconds, its kernel writes what nobody synced.
    pub fn power_on(
        parts: &Parts,
        disk: &Served,
        file_system: FileSystem,
        writeback: u32,
    ) -> Result<Self> {
        let [shell, one, other] = free_ports()?;
        let forward = |from: SocketAddr, to: u16| format!("hostfwd=tcp:{from}-:{to}");
        let network = format!(
            "user,id=net,restrict=on,{},{},{}",
            forward(shell, SHELL_PORT),
            forward(one, Server::One.port()),
            forward(other, Server::Other.port())
        );
        // A kernel that measures time on a busy computer must not conclude that its timer or a processor is broken.
        let command_line = format!(
            "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on no_timer_check \
             nosoftlockup rcupdate.rcu_cpu_stall_suppress=1 GUEST_FILE_SYSTEM={} GUEST_WRITEBACK={writeback}",
            file_system.name()
        );
        let socket = disk.socket.to_str().context("a temporary path is UTF-8")?;
        let blocks =
            format!("driver=nbd,node-name=disk,export=disk,server.type=unix,server.path={socket}");
        // Without the help of hardware: it is slower, and the same everywhere.
        let mut qemu = tools::command("qemu-system-x86_64")?
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "256"])
            .arg("-kernel")
            .arg(&parts.kernel.image)
            .arg("-initrd")
            .arg(&parts.initramfs)
            .args(["-append", &command_line])
            .args(["-serial", "stdio"])
            .args(["-netdev", &network, "-device", "virtio-net-pci,netdev=net,romfile="])
            .args(["-blockdev", &blocks, "-device", "virtio-blk-pci,drive=disk,write-cache=on"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let console = Console::default();
        console.follow(qemu.stdout.take().context("it is piped")?);
        console.follow(qemu.stderr.take().context("it is piped")?);
        Ok(Self {
            switch: Switch(Arc::new(Mutex::new(qemu))),
            shell,
            nbd: [one, other],
            console,
            served: AtomicUsize::new(0),
        })
    }

    /// Waits until its disk is mounted and commands can be given.
    pub fn wait_until_up(&self) -> Result<()> {
        self.console.wait_for("guest: ready", 1)?;
        let began = Instant::now();
        while !self.type_in("echo up\n").is_ok_and(|said| said.contains("up")) {
            ensure!(began.elapsed() < BOOT_MAX, "nobody listens in the guest");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Starts a server.
    pub fn serve(&self) -> Result<()> {
        self.start(Server::One)
    }

    /// Starts one of two servers, which may run at the same time.
    pub fn start(&self, server: Server) -> Result<()> {
        self.start_with(server, &[])
    }

    /// The same, with more arguments.
    pub fn start_with(&self, server: Server, arguments: &[&str]) -> Result<()> {
        self.type_in(&format!(
            "({{ vellum --home /disk/home serve --listen 0.0.0.0:{} --insecure {} & \
             echo $! >{}; wait $!; echo \"{SERVER_END}$?\"; }} </dev/null >/dev/ttyS0 2>&1 &)\n",
            server.port(),
            arguments.join(" "),
            server.number_file()
        ))?;
        let times = self.served.fetch_add(1, Ordering::Relaxed) + 1;
        self.console.wait_for("ready: serving", times)
    }

    /// Kills the server, and all commands.
    pub fn kill_vellum(&self) -> Result<()> {
        self.shell("killall -9 vellum; while pidof vellum >/dev/null; do usleep 10000; done")
            .map(|_| ())
    }

    /// Kills one of the servers, which need not be gone then.
    pub fn kill(&self, server: Server) -> Result<()> {
        self.shell(&format!("kill -9 $(cat {})", server.number_file())).map(|_| ())
    }

    /// Asks one of the servers to stop.
    pub fn terminate(&self, server: Server) -> Result<()> {
        self.shell(&format!("kill $(cat {})", server.number_file())).map(|_| ())
    }

    /// The exit code of the first server that has ended.
    pub fn exit_code(&self) -> Option<i32> {
        let printed = self.console.0.lock();
        let (_, rest) = printed.text.split_once(SERVER_END)?;
        rest.lines().next()?.trim().parse().ok()
    }

    /// How many threads of a server are asleep in the kernel, where no signal reaches them.
    pub fn asleep(&self, server: Server) -> Result<u64> {
        let threads = format!("/proc/$(cat {})/task/*/status", server.number_file());
        let said =
            self.shell(&format!("cat {threads} 2>/dev/null | grep -c '^State:.D' || true"))?;
        said.trim().parse().context("a number of threads")
    }

    /// Lets the kernel keep so many bytes that are not on the disk yet, and makes whoever writes more wait.
    pub fn limit_unwritten(&self, bytes: u64) -> Result<()> {
        let limits = [("dirty_background_bytes", bytes / 2), ("dirty_bytes", bytes)];
        for (limit, bytes) in limits {
            self.shell(&format!("echo {bytes} >/proc/sys/vm/{limit}"))?;
        }
        Ok(())
    }

    /// Connects to one of the servers.
    pub fn connect_to(&self, server: Server, export: &str) -> Result<Client> {
        Client::connect_tcp(self.nbd[server as usize], export)
    }

    /// Unmounts the disk, so that nothing is left to be lost.
    pub fn unmount(&self) -> Result<()> {
        let said = self.type_in("killall vellum; sleep 1; umount /disk && echo unmounted\n")?;
        ensure!(said.contains("unmounted"), "the disk is not unmounted: {said}");
        Ok(())
    }

    /// What takes its power away.
    pub fn switch(&self) -> Switch {
        self.switch.clone()
    }

    /// What its kernel said that no kernel should say.
    pub fn complaint(&self) -> Option<String> {
        let printed = self.console.0.lock();
        let bad = ["EXT4-fs error", "orruption", "I/O error", "BUG:", "Call Trace", "panicked"];
        let line = printed.text.lines().find(|line| bad.iter().any(|bad| line.contains(bad)));
        line.map(str::to_owned)
    }

    /// All that was printed.
    pub fn printed(&self) -> String {
        self.console.0.lock().text.clone()
    }

    /// Runs a line of shell that must succeed, and returns what it printed.
    pub fn shell(&self, line: &str) -> Result<String> {
        let answer = self.answer(line).with_context(|| format!("the guest runs {line}"))?;
        ensure!(answer.is_done(), "{line} {}", answer.told());
        Ok(answer.out)
    }

    fn answer(&self, line: &str) -> Result<Answer> {
        let said = self.type_in(&format!(
            "{{ {line}; }} </dev/null 2>/tmp/err.$$; code=$?; echo; echo \"{END}$code\"; \
             cat /tmp/err.$$; rm /tmp/err.$$\n"
        ))?;
        let (out, rest) = said.split_once(END).context("the answer breaks off")?;
        let (code, err) = rest.split_once('\n').context("the answer breaks off")?;
        Ok(Answer { code: Some(code.parse()?), out: out.to_owned(), err: err.to_owned() })
    }

    /// Types a line, and returns what comes until the shell ends.
    fn type_in(&self, line: &str) -> Result<String> {
        let mut shell = TcpStream::connect(self.shell)?;
        shell.set_read_timeout(Some(SILENCE_MAX))?;
        shell.write_all(line.as_bytes())?;
        shell.write_all(b"exit\n")?;
        let mut said = String::new();
        shell.read_to_string(&mut said)?;
        let _ = shell.shutdown(Shutdown::Both);
        Ok(said)
    }
}

const SHELL_PORT: u16 = 7000;

/// A server of the guest's home.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Server {
    One,
    Other,
}

impl Server {
    /// The one beside it.
    pub fn other(self) -> Self {
        match self {
            Self::One => Self::Other,
            Self::Other => Self::One,
        }
    }

    pub fn port(self) -> u16 {
        10809 + self as u16
    }

    /// Where its process id is written down.
    fn number_file(self) -> String {
        format!("/tmp/server{}", self as u8)
    }
}

impl Machine for Guest {
    fn run(&self, arguments: &[&str]) -> Result<Answer> {
        self.answer(&format!("vellum --home /disk/home {}", arguments.join(" ")))
    }

    fn second_pool(&self) -> String {
        "/disk/other".to_owned()
    }

    fn file(&self) -> String {
        "/disk/gold.raw".to_owned()
    }

    fn connect(&self, export: &str) -> Result<Client> {
        self.connect_to(Server::One, export)
    }
}

/// What stands before the exit code of a server.
const SERVER_END: &str = "guest: a server ended with ";

/// What stands between what a command printed and its exit code.
const END: &str = "==== exit code ";

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.switch.off();
    }
}

impl Console {
    fn follow(&self, stream: impl Read + Send + 'static) {
        let console = self.clone();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stream);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                console.0.lock().text.push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
            console.0.lock().ended = true;
        });
    }

    /// Waits until something was printed so many times.
    fn wait_for(&self, what: &str, times: usize) -> Result<()> {
        let began = Instant::now();
        loop {
            let printed = self.0.lock();
            if printed.text.matches(what).count() >= times {
                return Ok(());
            }
            if printed.ended || printed.text.contains("guest: the disk") {
                bail!("the guest never said '{what}': {}", printed.text);
            }
            ensure!(began.elapsed() < BOOT_MAX, "no '{what}' yet: {}", printed.text);
            drop(printed);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Addresses on loopback that nobody listens on.
fn free_ports<const COUNT: usize>() -> Result<[SocketAddr; COUNT]> {
    let any = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listeners = (0..COUNT).map(|_| any()).collect::<std::io::Result<Vec<_>>>()?;
    let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); COUNT];
    for (address, listener) in addresses.iter_mut().zip(&listeners) {
        *address = listener.local_addr()?;
    }
    Ok(addresses)
}
