//! Striping: how the bytes of an image are spread over its objects.

use crate::Extent;

/// The number of an object within its image, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectNo(pub u64);

/// A piece of one object, and the extent of the image that lies there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObjectExtent {
    /// Which object.
    pub object: ObjectNo,
    /// Where in the object, in bytes.
    pub offset: u64,
    /// The bytes of the image that lie there; its length is the piece's length.
    pub image: Extent,
}

/// How an image is striped over its objects (RBD striping v2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Geometry {
    object_size: u64,
    stripe_unit: u64,
    stripe_count: u64,
}

/// Why a geometry is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GeometryError {}

impl Geometry {
    /// A checked geometry.
    pub fn new(object_size: u64, stripe_unit: u64, stripe_count: u64) -> Result<Self, GeometryError> {
        Ok(Self { object_size, stripe_unit, stripe_count })
    }

    /// Bytes in an object.
    pub fn object_size(&self) -> u64 {
        self.object_size
    }
}
