//! Cases as tests: a runtime, storage and a time limit for each.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use futures::future::LocalBoxFuture;
use libtest_mimic::{Completion, Failed, Trial};
use vellum_engine::{Catalog, Repair, Severity};

use crate::harness::{Harness, Skip};
use crate::pool::Pool;
use crate::{Result, cases};

/// How long a case may take. Those of an engine on a disk take far less than a second; a slow machine is no failure.
const TIME_MAX: Duration = Duration::from_secs(120);

/// How long what a case left running may take to end.
const SHUTDOWN_MAX: Duration = Duration::from_secs(10);

/// One case: a sentence, and a future that holds if the sentence does.
pub(crate) struct Case<H: Harness> {
    pub name: &'static str,
    pub run: fn(Pool<H>) -> LocalBoxFuture<'static, Result<()>>,
}

/// The suite as tests, named `engine::group::case`. `fresh` makes empty storage, once for each case that is
/// run; where it cannot be had it returns a [`Skip`].
pub fn trials<H: Harness>(
    engine: &str,
    fresh: impl Fn() -> Result<H> + Send + Sync + 'static,
) -> Vec<Trial> {
    let fresh = Arc::new(fresh);
    let all = cases::all::<H>().into_iter().flat_map(|(group, cases)| {
        cases.into_iter().map(move |case| (format!("{group}::{}", case.name), case))
    });
    all.map(|(name, case)| {
        let fresh = fresh.clone();
        let run = move || match fresh() {
            Ok(harness) => run(case, Arc::new(harness), TIME_MAX),
            Err(error) => ended(Err(error)),
        };
        Trial::ignorable_test(format!("{engine}::{name}"), run)
    })
    .collect()
}

fn run<H: Harness>(
    case: Case<H>,
    harness: Arc<H>,
    time_max: Duration,
) -> Result<Completion, Failed> {
    // On a thread of its own, which is left behind if it blocks.
    let (end, until) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let outcome = hold(case, harness);
        // The receiver is gone if the time was up.
        let _ = end.send(());
        outcome
    });
    if let Err(RecvTimeoutError::Timeout) = until.recv_timeout(time_max) {
        return Err(format!("it did not end within {time_max:?}").into());
    }
    match thread.join() {
        Ok(outcome) => ended(outcome),
        Err(panic) => resume_unwind(panic),
    }
}

fn ended(outcome: Result<()>) -> Result<Completion, Failed> {
    match outcome {
        Ok(()) => Ok(Completion::Completed),
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => Err(failed(error)),
        },
    }
}

fn hold<H: Harness>(case: Case<H>, harness: Arc<H>) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let opened = harness.clone();
    let outcome = runtime.block_on(async {
        (case.run)(Pool::open(opened.clone()).await?).await?;
        check(&*opened).await
    });
    // The storage goes last, when nothing works on it any more.
    runtime.shutdown_timeout(SHUTDOWN_MAX);
    drop(harness);
    outcome
}

/// Whatever a case did, the pool is in good order afterwards. Space may have leaked where a process died.
async fn check<H: Harness>(harness: &H) -> Result<()> {
    let findings = harness.open().await?.check(None, Repair::No).await?;
    let wrong = findings
        .into_iter()
        .filter(|finding| matches!(finding.severity, Severity::Damage | Severity::Stale));
    let wrong: Vec<String> = wrong.map(|finding| finding.what).collect();
    anyhow::ensure!(wrong.is_empty(), "a check finds: {}", wrong.join("; "));
    Ok(())
}

fn failed(error: anyhow::Error) -> Failed {
    let kind = error.downcast_ref::<vellum_engine::Error>().map(vellum_engine::Error::kind);
    match kind {
        Some(kind) => format!("{kind:?}: {error:#}").into(),
        None => format!("{error:#}").into(),
    }
}

#[cfg(test)]
mod tests {
    use vellum_engine::memory::{MemoryCatalog, MemoryStore};

    use super::*;

    struct Memory(MemoryStore);

    impl Harness for Memory {
        type Catalog = MemoryCatalog;

        async fn open(&self) -> Result<MemoryCatalog> {
            Ok(self.0.catalog())
        }
    }

    type Run = fn(Pool<Memory>) -> LocalBoxFuture<'static, Result<()>>;

    fn outcome(run: Run) -> Result<Completion, Failed> {
        outcome_within(TIME_MAX, run)
    }

    fn outcome_within(time_max: Duration, run: Run) -> Result<Completion, Failed> {
        let harness = Arc::new(Memory(MemoryStore::default()));
        super::run(Case { name: "case", run }, harness, time_max)
    }

    #[test]
    fn a_case_that_does_not_end_fails() {
        let waits: Run = |_| Box::pin(std::future::pending());
        let blocks: Run = |_| {
            Box::pin(async {
                loop {
                    std::thread::park();
                }
            })
        };
        for run in [waits, blocks] {
            let failed = outcome_within(Duration::from_millis(100), run).err().unwrap();
            assert_eq!(failed.message(), Some("it did not end within 100ms"));
        }
    }

    #[test]
    fn a_case_that_cannot_be_asked_is_ignored_with_its_reason() {
        let ignored = outcome(|pool| Box::pin(async move { pool.cut_power().await.map(drop) }));
        let Ok(Completion::Ignored { reason }) = ignored else { panic!("it is not ignored") };
        assert_eq!(reason.as_deref(), Some("the harness cannot cut the power"));
    }

    #[test]
    fn an_error_fails_a_case_and_says_its_kind() {
        let failed = outcome(|pool| {
            Box::pin(async move {
                pool.record("nobody").await?;
                Ok(())
            })
        });
        let failed = failed.err().unwrap();
        assert_eq!(failed.message(), Some("NotFound: this pool has no image nobody"));
    }

    #[test]
    fn a_case_that_panics_panics() {
        let run = || outcome(|_| Box::pin(async { panic!("as it was told") }));
        let panic = std::panic::catch_unwind(run).err().unwrap();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"as it was told"));
    }

    #[test]
    fn each_case_has_a_name_of_its_own() {
        let trials = trials("memory", || Ok(Memory(MemoryStore::default())));
        let mut names: Vec<_> = trials.iter().map(|trial| trial.name().to_owned()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), trials.len());
    }
}
