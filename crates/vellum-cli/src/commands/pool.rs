//! `vellum pool`.

use std::path::PathBuf;

use serde::Serialize;
use vellum::{Access, CephConfig, PoolConfig, Vellum};
use vellum_engine::{Catalog, Error, ErrorKind};

use crate::args::{PoolCommand, PoolPlace};
use crate::failure::Result;
use crate::output::Output;

#[derive(Serialize)]
struct Pool {
    name: String,
    engine: &'static str,
    #[serde(flatten)]
    place: Place,
    id: Option<String>,
    error: Option<String>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Place {
    Directory {
        path: String,
    },
    Ceph {
        ceph_pool: String,
        ceph_namespace: String,
        ceph_conf: Option<PathBuf>,
        ceph_user: Option<String>,
    },
}

/// Creates, lists, tells apart or forgets pools.
pub async fn run(vellum: &Vellum, command: PoolCommand, output: &mut Output) -> Result {
    match command {
        PoolCommand::Create { name, place } => {
            Ok(vellum.create_pool(&name, config(place)?).await?)
        }
        PoolCommand::NewId { name, path } => {
            vellum.give_new_id(&name, path.as_deref()).await?;
            Ok(())
        }
        PoolCommand::Rm { name } => Ok(vellum.forget_pool(&name).await?),
        PoolCommand::Ls => list(vellum, output).await,
    }
}

fn config(place: PoolPlace) -> Result<PoolConfig> {
    let PoolPlace { path, ceph_pool, ceph_namespace, ceph_conf: conf, ceph_user: user } = place;
    match (path, ceph_pool) {
        (Some(path), None) => Ok(PoolConfig::Directory(path)),
        (None, Some(pool)) => {
            let namespace = ceph_namespace.unwrap_or_default();
            Ok(PoolConfig::Ceph(CephConfig { pool, namespace, access: Access { conf, user } }))
        }
        _ => Err(Error::new(ErrorKind::Invalid, "say --path or --ceph-pool, and not both").into()),
    }
}

async fn list(vellum: &Vellum, output: &mut Output) -> Result {
    let (mut pools, mut places) = (Vec::new(), Vec::new());
    for (name, config) in vellum.pools()? {
        // The default pool is made at its first use, which a list is not.
        let is_missing = matches!(&config, PoolConfig::Directory(path) if !path.exists());
        let opened = if is_missing { None } else { Some(vellum.pool(&name).await) };
        let (id, error) = match opened {
            None => (None, None),
            Some(Ok(catalog)) => (Some(catalog.pool().to_string()), None),
            Some(Err(error)) => (None, Some(error.chain())),
        };
        places.push(config.to_string());
        let (engine, place) = told(config);
        pools.push(Pool { name: name.to_string(), engine, place, id, error });
    }
    if output.is_json() {
        return output.json(&pools);
    }
    let rows = pools.into_iter().zip(places).map(|(pool, place)| {
        let state = pool.error.or(pool.id).unwrap_or_else(|| "not made yet".to_owned());
        vec![pool.name, pool.engine.to_owned(), place, state]
    });
    output.table(&["NAME", "ENGINE", "PLACE", "ID"], &[], rows.collect())
}

fn told(config: PoolConfig) -> (&'static str, Place) {
    match config {
        PoolConfig::Directory(path) => {
            ("embedded", Place::Directory { path: path.display().to_string() })
        }
        PoolConfig::Ceph(CephConfig { pool, namespace, access: Access { conf, user } }) => {
            let place = Place::Ceph {
                ceph_pool: pool,
                ceph_namespace: namespace,
                ceph_conf: conf,
                ceph_user: user,
            };
            ("ceph", place)
        }
    }
}
