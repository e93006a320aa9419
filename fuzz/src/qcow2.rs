//! A qcow2 file from elsewhere, read as an import does.
//!
//! An input is the length of the file, and what it holds where: most of a qcow2 file is zeros, and needs no bytes here. The
//! magic number and the version are set right. Whatever the file says, reading it ends, within the memory that is stated, with
//! bytes or an error that a damaged file may have; a part reads as the whole does; what is said to be zero is; and what was
//! read, written as a new qcow2 file, reads the same.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vellum_convert::{Error, ErrorKind, Format, SinkOptions, Source, SourceOptions, create};
use vellum_core::{Extent, Run, State};

use crate::input::Input;

/// The longest file.
const FILE_MAX: u64 = 16 << 20;
/// How much of its data is read.
const DATA_MAX: u64 = 256 << 10;
/// How many steps are made through its disk.
const RUNS_MAX: usize = 256;
/// The largest disk that is written again.
const DISK_MAX: u64 = 4 << 20;
const PART: u64 = 64 << 10;
/// Set in the length of a piece that is one byte, again and again.
const REPEATED: u16 = 1 << 15;
/// How a file is cut to be described, and the longest piece.
const CELL: usize = 16;
const PIECE_MAX: usize = 0x7000;

/// See the module.
pub fn look_at(data: &[u8]) {
    let file = file(&mut Input::new(data));
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let options = SourceOptions { format: Some(Format::Qcow2), allow_backing: false };
    match Source::open(&path, options) {
        Ok(source) => read(&source),
        Err(error) => check_error(&error),
    }
}

/// The file that an input describes, which has no name.
fn file(input: &mut Input<'_>) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("qcow2", flags).expect("memory for a file"));
    let length = u64::from(input.u32()) % FILE_MAX;
    file.set_len(length).expect("a hole costs nothing");
    while !input.is_empty() {
        let at = u64::from(input.u32()) % FILE_MAX;
        let here = input.u16();
        let bytes = match here & REPEATED {
            0 => input.bytes(here.into()).to_vec(),
            _ => vec![input.u8(); usize::from(here & !REPEATED)],
        };
        let room = length.saturating_sub(at).min(bytes.len() as u64);
        file.write_all_at(&bytes[..room as usize], at).expect("memory for a file");
    }
    if length >= 8 {
        let mut version = [0; 1];
        file.read_exact_at(&mut version, 7).expect("it is that long");
        let version = if version[0] == 2 { 2 } else { 3 };
        file.write_all_at(&[b'Q', b'F', b'I', 0xfb, 0, 0, 0, version], 0).expect("it was there");
    }
    file
}

/// The input that describes a file: its bytes in cells, but for zeros, and runs of one byte. For whoever makes seeds.
pub fn describe(file: &[u8]) -> Vec<u8> {
    let mut described = (file.len() as u32).to_le_bytes().to_vec();
    let cells = file.chunks(CELL).enumerate();
    let mut pieces: Vec<(usize, &[u8])> = Vec::new();
    for (number, cell) in cells.filter(|(_, cell)| cell.iter().any(|byte| *byte != 0)) {
        let at = number * CELL;
        let same = cell.iter().all(|byte| *byte == cell[0]);
        match pieces.last_mut() {
            Some((start, piece))
                if *start + piece.len() == at
                    && piece.len() < PIECE_MAX
                    && same == piece.iter().all(|byte| *byte == cell[0]) =>
            {
                *piece = &file[*start..at + cell.len()];
            }
            _ => pieces.push((at, cell)),
        }
    }
    for (at, piece) in pieces {
        described.extend((at as u32).to_le_bytes());
        if piece.iter().all(|byte| *byte == piece[0]) {
            described.extend((piece.len() as u16 | REPEATED).to_le_bytes());
            described.push(piece[0]);
        } else {
            described.extend((piece.len() as u16).to_le_bytes());
            described.extend(piece);
        }
    }
    described
}

