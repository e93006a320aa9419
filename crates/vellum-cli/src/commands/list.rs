//! Lists: images, snapshots, children.

use serde::Serialize;
use vellum::{Located, Vellum};
use vellum_core::{ByteSize, ImageSpec, PoolName};

use crate::failure::Result;
use crate::output::{Output, seconds};

#[derive(Serialize)]
struct Image {
    name: String,
    pool: String,
    image: String,
    id: String,
    size: u64,
    layering: String,
    snapshots: usize,
    parent: Option<String>,
    created: u64,
}

/// `vellum ls`.
pub async fn images(vellum: &Vellum, pool: Option<&PoolName>, output: &mut Output) -> Result {
    let located = vellum.images(pool).await?;
    print(vellum, located, output).await
}

/// `vellum children`.
pub async fn children(vellum: &Vellum, spec: &ImageSpec, output: &mut Output) -> Result {
    let located = vellum.children(spec).await?;
    print(vellum, located, output).await
}

async fn print(vellum: &Vellum, located: Vec<Located>, output: &mut Output) -> Result {
    let mut images = Vec::with_capacity(located.len());
    for located in located {
        images.push(Image {
            name: located.spec().to_string(),
            pool: located.pool.to_string(),
            image: located.record.name.to_string(),
            id: located.record.id.to_string(),
            size: located.record.size(),
            layering: located.record.layering.to_string(),
            snapshots: located.record.snapshots.len(),
            parent: vellum.parent_name(&located).await?,
            created: seconds(located.record.created),
        });
    }
    if output.is_json() {
        return output.json(&images);
    }
    let rows = images.into_iter().map(|image| {
        let size = format!("{:#}", ByteSize(image.size));
        vec![
            image.name,
            size,
            image.layering,
            image.snapshots.to_string(),
            image.parent.unwrap_or_default(),
        ]
    });
    output.table(&["NAME", "SIZE", "LAYERING", "SNAPS", "PARENT"], &[1, 3], rows.collect())
}

#[derive(Serialize)]
struct Snapshot {
    id: String,
    name: String,
    size: u64,
    auto: bool,
    created: u64,
}

/// `vellum snap ls`.
pub async fn snapshots(vellum: &Vellum, spec: &ImageSpec, output: &mut Output) -> Result {
    let record = vellum.locate(spec).await?.record;
    let size = |revision| record.revision(revision).map_or(0, |revision| revision.size);
    let snapshots: Vec<_> = record
        .snapshots
        .iter()
        .map(|snapshot| Snapshot {
            id: snapshot.id.to_string(),
            name: snapshot.name.to_string(),
            size: size(&snapshot.revision),
            auto: snapshot.auto,
            created: seconds(snapshot.created),
        })
        .collect();
    if output.is_json() {
        return output.json(&snapshots);
    }
    let rows = snapshots.into_iter().map(|snapshot| {
        let kind = if snapshot.auto { "automatic" } else { "" };
        vec![snapshot.id, snapshot.name, format!("{:#}", ByteSize(snapshot.size)), kind.to_owned()]
    });
    output.table(&["ID", "NAME", "SIZE", "KIND"], &[0, 2], rows.collect())
}
