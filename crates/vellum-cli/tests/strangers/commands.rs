//! Commands as a user types them: what they refuse, and what they go on in spite of.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vellum_testkit::nbd::Client;
use vellum_testkit::{Home, Serve, process, tools};

use crate::{export, golden, home, pattern, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("command_lines_that_make_no_sense_end_with_2", usage),
        trial("a_server_whose_standard_output_is_closed_serves", closed_output),
        trial("blocks_of_zeros_are_not_stored_by_an_import", zeros),
        trial("an_export_is_as_long_as_what_was_imported_or_as_what_was_written_since", tail),
        trial("what_is_stored_is_shown_although_an_image_is_in_use", du_in_use),
        trial("a_copied_pool_can_be_used_once_it_has_an_id_of_its_own", copied_pool),
        trial("a_copied_home_can_be_used_once_its_pool_has_an_id_of_its_own", copied_home),
        trial("a_command_that_ended_leaves_all_of_the_catalog_in_its_file", one_file),
        trial("a_pool_that_cannot_be_opened_fails_a_check", unopened),
        trial("a_list_of_all_pools_fails_if_one_cannot_be_opened", left_out),
        trial("a_child_whose_pool_is_lost_is_shown_and_can_be_forgotten", forgotten),
        trial("a_process_with_low_limits_fails_with_1_and_says_why", limits),
        trial("a_check_names_what_is_damaged_and_ends_with_6", damaged),
        trial("a_check_frees_what_nothing_refers_to", leaked),
    ]
}

/// The directory of the layer of this home that has the most bytes in its data file.
fn largest_layer(home: &Home) -> Result<PathBuf> {
    let layers = std::fs::read_dir(home.home().join("pools/default/layers"))?;
    let mut sized = Vec::new();
    for layer in layers {
        let path = layer?.path();
        let blocks = std::fs::metadata(path.join("data.0")).map_or(0, |data| data.blocks());
        sized.push((blocks, path));
    }
    let (_, path) = sized.into_iter().max().context("a layer has files")?;
    Ok(path)
}

fn tail() -> Result<()> {
    const LENGTH: usize = 10_000;
    let home = home()?;
    let content = pattern(LENGTH, 3);
    std::fs::write(home.file("in"), &content)?;
    home.ok(&["import", &home.file("in").display().to_string(), "a"])?;
    ensure!(export(&home, "a")? == content, "an export is the file");
    let serve = Serve::start(&home)?;
    let mut client = Client::connect(serve.socket(), "a")?;
    client.write(LENGTH as u64, &[0; 1000])?;
    ensure!(export(&home, "a")? == content, "zeros behind the end are as good as none");
    client.write(12_287, &[9])?;
    let mut written = content;
    written.resize(12_288, 0);
    written[12_287] = 9;
    ensure!(export(&home, "a")? == written, "what was written is there");
    home.ok(&["export", "--output-format", "qcow2", "a", &home.file("q").display().to_string()])?;
    let info = tools::ok("qemu-img", &["info", &home.file("q").display().to_string()])?;
    ensure!(info.contains("(12288 bytes)"), "{info}");
    Ok(())
}

fn damaged() -> Result<()> {
    let home = golden(&pattern(MIB, 1))?;
    home.ok(&["clone", "gold@s", "child"])?;
    ensure!(home.ok(&["check"])?.contains("as it should be"), "nothing is wrong yet");
    home.spoil();
    let map = std::fs::OpenOptions::new().write(true).open(largest_layer(&home)?.join("map"))?;
    map.write_all_at(&[0xaa; 16], 4096 + 40)?;
    let output = home.run(&["check"])?;
    let found = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.code() == Some(6), "it ends with {}", output.status);
    ensure!(found.starts_with("damage: default/gold: "), "it says {found}");
    ensure!(home.fails(6, &["check", "gold"])?.contains("damage"), "so does that of the image");
    ensure!(home.ok(&["check", "child"])?.contains("as it should be"), "the child itself is whole");
    let json: serde_json::Value =
        serde_json::from_slice(&home.run(&["--format", "json", "check"])?.stdout)?;
    ensure!(json[0]["severity"] == "damage" && json[0]["image"] == "gold", "JSON says {json}");
    Ok(())
}

