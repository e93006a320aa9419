//! What goes down while it is used, and what is there afterwards: a server that is killed, a machine that loses its power.
//!
//! [`load`] and [`operations`] use images through the [`machine`] that goes down, [`record`] keeps what was asked and answered,
//! outside of it, and judges what is found. [`killed`] kills processes, [`power`] switches off a [`guest`], [`slow_disk`] has a
//! guest wait for its disk, [`stopped`] tells a server to stop that does, and [`two_connections`] cuts one of those of a client. That the judges can find something is shown by
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
mod stopped;
mod story;
mod tally;
mod two_connections;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

use guest::FileSystem::{Ext4, Xfs};

fn main() -> std::process::ExitCode {
    let arguments = Arguments::from_args();
    let asks_for_slow = arguments.ignored || arguments.include_ignored;
    let cases = judges::cases().into_iter().chain(cases());
    let trials = cases.filter_map(|case| case.trial(asks_for_slow)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn cases() -> Vec<Case> {
    let (guest, client) = (guest::kernel::unavailable(), guest::kernel::without_client());
    let in_guest = |name, test| Case { lacks: guest.clone(), ..here(name, test) };
    let with_client = |name, test| Case { lacks: client.clone(), ..here(name, test) };
    let slow = |case: Case| Case { is_slow: true, ..case };
    vec![
        here("kill_9_in_fifty_rounds_loses_no_acknowledged_write", || killed::story(50, 1)),
        slow(here("kill_9_in_five_hundred_rounds_loses_no_acknowledged_write", || {
            killed::story(500, 2)
        })),
        in_guest("a_machine_that_loses_power_keeps_what_was_promised", || power::story(2)),
        slow(in_guest("a_machine_that_loses_power_thirty_times_keeps_what_was_promised", || {
            power::story(30)
        })),
        slow(in_guest("a_disk_that_lies_about_flushes_is_found_out", power::lying_disk)),
        in_guest(
            "a_server_that_is_killed_asleep_keeps_its_images_until_its_last_write_landed",
            || slow_disk::killed(&[Ext4], 1),
        ),
        slow(in_guest(
            "ten_servers_that_are_killed_on_a_slow_disk_write_nothing_afterwards",
            || slow_disk::killed(&[Ext4, Xfs], 5),
        )),
        in_guest("a_server_that_is_told_to_stop_gives_up_in_time_whatever_its_disk_does", || {
            stopped::story(Ext4)
        }),
        in_guest("writes_that_sleep_hold_up_no_reads_of_another_image", || {
            slow_disk::flooded(Ext4)
        }),
        slow(in_guest("writes_that_sleep_on_xfs_hold_up_no_reads_of_another_image", || {
            slow_disk::flooded(Xfs)
        })),
        with_client(
            "a_request_that_the_kernel_sends_again_lands_on_top_of_no_later_one",
            two_connections::cut,
        ),
        slow(with_client("a_load_goes_on_over_the_connection_that_is_left", || {
            two_connections::cut_under_load(3)
        })),
        slow(with_client(
            "a_file_system_on_a_clone_in_its_own_kernel_outlives_want_of_memory_and_a_power_cut",
            kernel_client::story,
        )),
    ]
}

/// A test, and what may keep it from being run.
struct Case {
    name: &'static str,
    test: fn() -> Result<()>,
    /// It takes too long for every day.
    is_slow: bool,
    /// What this computer lacks for it.
    lacks: Option<String>,
}

impl Case {
    /// What is run, or shown as ignored with its reason. Whoever asks for what is slow asks for all of that: then what cannot be
    /// run has failed, and what is not slow and cannot be run was not asked for.
    fn trial(self, asks_for_slow: bool) -> Option<Trial> {
        let Self { name, test, is_slow, lacks } = self;
        let run = move || test().map_err(|error| Failed::from(format!("{error:?}")));
        match (lacks, is_slow) {
            (None, false) => Some(Trial::test(name, run)),
            (None, true) => Some(Trial::test(name, run).with_kind(SLOW).with_ignored_flag(true)),
            (Some(lack), true) if asks_for_slow => {
                let fail = move || Err(Failed::from(format!("cannot be run here: {lack}")));
                Some(Trial::test(name, fail).with_kind(SLOW).with_ignored_flag(true))
            }
            (Some(_), false) if asks_for_slow => None,
            (Some(lack), _) => {
                let kind = format!("skipped: {lack}");
                Some(Trial::test(name, run).with_kind(kind).with_ignored_flag(true))
            }
        }
    }
}

/// A test that every computer can run.
fn here(name: &'static str, test: fn() -> Result<()>) -> Case {
    Case { name, test, is_slow: false, lacks: None }
}

const SLOW: &str = "slow: cargo xtask slow";
