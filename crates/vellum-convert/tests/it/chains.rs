//! Files behind files.

use std::fs;

use vellum_convert::{ErrorKind, Source, SourceOptions};

use crate::lab::{Lab, TRUSTING, patch};

const M: u64 = 1 << 20;

#[test]
fn an_overlay_reads_through_to_what_is_behind_it() {
    for (seed, (below, above)) in [
        ("", ""),
        ("cluster_size=4k", "cluster_size=2M"),
        ("cluster_size=2M", "cluster_size=512"),
        ("extended_l2=on", "extended_l2=on,cluster_size=128k"),
        ("compat=0.10", "extended_l2=on"),
        ("compression_type=zstd", "compat=0.10"),
    ]
    .into_iter()
    .enumerate()
    {
        let lab = Lab::new();
        let size = 6 * M + 512 * 5;
        lab.create("bottom.qcow2", size, below);
        lab.scribble("bottom.qcow2", size, 60, 300 + seed as u64);
        let backing = "backing_file=bottom.qcow2,backing_fmt=qcow2";
        let options =
            if above.is_empty() { backing.to_owned() } else { format!("{backing},{above}") };
        lab.create("top.qcow2", size, &options);
        lab.scribble("top.qcow2", size, 30, 400 + seed as u64);
        println!("{above} on {below}");
        lab.check_reads_alike("top.qcow2");
    }
}

#[test]
fn raw_files_have_their_holes_also_behind_an_overlay() {
    let lab = Lab::new();
    let base = fs::File::create(lab.path("base.raw")).unwrap();
    base.set_len(16 * M).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&base, &[3; 8192], 5 * M).unwrap();
    lab.create("top.qcow2", 16 * M, "backing_file=base.raw,backing_fmt=raw");
    assert_eq!(lab.check_reads_alike("top.qcow2"), 8192);
    lab.scribble("top.qcow2", 16 * M, 30, 1);
    lab.check_reads_alike("top.qcow2");
    let source = Source::open(lab.path("top.qcow2"), TRUSTING).unwrap();
    let names: Vec<_> =
        source.files().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["top.qcow2", "base.raw"]);
}

#[test]
fn past_the_end_of_what_is_behind_there_are_zeros() {
    for (below, between, above) in [(4, 2, 6), (2, 6, 3), (3, 3, 7)] {
        let lab = Lab::new();
        // An odd end: neither a cluster nor a page.
        let sizes = [below, between, above].map(|size| size * M + 512 * 3);
        lab.create("0.qcow2", sizes[0], "");
        lab.scribble("0.qcow2", sizes[0], 40, 1);
        for (i, size) in sizes.iter().enumerate().skip(1) {
            let options = format!("backing_file={}.qcow2,backing_fmt=qcow2", i - 1);
            lab.create(&format!("{i}.qcow2"), *size, &options);
            lab.scribble(&format!("{i}.qcow2"), *size, 5, i as u64);
        }
        println!("{below} {between} {above}");
        lab.check_reads_alike("2.qcow2");
    }
}

#[test]
fn data_may_lie_in_a_file_of_its_own() {
    for options in ["data_file_raw=off", "data_file_raw=on", "data_file_raw=off,extended_l2=on"] {
        let lab = Lab::new();
        let path = lab.create("disk.qcow2", 8 * M, &format!("data_file=disk.data,{options}"));
        let error = Source::open(&path, SourceOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("disk.data"), "{error}");
        println!("{options}");
        lab.check_reads_alike("disk.qcow2");
        lab.scribble("disk.qcow2", 8 * M, 40, 5);
        lab.check_reads_alike("disk.qcow2");
    }
}

#[test]
fn names_of_other_files_start_where_the_file_lies() {
    let lab = Lab::new();
    fs::create_dir(lab.path("inner")).unwrap();
    lab.create("base.qcow2", M, "");
    lab.scribble("base.qcow2", M, 10, 1);
    lab.qemu_img("create -q -u -f qcow2 -b ../base.qcow2 -F qcow2 inner/relative.qcow2 1M");
    lab.check_reads_alike("inner/relative.qcow2");
    let absolute = lab.path("base.qcow2");
    lab.qemu_img(&format!(
        "create -q -u -f qcow2 -b file:{} -F qcow2 absolute.qcow2 1M",
        absolute.display()
    ));
    lab.check_reads_alike("absolute.qcow2");
}

#[test]
fn a_backing_file_without_a_format_is_told_by_its_first_bytes() {
    let lab = Lab::new();
    lab.create("base.qcow2", M, "");
    lab.scribble("base.qcow2", M, 10, 1);
    lab.qemu_img("create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    // Turns the extension that names the format into one that nobody knows.
    let bytes = fs::read(lab.path("top.qcow2")).unwrap();
    let at = bytes.windows(4).position(|window| window == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    patch(&lab.path("top.qcow2"), at as u64, &[0x12, 0x34, 0x56, 0x78]);
    lab.check_reads_alike("top.qcow2");
}

#[test]
fn a_chain_that_comes_back_to_itself_is_corrupt() {
    let lab = Lab::new();
    lab.qemu_img("create -q -u -f qcow2 -b b.qcow2 -F qcow2 a.qcow2 1M");
    lab.qemu_img("create -q -u -f qcow2 -b a.qcow2 -F qcow2 b.qcow2 1M");
    // QEMU does not make this one.
    lab.qemu_img("create -q -u -f qcow2 -b else.qcow2 -F qcow2 self.qcow2 1M");
    let bytes = fs::read(lab.path("self.qcow2")).unwrap();
    let at = bytes.windows(4).position(|window| window == b"else").unwrap();
    patch(&lab.path("self.qcow2"), at as u64, b"self");
    for name in ["a.qcow2", "self.qcow2"] {
        let error = Source::open(lab.path(name), TRUSTING).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("comes back to itself"), "{error}");
    }
}

#[test]
fn a_chain_has_a_stated_length_and_no_more() {
    let lab = Lab::new();
    fs::write(lab.path("000.qcow2"), [0; 4096]).unwrap();
    lab.qemu_img("create -q -u -f qcow2 -b 000.qcow2 -F raw 001.qcow2 4k");
    let template = fs::read(lab.path("001.qcow2")).unwrap();
    let name_at = template.windows(9).position(|window| window == b"000.qcow2").unwrap();
    let format_at =
        template.windows(4).position(|window| window == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    for i in 2..=257 {
        let mut bytes = template.clone();
        bytes[name_at..name_at + 9].copy_from_slice(format!("{:03}.qcow2", i - 1).as_bytes());
        bytes[format_at..format_at + 4].fill(0x11); // not raw: what its first bytes say
        fs::write(lab.path(&format!("{i:03}.qcow2")), bytes).unwrap();
    }
    let source = Source::open(lab.path("255.qcow2"), TRUSTING).unwrap();
    assert_eq!(source.files().count(), 256);
    source.read_at(&mut [0; 4096], 0).unwrap();
    let error = Source::open(lab.path("256.qcow2"), TRUSTING).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("longer than 256"), "{error}");
}

#[test]
fn a_missing_backing_file_says_who_names_it() {
    let lab = Lab::new();
    lab.qemu_img("create -q -u -f qcow2 -b gone.raw -F raw top.qcow2 1M");
    let error = Source::open(lab.path("top.qcow2"), TRUSTING).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let text = error.to_string();
    assert!(text.contains("top.qcow2") && text.contains("gone.raw"), "{text}");
}
