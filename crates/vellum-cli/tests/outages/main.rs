//! What goes down while it is used, and what is there afterwards: a server that is killed, a machine that loses its power.
//!
//! [`load`] and [`operations`] use images through the [`machine`] that goes down, [`record`] keeps what was asked and answered,
//! outside of it, and judges what is found. [`killed`] kills processes, [`power`] switches off a [`guest`], [`slow_disk`] has a
//! guest wait for its disk, and [`two_connections`] cuts one of those of a client. That the judges can find something is shown by
//! [`judges`].
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
mod slow_disk;
mod story;
mod tally;
mod two_connections;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

use guest::FileSystem::{Ext4, Xfs};

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
        unless(guest::kernel::unavailable(), trial(
            "a_server_that_is_killed_asleep_keeps_its_images_until_its_last_write_landed",
            || slow_disk::killed(&[Ext4], 1),
        )),
        unless(guest::kernel::unavailable(), slow(
            "ten_servers_that_are_killed_on_a_slow_disk_write_nothing_afterwards",
            || slow_disk::killed(&[Ext4, Xfs], 5),
        )),
        unless(guest::kernel::unavailable(), trial(
            "writes_that_sleep_hold_up_no_reads_of_another_image",
            || slow_disk::flooded(Ext4),
        )),
        unless(guest::kernel::unavailable(), slow(
            "writes_that_sleep_on_xfs_hold_up_no_reads_of_another_image",
            || slow_disk::flooded(Xfs),
        )),
        unless(guest::kernel::without_client(), trial(
            "a_request_that_the_kernel_sends_again_lands_on_top_of_no_later_one",
            two_connections::cut,
        )),
        unless(guest::kernel::without_client(), slow(
            "a_load_goes_on_over_the_connection_that_is_left",
            || two_connections::cut_under_load(3),
        )),
        unless(guest::kernel::without_client(), slow(
            "a_file_system_on_a_clone_in_its_own_kernel_outlives_want_of_memory_and_a_power_cut",
            kernel_client::story,
        )),
    ]);
    if arguments.ignored || arguments.include_ignored {
        // Who asks for what is ignored means what is slow, and not what cannot be run.
        trials.retain(|trial| !trial.kind().starts_with(SKIPPED));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// How the kind of a test begins that cannot be run here.
const SKIPPED: &str = "skipped: ";

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
        Some(reason) => trial.with_kind(format!("{SKIPPED}{reason}")).with_ignored_flag(true),
        None => trial,
    }
}
