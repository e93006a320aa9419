//! One file, read.

use std::fs;
use std::os::unix::fs::FileExt;

use vellum_convert::{ErrorKind, Format, Source, SourceOptions};
use vellum_core::{Run, State};

use crate::lab::{Lab, patch};

const M: u64 = 1 << 20;

#[test]
fn a_raw_file_may_have_any_size_and_keeps_its_holes() {
    for size in [0, 1, 511, 512, 4095, 100_000, 3 * M + 7] {
        let lab = Lab::new();
        let file = fs::File::create(lab.path("disk.raw")).unwrap();
        file.set_len(size).unwrap();
        if size > 2 * M {
            file.write_all_at(&[1; 5000], M).unwrap();
        }
        let source = Source::open(lab.path("disk.raw"), SourceOptions::default()).unwrap();
        assert_eq!((source.size(), source.format()), (size, Format::Raw));
        let runs: Vec<Run> = source.extents().map(|run| run.unwrap()).collect();
        let data: u64 =
            runs.iter().filter(|run| run.state == State::Data).map(|run| run.extent.length()).sum();
        assert_eq!(data, if size > 2 * M { 8192 } else { 0 }, "{size}: {runs:?}");
        assert_eq!(runs.last().map_or(0, |run| run.extent.end()), size);
        let mut whole = vec![0xaa; size as usize];
        source.read_at(&mut whole, 0).unwrap();
        assert!(whole == fs::read(lab.path("disk.raw")).unwrap());
    }
}

#[test]
fn reading_outside_the_disk_is_refused() {
    let lab = Lab::new();
    fs::write(lab.path("disk.raw"), [1; 1000]).unwrap();
    let source = Source::open(lab.path("disk.raw"), SourceOptions::default()).unwrap();
    for offset in [501, 1000, u64::MAX - 10] {
        let error = source.read_at(&mut [0; 500], offset).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{offset}");
    }
    source.read_at(&mut [], 1000).unwrap();
}

#[test]
fn a_raw_file_that_shrinks_meanwhile_is_corrupt() {
    let lab = Lab::new();
    fs::write(lab.path("disk.raw"), [1; 100_000]).unwrap();
    let source = Source::open(lab.path("disk.raw"), SourceOptions::default()).unwrap();
    fs::OpenOptions::new().write(true).open(lab.path("disk.raw")).unwrap().set_len(50_000).unwrap();
    // Called data, so that whoever reads it is told that it is gone.
    assert!(source.extents().all(|run| run.unwrap().state == State::Data));
    assert_eq!(source.read_at(&mut [0; 10], 60_000).unwrap_err().kind(), ErrorKind::Corrupt);
}

/// Every way to make a file that has a way of its own to be read.
const KINDS: [&str; 17] = [
    "compat=1.1",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=4k",
    "cluster_size=2M",
    "compat=0.10,cluster_size=512",
    "extended_l2=on",
    "extended_l2=on,cluster_size=16k",
    "extended_l2=on,cluster_size=128k",
    "extended_l2=on,cluster_size=2M",
    "compression_type=zstd",
    "lazy_refcounts=on",
    "refcount_bits=1",
    "preallocation=metadata",
    "preallocation=falloc",
    "preallocation=full",
    "extended_l2=on,preallocation=metadata",
];

#[test]
fn every_kind_of_qcow2_reads_as_qemu_reads_it() {
    for (seed, options) in KINDS.into_iter().enumerate() {
        let lab = Lab::new();
        // Neither a whole number of clusters nor an even one of sectors.
        let size = 20 * M + 512 * 77;
        lab.create("disk.qcow2", size, options);
        lab.scribble("disk.qcow2", size, 60, seed as u64);
        println!("{options}");
        lab.check_reads_alike("disk.qcow2");
    }
}

#[test]
fn compressed_clusters_unpack() {
    for (seed, options) in [
        "compression_type=zlib",
        "compression_type=zlib,cluster_size=512",
        "compression_type=zlib,cluster_size=2M",
        "compression_type=zstd",
        "compression_type=zstd,cluster_size=512",
        "compression_type=zstd,cluster_size=2M",
        "compression_type=zlib,extended_l2=on,cluster_size=128k",
        "compression_type=zstd,extended_l2=on,cluster_size=128k",
        "compat=0.10",
    ]
    .into_iter()
    .enumerate()
    {
        let lab = Lab::new();
        let size = if options.contains("512") { M } else { 10 * M + 512 };
        lab.create("plain.qcow2", size, "");
        lab.scribble("plain.qcow2", size, 60, 100 + seed as u64);
        lab.qemu_img(&format!("convert -c -O qcow2 -o {options} plain.qcow2 packed.qcow2"));
        println!("{options}");
        lab.check_reads_alike("packed.qcow2");
        // Some clusters packed, some written again as they are.
        lab.scribble("packed.qcow2", size, 10, 200 + seed as u64);
        lab.check_reads_alike("packed.qcow2");
    }
}

