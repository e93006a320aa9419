//! Dependencies that a crate names and does not use. They cost build time, and an argument that nobody needs to have.
//!
//! It looks for the name as a word in the crate's sources: a name that only a comment has is not found out.

use crate::promises::has_word;

/// What is wrong with a manifest, given the names and texts of all sources.
pub fn problems(manifest: &str, text: &str, sources: &[(&str, &str)]) -> Vec<String> {
    let Some(directory) = manifest.strip_suffix("Cargo.toml") else { return Vec::new() };
    let own: Vec<_> = sources.iter().filter(|(name, _)| name.starts_with(directory)).collect();
    let is_used = |dependency: &Dependency| {
        let name = dependency.name.replace('-', "_");
        own.iter()
            .filter(|(file, _)| dependency.for_tests || file[directory.len()..].starts_with("src/"))
            .any(|(_, text)| has_word(text, &name))
    };
    let unused = dependencies(text).into_iter().filter(|dependency| !is_used(dependency));
    unused
        .map(|dependency| {
            let place = if dependency.for_tests { "" } else { " in src/" };
            format!("{manifest}: {} is not used{place}", dependency.name)
        })
        .collect()
}

#[derive(Debug, PartialEq, Eq)]
struct Dependency<'a> {
    name: &'a str,
    for_tests: bool,
}

/// The dependencies of a manifest whose lines are `name = ...` or `name.workspace = true`.
fn dependencies(manifest: &str) -> Vec<Dependency<'_>> {
    let mut section = "";
    let mut found = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        } else if matches!(section, "[dependencies]" | "[dev-dependencies]")
            && let Some(end) = line.find(['.', ' ', '='])
            && end > 0
            && !line.starts_with('#')
        {
            found.push(Dependency {
                name: &line[..end],
                for_tests: section == "[dev-dependencies]",
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "[package]\nname = \"x\"\n\n[dependencies]\n# why\nserde.workspace = true\ntokio-util = \"1\"\n\n\
                            [dev-dependencies]\nrand.workspace = true\n";

    #[test]
    fn dependencies_are_found() {
        let names: Vec<_> =
            dependencies(MANIFEST).iter().map(|found| (found.name, found.for_tests)).collect();
        assert_eq!(names, [("serde", false), ("tokio-util", false), ("rand", true)]);
    }

    #[test]
    fn what_no_source_names_is_not_used() {
        let check = |sources: &[(&str, &str)]| problems("crates/x/Cargo.toml", MANIFEST, sources);
        let used = [
            ("crates/x/src/lib.rs", "use serde::Serialize;\nuse tokio_util::task;"),
            ("crates/x/tests/it/main.rs", "use rand::Rng;"),
        ];
        assert_eq!(check(&used), [] as [String; 0]);
        let elsewhere = [
            ("crates/x/tests/it/main.rs", "use serde::Serialize; use rand::Rng;"),
            ("crates/y/src/lib.rs", "use tokio_util::task; let serde_json;"),
        ];
        let problems = check(&elsewhere);
        assert_eq!(problems[0], "crates/x/Cargo.toml: serde is not used in src/");
        assert_eq!(problems[1], "crates/x/Cargo.toml: tokio-util is not used in src/");
        assert_eq!(problems.len(), 2);
    }
}
