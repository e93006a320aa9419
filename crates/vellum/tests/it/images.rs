//! Images that nobody else has open.

use vellum::report::KnownUsage;
use vellum::{ErrorKind, PoolConfig, Vellum};
use vellum_core::Extent;
use vellum_engine::{Catalog as _, ChildRef, ImageId, Layering, Repair};
use vellum_image::image::Open;
use vellum_image::{CloneOptions, DiscardPolicy, MappedKind};

use crate::fixture::{MIB, Place, content, filled, pattern, spec, write};

/// A golden image with a snapshot `s`, and a clone of it.
async fn golden(place: &Place) -> Vellum {
    let vellum = place.user().await;
    filled(&vellum, "gold", &pattern(16 * MIB, 1)).await;
    vellum.create_snapshot(&spec("gold@s")).await.unwrap();
    vellum.clone_image(&spec("gold@s"), &spec("child"), Default::default()).await.unwrap();
    vellum
}

async fn data_of_head(vellum: &Vellum, name: &str) -> u64 {
    let located = vellum.locate(&spec(name)).await.unwrap();
    let usage = vellum.usage(&located).await.unwrap();
    usage.iter().find(|usage| usage.is_head).unwrap().data_bytes
}

#[tokio::test]
async fn parent_and_siblings_read_what_they_read_before() {
    let place = Place::new();
    let vellum = golden(&place).await;
    vellum.clone_image(&spec("gold@s"), &spec("sibling"), Default::default()).await.unwrap();
    for (name, at) in [("child", 3 * MIB + 100), ("gold", 5 * MIB)] {
        let image = vellum.open_image(&spec(name), Open::Own).await.unwrap();
        write(&image, at, &[7; 9000]).await.unwrap();
        image.close().await.unwrap();
    }
    let expect = |at: u64| {
        let mut expect = pattern(16 * MIB, 1);
        expect[at as usize..][..9000].fill(7);
        expect
    };
    assert!(content(&vellum, "child").await == expect(3 * MIB + 100));
    assert!(content(&vellum, "gold").await == expect(5 * MIB));
    assert!(content(&vellum, "gold@s").await == pattern(16 * MIB, 1));
    assert!(content(&vellum, "sibling").await == pattern(16 * MIB, 1));
}

#[tokio::test]
async fn a_write_to_a_clone_stores_a_block_or_in_copy_up_mode_an_object() {
    let place = Place::new();
    let vellum = golden(&place).await;
    let options = CloneOptions { layering: Some(Layering::CopyUp), ..Default::default() };
    vellum.clone_image(&spec("gold@s"), &spec("classic"), options).await.unwrap();
    for (name, stored) in [("child", 4096), ("classic", 4 * MIB)] {
        let image = vellum.open_image(&spec(name), Open::Own).await.unwrap();
        write(&image, 8 * MIB, &[9; 4096]).await.unwrap();
        image.close().await.unwrap();
        assert_eq!(data_of_head(&vellum, name).await, stored, "{name}");
    }
}

#[tokio::test]
async fn parents_in_other_pools_are_found_by_who_opens_the_home_anew() {
    let place = Place::new();
    let vellum = golden(&place).await;
    vellum
        .create_pool(&"far".parse().unwrap(), PoolConfig::Directory(place.file("far")))
        .await
        .unwrap();
    vellum.clone_image(&spec("gold@s"), &spec("far/child"), Default::default()).await.unwrap();
    let vellum = place.user().await;
    assert!(content(&vellum, "far/child").await == pattern(16 * MIB, 1));
    let located = vellum.locate(&spec("far/child")).await.unwrap();
    assert_eq!(vellum.parent_name(&located).await.unwrap().as_deref(), Some("gold@s"));
    let children = place.user().await.children(&spec("gold@s")).await.unwrap();
    let mut names: Vec<String> =
        children.found.iter().map(|child| child.spec().to_string()).collect();
    names.sort();
    assert_eq!(names, ["child", "far/child"]);
    assert_eq!(vellum.remove(&spec("gold")).await.unwrap_err().kind(), ErrorKind::HasChildren);
    vellum.flatten(&spec("far/child"), Default::default(), |_, _| {}).await.unwrap();
    vellum.remove(&spec("child")).await.unwrap();
    vellum.remove(&spec("gold")).await.unwrap();
    assert!(content(&vellum, "far/child").await == pattern(16 * MIB, 1));
}

