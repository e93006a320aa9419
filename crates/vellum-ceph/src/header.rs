//! Headers: reading one that must be there, and changing one at the version at which it was read.

use vellum_engine::{ImageId, Result};
use vellum_rados::{Failure, Objects, SnapContext, WriteOp};
use vellum_rbd::names;

use crate::described::Described;
use crate::error::{failed, no_image_with_id};

/// What the header of an image says. `NotFound` if there is no such image.
pub(crate) async fn described<O: Objects>(objects: &O, id: &ImageId) -> Result<Described> {
    Described::read(objects, id).await?.ok_or_else(|| no_image_with_id(id.as_str()))
}

/// Carries an operation out on a header.
pub(crate) async fn write_header<O: Objects>(
    objects: &O,
    id: &ImageId,
    op: WriteOp,
) -> vellum_rados::Result<()> {
    objects.write(&names::header(id.as_str()), &SnapContext::default(), op).await
}

/// Changes a header as is planned by what it says, and plans again as often as it has changed in between. A plan begins with an
/// operation that asserts the version. Returns what the header said before; `None` if the plan is to change nothing.
pub(crate) async fn change_header<O: Objects>(
    objects: &O,
    id: &ImageId,
    plan: impl Fn(&Described, WriteOp) -> Result<Option<WriteOp>>,
    doing: impl Fn() -> String,
) -> Result<Option<Described>> {
    loop {
        let now = described(objects, id).await?;
        let Some(op) = plan(&now, WriteOp::new().assert_version(now.version))? else {
            return Ok(None);
        };
        match write_header(objects, id, op).await {
            Ok(()) => return Ok(Some(now)),
            Err(Failure::MISMATCH) => {}
            Err(failure) => return Err(failed(failure, doing())),
        }
    }
}
