//! [`Report`]: what a check has found so far.

use vellum_core::ImageName;
use vellum_engine::catalog::FINDINGS_MAX;
use vellum_engine::{Error, Finding};

/// What a check has found so far. What goes wrong while it looks, or repairs, is a finding like the others, and takes none of
/// them away.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<Finding>);

impl Report {
    pub(super) fn add(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    pub(super) fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        self.0.extend(findings);
    }

    /// Notes what could not be looked at, or was damaged.
    pub(super) fn not_looked_at(&mut self, error: &Error) {
        self.add(Finding::not_looked_at(error));
    }

    /// Takes over what was found of an image.
    pub(super) fn take_over(&mut self, other: Self, image: &ImageName) {
        self.extend(other.0.into_iter().map(|finding| finding.of(image)));
    }

    /// All that was found so far.
    #[cfg(test)]
    pub(crate) fn found(&self) -> &[Finding] {
        &self.0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether nobody is told of more.
    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= FINDINGS_MAX
    }

    /// What was found, as much as anybody is told of.
    pub(super) fn into_findings(self) -> Vec<Finding> {
        Finding::most(self.0)
    }

    /// The same, or the first failure.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn into_result(self) -> vellum_engine::Result<Vec<Finding>> {
        let failure = self.0.iter().find(|finding| finding.is_failure());
        match failure.and_then(|finding| Some((finding.failure?, finding.what.clone()))) {
            Some((kind, what)) => Err(Error::new(kind, what)),
            None => Ok(self.into_findings()),
        }
    }
}
