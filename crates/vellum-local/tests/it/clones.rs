//! What a clone costs.

use std::time::{Duration, Instant};

use vellum_engine::{Catalog, Head, NewImage, NewParent, ParentLink};

use crate::fixture::{Home, Pool, image, new_image, snapshot, snapshot_of};

async fn disk_use(pool: &Pool) -> u64 {
    let output = std::process::Command::new("du").arg("-s").arg("-B1").arg(pool.path()).output();
    let output = String::from_utf8(output.unwrap().stdout).unwrap();
    output.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_thousand_clones_are_rows_and_take_seconds() {
    let home = Home::new();
    let pool = home.pool().await;
    let parent = image(&pool, "parent").await;
    let parent = snapshot_of(&pool, &parent, "s").await;
    let (before, start) = (disk_use(&pool).await, Instant::now());
    for n in 0..1000 {
        crate::fixture::clone(&pool, &parent, &format!("clone-{n}")).await.unwrap();
    }
    let (took, used) = (start.elapsed(), disk_use(&pool).await - before);
    println!("1000 clones: {took:?}, {} bytes each", used / 1000);
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(used < 1000 * (64 << 10), "{used}");
    assert_eq!(std::fs::read_dir(pool.path().join("layers")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_thousand_clones_with_a_snapshot_each_take_seconds_too() {
    let home = Home::new();
    let pool = home.pool().await;
    let parent = image(&pool, "parent").await;
    let mut head = pool.own(&parent.id).await.unwrap();
    let (before, start) = (disk_use(&pool).await, Instant::now());
    for n in 0..1000 {
        let name = format!("clone-{n}");
        let (next, record) = snapshot(head, &name, true).await;
        head = next;
        crate::fixture::clone(&pool, &record, &name).await.unwrap();
    }
    let (took, used) = (start.elapsed(), disk_use(&pool).await - before);
    println!("1000 clones with snapshots: {took:?}, {} bytes each", used / 1000);
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(used < 1000 * (64 << 10), "{used}");
    head.close().await.unwrap();
}

#[tokio::test]
async fn a_clone_of_a_petabyte_costs_what_a_clone_of_a_gibibyte_does() {
    let home = Home::new();
    let pool = home.pool().await;
    let mut times = Vec::new();
    for (name, size) in [("gibibyte", 1_u64 << 30), ("pebibyte", 1 << 50)] {
        let parent = pool.create(new_image(name, size)).await.unwrap();
        let parent = snapshot_of(&pool, &parent, "s").await;
        let revision = parent.snapshots[0].revision.clone();
        let start = Instant::now();
        for n in 0..100 {
            let link = ParentLink {
                pool: pool.pool(),
                image: parent.id.clone(),
                revision: revision.clone(),
            };
            let parent = Some(NewParent { link, overlap: size });
            let new = NewImage { parent, ..new_image(&format!("{name}-{n}"), size) };
            let clone = pool.create(new).await.unwrap();
            pool.own(&clone.id).await.unwrap().close().await.unwrap();
        }
        times.push(start.elapsed());
    }
    println!("100 clones: {times:?}");
    assert!(times[1] < 4 * times[0] + Duration::from_millis(200), "{times:?}");
}
