//! Homes, pools and the file that lists them.

use vellum::{ErrorKind, PoolConfig};
use vellum_core::PoolName;

use crate::fixture::{MIB, Place, content, filled, pattern, spec};

fn pool(name: &str) -> PoolName {
    name.parse().unwrap()
}

#[tokio::test]
async fn the_default_pool_is_made_at_its_first_use() {
    let place = Place::new();
    let vellum = place.user().await;
    assert!(vellum.images(None).await.unwrap().is_empty());
    vellum.create(&spec("a"), MIB, Default::default()).await.unwrap();
    assert!(place.home().join("pools/default/pool.sqlite").exists());
    assert_eq!(place.user().await.locate(&spec("default/a")).await.unwrap().spec(), spec("a"));
}

#[tokio::test]
async fn a_missing_image_is_named_with_its_pool_and_its_home() {
    let place = Place::new();
    let vellum = place.user().await;
    let error = vellum.locate(&spec("nothing")).await.unwrap_err();
    let home = place.home().display().to_string();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.chain().contains("nothing") && error.chain().contains("default"), "{error:?}");
    assert!(error.chain().contains(&home), "{error:?}");
    let error = vellum.locate(&spec("nowhere/nothing")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.chain().contains("nowhere") && error.chain().contains(&home), "{error:?}");
}

#[tokio::test]
async fn a_pool_elsewhere_is_known_to_who_opens_the_home_later() {
    let place = Place::new();
    place
        .user()
        .await
        .create_pool(&pool("fast"), PoolConfig::Directory(place.file("fast")))
        .await
        .unwrap();
    let later = place.user().await;
    later.create(&spec("fast/a"), MIB, Default::default()).await.unwrap();
    assert_eq!(later.locate(&spec("fast/a")).await.unwrap().spec().to_string(), "fast/a");
    let names: Vec<String> =
        later.pools().unwrap().into_iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["default", "fast"]);
    let error = later
        .create_pool(&pool("fast"), PoolConfig::Directory(place.file("other")))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
}

#[tokio::test]
async fn a_pool_made_by_another_process_is_found_without_opening_the_home_anew() {
    let place = Place::new();
    let (first, second) = (place.user().await, place.user().await);
    assert_eq!(first.locate(&spec("late/a")).await.unwrap_err().kind(), ErrorKind::NotFound);
    second.create_pool(&pool("late"), PoolConfig::Directory(place.file("late"))).await.unwrap();
    second.create(&spec("late/a"), MIB, Default::default()).await.unwrap();
    first.locate(&spec("late/a")).await.unwrap();
}

#[tokio::test]
async fn a_forgotten_pool_keeps_its_images_and_can_be_made_known_again() {
    let place = Place::new();
    let vellum = place.user().await;
    vellum.create_pool(&pool("slow"), PoolConfig::Directory(place.file("slow"))).await.unwrap();
    filled(&vellum, "slow/a", &pattern(MIB, 1)).await;
    vellum.forget_pool(&pool("slow")).await.unwrap();
    assert_eq!(vellum.locate(&spec("slow/a")).await.unwrap_err().kind(), ErrorKind::NotFound);
    vellum.create_pool(&pool("again"), PoolConfig::Directory(place.file("slow"))).await.unwrap();
    assert_eq!(content(&vellum, "again/a").await, pattern(MIB, 1));
}

#[tokio::test]
async fn a_pool_is_not_made_known_twice_by_whatever_path() {
    let place = Place::new();
    let vellum = place.user().await;
    let path = place.file("here");
    vellum.create_pool(&pool("here"), PoolConfig::Directory(path.clone())).await.unwrap();
    std::fs::create_dir(place.file("beside")).unwrap();
    std::os::unix::fs::symlink(&path, place.file("link")).unwrap();
    for other in ["here", "link", "beside/../here", "beside/../link"] {
        let error = vellum
            .create_pool(&pool("again"), PoolConfig::Directory(place.file(other)))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exists, "{other}");
        assert!(error.to_string().contains("pool here"), "{error}");
    }
    assert_eq!(vellum.pools().unwrap().len(), 2);
}

#[tokio::test]
async fn a_pool_that_cannot_be_opened_does_not_stand_in_the_way_of_others() {
    let place = Place::new();
    let vellum = place.user().await;
    vellum.create_pool(&pool("gone"), PoolConfig::Directory(place.file("gone"))).await.unwrap();
    filled(&vellum, "a", &pattern(MIB, 2)).await;
    std::fs::remove_dir_all(place.file("gone")).unwrap();
    let vellum = place.user().await;
    vellum.create_snapshot(&spec("a@s")).await.unwrap();
    vellum.clone_image(&spec("a@s"), &spec("b"), Default::default()).await.unwrap();
    assert_eq!(content(&vellum, "b").await, pattern(MIB, 2));
    assert_eq!(vellum.images(None).await.unwrap().len(), 2);
    assert_eq!(vellum.closed_pools().await, [pool("gone")]);
    assert_eq!(vellum.locate(&spec("gone/x")).await.unwrap_err().kind(), ErrorKind::NotFound);
    vellum.forget_pool(&pool("gone")).await.unwrap();
    assert_eq!(vellum.closed_pools().await, []);
}

#[tokio::test]
async fn a_default_pool_that_was_put_elsewhere_and_is_not_there_is_missed_and_not_made_anew() {
    let place = Place::new();
    let elsewhere = place.file("elsewhere");
    place
        .user()
        .await
        .create_pool(&pool("default"), PoolConfig::Directory(elsewhere.clone()))
        .await
        .unwrap();
    std::fs::rename(&elsewhere, place.file("unmounted")).unwrap();
    let vellum = place.user().await;
    assert!(vellum.images(None).await.unwrap().is_empty());
    assert_eq!(vellum.closed_pools().await, [pool("default")]);
    let checked = vellum.check(None, Default::default()).await.unwrap();
    assert!(checked.iter().any(|checked| !checked.could_be_checked), "{checked:?}");
    assert!(vellum.create(&spec("a"), MIB, Default::default()).await.is_err());
    assert!(!elsewhere.exists(), "nothing is made where it was");
}

#[tokio::test]
async fn pools_made_at_the_same_time_are_all_listed() {
    let place = Place::new();
    let vellum = place.user().await;
    let made = (0..12).map(|number| {
        let (vellum, path) = (vellum.clone(), place.file(&format!("p{number}")));
        tokio::spawn(async move {
            vellum.create_pool(&pool(&format!("p{number}")), PoolConfig::Directory(path)).await
        })
    });
    for made in futures::future::join_all(made).await {
        made.unwrap().unwrap();
    }
    assert_eq!(place.user().await.pools().unwrap().len(), 13);
}
