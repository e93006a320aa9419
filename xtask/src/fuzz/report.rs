//! [`Report`]: what a run of libFuzzer says of itself, as a line of a table.

/// How a run went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The target.
    pub name: String,
    /// Inputs that were run.
    pub inputs: u64,
    /// Edges of the code that were reached: by the seeds and what earlier runs kept, and in the end.
    pub edges: (u64, u64),
    /// Inputs that each reach something of their own.
    pub corpus: u64,
    /// The most memory that the process had, in MiB.
    pub memory: u64,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

impl Report {
    /// Reads what a run said. One that reached nothing has failed, whatever it says.
    pub fn read(name: &str, said: &str, failure: Option<String>) -> Self {
        let stat = |name: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse().ok()
        };
        let after = |line: &str, word: &str| {
            let mut words = line.split_whitespace();
            words.find(|found| *found == word)?;
            words.next()?.split('/').next()?.parse().ok()
        };
        let progress: Vec<&str> =
            said.lines().filter(|line| line.starts_with('#') && line.contains(" cov: ")).collect();
        let first = progress.iter().find(|line| line.contains("INITED"));
        let last = progress.last();
        let edges = |line: Option<&&str>| line.and_then(|line| after(line, "cov:")).unwrap_or(0);
        let counted =
            last.and_then(|line| line.strip_prefix('#')?.split_whitespace().next()?.parse().ok());
        let edges = (edges(first), edges(last));
        let blind = (edges.1 == 0).then(|| "it reached nothing".to_owned());
        Self {
            name: name.to_owned(),
            inputs: stat("stat::number_of_executed_units:").or(counted).unwrap_or(0),
            edges,
            corpus: last.and_then(|line| after(line, "corp:")).unwrap_or(0),
            memory: stat("stat::peak_rss_mb:").unwrap_or(0),
            failure: failure.or(blind),
        }
    }
}

/// All of them, one under the other.
pub fn table(reports: &[Report]) -> String {
    let heads = ["target", "inputs", "edges before", "edges", "corpus", "MiB"];
    let [name, inputs, before, edges, corpus, memory] = heads;
    let mut lines =
        vec![format!("{name:<18}{inputs:>10}{before:>14}{edges:>8}{corpus:>8}{memory:>6}")];
    lines.extend(reports.iter().map(|report| {
        let Report { name, inputs, edges: (before, edges), corpus, memory, failure } = report;
        let outcome = failure.as_ref().map_or("ok".to_owned(), |why| format!("FAILED: {why}"));
        format!("{name:<18}{inputs:>10}{before:>14}{edges:>8}{corpus:>8}{memory:>6}  {outcome}")
    }));
    lines.join("\n")
}

/// The end of what a run said.
pub fn tail(said: &str) -> String {
    let lines: Vec<&str> = said.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
INFO: Running with entropic power schedule (0xFF, 100).
#13\tINITED cov: 120 ft: 300 corp: 12/340b exec/s: 0 rss: 30Mb
#64\tNEW    cov: 130 ft: 310 corp: 13/360b lim: 4096 exec/s: 0 rss: 30Mb L: 9/90 MS: 1 EraseBytes-
#5000\tDONE   cov: 140 ft: 500 corp: 20/1Kb lim: 4096 exec/s: 500 rss: 41Mb
Done 5000 runs in 10 second(s)
stat::number_of_executed_units: 5000
stat::peak_rss_mb:              41
";

    #[test]
    fn a_run_that_went_well_is_read() {
        let report = Report::read("layer", SAID, None);
        assert_eq!((report.inputs, report.edges, report.corpus), (5000, (120, 140), 20));
        assert_eq!((report.memory, report.failure.clone()), (41, None));
        let table = table(&[report]);
        assert!(
            table.contains("layer") && table.contains("140") && table.contains("ok"),
            "{table}"
        );
    }

    #[test]
    fn a_run_that_reached_nothing_has_failed() {
        let blind = SAID.replace("cov: 1", "cov: 0 was: 1");
        assert!(Report::read("layer", &blind, None).failure.is_some());
        assert!(Report::read("layer", "", None).failure.is_some());
    }

    #[test]
    fn a_run_that_died_counts_what_it_did() {
        let died = SAID.split("#5000").next().unwrap();
        let report = Report::read("layer", died, Some("signal: 6".to_owned()));
        assert_eq!((report.inputs, report.edges.1), (64, 130));
        assert!(super::table(&[report]).contains("FAILED: signal: 6"));
    }
}
