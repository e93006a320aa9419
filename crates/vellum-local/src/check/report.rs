//! [`Report`]: what a check has found so far, and what it could not look at.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vellum_core::ImageName;
use vellum_engine::catalog::FINDINGS_MAX;
use vellum_engine::{Error, ErrorKind, Finding};

/// What a check has found so far. What goes wrong while it looks, or repairs, is a finding like the others, and takes none of
/// them away.
#[derive(Debug, Default)]
pub(crate) struct Report {
    findings: Vec<Finding>,
    failures: Vec<Error>,
}

impl Report {
    pub(super) fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    pub(super) fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        self.findings.extend(findings);
    }

    /// Notes what could not be looked at, or was damaged.
    pub(super) fn not_looked_at(&mut self, error: Error) {
        self.findings.push(Finding::not_looked_at(&error));
        self.failed(error);
    }

    /// Notes why something failed that a finding tells of already.
    pub(super) fn failed(&mut self, error: Error) {
        if error.kind() != ErrorKind::Corrupt {
            self.failures.push(error);
        }
    }

    /// Takes over what was found of an image.
    pub(super) fn take_over(&mut self, other: Self, image: &ImageName) {
        self.findings.extend(other.findings.into_iter().map(|finding| finding.of(image)));
        self.failures.extend(other.failures);
    }

    /// All that was found so far.
    #[cfg(test)]
    pub(crate) fn found(&self) -> &[Finding] {
        &self.findings
    }

    pub(super) fn is_empty(&self) -> bool {
        self.findings.is_empty()
    }

    /// Whether nobody is told of more.
    pub(super) fn is_full(&self) -> bool {
        self.findings.len() >= FINDINGS_MAX
    }

    /// How often something failed for another reason than that somebody uses it, or has removed it meanwhile.
    pub(super) fn failures(&self) -> usize {
        let others =
            |error: &&Error| [ErrorKind::InUse, ErrorKind::NotFound].contains(&error.kind());
        self.failures.iter().filter(|error| !others(error)).count()
    }

    /// What was found, as much as anybody is told of.
    pub(super) fn into_findings(mut self) -> Vec<Finding> {
        self.findings.truncate(FINDINGS_MAX);
        self.findings
    }

    /// The same, or the first failure.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn into_result(mut self) -> vellum_engine::Result<Vec<Finding>> {
        match self.failures.is_empty() {
            true => Ok(self.into_findings()),
            false => Err(self.failures.swap_remove(0)),
        }
    }
}

/// Counts what checks could not look at, or not repair, for another reason than that somebody uses it. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct FailureCount(Arc<AtomicUsize>);

impl FailureCount {
    /// How much that is by now.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    pub(super) fn add(&self, failures: usize) {
        self.0.fetch_add(failures, Ordering::AcqRel);
    }
}
