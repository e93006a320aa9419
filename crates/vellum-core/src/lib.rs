//! The pure types of Vellum: byte extents, the states of units, sizes, names, striping geometry, and pooled buffers.
//!
//! Nothing here does I/O, is async, or knows an engine. What two other crates must agree on, they agree on here.
//!
//! Modules in reading order: [`extent`], [`state`], [`geometry`], [`size`], [`name`], [`buffer`], [`zeros`].
#![forbid(unsafe_code)]

pub mod buffer;
pub mod extent;
pub mod geometry;
pub mod name;
pub mod quoted;
pub mod size;
pub mod state;
pub mod zeros;

pub use buffer::{Buffer, BufferPool};
pub use extent::Extent;
pub use geometry::{Geometry, GeometryError, IMAGE_SIZE_MAX, ObjectExtent, ObjectNo};
pub use name::{ImageName, ImageSpec, NameError, PoolName, SnapshotName};
pub use quoted::quoted;
pub use size::{ByteSize, SizeError};
pub use state::{Run, Runs, State};
pub use zeros::{ZEROS_MAX, zeros_for};
