//! The proof that dependencies go one way.
//!
//! For each rule cargo is asked what a crate reaches, through any number of others, when nothing else of the workspace is
//! built: so a feature that another crate switches on does not hide in the answer. A canary, a crate that must reach
//! what others must not, shows that the question is asked rightly.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::cargo::{cargo, output};

/// A crate, and what it must not reach.
struct Rule {
    name: &'static str,
    forbidden: &'static [&'static str],
}

/// A crate by its name, or a feature of one as `crate/feature`.
const RULES: &[Rule] = &[
    // The words that all others use: no I/O, no runtime.
    Rule {
        name: "vellum-core",
        forbidden: &[
            "tokio",
            "rustix",
            "rusqlite",
            "vellum-engine",
            "vellum-image",
            "vellum-disk",
            "vellum-local",
            "vellum-nbd",
            "vellum",
        ],
    },
    // The contract knows no engine but the one in memory, and no layering.
    Rule {
        name: "vellum-engine",
        forbidden: &[
            "vellum-image",
            "vellum-disk",
            "vellum-local",
            "vellum-nbd",
            "vellum",
            "rusqlite",
            "rustix",
            "mio",
            "socket2",
            "tokio/net",
            "tokio/fs",
        ],
    },
    // The layering rules know no engine, no file, no socket and no command line.
    Rule {
        name: "vellum-image",
        forbidden: &[
            "vellum-disk",
            "vellum-local",
            "vellum-nbd",
            "vellum-convert",
            "vellum",
            "vellum-cli",
            "vellum-suite",
            "vellum-sim",
            "vellum-testkit",
            "rusqlite",
            "rustix",
            "mio",
            "socket2",
            "clap",
            "tokio/net",
            "tokio/fs",
            "tokio/process",
            "tokio/signal",
        ],
    },
    // The file seam knows nothing of images.
    Rule {
        name: "vellum-disk",
        forbidden: &[
            "vellum-engine",
            "vellum-image",
            "vellum-local",
            "vellum-nbd",
            "vellum",
            "rusqlite",
        ],
    },
    // An engine knows nothing of parents' content, and nobody's protocol.
    Rule {
        name: "vellum-local",
        forbidden: &[
            "vellum-image",
            "vellum-nbd",
            "vellum-convert",
            "vellum",
            "vellum-suite",
            "vellum-sim",
            "clap",
        ],
    },
    // The protocol knows exports, not images.
    Rule {
        name: "vellum-nbd",
        forbidden: &[
            "vellum-engine",
            "vellum-image",
            "vellum-disk",
            "vellum-local",
            "vellum-convert",
            "vellum",
            "rusqlite",
            "clap",
        ],
    },
    // A format as bytes: no I/O, no runtime, and nothing of ours.
    Rule {
        name: "vellum-rbd",
        forbidden: &[
            "vellum-core",
            "vellum-engine",
            "vellum-image",
            "vellum-disk",
            "vellum-local",
            "vellum",
            "tokio",
            "rustix",
            "clap",
        ],
    },
    // The way to a cluster: objects, and not what they hold. Its sockets are librados' own.
    Rule {
        name: "vellum-rados",
        forbidden: &[
            "vellum-engine",
            "vellum-image",
            "vellum-disk",
            "vellum-local",
            "vellum-rbd",
            "vellum",
            "mio",
            "rustix",
            "clap",
        ],
    },
    // An engine: objects of a cluster, and nothing of layering.
    Rule {
        name: "vellum-ceph",
        forbidden: &[
            "vellum-image",
            "vellum-disk",
            "vellum-local",
            "vellum-nbd",
            "vellum",
            "rusqlite",
            "clap",
        ],
    },
    // Files in and out: no runtime, no images.
    Rule {
        name: "vellum-convert",
        forbidden: &[
            "vellum-engine",
            "vellum-image",
            "vellum-local",
            "vellum-nbd",
            "vellum",
            "mio",
            "tokio/net",
        ],
    },
    Rule {
        name: "vellum",
        forbidden: &[
            "vellum-cli",
            "vellum-convert",
            "vellum-suite",
            "vellum-sim",
            "vellum-testkit",
            "clap",
        ],
    },
    Rule { name: "vellum-cli", forbidden: &["vellum-suite", "vellum-sim", "vellum-testkit"] },
    // The suite knows the contract, and no engine it is run on.
    Rule {
        name: "vellum-suite",
        forbidden: &["vellum-image", "vellum-disk", "vellum-local", "vellum-nbd", "vellum"],
    },
    // The simulated disk knows files and SQLite, and nothing of what is kept in them.
    Rule {
        name: "vellum-sim",
        forbidden: &["vellum-engine", "vellum-image", "vellum-local", "vellum-nbd", "vellum"],
    },
    // Support for tests from outside sees what a user sees.
    Rule {
        name: "vellum-testkit",
        forbidden: &["vellum-engine", "vellum-image", "vellum-local", "vellum"],
    },
    // Fuzz targets see what they test, and not the program.
    Rule {
        name: "vellum-fuzz",
        forbidden: &["vellum-cli", "vellum-suite", "vellum-testkit", "vellum-bench"],
    },
    Rule {
        name: "vellum-bench",
        forbidden: &["vellum-engine", "vellum-image", "vellum-local", "vellum"],
    },
];

/// It reaches all of these; a proof that misses one of them is blind.
const CANARY: Rule = Rule {
    name: "vellum",
    forbidden: &[
        "vellum-core",
        "vellum-engine",
        "vellum-disk",
        "vellum-local",
        "vellum-image",
        "vellum-nbd",
        "rusqlite",
        "rustix",
        "mio",
        "tokio/net",
    ],
};

