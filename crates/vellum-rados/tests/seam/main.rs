//! What the seam promises, in memory and on a real cluster that is started for it. Without Ceph's packages the latter show as
//! ignored, with the reason.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod connection;
mod operations;
mod same;
mod snapshots;
mod watches;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use vellum_core::Buffer;
use vellum_rados::librados::{self, Options, Pool};
use vellum_rados::memory::{Class, ClassObject, MemoryCluster, MemoryPool};
use vellum_rados::{
    Failure, Found, Objects, ReadDone, ReadOp, ReadStep, Result, SnapContext, SnapId, WriteOp,
};
use vellum_testkit::ceph::{Cluster, POOLS, Store};

fn main() -> std::process::ExitCode {
    let arguments = Arguments::from_args();
    let unavailable = Cluster::unavailable();
    let cluster = (unavailable.is_none() && !arguments.list)
        .then(|| Arc::new(Cluster::start(Store::Memory).unwrap()));
    let in_memory = MemoryCluster::new(&POOLS).with_class("rbd", Ids);
    let mut trials: Vec<Trial> = cases::<MemoryCluster>()
        .map(|(name, test)| {
            let cluster = in_memory.clone();
            Trial::test(format!("memory::{name}"), move || run(|| test(cluster)))
        })
        .collect();
    let real = cases::<Arc<Cluster>>().chain(connection::CASES.iter().copied());
    let real = real.chain([(
        "a_cluster_in_memory_answers_and_holds_what_a_real_one_does",
        (|cluster| {
            let test = same::a_cluster_in_memory_answers_and_holds_what_a_real_one_does(cluster);
            Box::pin(test) as Test
        }) as fn(Arc<Cluster>) -> Test,
    )]);
    trials.extend(real.map(|(name, test)| {
        let (name, cluster) = (format!("cluster::{name}"), cluster.clone());
        match (&unavailable, cluster) {
            (Some(why), _) => {
                let why = why.clone();
                Trial::ignorable_test(name, || Ok(libtest_mimic::Completion::ignored_with(why)))
            }
            (None, None) => Trial::test(name, || Ok(())),
            (None, Some(cluster)) => Trial::test(name, move || run(|| test(cluster))),
        }
    }));
    let outcome = libtest_mimic::run(&arguments, trials);
    // No test has it any more, so this stops it.
    drop(cluster);
    outcome.exit_code()
}

/// How long a test may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A test under way.
type Test = Pin<Box<dyn Future<Output = ()>>>;

/// A test at such a place, by its name.
type Case<P> = (&'static str, fn(P) -> Test);

fn run(test: impl FnOnce() -> Test) -> Result<(), Failed> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let test = async { tokio::time::timeout(PATIENCE, test()).await };
    runtime.block_on(test).map_err(|_| Failed::from("it hangs"))
}

/// A cluster that all tests share; each has objects of its own.
trait Place: Clone + 'static {
    /// How a client reaches a pool.
    type Pool: Objects;

    /// A client of its own, at the first pool.
    fn client(&self) -> impl Future<Output = Self::Pool>;

    /// The same client at another pool and a namespace.
    fn other(
        &self,
        client: &Self::Pool,
        pool: &str,
        namespace: &str,
    ) -> impl Future<Output = Self::Pool>;
}

impl Place for Arc<Cluster> {
    type Pool = Pool;

    async fn client(&self) -> Pool {
        let options = Options { conf: Some(self.conf()), ..Options::default() };
        let client = librados::Cluster::connect(options).await.unwrap();
        client.pool(POOLS[0], "").await.unwrap()
    }

    async fn other(&self, client: &Pool, pool: &str, namespace: &str) -> Pool {
        client.connection().pool(pool, namespace).await.unwrap()
    }
}

impl Place for MemoryCluster {
    type Pool = MemoryPool;

    async fn client(&self) -> MemoryPool {
        MemoryCluster::client(self, POOLS[0], "")
    }

    async fn other(&self, client: &MemoryPool, pool: &str, namespace: &str) -> MemoryPool {
        client.other(pool, namespace)
    }
}

/// As much of Ceph's class `rbd` as the tests call.
struct Ids;

impl Class for Ids {
    fn call(
        &self,
        method: &str,
        _client: u64,
        object: &mut Option<ClassObject>,
        input: &[u8],
    ) -> Result<Vec<u8>> {
        let object = object.get_or_insert_default();
        match method {
            "get_id" => Ok(object.data.clone()),
            "set_id" if object.data.is_empty() => {
                object.data = input.to_vec();
                Ok(Vec::new())
            }
            "set_id" => Err(Failure::EXISTS),
            _ => Err(Failure::UNSUPPORTED),
        }
    }
}

fn cases<P: Place>() -> impl Iterator<Item = Case<P>> {
    [operations::cases(), snapshots::cases(), watches::cases()].into_iter().flatten()
}

/// Cases by their names.
#[macro_export]
macro_rules! cases {
    ($($name:ident,)*) => {
        pub(crate) fn cases<P: $crate::Place>() -> Vec<$crate::Case<P>> {
            vec![$((stringify!($name), |place| Box::pin($name(place)))),*]
        }
    };
}

async fn write(pool: &impl Objects, object: &str, op: WriteOp) -> Result<()> {
    pool.write(object, &SnapContext::default(), op).await
}

/// What the only step of a look finds.
async fn look(pool: &impl Objects, object: &str, step: ReadStep) -> Result<Found> {
    let done = pool.read(object, SnapId::HEAD, ReadOp::new().then(step)).await;
    let (_, mut found) = done.result?;
    assert_eq!(found.len(), 1);
    Ok(found.remove(0))
}

/// So many bytes from the beginning of an object, with `?` for what lies behind its end.
async fn bytes_at(pool: &impl Objects, object: &str, at: SnapId, length: usize) -> Result<Vec<u8>> {
    let buffer = Buffer::from_vec(vec![b'?'; length]);
    let ReadDone { buffer, result, .. } =
        pool.read(object, at, ReadOp::new().data(0, buffer, 0..length)).await;
    let buffer = buffer.expect("it comes back");
    let (read, _) = result?;
    assert!(buffer[read..].iter().all(|byte| *byte == b'?'), "nothing else is touched");
    Ok(buffer.to_vec())
}

async fn bytes(pool: &impl Objects, object: &str, length: usize) -> Result<Vec<u8>> {
    bytes_at(pool, object, SnapId::HEAD, length).await
}
