//! Files made by QEMU are read as QEMU reads them, and files made here are read by QEMU as they were written.
//!
//! [`lab`] makes and compares disks; the other modules state what holds, one topic each.
#![allow(clippy::unwrap_used, reason = "what fails while a test is prepared fails the test")]

mod chains;
mod lab;
mod reading;
mod refusals;
mod streams;
mod writing;
