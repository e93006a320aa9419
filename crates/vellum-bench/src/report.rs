//! The report: medians, and the ratios that count.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::fio::Sample;

/// All samples of a run, by workload and target, in the order they were first seen.
#[derive(Default, Serialize, Debug)]
pub struct Report {
    samples: BTreeMap<String, BTreeMap<String, Vec<Sample>>>,
}

/// What is divided by what.
const RATIOS: &[(&str, &str)] = &[
    ("vellum-clone-sparse", "vellum-flat"),
    ("vellum-depth8-sparse", "vellum-flat"),
    ("vellum-flat", "qcow2-flat"),
    ("vellum-flat", "nbdkit-file-flat"),
    ("vellum-clone-sparse", "qcow2-clone-64k"),
    ("vellum-clone-sparse", "qcow2-clone-extended-l2"),
    ("vellum-clone-copy-up", "qcow2-clone-64k"),
    ("vellum-depth8-sparse", "qcow2-depth8-64k"),
];

impl Report {
    /// Adds a sample.
    pub fn add(&mut self, workload: &str, target: &str, sample: Sample) {
        let targets = self.samples.entry(workload.to_owned()).or_default();
        targets.entry(target.to_owned()).or_default().push(sample);
    }

    /// Two tables: medians, and ratios of medians.
    pub fn to_markdown(&self) -> String {
        let mut out = String::new();
        let line = |out: &mut String, text: String| {
            out.push_str(&text);
            out.push('\n');
        };
        line(
            &mut out,
            "| workload | target | requests/s | lowest | highest | mean us | p99 us |".into(),
        );
        line(&mut out, "|---|---|---|---|---|---|---|".into());
        for (workload, targets) in &self.samples {
            for (target, samples) in targets {
                let iops: Vec<f64> = samples.iter().map(|sample| sample.iops).collect();
                let mean = median(samples.iter().map(|sample| sample.mean_us).collect());
                let p99 = median(samples.iter().map(|sample| sample.p99_us).collect());
                let (low, high) = iops
                    .iter()
                    .fold((f64::MAX, 0f64), |(low, high), x| (low.min(*x), high.max(*x)));
                let middle = median(iops);
                line(
                    &mut out,
                    format!(
                        "| {workload} | {target} | {middle:.0} | {low:.0} | {high:.0} | {mean:.0} | {p99:.0} |"
                    ),
                );
            }
        }
        line(&mut out, "\n| workload | ratio of medians | |".into());
        line(&mut out, "|---|---|---|".into());
        for (workload, targets) in &self.samples {
            for (over, under) in RATIOS {
                if let (Some(over_samples), Some(under_samples)) =
                    (targets.get(*over), targets.get(*under))
                {
                    let iops = |samples: &[Sample]| {
                        median(samples.iter().map(|sample| sample.iops).collect())
                    };
                    let ratio = iops(over_samples) / iops(under_samples);
                    let _ = writeln!(out, "| {workload} | {over} / {under} | {ratio:.2} |");
                }
            }
        }
        out
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(vec![9.0, 1.0, 3.0]), 3.0);
    }

    #[test]
    fn a_ratio_appears_when_both_sides_were_measured() {
        let sample = |iops| Sample { iops, mean_us: 1.0, p99_us: 1.0 };
        let mut report = Report::default();
        report.add("w", "vellum-flat", sample(100.0));
        assert!(!report.to_markdown().contains("ratio of medians | |\n|---|---|---|\n| w"));
        report.add("w", "vellum-clone-sparse", sample(90.0));
        assert!(report.to_markdown().contains("| w | vellum-clone-sparse / vellum-flat | 0.90 |"));
    }
}
