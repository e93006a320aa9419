//! The seeds and what was found once, as ordinary tests: every input that is kept, through its target, without a fuzzer.
#![allow(clippy::unwrap_used, reason = "what fails while a test is prepared fails the test")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};

use vellum_fuzz::run::files_in;
use vellum_fuzz::{TARGETS, qcow2, run, target};

/// The memory is counted for the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn directory(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(of)
}

/// Runs all seeds of a target. It must have some, and not be a few bytes each.
fn run_seeds(name: &str) {
    let _alone = alone();
    let files = files_in(&directory("seeds").join(name)).unwrap();
    for file in &files {
        println!("{}", file.display());
        run(target(name), &std::fs::read(file).unwrap());
    }
    assert!(files.len() >= 10, "{name} has {} seeds", files.len());
}

#[test]
fn whatever_a_client_negotiates_the_answers_are_those_of_the_protocol() {
    run_seeds("nbd_negotiation");
}

#[test]
fn whatever_a_client_asks_for_it_is_answered_as_an_array_of_bytes_would() {
    run_seeds("nbd_transmission");
}

#[test]
fn what_is_accepted_of_a_layer_reads_the_same_when_it_is_written_again() {
    run_seeds("layer_bytes");
}

#[test]
fn whatever_the_files_of_a_layer_hold_its_owner_finds_what_a_reader_saw() {
    run_seeds("layer");
}

#[test]
fn whatever_a_qcow2_file_holds_its_copy_reads_the_same() {
    run_seeds("qcow2");
}

#[test]
fn whatever_words_are_accepted_print_as_what_reads_the_same() {
    run_seeds("words");
}

#[test]
fn whatever_processes_tell_each_other_is_understood_or_refused() {
    run_seeds("control");
}

#[test]
fn whatever_is_accepted_of_an_rbd_image_reads_the_same_when_it_is_written_again() {
    run_seeds("rbd_bytes");
}

#[test]
fn whatever_lies_in_a_pool_on_ceph_it_is_understood_mended_or_refused() {
    run_seeds("ceph");
}

#[test]
fn every_target_takes_inputs_of_nothing_and_of_one_byte_again_and_again() {
    let _alone = alone();
    for target in TARGETS {
        run(target, &[]);
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            run(target, &[byte; 600]);
        }
    }
}

#[test]
fn the_canary_dies_of_the_right_words_and_of_no_others() {
    let _alone = alone();
    let body = target("canary").body;
    body(b"LLEV!!z.........");
    assert!(std::panic::catch_unwind(|| body(b"LLEV!!zz........")).is_err());
}

/// What seeds of qcow2 are made of: files of QEMU's in every shape that is read.
const SHAPES: [&str; 9] = [
    "compat=0.10,cluster_size=512",
    "compat=1.1,cluster_size=512",
    "compat=1.1,cluster_size=64k",
    "compat=1.1,cluster_size=512,refcount_bits=64",
    "compat=1.1,cluster_size=1k,lazy_refcounts=on",
    "compat=1.1,cluster_size=4k,preallocation=metadata",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=1k,compression_type=zlib",
    "cluster_size=1k,compression_type=zstd",
];

#[test]
fn files_that_qemu_made_are_described_and_read_as_inputs() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let qemu = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).current_dir(&directory).args(arguments).output();
        let output = output.unwrap_or_else(|error| panic!("{program}, of qemu-utils: {error}"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    for shape in SHAPES {
        qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", shape, "disk", "200k"]);
        for command in ["write -P 7 0 3k", "write -P 9 20k 5k", "write -z 40k 4k"] {
            qemu("qemu-io", &["-t", "unsafe", "-c", command, "disk"]);
        }
        if shape.contains("compression_type") {
            qemu("qemu-img", &["convert", "-c", "-O", "qcow2", "-o", shape, "disk", "packed"]);
            std::fs::rename(directory.path().join("packed"), directory.path().join("disk"))
                .unwrap();
        }
        let file = std::fs::read(directory.path().join("disk")).unwrap();
        let input = qcow2::describe(&file);
        assert!(input.len() < vellum_fuzz::INPUT_MAX, "{shape}: {} bytes", input.len());
        assert!(qcow2::rebuild(&input) == file, "{shape}: an input describes another file");
        run(target("qcow2"), &input);
    }
}
