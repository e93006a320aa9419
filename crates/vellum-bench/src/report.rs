//! The report: medians, and the ratios that count.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::fio::Sample;
use crate::workload::{Metric, PAIRS};

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
    ("vellum-clone-sparse", "librbd-clone"),
    ("vellum-clone-copy-up", "librbd-clone"),
    ("vellum-depth8-sparse", "librbd-depth8"),
];

impl Report {
    /// Adds a sample.
    pub fn add(&mut self, workload: &str, target: &str, sample: Sample) {
        let targets = self.samples.entry(workload.to_owned()).or_default();
        targets.entry(target.to_owned()).or_default().push(sample);
    }

    /// Three tables: medians, ratios of medians across targets, and those of what is disturbed to what is not.
    pub fn to_markdown(&self) -> String {
        [self.medians(), self.across_targets(), self.disturbed()].join("\n")
    }

    fn medians(&self) -> String {
        let mut out = String::from(
            "| workload | target | requests/s | lowest | highest | mean us | p99 us | longest us | device bytes each |\n\
             |---|---|---|---|---|---|---|---|---|\n",
        );
        for (workload, targets) in &self.samples {
            for (target, samples) in targets {
                let of = |what: fn(&Sample) -> f64| median(samples.iter().map(what).collect());
                let (low, high) = samples.iter().fold((f64::MAX, 0f64), |(low, high), sample| {
                    (low.min(sample.iops), high.max(sample.iops))
                });
                let (middle, mean) = (of(|sample| sample.iops), of(|sample| sample.mean_us));
                let (p99, longest) = (of(|sample| sample.p99_us), of(|sample| sample.max_us));
                let written = match of(|sample| sample.device_bytes) {
                    bytes if bytes.is_nan() => String::new(),
                    bytes => format!("{bytes:.0}"),
                };
                let _ = writeln!(
                    out,
                    "| {workload} | {target} | {middle:.0} | {low:.0} | {high:.0} | {mean:.0} | {p99:.0} | {longest:.0} | {written} |"
                );
            }
        }
        out
    }

    fn across_targets(&self) -> String {
        let mut out = String::from("| workload | ratio of medians | |\n|---|---|---|\n");
        for workload in self.samples.keys() {
            for (over, under) in RATIOS {
                let of = |target| self.median(workload, target, Metric::Rate);
                if let (Some(over_rate), Some(under_rate)) = (of(over), of(under)) {
                    let ratio = over_rate / under_rate;
                    let _ = writeln!(out, "| {workload} | {over} / {under} | {ratio:.2} |");
                }
            }
        }
        out
    }

    fn disturbed(&self) -> String {
        let mut out = String::from("| target | ratio of medians | of | |\n|---|---|---|---|\n");
        for pair in PAIRS {
            let what = match pair.metric {
                Metric::Rate => "requests/s",
                Metric::LongestWait => "the longest wait",
            };
            for target in pair.targets {
                let of = |workload| self.median(workload, target, pair.metric);
                let (over, under) = (pair.disturbed.name, pair.alone.name);
                if let (Some(disturbed), Some(alone)) = (of(over), of(under)) {
                    let ratio = disturbed / alone;
                    let _ = writeln!(out, "| {target} | {over} / {under} | {what} | {ratio:.2} |");
                }
            }
        }
        out
    }

    fn median(&self, workload: &str, target: &str, metric: Metric) -> Option<f64> {
        let of = |sample: &Sample| match metric {
            Metric::Rate => sample.iops,
            Metric::LongestWait => sample.max_us,
        };
        let samples = self.samples.get(workload)?.get(target)?;
        Some(median(samples.iter().map(of).collect()))
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

    fn sample(iops: f64, max_us: f64) -> Sample {
        let (requests, device_bytes) = (1.0, f64::NAN);
        Sample { iops, mean_us: 1.0, p99_us: 1.0, max_us, requests, device_bytes }
    }

    #[test]
    fn a_ratio_appears_when_both_sides_were_measured() {
        let mut report = Report::default();
        report.add("w", "vellum-flat", sample(100.0, 1.0));
        assert!(!report.to_markdown().contains("ratio of medians | |\n|---|---|---|\n| w"));
        report.add("w", "vellum-clone-sparse", sample(90.0, 1.0));
        assert!(report.to_markdown().contains("| w | vellum-clone-sparse / vellum-flat | 0.90 |"));
    }

    #[test]
    fn what_is_disturbed_is_compared_by_what_its_pair_says() {
        let mut report = Report::default();
        for (workload, iops, max_us) in [
            ("randread-4k-alone", 100.0, 10.0),
            ("randread-4k-beside-writer", 80.0, 90.0),
            ("randwrite-4k-alone", 100.0, 10.0),
            ("randwrite-4k-snapshot", 80.0, 90.0),
        ] {
            report.add(workload, "vellum-flat", sample(iops, max_us));
        }
        let shown = report.to_markdown();
        for row in [
            "| vellum-flat | randread-4k-beside-writer / randread-4k-alone | requests/s | 0.80 |",
            "| vellum-flat | randwrite-4k-snapshot / randwrite-4k-alone | the longest wait | 9.00 |",
        ] {
            assert!(shown.contains(row), "{shown}");
        }
    }
}