#[tokio::test]
async fn a_child_whose_pool_is_lost_is_listed_and_can_be_forgotten_and_no_other_can() {
    let place = Place::new();
    let vellum = golden(&place).await;
    let far = "far".parse().unwrap();
    vellum.create_pool(&far, PoolConfig::Directory(place.file("far"))).await.unwrap();
    vellum.clone_image(&spec("gold@s"), &spec("far/child"), Default::default()).await.unwrap();
    let record = vellum.locate(&spec("far/child")).await.unwrap();
    let child = ChildRef { pool: record.catalog.pool(), image: record.record.id.clone() };
    let kind = async |vellum: &Vellum, child: &ChildRef| {
        vellum.forget_child(&spec("gold"), child).await.unwrap_err().kind()
    };
    assert_eq!(kind(&vellum, &child).await, ErrorKind::Invalid, "it can be asked");
    drop((record, vellum));
    std::fs::rename(place.file("far"), place.file("away")).unwrap();
    let vellum = place.user().await;
    for name in ["gold", "gold@s"] {
        let children = vellum.children(&spec(name)).await.unwrap();
        assert_eq!(children.found.len(), 1, "{name}");
        assert_eq!(children.unreachable, std::slice::from_ref(&child), "{name}");
    }
    assert_eq!(kind(&vellum, &child).await, ErrorKind::Invalid, "its pool may come back");
    vellum.forget_pool(&far).await.unwrap();
    let other = ChildRef { image: ImageId::new("00000000000000ab"), ..child.clone() };
    assert_eq!(kind(&vellum, &other).await, ErrorKind::NotFound);
    vellum.forget_child(&spec("gold"), &child).await.unwrap();
    assert_eq!(vellum.children(&spec("gold")).await.unwrap().unreachable, []);
    // It comes back after all: a check enters it again.
    vellum
        .create_pool(&"back".parse().unwrap(), PoolConfig::Directory(place.file("away")))
        .await
        .unwrap();
    vellum.check(None, Repair::Safe).await.unwrap();
    assert_eq!(vellum.children(&spec("gold")).await.unwrap().found.len(), 2);
    std::fs::remove_dir_all(place.file("away")).unwrap();
    let vellum = place.user().await;
    vellum.forget_pool(&"back".parse().unwrap()).await.unwrap();
    vellum.remove(&spec("child")).await.unwrap();
    assert_eq!(vellum.remove(&spec("gold")).await.unwrap_err().kind(), ErrorKind::HasChildren);
    vellum.forget_child(&spec("gold"), &child).await.unwrap();
    vellum.remove(&spec("gold")).await.unwrap();
}

#[tokio::test]
async fn a_clone_of_an_image_takes_a_snapshot_that_goes_with_its_last_child() {
    let place = Place::new();
    let vellum = place.user().await;
    filled(&vellum, "a", &pattern(MIB, 3)).await;
    for child in ["b", "c"] {
        vellum.clone_image(&spec("a"), &spec(child), Default::default()).await.unwrap();
    }
    let snapshots = async || vellum.locate(&spec("a")).await.unwrap().record.snapshots.len();
    assert_eq!(snapshots().await, 2);
    vellum.remove(&spec("b")).await.unwrap();
    vellum.flatten(&spec("c"), Default::default(), |_, _| {}).await.unwrap();
    assert_eq!(snapshots().await, 0);
    vellum.remove(&spec("a")).await.unwrap();
    assert_eq!(content(&vellum, "c").await, pattern(MIB, 3));
}

