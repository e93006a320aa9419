//! Reads beside a writer of the same file, which some file systems make wait, and others do not keep apart.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use libtest_mimic::Trial;
use vellum_core::{Extent, Runs};
use vellum_engine::{Catalog, Head, Layer, TryRead};
use vellum_local::Mode;
use vellum_testkit::mounted::{Kind, Mounted};

use crate::fixture::{MIB, new_image, open, read, write_blocks};
use crate::on;

pub fn trials() -> Vec<Trial> {
    let disks = [(Kind::Tmpfs, 160), (Kind::Ext4, 200), (Kind::Xfs, 320), (Kind::Btrfs, 320)];
    let trial = |(kind, size)| {
        let name = "what_is_read_beside_a_writer_is_right_whether_it_had_to_wait_or_not";
        on(kind, size * MIB, name, |disk| {
            Box::pin(what_is_read_beside_a_writer_is_right_whether_it_had_to_wait_or_not(disk))
        })
    };
    disks.map(trial).into()
}

const READS: u64 = 4000;
const WRITES: u64 = 100;
/// Blocks that are read; as many behind them are written meanwhile.
const BLOCKS: u64 = 256;

async fn what_is_read_beside_a_writer_is_right_whether_it_had_to_wait_or_not(disk: Mounted) {
    let pool = open(&disk.path().join("pool"), Mode::CreateIfMissing).await.unwrap();
    let record = pool.create(new_image("image", 4 * MIB)).await.unwrap();
    let head = pool.own(&record.id).await.unwrap();
    for block in 0..BLOCKS {
        write_blocks(&head, block, 1, b'a' + (block % 26) as u8).await;
    }
    let (over, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let writer = async {
        for number in 0.. {
            write_blocks(&head, BLOCKS + number % BLOCKS, 1, b'x').await;
            written.store(number + 1, Ordering::Relaxed);
            if over.load(Ordering::Relaxed) {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    let reader = async {
        let (mut waited, mut number) = (0_u64, 0);
        // A disk may be slow to take what is new.
        while number < READS || written.load(Ordering::Relaxed) < WRITES {
            let block = number * 3_571 % BLOCKS;
            let (mut bytes, mut runs) = (vec![0; 4096], Runs::new());
            let at = Extent::new(block * 4096, 4096);
            if head.layer().try_read(at, &mut bytes, &mut runs) == TryRead::WouldWait {
                bytes = read(head.layer(), at).await.0;
                waited += 1;
            }
            assert!(bytes == [b'a' + (block % 26) as u8; 4096], "block {block}");
            number += 1;
            tokio::task::yield_now().await;
        }
        over.store(true, Ordering::Relaxed);
        (waited, number)
    };
    let ((waited, reads), ()) = tokio::join!(reader, writer);
    println!("{waited} of {reads} reads had to wait beside {written:?} writes");
    head.close().await.unwrap();
}
