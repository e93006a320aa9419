//! [`Output`]: tables for people, JSON for programs, to standard output.

use std::io::{self, BufWriter, Stdout, Write};

use clap::ValueEnum;
use serde::Serialize;

use crate::failure::Result;

/// How answers are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Plain,
    /// For programs: one JSON value, sizes in bytes.
    Json,
}

/// Standard output, buffered.
#[derive(Debug)]
pub struct Output {
    format: Format,
    out: BufWriter<Stdout>,
}

impl Output {
    /// Standard output in a format.
    pub fn new(format: Format) -> Self {
        Self { format, out: BufWriter::new(io::stdout()) }
    }

    /// Whether a program reads it.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints a line.
    pub fn line(&mut self, text: &str) -> Result {
        Ok(writeln!(self.out, "{}", text.trim_end())?)
    }

    /// Prints a value as JSON.
    pub fn json(&mut self, value: &impl Serialize) -> Result {
        serde_json::to_writer_pretty(&mut self.out, value).map_err(io::Error::from)?;
        Ok(writeln!(self.out)?)
    }

    /// Prints rows under headings, columns aligned; those named in `right` to the right.
    pub fn table(&mut self, headings: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> Result {
        if rows.is_empty() {
            return Ok(());
        }
        let mut lines = vec![headings.iter().map(|heading| (*heading).to_owned()).collect()];
        lines.extend(rows);
        let width = |column: usize| {
            lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..headings.len()).map(width).collect();
        for line in lines {
            let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                if right.contains(&column) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            });
            self.line(&cells.collect::<Vec<_>>().join("  "))?;
        }
        Ok(())
    }

    /// Prints bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result {
        Ok(self.out.write_all(bytes)?)
    }

    /// Drops what was not handed over yet.
    pub fn forget(&mut self) {
        let out = std::mem::replace(&mut self.out, BufWriter::new(io::stdout()));
        let _ = out.into_parts();
    }

    /// Hands everything over, so that an error to write is an error of the command.
    pub fn finish(&mut self) -> Result {
        Ok(self.out.flush()?)
    }
}

/// Seconds since 1970.
pub fn seconds(time: std::time::SystemTime) -> u64 {
    time.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
