//! Vellum as a library: a home with pools, images by name, operations on images that another process holds, and serving.
//!
//! ```no_run
//! # async fn example() -> vellum::Result<()> {
//! use vellum::{HomeOptions, Vellum};
//!
//! let vellum = Vellum::open(HomeOptions::default()).await?;
//! vellum.create_snapshot(&"golden@v1".parse().unwrap()).await?;
//! vellum.clone_image(&"golden@v1".parse().unwrap(), &"vm-1".parse().unwrap(), Default::default()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! The layering rules are in `vellum-image`, the bytes in `vellum-local` and `vellum-ceph`, the protocol in `vellum-nbd`; this crate names things
//! and brings them together. [`home`] is where pools are known, [`vellum`] finds images in them, [`images`] is what can be done to
//! an image by name, [`unfinished`] how one is filled first, [`report`] what can be told about it; [`holder`] is how both reach it wherever it is open, and `control`
//! how a process asks another. [`serve`] is a serving process, [`exports`] what it offers, [`export`] what a connection uses,
//! `holding` what it owns, `requests` what others that can reach the storage want of that.
#![forbid(unsafe_code)]

pub mod checking;
mod control;
pub mod export;
pub mod exports;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod holder;
mod holding;
pub mod home;
pub mod images;
pub mod report;
mod requests;
pub mod serve;
pub mod unfinished;
pub mod vellum;

pub use vellum_ceph::{Access, Compared, exit_beside_connections, wait_for_pools};
pub use vellum_engine::{Error, ErrorKind, Result};
pub use vellum_local::wait_for_catalogs;
pub use vellum_nbd::Limits;

pub use holder::Holder;
pub use home::{CephConfig, HomeOptions, PoolConfig};
pub use images::{Children, Reading};
pub use serve::{ServeOptions, Serving};
pub use unfinished::Unfinished;
pub use vellum::{Located, Vellum};

/// The catalog of a pool, of either engine.
pub type Catalog = vellum_engine::Either<LocalPool, vellum_ceph::CephPool>;
/// The catalog of a pool of the embedded engine.
pub type LocalPool = vellum_local::LocalCatalog<vellum_disk::RealDisk>;
/// An open image.
pub type Image = vellum_image::Image<Catalog>;
