//! How many pieces a file is in after its blocks were written in no order.

use libtest_mimic::Trial;
use vellum_engine::{Catalog, Head};
use vellum_local::Mode;
use vellum_testkit::mounted::{Kind, Mounted};
use vellum_testkit::tools;

use crate::fixture::{MIB, new_image, open, write_blocks};
use crate::on;

pub fn trials() -> Vec<Trial> {
    let name = "blocks_written_in_no_order_are_in_extents_of_64_kib_or_more";
    vec![on(Kind::Xfs, 320 * MIB, name, |disk| {
        Box::pin(blocks_written_in_no_order_are_in_extents_of_64_kib_or_more(disk))
    })]
}

async fn blocks_written_in_no_order_are_in_extents_of_64_kib_or_more(disk: Mounted) {
    let pool = open(&disk.path().join("pool"), Mode::CreateIfMissing).await.unwrap();
    let record = pool.create(new_image("image", 32 * MIB)).await.unwrap();
    let head = pool.own(&record.id).await.unwrap();
    let blocks = 32 * MIB / 4096;
    // An odd multiplier visits each block once.
    for number in 0..blocks {
        write_blocks(&head, number * 3_571 % blocks, 1, b'x').await;
        if number % 512 == 0 {
            head.sync().await.unwrap();
        }
    }
    head.close().await.unwrap();
    let data = pool.path().join("layers").join(record.head.as_str()).join("data.0");
    let said = tools::ok("filefrag", &[&data]).unwrap();
    let extents: u64 = said.split_whitespace().rev().nth(2).unwrap().parse().unwrap();
    assert!((1..=32 * MIB / (64 << 10)).contains(&extents), "{blocks} blocks: {said}");
}
