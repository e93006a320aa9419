//! Tests of counting over the reference engine.

use bytes::Bytes;
use vellum_core::{Buffer, Extent, Geometry, Runs};

use super::{CountCatalog, Counts, Operation};
use crate::around::AroundHead;
use crate::memory::{MemoryHead, MemoryStore};
use crate::{
    Catalog, Content, Durability, Fill, Guard, Guarded, Head, HeadChange, Layer, Layering,
    NewImage, Part, Prepared, SetTo, TryRead, Write,
};

const UNIT: u64 = 4096;

async fn own_new(counts: &Counts) -> AroundHead<MemoryHead, Counts> {
    let catalog = CountCatalog::new(MemoryStore::default().catalog(), counts.clone());
    let new = NewImage {
        name: "image".parse().unwrap(),
        size: 16 * UNIT,
        geometry: Geometry::default(),
        layering: Layering::Sparse,
        block_size: UNIT as u32,
        parent: None,
        id: None,
        meta: Default::default(),
    };
    let record = catalog.create(new).await.unwrap();
    catalog.own(&record.id).await.unwrap()
}

fn counted(counts: &Counts, operation: Operation) -> (u64, u64) {
    (counts.calls(operation), counts.bytes(operation))
}

fn block(offset: u64) -> Write {
    let data = Bytes::from_static(&[1; UNIT as usize]);
    Write { offset, data, guard: Guard::Edges, durability: Durability::AtSync }
}

#[tokio::test]
async fn each_operation_is_counted_once_with_its_bytes() {
    let counts = Counts::default();
    let head = own_new(&counts).await;
    assert_eq!(counted(&counts, Operation::Catalog), (2, 0));
    assert_eq!(head.write(block(0)).await.unwrap(), Guarded::Done);
    let part = |at, content| Part { at, content };
    let data = Content::Data(Bytes::from_static(&[2; UNIT as usize]));
    let parts = vec![
        part(Extent::new(UNIT, UNIT), data),
        part(Extent::new(2 * UNIT, 4 * UNIT), Content::Zero),
    ];
    assert_eq!(head.fill(Fill { parts, then: None }).await.unwrap(), Guarded::Done);
    let set = head.set(Extent::new(0, 2 * UNIT), SetTo::Zero, Durability::AtSync).await;
    assert_eq!(set.unwrap(), Guarded::Done);
    head.sync().await.unwrap();
    for (operation, expected) in [
        (Operation::Write, (1, UNIT)),
        (Operation::Fill, (1, UNIT)),
        (Operation::Set, (1, 2 * UNIT)),
        (Operation::Sync, (1, 0)),
        (Operation::Read, (0, 0)),
    ] {
        assert_eq!(counted(&counts, operation), expected, "{operation:?}");
    }
}

#[tokio::test]
async fn reads_of_a_layer_and_of_the_head_go_into_the_same_counts() {
    let counts = Counts::default();
    let head = own_new(&counts).await;
    let (layer, at) = (head.layer().clone(), Extent::new(0, 100));
    layer.read(at, Buffer::from_vec(vec![0; 100]), 0..100).await.1.unwrap();
    let mut runs = Runs::new();
    assert_eq!(head.layer().try_read(at, &mut [0; 100], &mut runs), TryRead::Done);
    layer.load_states(at, 1, &mut runs).await.unwrap();
    assert_eq!(counted(&counts, Operation::Read), (1, 100));
    assert_eq!(counted(&counts, Operation::TryRead), (1, 100));
    assert_eq!(counted(&counts, Operation::LoadStates), (1, 100));
    counts.reset();
    assert_eq!(counted(&counts, Operation::Read), (0, 0));
}

#[tokio::test]
async fn the_successor_of_a_snapshot_goes_on_counting() {
    let counts = Counts::default();
    let head = own_new(&counts).await;
    let change = HeadChange::Snapshot { name: "s".parse().unwrap(), auto: false };
    let successor = head.prepare(change).await.unwrap().commit().await.unwrap().successor.unwrap();
    assert_eq!(successor.write(block(0)).await.unwrap(), Guarded::Done);
    assert_eq!(counts.calls(Operation::Write), 1);
    assert!(format!("{successor:?}").starts_with("Count(MemoryHead("));
}
