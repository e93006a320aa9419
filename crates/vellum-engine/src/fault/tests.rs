//! Tests of faults over the reference engine.

use bytes::Bytes;
use futures::poll;
use vellum_core::{Buffer, Extent, Geometry, Runs, State};

use super::{FaultCatalog, Faults, Operation, When};
use crate::around::AroundHead;
use crate::memory::{MemoryCatalog, MemoryHead, MemoryStore};
use crate::{
    Catalog, Durability, Error, ErrorKind, Guard, Guarded, Happened, Head, HeadChange, ImageRecord,
    Layer, Layering, NewImage, Prepared, Result, Write,
};

const SIZE: u64 = 64 << 10;

struct Scene {
    faults: Faults,
    catalog: FaultCatalog<MemoryCatalog>,
    record: ImageRecord,
    head: AroundHead<MemoryHead, Faults>,
}

impl Scene {
    async fn new() -> Self {
        let faults = Faults::default();
        let catalog = FaultCatalog::new(MemoryStore::default().catalog(), faults.clone());
        let record = catalog.create(new_image("image")).await.unwrap();
        let head = catalog.own(&record.id).await.unwrap();
        Self { faults, catalog, record, head }
    }

    fn is_written(&self) -> bool {
        let mut runs = Runs::new();
        let _ = self.head.layer().states(Extent::new(0, 4096), 1, &mut runs);
        runs.all(State::Data)
    }
}

fn new_image(name: &str) -> NewImage {
    NewImage {
        name: name.parse().unwrap(),
        size: SIZE,
        geometry: Geometry::default(),
        layering: Layering::Sparse,
        block_size: 4096,
        parent: None,
        id: None,
        meta: Default::default(),
    }
}

fn block() -> Write {
    let data = Bytes::from_static(&[1; 4096]);
    Write { offset: 0, data, guard: Guard::Edges, durability: Durability::AtSync }
}

fn says<T: std::fmt::Debug>(result: Result<T>) -> (ErrorKind, Happened) {
    let error: Error = result.unwrap_err();
    (error.kind(), error.happened())
}

#[tokio::test]
async fn a_fault_instead_of_a_call_changes_nothing_and_one_afterwards_does() {
    let scene = Scene::new().await;
    scene.faults.fail(Operation::Write, 0, ErrorKind::NoSpace, When::Instead);
    scene.faults.fail(Operation::Write, 0, ErrorKind::Io, When::Afterwards);
    let first = scene.head.write(block()).await;
    assert_eq!(says(first), (ErrorKind::NoSpace, Happened::NotDone));
    assert!(!scene.is_written());
    let second = scene.head.write(block()).await;
    assert_eq!(says(second), (ErrorKind::Io, Happened::MaybeDone));
    assert!(scene.is_written());
    assert_eq!(scene.head.write(block()).await.unwrap(), Guarded::Done);
}

#[tokio::test]
async fn a_fault_strikes_the_call_it_was_meant_for() {
    let scene = Scene::new().await;
    scene.faults.fail(Operation::Read, 1, ErrorKind::Corrupt, When::Instead);
    let at = Extent::new(0, 512);
    let read = || scene.head.layer().read(at, Buffer::from_vec(vec![0; 512]), 0..512);
    assert!(read().await.1.is_ok());
    let (buffer, result) = read().await;
    assert_eq!((buffer.len(), says(result)), (512, (ErrorKind::Corrupt, Happened::NotDone)));
    assert!(read().await.1.is_ok());
}

#[tokio::test]
async fn a_paused_write_has_no_effect_before_it_is_released() {
    let scene = Scene::new().await;
    let pause = scene.faults.pause(Operation::Write);
    let head = scene.head.clone();
    let write = tokio::spawn(async move { head.write(block()).await });
    pause.reached().await;
    assert!(!scene.is_written());
    pause.release();
    assert_eq!(write.await.unwrap().unwrap(), Guarded::Done);
    assert!(scene.is_written());
}

#[tokio::test]
async fn a_paused_write_whose_caller_went_away_never_happens() {
    let scene = Scene::new().await;
    let pause = scene.faults.pause(Operation::Write);
    let mut write = Box::pin(scene.head.write(block()));
    assert!(poll!(&mut write).is_pending());
    drop(write);
    pause.release();
    scene.head.sync().await.unwrap();
    assert!(!scene.is_written());
}

#[tokio::test]
async fn a_head_whose_sync_failed_takes_nothing_any_more_until_it_is_owned_anew() {
    let scene = Scene::new().await;
    scene.faults.fail(Operation::Sync, 0, ErrorKind::Io, When::Instead);
    let sync = scene.head.sync().await;
    assert_eq!(says(sync), (ErrorKind::Io, Happened::NotDone));
    assert_eq!(says(scene.head.clone().write(block()).await).0, ErrorKind::Poisoned);
    assert_eq!(says(scene.head.sync().await).0, ErrorKind::Poisoned);
    assert_eq!(says(scene.head.prepare(HeadChange::CutParent).await).0, ErrorKind::Poisoned);
    assert_eq!(says(scene.head.close().await).0, ErrorKind::Poisoned);
    let again = scene.catalog.own(&scene.record.id).await.unwrap();
    assert_eq!(again.write(block()).await.unwrap(), Guarded::Done);
}

#[tokio::test]
async fn a_commit_that_fails_instead_leaves_the_head_as_it_was() {
    let scene = Scene::new().await;
    scene.faults.fail(Operation::Commit, 0, ErrorKind::Busy, When::Instead);
    let change = HeadChange::Snapshot { name: "s".parse().unwrap(), auto: false };
    let prepared = scene.head.prepare(change).await.unwrap();
    assert_eq!(says(prepared.commit().await), (ErrorKind::Busy, Happened::NotDone));
    assert_eq!(scene.catalog.get(&scene.record.id).await.unwrap(), scene.record);
    assert_eq!(scene.head.write(block()).await.unwrap(), Guarded::Done);
}

#[tokio::test]
async fn a_create_that_may_have_happened_has() {
    let scene = Scene::new().await;
    scene.faults.fail(Operation::Catalog, 0, ErrorKind::Io, When::Afterwards);
    let created = scene.catalog.create(new_image("other")).await;
    assert_eq!(says(created), (ErrorKind::Io, Happened::MaybeDone));
    assert!(scene.catalog.find(&"other".parse().unwrap()).await.is_ok());
}

#[tokio::test]
async fn a_fault_catalog_says_what_it_wraps() {
    let scene = Scene::new().await;
    let pool = scene.catalog.pool();
    assert_eq!(format!("{:?}", scene.catalog), format!("Fault(MemoryCatalog({pool}))"));
}
