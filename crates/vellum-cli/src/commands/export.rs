//! `vellum export`: an image becomes a file.

use std::path::{Path, PathBuf};

use clap::Args;
use futures::{StreamExt, stream};
use vellum::{Image, Vellum};
use vellum_convert::{Format, Sink, SinkOptions, StreamSink, create};
use vellum_core::{Extent, ImageSpec};
use vellum_image::Piece;

use crate::commands::import::{FileFormat, source_size};
use crate::failure::{Failure, Result};
use crate::progress;

/// How much is read at once.
const STEP: u64 = 1 << 20;
/// Reads under way at once.
const READS: usize = 8;
/// Entries of the map taken at once.
const ENTRIES: usize = 4096;

/// `vellum export ...`
#[derive(Args, Debug)]
pub struct Arguments {
    /// [pool/]image[@snap]
    spec: ImageSpec,
    /// The file, or - for raw bytes to standard output
    file: PathBuf,
    /// The file's format
    #[arg(long, value_enum, default_value = "raw")]
    output_format: FileFormat,
    /// Replace a file of that name
    #[arg(long)]
    overwrite: bool,
}

/// Exports.
pub async fn run(vellum: &Vellum, arguments: Arguments) -> Result {
    let reading = vellum.read(&arguments.spec).await?;
    let exported = export(&reading.image, &arguments).await;
    vellum.finish(reading).await?;
    exported
}

async fn export(image: &Image, arguments: &Arguments) -> Result {
    let size = source_size(&image.record().meta, image.size());
    let mut sink = open(arguments, size)?;
    let bar = progress::bytes("export", size);
    let mut rest = Extent::new(0, size);
    while !rest.is_empty() {
        let map = image.map(rest, ENTRIES).await?;
        let steps: Vec<(Extent, bool)> = map
            .iter()
            .flat_map(|entry| {
                let zero = entry.kind.is_zero();
                let step = if zero { 1 << 50 } else { STEP };
                entry.at.chunks(step).map(move |at| (at, zero))
            })
            .collect();
        rest = rest.split(map.last().map_or(rest.end(), |entry| entry.at.end())).1;
        let mut reads = stream::iter(steps).map(|(at, zero)| read(image, at, zero)).buffered(READS);
        while let Some(pieces) = reads.next().await {
            for Piece { at, data } in pieces? {
                tokio::task::block_in_place(|| match &data {
                    Some(data) => sink.write(at.offset(), data),
                    None => sink.zero(at),
                })?;
                bar.set_position(at.end());
            }
        }
    }
    tokio::task::block_in_place(|| sink.finish())?;
    bar.finish_and_clear();
    Ok(())
}

fn open(arguments: &Arguments, size: u64) -> Result<Box<dyn Sink>> {
    if arguments.file != Path::new("-") {
        let format = Format::from(arguments.output_format);
        let options = SinkOptions { format, overwrite: arguments.overwrite };
        return Ok(create(&arguments.file, size, options)?);
    }
    if arguments.output_format == FileFormat::Qcow2 {
        return Err(Failure::usage(
            "a qcow2 file cannot be written to a pipe; export it to a file",
        ));
    }
    Ok(Box::new(StreamSink::stdout(size)?))
}

async fn read(image: &Image, at: Extent, zero: bool) -> vellum::Result<Vec<Piece>> {
    if zero { Ok(vec![Piece { at, data: None }]) } else { image.read_pieces(at).await }
}
