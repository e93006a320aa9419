//! [`Space`]: what a check finds that lies under no data, and [`Extents`], which name the first of their kind.

use vellum_core::Extent;
use vellum_engine::{Finding, Repair, Severity};

use crate::LayerId;

/// Extents of one kind in one layer that are named one by one; the rest is counted.
const NAMED_MAX: usize = 3;

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

/// Space under units that are not data.
#[derive(Default)]
pub(super) struct Space {
    /// Of units that the map says are something else.
    given_up: Extents,
    /// Of units whose states the map does not have. A power cut leaves them, of writes that were never synced; but a map that
    /// lost them looks the same, and then they are data.
    unsaid: Extents,
}

impl Space {
    /// Notes some, and says which repair may free it.
    pub(super) fn add(&mut self, at: Extent, is_said: bool) -> Repair {
        if is_said {
            self.given_up.add(at);
            Repair::Safe
        } else {
            self.unsaid.add(at);
            Repair::WithUnknownFiles
        }
    }

    pub(super) fn findings(&self, layer: LayerId, repair: Repair) -> Vec<Finding> {
        let given_up = format!("layer {layer}: space under units that are not data");
        let unsaid = format!(
            "layer {layer}: space under units whose states were never written, left by a power cut, or all that is left of data \
             if the map has lost a part"
        );
        let kinds = [
            (self.given_up.finding(Severity::Leak, &given_up), Repair::Safe),
            (self.unsaid.finding(Severity::Leak, &unsaid), Repair::WithUnknownFiles),
        ];
        let found = kinds.into_iter().filter_map(|(finding, freed_by)| {
            let is_freed = repair >= freed_by;
            finding.map(|it| if is_freed { it.repaired("freed it") } else { it })
        });
        found.collect()
    }
}
