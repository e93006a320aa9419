//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vellum_core::{ByteSize, IMAGE_SIZE_MAX, ImageName, ImageSpec, NameError, PoolName, quoted};
use vellum_engine::{ChildRef, ImageId, Layering};

use crate::commands::{bench, export, import, serve};
use crate::output::Format;

/// Writable copies of disk images in O(1)
#[derive(Parser, Debug)]
#[command(name = "vellum", version, max_term_width = 100, propagate_version = true)]
pub struct Arguments {
    /// Where pools are known and the default pool lies [default: /var/lib/vellum for root, $XDG_DATA_HOME/vellum for others]
    #[arg(long, global = true, env = "VELLUM_HOME", value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// How answers are printed
    #[arg(long, global = true, value_enum, default_value_t)]
    pub format: Format,
    #[command(subcommand)]
    pub command: Command,
}

/// A command.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Create, list and remove pools, and use copies of them
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Create an empty image
    Create {
        /// [pool/]image
        #[arg(value_parser = image)]
        spec: ImageSpec,
        /// Its size, such as 10G
        #[arg(long, short, value_parser = image_size)]
        size: ByteSize,
        #[command(flatten)]
        shape: Shape,
    },
    /// Make an image from a raw or qcow2 file
    Import(import::Arguments),
    /// Write an image or a snapshot to a file
    Export(export::Arguments),
    /// List images
    Ls {
        /// Only those of this pool
        pool: Option<PoolName>,
    },
    /// Show an image
    Info {
        /// [pool/]image[@snap]
        spec: ImageSpec,
    },
    /// Draw parents, snapshots and children
    Tree {
        /// Only what hangs on this image
        #[arg(value_parser = image)]
        spec: Option<ImageSpec>,
    },
    /// Show what images store
    Du {
        /// Only this image
        spec: Option<ImageSpec>,
    },
    /// Show which layer defines what
    Map {
        /// [pool/]image[@snap]
        spec: ImageSpec,
    },
    /// Create, list and remove snapshots
    #[command(subcommand)]
    Snap(SnapCommand),
    /// Make a writable copy of a snapshot, in O(1)
    Clone {
        /// [pool/]image[@snap]; without a snapshot one is taken for it
        parent: ImageSpec,
        /// [pool/]image
        #[arg(value_parser = image)]
        child: ImageSpec,
        /// Make this many, named CHILD-0001 and so on
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        count: Option<u32>,
        #[command(flatten)]
        shape: Shape,
    },
    /// List the children of an image or a snapshot
    Children {
        /// [pool/]image[@snap]
        spec: ImageSpec,
        /// Take a child from the list instead, whose pool is lost for good: by the ids that the list shows
        #[arg(long, value_name = "POOL_ID/IMAGE_ID", value_parser = child)]
        forget: Option<ChildRef>,
    },
    /// Copy up what is inherited from the parent, then cut the link
    Flatten {
        /// [pool/]image
        #[arg(value_parser = image)]
        spec: ImageSpec,
        /// Copy at most this much a second
        #[arg(long, value_name = "SIZE", value_parser = some_bytes)]
        rate: Option<ByteSize>,
    },
    /// Change what kind of image an image is
    #[command(subcommand)]
    Image(ImageCommand),
    /// Look after the allocation bitmaps of sparse images on Ceph, by which reads skip layers that hold nothing
    #[command(subcommand)]
    Bitmap(BitmapCommand),
    /// Give up the content of a range
    Discard {
        /// [pool/]image
        #[arg(value_parser = image)]
        spec: ImageSpec,
        /// Where it begins
        #[arg(long)]
        offset: ByteSize,
        /// How much
        #[arg(long, value_parser = some_bytes)]
        length: ByteSize,
        /// What whole units read as afterwards
        #[arg(long, value_enum, default_value_t)]
        to: DiscardTo,
    },
    /// Compare what is recorded with what is stored
    Check {
        /// Only this image
        #[arg(value_parser = image)]
        spec: Option<ImageSpec>,
        /// Mend lists, and free what nothing refers to
        #[arg(long)]
        repair: bool,
        /// Also remove files of layers that the catalog never knew: it may be an old copy, and they may be newer
        #[arg(long, requires = "repair", conflicts_with = "spec")]
        remove_unknown_files: bool,
    },
    /// Give an image another name
    Rename {
        /// [pool/]image
        #[arg(value_parser = image)]
        spec: ImageSpec,
        /// The new name, in the same pool
        name: ImageName,
    },
    /// Remove an image with its snapshots
    Rm {
        /// [pool/]image
        #[arg(value_parser = image)]
        spec: ImageSpec,
    },
    /// Offer images over NBD
    Serve(serve::Arguments),
    /// Measure an image
    Bench(bench::Arguments),
    /// Print a completion script
    Completions {
        /// For this shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man {
        /// Write one page for each command to this directory instead
        #[arg(long)]
        dir: Option<PathBuf>,
    },
}

