//! What a clone costs.

use std::time::{Duration, Instant};

use vellum_engine::{Catalog, Head, NewImage, NewParent, ParentLink};

use crate::fixture::{Home, Pool, image, new_image, snapshot, snapshot_of};

async fn disk_use(pool: &Pool) -> u64 {
    let output = std::process::Command::new("du").arg("-s").arg("-B1").arg(pool.path()).output();
    let output = String::from_utf8(output.unwrap().stdout).unwrap();
    output.split_whitespace().next().unwrap().parse().unwrap()
}

/// Does something a thousand times, and fails unless the later half costs about what the earlier half did, and little space.
async fn a_thousand_times(pool: &Pool, mut act: impl AsyncFnMut(usize)) {
    let before = disk_use(pool).await;
    let mut times = Vec::new();
    for n in 0..1000 {
        let start = Instant::now();
        act(n).await;
        times.push(start.elapsed());
    }
    let used = disk_use(pool).await - before;
    let (earlier, later) = times.split_at_mut(500);
    let medians = [earlier, later].map(|half| *half.select_nth_unstable(250).1);
    println!("medians of both halves: {medians:?}, {} bytes each", used / 1000);
    assert!(medians[1] < 4 * medians[0], "{medians:?}");
    assert!(used < 1000 * (64 << 10), "{used}");
}

#[tokio::test]
async fn a_thousand_clones_are_rows_and_the_last_costs_what_the_first_did() {
    let home = Home::new();
    let pool = home.pool().await;
    let parent = image(&pool, "parent").await;
    let parent = snapshot_of(&pool, &parent, "s").await;
    a_thousand_times(&pool, async |n| {
        crate::fixture::clone(&pool, &parent, &format!("clone-{n}")).await.unwrap();
    })
    .await;
    assert_eq!(std::fs::read_dir(pool.path().join("layers")).unwrap().count(), 0);
}

#[tokio::test]
async fn the_last_of_a_thousand_clones_with_a_snapshot_each_costs_what_the_first_did() {
    let home = Home::new();
    let pool = home.pool().await;
    let parent = image(&pool, "parent").await;
    let mut head = Some(pool.own(&parent.id).await.unwrap());
    a_thousand_times(&pool, async |n| {
        let name = format!("clone-{n}");
        let (next, record) = snapshot(head.take().unwrap(), &name, true).await;
        head = Some(next);
        crate::fixture::clone(&pool, &record, &name).await.unwrap();
    })
    .await;
    head.unwrap().close().await.unwrap();
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
