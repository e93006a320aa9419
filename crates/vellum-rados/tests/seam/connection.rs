//! The way to the cluster, and what becomes of it.

use std::sync::Arc;
use std::time::Duration;

use vellum_rados::librados::{self, ConnectError, Options};
use vellum_rados::{Failure, Objects, WriteOp};
use vellum_testkit::ceph::Cluster;

use crate::{Case, Place, bytes, write};

pub(crate) const CASES: &[Case<Arc<Cluster>>] = &[
    ("a_configuration_that_is_not_there_is_an_error_that_names_it", |cluster| {
        Box::pin(a_configuration_that_is_not_there_is_an_error_that_names_it(cluster))
    }),
    ("a_cluster_that_does_not_answer_is_an_error_in_the_time_it_was_given", |cluster| {
        Box::pin(a_cluster_that_does_not_answer_is_an_error_in_the_time_it_was_given(cluster))
    }),
    ("a_pool_that_is_not_there_is_not_found", |cluster| {
        Box::pin(a_pool_that_is_not_there_is_not_found(cluster))
    }),
    ("a_client_that_was_blocklisted_changes_nothing_any_more", |cluster| {
        Box::pin(a_client_that_was_blocklisted_changes_nothing_any_more(cluster))
    }),
    ("connections_end_with_what_was_opened_through_them", |cluster| {
        Box::pin(connections_end_with_what_was_opened_through_them(cluster))
    }),
];

async fn a_configuration_that_is_not_there_is_an_error_that_names_it(_: Arc<Cluster>) {
    let conf = Some("/nowhere/ceph.conf".into());
    let error = librados::Cluster::connect(Options { conf, ..Options::default() }).await;
    let error = error.unwrap_err();
    assert!(matches!(error, ConnectError::Configuration { .. }), "{error:?}");
    assert!(error.to_string().contains("/nowhere/ceph.conf"));
    assert_eq!(error.failure(), Some(Failure::NOT_FOUND));
}

async fn a_cluster_that_does_not_answer_is_an_error_in_the_time_it_was_given(_: Arc<Cluster>) {
    // Somebody listens there, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let file = tempfile_of(&format!(
        "[global]\nfsid = 00000000-0000-0000-0000-000000000001\nmon host = [v2:{}]\n\
         auth client required = none\nauth cluster required = none\nauth service required = none\n",
        silent.local_addr().unwrap()
    ));
    let conf = Some(file.clone());
    let monitor_wait = Duration::from_secs(2);
    let options = Options { conf, monitor_wait, ..Options::default() };
    let error = librados::Cluster::connect(options).await.unwrap_err();
    assert_eq!(error.failure(), Some(Failure::TIMED_OUT), "{error:?}");
    std::fs::remove_file(file).unwrap();
}

fn tempfile_of(text: &str) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("vellum-rados-{}.conf", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

async fn a_pool_that_is_not_there_is_not_found(cluster: Arc<Cluster>) {
    let client = cluster.client().await;
    assert_eq!(client.connection().pool("absent", "").await.unwrap_err(), Failure::NOT_FOUND);
    let absent = client.connection().pool_by_id(4711, "").unwrap();
    assert_eq!(bytes(&absent, "x", 1).await, Err(Failure::NO_POOL));
}

async fn a_client_that_was_blocklisted_changes_nothing_any_more(cluster: Arc<Cluster>) {
    let (here, there) = (cluster.client().await, cluster.client().await);
    write(&there, "fenced", WriteOp::new().write(0, "before")).await.unwrap();
    let address = there.connection().address().unwrap();
    here.connection().blocklist(&address, Duration::from_secs(60)).await.unwrap();
    here.connection().wait_for_newest_map().await.unwrap();
    // The storage hears of the new map from whoever knows it already.
    assert_eq!(bytes(&here, "fenced", 6).await.unwrap(), b"before");
    let refused = write(&there, "fenced", WriteOp::new().write(0, "after!")).await;
    assert_eq!(refused, Err(Failure::BLOCKLISTED));
    assert_eq!(bytes(&here, "fenced", 6).await.unwrap(), b"before");
    assert_eq!(there.watch("fenced").await.unwrap_err(), Failure::BLOCKLISTED);
}

async fn connections_end_with_what_was_opened_through_them(cluster: Arc<Cluster>) {
    for _ in 0..10 {
        let pool = cluster.client().await;
        let mut last = Box::pin(write(&pool, "ends", WriteOp::new().write(0, vec![1; 1 << 20])));
        let _ = futures::poll!(&mut last);
        drop(last);
        drop(pool);
    }
    let pool = cluster.client().await;
    write(&pool, "ends", WriteOp::new().write(1 << 20, "end")).await.unwrap();
}
