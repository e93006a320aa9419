//! Running cargo and other programs.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::failures::Failures;

/// The cargo that runs us, so that both are of one toolchain.
pub fn cargo(arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Runs a command with our output for its own. An error if it ends with anything but success.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {}", line(command)))?;
    ensure!(status.success(), "`{}` ended with {status}", line(command));
    Ok(())
}

/// Runs tests, with our output for their own. The error says again what they say of those that failed.
pub fn test(command: &mut Command) -> Result<()> {
    let mut tests =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("run {}", line(command)))?;
    let printed = BufReader::new(tests.stdout.take().context("it is piped")?);
    let mut failures = Failures::default();
    for printed in printed.split(b'\n') {
        let printed = printed.with_context(|| format!("read what {} prints", line(command)))?;
        let printed = String::from_utf8_lossy(&printed);
        println!("{printed}");
        failures.take(&printed);
    }
    let status = tests.wait().with_context(|| format!("wait for {}", line(command)))?;
    ensure!(status.success(), "`{}` ended with {status}{}", line(command), failures.told());
    Ok(())
}

/// Runs a command and returns what it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {}", line(command)))?;
    ensure!(
        output.status.success(),
        "`{}` ended with {}: {}",
        line(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).with_context(|| format!("read what {} printed", line(command)))
}

fn line(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let mut line = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}
