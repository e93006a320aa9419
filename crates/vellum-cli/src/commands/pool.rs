//! `vellum pool`.

use serde::Serialize;
use vellum::Vellum;
use vellum_engine::Catalog;

use crate::args::PoolCommand;
use crate::failure::Result;
use crate::output::Output;

#[derive(Serialize)]
struct Pool {
    name: String,
    path: String,
    id: Option<String>,
    engine: &'static str,
    error: Option<String>,
}

/// Creates, lists, tells apart or forgets pools.
pub async fn run(vellum: &Vellum, command: PoolCommand, output: &mut Output) -> Result {
    match command {
        PoolCommand::Create { name, path } => Ok(vellum.create_pool(&name, &path).await?),
        PoolCommand::NewId { name, path } => {
            vellum.give_new_id(&name, path.as_deref()).await?;
            Ok(())
        }
        PoolCommand::Rm { name } => Ok(vellum.forget_pool(&name).await?),
        PoolCommand::Ls => list(vellum, output).await,
    }
}

async fn list(vellum: &Vellum, output: &mut Output) -> Result {
    let mut pools = Vec::new();
    for (name, config) in vellum.pools()? {
        // The default pool is made at its first use, which a list is not.
        let opened = if config.path.exists() { Some(vellum.pool(&name).await) } else { None };
        let (id, error) = match opened {
            None => (None, None),
            Some(Ok(catalog)) => (Some(catalog.pool().to_string()), None),
            Some(Err(error)) => (None, Some(error.chain())),
        };
        let path = config.path.display().to_string();
        pools.push(Pool { name: name.to_string(), path, id, engine: "embedded", error });
    }
    if output.is_json() {
        return output.json(&pools);
    }
    let rows = pools.into_iter().map(|pool| {
        let state = pool.error.or(pool.id).unwrap_or_else(|| "not made yet".to_owned());
        vec![pool.name, pool.engine.to_owned(), pool.path, state]
    });
    output.table(&["NAME", "ENGINE", "PATH", "ID"], &[], rows.collect())
}
