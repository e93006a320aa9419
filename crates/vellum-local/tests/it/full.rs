//! A full disk: what fails, what goes on, and that it can be emptied.

use std::io::Write;

use vellum_engine::{Catalog, ErrorKind, Head};
use vellum_local::Mode;

use crate::fixture::{Home, MIB, Mount, byte, kind, new_image, open, write, write_blocks};

#[tokio::test]
async fn a_full_disk_fails_writes_harms_nothing_and_can_be_emptied() {
    let home = Home::new();
    let Some(mount) = Mount::new(&home, "disk", &["-t", "tmpfs", "-o", "size=160m", "tmpfs"])
    else {
        return;
    };
    let pool = open(&mount.path.join("pool"), Mode::CreateIfMissing).await.unwrap();
    assert!(pool.path().join("reserve").exists());
    let big = pool.create(new_image("big", 64 * MIB)).await.unwrap();
    let head = pool.own(&big.id).await.unwrap();
    write_blocks(&head, 0, 256, b'b').await;
    let small = pool.create(new_image("small", MIB)).await.unwrap();
    // Somebody else fills the disk to the last byte.
    let mut filler = std::fs::File::create(mount.path.join("filler")).unwrap();
    let chunk = vec![1; 4096];
    while filler.write_all(&chunk).is_ok() {}

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
    drop(filler);
    std::fs::remove_file(mount.path.join("filler")).unwrap();
    drop(pool);
    let pool = open(&mount.path.join("pool"), Mode::Existing).await.unwrap();
    assert!(pool.path().join("reserve").exists());
}
