//! Striping: how the bytes of an image are spread over its objects.
//!
//! RBD's striping v2, as pure arithmetic. The image is cut into stripe units; `stripe_count` objects take units in turn until
//! each is full, and such an *object set* is followed by the next. With a stripe unit as long as an object and a count of
//! one, the default, object *n* simply holds the *n*-th piece.

use crate::Extent;

/// The largest image: 1 PiB. Below it no arithmetic on offsets can overflow.
pub const IMAGE_SIZE_MAX: u64 = 1 << 50;
/// The smallest object: 4 KiB (RBD's order 12).
pub const OBJECT_SIZE_MIN: u64 = 1 << 12;
/// The largest object: 32 MiB (RBD's order 25).
pub const OBJECT_SIZE_MAX: u64 = 1 << 25;
/// The smallest stripe unit: a sector of 512 bytes.
pub const STRIPE_UNIT_MIN: u64 = 512;
/// The most objects in a set.
pub const STRIPE_COUNT_MAX: u64 = 1 << 16;

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

/// How an image is striped over its objects.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Geometry {
    object_size: u64,
    stripe_unit: u64,
    stripe_count: u64,
}

/// Why a geometry is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GeometryError {
    /// The object size is out of range or not a power of two.
    #[error("object size {0} must be a power of two from 4 KiB to 32 MiB")]
    ObjectSize(u64),
    /// The stripe unit does not fit the object size.
    #[error(
        "stripe unit {unit} must be a multiple of 512 bytes that divides the object size {object_size}"
    )]
    StripeUnit {
        /// The stripe unit asked for.
        unit: u64,
        /// The object size asked for.
        object_size: u64,
    },
    /// The stripe count is out of range.
    #[error("stripe count {0} must be from 1 to 65536")]
    StripeCount(u64),
}

impl Geometry {
    /// A checked geometry, all sizes in bytes.
    pub const fn new(
        object_size: u64,
        stripe_unit: u64,
        stripe_count: u64,
    ) -> Result<Self, GeometryError> {
        if !object_size.is_power_of_two()
            || object_size < OBJECT_SIZE_MIN
            || object_size > OBJECT_SIZE_MAX
        {
            return Err(GeometryError::ObjectSize(object_size));
        }
        // A divisor of a power of two is one itself, so "multiple of 512" leaves 512, 1024, ...
        if stripe_unit < STRIPE_UNIT_MIN || !object_size.is_multiple_of(stripe_unit) {
            return Err(GeometryError::StripeUnit { unit: stripe_unit, object_size });
        }
        if stripe_count == 0 || stripe_count > STRIPE_COUNT_MAX {
            return Err(GeometryError::StripeCount(stripe_count));
        }
        Ok(Self { object_size, stripe_unit, stripe_count })
    }

    /// Objects of this size, one after another.
    pub const fn unstriped(object_size: u64) -> Result<Self, GeometryError> {
        Self::new(object_size, object_size, 1)
    }

    /// Bytes in an object.
    #[inline]
    pub const fn object_size(&self) -> u64 {
        self.object_size
    }

    /// Bytes that lie together in an object before the next object takes its turn.
    #[inline]
    pub const fn stripe_unit(&self) -> u64 {
        self.stripe_unit
    }

    /// How many objects take turns.
    #[inline]
    pub const fn stripe_count(&self) -> u64 {
        self.stripe_count
    }

    /// Whether neighbouring stripe units lie in different objects.
    #[inline]
    pub const fn is_striped(&self) -> bool {
        self.stripe_count > 1
    }

    /// Bytes in an object set: as many as its objects hold.
    #[inline]
    pub const fn object_set_size(&self) -> u64 {
        self.object_size * self.stripe_count
    }

    /// Whether units of layering of this many bytes never straddle a stripe unit.
    pub const fn accepts_block_size(&self, block_size: u64) -> bool {
        block_size >= STRIPE_UNIT_MIN && self.stripe_unit.is_multiple_of(block_size)
    }

