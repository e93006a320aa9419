//! Files made here.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vellum_convert::{ErrorKind, Format, Sink, SinkOptions, Source, SourceOptions, create};
use vellum_core::Extent;

use crate::lab::{Lab, first_difference};

const M: u64 = 1 << 20;

fn new(format: Format) -> SinkOptions {
    SinkOptions { format, overwrite: false }
}

/// Writes random stretches of data to `sink` and to the model of the disk that is returned.
fn fill(sink: &mut dyn Sink, size: u64, granularity: u64, seed: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut disk = vec![0; size as usize];
    let mut at = 0;
    while at < size {
        let length = match rng.random_range(0..3) {
            0 => granularity,
            1 => granularity * rng.random_range(1..=20),
            _ => granularity * rng.random_range(1..=200),
        };
        let extent = Extent::between(at, size.min(at + length));
        match rng.random_range(0..5) {
            0 => sink.zero(extent).unwrap(),
            1 | 2 => {} // skipped
            _ => {
                let bytes = &mut disk[at as usize..extent.end() as usize];
                rng.fill(bytes);
                sink.write(at, bytes).unwrap();
            }
        }
        at = extent.end();
    }
    disk
}

#[test]
fn qemu_finds_nothing_wrong_and_reads_what_was_written() {
    for (seed, (size, granularity)) in [
        (20 * M, 4096),
        (20 * M + 512, 512),
        (5 * M + 1, 1),
        (64 << 10, 4096),
        (70 * M, 65536),
        (1100 * M, M),
    ]
    .into_iter()
    .enumerate()
    {
        let lab = Lab::new();
        let mut raw = create(lab.path("disk.raw"), size, new(Format::Raw)).unwrap();
        let disk = fill(&mut *raw, size, granularity, seed as u64);
        raw.finish().unwrap();
        let written = fs::read(lab.path("disk.raw")).unwrap();
        assert!(written == disk, "raw differs at {:?}", first_difference(&written, &disk));

        let mut qcow2 = create(lab.path("disk.qcow2"), size, new(Format::Qcow2)).unwrap();
        assert!(disk == fill(&mut *qcow2, size, granularity, seed as u64));
        qcow2.finish().unwrap();
        println!("{}", lab.qemu_img("check -f qcow2 disk.qcow2"));
        lab.qemu_img("compare -f raw -F qcow2 disk.raw disk.qcow2");
        let source = Source::open(lab.path("disk.qcow2"), SourceOptions::default()).unwrap();
        let mut copy = vec![0xaa; disk.len()];
        source.read_at(&mut copy, 0).unwrap();
        assert!(copy == disk, "qcow2 differs at {:?}", first_difference(&copy, &disk));
    }
}

#[test]
fn sizes_that_are_no_sectors_are_rounded_up_in_qcow2_only() {
    for size in [0, 1, 511, 512, 513, 65536, 65537, 512 * M, 512 * M + 1] {
        let lab = Lab::new();
        for format in [Format::Raw, Format::Qcow2] {
            let path = lab.path(&format.to_string());
            let mut sink = create(&path, size, new(format)).unwrap();
            if size > 0 {
                sink.write(size - 1, &[9]).unwrap();
            }
            sink.finish().unwrap();
            let source = Source::open(&path, SourceOptions::default()).unwrap();
            let expected = if format == Format::Raw { size } else { size.next_multiple_of(512) };
            assert_eq!((source.format(), source.size()), (format, expected), "{size}");
            if size > 0 {
                let mut last = [0];
                source.read_at(&mut last, size - 1).unwrap();
                assert_eq!(last, [9], "{size}");
            }
        }
        lab.qemu_img("check -f qcow2 qcow2");
        lab.qemu_img("compare -f raw -F qcow2 raw qcow2");
    }
}

#[test]
fn only_data_takes_space() {
    let lab = Lab::new();
    for format in [Format::Raw, Format::Qcow2] {
        let path = lab.path(&format.to_string());
        let mut sink = create(&path, 1 << 40, new(format)).unwrap();
        sink.write(5 << 30, &[1; 1 << 20]).unwrap();
        sink.zero(Extent::between(6 << 30, 900 << 30)).unwrap();
        sink.write(901 << 30, &[2; 4096]).unwrap();
        sink.finish().unwrap();
        let stored = fs::metadata(&path).unwrap().blocks() * 512;
        assert!(stored < 2 * M, "{format}: {stored} bytes");
    }
    lab.qemu_img("check -f qcow2 qcow2");
    let map = lab.qemu_img("map -f qcow2 --output=json qcow2");
    let data: Vec<_> = map.lines().filter(|line| line.contains("\"data\": true")).collect();
    assert_eq!(data.len(), 2, "{map}");
    assert!(data[0].contains(&format!("\"start\": {}, \"length\": {M}", 5u64 << 30)), "{map}");
    assert!(data[1].contains(&format!("\"start\": {}, \"length\": 65536", 901u64 << 30)), "{map}");
}

