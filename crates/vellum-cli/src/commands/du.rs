//! `vellum du`: what images store.

use serde::Serialize;
use vellum::Vellum;
use vellum::report::{KnownUsage, Usage};
use vellum_core::{ByteSize, ImageSpec};

use crate::commands::expect_all_open;
use crate::failure::Result;
use crate::output::Output;

#[derive(Serialize)]
struct Row {
    name: String,
    size: u64,
    /// Data of the revision itself. This and what follows is not known of an image that another command uses.
    data_bytes: Option<u64>,
    /// What it says is zero, whatever lies below.
    zero_bytes: Option<u64>,
    /// What its files occupy.
    stored_bytes: Option<u64>,
}

/// Shows one image, or all.
pub async fn run(vellum: &Vellum, spec: Option<&ImageSpec>, output: &mut Output) -> Result {
    let mut rows = Vec::new();
    match spec {
        Some(spec) => {
            let mut image = vellum.locate(spec).await?;
            let wanted = image.snapshot.take();
            let name = image.spec().to_string();
            let mut usage = vellum.usage(&image).await?;
            usage.retain(|usage| {
                let snapshot = usage.snapshot.as_deref();
                wanted.as_ref().is_none_or(|wanted| snapshot == Some(wanted.name.as_str()))
            });
            rows.extend(usage.into_iter().map(|usage| row(&name, usage)));
        }
        None => {
            for image in vellum.images(None).await? {
                let name = image.spec().to_string();
                let usage = vellum.usage_as_known(&image).await?;
                rows.extend(usage.into_iter().map(|usage| match usage {
                    KnownUsage::Known(usage) => row(&name, usage),
                    KnownUsage::InUse { size } => row_in_use(&name, size),
                }));
            }
        }
    }
    print(rows, output)?;
    if spec.is_some() { Ok(()) } else { expect_all_open(vellum).await }
}

fn row(image: &str, usage: Usage) -> Row {
    let name = match (&usage.snapshot, usage.is_head) {
        (Some(snapshot), _) => format!("{image}@{snapshot}"),
        (None, true) => image.to_owned(),
        (None, false) => format!("{image} (no name)"),
    };
    Row {
        name,
        size: usage.size,
        data_bytes: Some(usage.data_bytes),
        zero_bytes: Some(usage.zero_bytes),
        stored_bytes: Some(usage.stored_bytes),
    }
}

fn row_in_use(image: &str, size: u64) -> Row {
    let name = image.to_owned();
    Row { name, size, data_bytes: None, zero_bytes: None, stored_bytes: None }
}

fn print(mut rows: Vec<Row>, output: &mut Output) -> Result {
    // The head of an image first, where programs look for it.
    if output.is_json() {
        rows.sort_by_key(|row| row.name.contains('@') || row.name.ends_with(')'));
        return output.json(&rows);
    }
    let total: u64 = rows.iter().filter_map(|row| row.stored_bytes).sum();
    let size = |bytes: u64| format!("{:#}", ByteSize(bytes));
    let known = |bytes: Option<u64>| bytes.map_or_else(|| "in use".to_owned(), size);
    let mut table: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.name.clone(),
                size(row.size),
                known(row.data_bytes),
                known(row.zero_bytes),
                known(row.stored_bytes),
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
