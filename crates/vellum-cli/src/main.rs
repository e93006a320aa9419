//! The command line `vellum`: arguments in, one call of the library, an answer and an exit code out. Nothing else lives here.
//!
//! [`args`] is what can be typed, [`commands`] has a file for each command, [`output`] renders tables and JSON, [`failure`]
//! turns errors into messages, hints and exit codes, [`stop`] hears signals.
#![forbid(unsafe_code)]
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "help texts are for the terminal, where [@snap] is no link"
)]

mod args;
mod commands;
mod failure;
mod output;
mod progress;
mod stop;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Arguments;
use crate::failure::Failure;
use crate::output::Output;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // clap's own codes: 0 for help and version, 2 for a usage error. A closed pipe while it prints is nobody's error.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(failure::USAGE));
        }
    };
    let mut output = Output::new(arguments.format);
    let result = commands::run(arguments, &mut output).and_then(|()| output.finish());
    let code = match result {
        Ok(()) => 0,
        Err(failure) if failure.is_closed_pipe() => 0,
        Err(failure) => report(&failure),
    };
    drop(output);
    // A cluster that does not answer keeps its threads.
    vellum::exit_beside_connections(code);
    ExitCode::from(code)
}

fn report(failure: &Failure) -> u8 {
    eprintln!("vellum: {}", failure.message());
    if let Some(hint) = failure.hint() {
        eprintln!("hint: {hint}");
    }
    failure.exit_code()
}
