//! [`Machine`]: where `vellum` runs, so that one load and one judge serve for whatever goes down.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use vellum_core::Extent;
use vellum_testkit::nbd::{Client, Command};

use crate::record::{Listed, Outage, Record, SIZE};

/// A pool beside that of the home.
pub const SECOND_POOL: &str = "other";

/// What a command answered.
#[derive(Debug)]
pub struct Answer {
    /// `None` if it was killed.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Answer {
    pub fn is_done(&self) -> bool {
        self.code == Some(0)
    }

    /// For people.
    pub fn told(&self) -> String {
        format!("ended with {:?}: {}{}", self.code, self.out, self.err)
    }
}

/// A place with a home, and perhaps a server of it.
pub trait Machine: Sync {
    /// Runs `vellum` to its end. An error is a machine that went down meanwhile.
    fn run(&self, arguments: &[&str]) -> Result<Answer>;

    /// Where a second pool can be made, beside the home.
    fn second_pool(&self) -> String;

    /// Where a file can be made, beside the home.
    fn file(&self) -> String;

    /// Connects to the server.
    fn connect(&self, export: &str) -> Result<Client>;
}

/// What a command answers that must succeed.
pub fn ok(machine: &dyn Machine, arguments: &[&str]) -> Result<String> {
    let answer = machine.run(arguments)?;
    ensure!(answer.is_done(), "vellum {} {}", arguments.join(" "), answer.told());
    Ok(answer.out)
}

/// Checks all pools, which nobody uses: no damage, nothing stale, nothing unknown. A crash may leave space that nothing refers
/// to; and one between two pools may leave a parent that lists a clone which does not exist, or does not hang on it any more.
/// Such lists are mended, and counted.
pub fn check(machine: &dyn Machine) -> Result<u64> {
    let stale = find(machine, &["--format", "json", "check"])?;
    let Some(first) = stale.first() else { return Ok(0) };
    ensure!(
        stale.iter().all(|what| what.contains(" in pool ") && what.contains(BETWEEN_POOLS)),
        "vellum check finds {stale:?}"
    );
    ok(machine, &["check", "--repair"])?;
    let left = find(machine, &["--format", "json", "check"])?;
    ensure!(left.is_empty(), "a repair of '{first}' leaves {left:?}");
    Ok(stale.len() as u64)
}

/// What a check says of a list of children in one pool that is ahead of the other pool, or behind it.
const BETWEEN_POOLS: &str = " is listed as a child, and does not hang on it";

/// What is stale, of the findings of a check; damage and what could not be looked at are errors.
fn find(machine: &dyn Machine, arguments: &[&str]) -> Result<Vec<String>> {
    let findings: Value = serde_json::from_str(&ok(machine, arguments)?)?;
    let findings = findings.as_array().context("a list of findings")?;
    let mut stale = Vec::new();
    for finding in findings.iter().filter(|finding| finding["severity"] != "leak") {
        ensure!(finding["severity"] == "stale", "vellum check finds {finding}");
        stale.push(finding["what"].to_string());
    }
    Ok(stale)
}

/// What is read at once.
const PIECE: u64 = 256 << 10;

/// Looks at everything that there is, through the server, and holds it against the record. What an import left half done is
/// removed, as its user would.
pub fn look(machine: &dyn Machine, record: &mut Record, outage: Outage) -> Result<()> {
    let half = record.half_imported(&listed(machine)?);
    for image in &half {
        ok(machine, &["rm", image])?;
    }
    record.tally.half_imported += half.len() as u64;
    record.take_stock(&listed(machine)?)?;
    for (image, snapshot) in record.readable() {
        let export = snapshot.as_ref().map_or(image.clone(), |name| format!("{image}@{name}"));
        let mut client = machine.connect(&export)?;
        ensure!(client.size() == record.size(), "{export} has {} bytes", client.size());
        let before = record.before(PIECE);
        let found = client.read(before.offset(), before.length() as u32)?;
        ensure!(found.iter().all(|byte| *byte == 0), "{export} has something at {before}");
        let mut pieces = Extent::new(0, SIZE).chunks(PIECE);
        let mut asked = HashMap::new();
        loop {
            // Two on their way: a guest is slow to answer, and quick to read.
            while asked.len() < 2
                && let Some(at) = pieces.next()
            {
                let (offset, length) = (record.place(at).offset(), at.length() as u32);
                let cookie = client.send(Command::Read, offset, length, &[])?;
                asked.insert(cookie, at);
            }
            if asked.is_empty() {
                break;
            }
            let reply = client.receive()?;
            let at = asked.remove(&reply.cookie).expect("the client knows its cookies");
            ensure!(reply.error == 0, "{export} at {at:?}: error {}", reply.error);
            match &snapshot {
                Some(name) => record.judge_snapshot(&image, name, at, &reply.data)?,
                None => record.judge_image(&image, at, &reply.data, outage)?,
            }
        }
        client.disconnect()?;
    }
    Ok(())
}

/// All images, as `vellum tree` tells them.
fn listed(machine: &dyn Machine) -> Result<Vec<Listed>> {
    let tree: Value = serde_json::from_str(&ok(machine, &["--format", "json", "tree"])?)?;
    let mut listed = Vec::new();
    for image in tree.as_array().context("a list of images")? {
        add(image, None, &mut listed)?;
    }
    Ok(listed)
}

fn add(image: &Value, parent: Option<(String, String)>, listed: &mut Vec<Listed>) -> Result<()> {
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a name");
    let name = text(&image["name"])?;
    let snapshots = image["snapshots"].as_array().context("snapshots")?;
    let names = snapshots.iter().map(|snapshot| text(&snapshot["name"])).collect::<Result<_>>()?;
    for snapshot in snapshots {
        for child in snapshot["children"].as_array().context("children")? {
            add(child, Some((name.clone(), text(&snapshot["name"])?)), listed)?;
        }
    }
    if image["children"].as_array().is_some_and(|children| !children.is_empty()) {
        bail!("{name} has children that hang on no snapshot: {image}");
    }
    listed.push(Listed { name, parent, snapshots: names });
    Ok(())
}
