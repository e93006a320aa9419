//! Whether the catalog agrees with itself: the invariants of `docs/format.md`, asked of the tables.

use rusqlite::Connection;
use vellum_engine::{Finding, ImageId, PoolId, Repair, Severity};

use super::children::{self, ParentInPool};
use super::record::{self, ImageNo, layer_key, layer_of};
use super::{Outcome, layers};

/// How many complaints of SQLite are passed on.
const COMPLAINTS_MAX: usize = 100;

/// Rows that must not exist, each with what it means that one does. The first column says which.
const IMPOSSIBLE: &[(&str, &str)] = &[
    (
        "SELECT 'image ' || i.name FROM images i LEFT JOIN layers l ON l.id = i.head
         WHERE l.id IS NULL OR l.image <> i.id OR l.sealed <> 0",
        "has no head that can be written",
    ),
    (
        "SELECT printf('layer %016x', l.id) FROM layers l
         WHERE l.sealed = 0 AND NOT EXISTS (SELECT 1 FROM images i WHERE i.head = l.id)",
        "can be written and is no image's head",
    ),
    (
        "SELECT printf('layer %016x', l.id) FROM layers l
         WHERE l.sealed = 1 AND NOT EXISTS (SELECT 1 FROM layers a WHERE a.below_layer = l.id AND a.image = l.image)",
        "is sealed, and nothing of its image lies above it",
    ),
    (
        "SELECT printf('layer %016x', l.id) FROM layers l LEFT JOIN layers b ON b.id = l.below_layer
         WHERE l.below = 'own' AND (b.id IS NULL OR b.image <> l.image OR b.sealed <> 1)",
        "does not lie above a sealed layer of its own image, as it says",
    ),
    (
        "SELECT printf('layer %016x', l.id) FROM layers l LEFT JOIN layers b ON b.id = l.below_layer
         WHERE l.below <> 'nothing' AND (l.overlap > l.size OR l.overlap > b.size)",
        "overlaps what lies below it beyond an end",
    ),
    (
        "SELECT 'snapshot ' || s.name FROM snapshots s LEFT JOIN layers l ON l.id = s.layer
         WHERE l.id IS NULL OR l.image <> s.image OR l.sealed <> 1",
        "names no sealed layer of its image",
    ),
    (
        "SELECT printf('layer %016x', c.layer) FROM children c
         WHERE NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.layer = c.layer)",
        "has children, and no snapshot that keeps it",
    ),
    (
        "SELECT printf('layer %016x', l.id) FROM layers l
         WHERE l.below = 'parent' AND l.below_layer IS NOT NULL
         AND NOT EXISTS (SELECT 1 FROM snapshots s WHERE s.layer = l.below_layer)",
        "hangs on a layer that no snapshot keeps",
    ),
];

/// What is wrong with the catalog by itself. If something is, nothing else may be believed of it.
pub(crate) fn damage(db: &Connection) -> Outcome<Vec<Finding>> {
    let complaints = |sql: &str| -> Outcome<Vec<String>> {
        let mut statement = db.prepare(sql)?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        Ok(rows.take(COMPLAINTS_MAX).collect::<Result<_, _>>()?)
    };
    let mut found: Vec<String> = complaints("PRAGMA integrity_check(100)")?;
    found.retain(|complaint| complaint != "ok");
    found.extend(
        complaints(
            "SELECT 'a row of ' || \"table\" || ' refers to a missing row of ' || parent FROM pragma_foreign_key_check",
        )?,
    );
    for (sql, what) in IMPOSSIBLE {
        found.extend(complaints(sql)?.iter().map(|which| format!("{which} {what}")));
    }
    for image in all_images(db)? {
        match record::load(db, image) {
            Ok(record) => {
                let deepest = layers::depth(db, layers::head(db, image)?.id)?;
                if deepest > layers::DEPTH_MAX {
                    found.push(format!(
                        "image {} has a chain of more than {} layers, or one that leads back to itself",
                        record.name,
                        layers::DEPTH_MAX
                    ));
                }
            }
            Err(failure) => found.push(failure.into_error("read an image's record").chain()),
        }
    }
    Ok(found
        .into_iter()
        .map(|what| Finding::new(Severity::Damage, format!("pool.sqlite: {what}")))
        .collect())
}