/// Checks every rule against what cargo says. An error names all that are broken.
pub fn run() -> Result<()> {
    let seen = broken(&CANARY, &reached_by(CANARY.name)?);
    ensure!(
        seen.len() == CANARY.forbidden.len(),
        "the proof is blind: {} reaches more than {seen:?}",
        CANARY.name
    );
    let mut failures = misnamed(&crates()?);
    for rule in RULES {
        let broken = broken(rule, &reached_by(rule.name)?);
        println!("{:<15} reaches none of {}", rule.name, rule.forbidden.join(", "));
        failures.extend(broken.iter().map(|name| format!("{} reaches {name}", rule.name)));
    }
    ensure!(
        failures.is_empty(),
        "{}; see ARCHITECTURE.md on who may know whom",
        failures.join("; ")
    );
    Ok(())
}

/// The names of the crates in `crates/`, and of the one that lies where `cargo fuzz` looks for it.
fn crates() -> Result<Vec<String>> {
    let entries = std::fs::read_dir("crates").context("list crates/")?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.chain([Ok("vellum-fuzz".to_owned())]).collect()
}

/// A rule about a crate that is not there forbids nothing, and a crate without a rule may reach anything.
fn misnamed(crates: &[String]) -> Vec<String> {
    let named = RULES.iter().flat_map(|rule| rule.forbidden.iter().chain([&rule.name]));
    let wrong = named
        .filter(|name| name.starts_with("vellum") && !crates.iter().any(|known| known == *name))
        .map(|name| format!("a rule names {name}, which is no crate of this repository"));
    let free = crates
        .iter()
        .filter(|known| !RULES.iter().any(|rule| rule.name == known.as_str()))
        .map(|known| format!("{known} has no rule"));
    wrong.chain(free).collect()
}

/// The features of each crate that one reaches, itself included.
type Reached = BTreeMap<String, Vec<String>>;

fn reached_by(name: &str) -> Result<Reached> {
    let arguments =
        ["tree", "--package", name, "--edges", "normal", "--prefix", "none", "--format", "{p}|{f}"];
    let reached = parse(&output(&mut cargo(&arguments))?)?;
    ensure!(reached.contains_key(name), "cargo tree does not list {name} itself");
    Ok(reached)
}

/// Reads lines of `name vVERSION (where)|feature,feature (*)`.
fn parse(tree: &str) -> Result<Reached> {
    let mut reached = Reached::new();
    for line in tree.lines().filter(|line| !line.is_empty()) {
        let (package, features) = line.split_once('|').with_context(|| format!("read '{line}'"))?;
        let name = package.split(' ').next().unwrap_or(package);
        let features = features.trim_end_matches("(*)").trim();
        let known = reached.entry(name.to_owned()).or_default();
        known.extend(features.split(',').filter(|feature| !feature.is_empty()).map(str::to_owned));
    }
    Ok(reached)
}

/// What a crate reaches although its rule forbids it.
fn broken(rule: &Rule, reached: &Reached) -> Vec<&'static str> {
    let is_reached = |forbidden: &str| match forbidden.split_once('/') {
        Some((name, feature)) => {
            reached.get(name).is_some_and(|features| features.iter().any(|known| known == feature))
        }
        None => reached.contains_key(forbidden),
    };
    rule.forbidden.iter().copied().filter(|forbidden| is_reached(forbidden)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "\
vellum-image v0.1.0 (somewhere/crates/vellum-image)|
tokio v1.54.0|rt,sync,time
vellum-engine v0.1.0 (somewhere/crates/vellum-engine)|
tokio v1.54.0|rt,sync,time (*)
";

    fn image() -> &'static Rule {
        RULES
            .iter()
            .find(|rule| rule.name == "vellum-image")
            .expect("the layering crate has a rule")
    }

    #[test]
    fn what_is_allowed_passes() {
        assert!(broken(image(), &parse(TREE).unwrap()).is_empty());
    }

    #[test]
    fn an_engine_below_the_layering_rules_is_found_however_far_down() {
        let tree =
            format!("{TREE}vellum-local v0.1.0 (somewhere)|\nrusqlite v0.43.0|bundled,default\n");
        assert_eq!(broken(image(), &parse(&tree).unwrap()), ["vellum-local", "rusqlite"]);
    }

    #[test]
    fn a_socket_that_comes_as_a_feature_is_found() {
        let tree = format!("{TREE}tokio v1.54.0|net,rt (*)\n");
        assert_eq!(broken(image(), &parse(&tree).unwrap()), ["tokio/net"]);
    }

    #[test]
    fn a_name_that_begins_like_another_is_another() {
        let tree = format!("{TREE}vellum-local-tools v0.1.0|\ntokio-util v0.7.20|net\n");
        assert!(broken(image(), &parse(&tree).unwrap()).is_empty());
    }

    #[test]
    fn a_crate_without_a_rule_and_a_rule_without_a_crate_are_found() {
        let mut crates: Vec<String> = RULES.iter().map(|rule| rule.name.to_owned()).collect();
        assert!(misnamed(&crates).is_empty());
        crates.push("vellum-new".to_owned());
        assert_eq!(misnamed(&crates), ["vellum-new has no rule"]);
        crates.retain(|name| name != "vellum-local");
        assert!(misnamed(&crates).iter().any(|failure| failure.contains("vellum-local")));
    }

    #[test]
    fn what_cargo_never_prints_is_an_error_and_no_proof() {
        assert!(parse("vellum-image v0.1.0").is_err());
    }
}
