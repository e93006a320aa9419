//! Images over the Ceph engine: layering above it against plain bytes, in memory and on a real cluster that is started for it; and
//! Ceph's own tools beside it on the latter. Without Ceph's packages those show as ignored, with the reason.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod asked;
mod bitmaps;
mod deaths;
mod interop;
mod programs;
mod protection;
mod resize;
mod strangers;
mod trash;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use vellum_ceph::{CephCatalog, classes};
use vellum_image::Pools;
use vellum_rados::librados::{self, Options, Pool};
use vellum_rados::memory::MemoryPool;
use vellum_testkit::ceph::{Cluster, POOLS, Store};

/// How long a test may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// A test on a real cluster.
type OnACluster = fn(Arc<Cluster>) -> Result<(), Failed>;

fn main() -> std::process::ExitCode {
    let arguments = Arguments::from_args();
    let unavailable = Cluster::unavailable();
    let cluster = (unavailable.is_none() && !arguments.list)
        .then(|| Arc::new(Cluster::start(Store::Memory).unwrap()));
    let mut trials = in_memory_only();
    let on_a_cluster: [(&'static str, OnACluster); 19] = [
        ("an_owner_gives_the_image_to_whom_it_likes", |cluster| {
            run(async move {
                let [here, there] = two(&cluster, "likes").await;
                asked::an_owner_gives_the_image_to_whom_it_likes(here, there).await;
            })
        }),
        ("what_is_asked_of_an_owner_is_decided_and_told", |cluster| {
            run(async move {
                let [here, there] = two(&cluster, "asked").await;
                asked::what_is_asked_is_decided_and_told(here, there).await;
            })
        }),
        ("images_agree_with_plain_bytes", |cluster| run(programs_on(cluster))),
        ("images_agree_with_plain_bytes_through_each_resize", |cluster| {
            run(resize::programs_on(cluster))
        }),
        ("what_was_resized_reads_the_same_to_rbd", |cluster| {
            run(resize::what_was_resized_reads_the_same_to_rbd(cluster))
        }),
        ("a_clone_of_an_image_of_rbd_reads_it_and_is_its_child", |cluster| {
            run(strangers::a_clone_of_an_image_of_rbd_reads_it_and_is_its_child(cluster))
        }),
        ("rbd_and_vellum_have_one_trash", |cluster| {
            run(trash::rbd_and_vellum_have_one_trash(cluster))
        }),
        ("a_clone_reads_a_parent_that_is_in_the_trash", |cluster| {
            run(trash::a_clone_reads_a_parent_that_is_in_the_trash(cluster))
        }),
        ("a_sparse_image_in_the_trash_is_not_removed_by_rbd", |cluster| {
            run(trash::a_sparse_image_in_the_trash_is_not_removed_by_rbd(cluster))
        }),
        ("what_is_open_with_librbd_is_neither_moved_to_the_trash_nor_removed", |cluster| {
            run(trash::what_is_open_with_librbd_is_neither_moved_nor_removed(cluster))
        }),
        ("each_finishes_what_the_other_began_with_the_trash", |cluster| {
            run(trash::each_finishes_what_the_other_began(cluster))
        }),
        ("rbd_and_vellum_protect_the_same", |cluster| {
            run(protection::rbd_and_vellum_protect_the_same(cluster))
        }),
        ("clones_of_the_first_format_that_rbd_made_are_known", |cluster| {
            run(protection::clones_of_the_first_format_that_rbd_made_are_known(cluster))
        }),
        ("clones_of_the_first_format_are_known_to_rbd", |cluster| {
            run(protection::clones_of_the_first_format_are_known_to_rbd(cluster))
        }),
        ("a_user_who_may_only_read_the_parent_has_clones_of_the_first_format", |cluster| {
            run(protection::a_user_who_may_only_read_the_parent_has_clones(cluster))
        }),
        ("images_that_change_hands_read_the_same_to_librbd_and_to_us", |cluster| {
            run(interop::rounds(cluster))
        }),
        ("a_pool_that_was_removed_is_an_error_and_never_zeros", |cluster| {
            run(strangers::a_pool_that_was_removed_is_an_error_and_never_zeros(cluster))
        }),
        ("rbd_lists_a_sparse_image_and_leaves_it_alone", |cluster| {
            run(strangers::rbd_lists_a_sparse_image_and_leaves_it_alone(cluster))
        }),
        ("what_rbd_wrote_is_read_through_all_of_its_snapshots", |cluster| {
            run(strangers::what_rbd_wrote_is_read_through_all_of_its_snapshots(cluster))
        }),
    ];
    trials.extend(on_a_cluster.map(|(name, test)| {
        let (unavailable, cluster) = (unavailable.clone(), cluster.clone());
        Trial::ignorable_test(format!("cluster::{name}"), move || match (unavailable, cluster) {
            (Some(why), _) => Ok(Completion::ignored_with(why)),
            (None, None) => Ok(Completion::ignored_with("nobody asked for it")),
            (None, Some(cluster)) => test(cluster).map(|()| Completion::Completed),
        })
    }));
    let outcome = libtest_mimic::run(&arguments, trials);
    drop(cluster);
    outcome.exit_code()
}

/// What needs no cluster.
fn in_memory_only() -> Vec<Trial> {
    let two = || {
        let cluster = classes::cluster(&POOLS);
        [(); 2].map(|()| cluster.client(POOLS[0], ""))
    };
    let catalogs = move || two().map(|pool| in_memory(pool).1);
    let programs = || {
        run(async {
            for seed in 0..programs::SEEDS_IN_MEMORY {
                let cluster = classes::cluster(&POOLS);
                programs::run(seed, async || in_memory(cluster.client(POOLS[0], ""))).await;
            }
        })
    };
    let decided = move || {
        run(async move {
            let [here, there] = catalogs();
            asked::what_is_asked_is_decided_and_told(here, there).await;
        })
    };
    let given = move || {
        run(async move {
            let [here, there] = catalogs();
            asked::an_owner_gives_the_image_to_whom_it_likes(here, there).await;
        })
    };
    let twice = move || {
        run(async move {
            let [here, pool] = two();
            asked::what_is_asked_twice_is_done_once(in_memory(here).1, pool).await;
        })
    };
    let cannot = move || {
        run(async move {
            let [here, pool] = two();
            asked::what_cannot_be_done_is_told_at_once(in_memory(here).1, pool).await;
        })
    };
    let deaths = || run(deaths::a_death_at_any_change_leaves_what_can_be_mended());
    let anew = || run(bitmaps::what_a_death_leaves_incomplete_is_made_anew());
    let wrong = || run(bitmaps::a_wrong_bitmap_is_found_and_loses_nothing());
    let protected = || run(protection::what_is_protected_stays());
    let first = || {
        run(protection::a_snapshot_is_protected_for_as_long_as_it_has_clones_of_the_first_format())
    };
    let looks =
        || run(protection::a_parent_that_cannot_be_written_has_clones_of_the_first_format());
    let told = || run(protection::whoever_may_only_look_is_told_that_a_snapshot_is_gone());
    let listed = || run(protection::a_list_of_clones_is_mended());
    let back = || run(trash::an_image_goes_to_the_trash_and_comes_back());
    let kept = || run(trash::what_is_in_the_trash_is_kept_until_its_time());
    let used = || run(trash::an_image_in_use_stays_where_it_is());
    let again = || run(trash::what_a_death_left_is_finished_by_doing_it_again());
    let sizes = || run(resize::programs_in_memory());
    let interrupted = || run(resize::a_death_in_a_resize_brings_nothing_back());
    let unwanted = || run(resize::what_cannot_be_resized_stays_as_it_is());
    let told_all = || run(resize::whoever_watches_hears_of_a_resize());
    vec![
        Trial::test("memory::images_agree_with_plain_bytes_through_each_resize", sizes),
        Trial::test("memory::a_death_in_a_resize_brings_nothing_back", interrupted),
        Trial::test("memory::a_resize_that_is_refused_changes_nothing", unwanted),
        Trial::test("memory::whoever_watches_hears_of_a_resize", told_all),
        Trial::test("memory::an_image_goes_to_the_trash_and_comes_back", back),
        Trial::test("memory::what_is_in_the_trash_is_kept_until_its_time", kept),
        Trial::test("memory::an_image_in_use_is_not_moved_to_the_trash", used),
        Trial::test("memory::what_a_death_left_in_the_trash_is_finished_by_doing_it_again", again),
        Trial::test("memory::what_is_protected_stays", protected),
        Trial::test("memory::a_snapshot_with_clones_of_the_first_format_stays_protected", first),
        Trial::test(
            "memory::a_parent_that_cannot_be_written_has_clones_of_the_first_format",
            looks,
        ),
        Trial::test("memory::whoever_may_only_look_is_told_that_a_snapshot_is_gone", told),
        Trial::test("memory::a_list_of_clones_is_mended", listed),
        Trial::test("memory::a_bitmap_that_a_death_left_incomplete_is_made_anew", anew),
        Trial::test("memory::a_wrong_bitmap_is_found_and_loses_nothing", wrong),
        Trial::test("memory::a_death_at_any_change_leaves_what_can_be_mended", deaths),
        Trial::test("memory::images_agree_with_plain_bytes", programs),
        Trial::test("memory::what_is_asked_of_an_owner_is_decided_and_told", decided),
        Trial::test("memory::an_owner_gives_the_image_to_whom_it_likes", given),
        Trial::test("memory::what_is_asked_twice_is_done_once", twice),
        Trial::test("memory::what_cannot_be_done_for_others_is_told_at_once", cannot),
    ]
}

/// Two clients at a namespace of its own.
async fn two(cluster: &Cluster, namespace: &str) -> [CephCatalog<Pool>; 2] {
    let named = format!("{}/{namespace}", POOLS[0]);
    cluster.ok("rbd", &["namespace", "create", &named]).unwrap();
    [connect(cluster, namespace).await.1, connect(cluster, namespace).await.1]
}

fn run(test: impl Future<Output = ()>) -> Result<(), Failed> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let test = async { tokio::time::timeout(PATIENCE, test).await };
    runtime.block_on(test).map_err(|_| Failed::from("it hangs"))
}

