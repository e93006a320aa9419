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

/// Checks an image, or all pools. Fails as corrupt if something is damaged, and else if a pool could not be looked at.
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
    let (mut damaged, mut closed) = (0, 0);
    for checked in vellum.check(located.as_ref(), repair).await? {
        closed += usize::from(!checked.could_be_checked);
        for finding in checked.findings {
            damaged += usize::from(finding.severity == Severity::Damage);
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
    let (kind, what) = match (damaged, closed) {
        (0, 0) => return Ok(()),
        (0, closed) => {
            (ErrorKind::Io, format!("{closed} pools could not be looked at, for the reasons above"))
        }
        (damaged, _) => (
            ErrorKind::Corrupt,
            format!(
                "{damaged} of these are damage: restore what was lost from a copy; what can still be read can be exported"
            ),
        ),
    };
    Err(Error::new(kind, what).into())
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