#[test]
fn the_active_state_is_read_whatever_snapshots_the_file_has() {
    let lab = Lab::new();
    lab.create("disk.qcow2", 8 * M, "");
    for seed in 0..3 {
        lab.scribble("disk.qcow2", 8 * M, 20, seed);
        lab.qemu_img(&format!("snapshot -c snap{seed} disk.qcow2"));
    }
    lab.scribble("disk.qcow2", 8 * M, 20, 3);
    lab.qemu_img("bitmap --add disk.qcow2 bitmap");
    lab.check_reads_alike("disk.qcow2");
}

#[test]
fn preallocated_files_are_as_sparse_as_their_data() {
    let lab = Lab::new();
    lab.create("disk.qcow2", 64 * M, "preallocation=metadata");
    assert_eq!(lab.check_reads_alike("disk.qcow2"), 0);
}

#[test]
fn holes_are_as_fine_as_subclusters() {
    let lab = Lab::new();
    lab.create("disk.qcow2", 8 * M, "extended_l2=on,cluster_size=128k");
    for offset in ["0", "1M", "3M"] {
        let path = lab.path("disk.qcow2").into_os_string().into_string().unwrap();
        vellum_testkit::tools::ok("qemu-io", &["-c", &format!("write {offset} 4k"), &path])
            .unwrap();
    }
    assert_eq!(lab.check_reads_alike("disk.qcow2"), 3 * 4096);
}

#[test]
fn a_petabyte_of_nothing_is_read_at_once() {
    let lab = Lab::new();
    lab.create("disk.qcow2", 1 << 50, "");
    let path = lab.path("disk.qcow2").into_os_string().into_string().unwrap();
    vellum_testkit::tools::ok("qemu-io", &["-c", "write -P 5 700T 64k", &path]).unwrap();
    let source = Source::open(lab.path("disk.qcow2"), SourceOptions::default()).unwrap();
    let mut data = source.extents().map(|run| run.unwrap()).filter(|run| run.state == State::Data);
    let run = data.next().unwrap();
    assert_eq!((run.extent.offset(), run.extent.length()), (700 << 40, 65536));
    assert_eq!(data.next(), None);
    let mut byte = [0];
    source.read_at(&mut byte, (700 << 40) + 65535).unwrap();
    assert_eq!(byte, [5]);
}

#[test]
fn a_file_cut_short_is_corrupt() {
    let lab = Lab::new();
    let path = lab.create("disk.qcow2", 4 * M, "");
    lab.scribble("disk.qcow2", 4 * M, 40, 9);
    let length = fs::metadata(&path).unwrap().len();
    for part in 1..8 {
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(length * (8 - part) / 8)
            .unwrap();
        let result = Source::open(&path, SourceOptions::default())
            .and_then(|source| source.read_at(&mut vec![0; 4 << 20], 0));
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Corrupt, "{part}/8 cut off");
    }
}

#[test]
fn tables_that_name_one_cluster_again_and_again_are_corrupt() {
    let lab = Lab::new();
    let path = lab.create("disk.qcow2", 512 * M, "");
    let name = path.to_str().unwrap();
    vellum_testkit::tools::ok("qemu-io", &["-c", "write -P 5 0 64k", name]).unwrap();
    let file = fs::File::open(&path).unwrap();
    let word_at = |offset: u64| {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, offset).unwrap();
        word
    };
    let table =
        u64::from_be_bytes(word_at(u64::from_be_bytes(word_at(40)))) & 0x00ff_ffff_ffff_fe00;
    patch(&path, table, &word_at(table).repeat(8192));
    let source = Source::open(&path, SourceOptions::default()).unwrap();
    let error = source.extents().find_map(|run| run.err()).unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("more data than the file"), "{error}");
}

#[test]
fn a_named_format_is_not_second_guessed() {
    let lab = Lab::new();
    let path = lab.create("disk.qcow2", M, "");
    let raw = SourceOptions { format: Some(Format::Raw), ..SourceOptions::default() };
    let source = Source::open(&path, raw).unwrap();
    assert_eq!((source.format(), source.size()), (Format::Raw, fs::metadata(&path).unwrap().len()));
    fs::write(lab.path("disk.raw"), [7; 1000]).unwrap();
    let qcow2 = SourceOptions { format: Some(Format::Qcow2), ..SourceOptions::default() };
    let error = Source::open(lab.path("disk.raw"), qcow2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}
