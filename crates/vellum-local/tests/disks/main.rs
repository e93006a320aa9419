//! The embedded engine on file systems that are made for a test: ext4, XFS, btrfs and tmpfs. The conformance suite on each, disks
//! that are full or can only be read, volumes that go back to an earlier moment, and what belongs to whom. Needs root; what a machine cannot run shows as ignored, with its
//! reason.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod beside;
mod extents;
#[path = "../it/fixture.rs"]
#[allow(dead_code, reason = "what the other tests need of it is not needed here")]
mod fixture;
mod full;
mod owner;
mod read_only;
mod rolled_back;
mod suite;

use std::future::Future;
use std::pin::Pin;

use libtest_mimic::{Arguments, Trial};
use vellum_testkit::mounted::{Kind, Mounted};

fn main() {
    let mut all = suite::trials();
    all.extend(full::trials());
    all.extend(extents::trials());
    all.extend(beside::trials());
    all.extend(read_only::trials());
    all.extend(owner::trials());
    all.extend(rolled_back::trials());
    libtest_mimic::run(&Arguments::from_args(), all).exit();
}

type Test = fn(Mounted) -> Pin<Box<dyn Future<Output = ()>>>;

/// A test on a file system of its own, which has this many bytes.
fn on(kind: Kind, size: u64, name: &str, test: Test) -> Trial {
    unless(kind.unavailable(), format!("{}::{name}", kind.name()), move || {
        test(Mounted::new(kind, size).unwrap())
    })
}

/// A test that this machine may be unable to run, and then why.
fn unless<F: Future<Output = ()>>(
    unavailable: Option<String>,
    name: String,
    test: impl FnOnce() -> F + Send + 'static,
) -> Trial {
    match unavailable {
        Some(reason) => {
            Trial::ignorable_test(name, || Ok(libtest_mimic::Completion::ignored_with(reason)))
        }
        None => Trial::test(name, move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(test());
            Ok(())
        }),
    }
}