/// All images, in the order of their ids.
pub(crate) fn all_images(db: &Connection) -> Outcome<Vec<ImageNo>> {
    let mut statement = db.prepare_cached("SELECT id FROM images ORDER BY id")?;
    let rows = statement.query_map([], |row| row.get(0).map(ImageNo))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Lists that do not agree with the links of this pool, and layers that are remembered as removed and are there. Repaired, if
/// that is asked for, in the transaction of the caller.
pub(crate) fn stale(db: &Connection, pool: PoolId, repair: Repair) -> Outcome<Vec<Finding>> {
    let mut findings = stale_children(db, pool, repair)?;
    findings.extend(missing_children(db, pool, repair)?);
    for layer in layers::removed(db, usize::MAX)? {
        if layers::known(db, &[layer])?.is_empty() {
            continue;
        }
        let what = format!("layer {layer} is remembered as removed, and is there");
        let mut finding = Finding::new(Severity::Stale, what);
        if repair.is_wanted() {
            layers::forget_removed(db, &[layer])?;
            finding = finding.repaired("forgot that it was removed");
        }
        findings.push(finding);
    }
    Ok(findings)
}

/// Children of this pool in a list, which do not hang there.
fn stale_children(db: &Connection, pool: PoolId, repair: Repair) -> Outcome<Vec<Finding>> {
    let mut statement = db.prepare_cached(
        "SELECT c.layer, c.image, l.image FROM children c JOIN layers l ON l.id = c.layer
         WHERE c.pool = ?1 AND NOT EXISTS (
           SELECT 1 FROM layers a WHERE a.below = 'parent' AND a.below_layer = c.layer
           AND printf('%016x', a.image) = c.image)",
    )?;
    let rows = statement.query_map([pool.0], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get(2).map(ImageNo)?))
    })?;
    let mut findings = Vec::new();
    for row in rows.collect::<Result<Vec<_>, _>>()? {
        let (layer, child, image) = (layer_of(row.0)?, ImageId::new(row.1), row.2);
        let what =
            format!("layer {layer} lists image {child} as a child, which does not hang on it");
        let mut finding = Finding::new(Severity::Stale, what);
        if repair.is_wanted() {
            children::unlist(db, pool, &ParentInPool { image, layer }, &child, &[])?;
            finding = finding.repaired("took it from the list");
        }
        findings.push(finding);
    }
    Ok(findings)
}

/// Children that hang on a layer of this pool, and are not in its list.
fn missing_children(db: &Connection, pool: PoolId, repair: Repair) -> Outcome<Vec<Finding>> {
    let mut statement = db.prepare_cached(
        "SELECT DISTINCT a.below_layer, a.image FROM layers a
         WHERE a.below = 'parent' AND a.below_layer IS NOT NULL AND NOT EXISTS (
           SELECT 1 FROM children c WHERE c.layer = a.below_layer AND c.pool = ?1
           AND c.image = printf('%016x', a.image))",
    )?;
    let rows = statement.query_map([pool.0], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?)))?;
    let mut findings = Vec::new();
    for row in rows.collect::<Result<Vec<_>, _>>()? {
        let (layer, child) = (layer_of(row.0)?, ImageNo(row.1).id());
        let what = format!("layer {layer} does not list image {child}, which hangs on it");
        let mut finding = Finding::new(Severity::Stale, what);
        if repair.is_wanted() {
            db.prepare_cached("INSERT INTO children (layer, pool, image) VALUES (?1, ?2, ?3)")?
                .execute((layer_key(layer), pool.0, child.as_str()))?;
            finding = finding.repaired("entered it in the list");
        }
        findings.push(finding);
    }
    Ok(findings)
}
