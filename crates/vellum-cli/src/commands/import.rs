//! `vellum import`: a file becomes an image.

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use vellum::{Located, Vellum};
use vellum_convert::{Format, Piece, Source, SourceOptions, StreamSource, zero_runs};
use vellum_core::{BufferPool, ImageSpec, State};
use vellum_engine::{Error, ErrorKind};
use vellum_image::WriteOptions;
use vellum_image::image::Open;

use crate::args::{Shape, image};
use crate::commands::create_options;
use crate::failure::{Failure, Result};
use crate::progress;
use crate::stop::Stop;

/// Sizes are rounded up to this, since kernels cut off what is not a whole block of theirs.
const ROUND: u64 = 4096;
/// Where the size of the file is kept if it was rounded.
const SOURCE_SIZE: &str = "source_size";
/// What is read, and written, at once.
const STEP: u64 = 1 << 20;
/// Writes under way at once.
const WRITES: usize = 16;

/// `vellum import ...`
#[derive(Args, Debug)]
pub struct Arguments {
    /// The file, or - for raw bytes from standard input
    file: PathBuf,
    /// [pool/]image
    #[arg(value_parser = image)]
    spec: ImageSpec,
    /// The file's format, if it should not be found out
    #[arg(long, value_enum)]
    input_format: Option<FileFormat>,
    /// Allow a qcow2 file to name other files to be read
    #[arg(long)]
    allow_backing: bool,
    #[command(flatten)]
    shape: Shape,
}

/// A format of files.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum FileFormat {
    /// The bytes of the disk
    Raw,
    /// QEMU's format
    Qcow2,
}

impl From<FileFormat> for Format {
    fn from(format: FileFormat) -> Self {
        match format {
            FileFormat::Raw => Format::Raw,
            FileFormat::Qcow2 => Format::Qcow2,
        }
    }
}

/// Data, and where it belongs.
type Part = (u64, Bytes);

/// Imports. The image has its name only when it is complete; if that fails, or is stopped, none is left.
pub async fn run(vellum: &Vellum, arguments: Arguments) -> Result {
    let mut stop = Stop::listen()?;
    let mut options = create_options(&arguments.shape)?;
    // Before a stream is read, which may take long.
    vellum.refuse_taken(&arguments.spec).await?;
    let source = stop.or(open(&arguments)).await?;
    let size = source.size();
    if size == 0 {
        let what = "the file is empty, and an image has at least one byte";
        return Err(Error::new(ErrorKind::Invalid, what).into());
    }
    let rounded = size.next_multiple_of(ROUND);
    if rounded != size {
        options.meta.insert(SOURCE_SIZE.to_owned(), size.to_string());
    }
    let unfinished = vellum.create_unfinished(&arguments.spec, rounded, options).await?;
    let done = match stop.or(fill(vellum, &unfinished.located, source)).await {
        Ok(()) => vellum.complete(&unfinished).await.map_err(Failure::from),
        Err(failure) => Err(failure),
    };
    if done.is_err()
        && let Err(error) = vellum.remove_located(&unfinished.located).await
        && error.kind() != ErrorKind::NotFound
    {
        let name = unfinished.located.spec();
        eprintln!("vellum: {name} could not be removed: {}; `vellum rm` can later", error.chain());
    }
    done
}

async fn open(arguments: &Arguments) -> Result<Source> {
    let format = arguments.input_format.map(Format::from);
    let (file, allow_backing) = (arguments.file.clone(), arguments.allow_backing);
    let opened = tokio::task::spawn_blocking(move || {
        if file == Path::new("-") {
            return spool(format);
        }
        Ok(Source::open(file, SourceOptions { allow_backing, format })?)
    });
    opened.await.map_err(anyhow::Error::from)?
}

/// Keeps a stream, whose size is known only at its end, in a file without a name, which goes whatever happens.
fn spool(format: Option<Format>) -> Result<Source> {
    let place = std::env::temp_dir();
    let cannot = |error| {
        let what = format!(
            "keep standard input in a temporary file in {}; TMPDIR names another place",
            place.display()
        );
        Error::io(what, error)
    };
    let spool = tempfile::tempfile_in(&place).map_err(cannot)?;
    let mut stream = StreamSource::new(std::io::stdin(), format)?;
    for piece in &mut stream {
        if let Piece::Data { offset, bytes } = piece? {
            spool.write_all_at(&bytes, offset).map_err(cannot)?;
        }
    }
    spool.set_len(stream.size()).map_err(cannot)?;
    let path = format!("/proc/self/fd/{}", spool.as_raw_fd());
    // The end is known only now: without a name for its format, it is looked at too.
    Ok(Source::open(path, SourceOptions { format, allow_backing: false })?)
}

async fn fill(vellum: &Vellum, located: &Located, source: Source) -> Result {
    let image = vellum.open_located(located, Open::Own).await?;
    let block = located.record.block_size.into();
    let bar = progress::bytes("import", source.size());
    let (send, mut parts) = mpsc::channel(WRITES);
    let buffers = vellum.buffers().clone();
    let reading = tokio::task::spawn_blocking(move || read(&source, block, &buffers, &send));
    let mut writes = JoinSet::new();
    while let Some((offset, data)) = parts.recv().await {
        bar.set_position(offset);
        while writes.len() >= WRITES {
            finished(writes.join_next().await)?;
        }
        let image = image.clone();
        writes.spawn(async move { image.write(offset, data, WriteOptions::default()).await });
    }
    while let Some(done) = writes.join_next().await {
        finished(Some(done))?;
    }
    reading.await.map_err(anyhow::Error::from)??;
    image.close().await?;
    bar.finish_and_clear();
    Ok(())
}

/// Sends all data, but no blocks of zeros, which are what a new image has everywhere.
fn read(source: &Source, block: u64, buffers: &BufferPool, parts: &mpsc::Sender<Part>) -> Result {
    for run in source.extents() {
        let run = run?;
        if run.state != State::Data {
            continue;
        }
        for step in run.extent.chunks(STEP) {
            let mut buffer = buffers.take(step.len_usize());
            source.read_at(&mut buffer, step.offset())?;
            let content = buffer.freeze();
            for data in zero_runs(&content, step.offset(), block).in_state(State::Data) {
                let part = (data.offset(), content.slice(step.range_of(&data)));
                if parts.blocking_send(part).is_err() {
                    return Ok(()); // the writer failed or was stopped, and says why
                }
            }
        }
    }
    Ok(())
}

fn finished(done: Option<std::result::Result<vellum::Result<()>, JoinError>>) -> Result {
    match done {
        Some(result) => Ok(result.map_err(anyhow::Error::from)??),
        None => Ok(()),
    }
}

/// The size of the file that an image of this size was imported from, if the image was rounded up from it.
pub fn source_size(meta: &std::collections::BTreeMap<String, String>, size: u64) -> u64 {
    let imported: Option<u64> = meta.get(SOURCE_SIZE).and_then(|size| size.parse().ok());
    imported.filter(|imported| imported.next_multiple_of(ROUND) == size).unwrap_or(size)
}
