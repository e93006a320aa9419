//! `vellum tree`: how images hang together, as a drawing.

use serde::Serialize;
use vellum::Vellum;
use vellum::report::TreeNode;
use vellum_core::{ByteSize, ImageSpec};

use crate::commands::expect_all_open;
use crate::failure::Result;
use crate::output::Output;

#[derive(Serialize)]
struct Image {
    name: String,
    size: u64,
    snapshots: Vec<Snapshot>,
    /// Children of revisions that have lost their name.
    children: Vec<Image>,
}

#[derive(Serialize)]
struct Snapshot {
    name: String,
    children: Vec<Image>,
}

/// Draws the images of all pools, or what hangs on one.
pub async fn run(vellum: &Vellum, spec: Option<&ImageSpec>, output: &mut Output) -> Result {
    let roots: Vec<Image> = vellum.tree(spec).await?.into_iter().map(image).collect();
    if output.is_json() {
        output.json(&roots)?;
    } else {
        for root in &roots {
            draw(root, "", "", output)?;
        }
    }
    expect_all_open(vellum).await
}

fn image(node: TreeNode) -> Image {
    let mut snapshots: Vec<Snapshot> = node
        .image
        .record
        .snapshots
        .iter()
        .map(|snapshot| Snapshot { name: snapshot.name.to_string(), children: Vec::new() })
        .collect();
    let mut children = Vec::new();
    for (on, child) in node.children {
        let snapshot = on.and_then(|on| snapshots.iter_mut().find(|snapshot| snapshot.name == on));
        snapshot.map_or(&mut children, |snapshot| &mut snapshot.children).push(image(child));
    }
    let (name, size) = (node.image.spec().to_string(), node.image.record.size());
    Image { name, size, snapshots, children }
}

fn draw(image: &Image, first: &str, rest: &str, output: &mut Output) -> Result {
    output.line(&format!("{first}{}  {:#}", image.name, ByteSize(image.size)))?;
    let last = image.snapshots.len() + image.children.len();
    for (index, snapshot) in image.snapshots.iter().enumerate() {
        let (branch, below) = branch(index + 1 == last);
        output.line(&format!("{rest}{branch}@{}", snapshot.name))?;
        draw_all(&snapshot.children, &format!("{rest}{below}"), output)?;
    }
    for (index, child) in image.children.iter().enumerate() {
        let (branch, below) = branch(image.snapshots.len() + index + 1 == last);
        draw(child, &format!("{rest}{branch}"), &format!("{rest}{below}"), output)?;
    }
    Ok(())
}

fn draw_all(images: &[Image], rest: &str, output: &mut Output) -> Result {
    for (index, child) in images.iter().enumerate() {
        let (branch, below) = branch(index + 1 == images.len());
        draw(child, &format!("{rest}{branch}"), &format!("{rest}{below}"), output)?;
    }
    Ok(())
}

/// The branch to a node, and what stands below it.
fn branch(is_last: bool) -> (&'static str, &'static str) {
    if is_last { ("`-- ", "    ") } else { ("|-- ", "|   ") }
}