/// What is done to pools.
#[derive(Subcommand, Debug)]
pub enum PoolCommand {
    /// Create a pool in a directory, or make an existing one, or one of a Ceph cluster, known to this home
    Create {
        /// Its name in this home
        name: PoolName,
        /// Where it is
        #[command(flatten)]
        place: PoolPlace,
    },
    /// List pools
    Ls,
    /// Give a pool that is a copy of another one an id of its own, so that both can be used
    NewId {
        /// The copy's name in this home
        name: PoolName,
        /// The copy's directory, if this home does not know it yet
        #[arg(long, value_name = "DIR")]
        path: Option<PathBuf>,
    },
    /// Forget a pool; what is in it stays
    Rm {
        /// Its name in this home
        name: PoolName,
    },
}

/// Where a pool is.
#[derive(clap::Args, Debug)]
pub struct PoolPlace {
    /// Its directory
    #[arg(long, value_name = "DIR", required_unless_present = "ceph_pool")]
    pub path: Option<PathBuf>,
    /// The pool of a Ceph cluster that its images are in
    #[arg(long, value_name = "POOL", conflicts_with = "path")]
    pub ceph_pool: Option<String>,
    /// The namespace in that
    #[arg(long, value_name = "NAMESPACE", requires = "ceph_pool")]
    pub ceph_namespace: Option<String>,
    /// The configuration of the cluster [default: where Ceph looks for it]
    #[arg(long, value_name = "FILE", requires = "ceph_pool")]
    pub ceph_conf: Option<PathBuf>,
    /// Who to be there, without 'client.' [default: admin]
    #[arg(long, value_name = "USER", requires = "ceph_pool")]
    pub ceph_user: Option<String>,
}

/// What is done to the kind of an image.
#[derive(Subcommand, Debug)]
pub enum ImageCommand {
    /// Make a sparse image on Ceph a plain one, which Ceph's own tools open; it must have no parent and no snapshots
    Publish {
        /// [pool/]image
        #[arg(value_parser = image)]
        spec: ImageSpec,
    },
}

/// What is done to allocation bitmaps.
#[derive(Subcommand, Debug)]
pub enum BitmapCommand {
    /// Make it anew, as after the death of who had the image open; an image must not be in use
    Build {
        /// [pool/]image[@snap]
        spec: ImageSpec,
    },
    /// Compare it with the objects that there are
    Check {
        /// [pool/]image[@snap]
        spec: ImageSpec,
    },
}

/// What is done to snapshots.
#[derive(Subcommand, Debug)]
pub enum SnapCommand {
    /// Freeze an image under a name, in O(1), also while it is in use
    Create {
        /// [pool/]image@snap
        #[arg(value_parser = snapshot)]
        spec: ImageSpec,
    },
    /// List the snapshots of an image
    Ls {
        /// [pool/]image
        #[arg(value_parser = image)]
        spec: ImageSpec,
    },
    /// Remove a snapshot
    Rm {
        /// [pool/]image@snap
        #[arg(value_parser = snapshot)]
        spec: ImageSpec,
    },
}

/// How an image is laid out.
#[derive(Args, Clone, Debug, Default)]
pub struct Shape {
    /// What is taken from the parent at once: the block, or the whole object
    #[arg(long, value_enum)]
    pub layering: Option<LayeringArgument>,
    /// Bytes in an object, 4K to 32M [default: 4M, or the parent's]
    #[arg(long, value_name = "SIZE")]
    pub object_size: Option<ByteSize>,
    /// Bytes in a block, the unit of sparse layering [default: 4K, or the parent's]
    #[arg(long, value_name = "SIZE", value_parser = block_size)]
    pub block_size: Option<ByteSize>,
    /// Bytes that lie together in an object
    #[arg(long, value_name = "SIZE", requires = "stripe_count")]
    pub stripe_unit: Option<ByteSize>,
    /// Objects that take turns
    #[arg(long, value_name = "N", requires = "stripe_unit")]
    pub stripe_count: Option<u64>,
}

