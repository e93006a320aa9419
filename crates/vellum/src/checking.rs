//! Checking: what is recorded against what is stored, through all pools of a home.

use vellum_core::PoolName;
use vellum_engine::{ErrorKind, Finding, Repair, Result};
use vellum_image::check;

use crate::Vellum;
use crate::home::DEFAULT_POOL;
use crate::vellum::Located;

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
            let findings = check::check(pools, &located.catalog, id, repair).await?;
            return Ok(vec![Checked::new(located.pool.clone(), findings)]);
        }
        let mut checked = Vec::new();
        for (name, config) in self.pools()? {
            if name.as_str() == DEFAULT_POOL && !config.path.exists() {
                // Made at its first use, which this is not.
                continue;
            }
            let found = match self.pool(&name).await {
                Ok(catalog) => check::check(pools, &catalog, None, repair).await,
                Err(error) => Err(error),
            };
            checked.push(match found {
                Ok(findings) => Checked::new(name, findings),
                Err(error) => Checked {
                    could_be_checked: error.kind() == ErrorKind::InUse,
                    ..Checked::new(name, vec![Finding::not_looked_at(&error)])
                },
            });
        }
        Ok(checked)
    }
}

impl Checked {
    fn new(pool: PoolName, mut findings: Vec<Finding>) -> Self {
        findings.sort_by_key(|finding| finding.severity);
        Self { pool, findings, could_be_checked: true }
    }
}
