//! Files that lie: whatever their bytes say, reading them ends, soon, without a panic and within the memory that is stated.
//!
//! Sound files made by QEMU are damaged at random, mostly where their tables and headers are, with a fixed seed. A binary of its
//! own, since it counts every byte that is allocated; its tests take turns. `VELLUM_HOSTILE_TIMES=100` damages so many times
//! more files.
#![allow(clippy::unwrap_used, reason = "what fails while a test is prepared fails the test")]

mod counting;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vellum_convert::{Error, ErrorKind, Format, SinkOptions, Source, SourceOptions, create};
use vellum_core::{Extent, State};
use vellum_testkit::tools;

#[global_allocator]
static COUNTING: counting::Counting = counting::Counting;

const MIB: usize = 1 << 20;
/// What reading may take: the caches and the cluster that is being unpacked, as `Source` states, and what this test itself has.
const READING_MAX: usize = (8 + 16 + 16 + 2) * MIB;
/// Far more than any of these files takes, on a machine that does other things too.
const TIME_MAX: Duration = Duration::from_secs(20);
const K: u64 = 1 << 10;

/// The memory is counted for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn run(directory: &Path, program: &str, arguments: &[&str]) {
    let mut command = tools::command(program).unwrap();
    let output = command.current_dir(directory).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
}

/// A small sound file with everything in it that its options allow.
fn sound_file(directory: &Path, options: &str) -> Vec<u8> {
    run(
        directory,
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", options, "plain.qcow2", "3M"],
    );
    for (offset, length) in [(0, 8 * K), (200 * K, 100 * K), (2048 * K, 33 * K)] {
        let data = format!("write -P 7 {offset} {length}");
        let zeros = format!("write -z {} 4k", offset + length);
        run(directory, "qemu-io", &["-t", "unsafe", "-c", &data, "-c", &zeros, "plain.qcow2"]);
    }
    if options.contains("compression_type") {
        let convert =
            ["convert", "-c", "-O", "qcow2", "-o", options, "plain.qcow2", "packed.qcow2"];
        run(directory, "qemu-img", &convert);
        fs::rename(directory.join("packed.qcow2"), directory.join("plain.qcow2")).unwrap();
    }
    fs::read(directory.join("plain.qcow2")).unwrap()
}

/// Offsets of bytes that mean something: not the long runs of one byte that make up most of a file.
fn telling_bytes(file: &[u8]) -> Vec<usize> {
    let chunks = file.chunks(64).enumerate();
    chunks
        .filter(|(_, chunk)| chunk.iter().any(|byte| *byte != chunk[0]))
        .flat_map(|(i, chunk)| i * 64..i * 64 + chunk.len())
        .collect()
}

fn damage(file: &mut Vec<u8>, telling: &[usize], rng: &mut StdRng) {
    const WORDS: [u64; 10] = [
        0,
        1,
        u64::MAX,
        1 << 63,
        1 << 62 | 0xffff_ffff,
        1 << 50,
        0x7fff_ffff_ffff_fe00,
        0x0000_0100_0000_0020,
        0xffff_ffff,
        0x8000_0000_0001_0000,
    ];
    for _ in 0..rng.random_range(1..=3) {
        let at = if rng.random_bool(0.3) {
            rng.random_range(0..120)
        } else {
            telling[rng.random_range(0..telling.len())]
        };
        match rng.random_range(0..6) {
            0 => file[at] ^= 1 << rng.random_range(0..8),
            1 => file[at] = rng.random(),
            2 | 3 => {
                let at = at / 8 * 8;
                let word = WORDS[rng.random_range(0..WORDS.len())];
                file[at..at + 8].copy_from_slice(&word.to_be_bytes());
            }
            4 => {
                // A word from elsewhere in the file: an offset that means something, in the wrong place.
                let from = telling[rng.random_range(0..telling.len())] / 8 * 8;
                file.copy_within(from..from + 8, at / 8 * 8);
            }
            _ if rng.random_bool(0.2) => {
                let length = rng.random_range(120..file.len());
                file.truncate(length);
                return;
            }
            _ => {
                let at = at / 4 * 4;
                let word: u32 = 1 << rng.random_range(0..32);
                file[at..at + 4].copy_from_slice(&word.to_be_bytes());
            }
        }
    }
}

/// Reads all that can be read, as an importer does, but not more than a bound of data.
fn read_through(path: &Path) -> Result<(), Error> {
    let source = Source::open(path, SourceOptions { format: None, allow_backing: true })?;
    let mut buffer = vec![0; MIB];
    let mut left = 64 * MIB as u64;
    let mut at = 0;
    for run in source.extents() {
        let run = run?;
        assert_eq!(run.extent.offset(), at);
        assert!(!run.extent.is_empty());
        at = run.extent.end();
        if run.state == State::Data {
            let extent = run.extent.clip(run.extent.offset() + left);
            left -= extent.length();
            for part in extent.chunks(MIB as u64) {
                source.read_at(&mut buffer[..part.len_usize()], part.offset())?;
            }
        }
    }
    assert_eq!(at, source.size());
    // And from the end backwards, where nobody went before.
    let last = Extent::between(source.size().saturating_sub(MIB as u64), source.size());
    source.read_at(&mut buffer[..last.len_usize()], last.offset())
}

