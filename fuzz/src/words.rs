//! Words that a user writes: image specs, names, sizes, formats, ids, geometries.
//!
//! Any text is read as each of them. What is accepted prints as itself, or as something that reads as the same; a geometry that
//! is accepted maps bytes of an image to objects and back.

use vellum_convert::Format;
use vellum_core::{
    ByteSize, Geometry, IMAGE_SIZE_MAX, ImageName, ImageSpec, PoolName, SnapshotName,
};
use vellum_engine::PoolId;
use vellum_local::LayerId;

use crate::input::Input;

/// See the module.
pub fn look_at(data: &[u8]) {
    let mut input = Input::new(data);
    if input.u8() == 0 {
        return geometry(&mut input);
    }
    let bytes = input.rest();
    let text = String::from_utf8_lossy(bytes);
    spec(&text);
    size(&text);
    if let Ok(format) = text.parse::<Format>() {
        assert_eq!(format.to_string().parse::<Format>().ok(), Some(format));
    }
    if let Ok(pool) = text.parse::<PoolId>() {
        assert_eq!(pool.to_string(), text.to_ascii_lowercase());
    }
    if let Some(layer) = LayerId::from_hex(&text) {
        assert_eq!(layer.to_string(), text);
    }
    // Whatever a file begins with is some format, or refused in words.
    match Format::detect(bytes) {
        Ok(Format::Qcow2) => assert!(bytes.starts_with(b"QFI\xfb")),
        Ok(_) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn spec(text: &str) {
    let spec = match text.parse::<ImageSpec>() {
        Ok(spec) => spec,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(ImageName::new(text).is_err(), "a name alone is a spec");
            return;
        }
    };
    assert_eq!(spec.to_string(), text);
    let pool = spec.pool.as_ref().map(PoolName::as_str);
    let snapshot = spec.snapshot.as_ref().map(SnapshotName::as_str);
    for part in [pool, Some(spec.image.as_str()), snapshot].into_iter().flatten() {
        assert_eq!(ImageName::new(part).map(|name| name.to_string()).as_deref(), Ok(part));
        assert!(!part.contains(['/', '@', '\0', '\n']) && !part.starts_with(['.', '-']));
    }
}

fn size(text: &str) {
    match text.parse::<ByteSize>() {
        Ok(size) => {
            assert_eq!(size.to_string().parse::<ByteSize>(), Ok(size));
            assert!(!format!("{size:#}").is_empty());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn geometry(input: &mut Input<'_>) {
    // Mostly powers of two, which are what is accepted.
    let number = |input: &mut Input<'_>| match input.u8() {
        order @ 0..=63 => 1 << order,
        64..=127 => input.u16().into(),
        _ => input.u64(),
    };
    let (object_size, unit, count) = (number(input), number(input), number(input));
    let Ok(geometry) = Geometry::new(object_size, unit, count) else { return };
    let size = (number(input) % IMAGE_SIZE_MAX).max(1);
    let offset = number(input) % size;
    let (object, within) = geometry.locate(offset);
    assert!(object.0 < geometry.object_count(size) && within < object_size);
    assert_eq!(geometry.image_offset(object, within), offset);
    let pieces = geometry.object_image_extents(object, size).take(1000);
    assert!(pieces.map(|piece| piece.end()).all(|end| end <= size));
}