/// The file that an input describes, as a whole.
///
/// # Panics
/// If there is no memory for it.
pub fn rebuild(input: &[u8]) -> Vec<u8> {
    let file = file(&mut Input::new(input));
    let length = file.metadata().expect("an open file").len();
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0).expect("it is that long");
    bytes
}

/// The errors that reading a damaged file may end with.
fn check_error(error: &Error) {
    let kind = error.kind();
    assert!(matches!(kind, ErrorKind::Corrupt | ErrorKind::Unsupported), "{kind:?}: {error}");
    assert!(!error.to_string().is_empty());
}

fn read(source: &Source) {
    let mut runs = Vec::new();
    let (mut at, mut left) = (0, DATA_MAX);
    let mut whole = true;
    for run in source.extents().take(RUNS_MAX) {
        let run = match run {
            Ok(run) => run,
            Err(error) => {
                check_error(&error);
                whole = false;
                break;
            }
        };
        assert_eq!(run.extent.offset(), at, "runs are adjacent");
        assert!(!run.extent.is_empty() && run.state != State::Inherited);
        at = run.extent.end();
        whole &= check_run(source, run, &mut left);
        runs.push(run);
    }
    assert!(at <= source.size());
    // From the end backwards, where nobody went before.
    let last = Extent::between(source.size().saturating_sub(PART), source.size());
    let read = source.read_at(&mut vec![0; last.len_usize()], last.offset());
    if let Err(error) = read {
        check_error(&error);
        assert!(!whole || at < source.size(), "the end is damaged, and was read before");
    } else if whole && at == source.size() && at <= DISK_MAX {
        write_again(source, &runs);
    }
}

/// Whether a run, as far as it is looked at, reads as what it is said to be.
fn check_run(source: &Source, run: Run, left: &mut u64) -> bool {
    let extent = run.extent.clip(run.extent.offset().saturating_add((*left).min(PART)));
    *left -= extent.length();
    let mut bytes = vec![0xaa; extent.len_usize()];
    if let Err(error) = source.read_at(&mut bytes, extent.offset()) {
        check_error(&error);
        assert_eq!(run.state, State::Data, "zeros that cannot be read");
        return false;
    }
    assert!(run.state == State::Data || bytes.iter().all(|byte| *byte == 0), "zeros are zeros");
    // In small parts, through other clusters, it is the same.
    let (first, second) = bytes.split_at(bytes.len() / 3);
    for (part, offset) in [(second, first.len()), (first, 0)] {
        let mut again = vec![0x55; part.len()];
        let read = source.read_at(&mut again, extent.offset() + offset as u64);
        assert!(read.is_ok() && again == part, "a part reads as the whole does");
    }
    true
}

/// Writes the disk into a new file, which must read the same. A disk whose data was not all read may have damage left.
fn write_again(source: &Source, runs: &[Run]) {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let path = directory.path().join("again.qcow2");
    match copy(source, runs, &path) {
        Ok(()) => {}
        Err(error) => return check_error(&error),
    }
    let again = Source::open(&path, SourceOptions::default()).expect("what was written is read");
    assert_eq!(again.size(), source.size().next_multiple_of(512));
    for part in Extent::new(0, source.size()).chunks(PART) {
        let (mut old, mut new) = (vec![0; part.len_usize()], vec![1; part.len_usize()]);
        source.read_at(&mut old, part.offset()).expect("it was read before");
        again.read_at(&mut new, part.offset()).expect("what was written is read");
        assert!(old == new, "the copy differs at {}", part.offset());
    }
}

fn copy(source: &Source, runs: &[Run], path: &Path) -> Result<(), Error> {
    let options = SinkOptions { format: Format::Qcow2, overwrite: false };
    let mut sink = create(path, source.size(), options)?;
    for run in runs {
        if run.state == State::Zero {
            sink.zero(run.extent)?;
            continue;
        }
        for part in run.extent.chunks(PART) {
            let mut bytes = vec![0; part.len_usize()];
            source.read_at(&mut bytes, part.offset())?;
            sink.write(part.offset(), &bytes)?;
        }
    }
    sink.finish()
}
