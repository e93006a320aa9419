//! The commands, a file for each that has more than a line.

pub mod bench;
mod bitmap;
mod check;
mod clone;
mod du;
pub mod export;
pub mod import;
mod info;
mod list;
mod manual;
mod map;
mod pool;
pub mod serve;
mod tree;

use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use vellum::{HomeOptions, Vellum};
use vellum_core::{Extent, Geometry, ImageSpec};
use vellum_engine::{Error, ErrorKind, Layering, Repair};
use vellum_image::{CreateOptions, DiscardPolicy, FlattenOptions};

use crate::args::{Arguments, BitmapCommand, Command, DiscardTo, ImageCommand, Shape, SnapCommand};
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::progress;
use crate::stop::Stop;

/// Runs a command.
pub fn run(arguments: Arguments, output: &mut Output) -> Result {
    match arguments.command {
        Command::Completions { shell } => return manual::completions(shell, output),
        Command::Man { dir } => return manual::man(dir.as_deref(), output),
        _ => {}
    }
    serve::log_to_stderr();
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let _ignored = ignore_file_size_limit();
        let vellum = Vellum::open(HomeOptions { home: arguments.home }).await?;
        run_command(&vellum, arguments.command, output).await
    });
    vellum::wait_for_pools(LEAVING_MAX);
    // What still runs belongs to nobody any more; its threads need not be waited for.
    runtime.shutdown_background();
    vellum::wait_for_catalogs(CLOSING_MAX);
    result
}

/// How long a command waits until it has left clusters in good order: somebody who hears nothing is waited for 5 s there.
const LEAVING_MAX: Duration = Duration::from_secs(6);
/// How long a command waits for what else it had open to be closed in good order.
const CLOSING_MAX: Duration = Duration::from_secs(1);

/// The runtime. Where the process may open too few files or begin too few threads, parts of it panic, and this fails.
fn runtime() -> Result<Runtime> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let built = std::panic::catch_unwind(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(workers()).enable_all().build()
    });
    std::panic::set_hook(hook);
    let cannot = "start: the process may open too few files or begin too few threads (see `ulimit -n` and `ulimit -u`)";
    match built {
        Ok(Ok(runtime)) => Ok(runtime),
        Ok(Err(error)) => Err(Error::io(cannot, error).into()),
        Err(_panic) => Err(Error::new(ErrorKind::Io, format!("cannot {cannot}")).into()),
    }
}

/// A write past the size that files may have (`ulimit -f`) is an error like any other, and not the end of the process: whoever
/// listens to the signal is not ended by it.
fn ignore_file_size_limit() -> std::io::Result<Signal> {
    signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))
}

fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8))
}

