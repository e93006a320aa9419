//! Other people's tools on the exports: qemu-img, nbdinfo, nbdcopy, fio.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vellum_testkit::{Serve, tools};

use crate::{export, golden, home, pattern, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("qemu_img_converts_in_and_out_and_compares_equal", qemu_img),
        trial("qcow2_goes_in_and_comes_out", qcow2),
        trial("qemu_img_map_and_nbdinfo_show_the_layers", maps),
        trial("nbdcopy_copies_in_and_out", nbdcopy),
        trial("nbdinfo_lists_images_and_read_only_snapshots", listing),
        trial("tools_list_hundreds_of_exports_on_one_connection", long_listing),
        trial("fio_verifies_four_connections_at_once", fio_verify),
    ]
}

const MIB: usize = 1 << 20;

fn text(path: std::path::PathBuf) -> String {
    path.to_str().expect("a temporary path is UTF-8").to_owned()
}

fn qemu_img() -> Result<()> {
    let content = pattern(24 * MIB, 1);
    let home = golden(&content)?;
    home.ok(&["create", "--size", "24M", "copy"])?;
    home.ok(&["clone", "gold@s", "child"])?;
    let serve = Serve::start(&home)?;
    let (gold, copy, child) = (text(home.file("gold.raw")), serve.uri("copy"), serve.uri("child"));
    tools::ok("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &gold, &copy])?;
    tools::ok("qemu-img", &["compare", "-f", "raw", "-F", "raw", &gold, &copy])?;
    tools::ok("qemu-img", &["compare", "-f", "raw", "-F", "raw", &gold, &child])?;
    let out = text(home.file("out.qcow2"));
    tools::ok("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &child, &out])?;
    tools::ok("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &gold, &out])?;
    Ok(())
}

fn qcow2() -> Result<()> {
    let home = home()?;
    let (raw, qcow2, back) =
        (text(home.file("a.raw")), text(home.file("a.qcow2")), text(home.file("b.qcow2")));
    let mut content = pattern(9 * MIB, 7);
    content[2 * MIB..5 * MIB].fill(0);
    std::fs::write(&raw, &content)?;
    tools::ok("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", &raw, &qcow2])?;
    home.ok(&["import", &qcow2, "image"])?;
    ensure!(export(&home, "image")? == content);
    home.ok(&["export", "--output-format", "qcow2", "image", &back])?;
    tools::ok("qemu-img", &["check", &back])?;
    tools::ok("qemu-img", &["compare", &raw, &back])?;
    Ok(())
}

fn maps() -> Result<()> {
    let mut content = pattern(16 * MIB, 2);
    content[8 * MIB..].fill(0);
    let home = golden(&content)?;
    home.ok(&["clone", "gold@s", "child"])?;
    let serve = Serve::start(&home)?;
    let uri = serve.uri("child");
    tools::qemu_io(&uri, "write -P 1 1M 64k")?;
    tools::qemu_io(&uri, "write -z -u 2M 1M")?;
    let map: serde_json::Value = serde_json::from_str(&tools::ok(
        "qemu-img",
        &["map", "--output=json", "-f", "raw", &uri],
    )?)?;
    let data: u64 = map
        .as_array()
        .context("an array")?
        .iter()
        .filter(|entry| entry["data"] == true)
        .filter_map(|entry| entry["length"].as_u64())
        .sum();
    ensure!(data == 7 << 20, "qemu-img map shows {data} bytes of data: {map}");
    let depth = tools::ok("nbdinfo", &["--map=qemu:allocation-depth", &uri])?;
    let depths: Vec<Vec<&str>> =
        depth.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    let at =
        |offset: &str| depths.iter().find(|line| line.first() == Some(&offset)).map(|line| line[2]);
    ensure!(at("0") == Some("2") && at("1048576") == Some("1"), "{depth}");
    let allocation = tools::ok("nbdinfo", &["--map", &uri])?;
    ensure!(allocation.contains("hole,zero"), "{allocation}");
    Ok(())
}

fn nbdcopy() -> Result<()> {
    let home = home()?;
    let content = pattern(20 * MIB, 3);
    let (input, out) = (text(home.file("in.raw")), text(home.file("out.raw")));
    std::fs::write(&input, &content)?;
    home.ok(&["create", "--size", "20M", "image"])?;
    let serve = Serve::start(&home)?;
    tools::ok("nbdcopy", &["--flush", &input, &serve.uri("image")])?;
    tools::ok("nbdcopy", &[&serve.uri("image"), &out])?;
    ensure!(std::fs::read(&out)? == content);
    ensure!(serve.terminate()?.success());
    ensure!(export(&home, "image")? == content);
    Ok(())
}

fn listing() -> Result<()> {
    let home = golden(&pattern(MIB, 1))?;
    let serve = Serve::start(&home)?;
    let list = tools::ok("nbdinfo", &["--list", &serve.uri("")])?;
    ensure!(list.contains("gold") && list.contains("gold@s"), "{list}");
    let snapshot = tools::ok("nbdinfo", &[&serve.uri("gold@s")])?;
    ensure!(snapshot.contains("is_read_only: true"), "{snapshot}");
    let image = tools::ok("nbdinfo", &[&serve.uri("gold")])?;
    for property in [
        "can_multi_conn: true",
        "can_flush: true",
        "can_fua: true",
        "can_trim: true",
        "can_zero: true",
        "can_fast_zero: true",
        "is_read_only: false",
    ] {
        ensure!(image.contains(property), "{property} is missing: {image}");
    }
    home.ok(&["create", "--size", "1M", "later"])?;
    tools::ok("nbdinfo", &[&serve.uri("later")])?;
    ensure!(tools::run("nbdinfo", &[&serve.uri("nobody")])?.status.code() != Some(0));
    Ok(())
}

fn fio_verify() -> Result<()> {
    let home = golden(&pattern(64 * MIB, 4))?;
    home.ok(&["clone", "gold@s", "child"])?;
    home.ok(&["clone", "--layering", "copy-up", "gold@s", "classic"])?;
    let serve = Serve::start(&home)?;
    for image in ["child", "classic"] {
        // Four jobs, each with a connection and a quarter of the image of its own.
        tools::ok(
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &format!("--uri={}", serve.uri(image)),
                "--rw=randwrite",
                "--bsrange=512-64k",
                "--blockalign=512",
                "--iodepth=16",
                "--numjobs=4",
                "--size=16M",
                "--offset_increment=16M",
                "--verify=crc32c",
                "--verify_state_save=0",
                "--verify_fatal=1",
                "--do_verify=1",
                "--randseed=7",
            ],
        )?;
    }
    Ok(())
}

fn long_listing() -> Result<()> {
    let home = golden(&pattern(MIB, 1))?;
    home.ok(&["clone", "gold@s", "clone", "--count", "300"])?;
    let serve = Serve::start(&home)?;
    let uri = format!("nbd+unix:///?socket={}", serve.socket().display());
    let listed = tools::ok("nbdinfo", &["--list", &uri])?;
    let clones = listed.lines().filter(|line| line.starts_with("export=\"clone-")).count();
    ensure!(clones == 300, "nbdinfo lists {clones} clones");
    Ok(())
}
