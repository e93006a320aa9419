//! [`Finding`]: what a check of a pool finds that is not as it should be.

use vellum_core::ImageName;

use crate::catalog::FINDINGS_MAX;
use crate::{Error, ErrorKind};

/// Something that is not as it should be, and what was done about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What it means for whoever finds it.
    pub severity: Severity,
    /// The image it belongs to, if it belongs to one.
    pub image: Option<ImageName>,
    /// What is wrong, and where.
    pub what: String,
    /// What was done about it, if anything was.
    pub repaired: Option<String>,
    /// What kind of error kept it from being looked at, or repaired.
    pub failure: Option<ErrorKind>,
}

/// What a finding means, the worst first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// Stored bytes are wrong or missing, and what depends on them is lost. Nothing repairs that here.
    Damage,
    /// Something is recorded that is not so, or is so and not recorded; nothing was lost by it. Can be repaired.
    Stale,
    /// Space that nothing refers to. Can be repaired.
    Leak,
    /// Could not be looked at, so that nothing is known of it.
    Unknown,
}

impl Finding {
    /// A finding about the pool itself.
    pub fn new(severity: Severity, what: impl Into<String>) -> Self {
        Self { severity, image: None, what: what.into(), repaired: None, failure: None }
    }

    /// What kept a check from looking, which must not keep it from looking at the rest.
    pub fn not_looked_at(error: &Error) -> Self {
        let severity = match error.kind() {
            ErrorKind::Corrupt => Severity::Damage,
            _ => Severity::Unknown,
        };
        Self::new(severity, error.chain()).failed(error)
    }

    /// The same, about an image.
    #[must_use]
    pub fn of(self, image: &ImageName) -> Self {
        Self { image: Some(image.clone()), ..self }
    }

    /// The same, and what was done about it.
    #[must_use]
    pub fn repaired(self, done: impl Into<String>) -> Self {
        Self { repaired: Some(done.into()), ..self }
    }

    /// The same, of which something could not be looked at or repaired. Why is said in the text.
    #[must_use]
    pub fn failed(self, error: &Error) -> Self {
        Self { failure: Some(error.kind()), ..self }
    }

    /// Whether something could not be looked at or repaired, for another reason than that it is damaged, that somebody uses it, or has
    /// removed it meanwhile.
    pub fn is_failure(&self) -> bool {
        let told = [ErrorKind::Corrupt, ErrorKind::InUse, ErrorKind::NotFound];
        self.failure.is_some_and(|kind| !told.contains(&kind))
    }

    /// As many of these as anybody is told of, [`FINDINGS_MAX`]: before others damage, and what failed.
    pub fn most(mut findings: Vec<Self>) -> Vec<Self> {
        if findings.len() > FINDINGS_MAX {
            findings.sort_by_key(|finding| {
                finding.severity != Severity::Damage && !finding.is_failure()
            });
            findings.truncate(FINDINGS_MAX);
        }
        findings
    }

    /// Whether it still is as it should not be.
    pub fn stands(&self) -> bool {
        self.repaired.is_none()
    }
}

/// Whether a check also repairs what is safe to repair. Each includes what stands before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Repair {
    /// It only looks.
    #[default]
    No,
    /// It does, and says what it did.
    Safe,
    /// It also removes what no record ever mentioned, which may be what a record that was brought back from a backup is too
    /// old to know.
    WithUnknownFiles,
}

impl Repair {
    /// Whether anything is repaired at all.
    pub fn is_wanted(self) -> bool {
        self != Repair::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_gone_or_damaged_is_no_failure() {
        let of = |kind| Finding::not_looked_at(&Error::new(kind, "what")).is_failure();
        assert!(!Finding::new(Severity::Leak, "what").is_failure());
        assert!(![ErrorKind::Corrupt, ErrorKind::InUse, ErrorKind::NotFound].into_iter().any(of));
        assert!([ErrorKind::Io, ErrorKind::NoSpace, ErrorKind::Busy].into_iter().all(of));
    }

    #[test]
    fn of_too_many_findings_damage_and_failures_stay() {
        let mut all = vec![Finding::new(Severity::Leak, "space"); FINDINGS_MAX];
        assert_eq!(Finding::most(all.clone()), all);
        all.push(Finding::new(Severity::Damage, "bytes"));
        all.push(Finding::not_looked_at(&Error::new(ErrorKind::Io, "disk")));
        let most = Finding::most(all);
        assert_eq!(most.len(), FINDINGS_MAX);
        assert_eq!(
            (&most[0].what[..], &most[1].what[..], &most[2].what[..]),
            ("bytes", "disk", "space")
        );
    }
}
