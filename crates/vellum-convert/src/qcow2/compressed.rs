//! Unpacking compressed clusters, and [`Clusters`], which remembers a few unpacked ones.

use std::io::Read;
use std::sync::Arc;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use super::entry::Compressed;
use crate::file::ImageFile;
use crate::{Error, Result};

/// How clusters of a file are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Compression {
    /// Raw deflate, without the header of zlib.
    Zlib,
    Zstd,
}

/// How many times its own length compressed data can unpack to, at the very most: zstd's run of one byte, 128 KiB in 4 bytes.
pub(crate) const RATIO_MAX: u64 = 1 << 15;
/// The largest window a zstd frame may ask for. The window is never larger than the cluster in files that QEMU wrote.
const ZSTD_WINDOW_MAX: u64 = 8 << 20;
/// What is kept unpacked, at most, for all files of a chain.
const KEPT_BYTES_MAX: u64 = 16 << 20;

/// Unpacks `packed`, which may have anything after its end, into exactly `cluster`.
fn unpack(compression: Compression, packed: &[u8], cluster: &mut [u8]) -> Result<()> {
    let done = match compression {
        Compression::Zlib => inflate(packed, cluster),
        Compression::Zstd => unpack_zstd(packed, cluster),
    };
    done.ok_or_else(|| Error::corrupt("a compressed cluster cannot be unpacked"))
}

fn inflate(packed: &[u8], cluster: &mut [u8]) -> Option<()> {
    let mut state = Box::<DecompressorOxide>::default();
    let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, _, written) = decompress(&mut state, packed, cluster, 0, flags);
    // A full cluster is all there can be, whether or not the stream goes on to say that it ends here.
    let whole = matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput);
    (whole && written == cluster.len()).then_some(())
}

fn unpack_zstd(packed: &[u8], cluster: &mut [u8]) -> Option<()> {
    let mut frame =
        ruzstd::decoding::StreamingDecoder::new_with_max_window_size(packed, ZSTD_WINDOW_MAX)
            .ok()?;
    frame.read_exact(cluster).ok()
}

/// Unpacked clusters of the files of one chain, by file and place: a reader that goes through the disk in steps smaller than a
/// cluster would otherwise unpack each several times. Keeps at most [`KEPT_BYTES_MAX`] bytes.
#[derive(Debug)]
pub(crate) struct Clusters(Cache<(u32, Compressed), Arc<[u8]>, ByLength>);

#[derive(Clone, Debug)]
struct ByLength;

impl Weighter<(u32, Compressed), Arc<[u8]>> for ByLength {
    fn weight(&self, _: &(u32, Compressed), cluster: &Arc<[u8]>) -> u64 {
        cluster.len() as u64
    }
}

impl Clusters {
    pub(crate) fn new() -> Self {
        let options = OptionsBuilder::new()
            // One shard, or the largest clusters would not fit into theirs.
            .shards(1)
            .estimated_items_capacity(256)
            .weight_capacity(KEPT_BYTES_MAX)
            .build()
            .expect("all that must be set is");
        let hasher = DefaultHashBuilder::default();
        Self(Cache::with_options(options, ByLength, hasher, DefaultLifecycle::default()))
    }

    /// The cluster of `length` bytes that lies packed at `place` of `file`, which is number `number` of the chain.
    pub(crate) fn get(
        &self,
        number: u32,
        file: &ImageFile,
        compression: Compression,
        place: Compressed,
        length: u64,
    ) -> Result<Arc<[u8]>> {
        self.0.get_or_insert_with(&(number, place), || {
            let mut packed = vec![0; place.length_max as usize];
            // The last sector need not be there in full.
            let present = file.read_up_to(&mut packed, place.offset)?;
            let mut cluster = vec![0; length as usize];
            unpack(compression, &packed[..present], &mut cluster)
                .map_err(|error| error.of(file.path()))?;
            Ok(cluster.into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stored, not compressed: a deflate block of 4 bytes, the last.
    const STORED: [u8; 9] = [1, 4, 0, 0xfb, 0xff, b'a', b'b', b'c', b'd'];

    #[test]
    fn what_follows_the_stream_does_not_matter() {
        let mut packed = STORED.to_vec();
        packed.extend([0xaa; 100]);
        let mut cluster = [0; 4];
        unpack(Compression::Zlib, &packed, &mut cluster).unwrap();
        assert_eq!(&cluster, b"abcd");
    }

    #[test]
    fn too_few_bytes_are_corrupt() {
        assert!(unpack(Compression::Zlib, &STORED, &mut [0; 5]).is_err());
        assert!(unpack(Compression::Zlib, &STORED[..7], &mut [0; 4]).is_err());
        assert!(unpack(Compression::Zlib, &[], &mut [0; 4]).is_err());
        assert!(unpack(Compression::Zstd, &[], &mut [0; 4]).is_err());
    }

    #[test]
    fn a_zstd_window_larger_than_any_cluster_needs_is_refused() {
        // A frame with the window descriptor 20 << 3 (1 GiB), then one empty block, the last.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 20 << 3, 1, 0, 0];
        assert!(unpack(Compression::Zstd, &frame, &mut [0; 1]).is_err());
    }
}
