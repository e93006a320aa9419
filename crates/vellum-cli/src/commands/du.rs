//! `vellum du`: what images store.

use serde::Serialize;
use vellum::Vellum;
use vellum_core::{ByteSize, ImageSpec};

use crate::failure::Result;
use crate::output::Output;

#[derive(Serialize)]
struct Row {
    name: String,
    size: u64,
    /// Data of the revision itself.
    data_bytes: u64,
    /// What it says is zero, whatever lies below.
    zero_bytes: u64,
    /// What its files occupy.
    stored_bytes: u64,
}

/// Shows one image, or all.
pub async fn run(vellum: &Vellum, spec: Option<&ImageSpec>, output: &mut Output) -> Result {
    let images = match spec {
        Some(spec) => vec![vellum.locate(spec).await?],
        None => vellum.images(None).await?,
    };
    let mut rows = Vec::new();
    for mut image in images {
        let wanted = image.snapshot.take();
        let name = image.spec().to_string();
        for usage in vellum.usage(&image).await? {
            let named = match (&usage.snapshot, usage.is_head) {
                (Some(snapshot), _) => format!("{name}@{snapshot}"),
                (None, true) => name.clone(),
                (None, false) => format!("{name} (no name)"),
            };
            if wanted
                .as_ref()
                .is_none_or(|wanted| usage.snapshot.as_deref() == Some(wanted.name.as_str()))
            {
                let vellum::report::Usage { size, data_bytes, zero_bytes, stored_bytes, .. } =
                    usage;
                rows.push(Row { name: named, size, data_bytes, zero_bytes, stored_bytes });
            }
        }
    }
    // The head of an image first, where programs look for it.
    if output.is_json() {
        rows.sort_by_key(|row| row.name.contains('@') || row.name.ends_with(')'));
        return output.json(&rows);
    }
    let total: u64 = rows.iter().map(|row| row.stored_bytes).sum();
    let size = |bytes: u64| format!("{:#}", ByteSize(bytes));
    let mut table: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.name.clone(),
                size(row.size),
                size(row.data_bytes),
                size(row.zero_bytes),
                size(row.stored_bytes),
            ]
        })
        .collect();
    if table.len() > 1 {
        table.push(vec![
            "<TOTAL>".to_owned(),
            String::new(),
            String::new(),
            String::new(),
            size(total),
        ]);
    }
    output.table(&["NAME", "SIZE", "DATA", "ZERO", "STORED"], &[1, 2, 3, 4], table)
}
