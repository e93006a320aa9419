//! Disk image files in and out: raw and qcow2