fn one_file() -> Result<()> {
    let home = golden(&pattern(MIB, 1))?;
    home.ok(&["clone", "gold@s", "child"])?;
    let (first, second) = (home.home(), home.file("second"));
    let second = second.to_str().context("UTF-8")?;
    copy(first.to_str().context("UTF-8")?, second)?;
    for beside in ["wal", "shm"] {
        std::fs::remove_file(format!("{second}/pools/default/pool.sqlite-{beside}"))?;
    }
    home.ok(&["--home", second, "pool", "new-id", "default"])?;
    let listed = home.ok(&["--home", second, "ls"])?;
    ensure!(listed.contains("gold") && listed.contains("child"), "the file alone has {listed}");
    Ok(())
}

fn unopened() -> Result<()> {
    let home = golden(&pattern(MIB, 1))?;
    let other = home.file("other");
    home.ok(&["pool", "create", "other", "--path", other.to_str().context("UTF-8")?])?;
    let catalog = home.home().join("pools/default/pool.sqlite");
    let away = catalog.with_extension("away");
    std::fs::rename(&catalog, &away)?;
    std::fs::create_dir(&catalog)?;
    let output = home.command(&["check"]).output()?;
    std::fs::remove_dir(&catalog)?;
    std::fs::rename(&away, &catalog)?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(output.status.code() == Some(1), "it ends with {}", output.status);
    ensure!(said.starts_with("unknown: default: "), "{said}");
    Ok(())
}

fn left_out() -> Result<()> {
    let home = golden(&pattern(MIB, 1))?;
    let (far, away) = (home.file("far"), home.file("away"));
    home.ok(&["pool", "create", "far", "--path", far.to_str().context("UTF-8")?])?;
    for command in ["ls", "tree", "du"] {
        home.ok(&[command])?;
        std::fs::rename(&far, &away)?;
        let output = home.run(&[command])?;
        home.ok(&["info", "gold"])?;
        std::fs::rename(&away, &far)?;
        let said = String::from_utf8(output.stdout)?;
        ensure!(output.status.code() == Some(1), "{command} ends with {}", output.status);
        ensure!(said.contains("gold"), "{command} says {said}");
        let failed = String::from_utf8(output.stderr)?;
        ensure!(failed.contains("cannot be opened") && failed.contains("far"), "{failed}");
    }
    Ok(())
}

fn forgotten() -> Result<()> {
    let home = golden(&pattern(MIB, 1))?;
    let far = home.file("far");
    home.ok(&["pool", "create", "far", "--path", far.to_str().context("UTF-8")?])?;
    home.ok(&["clone", "gold@s", "far/child"])?;
    std::fs::remove_dir_all(&far)?;
    home.ok(&["pool", "rm", "far"])?;
    let output = home.run(&["children", "gold@s"])?;
    ensure!(output.status.code() == Some(1), "it ends with {}", output.status);
    let said = String::from_utf8(output.stdout)?;
    let child = said.split_whitespace().find(|word| word.contains('/')).context("it is shown")?;
    home.fails(5, &["rm", "gold"])?;
    home.fails(2, &["children", "gold", "--forget", "somewhere/else"])?;
    home.ok(&["children", "gold", "--forget", child])?;
    home.fails(3, &["children", "gold", "--forget", child])?;
    home.ok(&["rm", "gold"])?;
    Ok(())
}

fn limits() -> Result<()> {
    let home = golden(&pattern(MIB, 1))?;
    for (limit, arguments) in [
        ("--nofile=4", &["ls"][..]),
        ("--nofile=6", &["ls"]),
        ("--fsize=65536", &["create", "a", "--size", "1M"]),
        ("--fsize=65536", &["import", "/proc/self/exe", "b"]),
    ] {
        let output = home.command_under(&["prlimit", limit], arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code().is_some_and(|code| code < 2), "{limit}: {}", output.status);
        ensure!(!said.contains("panicked"), "{limit}: {said}");
    }
    // A file may be longer than that again, and nothing was harmed.
    ensure!(export(&home, "gold")? == pattern(MIB, 1), "gold is what it was");
    Ok(())
}

