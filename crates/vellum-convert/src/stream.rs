//! [`StreamSource`] and [`StreamSink`]: raw disks through pipes, from the first byte to the last.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use vellum_core::{BufferPool, Extent, IMAGE_SIZE_MAX, State};

use crate::destination::{ZEROS, broken};
use crate::sink::{Order, Sink};
use crate::zeros::zero_runs;
use crate::{Error, Format, Result};

/// What is read at once.
const CHUNK: usize = 1 << 20;
/// Zeros count as a hole if they fill a block of this size.
const BLOCK: u64 = 4096;

/// A raw disk that is read once, in order, such as from standard input. Its size is known when it ends.
///
/// An iterator of [`Piece`]s in ascending order without gaps. Nothing says where a stream has holes, so blocks of 4 KiB that are
/// all zero are taken for some. After an error the iterator ends.
#[derive(Debug)]
pub struct StreamSource<R> {
    reader: R,
    pool: BufferPool,
    pieces: VecDeque<Piece>,
    /// How much was read.
    size: u64,
    ended: bool,
}

/// The next part of a disk that comes in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Piece {
    /// Bytes, at most 1 MiB.
    Data {
        /// Where they belong.
        offset: u64,
        /// What they are. Kept for as long as they are needed: all that is kept is memory in use.
        bytes: Bytes,
    },
    /// Zeros.
    Zero(Extent),
}

impl<R: Read> StreamSource<R> {
    /// Begins to read, which waits for the first bytes.
    ///
    /// # Errors
    /// `Unsupported` for a format other than raw, named or (if none is named) detected: qcow2 keeps its tables anywhere in
    /// the file, so it cannot be read in order. `Io` if reading fails.
    pub fn new(reader: R, format: Option<Format>) -> Result<Self> {
        let mut source = Self {
            reader,
            pool: BufferPool::new(4 * CHUNK),
            pieces: VecDeque::new(),
            size: 0,
            ended: false,
        };
        let chunk = source.read_chunk()?;
        let head = &chunk[..chunk.len().min(Format::HEAD_LENGTH)];
        match format.map_or_else(|| Format::detect(head), Ok)? {
            Format::Raw => {}
            format => {
                return Err(Error::unsupported(format!(
                    "{format} cannot be read from a pipe, only from a file"
                ))
                .with_hint("write it to a file first, and name the file"));
            }
        }
        source.split(chunk);
        Ok(source)
    }

    /// Bytes of the disk so far; its size, once the iterator has ended.
    pub fn size(&self) -> u64 {
        match self.pieces.front() {
            None => self.size,
            Some(Piece::Data { offset, .. }) => *offset,
            Some(Piece::Zero(extent)) => extent.offset(),
        }
    }

    /// The next megabyte, or what is left.
    fn read_chunk(&mut self) -> Result<Bytes> {
        let mut buffer = self.pool.take(CHUNK);
        let mut length = 0;
        while length < CHUNK && !self.ended {
            match self.reader.read(&mut buffer[length..]) {
                Ok(0) => self.ended = true,
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.ended = true;
                    return Err(Error::io("read the disk from the pipe", error));
                }
            }
        }
        buffer.truncate(length);
        Ok(buffer.freeze())
    }

    fn split(&mut self, chunk: Bytes) {
        let whole = Extent::new(self.size, chunk.len() as u64);
        for run in &zero_runs(&chunk, self.size, BLOCK) {
            self.pieces.push_back(match run.state {
                State::Zero => Piece::Zero(run.extent),
                _ => Piece::Data {
                    offset: run.extent.offset(),
                    bytes: chunk.slice(whole.range_of(&run.extent)),
                },
            });
        }
        self.size = whole.end();
    }
}

impl<R: Read> Iterator for StreamSource<R> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.pieces.is_empty() && !self.ended {
            match self.read_chunk() {
                Ok(chunk) => self.split(chunk),
                Err(error) => return Some(Err(error)),
            }
            if self.size > IMAGE_SIZE_MAX {
                self.ended = true;
                self.pieces.clear();
                return Some(Err(Error::unsupported("the disk goes on after 1 PiB")));
            }
        }
        self.pieces.pop_front().map(Ok)
    }
}

/// A raw disk that is sent in order, such as to standard output. Zeros are sent like anything else.
#[derive(Debug)]
pub struct StreamSink<W> {
    writer: W,
    order: Order,
    broken: bool,
}

/// A file that is waited for where writing to it would wait: whoever shares a pipe may have made it one that does not, as Ceph's
/// library does with the standard error that is the same pipe as the standard output.
#[derive(Debug)]
pub struct Patient(File);

impl Write for Patient {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(data) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut waits = [PollFd::new(&self.0, PollFlags::OUT)];
                    poll(&mut waits, None)?;
                }
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl StreamSink<Patient> {
    /// Sends the disk to standard output, past whatever buffer others have there.
    ///
    /// # Errors
    /// `Io` if there is no standard output.
    pub fn stdout(size: u64) -> Result<Self> {
        let stdout = io::stdout().as_fd().try_clone_to_owned();
        let stdout = stdout.map_err(|error| Error::io("open standard output", error))?;
        Ok(Self::new(Patient(File::from(stdout)), size))
    }
}

impl<W: Write> StreamSink<W> {
    /// Sends a disk of `size` bytes. The writer needs no buffer.
    pub fn new(writer: W, size: u64) -> Self {
        Self { writer, order: Order::new(size), broken: false }
    }

    fn send(&mut self, data: &[u8]) -> Result<()> {
        if self.broken {
            return Err(broken());
        }
        self.writer.write_all(data).map_err(|error| {
            self.broken = true;
            Error::io("write the disk to the pipe", error)
        })
    }

    fn send_zeros(&mut self, extent: Extent) -> Result<()> {
        extent.chunks(ZEROS.len() as u64).try_for_each(|part| self.send(&ZEROS[..part.len_usize()]))
    }
}

impl<W: Write + Send> Sink for StreamSink<W> {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let (_, skipped) = self.order.advance(offset, data.len() as u64)?;
        self.send_zeros(skipped)?;
        self.send(data)
    }

    fn zero(&mut self, extent: Extent) -> Result<()> {
        let (_, skipped) = self.order.advance(extent.offset(), extent.length())?;
        self.send_zeros(Extent::between(skipped.offset(), extent.end()))
    }

    /// Sends the rest and flushes the writer. Whether that makes it durable is for whoever reads it to see to.
    fn finish(mut self: Box<Self>) -> Result<()> {
        if self.broken {
            return Err(broken());
        }
        self.send_zeros(self.order.rest())?;
        self.writer.flush().map_err(|error| Error::io("write the disk to the pipe", error))
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    #[test]
    fn a_pipe_that_must_not_be_waited_for_is_waited_for() {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let size = 1 << 20;
        let reading = std::thread::spawn(move || {
            let (mut reader, mut all) = (File::from(reader), Vec::new());
            while all.len() < size {
                let mut some = [0; 4096];
                match reader.read(&mut some) {
                    Ok(length) => all.extend_from_slice(&some[..length]),
                    Err(_) => std::thread::yield_now(),
                }
            }
            all
        });
        let sent: Vec<u8> = (0..size).map(|at| (at / 4096) as u8).collect();
        let mut sink = StreamSink::new(Patient(File::from(writer)), size as u64);
        sink.write(0, &sent).unwrap();
        Box::new(sink).finish().unwrap();
        assert!(reading.join().unwrap() == sent);
    }
}
