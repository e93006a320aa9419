//! `vellum export`: an image becomes a file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use futures::{StreamExt, stream};
use indicatif::ProgressBar;
use tokio::sync::mpsc;
use vellum::{Image, Vellum};
use vellum_convert::{Sink, SinkOptions, StreamSink, create};
use vellum_core::{Extent, ImageSpec};
use vellum_image::Piece;

use crate::commands::import::{FileFormat, source_size};
use crate::failure::{Failure, Result};
use crate::progress;
use crate::stop::Stop;

/// How much is read at once.
const STEP: u64 = 1 << 20;
/// Reads under way at once.
const READS: usize = 8;
/// How long an export that failed waits for the thread that writes, which may be stuck in a pipe.
const STOP_MAX: Duration = Duration::from_secs(5);
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

/// Exports. If that fails, or is stopped, neither a file is left nor a snapshot that was taken for it.
pub async fn run(vellum: &Vellum, arguments: Arguments) -> Result {
    if arguments.file == Path::new("-") && arguments.output_format == FileFormat::Qcow2 {
        return Err(Failure::usage(
            "a qcow2 file cannot be written to a pipe; export it to a file",
        ));
    }
    let mut stop = Stop::listen()?;
    let reading = vellum.read(&arguments.spec).await?;
    let exported = export(&reading.image, &arguments, &mut stop).await;
    let finished = vellum.finish(reading).await;
    exported?;
    Ok(finished?)
}

async fn export(image: &Image, arguments: &Arguments, stop: &mut Stop) -> Result {
    let size = exported_size(image).await?;
    let (file, format) = (arguments.file.clone(), arguments.output_format);
    let options = SinkOptions { format: format.into(), overwrite: arguments.overwrite };
    let bar = progress::bytes("export", size);
    let (send, parts) = mpsc::channel(READS);
    // On a thread of its own: a pipe that nobody opens or reads must not keep a signal from being heard.
    let mut writing =
        tokio::task::spawn_blocking(move || write(open(&file, size, options)?, parts));
    let both = async {
        read(image, size, &bar, send).await?;
        (&mut writing).await.map_err(anyhow::Error::from)?
    };
    let done = stop.or(both).await;
    bar.finish_and_clear();
    let Err(failure) = done else { return Ok(()) };
    // The thread drops the sink when nothing more comes, and what it wrote goes with it.
    let stopped = matches!(failure, Failure::Stopped);
    if stopped || !writing.is_finished() {
        let written = tokio::time::timeout(STOP_MAX, &mut writing).await;
        if stopped && matches!(written, Ok(Ok(Ok(())))) {
            return Ok(()); // the file was complete before anybody asked to stop
        }
    }
    Err(failure)
}

/// As long as the file that the image was imported from, or as the image, if something was written behind the end of that file.
async fn exported_size(image: &Image) -> Result<u64> {
    let imported = source_size(&image.record().meta, image.size());
    let behind = Extent::between(imported, image.size());
    if behind.is_empty() {
        return Ok(imported);
    }
    let buffer = image.buffers().take(behind.len_usize());
    let (buffer, read) = image.read(behind, buffer, 0..behind.len_usize()).await;
    read?;
    Ok(if buffer.iter().all(|byte| *byte == 0) { imported } else { image.size() })
}

/// Reads everything and sends it on, and at last that it was everything.
async fn read(image: &Image, size: u64, bar: &ProgressBar, parts: mpsc::Sender<Part>) -> Result {
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
        let reads = stream::iter(steps).map(|(at, zero)| read_step(image, at, zero));
        let mut reads = reads.buffered(READS);
        while let Some(pieces) = reads.next().await {
            for piece in pieces? {
                let end = piece.at.end();
                if parts.send(Part::Piece(piece)).await.is_err() {
                    return Ok(()); // the writer failed, and says why
                }
                bar.set_position(end);
            }
        }
    }
    let _ = parts.send(Part::End).await;
    Ok(())
}

/// What goes to the thread that writes.
enum Part {
    Piece(Piece),
    End,
}

/// Writes what comes. Without an `End` there is no file.
fn write(mut sink: Box<dyn Sink>, mut parts: mpsc::Receiver<Part>) -> Result {
    while let Some(part) = parts.blocking_recv() {
        match part {
            Part::Piece(Piece { at, data: Some(data) }) => sink.write(at.offset(), &data)?,
            Part::Piece(Piece { at, data: None }) => sink.zero(at)?,
            Part::End => return Ok(sink.finish()?),
        }
    }
    Err(Failure::Stopped)
}

fn open(file: &Path, size: u64, options: SinkOptions) -> Result<Box<dyn Sink>> {
    if file != Path::new("-") {
        return Ok(create(file, size, options)?);
    }
    Ok(Box::new(StreamSink::stdout(size)?))
}

async fn read_step(image: &Image, at: Extent, zero: bool) -> vellum::Result<Vec<Piece>> {
    if zero { Ok(vec![Piece { at, data: None }]) } else { image.read_pieces(at).await }
}
