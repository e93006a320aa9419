//! Snapshots of objects.

use vellum_rados::{Failure, Objects, SnapContext, SnapId, WriteOp, WriteStep};

use crate::{Place, bytes, bytes_at, write};

crate::cases! {
    a_snapshot_keeps_an_object_with_its_attributes_as_it_was,
    an_object_made_under_no_snapshot_is_in_all_of_them,
    what_a_snapshot_alone_keeps_is_gone_with_it,
}

async fn a_snapshot_keeps_an_object_with_its_attributes_as_it_was<P: Place>(place: P) {
    let pool = place.client().await;
    write(&pool, "kept", WriteOp::new().write(0, "old").set_xattr("v", "1")).await.unwrap();
    let first = pool.create_snapshot().await.unwrap();
    let second = pool.create_snapshot().await.unwrap();
    assert!(second > first);
    let context = SnapContext { newest: second, snapshots: vec![second, first] };
    let change = WriteOp::new().compare_xattr("v", "1").write(0, "new").set_xattr("v", "2");
    pool.write("kept", &context, change).await.unwrap();
    pool.write("kept", &context, WriteOp::new().remove()).await.unwrap();
    assert_eq!(bytes(&pool, "kept", 3).await, Err(Failure::NOT_FOUND));
    for snapshot in [first, second] {
        assert_eq!(bytes_at(&pool, "kept", SnapId(snapshot), 3).await.unwrap(), b"old");
    }
    let ascending = SnapContext { newest: second, snapshots: vec![first, second] };
    let refused = pool.write("kept", &ascending, WriteOp::new().write(0, "x")).await;
    assert_eq!(refused, Err(Failure::INVALID), "the newest comes first");
}

async fn an_object_made_under_no_snapshot_is_in_all_of_them<P: Place>(place: P) {
    let pool = place.client().await;
    let snapshot = pool.create_snapshot().await.unwrap();
    let context = SnapContext { newest: snapshot, snapshots: vec![snapshot] };
    write(&pool, "early", WriteOp::new().create(true).write(0, "parent")).await.unwrap();
    pool.write("early", &context, WriteOp::new().write(0, "child!")).await.unwrap();
    assert_eq!(bytes_at(&pool, "early", SnapId(snapshot), 6).await.unwrap(), b"parent");
    assert_eq!(bytes(&pool, "early", 6).await.unwrap(), b"child!");
    pool.write("late", &context, WriteOp::new().create(true).write(0, "child!")).await.unwrap();
    let before = bytes_at(&pool, "late", SnapId(snapshot), 6).await;
    assert_eq!(before, Err(Failure::NOT_FOUND));
}

async fn what_a_snapshot_alone_keeps_is_gone_with_it<P: Place>(place: P) {
    let pool = place.client().await;
    let full = |data: &'static str| WriteOp::new().then(WriteStep::WriteFull(data.into()));
    write(&pool, "trimmed", full("old")).await.unwrap();
    let snapshot = pool.create_snapshot().await.unwrap();
    let context = SnapContext { newest: snapshot, snapshots: vec![snapshot] };
    pool.write("trimmed", &context, full("new")).await.unwrap();
    pool.remove_snapshot(snapshot).await.unwrap();
    pool.remove_snapshot(snapshot).await.unwrap();
    assert_eq!(bytes(&pool, "trimmed", 3).await.unwrap(), b"new");
    while bytes_at(&pool, "trimmed", SnapId(snapshot), 3).await == Ok(b"old".to_vec()) {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
