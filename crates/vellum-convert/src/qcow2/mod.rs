//! qcow2: QEMU's copy-on-write format, read (versions 2 and 3) and written (version 3).
//!
//! What QEMU's own specification of the format says is not repeated here; what this reader takes from it and what it refuses is.
//!
//! A disk is cut into *clusters* of 512 B to 2 MiB. The L1 table names L2 tables, an L2 table names clusters: [`entry`] decodes what
//! it says of one cluster (all pure), [`image`] finds it for an offset, reading tables through [`pages`] so that a table never
//! has to fit in memory, [`compressed`] unpacks compressed clusters, [`header`] reads and writes the header. [`sink`] writes.
//!
//! Read: both versions, all cluster sizes, extended L2 entries, zlib and zstd, external data files; always the active state,
//! since internal snapshots are private to the file. Refused, with what to do: encryption, files marked dirty or corrupt,
//! features unknown here, anything larger than the largest image. Reference counts, bitmaps and snapshot tables are not looked at.

pub(crate) mod compressed;
pub(crate) mod entry;
pub(crate) mod header;
pub(crate) mod image;
pub(crate) mod pages;
pub(crate) mod sink;

pub(crate) use compressed::Clusters;
pub(crate) use image::{Image, Mapping};
pub(crate) use pages::Pages;

/// The first four bytes of every qcow2 file.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";
