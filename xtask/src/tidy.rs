//! `cargo xtask tidy`: what this repository asks of its files and no other tool checks.
//!
//! It looks at what git tracks or would track, so that a new file is looked at before it is committed.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo::output;
use crate::{dependencies, promises};

/// Text that is looked at, by the end of its name.
const TEXT: [&str; 9] =
    [".rs", ".md", ".toml", ".sh", ".py", ".sql", ".yml", ".ci/run", ".gitignore"];

/// Checks the repository. An error counts what it printed.
pub fn run() -> Result<()> {
    let files = read(&names()?)?;
    let mut problems: Vec<String> = files.iter().flat_map(|file| file.problems()).collect();
    problems.extend(whole(&files, &directories("crates")?));
    for problem in &problems {
        println!("{problem}");
    }
    ensure!(problems.is_empty(), "{} things to tidy up", problems.len());
    println!("{} files are tidy", files.len());
    Ok(())
}

fn names() -> Result<Vec<String>> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let list = output(Command::new("git").args(arguments))?;
    Ok(list.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn read(names: &[String]) -> Result<Vec<File>> {
    let text = names.iter().filter(|name| TEXT.iter().any(|end| name.ends_with(end)));
    // A file that is tracked but removed is gone with the next commit.
    text.filter(|name| Path::new(name).exists())
        .map(|name| {
            let text = std::fs::read_to_string(name).with_context(|| format!("read {name}"))?;
            Ok(File { name: name.clone(), text })
        })
        .collect()
}

fn directories(of: &str) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(of).with_context(|| format!("list {of}"))?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

struct File {
    name: String,
    text: String,
}

impl File {
    /// What is wrong with this file, whatever the others hold.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.name.ends_with(".rs") && !self.text.starts_with("//!") {
            problems.push(format!("{}:1: must open with //! saying what it is", self.name));
        }
        if self.name.starts_with("crates/")
            && self.name.ends_with("/Cargo.toml")
            && !self.text.contains("[lints]\nworkspace = true")
        {
            problems.push(format!("{}: must take the lints of the workspace", self.name));
        }
        if !self.text.is_empty() && !self.text.ends_with('\n') {
            problems.push(format!("{}: must end with a line feed", self.name));
        }
        for (index, line) in self.text.lines().enumerate() {
            problems.extend(
                self.problem_of(line).map(|what| format!("{}:{}: {what}", self.name, index + 1)),
            );
        }
        problems.extend(self.broken_links());
        problems
    }

    fn problem_of(&self, line: &str) -> Option<String> {
        if line.ends_with([' ', '\t', '\r']) {
            return Some("white space at the end of the line".to_owned());
        }
        if let Some(odd) = line.chars().find(|c| !c.is_ascii()) {
            return Some(format!("{odd:?} is not ASCII; write it as an escape"));
        }
        if let Some(mark) = postponed().iter().find(|mark| promises::has_word(line, mark)) {
            return Some(format!("{mark}: do it now, or write down why not in docs/decisions"));
        }
        machines()
            .iter()
            .find(|path| begins_path(line, path))
            .map(|path| format!("{path} is a path of one machine"))
    }

    /// Relative links of a document must lead somewhere.
    fn broken_links(&self) -> Vec<String> {
        if !self.name.ends_with(".md") {
            return Vec::new();
        }
        let here = Path::new(&self.name).parent().unwrap_or(Path::new(""));
        let targets = links(&self.text).into_iter().filter(|target| !here.join(target).exists());
        targets.map(|target| format!("{}: the link to {target} leads nowhere", self.name)).collect()
    }
}

/// What is wrong with the repository as a whole.
fn whole(files: &[File], crates: &[String]) -> Vec<String> {
    let find =
        |name: &str| files.iter().find(|file| file.name == name).map(|file| file.text.as_str());
    let mut problems = Vec::new();
    for name in
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/promises.md"]
    {
        if find(name).is_none() {
            problems.push(format!("{name} is missing"));
        }
    }
    let map = find("ARCHITECTURE.md").unwrap_or_default();
    let unlisted = crates.iter().filter(|name| !map.contains(&format!("`{name}`")));
    problems.extend(unlisted.map(|name| format!("ARCHITECTURE.md: the code map lacks `{name}`")));
    if !find("CHANGELOG.md").is_some_and(|text| text.contains("## [Unreleased]")) {
        problems.push("CHANGELOG.md: there is no heading for what is unreleased".to_owned());
    }
    let sources = files.iter().filter(|file| file.name.ends_with(".rs"));
    let tests = sources.flat_map(|file| promises::tests_in(&file.text)).collect();
    let named: Vec<(&str, &str)> =
        files.iter().map(|file| (file.name.as_str(), file.text.as_str())).collect();
    let sources_by_name: Vec<_> =
        named.iter().copied().filter(|(name, _)| name.ends_with(".rs")).collect();
    for (name, text) in named.iter().filter(|(name, _)| name.ends_with("/Cargo.toml")) {
        problems.extend(dependencies::problems(name, text, &sources_by_name));
    }
    let promised = find("docs/promises.md").unwrap_or_default();
    let told = find("docs/testing.md").unwrap_or_default();
    for (document, found) in [
        ("docs/promises.md", promises::problems(promised, &tests)),
        ("docs/testing.md", promises::unknown_names(told, &tests)),
    ] {
        problems.extend(found.into_iter().map(|what| format!("{document}: {what}")));
    }
    problems
}

