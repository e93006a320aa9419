//! [`Source`]: a disk that is read from files.

use std::path::Path;
use std::sync::Arc;

use vellum_core::{Extent, Run, State};

use crate::chain::{Chain, Content, Link, Piece};
use crate::file::ImageFile;
use crate::qcow2::Image;
use crate::{Error, Format, Result};

/// How to open a [`Source`].
#[derive(Clone, Copy, Debug, Default)]
pub struct SourceOptions {
    /// The format; if not given, the first bytes tell. A raw disk that a stranger wrote can pass itself off as qcow2, so name the
    /// format where you know it.
    pub format: Option<Format>,
    /// Whether a qcow2 file may name other files, which are then read: its backing files, and the external data file of each. A
    /// file from elsewhere can name any file of this machine, so the default refuses, saying which file is named.
    pub allow_backing: bool,
}

/// A disk in a raw file, a block device, or a qcow2 file with the files behind it.
///
/// Cheap to clone; clones share the open files and a cache. Calls block, and any number may run at once. The files must not
/// change meanwhile: a raw file is then read partly old and partly new, a qcow2 file may also look corrupt.
///
/// Memory: 8 MiB of tables and 16 MiB of unpacked clusters at most, for all files together, and up to 16 MiB for each read
/// that is unpacking a cluster.
#[derive(Clone, Debug)]
pub struct Source {
    chain: Arc<Chain>,
    size: u64,
}

impl Source {
    /// Opens the disk that `path` holds.
    ///
    /// # Errors
    /// `Unsupported`, with a hint how to convert it, for what is not read: other formats, encrypted or dirty qcow2, other files
    /// named where that is not allowed, pipes. `Corrupt` for headers that make no sense, and for backing files in a circle.
    /// `NotFound` and `Io` as the file system says.
    pub fn open(path: impl AsRef<Path>, options: SourceOptions) -> Result<Self> {
        let chain = Chain::open(path.as_ref(), options)?;
        Ok(Self { size: chain.top().size(), chain: Arc::new(chain) })
    }

    /// Bytes of the disk: for a raw file its length, which need not be a multiple of anything.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The format of the file that was opened.
    pub fn format(&self) -> Format {
        match self.chain.top() {
            Link::Raw(_) => Format::Raw,
            Link::Qcow2(_) => Format::Qcow2,
        }
    }

    /// The file that was opened, and the backing files behind it.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.chain.links().iter().map(|link| link.file().path())
    }

    /// What the disk holds, in ascending order from 0 to its size, without gaps: [`State::Data`], or [`State::Zero`] where
    /// nothing has to be read; never [`State::Inherited`]. Zeros that were written like any data are data. Neighbours may have
    /// the same state, so that one step of the iterator is bounded work. After an error the iterator ends.
    pub fn extents(&self) -> Extents {
        Extents {
            source: self.clone(),
            at: 0,
            ahead: None,
            known: None,
            weights: vec![0; self.chain.links().len()],
        }
    }

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// `Invalid` if that is not inside the disk, `Corrupt` if a file is damaged, cut short, or shrank since it was opened.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let wanted = Extent::checked(offset, buffer.len() as u64)
            .filter(|wanted| wanted.end() <= self.size)
            .ok_or_else(|| {
                let length = buffer.len();
                Error::invalid(format!(
                    "{length} bytes at {offset} are not inside {} bytes",
                    self.size
                ))
            })?;
        let mut at = wanted.offset();
        while at < wanted.end() {
            let piece = self.chain.resolve(Extent::between(at, wanted.end()))?;
            let here = Extent::new(at, piece.length);
            self.chain.read(piece.content, &mut buffer[wanted.range_of(&here)])?;
            at = here.end();
        }
        Ok(())
    }
}

/// How many pieces of the disk one step of [`Extents`] merges at most.
const MERGED_MAX: usize = 4096;

/// The extents of a [`Source`], see [`Source::extents`].
#[derive(Debug)]
pub struct Extents {
    source: Source,
    at: u64,
    /// What begins at `at`, if that is known already.
    ahead: Option<(u64, State)>,
    known: Option<Known>,
    /// How much of each file the disk takes up so far, see [`Image::weight`].
    weights: Vec<u128>,
}

/// A stretch of a file of which the file system has said what it is.
#[derive(Clone, Copy, Debug)]
struct Known {
    identity: (u64, u64),
    extent: Extent,
    state: State,
}

impl Iterator for Extents {
    type Item = Result<Run>;

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.at;
        let mut merged = None;
        for _ in 0..MERGED_MAX {
            match self.peek() {
                None => break,
                Some(Ok((length, state))) if *merged.get_or_insert(state) == state => {
                    self.at += length;
                    self.ahead = None;
                }
                Some(Ok(_)) => break,
                // What was found before the error goes first; asked again, it fails again.
                Some(Err(_)) if merged.is_some() => break,
                Some(Err(error)) => {
                    self.at = self.source.size;
                    return Some(Err(error));
                }
            }
        }
        merged.map(|state| Ok(Run { extent: Extent::between(start, self.at), state }))
    }
}

impl Extents {
    fn peek(&mut self) -> Option<Result<(u64, State)>> {
        if self.ahead.is_none() && self.at < self.source.size {
            match self.piece() {
                Ok(piece) => self.ahead = Some(piece),
                Err(error) => return Some(Err(error)),
            }
        }
        self.ahead.map(Ok)
    }

    /// How far the disk is one thing from here on, and which.
    fn piece(&mut self) -> Result<(u64, State)> {
        let chain = self.source.chain.clone();
        let piece = chain.resolve(Extent::between(self.at, self.source.size))?;
        let (length, state) = match piece.content {
            Content::Zero => (piece.length, State::Zero),
            Content::Compressed { .. } => (piece.length, State::Data),
            // Allocated clusters can lie in holes: files made with preallocated metadata have nothing else.
            Content::File { file, offset } => {
                self.first_run(file, Extent::new(offset, piece.length))?
            }
        };
        self.weigh(&chain, &piece, length)?;
        Ok((length, state))
    }

    /// How much of the beginning of `extent`, which lies in `file`, is one hole or has none.
    fn first_run(&mut self, file: &ImageFile, extent: Extent) -> Result<(u64, State)> {
        let at = extent.offset();
        let speaks_of_it = |known: &Known| {
            known.identity == file.identity() && known.extent.contains(&Extent::new(at, 1))
        };
        let known = match self.known.filter(speaks_of_it) {
            Some(known) => known,
            None => {
                let (end, state) = file.run_at(at)?;
                Known { identity: file.identity(), extent: Extent::between(at, end), state }
            }
        };
        self.known = Some(known);
        Ok((extent.clip(known.extent.end()).length(), known.state))
    }

    /// A file whose tables let many clusters of the disk share one of its own would make a small file look like a disk full of
    /// data. No tool writes such files, so this one is damaged, or made to fill whatever it is copied to.
    fn weigh(&mut self, chain: &Chain, piece: &Piece<'_>, length: u64) -> Result<()> {
        let Some((number, mapping)) = piece.by else { return Ok(()) };
        let Link::Qcow2(image) = &chain.links()[number as usize] else { return Ok(()) };
        let weight = &mut self.weights[number as usize];
        *weight += Image::weight(mapping, length);
        if *weight <= image.weight_max() {
            return Ok(());
        }
        Err(Error::corrupt("its tables name more data than the file can hold")
            .of(image.file.path()))
    }
}