    /// The object that holds a byte of the image, and where in it.
    pub fn locate(&self, offset: u64) -> (ObjectNo, u64) {
        let (set, in_set) = (offset / self.object_set_size(), offset % self.object_set_size());
        let (unit, in_unit) = (in_set / self.stripe_unit, in_set % self.stripe_unit);
        let (stripe, turn) = (unit / self.stripe_count, unit % self.stripe_count);
        (ObjectNo(set * self.stripe_count + turn), stripe * self.stripe_unit + in_unit)
    }

    /// The byte of the image that lies at an offset of an object: the inverse of [`locate`](Self::locate).
    pub fn image_offset(&self, object: ObjectNo, offset: u64) -> u64 {
        let (set, turn) = (object.0 / self.stripe_count, object.0 % self.stripe_count);
        let (stripe, in_unit) = (offset / self.stripe_unit, offset % self.stripe_unit);
        set * self.object_set_size()
            + (stripe * self.stripe_count + turn) * self.stripe_unit
            + in_unit
    }

    /// The pieces of objects that an extent of the image lies in, in ascending order of the image. A piece is as long as
    /// image and object run side by side: a stripe unit, or an object if it is not striped.
    pub fn objects(&self, image: Extent) -> impl Iterator<Item = ObjectExtent> + Send + use<> {
        let geometry = *self;
        image.chunks(self.side_by_side()).map(move |image| {
            let (object, offset) = geometry.locate(image.offset());
            ObjectExtent { object, offset, image }
        })
    }

    /// The extents of the image that lie in an object, in the object's order, clipped to the size of the image. None for
    /// an object that an image of this size does not have, whatever its number.
    pub fn object_image_extents(
        &self,
        object: ObjectNo,
        image_size: u64,
    ) -> impl Iterator<Item = Extent> + Send + use<> {
        let geometry = *self;
        let piece = self.side_by_side();
        // Only a number known to be in range goes through the arithmetic below, which a wild one would overflow.
        let pieces =
            if object.0 < self.object_count(image_size) { self.object_size / piece } else { 0 };
        (0..pieces)
            .map(move |number| {
                Extent::new(geometry.image_offset(object, number * piece), piece).clip(image_size)
            })
            .take_while(|extent| !extent.is_empty())
    }

    /// How many objects an image of this size may have: one more than the highest number.
    pub fn object_count(&self, image_size: u64) -> u64 {
        let (sets, rest) =
            (image_size / self.object_set_size(), image_size % self.object_set_size());
        // Within the last set the objects take turns, so as many are touched as there are units, up to all of them.
        sets * self.stripe_count + rest.div_ceil(self.stripe_unit).min(self.stripe_count)
    }

    /// How far image and object run side by side.
    fn side_by_side(&self) -> u64 {
        if self.is_striped() { self.stripe_unit } else { self.object_size }
    }
}

