//! Object classes in memory against those of a real cluster, which is started for it: random calls must be answered the same and leave
//! the same. Without Ceph's packages these show as ignored, with the reason.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod both;
mod calls;
mod locks;

use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use rand::SeedableRng;
use rand::rngs::StdRng;
use vellum_testkit::ceph::{Cluster, Store};

use both::Both;

fn main() -> std::process::ExitCode {
    let arguments = Arguments::from_args();
    let unavailable = Cluster::unavailable();
    let cluster = (unavailable.is_none() && !arguments.list)
        .then(|| Arc::new(Cluster::start(Store::Memory).unwrap()));
    let trial = |name: &'static str, test: fn(&Both, &mut StdRng, u64)| {
        let (unavailable, cluster) = (unavailable.clone(), cluster.clone());
        match unavailable {
            Some(why) => {
                Trial::ignorable_test(name, || Ok(libtest_mimic::Completion::ignored_with(why)))
            }
            None => Trial::test(name, move || {
                let both = Both::at(cluster.as_ref().ok_or("there is a cluster")?)?;
                for seed in 1..=SEEDS {
                    test(&both, &mut StdRng::seed_from_u64(seed), seed);
                }
                Ok(())
            }),
        }
    };
    let trials = vec![
        trial("headers_are_kept_as_ceph_keeps_them", calls::headers),
        trial("directories_are_kept_as_ceph_keeps_them", calls::directories),
        trial("the_trash_is_kept_as_ceph_keeps_it", calls::trash),
        trial("object_maps_are_kept_as_ceph_keeps_them", calls::maps),
        trial("locks_are_kept_as_ceph_keeps_them", locks::locks),
    ];
    let outcome = libtest_mimic::run(&arguments, trials);
    drop(cluster);
    outcome.exit_code()
}

const SEEDS: u64 = 8;

/// How long an operation may take.
const PATIENCE: Duration = Duration::from_secs(60);

impl From<tokio::time::error::Elapsed> for both::Hangs {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self
    }
}

impl From<both::Hangs> for Failed {
    fn from(_: both::Hangs) -> Self {
        Self::from("it hangs")
    }
}
