//! Children that see only a part of their parent, or are longer than it is: read, written, zeroed, discarded, frozen and
//! flattened at and past the end of what they can see.

use vellum_core::{Extent, Geometry};
use vellum_engine::{Catalog, Layering, NewImage, NewParent, ParentLink};
use vellum_image::{DiscardPolicy, FlattenOptions, Job, ZeroOptions, admin};

use super::fixture::*;

const PARENT: u64 = 200_000;
const OBJECT: u64 = 16 << 10;

/// A size of a child, and how much of its parent it sees: at units and objects, within them, nothing, and all.
const CASES: [(u64, u64); 9] = [
    (PARENT, PARENT),
    (100_000, 100_000),
    (300_000, PARENT),
    (300_000, 5 * OBJECT),
    (300_000, 5 * OBJECT + 3 * 4096),
    (300_000, 5 * OBJECT + 3 * 4096 + 100),
    (300_000, 1),
    (300_000, 0),
    (100_000, 4095),
];

/// A child of `gold@s`, and what it must read as.
async fn child(
    fixture: &Fixture,
    name: &str,
    layering: Layering,
    (size, overlap): (u64, u64),
) -> (Vec<u8>, TestImage) {
    let gold = fixture.catalog.find(&image_name("gold")).await.unwrap();
    let revision = gold.snapshot(&snapshot_name("s")).unwrap().revision.clone();
    let link = ParentLink { pool: fixture.catalog.pool(), image: gold.id, revision };
    let new = NewImage {
        name: image_name(name),
        size,
        geometry: Geometry::unstriped(OBJECT).unwrap(),
        layering,
        block_size: 4096,
        parent: Some(NewParent { link, overlap }),
        id: None,
        meta: Default::default(),
    };
    fixture.catalog.create(new).await.unwrap();
    let mut content = pattern(Extent::new(0, overlap), 7);
    content.resize(size as usize, 0);
    (content, fixture.open(name).await)
}

/// Extents around the end of what can be seen, and far past it, as far as the image reaches.
fn places(size: u64, overlap: u64) -> Vec<Extent> {
    let before = overlap.saturating_sub(100);
    let unit = overlap / 4096 * 4096;
    [
        Extent::new(before, 200),
        Extent::new(unit, 4096),
        Extent::new(overlap / OBJECT * OBJECT, OBJECT),
        Extent::new(overlap, 1),
        Extent::new(size - 5000, 5000),
        Extent::new(0, size),
    ]
    .into_iter()
    .map(|at| at.clip(size))
    .filter(|at| !at.is_empty())
    .collect()
}

fn range(at: Extent) -> std::ops::Range<usize> {
    at.offset() as usize..at.end() as usize
}

/// Runs a test on each case, in both modes; the child is looked at in its snapshot, flattened, without its parent, and opened
/// anew as well.
async fn each_case(change: impl AsyncFn(&TestImage, &mut Vec<u8>, Extent)) {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        for (size, overlap) in CASES {
            for at in places(size, overlap) {
                let fixture = Fixture::new().await;
                fixture.golden("gold", PARENT).await;
                let (mut content, child) =
                    child(&fixture, "child", layering, (size, overlap)).await;
                let what = format!("{layering:?}, {size} bytes, {overlap} seen, {at}");
                assert!(read_all(&child).await == content, "at first: {what}");
                let before = content.clone();
                child.snapshot(snapshot_name("before"), false).await.unwrap();
                change(&child, &mut content, at).await;
                assert!(read_all(&child).await == content, "{what}");
                child.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
                assert!(read_all(&child).await == content, "flattened: {what}");
                let gold = fixture.catalog.find(&image_name("gold")).await.unwrap();
                admin::remove(&fixture.pools, &fixture.catalog, &gold.id).await.unwrap();
                child.close().await.unwrap();
                let child = fixture.open("child").await;
                assert!(read_all(&child).await == content, "opened anew: {what}");
                let frozen = fixture.open_snapshot("child", "before").await;
                assert!(read_all(&frozen).await == before, "its snapshot: {what}");
            }
        }
    }
}

#[tokio::test]
async fn writes_at_and_past_the_overlap_land_and_bring_nothing_of_the_parent() {
    each_case(async |child, content, at| {
        let data = pattern(at, 3);
        write(child, at.offset(), &data).await.unwrap();
        content[range(at)].copy_from_slice(&data);
    })
    .await;
}

#[tokio::test]
async fn zeroes_at_and_past_the_overlap_hide_the_parent() {
    each_case(async |child, content, at| {
        child.write_zeroes(at, ZeroOptions::default()).await.unwrap();
        content[range(at)].fill(0);
    })
    .await;
}

#[tokio::test]
async fn what_is_given_back_to_the_parent_past_the_overlap_reads_zeros() {
    each_case(async |child, content, _| {
        let all = Extent::new(0, child.size());
        write(child, 0, &pattern(all, 5)).await.unwrap();
        child.discard(all, DiscardPolicy::Inherit, false).await.unwrap();
        // What it showed at first, which is what it shows again.
        assert!(read_all(child).await == *content);
    })
    .await;
}

#[tokio::test]
async fn a_grandchild_sees_no_more_than_its_parent_does() {
    for layering in [Layering::Sparse, Layering::CopyUp] {
        for (size, overlap) in CASES {
            let fixture = Fixture::new().await;
            fixture.golden("gold", PARENT).await;
            let (mut content, parent) = child(&fixture, "parent", layering, (size, overlap)).await;
            parent.snapshot(snapshot_name("s"), false).await.unwrap();
            fixture.clone("parent", "s", "child", mode(layering)).await;
            let child = fixture.open("child").await;
            assert!(read_all(&child).await == content, "{size} bytes, {overlap} seen");
            let at = Extent::new(overlap.saturating_sub(10), 20).clip(size);
            let data = pattern(at, 3);
            write(&child, at.offset(), &data).await.unwrap();
            content[range(at)].copy_from_slice(&data);
            parent.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
            child.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
            assert!(read_all(&child).await == content, "{size} bytes, {overlap} seen");
        }
    }
}