/// An image, where a snapshot makes no sense.
pub fn image(text: &str) -> Result<ImageSpec, String> {
    let spec: ImageSpec = text.parse().map_err(|error: NameError| error.to_string())?;
    match &spec.snapshot {
        None => Ok(spec),
        Some(name) => Err(format!("name the image alone, without '@{name}'")),
    }
}

/// A child by its ids.
fn child(text: &str) -> Result<ChildRef, String> {
    let parts = text.split_once('/').filter(|(_, image)| !image.is_empty());
    let (pool, image) = parts.ok_or("write POOL_ID/IMAGE_ID, as `vellum children` shows them")?;
    let pool = pool.parse().map_err(|_| format!("'{}' is no id of a pool", quoted(pool)))?;
    Ok(ChildRef { pool, image: ImageId::new(image) })
}

/// A snapshot, where an image alone makes no sense.
fn snapshot(text: &str) -> Result<ImageSpec, String> {
    let spec: ImageSpec = text.parse().map_err(|error: NameError| error.to_string())?;
    match &spec.snapshot {
        Some(_) => Ok(spec),
        None => Err(format!("name a snapshot too, as in {text}@SNAP")),
    }
}

/// The size of an image.
fn image_size(text: &str) -> Result<ByteSize, String> {
    match some_bytes(text)? {
        ByteSize(size) if size > IMAGE_SIZE_MAX => Err("an image has at most 1 PiB".to_owned()),
        size => Ok(size),
    }
}

/// The size of a block.
fn block_size(text: &str) -> Result<ByteSize, String> {
    match some_bytes(text)? {
        ByteSize(size) if !size.is_power_of_two() || !(512..=1 << 20).contains(&size) => {
            Err("it must be a power of two from 512 to 1M".to_owned())
        }
        size => Ok(size),
    }
}

/// A size, where nothing makes no sense.
fn some_bytes(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>().map_err(|error| error.to_string())? {
        ByteSize(0) => Err("it must be at least 1 byte".to_owned()),
        size => Ok(size),
    }
}

/// `--layering`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LayeringArgument {
    /// The block
    Sparse,
    /// The whole object
    CopyUp,
}

impl From<LayeringArgument> for Layering {
    fn from(argument: LayeringArgument) -> Self {
        match argument {
            LayeringArgument::Sparse => Layering::Sparse,
            LayeringArgument::CopyUp => Layering::CopyUp,
        }
    }
}

/// `--to`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum DiscardTo {
    /// Zeros
    #[default]
    Zero,
    /// What the parent holds
    Parent,
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory};

    use super::Arguments;

    const DOCUMENT: &str = include_str!("../../../docs/cli.md");

    /// Each command that does something itself, with all the words before it.
    fn leaves(command: &Command, words: &str, found: &mut Vec<(String, Command)>) {
        let words = format!("{words}{}", command.get_name());
        if !command.has_subcommands() {
            found.push((words, command.clone()));
            return;
        }
        for below in command.get_subcommands() {
            leaves(below, &format!("{words} "), found);
        }
    }

    #[test]
    fn the_document_names_every_command_and_every_option() {
        let mut commands = Vec::new();
        leaves(&Arguments::command(), "", &mut commands);
        assert!(commands.len() > 20, "{} commands were found", commands.len());
        let mut missing = Vec::new();
        for (words, command) in commands {
            if !DOCUMENT.contains(&format!("`{words}")) && !DOCUMENT.contains(&format!("\n{words}"))
            {
                missing.push(words.clone());
            }
            let options = command.get_arguments().filter_map(|argument| argument.get_long());
            let unnamed = options.filter(|option| !DOCUMENT.contains(&format!("--{option}")));
            missing.extend(unnamed.map(|option| format!("{words} --{option}")));
        }
        assert!(missing.is_empty(), "docs/cli.md lacks {missing:?}");
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }
}
