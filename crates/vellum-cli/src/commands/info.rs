//! `vellum info`: what an image is.

use std::collections::BTreeMap;

use serde::Serialize;
use vellum::Vellum;
use vellum_core::{ByteSize, ImageSpec};

use crate::failure::Result;
use crate::output::{Output, seconds};

#[derive(Serialize)]
struct Info {
    name: String,
    id: String,
    size: u64,
    layering: String,
    block_size: u32,
    object_size: u64,
    objects: u64,
    stripe_unit: u64,
    stripe_count: u64,
    snapshots: Vec<String>,
    layers: usize,
    parent: Option<String>,
    overlap: Option<u64>,
    created: u64,
    meta: BTreeMap<String, String>,
}

/// Shows an image or a snapshot.
pub async fn run(vellum: &Vellum, spec: &ImageSpec, output: &mut Output) -> Result {
    let located = vellum.locate(spec).await?;
    let (record, geometry) = (&located.record, located.record.geometry);
    let revision = located.snapshot.as_ref().map_or(&record.head, |snapshot| &snapshot.revision);
    let size = record.revision(revision).map_or(0, |revision| revision.size);
    let info = Info {
        name: located.spec().to_string(),
        id: record.id.to_string(),
        size,
        layering: record.layering.to_string(),
        block_size: record.block_size,
        object_size: geometry.object_size(),
        objects: geometry.object_count(size),
        stripe_unit: geometry.stripe_unit(),
        stripe_count: geometry.stripe_count(),
        snapshots: record.snapshots.iter().map(|snapshot| snapshot.name.to_string()).collect(),
        layers: record.revisions.len(),
        parent: vellum.parent_name(&located).await?,
        overlap: record.parent().map(|(_, _, overlap)| overlap),
        created: seconds(record.created),
        meta: record.meta.clone(),
    };
    if output.is_json() {
        return output.json(&info);
    }
    print(&info, output)
}

fn print(info: &Info, output: &mut Output) -> Result {
    output.line(&format!("image '{}':", info.name))?;
    let objects = format!(
        "{} in {} objects of {}",
        ByteSize(info.size),
        info.objects,
        ByteSize(info.object_size)
    );
    let mut lines = vec![("size", objects), ("id", info.id.clone())];
    lines.push((
        "layering",
        format!("{}, blocks of {}", info.layering, ByteSize(info.block_size.into())),
    ));
    if info.stripe_count > 1 {
        lines.push((
            "striping",
            format!("units of {} over {} objects", ByteSize(info.stripe_unit), info.stripe_count),
        ));
    }
    if !info.snapshots.is_empty() {
        lines.push(("snapshots", info.snapshots.join(", ")));
    }
    lines.push(("layers", info.layers.to_string()));
    if let (Some(parent), Some(overlap)) = (&info.parent, info.overlap) {
        lines.push(("parent", parent.clone()));
        lines.push(("overlap", ByteSize(overlap).to_string()));
    }
    lines.extend(info.meta.iter().map(|(key, value)| (key.as_str(), value.clone())));
    for (name, value) in lines {
        output.line(&format!("        {name}: {value}"))?;
    }
    Ok(())
}
