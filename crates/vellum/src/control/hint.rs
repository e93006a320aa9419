//! The hint that the holder of an image leaves: where it can be asked.
//!
//! It lies in the pool if that is a directory, since processes with different homes may share one, and else in the home. It is never
//! believed: one that is stale or damaged leads nowhere, and then the image is in use by somebody who cannot be asked.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vellum_engine::ImageId;

/// A hint is a path and a number: anything longer is none.
const BYTES_MAX: u64 = 16 << 10;

/// Where the holder of an image is asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Hint {
    pub(crate) socket: PathBuf,
    /// For people: it means nothing in another container.
    pub(crate) pid: u32,
}

/// Leaves a hint, as a whole or not at all.
pub(crate) fn leave(hints: &Path, image: &ImageId, socket: &Path) -> io::Result<()> {
    let hint = Hint { socket: socket.to_owned(), pid: std::process::id() };
    let new = hints.join(format!("{image}.holder-new"));
    // In a home it may be missing, and no more than that: a pool that was moved away is not made anew.
    match fs::create_dir(hints) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::write(&new, serde_json::to_vec(&hint)?)?;
    fs::rename(&new, path(hints, image))
}

/// Takes the hint away. Called while the image is still owned, or the next owner's might go.
pub(crate) fn remove(hints: &Path, image: &ImageId) {
    // One that stays leads nowhere, which is harmless.
    let _ = fs::remove_file(path(hints, image));
}

/// The hint of an image, if there is one that can be understood.
pub(crate) fn find(hints: &Path, image: &ImageId) -> Option<Hint> {
    // A few dozen bytes, on the way to asking somebody else: not worth a thread.
    let mut bytes = Vec::new();
    File::open(path(hints, image)).ok()?.take(BYTES_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn path(hints: &Path, image: &ImageId) -> PathBuf {
    hints.join(format!("{image}.holder"))
}
