//! What goes down while it is used, and what is there afterwards: a server that is killed, a machine that loses its power.
//!
//! [`load`] and [`operations`] use images through the [`machine`] that goes down, [`record`] keeps what was asked and answered,
//! outside of it, and judges what is found. [`killed`] kills processes, [`power`] switches off a [`guest`]. That the judges can
//! find something is shown by [`judges`].
//!
//! A long run shows as ignored; `cargo xtask slow` runs it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod content;
mod guest;
mod judges;
mod kernel_client;
mod killed;
mod load;
mod machine;
mod operations;
mod power;
mod record;
mod story;
mod tally;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> std::process::ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = judges::trials();
    trials.extend([
        trial("kill_9_in_fifty_rounds_loses_no_acknowledged_write", || killed::story(50)),
        slow("kill_9_in_five_hundred_rounds_loses_no_acknowledged_write", || killed::story(500)),
        unless(guest::kernel::unavailable(), trial("a_machine_that_loses_power_keeps_what_was_promised", || power::story(2))),
        unless(guest::kernel::unavailable(), slow("a_machine_that_loses_power_thirty_times_keeps_what_was_promised", || {
            power::story(30)
        })),
        unless(guest::kernel::unavailable(), slow("a_disk_that_lies_about_flushes_is_found_out", power::lying_disk)),
        unless(guest::kernel::without_client(), slow(
            "a_file_system_on_a_clone_in_its_own_kernel_outlives_want_of_memory_and_a_power_cut",
            kernel_client::story,
        )),
    ]);
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test by its name.
fn trial(name: &str, test: fn() -> Result<()>) -> Trial {
    Trial::test(name, move || test().map_err(|error| Failed::from(format!("{error:?}"))))
}

/// A test that takes too long for every day.
fn slow(name: &str, test: fn() -> Result<()>) -> Trial {
    trial(name, test).with_kind("slow: cargo xtask slow").with_ignored_flag(true)
}

/// A test that a computer may be unable to run, and then why.
fn unless(unavailable: Option<String>, trial: Trial) -> Trial {
    match unavailable {
        Some(reason) => trial.with_kind(format!("skipped: {reason}")).with_ignored_flag(true),
        None => trial,
    }
}
