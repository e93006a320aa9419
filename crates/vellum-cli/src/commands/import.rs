//! `vellum import`: a file becomes an image.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use tokio::task::JoinSet;
use vellum::{Image, Vellum};
use vellum_core::ImageSpec;
use vellum_image::WriteOptions;
use vellum_image::image::Open;

use crate::args::Shape;
use crate::commands::create_options;
use crate::convert::{Format, Piece, Source, SourceOptions};
use crate::failure::{Failure, Result};
use crate::progress;

/// Sizes are rounded up to this, since kernels cut off what is not a whole block of theirs.
const ROUND: u64 = 4096;
/// Where the size of the file is kept if it was rounded.
pub const SOURCE_SIZE: &str = "source_size";
/// Writes under way at once, each of up to 1 MiB.
const WRITES: usize = 16;
/// A stream's image grows no further than this; what is not written takes no space.
const STREAM_MAX: u64 = 1 << 50;

/// `vellum import ...`
#[derive(Args, Debug)]
pub struct Arguments {
    /// The file, or - for raw bytes from standard input
    file: PathBuf,
    /// [pool/]image
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

/// Imports.
pub async fn run(vellum: &Vellum, arguments: Arguments) -> Result {
    let mut source = open(&arguments)?;
    let spooled = spool(&mut source)?;
    let size = match (source.size(), &spooled) {
        (Some(size), _) => size,
        (None, _) => {
            return Err(Failure::usage(format!("the stream is longer than {STREAM_MAX} bytes")));
        }
    };
    if size == 0 {
        return Err(Failure::usage("the file is empty, and an image has at least one byte"));
    }
    let mut options = create_options(&arguments.shape)?;
    let rounded = size.next_multiple_of(ROUND);
    if rounded != size {
        options.meta.insert(SOURCE_SIZE.to_owned(), size.to_string());
    }
    vellum.create(&arguments.spec, rounded, options).await?;
    let filled = fill(vellum, &arguments.spec, source, spooled).await;
    if filled.is_err() {
        // Half an image is none. What went wrong is told; if it cannot be removed, `vellum rm` can later.
        let _ = vellum.remove(&arguments.spec).await;
    }
    filled
}

fn open(arguments: &Arguments) -> Result<Source> {
    if arguments.file == Path::new("-") {
        if arguments.input_format == Some(FileFormat::Qcow2) {
            return Err(Failure::usage(
                "a qcow2 file cannot be read from a pipe; import it from a file",
            ));
        }
        return Ok(Source::stream(std::io::stdin()));
    }
    let options = SourceOptions {
        format: arguments.input_format.map(Format::from),
        allow_backing: arguments.allow_backing,
    };
    Source::open(&arguments.file, options).map_err(|error| Failure::Other(error.into()))
}

/// The pieces of a stream, whose size is known only at its end: kept in a file without a name until then.
fn spool(source: &mut Source) -> Result<Option<std::fs::File>> {
    use std::os::unix::fs::FileExt;
    if source.size().is_some() {
        return Ok(None);
    }
    let file = tempfile_without_name()?;
    let failed = |error: crate::convert::Error| Failure::Other(error.into());
    while let Some(Piece { at, data }) = source.next_piece().map_err(failed)? {
        if let Some(data) = data {
            file.write_all_at(&data, at.offset())?;
        }
        file.set_len(at.end())?;
    }
    Ok(Some(file))
}

fn tempfile_without_name() -> Result<std::fs::File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let opened = rustix::fs::open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR);
    Ok(opened.map_err(std::io::Error::from)?.into())
}

async fn fill(
    vellum: &Vellum,
    spec: &ImageSpec,
    source: Source,
    spooled: Option<std::fs::File>,
) -> Result {
    let image = vellum.open_image(spec, Open::Own).await?;
    let bar = progress::bytes("import", source.size());
    let (send, mut pieces) = tokio::sync::mpsc::channel(WRITES);
    let reading = tokio::task::spawn_blocking(move || {
        let mut source = match spooled {
            Some(file) => Source::raw(file)?,
            None => source,
        };
        while let Some(piece) = source.next_piece()? {
            if send.blocking_send(piece).is_err() {
                break;
            }
        }
        Ok::<_, crate::convert::Error>(())
    });
    let mut writes = JoinSet::new();
    while let Some(piece) = pieces.recv().await {
        bar.set_position(piece.at.end());
        while writes.len() >= WRITES {
            finished(writes.join_next().await)?;
        }
        writes.spawn(write(image.clone(), piece));
    }
    while let Some(done) = writes.join_next().await {
        finished(Some(done))?;
    }
    reading.await.map_err(anyhow::Error::from)?.map_err(|error| Failure::Other(error.into()))?;
    image.close().await?;
    bar.finish_and_clear();
    Ok(())
}

/// Writes data; zeros are what a new image has everywhere.
async fn write(image: Image, piece: Piece) -> vellum::Result<()> {
    match piece.data {
        Some(data) => image.write(piece.at.offset(), data, WriteOptions::default()).await,
        None => Ok(()),
    }
}

fn finished(
    done: Option<std::result::Result<vellum::Result<()>, tokio::task::JoinError>>,
) -> Result {
    match done {
        Some(result) => Ok(result.map_err(anyhow::Error::from)??),
        None => Ok(()),
    }
}
