//! What a clone stores and shows, through the program alone.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use vellum_testkit::{Home, Serve, tools};

use crate::{export, golden, home, pattern, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            "a_write_to_a_sparse_clone_stores_one_block_and_in_copy_up_mode_one_object",
            one_block_one_object,
        ),
        trial("parent_and_siblings_never_change", parent_and_siblings),
        trial("a_thousand_clones_take_under_ten_seconds_and_64_kib_each", thousand_clones),
        trial("a_clone_of_a_petabyte_costs_what_a_clone_of_a_gigabyte_costs", petabyte),
        trial("a_discarded_object_reads_zeros_or_the_parent_as_asked", discard_policies),
        trial("a_flattened_image_outlives_its_parent", flatten_then_remove),
        trial("a_flatten_stores_what_the_parent_holds_and_no_zeros", flatten_of_little),
    ]
}

const MIB: usize = 1 << 20;

/// The bytes of data that the image's own top layer holds, as `du` says.
fn data_bytes(home: &Home, image: &str) -> Result<u64> {
    let json: serde_json::Value =
        serde_json::from_str(&home.ok(&["--format", "json", "du", image])?)?;
    json[0]["data_bytes"].as_u64().ok_or_else(|| anyhow::anyhow!("du says {json}"))
}

fn one_block_one_object() -> Result<()> {
    let home = golden(&pattern(32 * MIB, 1))?;
    home.ok(&["clone", "gold@s", "thin"])?;
    home.ok(&["clone", "--layering", "copy-up", "gold@s", "classic"])?;
    let serve = Serve::start(&home)?;
    for image in ["thin", "classic"] {
        tools::qemu_io(&serve.uri(image), "write -P 0x55 8M 4k")?;
    }
    ensure!(serve.terminate()?.success());
    ensure!(data_bytes(&home, "thin")? == 4096, "{}", home.ok(&["du", "thin"])?);
    ensure!(data_bytes(&home, "classic")? == 4 << 20, "{}", home.ok(&["du", "classic"])?);
    Ok(())
}

fn parent_and_siblings() -> Result<()> {
    let content = pattern(16 * MIB, 2);
    let home = golden(&content)?;
    for child in ["a", "b", "c"] {
        home.ok(&["clone", "gold@s", child])?;
    }
    let serve = Serve::start(&home)?;
    tools::qemu_io(&serve.uri("a"), "write -P 0x11 0 1M")?;
    tools::qemu_io(&serve.uri("b"), "write -z 3M 5M")?;
    tools::qemu_io(&serve.uri("gold"), "write -P 0x77 1M 2M")?;
    ensure!(serve.terminate()?.success());
    let mut a = content.clone();
    a[..MIB].fill(0x11);
    let mut b = content.clone();
    b[3 * MIB..8 * MIB].fill(0);
    ensure!(export(&home, "a")? == a && export(&home, "b")? == b);
    ensure!(export(&home, "c")? == content && export(&home, "gold@s")? == content);
    Ok(())
}

fn thousand_clones() -> Result<()> {
    let home = golden(&pattern(MIB, 3))?;
    let used = || -> Result<u64> {
        let text = tools::ok("du", &["-s", "-B1", home.home().to_str().expect("UTF-8")])?;
        Ok(text.split_whitespace().next().unwrap_or_default().parse()?)
    };
    let before = used()?;
    let started = std::time::Instant::now();
    home.ok(&["clone", "--count", "1000", "gold@s", "vm"])?;
    let took = started.elapsed();
    let each = (used()? - before) / 1000;
    ensure!(took.as_secs() < 10, "1,000 clones took {took:?}");
    ensure!(each < 64 << 10, "each clone took {each} bytes");
    ensure!(home.ok(&["ls"])?.lines().filter(|line| line.contains("vm-")).count() == 1000);
    Ok(())
}

fn petabyte() -> Result<()> {
    let home = home()?;
    let mut medians = Vec::new();
    for (name, size) in [("small", "1G"), ("huge", "1P")] {
        home.ok(&["create", "--size", size, name])?;
        home.ok(&["snap", "create", &format!("{name}@s")])?;
        let mut times = Vec::new();
        for number in 0..15 {
            let started = std::time::Instant::now();
            home.ok(&["clone", &format!("{name}@s"), &format!("{name}-{number}")])?;
            times.push(started.elapsed());
        }
        times.sort();
        medians.push(times[times.len() / 2]);
    }
    // O(1) or O(n): a factor of a million lies between the sizes, so a factor of three in time tells them apart on any machine.
    ensure!(medians[1] < medians[0] * 3, "1 GiB: {:?}, 1 PiB: {:?}", medians[0], medians[1]);
    let serve = Serve::start(&home)?;
    tools::qemu_io(&serve.uri("huge-0"), "write -P 0x42 1000T 4k")?;
    tools::qemu_io(&serve.uri("huge-0"), "read -P 0x42 1000T 4k")?;
    tools::qemu_io(&serve.uri("huge-0"), "read -P 0 500T 4k")?;
    Ok(())
}

fn discard_policies() -> Result<()> {
    let content = pattern(16 * MIB, 4);
    let home = golden(&content)?;
    home.ok(&["clone", "gold@s", "child"])?;
    let range = ["--offset", "4M", "--length", "4M"];
    home.ok(&[&["discard", "child"], &range[..]].concat())?;
    let mut expected = content.clone();
    expected[4 * MIB..8 * MIB].fill(0);
    ensure!(export(&home, "child")? == expected);
    home.ok(&[&["discard", "child", "--to", "parent"], &range[..]].concat())?;
    ensure!(export(&home, "child")? == content);
    home.ok(&["discard", "child", "--offset", "1", "--length", "3000"])?;
    ensure!(data_bytes(&home, "child")? == 0, "a partial discard copies nothing up");
    ensure!(export(&home, "child")? == content);
    Ok(())
}

fn flatten_of_little() -> Result<()> {
    // One block of data, one of zeros that was written, and nothing else.
    let mut content = vec![0; 64 * MIB];
    content[8 * MIB..8 * MIB + 4096].copy_from_slice(&pattern(4096, 1));
    let home = golden(&content)?;
    let serve = Serve::start(&home)?;
    tools::qemu_io(&serve.uri("gold"), "write -P 0 24M 4k")?;
    ensure!(serve.terminate()?.success());
    home.ok(&["snap", "create", "gold@t"])?;
    for (child, layering) in [("thin", "sparse"), ("classic", "copy-up")] {
        home.ok(&["clone", "--layering", layering, "gold@t", child])?;
        home.ok(&["flatten", child])?;
        ensure!(data_bytes(&home, child)? == 4096, "{}", home.ok(&["du", child])?);
        ensure!(export(&home, child)? == content, "{child}");
    }
    Ok(())
}

fn flatten_then_remove() -> Result<()> {
    let content = pattern(16 * MIB, 5);
    let home = golden(&content)?;
    home.ok(&["clone", "gold@s", "child"])?;
    let said = home.fails(5, &["rm", "gold"])?;
    ensure!(said.contains("hint:"), "{said}");
    home.ok(&["flatten", "child"])?;
    home.ok(&["rm", "gold"])?;
    ensure!(export(&home, "child")? == content);
    Ok(())
}
