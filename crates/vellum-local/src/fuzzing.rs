//! A narrow door for the fuzz targets, behind the feature `fuzzing`: bytes on disk as pure functions, and what an open layer
//! can be asked without a catalog above it. Not part of the engine.

use vellum_core::Extent;
use vellum_disk::Disk;
use vellum_engine::{Durability, Finding, Guarded, Repair, Result, SetTo, Write};

use crate::check::Report;
pub use crate::format::fuzzing::{
    epoch_of, header_again, ledger_again, log_again, seal_log, seal_map, states_again,
};
pub use crate::layer::LocalLayer;

/// See [`Head::write`](vellum_engine::Head::write).
pub async fn write<D: Disk>(layer: &LocalLayer<D>, write: Write) -> Result<Guarded> {
    layer.write(write).await
}

/// See [`Head::set`](vellum_engine::Head::set).
pub async fn set<D: Disk>(layer: &LocalLayer<D>, at: Extent, to: SetTo) -> Result<Guarded> {
    layer.set(at, to, Durability::AtSync).await
}

/// See [`Head::sync`](vellum_engine::Head::sync).
pub async fn sync<D: Disk>(layer: &LocalLayer<D>) -> Result<()> {
    layer.sync().await
}

/// See [`Head::close`](vellum_engine::Head::close).
pub async fn close<D: Disk>(layer: &LocalLayer<D>) -> Result<()> {
    layer.close().await
}

/// What a check of the pool finds in this layer.
pub async fn check<D: Disk>(layer: &LocalLayer<D>) -> Result<Vec<Finding>> {
    let mut report = Report::default();
    layer.check(Repair::No, &mut report).await;
    report.into_result()
}
