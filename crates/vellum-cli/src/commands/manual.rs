//! `vellum completions` and `vellum man`: made from the same definitions as the commands.

use std::path::Path;

use clap::CommandFactory;

use crate::args::Arguments;
use crate::failure::Result;
use crate::output::Output;

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell, output: &mut Output) -> Result {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "vellum", &mut script);
    output.bytes(&script)
}

/// Prints the manual page, or writes a page for each command.
pub fn man(dir: Option<&Path>, output: &mut Output) -> Result {
    match dir {
        Some(dir) => Ok(clap_mangen::generate_to(Arguments::command(), dir)?),
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Arguments::command()).render(&mut page)?;
            output.bytes(&page)
        }
    }
}
