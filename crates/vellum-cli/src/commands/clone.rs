//! `vellum clone`: one child, or many of one snapshot.

use vellum::Vellum;
use vellum_core::{Geometry, ImageName, ImageSpec};
use vellum_engine::Layering;
use vellum_image::CloneOptions;

use crate::args::Shape;
use crate::commands::{block_size, geometry};
use crate::failure::{Failure, Result};
use crate::progress;

/// Makes one clone, or `count` of them.
pub async fn run(
    vellum: &Vellum,
    parent: &ImageSpec,
    child: &ImageSpec,
    count: Option<u32>,
    shape: &Shape,
) -> Result {
    let usual = match shape.stripe_unit.is_some() && shape.object_size.is_none() {
        true => vellum.locate(parent).await?.record.geometry,
        false => Geometry::default(),
    };
    let options = CloneOptions {
        geometry: geometry(shape, usual)?,
        layering: shape.layering.map(Layering::from),
        block_size: block_size(shape)?,
        ..CloneOptions::default()
    };
    let Some(count) = count else {
        vellum.clone_image(parent, child, options).await?;
        return Ok(());
    };
    if parent.snapshot.is_none() {
        return Err(Failure::usage(
            "many clones are made of one snapshot; name it, as in IMAGE@SNAP",
        ));
    }
    let bar = progress::count("clone", count.into());
    let digits = count.to_string().len().max(4);
    for number in 1..=count {
        let name = format!("{}-{number:0digits$}", child.image);
        let name = ImageName::new(&name).map_err(|error| Failure::usage(error.to_string()))?;
        let child = ImageSpec { image: name, ..child.clone() };
        vellum.clone_image(parent, &child, options.clone()).await?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}