fn in_memory(pool: MemoryPool) -> (Pools<CephCatalog<MemoryPool>>, CephCatalog<MemoryPool>) {
    with_pools(CephCatalog::new(pool, ""))
}

fn with_pools<C: vellum_engine::Catalog>(catalog: C) -> (Pools<C>, C) {
    let pools = Pools::default();
    pools.add(catalog.clone());
    (pools, catalog)
}

/// A client of its own, at a namespace of the first pool.
async fn connect(
    cluster: &Cluster,
    namespace: &str,
) -> (Pools<CephCatalog<Pool>>, CephCatalog<Pool>) {
    connect_to(cluster, POOLS[0], namespace).await
}

/// The same, of another pool.
async fn connect_to(
    cluster: &Cluster,
    pool: &str,
    namespace: &str,
) -> (Pools<CephCatalog<Pool>>, CephCatalog<Pool>) {
    connect_as(cluster, "admin", pool, namespace).await
}

/// The same, as a user.
async fn connect_as(
    cluster: &Cluster,
    user: &str,
    pool: &str,
    namespace: &str,
) -> (Pools<CephCatalog<Pool>>, CephCatalog<Pool>) {
    let user = Some(user.to_owned());
    let options = Options { conf: Some(cluster.conf()), user, ..Options::default() };
    let client = librados::Cluster::connect(options).await.unwrap();
    let pool = client.pool(pool, namespace).await.unwrap();
    with_pools(CephCatalog::new(pool, namespace))
}

async fn programs_on(cluster: Arc<Cluster>) {
    for seed in 0..programs::SEEDS {
        let namespace = format!("program{seed}");
        let named = format!("{}/{namespace}", POOLS[0]);
        cluster.ok("rbd", &["namespace", "create", &named]).unwrap();
        let left = programs::run(seed, async || connect(&cluster, &namespace).await).await;
        strangers::rbd_reads(&cluster, &namespace, &left);
    }
}
