//! Whether `docs/promises.md` tells the truth: each promise has a number and names its tests, and the tests exist.

/// A row of the table: `| P1 | promise | text | tests |`, tests being names in backticks.
#[derive(PartialEq, Eq, Debug)]
struct Promise<'a> {
    number: &'a str,
    tests: Vec<&'a str>,
}

/// What is wrong with the document, given the text of all sources.
pub fn problems(document: &str, sources: &[String]) -> Vec<String> {
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
        let absent =
            promise.tests.iter().filter(|test| !sources.iter().any(|text| has_word(text, test)));
        problems.extend(
            absent
                .map(|test| format!("{} names the test {test}, which is nowhere", promise.number)),
        );
    }
    problems
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
        let sources = ["fn a_child_is_apart() {}".to_owned(), "fn so_is_a_sibling() {}".to_owned()];
        assert!(problems(DOCUMENT, &sources).is_empty());
    }

    #[test]
    fn a_test_that_was_renamed_is_found() {
        let sources =
            ["fn a_child_is_apart_now() {}".to_owned(), "fn so_is_a_sibling() {}".to_owned()];
        assert_eq!(
            problems(DOCUMENT, &sources),
            ["P1 names the test a_child_is_apart, which is nowhere"]
        );
    }

    #[test]
    fn a_number_that_is_missing_is_found() {
        assert_eq!(problems("| P2 | a | b | |", &[]).len(), 1);
        assert_eq!(problems("no table", &[]).len(), 1);
    }
}
