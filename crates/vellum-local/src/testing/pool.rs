//! A pool on a simulated disk, its catalog included.

use bytes::Bytes;
use vellum_core::{Buffer, Extent, Geometry};
use vellum_engine::{
    Catalog, Durability, Guard, Guarded, Head, ImageRecord, Layer, Layering, NewImage, Result,
    Write,
};
use vellum_sim::SimDisk;

use super::BLOCK;
use crate::{LocalCatalog, LocalHead, Mode, OpenOptions};

/// An open pool, and the disk it lies on.
pub(crate) struct Pool {
    pub(crate) disk: SimDisk,
    pub(crate) catalog: LocalCatalog<SimDisk>,
}

impl Pool {
    /// A new one.
    pub(crate) async fn new(seed: u64) -> Self {
        Self::on(SimDisk::new(seed)).await.unwrap()
    }

    /// A process opens the pool.
    pub(crate) async fn on(disk: SimDisk) -> Result<Self> {
        let options = OpenOptions { mode: Mode::CreateIfMissing, ..OpenOptions::default() };
        let catalog = LocalCatalog::open(disk.clone(), "/pool", options).await?;
        Ok(Self { disk, catalog })
    }

    /// An image whose first block was written, closed.
    pub(crate) async fn image(&self, name: &str) -> ImageRecord {
        let new = NewImage {
            name: name.parse().unwrap(),
            size: 64 * BLOCK,
            geometry: Geometry::default(),
            layering: Layering::Sparse,
            block_size: BLOCK as u32,
            parent: None,
            id: None,
            meta: Default::default(),
        };
        let record = self.catalog.create(new).await.unwrap();
        let head = self.catalog.own(&record.id).await.unwrap();
        let (guard, durability) = (Guard::Edges, Durability::AtSync);
        let data = Bytes::from(vec![b'a'; BLOCK as usize]);
        let write = Write { offset: 0, data, guard, durability };
        assert_eq!(head.write(write).await.unwrap(), Guarded::Done);
        head.close().await.unwrap();
        record
    }

    /// The first byte of what its owner sees.
    pub(crate) async fn first_byte(head: &LocalHead<SimDisk>) -> u8 {
        let buffer = Buffer::from_vec(vec![b'?']);
        let (buffer, runs) = head.layer().read(Extent::new(0, 1), buffer, 0..1).await;
        runs.unwrap();
        buffer[0]
    }

    /// The path of a file of an image's head.
    pub(crate) fn file_of(record: &ImageRecord, name: &str) -> String {
        format!("/pool/layers/{}/{name}", record.head)
    }
}