/// The words for work put off, put together here so that this file does not hold them.
fn postponed() -> [String; 5] {
    [("TO", "DO"), ("FIX", "ME"), ("XX", "X"), ("to", "do!"), ("unimple", "mented!")]
        .map(|(head, tail)| format!("{head}{tail}"))
}

/// Directories in which people keep their checkouts.
fn machines() -> [String; 3] {
    ["work", "root", "home"].map(|name| format!("/{name}/"))
}

/// Whether a path begins here, rather than going on: `/a/` does in `cd /a/b`, and does not in `x/a/b`.
fn begins_path(line: &str, path: &str) -> bool {
    let goes_on = |c: char| c.is_alphanumeric() || "._-/~}$*".contains(c);
    line.match_indices(path).any(|(at, _)| !line[..at].chars().next_back().is_some_and(goes_on))
}

/// The relative targets of a document's links, without their anchors.
fn links(text: &str) -> Vec<&str> {
    let after = text.split("](").skip(1);
    after
        .filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
        .filter(|target| !target.contains("://") && !target.starts_with(['#', '<']))
        .map(|target| target.split('#').next().unwrap_or(target))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(name: &str, text: &str) -> Vec<String> {
        File { name: name.to_owned(), text: text.to_owned() }.problems()
    }

    #[test]
    fn a_tidy_file_passes() {
        assert!(problems("a.rs", "//! A thing.\n\nfn a() {}\n").is_empty());
        assert!(problems("crates/a/Cargo.toml", "[lints]\nworkspace = true\n").is_empty());
    }

    #[test]
    fn each_kind_of_untidiness_is_found() {
        let [todo, ..] = postponed();
        let [machine, ..] = machines();
        for (name, text) in [
            ("a.rs", "fn a() {}\n"),
            ("a.rs", "//! A thing. \n"),
            ("a.rs", "//! A thing."),
            ("a.rs", "//! Caf\u{e9}\n"),
            ("a.md", "a\tb\t\n"),
            ("crates/a/Cargo.toml", "[dependencies]\n"),
            ("a.md", "see [this](no/such/file.md)\n"),
        ] {
            assert_eq!(problems(name, text).len(), 1, "{name}: {text:?}");
        }
        assert_eq!(problems("a.rs", &format!("//! A thing.\n// {todo}: more\n")).len(), 1);
        assert_eq!(problems("a.md", &format!("cd {machine}b\n")).len(), 1);
    }

    #[test]
    fn what_only_looks_like_it_is_left_alone() {
        let [todo, .., postponed] = postponed();
        let [machine, ..] = machines();
        assert!(
            problems("a.rs", &format!("//! A thing.\nlet mas{todo}s = 1; // x{postponed}\n"))
                .is_empty()
        );
        assert!(
            problems("a.md", &format!("frame{machine}b and https://a.b/c[d](https://e/f)\n"))
                .is_empty()
        );
    }

    #[test]
    fn a_crate_that_the_code_map_lacks_is_found() {
        let file = |name: &str, text: &str| File { name: name.to_owned(), text: text.to_owned() };
        let files = [
            file("README.md", ""),
            file("CONTRIBUTING.md", ""),
            file("ARCHITECTURE.md", "### `one`\n"),
            file("CHANGELOG.md", "## [Unreleased]\n"),
            file("docs/promises.md", "| P1 | a | b | |\n"),
        ];
        assert!(whole(&files, &["one".to_owned()]).is_empty());
        assert_eq!(whole(&files, &["one".to_owned(), "two".to_owned()]).len(), 1);
        assert!(whole(&files[1..], &[]).contains(&"README.md is missing".to_owned()));
    }
}
