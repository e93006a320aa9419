//! Who may write, seen from two catalogs on one pool, as two processes have it.

use std::time::Duration;

use vellum_core::{Extent, State};
use vellum_engine::{Catalog, Content, ErrorKind, Fill, Guarded, Happened, Head, Ownership, Part};

use crate::fixture::{
    Home, byte, clone, image, kind, read, snapshot, snapshot_of, write, write_blocks,
};

#[tokio::test]
async fn an_owner_keeps_owners_and_readers_of_the_head_out_everywhere() {
    let home = Home::new();
    let (here, there) = (home.pool().await, home.pool().await);
    let record = image(&here, "a").await;
    let head = here.own(&record.id).await.unwrap();
    for pool in [&here, &there] {
        assert_eq!(kind(pool.own(&record.id).await), ErrorKind::InUse);
        assert_eq!(kind(pool.read_head(&record.id).await), ErrorKind::InUse);
        assert_eq!(kind(pool.remove(&record.id, record.version).await), ErrorKind::InUse);
    }
    head.close().await.unwrap();
    there.own(&record.id).await.unwrap();
}

#[tokio::test]
async fn readers_of_a_head_share_it_and_keep_owners_out_until_the_last_is_gone() {
    let home = Home::new();
    let (here, there) = (home.pool().await, home.pool().await);
    let record = image(&here, "a").await;
    let readers = [
        here.read_head(&record.id).await.unwrap(),
        here.read_head(&record.id).await.unwrap(),
        there.read_head(&record.id).await.unwrap(),
    ];
    for reader in readers {
        assert_eq!(kind(here.own(&record.id).await), ErrorKind::InUse);
        assert_eq!(kind(there.own(&record.id).await), ErrorKind::InUse);
        drop(reader);
    }
    here.own(&record.id).await.unwrap();
}

#[tokio::test]
async fn a_head_dropped_with_its_layer_still_read_can_be_owned_at_once_and_loses_nothing() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    for round in 0..10_u8 {
        let head = pool.own(&record.id).await.unwrap();
        if round > 0 {
            assert_eq!(byte(head.layer(), 3).await, b'a' + round - 1);
        }
        write_blocks(&head, 3, 1, b'a' + round).await;
        let layer = head.layer().clone();
        drop(head);
        let next = home.pool().await.own(&record.id).await.unwrap();
        assert_eq!(byte(next.layer(), 3).await, b'a' + round);
        assert_eq!(byte(&layer, 3).await, b'a' + round);
    }
}

#[tokio::test]
async fn a_dropped_head_whose_layer_is_still_read_syncs_nothing_behind_its_successors_back() {
    let home = Home::new();
    let options = vellum_local::StoreOptions {
        sync_interval: Duration::from_millis(50),
        ..vellum_local::StoreOptions::default()
    };
    let options = vellum_local::OpenOptions {
        store: options,
        mode: vellum_local::Mode::CreateIfMissing,
        ..Default::default()
    };
    let disk = vellum_disk::RealDisk::default();
    let pool = vellum_local::LocalCatalog::open(disk, home.path("pool"), options).await.unwrap();
    let record = image(&pool, "a").await;
    let old = pool.own(&record.id).await.unwrap();
    write_blocks(&old, 0, 1, b'o').await;
    let layer = old.layer().clone();
    drop(old);
    let new = pool.own(&record.id).await.unwrap();
    write_blocks(&new, 1, 1, b'n').await;
    new.close().await.unwrap();
    // The old head's timer has run out by now.
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(layer);
    let last = home.pool().await.read_head(&record.id).await.unwrap();
    assert_eq!((byte(&last, 0).await, byte(&last, 1).await), (b'o', b'n'));
}

#[tokio::test]
async fn a_closed_head_answers_sealed_and_can_be_read() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    let head = pool.own(&record.id).await.unwrap();
    write_blocks(&head, 0, 1, b'x').await;
    head.clone().close().await.unwrap();
    assert_eq!(head.ownership(), Ownership::Lost);
    assert_eq!(write(&head, 0, b"late").await.unwrap(), Guarded::Sealed);
    assert_eq!(byte(head.layer(), 0).await, b'x');
    head.sync().await.unwrap();
    head.close().await.unwrap();
}

