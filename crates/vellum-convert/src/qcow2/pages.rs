//! [`Pages`]: a bounded cache of the pages in which tables are read.

use std::sync::Arc;

use quick_cache::sync::Cache;

use crate::file::ImageFile;
use crate::{Error, Result};

/// Tables are read in pages of this many bytes; entries never cross one, since tables are aligned to 512 bytes and more.
pub(crate) const PAGE: u64 = 4096;
/// How many pages are kept for all files of a chain: 8 MiB, which speak of 64 GiB at the usual cluster size.
const KEPT_MAX: usize = 2048;

/// Pages of the tables of a chain's files, by file and number. A page is shorter only where its file ends in it.
#[derive(Debug)]
pub(crate) struct Pages(Cache<(u32, u64), Arc<[u8]>>);

impl Pages {
    pub(crate) fn new() -> Self {
        Self(Cache::new(KEPT_MAX))
    }

    /// The bytes from `offset` to the end of its page, at least `length` of them, of `file`, which is number `number` of the chain.
    pub(crate) fn get(
        &self,
        number: u32,
        file: &ImageFile,
        offset: u64,
        length: u64,
    ) -> Result<Tail> {
        let (page, within) = (offset / PAGE, (offset % PAGE) as usize);
        let bytes = self.0.get_or_insert_with(&(number, page), || {
            let mut bytes = vec![0; PAGE as usize];
            let present = file.read_up_to(&mut bytes, page * PAGE)?;
            bytes.truncate(present);
            Ok::<_, Error>(bytes.into())
        })?;
        if bytes.len() < within + length as usize {
            return Err(Error::corrupt(format!(
                "{}: a table lies at {offset:#x}, past the end of the file",
                file.path().display()
            ))
            .with_hint("it was cut short when it was copied, or is damaged"));
        }
        Ok(Tail { bytes, within })
    }
}

/// The end of a page.
#[derive(Debug)]
pub(crate) struct Tail {
    bytes: Arc<[u8]>,
    within: usize,
}

impl Tail {
    /// The big-endian words, as many as there are in full.
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> + '_ {
        self.bytes[self.within..]
            .chunks_exact(8)
            .map(|word| u64::from_be_bytes(word.try_into().expect("a chunk has 8 bytes")))
    }
}
