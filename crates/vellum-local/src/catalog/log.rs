//! SQLite's write-ahead log: whether it holds more than the catalog shows, and what it holds once nobody uses the catalog.
//!
//! A process that dies in a commit may have written it whole to the log, and have told nobody. Those that live go on without it;
//! whoever opens the catalog after all have left finds it, and it comes true. Until something takes its place in the log, nothing
//! may be built on its not having happened.
//!
//! The log keeps its frames when the catalog is closed. Whoever opens it next reads them up to the first that is not as it was
//! written, and lays what they hold over the file: with one byte changed in the middle, an earlier catalog over a later one. So
//! whoever closes a catalog in good order [leaves one frame](leave_one_frame), if nobody else is using it; that is believed or not
//! as a whole.
//!
//! What is read here is SQLite's file format: a header of 32 bytes with the size of a page and two salts, then frames, each a
//! header of 24 bytes with the salts it was written under, and a page.

use std::time::Duration;

use rusqlite::Connection;

use super::Outcome;

/// How long whoever closes a catalog waits for others who are looking at it.
const OTHERS_WAIT: Duration = Duration::from_millis(500);
/// Bytes of the log's header.
pub(crate) const HEADER: usize = 32;
/// Bytes of the header of a frame.
pub(crate) const FRAME: usize = 24;

/// How many frames everybody sees. Not inside a transaction that has looked at anything.
pub(crate) fn frames(db: &Connection) -> Outcome<u64> {
    let frames: i64 = db.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| row.get(1))?;
    Ok(u64::try_from(frames).unwrap_or(0))
}

/// Where the frame after so many lies.
pub(crate) fn end(header: &[u8; HEADER], frames: u64) -> u64 {
    let page = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
    HEADER as u64 + frames * (FRAME as u64 + u64::from(page))
}

/// Whether a frame belongs to the log with this header, and not to an older one that had the file before.
pub(crate) fn goes_on(header: &[u8; HEADER], frame: &[u8; FRAME]) -> bool {
    header[16..24] == frame[8..16]
}

/// Has the log moved into the file, and begun anew with one frame: that of the page with the pool's row. Does nothing where the
/// log has no more than that, or where somebody goes on using it.
pub(crate) fn leave_one_frame(db: &Connection) -> Outcome<()> {
    if frames(db)? <= 1 {
        return Ok(());
    }
    db.busy_timeout(OTHERS_WAIT)?;
    let is_busy: bool = db.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get(0))?;
    if !is_busy {
        db.execute("UPDATE pool SET settled = settled + 1", [])?;
    }
    Ok(())
}
