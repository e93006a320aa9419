//! Reading pages of a map file, beside whoever may be writing them.

use vellum_core::Buffer;
use vellum_disk::File;
use vellum_engine::{Error, ErrorKind, Result};

use crate::format::PAGE;

/// So often a page is read whose bytes go on changing.
const READS_MAX: usize = 100;

/// The page of a map at an offset, which is not checked. `what` names the file in errors.
pub(crate) async fn read(map: &impl File, at: u64, what: &str) -> Result<Buffer> {
    let (page, result) = map.read_at(Buffer::from_vec(vec![0; PAGE]), 0..PAGE, at).await;
    result.map_err(|error| Error::io(format!("read {what} at {at}"), error))?;
    Ok(page)
}

/// What the page at an offset says. A filler in another process may be writing it, and file systems that do not keep a read apart
/// from a write, such as ext4, may show a sector of which a part is old: so it is damaged only if it stays as it is.
pub(crate) async fn read_checked<T>(
    map: &impl File,
    at: u64,
    what: &str,
    decode: impl Fn(&[u8; PAGE]) -> Result<T>,
) -> Result<T> {
    let mut page = read(map, at, what).await?;
    for _ in 1..READS_MAX {
        match decode(bytes_of(&page)) {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let again = read(map, at, what).await?;
                if again[..] == page[..] {
                    return Err(error);
                }
                page = again;
            }
            decoded => return decoded,
        }
    }
    decode(bytes_of(&page))
}

/// The bytes of a page that was read.
pub(crate) fn bytes_of(page: &Buffer) -> &[u8; PAGE] {
    page[..].try_into().expect("the buffer is as long as a page")
}
