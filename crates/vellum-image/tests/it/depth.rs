//! Deep chains: how much is asked of how many layers, and that what is remembered of them decides nothing.

use vellum_core::Extent;
use vellum_engine::Catalog;
use vellum_engine::count::Operation;
use vellum_image::{CloneOptions, FlattenOptions, Job};

use super::fixture::*;

const SIZE: u64 = 1 << 20;
const DEPTH: u64 = 16;

/// A chain of clones `i0` to `i16`, of which each but the first wrote one block of its own, and what the last one reads as.
async fn deep(fixture: &Fixture) -> (Vec<u8>, TestImage) {
    let mut content = fixture.golden("i0", SIZE).await;
    for depth in 1..=DEPTH {
        let (parent, name) = (format!("i{}", depth - 1), format!("i{depth}"));
        fixture.clone(&parent, "s", &name, CloneOptions::default()).await;
        let image = fixture.open(&name).await;
        let block = Extent::new(depth * 2 * BLOCK, BLOCK);
        let data = pattern(block, depth);
        write(&image, block.offset(), &data).await.unwrap();
        content[block.offset() as usize..][..BLOCK as usize].copy_from_slice(&data);
        if depth < DEPTH {
            image.snapshot(snapshot_name("s"), false).await.unwrap();
            image.close().await.unwrap();
        } else {
            return (content, image);
        }
    }
    unreachable!("the last one is returned")
}

#[tokio::test]
async fn a_read_through_many_layers_asks_two_of_them_once_it_is_known_which() {
    let fixture = Fixture::new().await;
    let (content, image) = deep(&fixture).await;
    let at = Extent::new(SIZE / 2, BLOCK);
    let length = at.len_usize();
    let expected = &content[at.offset() as usize..][..length];
    assert!(read(&image, at).await == expected, "the first look asks them all");
    fixture.counts.reset();
    let mut buffer = vec![0; length];
    assert!(image.try_read(at, &mut buffer, &mut Default::default()), "no need to wait");
    assert!(buffer == expected);
    let asked = fixture.counts.calls(Operation::TryRead);
    assert!((1..=2).contains(&asked), "the top layer and the one that has the data: {asked}");
}

#[tokio::test]
async fn a_flatten_copies_all_that_is_inherited_whatever_is_remembered_of_the_chain() {
    let fixture = Fixture::new().await;
    let (content, image) = deep(&fixture).await;
    // All of the chain is known now, and then what lies below changes hands: a layer in the middle gets copies of its own.
    assert!(read_all(&image).await == content);
    let other = fixture.another_process().await;
    let middle = other.open("i8").await;
    middle.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
    middle.close().await.unwrap();
    assert!(read_all(&image).await == content);
    image.flatten(FlattenOptions::default(), &Job::default()).await.unwrap();
    assert_eq!(own_data(&image).await, SIZE, "it is copied, and not remembered");
    image.close().await.unwrap();
    for depth in (0..DEPTH).rev() {
        let parent = fixture.catalog.find(&image_name(&format!("i{depth}"))).await.unwrap();
        vellum_image::admin::remove(&fixture.pools, &fixture.catalog, &parent.id).await.unwrap();
    }
    assert!(read_all(&fixture.open(&format!("i{DEPTH}")).await).await == content);
}
