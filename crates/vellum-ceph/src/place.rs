//! [`Place`]: where the units of an image lie in its objects. Pure arithmetic.

use std::ops::Range;

use vellum_core::{Extent, Geometry, ObjectNo};

/// How an image is cut into objects, and those into units.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    geometry: Geometry,
    size: u64,
    unit: u64,
}

impl Place {
    /// Of an image of this many bytes, with units of a power of two of bytes that divides the stripe unit.
    pub fn new(geometry: Geometry, size: u64, unit: u64) -> Self {
        Self { geometry, size, unit }
    }

    /// How the image is striped.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Bytes in the image.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes in a unit.
    pub fn unit(&self) -> u64 {
        self.unit
    }

    /// The binary logarithm of that.
    pub fn unit_shift(&self) -> u8 {
        self.unit.trailing_zeros() as u8
    }

    /// Units in an object.
    pub fn units_of_object(&self) -> u32 {
        (self.geometry.object_size() / self.unit) as u32
    }

    /// Objects in the image.
    pub fn objects(&self) -> u64 {
        self.geometry.object_count(self.size)
    }

    /// The units around an extent, as bytes of the image, clipped to its size.
    pub fn around(&self, at: Extent) -> Extent {
        at.align_out(self.unit).clip(self.size)
    }

    /// The only object that an extent lies in; `None` if there are several, or none.
    pub fn object_of(&self, at: Extent) -> Option<ObjectNo> {
        let mut pieces = self.geometry.objects(at).map(|piece| piece.object);
        let first = pieces.next()?;
        // An extent that goes on in another piece of the same object goes through other objects in between.
        pieces.next().is_none().then_some(first)
    }

    /// Where in its object a byte of the image lies.
    pub fn offset(&self, image: u64) -> u64 {
        self.geometry.locate(image).1
    }

    /// Where in an object begins what an image of this size does not have; the end of the object if it has all of it.
    pub fn end_in(&self, object: ObjectNo, size: u64) -> u64 {
        let within = self.geometry.object_image_extents(object, size);
        within.last().map_or(0, |last| self.offset(last.end() - 1) + 1)
    }

    /// The objects of which an image of this size has a part, with some of another size beyond that: those of the object set at its
    /// end.
    pub fn cut_by(&self, size: u64) -> Range<u64> {
        let (set, count) = (size / self.geometry.object_set_size(), self.geometry.stripe_count());
        set * count..self.geometry.object_count(size)
    }

    /// The units that an extent touches, by their numbers in its object. The extent lies in one piece of one object.
    pub fn units(&self, at: Extent) -> Range<u32> {
        let first = self.offset(at.offset());
        let last = first + at.length().saturating_sub(1);
        (first / self.unit) as u32..(last / self.unit) as u32 + 1
    }

    /// The bytes of the image that some units hold, clipped to its size; the units lie in the piece of the object that this
    /// extent lies in.
    pub fn image_of(&self, units: &Range<u32>, within: Extent) -> Extent {
        let (object, _) = self.geometry.locate(within.offset());
        let start = self.geometry.image_offset(object, u64::from(units.start) * self.unit);
        Extent::new(start, u64::from(units.end - units.start) * self.unit).clip(self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_counted_within_their_object() {
        let place = Place::new(Geometry::new(64 << 10, 8 << 10, 3).unwrap(), 200_000, 4096);
        assert_eq!((place.units_of_object(), place.unit_shift()), (16, 12));
        // The second stripe of the first object.
        let at = Extent::new((24 << 10) + 4100, 10);
        assert_eq!(place.object_of(at), Some(ObjectNo(0)));
        assert_eq!(place.units(at), 3..4);
        assert_eq!(place.image_of(&(3..4), at), Extent::new((24 << 10) + 4096, 4096));
        assert_eq!(place.image_of(&(2..4), at), Extent::new(24 << 10, 8192));
        assert_eq!(place.object_of(Extent::new(8191, 2)), None);
        assert_eq!(place.object_of(Extent::new(0, 24 << 10)), None);
        let end = place.around(Extent::new(199_999, 1));
        assert_eq!(end, Extent::between(196_608, 200_000));
    }

    #[test]
    fn an_end_cuts_the_objects_of_the_set_that_it_lies_in() {
        let place = Place::new(Geometry::new(64 << 10, 8 << 10, 3).unwrap(), 1 << 20, 4096);
        // One stripe of three units, and a part of the second unit of the next.
        let size = (192 << 10) + (24 << 10) + (8 << 10) + 100;
        assert_eq!(place.cut_by(size), 3..6);
        let ends = [3, 4, 5].map(|object| place.end_in(ObjectNo(object), size));
        assert_eq!(ends, [16 << 10, (8 << 10) + 100, 8 << 10]);
        assert_eq!(place.end_in(ObjectNo(2), size), 64 << 10);
        assert_eq!(place.end_in(ObjectNo(6), size), 0);
        assert!(place.cut_by(192 << 10).is_empty());
        assert_eq!(place.cut_by(100), 0..1);
    }
}
