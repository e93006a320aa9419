//! [`Chain`]: a file and the files behind it, and where in them each byte of the disk lies.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use vellum_core::{Extent, IMAGE_SIZE_MAX};

use crate::file::ImageFile;
use crate::qcow2::entry::Compressed;
use crate::qcow2::header::Backing;
use crate::qcow2::{Clusters, Image, Mapping, Pages};
use crate::{Error, Format, Result, SourceOptions};

/// How many files one chain can have.
const LINKS_MAX: usize = 256;

/// The files that make up one disk, topmost first: all qcow2, but for the last, which may be raw.
#[derive(Debug)]
pub(crate) struct Chain {
    links: Vec<Link>,
    pages: Pages,
    clusters: Clusters,
}

/// One file of a chain.
#[derive(Debug)]
pub(crate) enum Link {
    Raw(ImageFile),
    Qcow2(Image),
}

/// What the disk holds somewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece<'a> {
    pub content: Content<'a>,
    /// How far it reaches.
    pub length: u64,
    /// The number of the file that says so, and what it says; raw files say nothing, and neither does the end of a chain.
    pub by: Option<(u32, Mapping)>,
}

/// Where bytes come from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content<'a> {
    Zero,
    /// From this offset of a file on, which may have holes there.
    File {
        file: &'a ImageFile,
        offset: u64,
    },
    /// `within` bytes into a compressed cluster.
    Compressed {
        image: &'a Image,
        cluster: Compressed,
        within: u64,
    },
}

impl Chain {
    /// Opens `path` and, where the options allow it, the files that it names.
    pub(crate) fn open(path: &Path, options: SourceOptions) -> Result<Self> {
        let mut chain = Self { links: Vec::new(), pages: Pages::new(), clusters: Clusters::new() };
        let mut next = Some((path.to_owned(), options.format));
        while let Some((path, format)) = next {
            let link = chain.open_link(&path, format, options).map_err(|error| {
                match chain.links.last() {
                    // The user did not name this file; say who did.
                    Some(above) => error.of(above.file().path()),
                    None => error,
                }
            })?;
            next = link.backing(options)?;
            chain.links.push(link);
        }
        Ok(chain)
    }

    fn open_link(
        &self,
        path: &Path,
        format: Option<Format>,
        options: SourceOptions,
    ) -> Result<Link> {
        let file = ImageFile::open(path)?;
        check_link(&self.links, &file)?;
        Link::open(file, format, self.links.len() as u32, options)
    }

    /// The topmost file.
    pub(crate) fn top(&self) -> &Link {
        &self.links[0]
    }

    pub(crate) fn links(&self) -> &[Link] {
        &self.links
    }

    /// What the disk holds at the beginning of `wanted`, which lies inside it and is not empty.
    pub(crate) fn resolve(&self, wanted: Extent) -> Result<Piece<'_>> {
        let (offset, mut length) = (wanted.offset(), wanted.length());
        for link in &self.links {
            // Past the end of a backing file that is shorter than the disk there are zeros, whatever lies behind it.
            let here = Extent::new(offset, length).clip(link.size());
            if here.is_empty() {
                break;
            }
            let image = match link {
                Link::Raw(file) => {
                    let content = Content::File { file, offset };
                    return Ok(Piece { content, length: here.length(), by: None });
                }
                Link::Qcow2(image) => image,
            };
            let (mapping, mapped) = image.map(&self.pages, here)?;
            length = mapped;
            let content = match mapping {
                Mapping::Unallocated => continue,
                Mapping::Zero => Content::Zero,
                Mapping::Data(offset) => Content::File { file: image.data_file(), offset },
                Mapping::Compressed { cluster, within } => {
                    Content::Compressed { image, cluster, within }
                }
            };
            return Ok(Piece { content, length, by: Some((image.number, mapping)) });
        }
        Ok(Piece { content: Content::Zero, length, by: None })
    }

    /// Fills `buffer` from the beginning of `content`.
    pub(crate) fn read(&self, content: Content<'_>, buffer: &mut [u8]) -> Result<()> {
        match content {
            Content::Zero => buffer.fill(0),
            Content::File { file, offset } => file.read_at(buffer, offset)?,
            Content::Compressed { image, cluster, within } => {
                let header = &image.header;
                let length = header.layout.cluster_size();
                let bytes = self.clusters.get(
                    image.number,
                    &image.file,
                    header.compression,
                    cluster,
                    length,
                )?;
                buffer.copy_from_slice(&bytes[within as usize..][..buffer.len()]);
            }
        }
        Ok(())
    }
}

