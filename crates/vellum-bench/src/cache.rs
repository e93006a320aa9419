//! The page cache: what is read from it says nothing of how a disk is read.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{Advice, fadvise};

/// Drops what is cached of the files in a directory and below it; what is not written to the disk yet stays.
pub fn drop_files(directory: &Path) -> Result<()> {
    for entry in directory.read_dir().with_context(|| format!("list {}", directory.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            drop_files(&entry.path())?;
        } else if kind.is_file() {
            let path = entry.path();
            let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}
