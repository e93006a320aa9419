//! A full disk: what fails, what goes on, and that it can be emptied.

use libtest_mimic::Trial;
use vellum_engine::{Catalog, ErrorKind, Head};
use vellum_local::Mode;
use vellum_testkit::mounted::{Kind, Mounted};

use crate::fixture::{MIB, byte, kind, new_image, open, write, write_blocks};
use crate::on;

pub fn trials() -> Vec<Trial> {
    let disks = [(Kind::Tmpfs, 160), (Kind::Ext4, 200), (Kind::Xfs, 320)];
    let trial = |(kind, size)| {
        on(kind, size * MIB, "a_full_disk_fails_writes_harms_nothing_and_can_be_emptied", |disk| {
            Box::pin(a_full_disk_fails_writes_harms_nothing_and_can_be_emptied(disk))
        })
    };
    disks.map(trial).into()
}

async fn a_full_disk_fails_writes_harms_nothing_and_can_be_emptied(disk: Mounted) {
    let pool = open(&disk.path().join("pool"), Mode::CreateIfMissing).await.unwrap();
    assert!(pool.path().join("reserve").exists());
    let big = pool.create(new_image("big", 64 * MIB)).await.unwrap();
    let head = pool.own(&big.id).await.unwrap();
    write_blocks(&head, 0, 256, b'b').await;
    let small = pool.create(new_image("small", MIB)).await.unwrap();
    // Somebody else fills the disk to the last byte.
    disk.fill().unwrap();

    let error = write(&head, 32 * MIB, &vec![b'n'; 1 << 20]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert_eq!(byte(head.layer(), 0).await, b'b');
    write_blocks(&head, 0, 1, b'c').await;
    head.sync().await.unwrap();
    assert_eq!(byte(head.layer(), 0).await, b'c');
    head.close().await.unwrap();

    for n in 0.. {
        // The catalog still has room in the blocks of its log; sooner or later it has not.
        match pool.create(new_image(&format!("image-{n}"), MIB)).await {
            Ok(_) if n < 100_000 => {}
            result => {
                assert!(matches!(kind(result), ErrorKind::NoSpace | ErrorKind::Io));
                break;
            }
        }
    }
    pool.remove(&big.id, big.version).await.unwrap();
    assert!(!pool.path().join("layers").join(big.head.as_str()).exists());
    let head = pool.own(&small.id).await.unwrap();
    write_blocks(&head, 0, 4, b's').await;
    head.close().await.unwrap();
    // With room enough there is a reserve for the next time.
    disk.empty().unwrap();
    drop(pool);
    let pool = open(&disk.path().join("pool"), Mode::Existing).await.unwrap();
    assert!(pool.path().join("reserve").exists());
}