impl Default for Geometry {
    /// Objects of 4 MiB, not striped.
    fn default() -> Self {
        Self { object_size: 4 << 20, stripe_unit: 4 << 20, stripe_count: 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const K: u64 = 1 << 10;
    const M: u64 = 1 << 20;

    #[test]
    fn where_bytes_lie() {
        let plain = Geometry::default();
        let wide = Geometry::new(4 * M, 64 * K, 16).unwrap();
        let small_units = Geometry::new(4 * M, M, 1).unwrap();
        let three = Geometry::new(8 * K, 4 * K, 3).unwrap();
        let sectors = Geometry::new(4 * K, 512, 2).unwrap();
        for (geometry, offset, object, within) in [
            (plain, 0, 0, 0),
            (plain, 4 * M - 1, 0, 4 * M - 1),
            (plain, 4 * M, 1, 0),
            (plain, IMAGE_SIZE_MAX - 1, (1 << 28) - 1, 4 * M - 1),
            (small_units, 5 * M + 7, 1, M + 7),
            (wide, 64 * K - 1, 0, 64 * K - 1),
            (wide, 64 * K, 1, 0),
            (wide, M - 1, 15, 64 * K - 1),
            (wide, M, 0, 64 * K),
            (wide, 64 * M - 1, 15, 4 * M - 1),
            (wide, 64 * M, 16, 0),
            (three, 4 * K, 1, 0),
            (three, 12 * K, 0, 4 * K),
            (three, 23 * K, 2, 7 * K),
            (three, 24 * K, 3, 0),
            (sectors, 1536, 1, 512),
            (sectors, 8 * K, 2, 0),
        ] {
            assert_eq!(
                geometry.locate(offset),
                (ObjectNo(object), within),
                "{geometry:?} at {offset}"
            );
            assert_eq!(
                geometry.image_offset(ObjectNo(object), within),
                offset,
                "{geometry:?} back"
            );
        }
    }

    #[test]
    fn how_many_objects() {
        let three = Geometry::new(8 * K, 4 * K, 3).unwrap();
        for (geometry, size, count) in [
            (Geometry::default(), 0, 0),
            (Geometry::default(), 1, 1),
            (Geometry::default(), 4 * M, 1),
            (Geometry::default(), 4 * M + 1, 2),
            (three, 1, 1),
            (three, 4 * K, 1),
            (three, 4 * K + 1, 2),
            (three, 8 * K + 1, 3),
            (three, 13 * K, 3),
            (three, 24 * K, 3),
            (three, 24 * K + 1, 4),
        ] {
            assert_eq!(geometry.object_count(size), count, "{geometry:?} {size}");
        }
    }

    #[test]
    fn what_is_refused() {
        for (object_size, unit, count) in [
            (2 * K, 2 * K, 1),
            (64 * M, 64 * M, 1),
            (3 * M, 3 * M, 1),
            (4 * M, 3 * K, 1),
            (4 * M, 256, 1),
            (4 * M, 8 * M, 1),
            (4 * M, 0, 1),
            (4 * M, M, 0),
            (4 * M, M, STRIPE_COUNT_MAX + 1),
        ] {
            assert!(
                Geometry::new(object_size, unit, count).is_err(),
                "{object_size} {unit} {count}"
            );
        }
        assert!(Geometry::new(4 * M, 64 * K, 2).unwrap().accepts_block_size(4096));
        assert!(!Geometry::new(4 * M, 512, 2).unwrap().accepts_block_size(4096));
        assert!(!Geometry::default().accepts_block_size(256));
    }

    #[test]
    fn a_plain_object_is_one_extent_and_a_striped_one_is_many() {
        let extents = |geometry: Geometry, object, size| -> Vec<Extent> {
            geometry.object_image_extents(ObjectNo(object), size).collect()
        };
        assert_eq!(extents(Geometry::default(), 1, 5 * M), [Extent::new(4 * M, M)]);
        let three = Geometry::new(8 * K, 4 * K, 3).unwrap();
        assert_eq!(
            extents(three, 1, 100 * K),
            [Extent::new(4 * K, 4 * K), Extent::new(16 * K, 4 * K)]
        );
        assert_eq!(extents(three, 1, 17 * K), [Extent::new(4 * K, 4 * K), Extent::new(16 * K, K)]);
        assert_eq!(extents(three, 4, 17 * K), []);
        assert_eq!(extents(three, u64::MAX, IMAGE_SIZE_MAX), []);
    }

    #[test]
    fn the_largest_image_overflows_nothing() {
        let widest = Geometry::new(OBJECT_SIZE_MAX, 512, STRIPE_COUNT_MAX).unwrap();
        for geometry in [Geometry::default(), Geometry::unstriped(OBJECT_SIZE_MIN).unwrap(), widest]
        {
            let last = geometry.object_count(IMAGE_SIZE_MAX) - 1;
            let (object, within) = geometry.locate(IMAGE_SIZE_MAX - 1);
            assert!(object.0 <= last, "{geometry:?}");
            assert_eq!(geometry.image_offset(object, within), IMAGE_SIZE_MAX - 1, "{geometry:?}");
            assert!(
                geometry.object_image_extents(ObjectNo(last), IMAGE_SIZE_MAX).next().is_some(),
                "{geometry:?}"
            );
        }
    }

    /// Fills objects byte by byte, as the definition of striping reads, and says which lies where.
    fn naive(geometry: Geometry, size: u64) -> Vec<(ObjectNo, u64)> {
        let mut lies = Vec::new();
        let mut set = 0;
        while (lies.len() as u64) < size {
            let mut filled = vec![0; geometry.stripe_count() as usize];
            while filled.iter().any(|bytes| *bytes < geometry.object_size()) {
                for (turn, bytes) in filled.iter_mut().enumerate() {
                    for _ in 0..geometry.stripe_unit() {
                        lies.push((ObjectNo(set * geometry.stripe_count() + turn as u64), *bytes));
                        *bytes += 1;
                    }
                }
            }
            set += 1;
        }
        lies.truncate(size as usize);
        lies
    }

    #[test]
    fn pieces_agree_with_filling_objects_byte_by_byte() {
        for (object_size, unit, count) in [
            (4 * K, 4 * K, 1),
            (4 * K, 512, 1),
            (4 * K, 512, 3),
            (8 * K, 2 * K, 2),
            (4 * K, 4 * K, 5),
        ] {
            let geometry = Geometry::new(object_size, unit, count).unwrap();
            for size in [1, 511, 512, 513, 4 * K, 12 * K + 77, 30 * K, 40 * K + 1] {
                let naive = naive(geometry, size);
                let whole = Extent::new(0, size);
                let pieces: Vec<_> = geometry
                    .objects(whole)
                    .flat_map(|piece| {
                        (0..piece.image.length())
                            .map(move |byte| (piece.object, piece.offset + byte))
                    })
                    .collect();
                assert!(pieces == naive, "{geometry:?} {size}");
                let highest = naive.iter().map(|(object, _)| object.0).max().unwrap();
                assert_eq!(geometry.object_count(size), highest + 1, "{geometry:?} {size}");
            }
        }
    }

    fn geometries() -> impl Strategy<Value = Geometry> {
        (12u32..=25, 0u32..=13, 1u64..20).prop_map(|(order, less, count)| {
            let unit = (order - less.min(order - 9)).max(9);
            Geometry::new(1 << order, 1 << unit, count).unwrap()
        })
    }

    proptest! {
        #[test]
        fn image_to_objects_and_back_is_the_identity(
            geometry in geometries(), offset in 0..IMAGE_SIZE_MAX - (1 << 22), length in 1u64..1 << 16,
        ) {
            let image = Extent::new(offset, length);
            let mut at = image.offset();
            for piece in geometry.objects(image) {
                prop_assert_eq!(piece.image.offset(), at);
                prop_assert!(piece.offset + piece.image.length() <= geometry.object_size());
                for byte in [0, piece.image.length() - 1] {
                    let (object, within) = geometry.locate(piece.image.offset() + byte);
                    prop_assert_eq!((object, within), (piece.object, piece.offset + byte));
                    prop_assert_eq!(geometry.image_offset(object, within), piece.image.offset() + byte);
                }
                at = piece.image.end();
            }
            prop_assert_eq!(at, image.end());
        }

        #[test]
        fn the_objects_of_an_image_partition_it(
            geometry in (12u32..=14, 0u32..=3, 1u64..6)
                .prop_map(|(order, less, count)| Geometry::new(1 << order, 1 << (order - less), count).unwrap()),
            size in 0u64..400_000,
        ) {
            let mut extents: Vec<Extent> = (0..geometry.object_count(size))
                .flat_map(|object| geometry.object_image_extents(ObjectNo(object), size))
                .collect();
            prop_assert!(geometry.object_image_extents(ObjectNo(geometry.object_count(size)), size).next().is_none());
            extents.sort_unstable();
            let mut at = 0;
            for extent in extents {
                prop_assert_eq!(extent.offset(), at);
                at = extent.end();
            }
            prop_assert_eq!(at, size);
        }
    }
}
