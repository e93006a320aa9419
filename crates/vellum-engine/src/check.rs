//! [`Finding`]: what a check of a pool finds that is not as it should be.

use vellum_core::ImageName;

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
        Self { severity, image: None, what: what.into(), repaired: None }
    }

    /// What kept a check from looking, which must not keep it from looking at the rest.
    pub fn not_looked_at(error: &Error) -> Self {
        let severity = match error.kind() {
            ErrorKind::Corrupt => Severity::Damage,
            _ => Severity::Unknown,
        };
        Self::new(severity, error.chain())
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