fn check_damaged(options: &str, rounds: u64) {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let sound = sound_file(directory.path(), options);
    let telling = telling_bytes(&sound);
    let path = directory.path().join("damaged.qcow2");
    fs::write(&path, &sound).unwrap();
    read_through(&path).unwrap();
    let mut outcomes = [0; 3];
    let times = std::env::var("VELLUM_HOSTILE_TIMES").map_or(1, |times| times.parse().unwrap());
    let rounds = rounds * times;
    for seed in 0..rounds {
        let mut file = sound.clone();
        damage(&mut file, &telling, &mut StdRng::seed_from_u64(seed));
        fs::write(&path, &file).unwrap();
        drop(file);
        let (began, before) = (Instant::now(), counting::restart());
        let result = read_through(&path);
        let (took, used) = (began.elapsed(), counting::peak() - before);
        assert!(took < TIME_MAX, "{options}, seed {seed}: took {took:?}");
        assert!(used < READING_MAX, "{options}, seed {seed}: took {used} bytes");
        outcomes[match result.as_ref().map_err(Error::kind) {
            Ok(()) => 0,
            Err(ErrorKind::Corrupt) => 1,
            Err(ErrorKind::Unsupported | ErrorKind::NotFound) => 2,
            Err(kind) => {
                panic!("{options}, seed {seed}: {kind:?}, which damage is not: {result:?}")
            }
        }] += 1;
    }
    println!("{options}: {outcomes:?} read, corrupt, unsupported");
    assert!(outcomes[1] > rounds / 20, "the damage hits nothing: {outcomes:?}");
}

#[test]
fn damage_to_plain_files() {
    check_damaged("compat=1.1", 400);
    check_damaged("compat=0.10,cluster_size=512", 300);
}

#[test]
fn damage_to_subclusters() {
    check_damaged("extended_l2=on,cluster_size=16k", 400);
}

#[test]
fn damage_to_compressed_clusters() {
    check_damaged("compression_type=zlib", 400);
    check_damaged("compression_type=zstd", 600);
    check_damaged("compression_type=zstd,cluster_size=2M", 200);
}

#[test]
fn damage_to_names_of_other_files() {
    check_damaged("data_file=plain.data", 200);
}

#[test]
fn a_large_header_over_a_small_file_costs_nothing() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let create = ["create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", "disk.qcow2", "1P"];
    run(directory.path(), "qemu-img", &create);
    let path = directory.path().join("disk.qcow2");
    let before = counting::restart();
    let source = Source::open(&path, SourceOptions::default()).unwrap();
    assert!(source.extents().all(|run| run.unwrap().state == State::Zero));
    let used = counting::peak() - before;
    assert!(used < 13 * MIB, "{used} bytes: the tables are not read as a whole");
}

#[test]
fn an_l1_table_of_one_name_again_and_again_is_found_out() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    // 32 MiB of L1 table that all names one L2 table: as far as 1 PiB goes with clusters of 16 KiB and no further.
    let path = directory.path().join("disk.qcow2");
    let table_span = (16 * K / 8) * 16 * K;
    let size = table_span * (1 << 22);
    let file = fs::File::create(&path).unwrap();
    let mut header = vec![0; 120];
    header[..4].copy_from_slice(b"QFI\xfb");
    header[7] = 3;
    header[23] = 14;
    header[24..32].copy_from_slice(&size.to_be_bytes());
    header[36..40].copy_from_slice(&(1u32 << 22).to_be_bytes());
    header[40..48].copy_from_slice(&(48 * K).to_be_bytes());
    header[99] = 4;
    header[103] = 112;
    file.write_all_at(&header, 0).unwrap();
    file.write_all_at(&(32 * K).to_be_bytes().repeat(2048), 16 * K).unwrap();
    file.write_all_at(&[1; 16 << 10], 32 * K).unwrap();
    file.write_all_at(&(16 * K).to_be_bytes().repeat(1 << 22), 48 * K).unwrap();
    let (began, before) = (Instant::now(), counting::restart());
    let error = read_through(&path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("more data than the file"), "{error}");
    let used = counting::peak() - before;
    assert!(began.elapsed() < TIME_MAX && used < READING_MAX, "{:?} {used}", began.elapsed());
}

#[test]
fn writing_a_petabyte_takes_the_memory_that_is_stated() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let before = counting::restart();
    let options = SinkOptions { format: Format::Qcow2, overwrite: false };
    let mut sink = create(directory.path().join("disk.qcow2"), 1 << 50, options).unwrap();
    for i in 0..1000 {
        sink.write(i << 40, &[1; 4096]).unwrap();
    }
    sink.finish().unwrap();
    let used = counting::peak() - before;
    assert!(
        used < (16 + 16 + 1) * MIB,
        "{used} bytes: more than the L1 table and a copy to write it"
    );
}
