//! The conformance suite on the Ceph engine: on a cluster in memory, and on a real one that is started for it. Without Ceph's
//! packages the latter show as ignored, with the reason.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use parking_lot::Mutex;
use vellum_ceph::{CephCatalog, classes};
use vellum_rados::Objects;
use vellum_rados::librados::{self, Options, Pool};
use vellum_rados::memory::{MemoryCluster, MemoryPool};
use vellum_suite::{Harness, Result, Skip, trials};
use vellum_testkit::ceph::{Cluster, POOLS, Store};

/// A cluster in memory with two pools, and who was connected to it.
struct InMemory {
    cluster: MemoryCluster,
    clients: Mutex<Vec<u64>>,
}

impl InMemory {
    fn new() -> Self {
        Self { cluster: classes::cluster(&POOLS), clients: Mutex::default() }
    }
}

impl Harness for InMemory {
    type Catalog = CephCatalog<MemoryPool>;

    async fn open(&self) -> Result<Self::Catalog> {
        let pool = self.cluster.client(POOLS[0], "");
        self.clients.lock().push(pool.client());
        Ok(CephCatalog::new(pool, ""))
    }

    async fn open_second_pool(&self) -> Result<Self::Catalog> {
        Ok(CephCatalog::new(self.cluster.client(POOLS[1], ""), ""))
    }

    async fn power_cut(&self) -> Result<()> {
        // What the cluster has acknowledged it has; its clients are gone.
        self.clients.lock().drain(..).for_each(|client| self.cluster.blocklist(client));
        Ok(())
    }

    async fn exhaust_space(&self) -> Result<()> {
        self.cluster.set_full(true);
        Ok(())
    }

    async fn free_space(&self) -> Result<()> {
        self.cluster.set_full(false);
        Ok(())
    }
}

/// A namespace of its own in the pools of a real cluster, and who was connected to it.
struct Real {
    cluster: Arc<Cluster>,
    namespace: String,
    clients: Mutex<Vec<librados::Cluster>>,
}

impl Real {
    fn new(cluster: Arc<Cluster>) -> Self {
        static NAMESPACES: AtomicU64 = AtomicU64::new(0);
        let namespace = format!("case{}", NAMESPACES.fetch_add(1, Ordering::Relaxed));
        Self { cluster, namespace, clients: Mutex::default() }
    }

    async fn connect(&self, pool: &str) -> Result<CephCatalog<Pool>> {
        let options = Options { conf: Some(self.cluster.conf()), ..Options::default() };
        let client = librados::Cluster::connect(options).await?;
        let pool = client.pool(pool, &self.namespace).await?;
        self.clients.lock().push(client);
        Ok(CephCatalog::new(pool, &self.namespace))
    }
}

impl Harness for Real {
    type Catalog = CephCatalog<Pool>;

    async fn open(&self) -> Result<Self::Catalog> {
        self.connect(POOLS[0]).await
    }

    async fn open_second_pool(&self) -> Result<Self::Catalog> {
        self.connect(POOLS[1]).await
    }

    async fn power_cut(&self) -> Result<()> {
        let clients = std::mem::take(&mut *self.clients.lock());
        let options = Options { conf: Some(self.cluster.conf()), ..Options::default() };
        let other = librados::Cluster::connect(options).await?;
        for client in clients {
            other.blocklist(&client.address()?, Duration::from_secs(3600)).await?;
        }
        other.wait_for_newest_map().await?;
        Ok(())
    }

    async fn exhaust_space(&self) -> Result<()> {
        Err(Skip::because("a cluster that others use too is not filled"))
    }
}

fn main() -> std::process::ExitCode {
    let arguments = Arguments::from_args();
    let unavailable = Cluster::unavailable();
    let wanted = arguments.filter.as_ref().is_none_or(|filter| !filter.starts_with("memory"));
    let cluster = (unavailable.is_none() && wanted && !arguments.list)
        .then(|| Arc::new(Cluster::start(Store::Memory).unwrap()));
    let mut all = trials("memory", || Ok(InMemory::new()));
    let real = cluster.clone();
    let on_a_cluster = trials("cluster", move || match (&unavailable, &real) {
        (Some(why), _) => Err(Skip::because(why.clone())),
        (None, Some(cluster)) => Ok(Real::new(cluster.clone())),
        (None, None) => Err(Skip::because("nobody asked for it")),
    });
    all.extend(on_a_cluster.into_iter().collect::<Vec<Trial>>());
    let outcome = libtest_mimic::run(&arguments, all);
    drop(cluster);
    outcome.exit_code()
}
