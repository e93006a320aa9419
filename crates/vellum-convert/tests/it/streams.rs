//! Raw disks through pipes.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use vellum_convert::{
    ErrorKind, Format, Piece, Sink, SinkOptions, StreamSink, StreamSource, create,
};
use vellum_core::Extent;

use crate::lab::Lab;

/// Hands out what it has a few bytes at a time, and is interrupted now and then, as pipes are.
struct Trickle<'a> {
    bytes: &'a [u8],
    step: usize,
    calls: usize,
}

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.calls += 1;
        if self.calls.is_multiple_of(7) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let length = self.step.min(buffer.len());
        self.bytes.read(&mut buffer[..length])
    }
}

#[test]
fn a_stream_is_taken_apart_into_data_and_zeros() {
    for size in [0, 1, 4096, (1 << 20) + 1, (3 << 20) + 12345] {
        let mut disk = vec![0; size];
        for (i, byte) in disk.iter_mut().enumerate() {
            *byte = if i / 10_000 % 3 == 0 { 1 } else { 0 };
        }
        let mut source =
            StreamSource::new(Trickle { bytes: &disk, step: 9999, calls: 0 }, None).unwrap();
        let (mut copy, mut zeros) = (Vec::new(), 0);
        for piece in source.by_ref() {
            match piece.unwrap() {
                Piece::Data { offset, bytes } => {
                    assert_eq!(offset, copy.len() as u64);
                    assert!(bytes.len() <= 1 << 20);
                    copy.extend_from_slice(&bytes);
                }
                Piece::Zero(extent) => {
                    assert_eq!(extent.offset(), copy.len() as u64);
                    copy.resize(extent.end() as usize, 0);
                    zeros += extent.length();
                }
            }
        }
        assert!(copy == disk && source.size() == size as u64, "{size}");
        assert!(size < 1 << 20 || zeros as usize > size / 3, "{zeros} of {size} bytes are holes");
    }
}

#[test]
fn qcow2_does_not_come_through_a_pipe() {
    let head = *b"QFI\xfb\0\0\0\x03";
    let error = StreamSource::new(&head[..], None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("pipe") && error.hint().is_some(), "{error:?}");
    assert!(StreamSource::new(&[0; 10][..], Some(Format::Qcow2)).is_err());
    // Who says raw gets raw.
    assert_eq!(StreamSource::new(&head[..], Some(Format::Raw)).unwrap().count(), 1);
}

#[test]
fn a_stream_that_fails_says_so_once_and_ends() {
    #[derive(Debug)]
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }
    let mut source = StreamSource::new((&[1; 1 << 20][..]).chain(Broken), None).unwrap();
    assert!(source.next().unwrap().is_ok());
    assert_eq!(source.next().unwrap().unwrap_err().kind(), ErrorKind::Io);
    assert!(source.next().is_none());
    assert_eq!(StreamSource::new(Broken, None).unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn a_disk_is_sent_in_order_with_its_zeros() {
    let mut sent = Vec::new();
    let mut sink = StreamSink::new(&mut sent, 300_000);
    sink.write(10, &[1; 5]).unwrap();
    sink.zero(Extent::new(100, 100_000)).unwrap();
    sink.write(200_000, &[2; 5]).unwrap();
    assert_eq!(sink.write(200_004, &[3]).unwrap_err().kind(), ErrorKind::Invalid);
    Box::new(sink).finish().unwrap();
    let mut disk = vec![0; 300_000];
    disk[10..15].fill(1);
    disk[200_000..200_005].fill(2);
    assert!(sent == disk);
}

#[test]
fn a_reader_that_goes_away_is_an_error_not_a_panic() {
    let (near, far) = UnixStream::pair().unwrap();
    let mut sink = StreamSink::new(near, 1 << 30);
    drop(far);
    let error = sink.write(0, &[1; 4096]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    let cause =
        std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<io::Error>());
    assert_eq!(cause.map(io::Error::kind), Some(io::ErrorKind::BrokenPipe));
    assert_eq!(sink.zero(Extent::new(4096, 1)).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(Box::new(sink).finish().unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn a_named_pipe_is_sent_raw_but_not_qcow2() {
    let lab = Lab::new();
    let path = lab.path("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let options = |format| SinkOptions { format, overwrite: false };
    let error = create(&path, 1000, options(Format::Qcow2)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let reader = std::thread::spawn({
        let path = path.clone();
        move || std::fs::read(path).unwrap()
    });
    let mut sink = create(&path, 1000, options(Format::Raw)).unwrap();
    sink.write(500, &[1; 100]).unwrap();
    sink.finish().unwrap();
    let sent = reader.join().unwrap();
    assert_eq!((sent.len(), sent[499], sent[500], sent[599], sent[600]), (1000, 0, 1, 1, 0));
}