async fn run_command(vellum: &Vellum, command: Command, output: &mut Output) -> Result {
    match command {
        Command::Pool(command) => pool::run(vellum, command, output).await,
        Command::Create { spec, size, shape } => {
            vellum.create(&spec, size.0, create_options(&shape)?).await?;
            Ok(())
        }
        Command::Import(arguments) => import::run(vellum, arguments).await,
        Command::Export(arguments) => export::run(vellum, arguments).await,
        Command::Ls { pool } => list::images(vellum, pool.as_ref(), output).await,
        Command::Info { spec } => info::run(vellum, &spec, output).await,
        Command::Tree { spec } => tree::run(vellum, spec.as_ref(), output).await,
        Command::Du { spec } => du::run(vellum, spec.as_ref(), output).await,
        Command::Map { spec } => map::run(vellum, &spec, output).await,
        Command::Snap(SnapCommand::Create { spec }) => Ok(vellum.create_snapshot(&spec).await?),
        Command::Snap(SnapCommand::Ls { spec }) => list::snapshots(vellum, &spec, output).await,
        Command::Snap(SnapCommand::Rm { spec }) => Ok(vellum.remove_snapshot(&spec).await?),
        Command::Clone { parent, child, count, shape } => {
            clone::run(vellum, &parent, &child, count, &shape).await
        }
        Command::Children { spec, forget: None } => list::children(vellum, &spec, output).await,
        Command::Children { spec, forget: Some(child) } => {
            Ok(vellum.forget_child(&spec, &child).await?)
        }
        Command::Flatten { spec, rate } => flatten(vellum, &spec, rate.map(|rate| rate.0)).await,
        Command::Image(ImageCommand::Publish { spec }) => Ok(vellum.publish(&spec).await?),
        Command::Bitmap(BitmapCommand::Build { spec }) => Ok(vellum.build_bitmap(&spec).await?),
        Command::Bitmap(BitmapCommand::Check { spec }) => {
            bitmap::check(vellum, &spec, output).await
        }
        Command::Discard { spec, offset, length, to } => {
            let at = Extent::checked(offset.0, length.0)
                .ok_or_else(|| Failure::usage("offset and length together are too large"))?;
            let policy = match to {
                DiscardTo::Zero => DiscardPolicy::Zero,
                DiscardTo::Parent => DiscardPolicy::Inherit,
            };
            Ok(vellum.discard(&spec, at, policy).await?)
        }
        Command::Rename { spec, name } => Ok(vellum.rename(&spec, &name).await?),
        Command::Rm { spec } => Ok(vellum.remove(&spec).await?),
        Command::Check { spec, repair, remove_unknown_files } => {
            let repair = match (repair, remove_unknown_files) {
                (false, _) => Repair::No,
                (true, false) => Repair::Safe,
                (true, true) => Repair::WithUnknownFiles,
            };
            check::run(vellum, spec.as_ref(), repair, output).await
        }
        Command::Serve(arguments) => serve::run(vellum, arguments, output).await,
        Command::Bench(arguments) => bench::run(vellum, arguments, output).await,
        Command::Completions { .. } | Command::Man { .. } => Ok(()),
    }
}

/// Fails if a pool could not be opened, after what there is in the others was printed.
async fn expect_all_open(vellum: &Vellum) -> Result {
    let closed = vellum.closed_pools().await;
    if closed.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = closed.iter().map(|name| name.as_str()).collect();
    let what = format!(
        "left out is what is in pools that cannot be opened, for the reasons above: {}",
        names.join(", ")
    );
    Err(Error::new(ErrorKind::Io, what).into())
}

async fn flatten(vellum: &Vellum, spec: &ImageSpec, rate: Option<u64>) -> Result {
    let bar = progress::bytes("flatten", 0);
    let options = FlattenOptions { bytes_per_second: rate, ..FlattenOptions::default() };
    let progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let mut stop = Stop::listen()?;
    let done = vellum.flatten_until(spec, options, progress, stop.asked()).await;
    bar.finish_and_clear();
    match done {
        Err(error) if error.kind() == ErrorKind::Stopped => Err(Failure::Stopped),
        done => Ok(done?),
    }
}

/// What an image is created with, from what was typed.
fn create_options(shape: &Shape) -> Result<CreateOptions> {
    let usual = CreateOptions::default();
    let geometry = geometry(shape, usual.geometry)?.unwrap_or(usual.geometry);
    let block_size = block_size(shape)?.unwrap_or(usual.block_size);
    if !geometry.accepts_block_size(block_size.into()) {
        return Err(Failure::usage(format!(
            "a block of {block_size} bytes does not divide the stripe unit of {} bytes",
            geometry.stripe_unit()
        )));
    }
    let layering = shape.layering.map_or(usual.layering, Layering::from);
    Ok(CreateOptions { geometry, layering, block_size, meta: usual.meta })
}

/// The geometry that was typed, if one was; what was not typed of it is as in `usual`.
fn geometry(shape: &Shape, usual: Geometry) -> Result<Option<Geometry>> {
    if shape.object_size.is_none() && shape.stripe_unit.is_none() {
        return Ok(None);
    }
    let object_size = shape.object_size.map_or(usual.object_size(), |size| size.0);
    let unit = shape.stripe_unit.map_or(object_size, |unit| unit.0);
    let geometry = Geometry::new(object_size, unit, shape.stripe_count.unwrap_or(1));
    geometry.map(Some).map_err(|error| Failure::usage(error.to_string()))
}

fn block_size(shape: &Shape) -> Result<Option<u32>> {
    shape
        .block_size
        .map(|size| {
            u32::try_from(size.0)
                .map_err(|_| Failure::usage(format!("a block of {size} is too large")))
        })
        .transpose()
}
