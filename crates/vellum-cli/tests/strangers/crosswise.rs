//! Two servers of one home, each with images whose parents the other one holds, and operations on all of them at once.

use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use vellum_testkit::nbd::Client;
use vellum_testkit::{Home, Serve, process};

use crate::{golden, pattern, trial};

pub fn trials() -> Vec<Trial> {
    let name = "two_servers_whose_images_hang_on_each_others_end_what_they_are_asked_in_time";
    vec![trial(name, crosswise)]
}

const SIZE: usize = 4 << 20;
const BLOCK: usize = 4096;
const ROUNDS: u64 = 4;

/// An image, by its name and what it reads as.
type Known = (String, Vec<u8>);

fn crosswise() -> Result<()> {
    let [first, second] = [1, 2].map(|seed| pattern(SIZE, seed));
    let home = golden(&first)?;
    home.ok(&["pool", "create", "q", "--path", &home.file("q").display().to_string()])?;
    std::fs::write(home.file("other.raw"), &second)?;
    home.ok(&["import", &home.file("other.raw").display().to_string(), "q/gold"])?;
    home.ok(&["snap", "create", "q/gold@s"])?;
    let (one, other) = (Serve::start(&home)?, Serve::start_beside(&home)?);
    // What the golden images read as by now, at the server that holds each.
    let mut golden = [("gold".to_owned(), first.clone()), ("q/gold".to_owned(), second.clone())];
    for round in 0..ROUNDS {
        let (child, across) = (format!("child{round}"), format!("q/child{round}"));
        home.ok(&["clone", "q/gold@s", &child])?;
        home.ok(&["clone", "--layering", "copy-up", "gold@s", &across])?;
        let mut children = [(child, second.clone()), (across, first.clone())];
        let [gold, q_gold] = &mut golden;
        let [child, across] = &mut children;
        let held = [(&one, gold), (&one, child), (&other, q_gold), (&other, across)];
        one_round(&home, held, round).with_context(|| format!("in round {round}"))?;
    }
    ensure!(one.terminate()?.success() && other.terminate()?.success());
    Ok(())
}

/// Clients write to all images, while each is flattened, sealed or cloned into the pool of the other server.
fn one_round(home: &Home, held: [(&Serve, &mut Known); 4], round: u64) -> Result<()> {
    let [gold, child, q_gold, across] = [0, 1, 2, 3].map(|image: usize| held[image].1.0.clone());
    let (over, written) = (&AtomicBool::new(false), &AtomicU64::new(0));
    let mut clients = Vec::new();
    for (serve, known) in held {
        clients.push((Client::connect(serve.socket(), &known.0)?, known));
    }
    std::thread::scope(|scope| {
        let clients = clients.into_iter().zip(4 * round..);
        let writing: Vec<_> = clients
            .map(|((client, known), seed)| {
                scope.spawn(move || write(client, known, seed, over, written))
            })
            .collect();
        let (of_gold, of_q) = (format!("q/of-gold{round}"), format!("of-q-gold{round}"));
        let (sealed, q_sealed) = (format!("{gold}@r{round}"), format!("{q_gold}@r{round}"));
        let asked = [
            vec!["flatten", &child],
            vec!["flatten", &across],
            vec!["clone", &gold, &of_gold],
            vec!["clone", &q_gold, &of_q],
            vec!["snap", "create", &sealed],
            vec!["snap", "create", &q_sealed],
        ];
        let ended = all_end(home, &asked, written);
        // Also if one did not: the clients must come to an end.
        over.store(true, Ordering::SeqCst);
        writing.into_iter().try_for_each(|client| client.join().expect("it does not panic"))?;
        ended
    })
}

/// Starts all commands at once, under load. Each must be done within the patience of [`process::end`].
fn all_end(home: &Home, asked: &[Vec<&str>], written: &AtomicU64) -> Result<()> {
    let began = Instant::now();
    while written.load(Ordering::SeqCst) < 40 {
        ensure!(began.elapsed() < Duration::from_secs(60), "the clients do not get on");
        std::thread::sleep(Duration::from_millis(1));
    }
    let start = |arguments: &Vec<&str>| -> Result<Child> {
        Ok(home.command(arguments).stdout(Stdio::null()).spawn()?)
    };
    let started = asked.iter().map(start).collect::<Result<Vec<_>>>()?;
    for (mut child, arguments) in started.into_iter().zip(asked) {
        let code = process::end(&mut child).with_context(|| arguments.join(" "))?;
        ensure!(code == Some(0), "vellum {} ends with {code:?}", arguments.join(" "));
    }
    Ok(())
}

/// Writes parts of blocks here and there until it is over, and looks whether the image reads as what was written.
fn write(
    mut client: Client,
    (name, content): &mut Known,
    seed: u64,
    over: &AtomicBool,
    written: &AtomicU64,
) -> Result<()> {
    for number in 0.. {
        let place = (number * 7_919 + seed * 31) % (SIZE / BLOCK) as u64;
        let (from, length) = (place as usize * BLOCK + 512, BLOCK - 1024);
        let data = pattern(length, seed + number);
        client.write(from as u64, &data)?;
        content[from..from + length].copy_from_slice(&data);
        written.fetch_add(1, Ordering::SeqCst);
        if over.load(Ordering::SeqCst) {
            break;
        }
    }
    for (number, block) in content.chunks(BLOCK).enumerate() {
        let read = client.read((number * BLOCK) as u64, BLOCK as u32)?;
        ensure!(read == block, "block {number} of {name} is wrong");
    }
    client.disconnect()
}
