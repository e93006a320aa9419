//! What the seam promises, on a real cluster that is started for it. Without Ceph's packages these show as ignored, with the reason.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod connection;
mod operations;
mod snapshots;
mod watches;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use vellum_core::Buffer;
use vellum_rados::librados::{self, Options, Pool};
use vellum_rados::{
    Found, Objects, ReadDone, ReadOp, ReadStep, Result, SnapContext, SnapId, WriteOp,
};
use vellum_testkit::ceph::{Cluster, POOLS, Store};

fn main() -> std::process::ExitCode {
    let arguments = Arguments::from_args();
    let unavailable = Cluster::unavailable();
    let cluster = (unavailable.is_none() && !arguments.list)
        .then(|| Arc::new(Cluster::start(Store::Memory).unwrap()));
    let cases = [operations::CASES, snapshots::CASES, watches::CASES, connection::CASES].concat();
    let trials = cases.into_iter().map(|(name, test)| match (&unavailable, &cluster) {
        (Some(why), _) => {
            let why = why.clone();
            Trial::ignorable_test(name, || Ok(libtest_mimic::Completion::ignored_with(why)))
        }
        (None, None) => Trial::test(name, || Ok(())),
        (None, Some(cluster)) => {
            let cluster = cluster.clone();
            Trial::test(name, move || {
                let mut runtime = tokio::runtime::Builder::new_multi_thread();
                let runtime = runtime.worker_threads(2).enable_all().build()?;
                let test = async { tokio::time::timeout(PATIENCE, test(cluster)).await };
                runtime.block_on(test).map_err(|_| "it hangs")?;
                Ok(())
            })
        }
    });
    let outcome = libtest_mimic::run(&arguments, trials.collect());
    // No test has it any more, so this stops it.
    drop(cluster);
    outcome.exit_code()
}

/// How long a test may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A test on the cluster that all share; each has objects of its own.
type Case = (&'static str, fn(Arc<Cluster>) -> Pin<Box<dyn Future<Output = ()>>>);

/// Cases by their names.
#[macro_export]
macro_rules! cases {
    ($($name:ident,)*) => {
        pub(crate) const CASES: &[$crate::Case] =
            &[$((stringify!($name), |cluster| Box::pin($name(cluster)))),*];
    };
}

/// A client of its own, at the first pool.
async fn client(cluster: &Cluster) -> Pool {
    let options = Options { conf: Some(cluster.conf()), ..Options::default() };
    let client = librados::Cluster::connect(options).await.unwrap();
    client.pool(POOLS[0], "").await.unwrap()
}

async fn write(pool: &Pool, object: &str, op: WriteOp) -> Result<()> {
    pool.write(object, &SnapContext::default(), op).await
}

/// What the only step of a look finds.
async fn look(pool: &Pool, object: &str, step: ReadStep) -> Result<Found> {
    let done = pool.read(object, SnapId::HEAD, ReadOp::new().then(step)).await;
    let (_, mut found) = done.result?;
    assert_eq!(found.len(), 1);
    Ok(found.remove(0))
}

/// So many bytes from the beginning of an object, with `?` for what lies behind its end.
async fn bytes_at(pool: &Pool, object: &str, at: SnapId, length: usize) -> Result<Vec<u8>> {
    let buffer = Buffer::from_vec(vec![b'?'; length]);
    let ReadDone { buffer, result } =
        pool.read(object, at, ReadOp::new().data(0, buffer, 0..length)).await;
    let buffer = buffer.expect("it comes back");
    let (read, _) = result?;
    assert!(buffer[read..].iter().all(|byte| *byte == b'?'), "nothing else is touched");
    Ok(buffer.to_vec())
}

async fn bytes(pool: &Pool, object: &str, length: usize) -> Result<Vec<u8>> {
    bytes_at(pool, object, SnapId::HEAD, length).await
}