fn leaked() -> Result<()> {
    let home = golden(&pattern(MIB, 1))?;
    home.ok(&["discard", "gold", "--offset", "0", "--length", "4K"])?;
    let data = largest_layer(&home)?;
    let stray = data.with_file_name("00000000000000ab");
    std::fs::create_dir(&stray)?;
    let found = home.ok(&["check"])?;
    ensure!(found.starts_with("unknown: default: "), "it says {found}");
    let repaired = home.ok(&["check", "--repair"])?;
    ensure!(repaired == found && stray.exists(), "it says {repaired}");
    let removed = home.ok(&["check", "--repair", "--remove-unknown-files"])?;
    ensure!(removed.contains("removed its files") && !stray.exists(), "it says {removed}");
    ensure!(home.ok(&["check"])?.contains("as it should be"), "nothing is wrong any more");
    Ok(())
}

const MIB: usize = 1 << 20;

fn usage() -> Result<()> {
    let home = golden(&pattern(MIB, 1))?;
    home.ok(&["clone", "gold@s", "child"])?;
    let raw = home.file("gold.raw");
    let raw = raw.to_str().context("a temporary path is UTF-8")?;
    let lines: &[&[&str]] = &[
        &["snap", "create", "gold"],
        &["snap", "rm", "gold"],
        &["snap", "ls", "gold@s"],
        &["create", "--size", "1M", "new@s"],
        &["create", "--size", "0", "new"],
        &["create", "--size", "2P", "new"],
        &["create", "--size", "1M", "--block-size", "5000", "new"],
        &["create", "--size", "1M", "--object-size", "4K", "--block-size", "8K", "new"],
        &["clone", "gold", "new", "--block-size", "2M"],
        &["discard", "child", "--offset", "0", "--length", "0"],
        &["import", raw, "new@s"],
        &["clone", "gold@s", "new@s"],
        &["clone", "gold", "new", "--count", "3"],
        &["flatten", "child@s"],
        &["flatten", "child", "--rate", "0"],
        &["discard", "child@s", "--offset", "0", "--length", "4K"],
        &["rename", "gold@s", "new"],
        &["rename", "gold", "new@s"],
        &["rm", "gold@s"],
        &["tree", "gold@s"],
        &["serve", "--listen", "0.0.0.0:10809"],
        &["export", "gold", "-", "--output-format", "qcow2"],
        &["bench", "gold@s", "--io-type", "write"],
    ];
    for line in lines {
        let said = home.fails(2, line)?;
        ensure!(!said.trim().is_empty(), "{line:?} says nothing");
    }
    std::fs::write(home.file("empty"), b"")?;
    let empty = home.file("empty");
    home.fails(1, &["import", empty.to_str().expect("UTF-8"), "new"])?;
    ensure!(home.ok(&["ls"])?.lines().count() == 3, "nothing was made");
    ensure!(home.ok(&["snap", "ls", "gold"])?.lines().count() == 2, "nor was a snapshot");
    Ok(())
}

fn closed_output() -> Result<()> {
    let home = golden(&pattern(MIB, 1))?;
    let socket = home.file("nbd.sock");
    let path = socket.to_str().context("a temporary path is UTF-8")?;
    let mut serve = home.command(&["serve", "--socket", path]).stdout(Stdio::piped()).spawn()?;
    drop(serve.stdout.take());
    let began = Instant::now();
    let mut client = loop {
        match Client::connect(&socket, "gold") {
            Ok(client) => break client,
            Err(error) if began.elapsed() > Duration::from_secs(20) => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    client.write(0, &[7; 4096])?;
    process::terminate(&serve)?;
    ensure!(process::end(&mut serve)? == Some(0));
    ensure!(export(&home, "gold")?[..4096] == [7; 4096]);
    Ok(())
}

/// What `du` prints of an image.
fn du(home: &Home, image: &str) -> Result<serde_json::Value> {
    let rows: serde_json::Value = serde_json::from_str(&home.ok(&["--format", "json", "du"])?)?;
    let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == image));
    row.cloned().with_context(|| format!("{rows} has no row {image}"))
}

