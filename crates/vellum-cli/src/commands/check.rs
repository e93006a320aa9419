//! `vellum check`: what is recorded against what is stored.

use serde::Serialize;
use vellum::Vellum;
use vellum_core::ImageSpec;
use vellum_engine::{Error, ErrorKind, Repair, Severity};

use crate::failure::Result;
use crate::output::Output;

#[derive(Serialize)]
struct Row {
    severity: &'static str,
    pool: String,
    image: Option<String>,
    what: String,
    repaired: Option<String>,
}

/// Checks an image, or all pools. Fails as corrupt if something is damaged, and else if something could not be looked at for
/// another reason than that it is in use.
pub async fn run(
    vellum: &Vellum,
    spec: Option<&ImageSpec>,
    repair: Repair,
    output: &mut Output,
) -> Result {
    let located = match spec {
        Some(spec) => Some(vellum.locate(spec).await?),
        None => None,
    };
    let mut rows = Vec::new();
    let mut seen = Seen::default();
    for checked in vellum.check(located.as_ref(), repair).await? {
        seen.closed += usize::from(!checked.could_be_checked);
        seen.failed += checked.failures();
        for finding in checked.findings {
            seen.damaged += usize::from(finding.severity == Severity::Damage);
            rows.push(Row {
                severity: severity(finding.severity),
                pool: checked.pool.to_string(),
                image: finding.image.map(|image| image.to_string()),
                what: finding.what,
                repaired: finding.repaired,
            });
        }
    }
    print(&rows, output)?;
    seen.verdict().map_err(Into::into)
}

/// What decides how a check ends.
#[derive(Default)]
struct Seen {
    /// Findings that are damage.
    damaged: usize,
    /// Pools that could not be looked at.
    closed: usize,
    /// What could not be looked at, or not be repaired, in the others.
    failed: usize,
}

impl Seen {
    fn verdict(&self) -> std::result::Result<(), Error> {
        let (kind, what) = match (self.damaged, self.closed, self.failed) {
            (0, 0, 0) => return Ok(()),
            (0, 0, failed) => (
                ErrorKind::Io,
                format!(
                    "{failed} of these could not be looked at or repaired, for the reasons above: look at the storage, and check again"
                ),
            ),
            (0, closed, _) => (
                ErrorKind::Io,
                format!("{closed} pools could not be looked at, for the reasons above"),
            ),
            (damaged, ..) => (
                ErrorKind::Corrupt,
                format!(
                    "{damaged} of these are damage: restore what was lost from a copy; what can still be read can be exported"
                ),
            ),
        };
        Err(Error::new(kind, what))
    }
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Damage => "damage",
        Severity::Stale => "stale",
        Severity::Leak => "leak",
        Severity::Unknown => "unknown",
    }
}

fn print(rows: &[Row], output: &mut Output) -> Result {
    if output.is_json() {
        return output.json(&rows);
    }
    if rows.is_empty() {
        return output.line("all is as it should be");
    }
    for row in rows {
        let place = match &row.image {
            Some(image) => format!("{}/{image}", row.pool),
            None => row.pool.clone(),
        };
        let done = row.repaired.as_ref().map_or(String::new(), |done| format!("; {done}"));
        output.line(&format!("{}: {place}: {}{done}", row.severity, row.what))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_comes_before_what_could_not_be_looked_at_and_nothing_of_either_is_success() {
        let verdict = |damaged, closed, failed| {
            Seen { damaged, closed, failed }.verdict().map_err(|error| error.kind())
        };
        assert_eq!(verdict(0, 0, 0), Ok(()));
        assert_eq!(verdict(0, 0, 1), Err(ErrorKind::Io));
        assert_eq!(verdict(0, 1, 0), Err(ErrorKind::Io));
        assert_eq!(verdict(1, 1, 1), Err(ErrorKind::Corrupt));
    }
}
