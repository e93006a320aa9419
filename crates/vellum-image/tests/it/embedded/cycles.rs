//! A chain that leads back to itself through two pools. No call of ours makes one; a catalog that was brought back from a backup,
//! or was changed by hand, may hold it.

use vellum_engine::{Catalog, Repair, Severity};
use vellum_image::image::Open;
use vellum_image::{CloneOptions, CreateOptions, Image, ImageOptions, Pools, admin, check};

use super::fixture::{image_name, snapshot_name};
use super::place::{Base, Place};

const SIZE: u64 = 1 << 20;

async fn freeze(pools: &Pools<Base>, catalog: &Base, name: &str) {
    let id = catalog.find(&image_name(name)).await.unwrap().id;
    let image = Image::open(pools, catalog, &id, Open::Own, ImageOptions::default()).await.unwrap();
    image.snapshot(snapshot_name("s"), false).await.unwrap();
    image.close().await.unwrap();
}

#[tokio::test]
async fn a_chain_that_leads_back_to_itself_through_two_pools_ends_with_an_error() {
    let place = Place::new();
    let (one, two) = (place.open("one").await, place.open("two").await);
    let pools = Pools::default();
    pools.add(one.clone());
    pools.add(two.clone());
    admin::create(&one, image_name("a"), SIZE, CreateOptions::default()).await.unwrap();
    freeze(&pools, &one, "a").await;
    let a = one.find(&image_name("a")).await.unwrap();
    let snapshot = a.snapshot(&snapshot_name("s")).unwrap();
    let options = CloneOptions::default();
    admin::clone(&pools, &one, &a, snapshot, &two, image_name("b"), options).await.unwrap();
    freeze(&pools, &two, "b").await;
    let b = two.find(&image_name("b")).await.unwrap();
    // The snapshot of a becomes a child of b's, which is its own child.
    let layer = i64::from_str_radix(snapshot.revision.as_str(), 16).unwrap();
    let above = b.snapshot(&snapshot_name("s")).unwrap().revision.clone();
    let database = |pool| rusqlite::Connection::open(place.path(pool).join("pool.sqlite")).unwrap();
    let listed = i64::from_str_radix(above.as_str(), 16).unwrap();
    database("two")
        .execute("INSERT INTO children VALUES (?1, ?2, ?3)", (listed, one.pool().0, a.id.as_str()))
        .unwrap();
    let changed = database("one")
        .execute(
            "UPDATE layers SET below = 'parent', overlap = size, parent_pool = ?1, parent_image = ?2, parent_revision = ?3
             WHERE id = ?4",
            (two.pool().0, b.id.as_str(), above.as_str(), layer),
        )
        .unwrap();
    assert_eq!(changed, 1);
    for (catalog, id) in [(&one, &a.id), (&two, &b.id)] {
        let opened = Image::open(&pools, catalog, id, Open::Own, ImageOptions::default()).await;
        let error = opened.unwrap_err();
        assert!(error.chain().contains("itself"), "{}", error.chain());
        let found = check::check(&pools, catalog, Some(id), Repair::No).await.unwrap();
        assert!(found.iter().any(|found| found.severity == Severity::Damage), "{found:?}");
    }
}