#[tokio::test]
async fn the_sealed_layer_of_an_image_in_use_is_filled_by_one_at_a_time_while_others_read_it() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    let (_head, record) = snapshot(pool.own(&record.id).await.unwrap(), "s", false).await;
    let sealed = &record.snapshots[0].revision;
    let reader = pool.layer(&record.id, sealed).await.unwrap();
    let filler = pool.filler(&record.id, sealed).await.unwrap();
    for other in [&pool, &home.pool().await] {
        assert_eq!(kind(other.filler(&record.id, sealed).await), ErrorKind::InUse);
    }
    assert_eq!(write(&filler, 0, &[0; 4096]).await.unwrap(), Guarded::Sealed);
    fill(&filler, 5).await;
    assert_eq!(byte(&reader, 5).await, b'f', "readers see what is filled");
    filler.close().await.unwrap();
    pool.filler(&record.id, sealed).await.unwrap();
}

async fn fill(filler: &crate::fixture::Owner, block: u64) {
    let at = Extent::new(block * 4096, 4096);
    let content = Content::Data(vec![b'f'; 4096].into());
    let fill = Fill { parts: vec![Part { at, content }], then: None };
    assert_eq!(filler.fill(fill).await.unwrap(), Guarded::Done);
}

#[tokio::test]
async fn a_sealed_layer_opened_before_another_process_filled_it_is_opened_anew() {
    let home = Home::new();
    let (here, there) = (home.pool().await, home.pool().await);
    let record = image(&here, "a").await;
    let record = snapshot_of(&here, &record, "s").await;
    let sealed = &record.snapshots[0].revision;
    for block in [1, 2] {
        let before = here.layer(&record.id, sealed).await.unwrap();
        assert_eq!(byte(&before, block).await, b'?');
        let filler = there.filler(&record.id, sealed).await.unwrap();
        fill(&filler, block).await;
        filler.close().await.unwrap();
        let after = here.layer(&record.id, sealed).await.unwrap();
        assert_eq!((byte(&before, block).await, byte(&after, block).await), (b'?', b'f'));
    }
    let filler = here.filler(&record.id, sealed).await.unwrap();
    fill(&filler, 3).await;
    filler.close().await.unwrap();
    let last = home.pool().await.layer(&record.id, sealed).await.unwrap();
    let (_, runs) = read(&last, Extent::new(4096, 3 * 4096)).await;
    assert!(runs.all(State::Data), "{runs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_open_a_layer_at_once_share_it() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    let record = snapshot_of(&pool, &record, "s").await;
    let sealed = record.snapshots[0].revision.clone();
    let open = |n: usize| {
        let (pool, id, sealed) = (pool.clone(), record.id.clone(), sealed.clone());
        tokio::spawn(async move {
            if n == 7 { None } else { Some(pool.layer(&id, &sealed).await.unwrap()) }
        })
    };
    let tasks: Vec<_> = (0..16).map(open).collect();
    let filler = pool.filler(&record.id, &sealed).await.unwrap();
    let mut readers = Vec::new();
    for task in tasks {
        readers.extend(task.await.unwrap());
    }
    fill(&filler, 9).await;
    for reader in readers {
        assert_eq!(byte(&reader, 9).await, b'f');
    }
}

#[tokio::test]
async fn the_head_is_no_sealed_revision() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    assert_eq!(kind(pool.layer(&record.id, &record.head).await), ErrorKind::Invalid);
    assert_eq!(kind(pool.filler(&record.id, &record.head).await), ErrorKind::Invalid);
    let sealed = snapshot_of(&pool, &record, "s").await;
    let child = clone(&pool, &sealed, "child").await.unwrap();
    let foreign = pool.layer(&child.id, &record.head).await;
    assert_eq!(kind(foreign), ErrorKind::NotFound, "the revision of another image");
}

#[test]
fn a_sync_whose_runtime_has_ended_is_an_error_each_time_and_never_a_wait() {
    let home = Home::new();
    let new = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let runtime = new();
    let head = runtime.block_on(async {
        let pool = home.pool().await;
        let head = pool.own(&image(&pool, "a").await.id).await.unwrap();
        write_blocks(&head, 0, 1, b'x').await;
        head
    });
    drop(runtime);
    let runtime = new();
    runtime.block_on(async {
        for _ in 0..3 {
            let sync = tokio::time::timeout(Duration::from_secs(20), head.sync());
            let error = sync.await.expect("it waits for what never comes").unwrap_err();
            assert_eq!(error.happened(), Happened::MaybeDone);
        }
        drop(head);
    });
}