#[test]
fn a_petabyte_of_almost_nothing_is_a_small_file() {
    let lab = Lab::new();
    let mut sink = create(lab.path("disk.qcow2"), 1 << 50, new(Format::Qcow2)).unwrap();
    for offset in [0, 1 << 40, (1 << 50) - 4096] {
        sink.write(offset, &[7; 4096]).unwrap();
    }
    sink.finish().unwrap();
    assert!(fs::metadata(lab.path("disk.qcow2")).unwrap().len() < 20 * M);
    lab.qemu_img("check -f qcow2 disk.qcow2");
    let path = lab.path("disk.qcow2").into_os_string().into_string().unwrap();
    let last = format!("read -P 7 {} 4096", (1u64 << 50) - 4096);
    let printed = vellum_testkit::tools::ok("qemu-io", &["-r", "-c", &last, &path]).unwrap();
    assert!(!printed.contains("failed"), "{printed}");
    assert_eq!(
        create(lab.path("more"), (1 << 50) + 1, new(Format::Raw)).err().unwrap().kind(),
        ErrorKind::Invalid
    );
}

#[test]
fn nothing_lies_under_the_name_before_the_end() {
    let lab = Lab::new();
    for format in [Format::Raw, Format::Qcow2] {
        let mut sink = create(lab.path("disk"), M, new(format)).unwrap();
        sink.write(0, &[1; 4096]).unwrap();
        assert!(!lab.path("disk").exists());
        drop(sink);
        assert_eq!(lab.names(), [""; 0], "a sink that is dropped leaves nothing");
    }
}

#[test]
fn a_file_that_exists_is_replaced_only_on_request_and_only_at_the_end() {
    let lab = Lab::new();
    fs::write(lab.path("disk"), "precious").unwrap();
    fs::set_permissions(lab.path("disk"), fs::Permissions::from_mode(0o662)).unwrap();
    symlink("disk", lab.path("link")).unwrap();
    let error = create(lab.path("disk"), 100, new(Format::Raw)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert!(error.hint().is_some());

    let overwrite = SinkOptions { format: Format::Raw, overwrite: true };
    let mut sink = create(lab.path("link"), 100, overwrite).unwrap();
    sink.write(0, &[1]).unwrap();
    assert_eq!(fs::read(lab.path("disk")).unwrap(), b"precious");
    sink.finish().unwrap();
    assert_eq!(fs::metadata(lab.path("disk")).unwrap().len(), 100);
    assert_eq!(fs::metadata(lab.path("disk")).unwrap().permissions().mode() & 0o777, 0o662);
    assert!(fs::symlink_metadata(lab.path("link")).unwrap().is_symlink());
    assert_eq!(lab.names(), ["disk", "link"]);
}

#[test]
fn a_name_taken_meanwhile_is_not_overwritten() {
    let lab = Lab::new();
    let sink = create(lab.path("disk"), 100, new(Format::Raw)).unwrap();
    fs::write(lab.path("disk"), "precious").unwrap();
    assert_eq!(sink.finish().unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(fs::read(lab.path("disk")).unwrap(), b"precious");
    assert_eq!(lab.names(), ["disk"]);
}

#[test]
fn places_where_no_file_can_be_are_refused() {
    let lab = Lab::new();
    let kind_of = |name: &str, options| create(lab.path(name), 100, options).err().unwrap().kind();
    assert_eq!(kind_of("none/disk", new(Format::Raw)), ErrorKind::NotFound);
    let overwrite = SinkOptions { format: Format::Raw, overwrite: true };
    assert_eq!(kind_of(".", overwrite), ErrorKind::Unsupported);
    assert_eq!(kind_of("..", new(Format::Raw)), ErrorKind::Exists);
    let long = "x".repeat(255);
    create(lab.path(&long), 100, new(Format::Raw)).unwrap().finish().unwrap();
    assert_eq!(lab.names(), [long]);
}

#[test]
fn a_full_disk_is_told_from_other_failures() {
    let mut sink = create("/dev/full", M, new(Format::Raw)).unwrap();
    assert_eq!(sink.write(0, &[1; 4096]).unwrap_err().kind(), ErrorKind::NoSpace);
}

#[test]
fn a_sink_goes_forward_only() {
    let lab = Lab::new();
    for format in [Format::Raw, Format::Qcow2] {
        let mut sink = create(lab.path("disk"), M, new(format)).unwrap();
        sink.write(100_000, &[1; 100]).unwrap();
        assert_eq!(sink.write(0, &[1]).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(sink.zero(Extent::new(100_099, 1)).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(sink.write(M - 1, &[1; 2]).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
