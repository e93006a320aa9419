//! Each command on images on Ceph, and what is said of pools that are not there.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vellum_testkit::ceph::{Cluster, POOLS, Store};

use crate::{empty_home, export, home, import, know, pattern};

const MIB: usize = 1 << 20;

pub(crate) fn each_command(cluster: &Cluster) -> Result<()> {
    let home = home(cluster, "each")?;
    let mut content = pattern(10 * MIB + 4096, 1);
    content[4 * MIB..6 * MIB].fill(0);
    import(&home, &content, "vms/gold")?;
    home.ok(&["snap", "create", "vms/gold@one"])?;
    home.ok(&["clone", "vms/gold@one", "vms/vm"])?;
    ensure!(home.ok(&["children", "vms/gold"])?.contains("vms/vm"));
    ensure!(export(&home, "vms/vm")? == content);
    home.fails(5, &["snap", "rm", "vms/gold@one"])?;

    ensure!(home.ok(&["du", "vms/gold"])?.contains("8 MiB"));
    let map = home.ok(&["--format", "json", "map", "vms/gold"])?;
    ensure!(map.contains("\"nothing\""), "{map}");
    home.ok(&["discard", "vms/vm", "--offset", "0", "--length", "1M", "--to", "zero"])?;
    content[..MIB].fill(0);
    ensure!(export(&home, "vms/vm")? == content);
    home.ok(&["discard", "vms/vm", "--offset", "0", "--length", "512K", "--to", "parent"])?;
    content[..MIB / 2].copy_from_slice(&pattern(MIB / 2, 1));
    ensure!(export(&home, "vms/vm")? == content);

    home.ok(&["flatten", "vms/vm"])?;
    home.ok(&["rename", "vms/vm", "alone"])?;
    home.ok(&["snap", "rm", "vms/gold@one"])?;
    home.ok(&["rm", "vms/gold"])?;
    ensure!(export(&home, "vms/alone")? == content);
    ensure!(home.ok(&["check"])?.contains("as it should be"));
    home.ok(&["rm", "vms/alone"])?;
    let left = cluster.ok("rados", &["-p", POOLS[0], "-N", "each", "ls"])?;
    let left: Vec<_> =
        left.lines().filter(|name| name.contains("data") || name.contains("header")).collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

pub(crate) fn unreachable(cluster: &Cluster) -> Result<()> {
    let home = home(cluster, "reach")?;
    home.ok(&["create", "--size", "1M", "vms/here"])?;
    let conf = cluster.conf().display().to_string();
    let said =
        home.fails(3, &["pool", "create", "x", "--ceph-pool", "nix", "--ceph-conf", &conf])?;
    ensure!(said.contains("no pool nix"), "{said}");
    let said =
        home.fails(1, &["pool", "create", "x", "--ceph-pool", "rbd", "--ceph-conf", "/no/where"])?;
    ensure!(said.contains("/no/where"), "{said}");
    let user =
        ["pool", "create", "x", "--ceph-pool", "rbd", "--ceph-conf", &conf, "--ceph-user", "eve"];
    let said = home.fails(1, &user)?;
    ensure!(said.contains("client.eve"), "{said}");
    // One that is known, and whose configuration has gone.
    let gone = home.file("ceph.conf");
    std::fs::copy(cluster.conf(), &gone)?;
    let path = gone.display().to_string();
    let other = ["--ceph-namespace", "other", "--ceph-conf", &path];
    home.ok(&[&["pool", "create", "gone", "--ceph-pool", "rbd"], &other[..]].concat())?;
    std::fs::remove_file(gone)?;
    let listed = home.fails(1, &["ls"]).map(drop);
    ensure!(listed.is_ok(), "a pool is missing, and nobody says so");
    ensure!(home.ok(&["ls", "vms"])?.contains("here"));
    let pools = home.ok(&["--format", "json", "pool", "ls"])?;
    ensure!(pools.contains(&path), "{pools}");
    home.ok(&["pool", "rm", "gone"])?;
    home.ok(&["rm", "vms/here"]).map(drop)
}

pub(crate) fn known_once(cluster: &Cluster) -> Result<()> {
    let home = home(cluster, "once")?;
    let conf = cluster.conf().display().to_string();
    let place = ["--ceph-pool", POOLS[0], "--ceph-namespace", "once"];
    let again = |name: &str, conf: &str| {
        home.fails(4, &[&["pool", "create", name, "--ceph-conf", conf], &place[..]].concat())
    };
    again("vms", &conf)?;
    let said = again("again", &conf)?;
    ensure!(said.contains("vms"), "{said}");
    let copy = home.file("copy.conf");
    std::fs::copy(cluster.conf(), &copy)?;
    let said = again("again", &copy.display().to_string())?;
    ensure!(said.contains("vms"), "{said}");
    let said = home.fails(1, &["pool", "new-id", "vms"])?;
    ensure!(said.contains("on Ceph"), "{said}");
    // Another namespace is another pool, and sees nothing of this one.
    know(&home, cluster, "other", POOLS[0], "once-more")?;
    home.ok(&["create", "--size", "1M", "vms/a"])?;
    ensure!(!home.ok(&["ls", "other"])?.contains("/a"));
    home.ok(&["create", "--size", "1M", "other/a"])?;
    for image in ["vms/a", "other/a"] {
        home.ok(&["rm", image])?;
    }
    // A home that never heard of Ceph needs none.
    let plain = empty_home()?;
    plain.ok(&["create", "--size", "1M", "a"]).map(drop)
}

pub(crate) fn publish(cluster: &Cluster) -> Result<()> {
    let home = home(cluster, "")?;
    let content = pattern(9 * MIB, 4);
    import(&home, &content, "vms/parent")?;
    home.ok(&["snap", "create", "vms/parent@s"])?;
    home.ok(&["clone", "vms/parent@s", "vms/public"])?;
    let mut expected = content;
    for (offset, to) in [("1M", "zero"), ("2M", "parent")] {
        let range = ["--offset", offset, "--length", "512K", "--to", to];
        home.ok(&[&["discard", "vms/public"], &range[..]].concat())?;
    }
    expected[MIB..MIB + MIB / 2].fill(0);
    let spec = format!("{}/public", POOLS[0]);
    let said = home.fails(1, &["image", "publish", "vms/public"])?;
    ensure!(said.contains("flatten"), "{said}");
    home.ok(&["flatten", "vms/public"])?;
    home.ok(&["snap", "create", "vms/public@s"])?;
    ensure!(home.fails(1, &["image", "publish", "vms/public"])?.contains("snapshots"));
    home.ok(&["snap", "rm", "vms/public@s"])?;
    ensure!(cluster.ok("rbd", &["info", &spec]).is_err(), "it is not published yet");
    home.ok(&["image", "publish", "vms/public"])?;
    let to = home.file("public.raw").display().to_string();
    cluster.ok("rbd", &["export", "--no-progress", &spec, &to])?;
    ensure!(std::fs::read(&to)? == expected, "rbd reads something else");
    ensure!(home.ok(&["info", "vms/public"])?.contains("copy-up"));
    // And is written by both.
    cluster.ok("rbd", &["snap", "create", "--no-progress", &format!("{spec}@t")])?;
    home.ok(&["discard", "vms/public", "--offset", "0", "--length", "9M", "--to", "zero"])?;
    cluster.ok("rbd", &["snap", "rollback", "--no-progress", &format!("{spec}@t")])?;
    ensure!(export(&home, "vms/public")? == expected);
    ensure!(home.fails(1, &["image", "publish", "vms/public"])?.contains("already"));
    cluster.ok("rbd", &["snap", "purge", "--no-progress", &spec])?;
    for image in ["vms/public", "vms/parent"] {
        home.ok(&["rm", image])?;
    }
    home.ok(&["create", "--size", "1M", "local"])?;
    ensure!(home.fails(1, &["image", "publish", "local"])?.contains("not on Ceph"));
    Ok(())
}

/// The header of an image.
fn header(home: &vellum_testkit::Home, image: &str) -> Result<String> {
    let info = home.ok(&["info", image])?;
    let id = info.lines().find_map(|line| line.trim().strip_prefix("id: "));
    Ok(format!("rbd_header.{}", id.context("it has an id")?))
}

pub(crate) fn damaged(cluster: &Cluster) -> Result<()> {
    let home = home(cluster, "damaged")?;
    home.spoil();
    for image in ["whole", "headless", "keyless", "stateless"] {
        import(&home, &pattern(5 * MIB, 8), &format!("vms/{image}"))?;
    }
    let rados = |arguments: &[&str]| {
        cluster.ok("rados", &[&["-p", POOLS[0], "-N", "damaged"], arguments].concat())
    };
    let (first, second) = (header(&home, "vms/headless")?, header(&home, "vms/keyless")?);
    let states = header(&home, "vms/stateless")?.replace("header", "data") + ".0000000000000001";
    rados(&["rmomapkey", &first, "size"])?;
    rados(&["rmomapkey", &second, "vellum_sparse"])?;
    rados(&["setxattr", &states, "vellum", "garbage"])?;
    let listed = home.ok(&["ls", "vms"])?;
    ensure!(listed.contains("vms/whole") && !listed.contains("less\n"), "{listed}");
    home.ok(&["tree"])?;
    let checked = home.run(&["check"])?;
    let (found, code) = (String::from_utf8(checked.stdout)?, checked.status.code());
    ensure!(code == Some(6), "{code:?}: {found}");
    for named in
        ["vms/headless", "vms/keyless", "vellum_sparse", "vms/stateless", "states of object"]
    {
        ensure!(found.contains(named), "{named} is not in {found}");
    }
    ensure!(!found.contains("vms/whole"), "{found}");
    for image in ["headless", "keyless", "stateless"] {
        let to = home.file("out.raw").display().to_string();
        home.fails(6, &["export", "--overwrite", &format!("vms/{image}"), &to])?;
    }
    export(&home, "vms/whole").map(drop)
}

/// On a cluster of its own, since all of it is full for a while.
pub(crate) fn full(_: &Cluster) -> Result<()> {
    let cluster = &Cluster::start(Store::Memory)?;
    let home = home(cluster, "")?;
    let content = pattern(3 * MIB, 2);
    for image in ["vms/a", "vms/b"] {
        import(&home, &content, image)?;
    }
    home.ok(&["snap", "create", "vms/a@s"])?;
    let ratios = |nearly: &str, rather: &str, full: &str| -> Result<()> {
        for (verb, ratio) in [
            ("set-nearfull-ratio", nearly),
            ("set-backfillfull-ratio", rather),
            ("set-full-ratio", full),
        ] {
            cluster.ok("ceph", &["osd", verb, ratio])?;
        }
        Ok(())
    };
    ratios("0.0001", "0.0002", "0.0003")?;
    let began = Instant::now();
    while !cluster.ok("ceph", &["health"])?.contains("full osd") {
        ensure!(began.elapsed() < Duration::from_secs(60), "the cluster does not become full");
        std::thread::sleep(Duration::from_millis(200));
    }
    // Nothing waits for space, what is there is read, and what gives space back is done.
    let began = Instant::now();
    let said = home.fails(1, &["create", "--size", "1M", "vms/c"])?;
    ensure!(said.contains("No space left"), "{said}");
    for spec in ["vms/a", "vms/a@s"] {
        ensure!(export(&home, spec)? == content);
    }
    home.ok(&["discard", "vms/a", "--offset", "0", "--length", "1M", "--to", "zero"])?;
    ensure!(began.elapsed() < Duration::from_secs(30), "somebody waits for space");
    ratios("0.85", "0.9", "0.95")?;
    while home.ok(&["create", "--size", "1M", "vms/c"]).is_err() {
        ensure!(began.elapsed() < Duration::from_secs(120), "the cluster stays full");
        std::thread::sleep(Duration::from_millis(200));
    }
    ensure!(home.ok(&["check"])?.contains("as it should be"));
    for image in ["vms/a", "vms/b", "vms/c"] {
        home.ok(&["rm", image])?;
    }
    Ok(())
}
