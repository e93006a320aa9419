//! A full disk: what fails, what goes on, and that it can be emptied.

use libtest_mimic::Trial;
use vellum_core::Extent;
use vellum_engine::{Catalog, Durability, ErrorKind, Guarded, Head, Layer, Repair, SetTo};
use vellum_local::Mode;
use vellum_testkit::mounted::{Kind, Mounted};

use crate::fixture::{MIB, kind, new_image, open, read, write, write_blocks};
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
    let other = pool.own(&small.id).await.unwrap();
    write_blocks(&other, 0, 100, b's').await;
    // Somebody else fills the disk to the last byte.
    disk.fill().unwrap();

    let error = write(&head, 32 * MIB, &vec![b'n'; 1 << 20]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    write_blocks(&head, 0, 1, b'c').await;
    head.sync().await.unwrap();
    other.sync().await.unwrap();
    assert_holds(head.layer(), &[(0, 1, b'c'), (1, 256, b'b'), (256, 300, b'?')]).await;
    assert_holds(other.layer(), &[(0, 100, b's'), (100, 256, b'?')]).await;

    // A guest makes room by a discard, and goes on in it.
    let stored = pool.stored_bytes(&big.id, &big.head).await.unwrap();
    let given_up = Extent::new(64 * 4096, 64 * 4096);
    let set = head.set(given_up, SetTo::Zero, Durability::AtSync).await.unwrap();
    assert_eq!(set, Guarded::Done);
    let left = pool.stored_bytes(&big.id, &big.head).await.unwrap();
    assert!(left + given_up.length() <= stored, "{stored} bytes, then {left}");
    write_blocks(&head, 1024, 32, b'n').await;
    head.sync().await.unwrap();
    let held = [(0, 1, b'c'), (1, 64, b'b'), (64, 128, 0), (128, 256, b'b'), (256, 1024, b'?')];
    assert_holds(head.layer(), &held).await;
    assert_holds(head.layer(), &[(1024, 1056, b'n'), (1056, 2048, b'?')]).await;
    head.close().await.unwrap();

    let mut made = 0;
    // The catalog still has room in the blocks of its log; sooner or later it has not.
    let refused = loop {
        match pool.create(new_image(&format!("image-{made}"), MIB)).await {
            Ok(_) => made += 1,
            refused => break kind(refused),
        }
        assert!(made < 100_000);
    };
    assert_eq!(refused, ErrorKind::NoSpace);
    assert_eq!(pool.list(None, 200_000).await.unwrap().len(), made + 2);
    pool.remove(&big.id, big.version).await.unwrap();
    assert!(!pool.path().join("layers").join(big.head.as_str()).exists());
    write_blocks(&other, 98, 4, b't').await;
    assert_holds(other.layer(), &[(0, 98, b's'), (98, 102, b't'), (102, 256, b'?')]).await;
    other.close().await.unwrap();
    // With room enough there is a reserve for the next time.
    disk.empty().unwrap();
    drop(pool);
    let pool = open(&disk.path().join("pool"), Mode::Existing).await.unwrap();
    assert!(pool.path().join("reserve").exists());
    let layer = pool.read_head(&small.id).await.unwrap();
    assert_holds(&layer, &[(0, 98, b's'), (98, 102, b't'), (102, 256, b'?')]).await;
    drop(layer);
    assert_eq!(pool.check(None, Repair::No).await.unwrap(), []);
}

/// Asserts that the blocks from the first number to before the second hold such bytes: `?` where they are inherited.
#[track_caller]
fn assert_holds(layer: &impl Layer, expected: &[(u64, u64, u8)]) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        for &(first, end, expected) in expected {
            let (bytes, _) = read(layer, Extent::new(first * 4096, (end - first) * 4096)).await;
            let other = bytes.iter().position(|byte| *byte != expected);
            assert_eq!(other, None, "{place}: not {:?} from block {first}", char::from(expected));
        }
    }
}