#[tokio::test]
async fn a_clone_that_fails_leaves_no_snapshot_behind() {
    let place = Place::new();
    let vellum = place.user().await;
    filled(&vellum, "a", &pattern(MIB, 3)).await;
    let error = vellum.clone_image(&spec("a"), &spec("a"), Default::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    let options = CloneOptions { block_size: Some(5000), ..Default::default() };
    let error = vellum.clone_image(&spec("a"), &spec("b"), options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let record = vellum.locate(&spec("a")).await.unwrap().record;
    assert!(record.snapshots.is_empty());
    assert_eq!(record.revisions.len(), 1, "nor a layer");
}

#[tokio::test]
async fn a_parent_that_is_gone_is_unknown_and_no_error() {
    let place = Place::new();
    let vellum = golden(&place).await;
    let child = vellum.locate(&spec("child")).await.unwrap();
    vellum.flatten(&spec("child"), Default::default(), |_, _| {}).await.unwrap();
    vellum.remove(&spec("gold")).await.unwrap();
    let parent = vellum.parent_name(&child).await.unwrap().unwrap();
    assert!(parent.contains("unknown"), "{parent}");
}

#[tokio::test]
async fn what_was_located_is_opened_changed_and_removed_whatever_it_is_called_by_now() {
    let place = Place::new();
    let vellum = place.user().await;
    filled(&vellum, "a", &pattern(MIB, 1)).await;
    let located = vellum.locate(&spec("a")).await.unwrap();
    vellum.rename(&spec("a"), &"b".parse().unwrap()).await.unwrap();
    filled(&vellum, "a", &pattern(MIB, 2)).await;
    let image = vellum.open_located(&located, Open::Own).await.unwrap();
    assert_eq!(image.id(), &located.record.id);
    image.close().await.unwrap();
    assert_eq!(vellum.map(&located).await.unwrap().len(), 1);
    vellum.rename_located(&located, &"c".parse().unwrap()).await.unwrap();
    vellum.remove_located(&located).await.unwrap();
    assert_eq!(vellum.locate(&spec("c")).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(content(&vellum, "a").await == pattern(MIB, 2));
}

#[tokio::test]
async fn an_unfinished_image_gets_its_name_at_the_end() {
    let place = Place::new();
    let vellum = place.user().await;
    let begin =
        async |name: &str| vellum.create_unfinished(&spec(name), MIB, Default::default()).await;
    let names = async || {
        let images = vellum.images(None).await.unwrap();
        images.iter().map(|image| image.record.name.to_string()).collect::<Vec<_>>()
    };
    let (first, second) = (begin("a").await.unwrap(), begin("a").await.unwrap());
    assert!(names().await.iter().all(|name| name.starts_with("a.importing-")));
    vellum.complete(&first).await.unwrap();
    assert_eq!(vellum.complete(&second).await.unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(begin("a").await.unwrap_err().kind(), ErrorKind::Exists);
    vellum.remove_located(&second.located).await.unwrap();
    assert_eq!(names().await, ["a"]);
    assert_eq!(vellum.locate(&spec("a")).await.unwrap().record.id, first.located.record.id);
}

#[tokio::test]
async fn the_usage_of_an_image_in_use_by_a_command_is_said_to_be_unknown() {
    let place = Place::new();
    let vellum = golden(&place).await;
    let image = vellum.open_image(&spec("gold"), Open::Own).await.unwrap();
    let gold = vellum.locate(&spec("gold")).await.unwrap();
    let other = place.user().await;
    let usage = other.usage_as_known(&other.locate(&spec("gold")).await.unwrap()).await.unwrap();
    let [KnownUsage::Known(snapshot), KnownUsage::InUse { size }] = &usage[..] else {
        panic!("{usage:?}")
    };
    assert_eq!((snapshot.data_bytes, *size), (16 * MIB, 16 * MIB));
    assert_eq!(other.usage(&gold).await.unwrap_err().kind(), ErrorKind::InUse);
    image.close().await.unwrap();
    vellum.remove(&spec("child")).await.unwrap();
    vellum.remove(&spec("gold")).await.unwrap();
    assert_eq!(other.usage_as_known(&gold).await.unwrap(), []);
}

#[tokio::test]
async fn specs_that_name_too_much_or_too_little_are_refused() {
    let place = Place::new();
    let vellum = golden(&place).await;
    let kinds = [
        vellum.create_snapshot(&spec("gold")).await.map_err(|error| error.kind()),
        vellum
            .create(&spec("x@s"), MIB, Default::default())
            .await
            .map(|_| ())
            .map_err(|error| error.kind()),
        vellum.remove(&spec("gold@s")).await.map_err(|error| error.kind()),
        vellum
            .flatten(&spec("gold@s"), Default::default(), |_, _| {})
            .await
            .map_err(|error| error.kind()),
        vellum.rename(&spec("gold@s"), &"x".parse().unwrap()).await.map_err(|error| error.kind()),
        vellum
            .open_image(&spec("gold@s"), Open::Own)
            .await
            .map(|_| ())
            .map_err(|error| error.kind()),
    ];
    assert_eq!(kinds, [Err(ErrorKind::Invalid); 6]);
    assert_eq!(
        vellum.create_snapshot(&spec("gold@s")).await.unwrap_err().kind(),
        ErrorKind::Exists
    );
    assert_eq!(
        vellum.remove_snapshot(&spec("gold@s")).await.unwrap_err().kind(),
        ErrorKind::HasChildren
    );
    assert_eq!(
        vellum.remove_snapshot(&spec("gold@x")).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[tokio::test]
async fn a_discard_reads_as_zeros_or_as_the_parent() {
    let place = Place::new();
    let vellum = golden(&place).await;
    let at = Extent::new(4 * MIB, 4 * MIB);
    vellum.discard(&spec("child"), at, DiscardPolicy::Zero).await.unwrap();
    let mut expect = pattern(16 * MIB, 1);
    expect[4 << 20..8 << 20].fill(0);
    assert!(content(&vellum, "child").await == expect);
    vellum.discard(&spec("child"), at, DiscardPolicy::Inherit).await.unwrap();
    assert!(content(&vellum, "child").await == pattern(16 * MIB, 1));
    vellum.discard(&spec("child"), Extent::new(10, 4000), DiscardPolicy::Zero).await.unwrap();
    assert!(content(&vellum, "child").await == pattern(16 * MIB, 1));
    assert_eq!(data_of_head(&vellum, "child").await, 0);
    let beyond = Extent::new(16 * MIB, 1);
    let error = vellum.discard(&spec("child"), beyond, DiscardPolicy::Zero).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn the_map_and_the_usage_say_which_layer_defines_what() {
    let place = Place::new();
    let vellum = golden(&place).await;
    let image = vellum.open_image(&spec("child"), Open::Own).await.unwrap();
    write(&image, 4096, &[5; 8192]).await.unwrap();
    image.close().await.unwrap();
    vellum.discard(&spec("child"), Extent::new(MIB, MIB), DiscardPolicy::Zero).await.unwrap();
    let child = vellum.locate(&spec("child")).await.unwrap();
    let map = vellum.map(&child).await.unwrap();
    let found: Vec<_> = map
        .iter()
        .map(|entry| (entry.at.offset(), entry.at.length(), entry.kind, entry.depth))
        .collect();
    use MappedKind::{Data, Zero};
    assert_eq!(
        found,
        [
            (0, 4096, Data, 2),
            (4096, 8192, Data, 1),
            (12288, MIB - 12288, Data, 2),
            (MIB, MIB, Zero, 1),
            (2 * MIB, 14 * MIB, Data, 2),
        ]
    );
    let usage = vellum.usage(&child).await.unwrap();
    assert_eq!((usage.len(), usage[0].data_bytes, usage[0].zero_bytes), (1, 8192, MIB));
    assert!(usage[0].stored_bytes >= 8192);
    let gold = vellum.usage(&vellum.locate(&spec("gold")).await.unwrap()).await.unwrap();
    let told: Vec<_> = gold
        .iter()
        .map(|usage| (usage.snapshot.as_deref(), usage.is_head, usage.data_bytes))
        .collect();
    assert_eq!(told, [(Some("s"), false, 16 * MIB), (None, true, 0)]);
}

#[tokio::test]
async fn the_tree_nests_children_below_the_snapshots_they_hang_on() {
    let place = Place::new();
    let vellum = golden(&place).await;
    vellum
        .create_pool(&"far".parse().unwrap(), PoolConfig::Directory(place.file("far")))
        .await
        .unwrap();
    vellum.create_snapshot(&spec("child@t")).await.unwrap();
    vellum
        .clone_image(&spec("child@t"), &spec("far/grandchild"), Default::default())
        .await
        .unwrap();
    vellum.create(&spec("alone"), MIB, Default::default()).await.unwrap();
    let tree = vellum.tree(None).await.unwrap();
    let roots: Vec<String> = tree.iter().map(|node| node.image.spec().to_string()).collect();
    assert_eq!(roots, ["alone", "gold"]);
    let (on, child) = &tree[1].children[0];
    assert_eq!((on.as_deref(), child.image.spec()), (Some("s"), spec("child")));
    let (on, grandchild) = &child.children[0];
    assert_eq!((on.as_deref(), grandchild.image.spec()), (Some("t"), spec("far/grandchild")));
    let below = vellum.tree(Some(&spec("child"))).await.unwrap();
    assert_eq!((below.len(), below[0].children.len()), (1, 1));
}

#[tokio::test]
async fn a_renamed_image_keeps_its_children_and_its_content() {
    let place = Place::new();
    let vellum = golden(&place).await;
    vellum.rename(&spec("gold"), &"silver".parse().unwrap()).await.unwrap();
    assert_eq!(vellum.locate(&spec("gold")).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(content(&vellum, "child").await == pattern(16 * MIB, 1));
    let child = vellum.locate(&spec("child")).await.unwrap();
    assert_eq!(vellum.parent_name(&child).await.unwrap().as_deref(), Some("silver@s"));
    let error = vellum.rename(&spec("silver"), &"child".parse().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
}

#[tokio::test]
async fn flatten_tells_its_progress_and_ends_the_need_for_a_parent() {
    let place = Place::new();
    let vellum = golden(&place).await;
    let told = std::sync::atomic::AtomicU64::new(0);
    vellum
        .flatten(&spec("child"), Default::default(), |done, total| {
            assert!(done <= total);
            told.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        })
        .await
        .unwrap();
    assert!(told.into_inner() > 0);
    vellum.remove(&spec("gold")).await.unwrap();
    assert!(content(&vellum, "child").await == pattern(16 * MIB, 1));
}

#[tokio::test]
async fn an_image_whose_snapshot_went_while_it_was_open_can_be_flattened() {
    let place = Place::new();
    let vellum = golden(&place).await;
    let image = vellum.open_image(&spec("child"), Open::Own).await.unwrap();
    image.snapshot("a".parse().unwrap(), false).await.unwrap();
    image.remove_snapshot(&"a".parse().unwrap()).await.unwrap();
    let job = Default::default();
    crate::fixture::within(image.flatten(Default::default(), &job)).await.unwrap();
    image.close().await.unwrap();
    vellum.remove(&spec("gold")).await.unwrap();
    assert!(content(&vellum, "child").await == pattern(16 * MIB, 1));
}