impl Link {
    fn open(
        file: ImageFile,
        format: Option<Format>,
        number: u32,
        options: SourceOptions,
    ) -> Result<Self> {
        let format = match format {
            Some(format) => format,
            None => detect(&file)?,
        };
        match format {
            Format::Raw if file.length() > IMAGE_SIZE_MAX => Err(Error::unsupported(format!(
                "{}: it has {} bytes, more than 1 PiB",
                file.path().display(),
                file.length()
            ))),
            Format::Raw => Ok(Link::Raw(file)),
            Format::Qcow2 => {
                let header = Image::read_header(&file)?;
                let external = match &header.data_file {
                    None => None,
                    Some(name) => {
                        let path = referenced(&file, "data file", name, options)?;
                        Some(ImageFile::open(&path).map_err(|error| error.of(file.path()))?)
                    }
                };
                Ok(Link::Qcow2(Image { number, file, header, external }))
            }
        }
    }

    /// The size of the disk as this file knows it.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Link::Raw(file) => file.length(),
            Link::Qcow2(image) => image.header.size,
        }
    }

    pub(crate) fn file(&self) -> &ImageFile {
        match self {
            Link::Raw(file) => file,
            Link::Qcow2(image) => &image.file,
        }
    }

    /// The path of the file behind this one, and its format where this one knows it.
    fn backing(&self, options: SourceOptions) -> Result<Option<(PathBuf, Option<Format>)>> {
        let Link::Qcow2(Image { file, header, .. }) = self else { return Ok(None) };
        let Some(backing) = &header.backing else { return Ok(None) };
        let path = referenced(file, "backing file", &backing.name, options)?;
        Ok(Some((path, backing_format(file, backing)?)))
    }
}

fn detect(file: &ImageFile) -> Result<Format> {
    let mut head = [0; Format::HEAD_LENGTH];
    let read = file.read_up_to(&mut head, 0)?;
    let detected = Format::detect(&head[..read]).map_err(|error| error.of(file.path()))?;
    if let Some(at) = file.length().checked_sub(Format::END_LENGTH as u64)
        && detected == Format::Raw
    {
        let mut end = [0; Format::END_LENGTH];
        let read = file.read_up_to(&mut end, at)?;
        Format::check_end(&end[..read]).map_err(|error| error.of(file.path()))?;
    }
    Ok(detected)
}

/// A chain neither comes back to a file nor goes on for ever.
fn check_link(links: &[Link], file: &ImageFile) -> Result<()> {
    if links.iter().any(|link| link.file().identity() == file.identity()) {
        return Err(Error::corrupt(format!(
            "{}: its chain of backing files comes back to itself",
            file.path().display()
        )));
    }
    if links.len() == LINKS_MAX {
        let context = format!(
            "{}: the chain of backing files is longer than {LINKS_MAX}",
            links[0].file().path().display()
        );
        return Err(Error::unsupported(context)
            .with_hint("make it one file with `qemu-img convert -O qcow2 OLD NEW`"));
    }
    Ok(())
}

/// The path of another file that `file` names, if it may be opened. Relative names start at the directory of `file`; so do those
/// of data files, which QEMU looks for in the directory that it happens to run in.
fn referenced(
    file: &ImageFile,
    role: &str,
    name: &[u8],
    options: SourceOptions,
) -> Result<PathBuf> {
    let shown = String::from_utf8_lossy(name).escape_debug().to_string();
    let of = |what: &str| format!("{}: its {role} '{shown}' {what}", file.path().display());
    if !options.allow_backing {
        return Err(Error::unsupported(of("is another file, and a file from elsewhere may name any file here")).with_hint(
            "allow it if you trust the file, or make it one file with `qemu-img convert -O qcow2 OLD NEW`",
        ));
    }
    let name = name.strip_prefix(b"file:").unwrap_or(name);
    // As QEMU reads names, a colon before the first slash ends a protocol.
    let protocol = name.iter().take_while(|byte| **byte != b'/').any(|byte| *byte == b':');
    if protocol || name.iter().any(u8::is_ascii_control) {
        return Err(Error::unsupported(of("is no plain file name"))
            .with_hint("make it one file with `qemu-img convert -O qcow2 OLD NEW`"));
    }
    let directory = file.path().parent().unwrap_or(Path::new(""));
    Ok(directory.join(OsStr::from_bytes(name)))
}

/// The format that `file` says its backing file has. Where it says nothing, the backing file's first bytes decide.
fn backing_format(file: &ImageFile, backing: &Backing) -> Result<Option<Format>> {
    match backing.format.as_deref() {
        None => Ok(None),
        // Older tools named the way to open a plain device rather than a format.
        Some(b"raw" | b"file" | b"host_device") => Ok(Some(Format::Raw)),
        Some(b"qcow2") => Ok(Some(Format::Qcow2)),
        Some(other) => Err(Error::unsupported(format!(
            "{}: its backing file is '{}', neither raw nor qcow2",
            file.path().display(),
            String::from_utf8_lossy(other).escape_debug()
        ))
        .with_hint("make it one file with `qemu-img convert -O qcow2 OLD NEW`")),
    }
}
