//! [`Space`]: what a check finds that lies under no data, and [`Extents`], which name the first of their kind.

use vellum_core::Extent;
use vellum_engine::{Error, Finding, Repair, Result, Severity};

use super::Report;
use crate::LayerId;

/// Extents of one kind in one layer that are named one by one; the rest is counted.
pub(super) const NAMED_MAX: usize = 3;

/// Extents of one kind, of which the first are named and all are counted.
#[derive(Default)]
pub(super) struct Extents {
    named: Vec<Extent>,
    bytes: u64,
}

impl Extents {
    pub(super) fn add(&mut self, at: Extent) {
        self.bytes += at.length();
        let many = self.named.len() >= NAMED_MAX;
        match self.named.last_mut() {
            Some(last) if last.end() == at.offset() => {
                *last = Extent::between(last.offset(), at.end());
            }
            _ if many => {}
            _ => self.named.push(at),
        }
    }

    /// What is to be said of them, if there are any.
    pub(super) fn finding(&self, severity: Severity, what: &str) -> Option<Finding> {
        if self.bytes == 0 {
            return None;
        }
        let named: Vec<String> = self.named.iter().map(Extent::to_string).collect();
        let more = self.bytes > self.named.iter().map(Extent::length).sum();
        let more = if more { " and more" } else { "" };
        let what = format!("{what}: {} bytes, at {}{more}", self.bytes, named.join(", "));
        Some(Finding::new(severity, what))
    }
}

/// Space of one kind that nothing refers to.
pub(super) struct Unused {
    what: &'static str,
    /// The least repair that frees it.
    pub(super) freed_by: Repair,
    freed: Extents,
    left: Extents,
    /// Why some of it could not be freed.
    failure: Option<Error>,
}

impl Unused {
    fn new(freed_by: Repair, what: &'static str) -> Self {
        let (freed, left) = Default::default();
        Self { what, freed_by, freed, left, failure: None }
    }

    /// Notes some, and whether it was freed.
    pub(super) fn add(&mut self, at: Extent, freed: Result<bool>) {
        match freed {
            Ok(true) => self.freed.add(at),
            Ok(false) => self.left.add(at),
            Err(error) => {
                self.left.add(at);
                self.failure.get_or_insert(error);
            }
        }
    }

    fn tell(self, layer: LayerId, report: &mut Report) {
        let what = format!("layer {layer}: {}", self.what);
        let freed = self.freed.finding(Severity::Leak, &what);
        report.extend(freed.map(|finding| finding.repaired("freed it")));
        let mut left = self.left.finding(Severity::Leak, &what);
        if let (Some(finding), Some(error)) = (&mut left, &self.failure) {
            finding.what.push_str(&format!("; it cannot be freed: {}", error.chain()));
            finding.failure = Some(error.kind());
        }
        report.extend(left);
    }
}

/// Space in data files that is not under data.
pub(super) struct Space {
    /// Of units that the map says are something else.
    pub(super) given_up: Unused,
    /// Of units whose states the map does not have. A power cut leaves them, of writes that were never synced; but a map that
    /// lost them looks the same, and then they are data.
    pub(super) unsaid: Unused,
    /// Behind all units that the image can have there.
    pub(super) behind: Unused,
}

impl Default for Space {
    fn default() -> Self {
        let given_up = Unused::new(Repair::Safe, "space under units that are not data");
        let unsaid = Unused::new(
            Repair::WithUnknownFiles,
            "space under units whose states were never written, left by a power cut, or all that is left of data if the map has \
             lost a part",
        );
        let behind = Unused::new(
            Repair::WithUnknownFiles,
            "space in data files behind the end of the image, which nobody knows who wrote",
        );
        Self { given_up, unsaid, behind }
    }
}

impl Space {
    /// What is to be said of it.
    pub(super) fn tell(self, layer: LayerId, report: &mut Report) {
        self.given_up.tell(layer, report);
        self.unsaid.tell(layer, report);
        self.behind.tell(layer, report);
    }
}
