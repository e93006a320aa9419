//! Reads beside a writer of the same file, which some file systems make wait, and others do not keep apart.

use std::sync::atomic::{AtomicBool, Ordering};

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
/// Blocks that are read; as many behind them are written meanwhile.
const BLOCKS: u64 = 256;

async fn what_is_read_beside_a_writer_is_right_whether_it_had_to_wait_or_not(disk: Mounted) {
    let pool = open(&disk.path().join("pool"), Mode::CreateIfMissing).await.unwrap();
    let record = pool.create(new_image("image", 4 * MIB)).await.unwrap();
    let head = pool.own(&record.id).await.unwrap();
    for block in 0..BLOCKS {
        write_blocks(&head, block, 1, b'a' + (block % 26) as u8).await;
    }
    let over = AtomicBool::new(false);
    let writer = async {
        for number in 0.. {
            write_blocks(&head, BLOCKS + number % BLOCKS, 1, b'x').await;
            if over.load(Ordering::Relaxed) {
                return number;
            }
            tokio::task::yield_now().await;
        }
        unreachable!("it goes on until the reader is done")
    };
    let reader = async {
        let mut waited = 0;
        for number in 0..READS {
            let block = number * 3_571 % BLOCKS;
            let (mut bytes, mut runs) = (vec![0; 4096], Runs::new());
            let at = Extent::new(block * 4096, 4096);
            if head.layer().try_read(at, &mut bytes, &mut runs) == TryRead::WouldWait {
                bytes = read(head.layer(), at).await.0;
                waited += 1;
            }
            assert!(bytes == [b'a' + (block % 26) as u8; 4096], "block {block}");
            tokio::task::yield_now().await;
        }
        over.store(true, Ordering::Relaxed);
        waited
    };
    let (waited, written) = tokio::join!(reader, writer);
    println!("{waited} of {READS} reads had to wait beside {written} writes");
    assert!(written > 100, "only {written} writes went on beside the reads");
    head.close().await.unwrap();
}
