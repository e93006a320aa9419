//! What is not read, and what its owner is told.

use std::fs;
use std::path::Path;

use vellum_convert::{Error, ErrorKind, Format, Source, SourceOptions};

use crate::lab::{Lab, TRUSTING, patch};

const INCOMPATIBLE_FEATURES: u64 = 72;

fn refusal(path: impl AsRef<Path>, options: SourceOptions) -> Error {
    Source::open(path, options).expect_err("it is refused")
}

/// The kind, a word of the message, and a word of the hint.
fn check(error: &Error, kind: ErrorKind, word: &str, hint: &str) {
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(error.to_string().contains(word), "{error:?} does not say {word}");
    assert!(
        error.hint().is_some_and(|text| text.contains(hint)),
        "{error:?} does not hint at {hint}"
    );
}

#[test]
fn other_files_are_not_read_unless_allowed_and_the_error_names_them() {
    let lab = Lab::new();
    let path = lab.path("top.qcow2");
    lab.qemu_img("create -q -u -f qcow2 -b /etc/shadow -F raw top.qcow2 1M");
    let error = refusal(&path, SourceOptions::default());
    check(&error, ErrorKind::Unsupported, "'/etc/shadow'", "trust");
    assert!(error.to_string().contains("top.qcow2"), "{error}");
}

#[test]
fn encrypted_disks_are_not_read_as_ciphertext() {
    let lab = Lab::new();
    lab.qemu_img(
        "create -q -f qcow2 --object secret,id=key,data=x \
         -o encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10 disk.qcow2 1M",
    );
    check(
        &refusal(lab.path("disk.qcow2"), TRUSTING),
        ErrorKind::Unsupported,
        "LUKS",
        "--object secret",
    );
    lab.create("aes.qcow2", 1 << 20, "");
    patch(&lab.path("aes.qcow2"), 32, &[0, 0, 0, 1]);
    check(
        &refusal(lab.path("aes.qcow2"), TRUSTING),
        ErrorKind::Unsupported,
        "AES",
        "--object secret",
    );
}

#[test]
fn files_that_were_not_closed_properly_want_a_check_first() {
    let lab = Lab::new();
    let path = lab.create("disk.qcow2", 1 << 20, "");
    let repair = "qemu-img check";
    patch(&path, INCOMPATIBLE_FEATURES, &1u64.to_be_bytes());
    check(&refusal(&path, TRUSTING), ErrorKind::Unsupported, "dirty", repair);
    patch(&path, INCOMPATIBLE_FEATURES, &2u64.to_be_bytes());
    check(&refusal(&path, TRUSTING), ErrorKind::Corrupt, "corrupt", repair);
}

#[test]
fn features_unknown_here_are_refused_not_ignored() {
    let lab = Lab::new();
    let path = lab.create("disk.qcow2", 1 << 20, "");
    patch(&path, INCOMPATIBLE_FEATURES, &(1u64 << 17).to_be_bytes());
    check(&refusal(&path, TRUSTING), ErrorKind::Unsupported, "0x20000", "qemu-img convert");
}

#[test]
fn other_formats_and_compressed_files_are_not_mistaken_for_raw() {
    let lab = Lab::new();
    for format in ["vmdk", "vhdx", "qed", "vdi"] {
        lab.qemu_img(&format!("create -q -f {format} disk.{format} 1M"));
        let error = refusal(lab.path(&format!("disk.{format}")), SourceOptions::default());
        let name = format.to_uppercase();
        check(&error, ErrorKind::Unsupported, &name, "qemu-img convert");
    }
    // Of fixed size, a VHD has its mark at the end.
    for subformat in ["dynamic", "fixed"] {
        lab.qemu_img(&format!("create -q -f vpc -o subformat={subformat} disk.vhd 1M"));
        let error = refusal(lab.path("disk.vhd"), SourceOptions::default());
        check(&error, ErrorKind::Unsupported, "VHD", "qemu-img convert");
        let raw = SourceOptions { format: Some(Format::Raw), ..SourceOptions::default() };
        Source::open(lab.path("disk.vhd"), raw).unwrap();
    }
    fs::write(lab.path("disk.xz"), b"\xfd7zXZ\0\0\x04").unwrap();
    let error = refusal(lab.path("disk.xz"), SourceOptions::default());
    check(&error, ErrorKind::Unsupported, "xz", "unpack");
}

#[test]
fn backing_files_that_are_no_files_are_refused() {
    let lab = Lab::new();
    for name in ["nbd://localhost/disk", "json:{\"driver\":\"null-co\"}", "ssh:host"] {
        lab.qemu_img(&format!("create -q -u -f qcow2 -b {name} -F raw top.qcow2 1M"));
        let error = refusal(lab.path("top.qcow2"), TRUSTING);
        check(&error, ErrorKind::Unsupported, "no plain file name", "qemu-img convert");
    }
    // Nor do names get to write on the terminal.
    lab.qemu_img("create -q -u -f qcow2 -b \u{1b}[2J -F raw top.qcow2 1M");
    let error = refusal(lab.path("top.qcow2"), TRUSTING);
    check(&error, ErrorKind::Unsupported, "'\\u{1b}[2J'", "qemu-img convert");
    lab.qemu_img("create -q -u -f qcow2 -b base.vmdk -F vmdk top.qcow2 1M");
    check(
        &refusal(lab.path("top.qcow2"), TRUSTING),
        ErrorKind::Unsupported,
        "'vmdk'",
        "qemu-img convert",
    );
}

#[test]
fn a_disk_larger_than_the_largest_image_is_refused() {
    let lab = Lab::new();
    fs::File::create(lab.path("disk.raw")).unwrap().set_len(4 << 40).unwrap();
    Source::open(lab.path("disk.raw"), SourceOptions::default()).unwrap();
    lab.create("disk.qcow2", (1 << 50) + 512, "cluster_size=2M");
    let error = refusal(lab.path("disk.qcow2"), SourceOptions::default());
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("1 PiB"), "{error}");
}

#[test]
fn what_is_not_there_is_not_found() {
    let lab = Lab::new();
    assert_eq!(refusal(lab.path("none"), SourceOptions::default()).kind(), ErrorKind::NotFound);
    assert_eq!(refusal(lab.path("."), SourceOptions::default()).kind(), ErrorKind::Unsupported);
}
