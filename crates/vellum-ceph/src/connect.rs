//! [`Clusters`]: pools of real clusters, over librados.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OnceCell;
use vellum_engine::{Error, ErrorKind, Result};
use vellum_rados::Failure;
use vellum_rados::librados::{Cluster, ConnectError, Options, Pool};

use crate::CephCatalog;
use crate::error::failed;

/// The images of a pool of a real cluster.
pub type CephPool = CephCatalog<Pool>;

impl CephPool {
    /// Whether the cluster refuses this client for good: somebody has taken an image that it owned, while it gave no answer. The pool
    /// must be opened again.
    pub fn is_refused(&self) -> bool {
        self.objects().connection().is_refused()
    }
}

/// How a cluster is reached.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Access {
    /// Its configuration; `None` for where Ceph looks for it.
    pub conf: Option<PathBuf>,
    /// The user, without `client.`; `None` for `admin`.
    pub user: Option<String>,
}

/// Connections to clusters, one for each way to reach one. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Clusters(Arc<Mutex<HashMap<Access, Arc<OnceCell<Cluster>>>>>);

impl Clusters {
    /// A pool, and a namespace in it; the empty one is that of whoever names none. Its images are served on the runtime that this is
    /// called on, which must last as long as the pool.
    ///
    /// # Errors
    /// `NotFound` if the cluster has no such pool, `Unsupported` without librados, `Invalid` for a configuration that is not there or
    /// cannot be used, `Io` if the cluster does not answer within 30 s.
    pub async fn pool(&self, access: &Access, pool: &str, namespace: &str) -> Result<CephPool> {
        let cell = {
            let mut known = self.0.lock();
            let cell = known.entry(access.clone()).or_default();
            if cell.get().is_some_and(Cluster::is_refused) {
                // What is open through it ends with an error; whatever is opened from now on is of another client.
                *cell = Arc::default();
            }
            cell.clone()
        };
        let options = || Options {
            conf: access.conf.clone(),
            user: access.user.clone(),
            ..Options::default()
        };
        let cluster = cell.get_or_try_init(|| Cluster::connect(options())).await;
        let cluster = cluster.map_err(|why| cannot_connect(access, why))?;
        let opened = cluster.pool(pool, namespace).await.map_err(|failure| match failure {
            Failure::NOT_FOUND => {
                let what = format!(
                    "the cluster has no pool {pool}; `ceph osd pool ls` lists those it has"
                );
                Error::new(ErrorKind::NotFound, what)
            }
            failure => failed(failure, format!("open pool {pool}")),
        })?;
        Ok(CephCatalog::new(opened, namespace))
    }
}

fn cannot_connect(access: &Access, why: ConnectError) -> Error {
    let kind = match (&why, why.failure()) {
        (ConnectError::NoLibrary(_), _) => ErrorKind::Unsupported,
        (ConnectError::Configuration { .. }, _) => ErrorKind::Invalid,
        // No key for this user, or a wrong one.
        (_, Some(Failure::NOT_FOUND | Failure::NOT_PERMITTED | Failure::INVALID)) => {
            ErrorKind::Invalid
        }
        _ => ErrorKind::Io,
    };
    let user = access.user.as_deref().unwrap_or("admin");
    Error::new(kind, format!("reach the Ceph cluster as client.{user}")).with_source(why)
}
