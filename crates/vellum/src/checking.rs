//! Checking: what is recorded against what is stored, through all pools of a home.

use vellum_core::PoolName;
use vellum_engine::{ErrorKind, Finding, ImageId, Repair, Result};
use vellum_image::{Pools, check};

use crate::vellum::Located;
use crate::{Catalog, Vellum};

/// What a check found in one pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checked {
    /// The pool.
    pub pool: PoolName,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
    /// False if the pool could not be opened, or its catalog not be read, for another reason than that somebody uses it: then
    /// there is nothing else in the findings.
    pub could_be_checked: bool,
}

impl Vellum {
    /// Checks all pools of the home, or the image that was located. Images in use are left alone, and said to be unknown, as is a
    /// pool that cannot be opened for another reason than damage.
    pub async fn check(&self, located: Option<&Located>, repair: Repair) -> Result<Vec<Checked>> {
        let pools = self.all_pools().await?;
        if let Some(located) = located {
            let id = Some(&located.record.id);
            return Ok(vec![check_in(pools, &located.pool, &located.catalog, id, repair).await?]);
        }
        let mut checked = Vec::new();
        for (name, config) in self.pools()? {
            if self.is_made_at_its_first_use(&config) {
                continue;
            }
            let found = match self.pool(&name).await {
                Ok(catalog) => check_in(pools, &name, &catalog, None, repair).await,
                Err(error) => Err(error),
            };
            checked.push(found.unwrap_or_else(|error| Checked {
                could_be_checked: error.kind() == ErrorKind::InUse,
                ..Checked::new(&name, vec![Finding::not_looked_at(&error)])
            }));
        }
        Ok(checked)
    }
}

/// Checks a pool, or one image of it.
async fn check_in(
    pools: &Pools<Catalog>,
    name: &PoolName,
    catalog: &Catalog,
    image: Option<&ImageId>,
    repair: Repair,
) -> Result<Checked> {
    Ok(Checked::new(name, check::check(pools, catalog, image, repair).await?))
}

impl Checked {
    fn new(pool: &PoolName, mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| finding.severity);
        Self { pool: pool.clone(), findings, could_be_checked: true }
    }

    /// How much of what it holds could not be looked at, or not be repaired, for another reason than that somebody uses it. What
    /// and why is among the findings.
    pub fn failures(&self) -> usize {
        self.findings.iter().filter(|finding| finding.is_failure()).count()
    }
}

#[cfg(test)]
mod tests {
    use vellum_core::Geometry;
    use vellum_engine::{
        Catalog as _, Durability, Guard, Guarded, Head, ImageRecord, Layering, NewImage, Severity,
        Write,
    };

    use super::*;
    use crate::HomeOptions;
    use crate::home::DEFAULT_POOL;

    /// An image that something was written to.
    async fn written(catalog: &Catalog, name: &str) -> ImageRecord {
        let new = NewImage {
            name: name.parse().unwrap(),
            size: 1 << 20,
            geometry: Geometry::default(),
            layering: Layering::Sparse,
            block_size: 4096,
            parent: None,
            id: None,
            meta: Default::default(),
        };
        let record = catalog.create(new).await.unwrap();
        let head = catalog.own(&record.id).await.unwrap();
        let (guard, durability) = (Guard::Edges, Durability::AtSync);
        let write = Write { offset: 0, data: vec![7; 4096].into(), guard, durability };
        assert_eq!(head.write(write).await.unwrap(), Guarded::Done);
        head.close().await.unwrap();
        record
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_counted_and_what_is_in_use_is_not() {
        let home = tempfile::tempdir().unwrap();
        let options = HomeOptions { home: Some(home.path().to_owned()) };
        let vellum = Vellum::open(options).await.unwrap();
        let pool = vellum.pool(&DEFAULT_POOL.parse().unwrap()).await.unwrap();
        let unreadable = written(&pool, "unreadable").await;
        let used = written(&pool, "used").await;
        let _holder = pool.own(&used.id).await.unwrap();
        let check = async |spec: Option<&str>| {
            let located = match spec {
                Some(spec) => Some(vellum.locate(&spec.parse().unwrap()).await.unwrap()),
                None => None,
            };
            vellum.check(located.as_ref(), Repair::No).await.unwrap().remove(0)
        };
        assert_eq!(
            (check(None).await.failures(), check(Some("unreadable")).await.failures()),
            (0, 0)
        );

        // A name that no file system takes where its map should be fails whoever reads it.
        let map =
            pool.left().unwrap().path().join("layers").join(unreadable.head.as_str()).join("map");
        std::fs::remove_file(&map).unwrap();
        std::os::unix::fs::symlink("x".repeat(300), &map).unwrap();
        for spec in [None, Some("unreadable")] {
            let checked = check(spec).await;
            assert_eq!((checked.failures(), checked.could_be_checked), (1, true), "{checked:?}");
            let unknown = |found: &Finding| found.severity == Severity::Unknown;
            assert!(checked.findings.iter().all(unknown), "{checked:?}");
        }
        assert_eq!(check(Some("used")).await.failures(), 0);
    }
}