fn zeros() -> Result<()> {
    let home = home()?;
    let mut content = pattern(4 * MIB, 1);
    for block in (0..4 * MIB).step_by(8192) {
        content[block..block + 4096].fill(0);
    }
    let raw = home.file("a.raw");
    std::fs::write(&raw, &content)?;
    home.ok(&["import", raw.to_str().context("UTF-8")?, "file"])?;
    let mut import = home.command(&["import", "-", "stream"]).stdin(Stdio::piped()).spawn()?;
    std::io::Write::write_all(&mut import.stdin.take().context("a pipe")?, &content)?;
    ensure!(process::end(&mut import)? == Some(0));
    for image in ["file", "stream"] {
        ensure!(du(&home, image)?["data_bytes"] == 2 * MIB, "{}", du(&home, image)?);
        ensure!(export(&home, image)? == content);
    }
    Ok(())
}

fn du_in_use() -> Result<()> {
    let home = golden(&pattern(MIB, 1))?;
    home.ok(&["create", "--size", "64M", "busy"])?;
    let bench = ["bench", "busy", "--io-type", "write", "--io-total", "1P", "--time", "600"];
    let mut bench = home.command(&bench).stdout(Stdio::null()).spawn()?;
    let began = Instant::now();
    let row = loop {
        let row = du(&home, "busy")?;
        if row["data_bytes"].is_null() || began.elapsed() > Duration::from_secs(30) {
            break row;
        }
    };
    bench.kill()?;
    bench.wait()?;
    ensure!(row["size"] == 64 << 20 && row["stored_bytes"].is_null(), "{row}");
    ensure!(du(&home, "gold@s")?["data_bytes"] == MIB);
    Ok(())
}

fn copy(from: &str, to: &str) -> Result<()> {
    ensure!(Command::new("cp").args(["-a", from, to]).status()?.success(), "cp -a {from} {to}");
    Ok(())
}

fn copied_pool() -> Result<()> {
    let home = golden(&pattern(MIB, 1))?;
    let text = |name: &str| home.file(name).to_str().map(str::to_owned).context("UTF-8");
    let (first, second) = (text("first")?, text("second")?);
    home.ok(&["pool", "create", "first", "--path", &first])?;
    home.ok(&["import", &text("gold.raw")?, "first/a"])?;
    home.ok(&["clone", "first/a", "first/child"])?;
    copy(&first, &second)?;
    let said = home.fails(1, &["pool", "create", "second", "--path", &second])?;
    ensure!(said.contains("copy") && said.contains("pool new-id"), "{said}");
    home.fails(1, &["pool", "new-id", "first"])?;
    home.fails(3, &["pool", "new-id", "second"])?;
    home.fails(4, &["pool", "new-id", "first", "--path", &second])?;
    home.ok(&["pool", "new-id", "second", "--path", &second])?;
    home.ok(&["rm", "first/child"])?;
    home.ok(&["rm", "first/a"])?;
    ensure!(export(&home, "second/child")? == pattern(MIB, 1));
    home.fails(1, &["pool", "new-id", "second"])?;
    Ok(())
}

fn copied_home() -> Result<()> {
    let home = golden(&pattern(MIB, 1))?;
    let (first, second) = (home.home(), home.file("second"));
    copy(first.to_str().context("UTF-8")?, second.to_str().context("UTF-8")?)?;
    let second = second.to_str().context("UTF-8")?;
    home.fails(1, &["--home", second, "info", "gold"])?;
    home.ok(&["--home", second, "pool", "new-id", "default"])?;
    home.ok(&["--home", second, "info", "gold"])?;
    home.ok(&["info", "gold"])?;
    Ok(())
}
