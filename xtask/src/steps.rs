//! [`Steps`]: one after the other, all of them, with their times at the end.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Steps that ran. A failed one does not keep later ones from running: one run shows all there is to repair.
#[derive(Default)]
pub struct Steps(Vec<Step>);

struct Step {
    name: &'static str,
    took: Duration,
    failure: Option<String>,
}

impl Steps {
    /// Runs a step, and says at once if it failed, in a line.
    pub fn run(&mut self, name: &'static str, step: impl FnOnce() -> Result<()>) {
        eprintln!("\n== {name}");
        let started = Instant::now();
        let failure = step().err().map(|error| format!("{error:#}"));
        if let Some(failure) = &failure {
            eprintln!("== {name} FAILED: {}", failure.lines().next().unwrap_or_default());
        }
        self.0.push(Step { name, took: started.elapsed(), failure });
    }

    /// Says again what failed, after all that came since, and prints the table of steps. An error if one failed.
    pub fn finish(self) -> Result<()> {
        for step in &self.0 {
            if let Some(failure) = &step.failure {
                println!("\n== {} FAILED: {failure}", step.name);
            }
        }
        println!("\n{}", self.table());
        let failed: Vec<&str> =
            self.0.iter().filter(|step| step.failure.is_some()).map(|step| step.name).collect();
        ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
        Ok(())
    }

    fn table(&self) -> String {
        let total: Duration = self.0.iter().map(|step| step.took).sum();
        let mut lines: Vec<String> = self
            .0
            .iter()
            .map(|step| {
                let outcome = if step.failure.is_some() { "FAILED" } else { "ok" };
                format!("{:<16}{:>8.1} s  {outcome}", step.name, step.took.as_secs_f64())
            })
            .collect();
        lines.push(format!("{:<16}{:>8.1} s", "all", total.as_secs_f64()));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_lets_the_next_one_run_and_fails_the_whole() {
        let mut steps = Steps::default();
        let mut ran = false;
        steps.run("one", || anyhow::bail!("no"));
        steps.run("two", || {
            ran = true;
            Ok(())
        });
        assert!(ran);
        let table = steps.table();
        assert!(
            table.contains("one") && table.contains("FAILED") && table.contains("ok"),
            "{table}"
        );
        assert_eq!(steps.finish().unwrap_err().to_string(), "failed: one");
    }

    #[test]
    fn steps_that_went_well_are_a_success() {
        let mut steps = Steps::default();
        steps.run("one", || Ok(()));
        assert!(steps.finish().is_ok());
    }
}
