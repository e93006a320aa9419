//! [`Failures`]: what tests say of those that failed, to be said again where a long run ends.
//!
//! It reads what `cargo test` prints, of libtest and of what prints as libtest does, and knows no more of it than where a list of
//! failures begins and ends.

/// How many lines of a list are kept, from its end: a test may print without bound.
const LINES_MAX: usize = 150;

/// The lists of failures in what was printed, line by line.
#[derive(Debug, Default)]
pub struct Failures {
    lists: Vec<Vec<String>>,
    within: bool,
}

impl Failures {
    /// Takes the next line.
    pub fn take(&mut self, line: &str) {
        if !self.within && line == "failures:" {
            self.within = true;
            self.lists.push(Vec::new());
        }
        if let Some(list) = self.lists.last_mut().filter(|_| self.within) {
            list.push(line.to_owned());
            self.within = !line.starts_with("test result:");
        }
    }

    /// All of it; empty if nothing failed.
    pub fn told(&self) -> String {
        let mut told = String::new();
        for list in &self.lists {
            let cut = list.len().saturating_sub(LINES_MAX);
            if cut > 0 {
                told.push_str(&format!("\n({cut} lines are left out)"));
            }
            for line in &list[cut..] {
                told.push('\n');
                told.push_str(line);
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(printed: &str) -> String {
        let mut failures = Failures::default();
        printed.lines().for_each(|line| failures.take(line));
        failures.told()
    }

    #[test]
    fn what_went_well_is_not_said_again() {
        assert_eq!(told("running 1 test\ntest one ... ok\n\ntest result: ok. 1 passed\n"), "");
    }

    #[test]
    fn each_list_of_failures_is_said_from_its_head_to_the_result() {
        let one = "failures:\n\n---- one stdout ----\nit is wrong\n\n\nfailures:\n    one\n\n\
                   test result: FAILED. 1 passed; 1 failed";
        let other = one.replace("one", "other");
        let printed = format!("test one ... FAILED\n\n{one}\n\nrunning 3 tests\n\n{other}\nmore\n");
        assert_eq!(told(&printed), format!("\n{one}\n{other}"));
    }

    #[test]
    fn of_a_long_list_the_end_is_said() {
        let printed = format!("failures:\n{}test result: FAILED", "noise\n".repeat(1000));
        let told = told(&printed);
        assert!(told.starts_with("\n(852 lines are left out)\nnoise"), "{told}");
        assert!(told.ends_with("\ntest result: FAILED"), "{told}");
        assert_eq!(told.lines().count(), LINES_MAX + 2);
    }
}
