//! [`LoopDevice`]: a file as a block device, until it is dropped.

use std::path::Path;

use anyhow::{Context, Result};

use crate::tools;

/// A loop device.
#[derive(Debug)]
pub struct LoopDevice(String);

impl LoopDevice {
    /// Makes one of a file.
    pub fn attach(file: &Path) -> Result<Self> {
        let file = file.to_str().context("a temporary path is UTF-8")?;
        let device = tools::ok("losetup", &["--find", "--show", file])?;
        Ok(Self(device.trim().to_owned()))
    }

    /// Its path.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// Takes it apart, and reports what goes wrong. Whoever still uses it keeps it until then.
    pub fn detach(mut self) -> Result<()> {
        tools::ok("losetup", &["--detach", &std::mem::take(&mut self.0)]).map(|_| ())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            let _ = tools::run("losetup", &["--detach", &self.0]);
        }
    }
}
