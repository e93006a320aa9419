//! Many at once: exports beyond the files that a process may open, and commands that race.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vellum_testkit::nbd::Client;
use vellum_testkit::{Home, Serve};

use crate::{golden, pattern, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("more_images_than_a_process_usually_has_files_are_served", many_images),
        trial("a_server_without_files_left_fails_some_and_serves_the_others", few_files),
        trial("a_clone_and_the_removal_of_its_snapshot_have_one_winner", clone_against_removal),
    ]
}

const MIB: usize = 1 << 20;

/// A server of a home whose images are clones `vm-0001` and so on, with these limits of open files: the soft one, and the hard one.
fn serve_clones(home: &Home, clones: u32, files: (u32, u32)) -> Result<Serve> {
    home.ok(&["clone", "--count", &clones.to_string(), "gold@s", "vm"])?;
    let limits = format!("ulimit -Sn {0} && ulimit -Hn {1} && exec \"$@\"", files.0, files.1);
    Serve::start_under(home, &["sh", "-c", &limits, "sh"], &[])
}

fn many_images() -> Result<()> {
    let home = golden(&pattern(MIB, 1))?;
    let serve = serve_clones(&home, 120, (128, 4096))?;
    let mut clients = Vec::new();
    for number in 1..=120 {
        let mut client = Client::connect(serve.socket(), &format!("vm-{number:04}"))?;
        client.write(0, &pattern(4096, number))?;
        clients.push(client);
    }
    for (number, client) in (1..).zip(&mut clients) {
        ensure!(client.read(0, 4096)? == pattern(4096, number), "vm-{number:04}");
    }
    drop(clients);
    ensure!(serve.terminate()?.success());
    Ok(())
}

fn few_files() -> Result<()> {
    let home = golden(&pattern(MIB, 1))?;
    let serve = serve_clones(&home, 60, (96, 96))?;
    let mut served = Vec::new();
    for number in 1..=60 {
        let name = format!("vm-{number:04}");
        let Ok(mut client) = Client::connect(serve.socket(), &name) else { continue };
        if client.write(0, &pattern(4096, number)).is_ok() {
            served.push((name, number, client));
        }
    }
    ensure!((5..60).contains(&served.len()), "{} are served", served.len());
    for (name, number, client) in &mut served {
        client.flush().with_context(|| format!("flush {name}"))?;
        ensure!(client.read(0, 4096)? == pattern(4096, *number), "{name}");
    }
    served.clear();
    // Whoever could not be served can be now.
    let mut late =
        Client::connect(serve.socket(), "vm-0060").context("connect once others left")?;
    late.write(4096, &pattern(4096, 7)).context("write once others left")?;
    late.flush()?;
    late.disconnect()?;
    ensure!(serve.terminate()?.success());
    Ok(())
}

fn clone_against_removal() -> Result<()> {
    let home = golden(&pattern(MIB, 1))?;
    let (mut cloned, mut removed) = (0, 0);
    for round in 0..40 {
        let (snapshot, child) = (format!("gold@r{round}"), format!("c{round}"));
        home.ok(&["snap", "create", &snapshot])?;
        let start = |arguments: &[&str]| -> Result<std::process::Child> {
            Ok(home.command(arguments).stderr(Stdio::null()).spawn()?)
        };
        // Who begins first takes turns; the other one is some hundreds of microseconds later.
        let (mut clone, mut removal) = if round % 2 == 0 {
            let clone = start(&["clone", &snapshot, &child])?;
            (clone, start(&["snap", "rm", &snapshot])?)
        } else {
            let removal = start(&["snap", "rm", &snapshot])?;
            (start(&["clone", &snapshot, &child])?, removal)
        };
        match (clone.wait()?.code(), removal.wait()?.code()) {
            (Some(0), Some(5)) => {
                cloned += 1;
                ensure!(home.ok(&["children", &snapshot])?.contains(&child));
            }
            (Some(3), Some(0)) => removed += 1,
            both => anyhow::bail!("round {round}: clone and removal end with {both:?}"),
        }
    }
    ensure!(cloned > 0 && removed > 0, "{cloned} clones and {removed} removals won");
    Ok(())
}
