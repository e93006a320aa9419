//! A directory to make disks in, with QEMU's tools as the judge of what they hold.

use std::fs;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vellum_convert::{Source, SourceOptions};
use vellum_core::State;
use vellum_testkit::tools;

/// How often `qemu-img` may say that the machine is too busy.
const ATTEMPTS: u32 = 20;

pub const TRUSTING: SourceOptions = SourceOptions { format: None, allow_backing: true };

pub struct Lab(tempfile::TempDir);

impl Lab {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The names in the directory, hidden ones too.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Runs `qemu-img` in the directory; it must succeed.
    pub fn qemu_img(&self, arguments: &str) -> String {
        let arguments: Vec<_> = arguments.split_whitespace().collect();
        for attempt in 1.. {
            let mut command = tools::command("qemu-img").unwrap();
            let output = command.current_dir(self.0.path()).args(&arguments).output().unwrap();
            let printed = String::from_utf8_lossy(&output.stdout).into_owned();
            let errors = String::from_utf8_lossy(&output.stderr);
            // What it measures to choose how long a key takes, it cannot on a busy machine.
            if attempt < ATTEMPTS && errors.contains("Unable to get accurate CPU usage") {
                continue;
            }
            assert!(output.status.success(), "qemu-img {arguments:?}: {printed}{errors}");
            return printed;
        }
        unreachable!("the last attempt succeeds or has failed the test")
    }

    /// Makes a qcow2 file with these creation options.
    pub fn create(&self, name: &str, size: u64, options: &str) -> PathBuf {
        let options = if options.is_empty() { String::new() } else { format!("-o {options}") };
        self.qemu_img(&format!("create -q -f qcow2 {options} {name} {size}"));
        self.path(name)
    }

    /// Does `count` random things to a disk: writes, zeros that are kept as such, zeros that free what was there, discards.
    pub fn scribble(&self, name: &str, size: u64, count: usize, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut script = Vec::new();
        for _ in 0..count {
            let length = match rng.random_range(0..4) {
                0 => 512,
                1 => 512 * rng.random_range(1..=16),
                _ => 512 * rng.random_range(1..=400),
            };
            let length: u64 = length.min(size);
            let offset = rng.random_range(0..=(size - length) / 512) * 512;
            let verb = match rng.random_range(0..8) {
                0 => "write -z".to_owned(),
                1 => "write -z -u".to_owned(),
                2 => "discard".to_owned(),
                _ => format!("write -P {}", rng.random_range(1..=255)),
            };
            script.push("-c".to_owned());
            script.push(format!("{verb} {offset} {length}"));
        }
        let path = self.path(name).into_os_string().into_string().unwrap();
        let format = if name.ends_with(".raw") { "raw" } else { "qcow2" };
        let mut arguments =
            ["-t", "unsafe", "-d", "unmap", "-f", format].map(str::to_owned).to_vec();
        arguments.extend(script);
        arguments.push(path);
        let mut command = tools::command("qemu-io").unwrap();
        // In the directory, since QEMU looks for external data files there.
        let output = command.current_dir(self.0.path()).args(&arguments).output().unwrap();
        let printed =
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && !printed.contains("failed"), "{arguments:?}: {printed}");
    }

    /// What QEMU says the disk holds.
    pub fn truth(&self, name: &str) -> Vec<u8> {
        self.qemu_img(&format!("convert -O raw {name} truth.out"));
        let truth = fs::read(self.path("truth.out")).unwrap();
        fs::remove_file(self.path("truth.out")).unwrap();
        truth
    }

    /// The file is read here as QEMU reads it, in every way that there is. Returns how many bytes are data.
    pub fn check_reads_alike(&self, name: &str) -> u64 {
        let truth = self.truth(name);
        let source = Source::open(self.path(name), TRUSTING).unwrap();
        assert_eq!(source.size(), truth.len() as u64, "size of {name}");
        check_content(&source, &truth, 7);
        check_extents(&source, &truth)
    }
}

/// Reads at once, in order and at random, in pieces of many sizes, by several threads.
fn check_content(source: &Source, truth: &[u8], seed: u64) {
    let mut whole = vec![0xaa; truth.len()];
    source.read_at(&mut whole, 0).unwrap();
    assert!(whole == truth, "read at once: differs at {:?}", first_difference(&whole, truth));
    std::thread::scope(|scope| {
        for thread in 0..3 {
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(seed + thread);
                for _ in 0..300 {
                    let length = rng.random_range(0..=truth.len().min(300_000));
                    let offset = rng.random_range(0..=truth.len() - length);
                    let mut part = vec![0xaa; length];
                    source.read_at(&mut part, offset as u64).unwrap();
                    assert!(part == truth[offset..offset + length], "{length} bytes at {offset}");
                }
            });
        }
    });
}

/// The extents cover the disk, and nothing but zeros is called zero.
fn check_extents(source: &Source, truth: &[u8]) -> u64 {
    let (mut at, mut data) = (0, 0);
    for run in source.extents() {
        let run = run.unwrap();
        assert_eq!(run.extent.offset(), at);
        assert!(!run.extent.is_empty());
        at = run.extent.end();
        match run.state {
            State::Data => data += run.extent.length(),
            State::Zero => {
                let bytes = &truth[run.extent.offset() as usize..run.extent.end() as usize];
                assert!(bytes.iter().all(|byte| *byte == 0), "{:?} is not zero", run.extent);
            }
            State::Inherited => panic!("{:?} is inherited", run.extent),
        }
    }
    assert_eq!(at, source.size());
    data
}

pub fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    a.iter().zip(b).position(|(a, b)| a != b)
}

/// Overwrites bytes of a file.
pub fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}
