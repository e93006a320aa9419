//! Whether documents tell the truth about tests: each promise has a number and names its tests, and what is named is a test.

use std::collections::BTreeSet;

/// A row of the table: `| P1 | promise | text | tests |`, tests being names in backticks.
#[derive(PartialEq, Eq, Debug)]
struct Promise<'a> {
    number: &'a str,
    tests: Vec<&'a str>,
}

/// What is wrong with the table of promises, given the names of all tests.
pub fn problems(document: &str, tests: &BTreeSet<&str>) -> Vec<String> {
    let promises = rows(document);
    let mut problems = Vec::new();
    if promises.is_empty() {
        problems.push("no row of the form | P1 | promise | text | tests |".to_owned());
    }
    for (index, promise) in promises.iter().enumerate() {
        if promise.number != format!("P{}", index + 1) {
            problems.push(format!(
                "{} stands where P{} must: numbers are never reused",
                promise.number,
                index + 1
            ));
        }
        let absent = promise.tests.iter().filter(|test| !tests.contains(*test));
        problems.extend(
            absent
                .map(|test| format!("{} names the test {test}, which is nowhere", promise.number)),
        );
    }
    problems
}

/// Names of tests in a document that are none. A test's name is a sentence: a word in backticks with four parts or more.
pub fn unknown_names(document: &str, tests: &BTreeSet<&str>) -> Vec<String> {
    let quoted = document.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let names = quoted.filter(|name| {
        name.split('_').count() >= 4
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    });
    let unknown = names.filter(|name| !tests.contains(name));
    unknown.map(|name| format!("names the test {name}, which is nowhere")).collect()
}

/// What a source can mean by a test: its functions, and its texts, with which tests that are made at run time are named.
pub fn tests_in(source: &str) -> impl Iterator<Item = &str> {
    let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| {
        let functions = line.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next());
        functions.chain(line.split('"').skip(1).step_by(2))
    })
}

fn rows(document: &str) -> Vec<Promise<'_>> {
    let rows = document.lines().filter(|line| line.starts_with("| P"));
    rows.filter_map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let (number, tests) = (cells.first()?, cells.last()?);
        Some(Promise { number, tests: tests.split('`').skip(1).step_by(2).collect() })
    })
    .collect()
}

/// Whether a name occurs that is not part of a longer one.
pub fn has_word(text: &str, word: &str) -> bool {
    let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word).any(|(at, _)| {
        !inside(text[..at].chars().next_back()) && !inside(text[at + word.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "\
| number | promise | what | tests |
|---|---|---|---|
| P1 | isolation | never changes | `a_child_is_apart`, `so_is_a_sibling` |
| P2 | waiting | deadline | |
";

    #[test]
    fn tests_that_exist_are_fine_and_none_are_asked_for() {
        let tests = ["a_child_is_apart", "so_is_a_sibling"].into();
        assert!(problems(DOCUMENT, &tests).is_empty());
    }

    #[test]
    fn a_test_that_was_renamed_is_found() {
        let tests = ["a_child_is_apart_now", "so_is_a_sibling"].into();
        assert_eq!(
            problems(DOCUMENT, &tests),
            ["P1 names the test a_child_is_apart, which is nowhere"]
        );
        assert_eq!(unknown_names(DOCUMENT, &tests).len(), 1);
    }

    #[test]
    fn a_number_that_is_missing_is_found() {
        assert_eq!(problems("| P2 | a | b | |", &BTreeSet::new()).len(), 1);
        assert_eq!(problems("no table", &BTreeSet::new()).len(), 1);
    }

    #[test]
    fn a_test_is_a_function_or_a_text_and_not_what_a_comment_speaks_of() {
        let source = "
            // fn not_this() nor \"this_one\"
            async fn a_function_of_many_words() {}
            trial(\"a_text_of_many_words\", text);
        ";
        let found: Vec<&str> = tests_in(source).collect();
        assert_eq!(found, ["a_function_of_many_words", "a_text_of_many_words"]);
    }
}
