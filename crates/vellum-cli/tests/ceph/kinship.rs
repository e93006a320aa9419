//! Parents and children in pools of either engine, and of images that `rbd` made.

use anyhow::{Result, ensure};
use vellum_testkit::ceph::Cluster;

use crate::{export, home, import, import_by_rbd, pattern, spec};

const MIB: usize = 1 << 20;

/// A chain whose images are, from the root on, in these pools.
fn chain(cluster: &Cluster, namespace: &str, pools: [&str; 3]) -> Result<()> {
    let home = home(cluster, namespace)?;
    let content = pattern(5 * MIB, 3);
    let [root, middle, top] = [0, 1, 2].map(|at| format!("{}/image{at}", pools[at]));
    import(&home, &content, &root)?;
    home.ok(&["snap", "create", &format!("{root}@s")])?;
    home.ok(&["clone", &format!("{root}@s"), &middle])?;
    home.ok(&["discard", &middle, "--offset", "1M", "--length", "1M", "--to", "zero"])?;
    home.ok(&["snap", "create", &format!("{middle}@s")])?;
    home.ok(&["clone", &format!("{middle}@s"), &top])?;
    let mut changed = content.clone();
    changed[MIB..2 * MIB].fill(0);
    ensure!(export(&home, &root)? == content);
    ensure!(export(&home, &middle)? == changed);
    ensure!(export(&home, &top)? == changed);
    let tree = home.ok(&["tree"])?;
    let short = |image: &str| image.trim_start_matches("default/").to_owned();
    ensure!([&root, &middle, &top].into_iter().all(|image| tree.contains(&short(image))), "{tree}");
    ensure!(home.ok(&["children", &root])?.contains(&short(&middle)));
    home.fails(5, &["rm", &root])?;
    home.ok(&["check"])?;
    // A snapshot, and what hangs on it, read what they did, whether the head sees the parent or not.
    let frozen = format!("{top}@k");
    home.ok(&["snap", "create", &frozen])?;
    home.ok(&["clone", &frozen, "last"])?;
    home.ok(&["discard", &top, "--offset", "0", "--length", "64K", "--to", "zero"])?;
    home.ok(&["flatten", &top])?;
    home.ok(&["snap", "create", &format!("{top}@later")])?;
    for same in [&frozen[..], "last"] {
        ensure!(export(&home, same)? == changed, "{same}");
    }
    home.ok(&["flatten", "last"])?;
    home.ok(&["snap", "rm", &frozen])?;
    home.ok(&["rm", &middle])?;
    home.ok(&["rm", &root])?;
    ensure!(export(&home, "last")? == changed);
    home.ok(&["rm", "last"])?;
    changed[..64 << 10].fill(0);
    ensure!(export(&home, &top)? == changed);
    ensure!(export(&home, &format!("{top}@later"))? == changed);
    home.ok(&["check"])?;
    home.ok(&["rm", &top]).map(drop)
}

pub(crate) fn across_engines(cluster: &Cluster) -> Result<()> {
    chain(cluster, "kin1", ["default", "vms", "default"])?;
    chain(cluster, "kin2", ["vms", "default", "more"])?;
    chain(cluster, "kin3", ["vms", "more", "vms"])
}

pub(crate) fn of_rbd(cluster: &Cluster) -> Result<()> {
    let home = home(cluster, "")?;
    let content = pattern(9 * MIB, 5);
    import_by_rbd(cluster, &home, &content, "plain")?;
    home.ok(&["clone", "--layering", "sparse", "vms/plain@s", "vms/kid"])?;
    home.ok(&["clone", "vms/plain@s", "vms/plain-kid"])?;
    home.ok(&["clone", "vms/plain@s", "local-kid"])?;
    for kid in ["vms/kid", "vms/plain-kid", "local-kid"] {
        ensure!(export(&home, kid)? == content, "{kid}");
    }
    let children = cluster.ok("rbd", &["children", &spec("plain@s")])?;
    let children: Vec<&str> = children.lines().collect();
    ensure!(children == [spec("kid"), spec("plain-kid")], "{children:?}");
    let said = cluster.ok("rbd", &["snap", "rm", "--no-progress", &spec("plain@s")]);
    ensure!(said.is_err() || cluster.ok("rbd", &["children", &spec("plain")]).is_ok());
    for kid in ["vms/kid", "vms/plain-kid", "local-kid"] {
        home.ok(&["flatten", kid])?;
    }
    let to = home.file("plain-kid.raw").display().to_string();
    cluster.ok("rbd", &["export", "--no-progress", &spec("plain-kid"), &to])?;
    ensure!(std::fs::read(&to)? == content, "rbd reads something else");
    for kid in ["vms/kid", "vms/plain-kid", "local-kid"] {
        ensure!(export(&home, kid)? == content, "{kid}");
        home.ok(&["rm", kid])?;
    }
    Ok(())
}
