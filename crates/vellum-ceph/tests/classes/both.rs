//! [`Both`]: a cluster in memory and a real one, of which the same is asked.

use std::cell::RefCell;
use std::collections::BTreeMap;

use vellum_ceph::classes;
use vellum_rados::librados::{self, Options, Pool};
use vellum_rados::memory::MemoryPool;
use vellum_rados::{
    Failure, Found, Objects, ReadOp, ReadStep, Result, SnapContext, SnapId, WriteOp,
};
use vellum_rbd::records::{Purpose, Snapshot};
use vellum_rbd::wire::Time;
use vellum_rbd::{Decode, Encode};
use vellum_testkit::ceph::{Cluster, POOLS};

use crate::PATIENCE;

/// An operation that does not end.
#[derive(Debug)]
pub(crate) struct Hangs;

/// Two clients at each.
pub(crate) struct Both {
    runtime: tokio::runtime::Runtime,
    memory: [MemoryPool; 2],
    real: [Pool; 2],
    /// What was asked last.
    last: RefCell<String>,
}

impl Both {
    pub(crate) fn at(cluster: &Cluster) -> std::result::Result<Self, Hangs> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap();
        let options = Options { conf: Some(cluster.conf()), ..Options::default() };
        let client = async || {
            let client = librados::Cluster::connect(options.clone()).await.unwrap();
            client.pool(POOLS[0], "").await.unwrap()
        };
        let real = runtime.block_on(async {
            tokio::time::timeout(PATIENCE, async { [client().await, client().await] }).await
        })?;
        let memory = classes::cluster(&POOLS);
        let memory = [memory.client(POOLS[0], ""), memory.client(POOLS[0], "")];
        Ok(Self { runtime, memory, real, last: RefCell::default() })
    }

    fn wait<T>(&self, what: impl Future<Output = T>) -> T {
        let what = async { tokio::time::timeout(PATIENCE, what).await };
        self.runtime.block_on(what).expect("it hangs")
    }

    /// What one of the clients changes, with the answer of both.
    pub(crate) fn write(&self, client: usize, object: &str, op: &WriteOp) -> Result<()> {
        let none = SnapContext::default();
        let (memory, real) = (&self.memory[client], &self.real[client]);
        let answers = self.wait(async {
            (
                memory.write(object, &none, op.clone()).await,
                real.write(object, &none, op.clone()).await,
            )
        });
        *self.last.borrow_mut() = format!("{op:?}");
        assert_eq!(answers.0, answers.1, "{object}: {op:?}");
        answers.0
    }

    /// What the only step of a look finds, in memory and on the real cluster.
    pub(crate) fn look(&self, object: &str, step: &ReadStep) -> (Result<Found>, Result<Found>) {
        async fn once(pool: &impl Objects, object: &str, step: ReadStep) -> Result<Found> {
            let done = pool.read(object, SnapId::HEAD, ReadOp::new().then(step)).await;
            Ok(done.result?.1.remove(0))
        }
        let (memory, real) = (&self.memory[0], &self.real[0]);
        self.wait(async {
            (once(memory, object, step.clone()).await, once(real, object, step.clone()).await)
        })
    }

    /// Whether both hold the same keys, but for times and for names that are drawn by chance.
    pub(crate) fn hold_the_same(&self, object: &str) {
        let all = ReadStep::Omap { after: String::new(), prefix: String::new(), max: 1000 };
        let (memory, real) = self.look(object, &all);
        assert_eq!(keys(memory), keys(real), "{object} after {}", self.last.borrow());
    }
}

type KeysOf = Result<BTreeMap<String, Vec<u8>>>;

fn keys(found: Result<Found>) -> KeysOf {
    let Found::Omap { values, more: false } = found? else { return Err(Failure::INVALID) };
    let comparable = values.into_iter().filter_map(|(key, value)| {
        let name = String::from_utf8_lossy(&key).into_owned();
        match name.as_str() {
            name if name.ends_with("_timestamp") => None,
            _ if name.starts_with("snapshot_") => {
                let mut snapshot = Snapshot::from_bytes(&value).unwrap();
                snapshot.time = Time::default();
                if matches!(snapshot.purpose, Purpose::Trash { .. }) {
                    snapshot.name = "".into();
                }
                Some((name, snapshot.to_bytes()))
            }
            _ => Some((name, value)),
        }
    });
    Ok(comparable.collect())
}
