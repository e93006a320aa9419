//! Lists: images, snapshots, children.

use serde::Serialize;
use vellum::{Located, Vellum};
use vellum_core::{ByteSize, ImageSpec, PoolName};
use vellum_engine::{ChildRef, Error, ErrorKind};

use crate::commands::expect_all_open;
use crate::failure::Result;
use crate::output::{Output, seconds};

#[derive(Serialize)]
struct Image {
    name: String,
    pool: String,
    image: String,
    id: String,
    /// This and what follows is not known of a child that cannot be asked.
    size: Option<u64>,
    layering: Option<String>,
    snapshots: Option<usize>,
    parent: Option<String>,
    created: Option<u64>,
}

/// `vellum ls`.
pub async fn images(vellum: &Vellum, pool: Option<&PoolName>, output: &mut Output) -> Result {
    let images = images_of(vellum, vellum.images(pool).await?).await?;
    print(images, output)?;
    if pool.is_some() { Ok(()) } else { expect_all_open(vellum).await }
}

/// `vellum children`. Fails if one cannot be asked, after all are printed.
pub async fn children(vellum: &Vellum, spec: &ImageSpec, output: &mut Output) -> Result {
    let children = vellum.children(spec).await?;
    let unreachable = children.unreachable.len();
    let mut images = images_of(vellum, children.found).await?;
    images.extend(children.unreachable.into_iter().map(unreachable_child));
    print(images, output)?;
    if unreachable == 0 {
        return Ok(());
    }
    let what = format!(
        "{unreachable} of these cannot be asked: make their pools known with `vellum pool create`, or, if they are lost for good, \
         take them from the list with --forget POOL_ID/IMAGE_ID"
    );
    Err(Error::new(ErrorKind::Io, what).into())
}

/// A child that is known by its ids alone.
fn unreachable_child(child: ChildRef) -> Image {
    Image {
        name: format!("{}/{}", child.pool, child.image),
        pool: child.pool.to_string(),
        image: child.image.to_string(),
        id: child.image.to_string(),
        size: None,
        layering: None,
        snapshots: None,
        parent: None,
        created: None,
    }
}

async fn images_of(vellum: &Vellum, located: Vec<Located>) -> Result<Vec<Image>> {
    let mut images = Vec::with_capacity(located.len());
    for located in located {
        images.push(Image {
            name: located.spec().to_string(),
            pool: located.pool.to_string(),
            image: located.record.name.to_string(),
            id: located.record.id.to_string(),
            size: Some(located.record.size()),
            layering: Some(located.record.layering.to_string()),
            snapshots: Some(located.record.snapshots.len()),
            parent: vellum.parent_name(&located).await?,
            created: Some(seconds(located.record.created)),
        });
    }
    Ok(images)
}

fn print(images: Vec<Image>, output: &mut Output) -> Result {
    if output.is_json() {
        return output.json(&images);
    }
    let rows = images.into_iter().map(|image| {
        let size = image.size.map(|size| format!("{:#}", ByteSize(size)));
        let snapshots = image.snapshots.map(|count| count.to_string());
        vec![
            image.name,
            size.unwrap_or_default(),
            image.layering.unwrap_or_default(),
            snapshots.unwrap_or_default(),
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
