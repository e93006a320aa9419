//! Pools that are opened for reading.

use vellum_engine::{Catalog, Change, ErrorKind, Head};
use vellum_local::Mode;

use crate::fixture::{Home, byte, image, kind, new_image, open, snapshot_of, write_blocks};

#[tokio::test]
async fn a_pool_opened_for_reading_refuses_every_change_and_is_not_touched() {
    let home = Home::new();
    let pool = home.pool().await;
    let record = image(&pool, "a").await;
    let head = pool.own(&record.id).await.unwrap();
    write_blocks(&head, 0, 1, b'x').await;
    head.close().await.unwrap();
    let record = snapshot_of(&pool, &record, "s").await;
    let looker = open(&home.path("pool"), Mode::ReadOnly).await.unwrap();
    assert!(looker.is_read_only());
    let sealed = &record.snapshots[0].revision;
    assert_eq!(byte(&looker.layer(&record.id, sealed).await.unwrap(), 0).await, b'x');
    looker.read_head(&record.id).await.unwrap();
    let rename = Change::Rename("b".parse().unwrap());
    let read_only = ErrorKind::ReadOnly;
    assert_eq!(kind(looker.create(new_image("b", 4096)).await), read_only);
    assert_eq!(kind(looker.change(&record.id, record.version, rename).await), read_only);
    assert_eq!(kind(looker.remove(&record.id, record.version).await), read_only);
    assert_eq!(kind(looker.own(&record.id).await), read_only);
    assert_eq!(kind(looker.filler(&record.id, sealed).await), read_only);
    assert_eq!(pool.get(&record.id).await.unwrap(), record);
}
