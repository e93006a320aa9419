//! What opening, the first write and a sync cost, in calls: the same for an image of any size.

use super::{BLOCK, Lab, blocks, facts, seen, write};
use vellum_sim::Call;
use vellum_sim::SimDisk;

/// The calls of the life of an image of this size, and of the one that follows.
async fn calls(size: u64) -> Vec<(Call, String)> {
    let lab = Lab::on(SimDisk::new(1), facts(size, BLOCK)).await;
    let layer = lab.own().await;
    assert_eq!(lab.disk.take_trace(), [], "an image that holds nothing has no files");
    write(&layer, blocks(0, 1), b'a').await;
    write(&layer, blocks(1, 1), b'b').await;
    layer.sync().await.unwrap();
    write(&layer, blocks(2, 1), b'c').await;
    let lab = lab.after_death().await;
    let layer = lab.own().await;
    assert_eq!(seen(&layer, 0, 4).await, b"abc?");
    layer.close().await.unwrap();
    lab.disk.take_trace()
}

#[tokio::test]
async fn an_image_of_a_pebibyte_makes_the_calls_that_one_of_a_gibibyte_makes() {
    let small = calls(1 << 30).await;
    assert!(small.len() > 10);
    assert_eq!(small, calls(1 << 50).await);
}

#[tokio::test]
async fn writes_into_one_page_make_two_calls_each() {
    let lab = Lab::new(1 << 30).await;
    let layer = lab.own().await;
    write(&layer, blocks(0, 1), b'a').await;
    lab.disk.take_trace();
    for block in 1..10 {
        write(&layer, blocks(block, 1), b'a').await;
        let trace = lab.disk.take_trace();
        let files: Vec<_> =
            trace.iter().map(|(call, file)| (*call, &file[file.len() - 4..])).collect();
        assert_eq!(
            files,
            [(Call::Write, "ta.0"), (Call::Write, "ab.0")],
            "the data, then its record"
        );
    }
}
